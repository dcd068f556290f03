"""What is known of a dataset before it is here: its classes and images, the paper's protocol, licence and size."""

import dataclasses
import importlib.resources
from collections.abc import Callable, Sequence

import numpy as np

from dsb_jax import validation
from dsb_jax.data import long_tail

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The protocol that own images have beside their division: half of the classes trains, the others are searched.
OTHER_CLASSES = "retrieval"

# Of labels, some of them −1, and a seed, the rows that belong to a split, ascending.
Choice = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Which of the stored images make up a split.

    Attributes:
      stored: the splits in which they are stored, one after the other.
      counts: images of each class, int64 ``[C]``, as published; as of a profile where the spec says so.
      relabel: the label that each stored class has here, −1 for a class left out; None where labels are the stored.
      choose: from these labels and a seed, the rows that belong to it, of those not left out; None for all.
    """

    stored: tuple[str, ...]
    counts: np.ndarray
    relabel: np.ndarray | None = None
    choose: Choice | None = None

    def class_names(self, stored: Sequence[str]) -> tuple[str, ...]:
        """Those of the classes of this split, in the order of their labels, of the names of all stored ones."""
        if self.relabel is None:
            return tuple(stored)
        kept = np.flatnonzero(self.relabel >= 0)
        return tuple(stored[old] for old in kept[np.argsort(self.relabel[kept], kind="stable")])


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol:
    """How a dataset is divided.

    Attributes:
      description: of the division, a phrase for lists and messages.
      splits: ``"train"`` and the others.
      evaluation: the split that results are reported on.
      class_names: in the order of the labels, where they are other than the stored ones.
      long_tailed: whether the classes of its training split are (α = 2).
    """

    description: str
    splits: dict[str, Part]
    evaluation: str = "test"
    class_names: tuple[str, ...] = ()
    long_tailed: bool = False

    @property
    def same_classes(self) -> bool:
        """Whether the classes that are tested are those that were trained; retrieval tests on others."""
        trained, tested = (self.splits[split].relabel for split in ("train", self.evaluation))
        return trained is tested or (trained is not None and tested is not None and np.array_equal(trained, tested))


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """A dataset.

    Attributes:
      name: what it is called in settings.
      title: what it is called in texts.
      stored_as: the builder that writes it, a key of ``builders.BUILDERS``.
      protocols: by name, the default one first.
      image_shape: height, width and channels: of every image, or of a typical one where ``sizes_differ``.
      sizes_differ: whether images must be brought to one size.
      mean: of every channel, of training images in [0, 1].
      std: likewise.
      licence: as its source states it, or what is known of its terms.
      gigabytes: of the files to be prepared.
      long_tailed: whether all of its protocols are.
      profile: what the counts are where they are no published list, as a phrase; empty where they are true.
      class_names: of the stored classes, in the order of their labels; empty where it takes the images' list to know
        them.
      encoding: ``".jpg"`` or ``".png"``, what its images are stored as.
    """

    name: str
    title: str
    stored_as: str
    protocols: dict[str, Protocol]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    gigabytes: float
    sizes_differ: bool = False
    long_tailed: bool = False
    profile: str = ""
    class_names: tuple[str, ...] = ()
    encoding: str = ".jpg"

    def protocol(self, name: str | None = None) -> Protocol:
        """The protocol of this name, the default one for None.

        Raises:
          ValueError: an unknown name.
        """
        if name is None:
            return next(iter(self.protocols.values()))
        if name not in self.protocols:
            raise validation.unknown_name(f"protocol of {self.name}", name, self.protocols)
        return self.protocols[name]

    def part(self, split: str, protocol: str | None = None) -> Part:
        """What makes up a split.

        Raises:
          ValueError: an unknown split or protocol.
        """
        splits = self.protocol(protocol).splits
        if split not in splits:
            raise validation.unknown_name(f"split of {self.name}", split, splits)
        return splits[split]

    def train_counts(self, protocol: str | None = None) -> np.ndarray:
        """Training images of each class, int64 ``[C]``."""
        return self.protocol(protocol).splits["train"].counts

    def otherwise(self, split: str, labels: np.ndarray, protocol: str | None = None) -> str:
        """How the numbers of images with these labels differ from the published ones, a phrase; empty where not.

        Args:
          split: what the labels are of.
          labels: of all images that were prepared.
          protocol: how the dataset is divided.
        """
        wanted = self.part(split, protocol).counts
        found = np.bincount(labels, minlength=len(wanted))
        if self.profile or np.array_equal(found, wanted):
            return ""
        kind = "training" if split == "train" else split
        if found.sum() != wanted.sum():
            return f"{found.sum():,} of {wanted.sum():,} {kind} images"
        label = int(np.argmax(found != wanted))
        return f"{found[label]:,} of {wanted[label]:,} {kind} images of class {label}"

    def groups(self, protocol: str | None = None, *, tail: int = 20, head: int = 100) -> dict[str, np.ndarray]:
        """The classes of more than ``head`` training images, of fewer than ``tail``, and those between.

        Returns:
          Class numbers, int64, of ``"head"``, ``"middle"`` and ``"tail"``.

        Liu et al., Large-Scale Long-Tailed Recognition in an Open World, 2019; bounds as in Ma et al., 2023, Table 2.
        """
        counts = self.train_counts(protocol)
        chosen = {"head": counts > head, "middle": (counts >= tail) & (counts <= head), "tail": counts < tail}
        return {name: np.flatnonzero(rows) for name, rows in chosen.items()}


def alike(images_per_class: int, num_classes: int) -> np.ndarray:
    """The counts of classes that have the same number of images."""
    return np.full(num_classes, images_per_class, np.int64)


def class_range(first: int, last: int, num_classes: int) -> np.ndarray:
    """``Part.relabel`` for the stored classes ``first`` … ``last`` − 1 of ``num_classes``, numbered from 0.

    Example:
      >>> class_range(1, 3, 4).tolist()
      [-1, 0, 1, -1]
    """
    labels = np.arange(num_classes) - first
    return np.where((labels >= 0) & (labels < last - first), labels, -1)


def half_of_classes(stored: tuple[str, ...], num_classes: int, *, first: bool) -> Part:
    """All images of the first half of the classes, the larger one where they are odd, or those of the others.

    Raises:
      ValueError: halves have fewer than two classes.

    Example:
      >>> part = half_of_classes(("train", "test"), 5, first=False)
      >>> part.relabel.tolist(), part.class_names("abcde")
      ([-1, -1, -1, 0, 1], ('d', 'e'))
    """
    if num_classes < 4:
        raise ValueError(
            f"protocol={OTHER_CLASSES} divides classes, of which there must be at least 4, got {num_classes}"
        )
    half = (num_classes + 1) // 2
    relabel = class_range(0, half, num_classes) if first else class_range(half, num_classes, num_classes)
    return Part(stored, np.zeros(0, np.int64), relabel=relabel)


def listed(name: str) -> np.ndarray:
    """The counts in ``counts/NAME.txt``, a number for each class; lines that begin with # say where they are from."""
    text = importlib.resources.files("dsb_jax.data").joinpath("counts", f"{name}.txt").read_text()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return np.array([int(number) for line in lines for number in line.split()], np.int64)


def named(name: str) -> tuple[str, ...]:
    """The class names in ``classes/NAME.txt``, a line for each class; the first line says where they are from."""
    text = importlib.resources.files("dsb_jax.data").joinpath("classes", f"{name}.txt").read_text("utf-8")
    return tuple(text.splitlines()[1:])


def profile(total: int, num_classes: int, *, smallest: int, largest: int, seed: int = 0) -> np.ndarray:
    """Made-up counts with the number of classes, the sum and the extremes of a dataset whose list is not at hand.

    In order of size, class r of C has ``smallest + (largest − smallest)·(1 − r/(C−1))^p`` images, p being such that the
    sum is right; classes come in an order drawn with ``seed``.

    Returns:
      Counts, int64 ``[num_classes]``, of which the sum is ``total``.

    Raises:
      ValueError: the sum is out of reach.

    Example:
      >>> counts = profile(1000, 10, smallest=5, largest=400)
      >>> int(counts.sum()), int(counts.min()), int(counts.max())
      (1000, 5, 400)
    """
    rank = np.linspace(1, 0, num_classes)
    low, high = 1e-3, 1e3
    for _ in range(100):
        power = np.sqrt(low * high)
        counts = np.rint(smallest + (largest - smallest) * rank**power).astype(np.int64)
        low, high = (power, high) if counts.sum() > total else (low, power)
    # Rounding leaves a few images over or short: classes between the largest and the smallest take them.
    missing = total - int(counts.sum())
    room = counts < largest if missing > 0 else counts > smallest
    takers = 1 + np.flatnonzero(room[1:-1])[: abs(missing)]
    if len(takers) < abs(missing):
        raise ValueError(f"no profile of {num_classes} classes of {smallest} to {largest} images has {total} in all")
    counts[takers] += np.sign(missing)
    return np.random.default_rng(seed).permutation(counts)


def drawn(share: float, *, first: bool, seed: int = 0) -> Choice:
    """A share of each class drawn at random with a fixed seed, or (not ``first``) what is left of it.

    Example:
      >>> labels = np.repeat([0, 1], [10, 20])
      >>> train, test = (drawn(0.2, first=first)(labels, 0) for first in (True, False))
      >>> np.bincount(labels[train]).tolist(), np.bincount(labels[test]).tolist()
      ([2, 4], [8, 16])
    """

    def choose(labels: np.ndarray, subset_seed: int) -> np.ndarray:
        del subset_seed  # the split is the dataset's, whatever is drawn of it
        kept = np.zeros(len(labels), bool)
        for label in np.unique(labels[labels >= 0]):
            rows = np.flatnonzero(labels == label)
            rng = np.random.default_rng([seed, label])
            kept[rng.permutation(rows)[: round(share * len(rows))]] = True
        return np.flatnonzero((kept if first else ~kept) & (labels >= 0))

    return choose


def thinned(counts: np.ndarray, *, seed: int | None = None) -> Choice:
    """A random subset of so many images of each class, drawn with ``seed``, or for None with that chosen at load."""

    def choose(labels: np.ndarray, subset_seed: int) -> np.ndarray:
        rows = np.flatnonzero(labels >= 0)
        return rows[long_tail.subset(labels[rows], counts, seed=subset_seed if seed is None else seed)]

    return choose


def drawn_counts(counts: Sequence[int] | np.ndarray, share: float, *, first: bool) -> np.ndarray:
    """The counts that :func:`drawn` leaves of ``counts``."""
    part = np.array([round(share * count) for count in counts], np.int64)
    return part if first else np.asarray(counts, np.int64) - part
