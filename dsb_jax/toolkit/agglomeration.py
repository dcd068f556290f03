"""Which classes are of a kind where nobody knows their parents: a tree that grows from volumes of classes put together.

Two classes are the farther apart, the more bits a sample costs that is described as one of both rather than as one of
its own. With volumes R (the paper's Eq. 3 is the rate of a Gaussian code of precision ε: Ma et al., Segmentation of
Multivariate Mixed Data via Lossy Data Coding and Compression, 2007) and classes that weigh alike,

    δ(a, b) = R(a and b) − (R(a) + R(b)) / 2  >= 0,

which is 0 where mean and covariance are equal. It is the S-divergence of the classes' second moments, and so √δ is a
metric (Sra, Positive Definite Matrices and the S-Divergence, 2016). Ward's linkage on √δ makes the tree: what joins is
what adds least to the bits of all.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from threadpoolctl import threadpool_limits

from dsb_jax import validation
from dsb_jax.toolkit import trees
from dsb_jax.toolkit.matching import moments_by_name
from dsb_jax.toolkit.moments import Moments
from dsb_jax.toolkit.points import Points

_LISTED = 3  # pairs and left-out classes that a reading names
_ALIKE = 1e-9  # bits per sample: classes that are less apart than that are equal but for rounding
_UNEQUAL = 10.0  # times that the largest class may be of the smallest before a reading warns of it


@dataclasses.dataclass(frozen=True, eq=False)
class ClassTree:
    """How far classes are apart, and in which order they join. A :class:`dsb_jax.toolkit.findings.Finding`.

    Attributes:
      distances: δ in bits per sample, float64 ``[C, C]``, symmetric with zeros on the diagonal.
      class_names: C names.
      counts: samples, int64 ``[C]``.
      left_out: names of classes with fewer than two samples, which span nothing.
      name: what they are of.
    """

    distances: np.ndarray
    class_names: tuple[str, ...]
    counts: np.ndarray
    left_out: tuple[str, ...]
    name: str

    @functools.cached_property
    def joined(self) -> np.ndarray:
        """What joins with what at which √δ, float64 ``[C − 1, 4]``, as SciPy's ``linkage`` has it."""
        return hierarchy.linkage(np.sqrt(squareform(self.distances, checks=False)), "ward")

    @property
    def nearest(self) -> np.ndarray:
        """The class nearest to each, int64 ``[C]``."""
        apart = self.distances.copy()
        np.fill_diagonal(apart, np.inf)
        return apart.argmin(axis=1)

    def groups(self, number: int) -> np.ndarray:
        """The tree cut into so many groups: int64 ``[C]``, from 0.

        Raises:
          ValueError: unless there are from 1 to C.
        """
        most = len(self.class_names)
        if validation.positive_int("number", number) > most:
            raise ValueError(f"number of groups must be at most the {most} classes, got {number}")
        return hierarchy.cut_tree(self.joined, n_clusters=number)[:, 0]

    def reading(self) -> str:
        """The nearest pairs, and how the tree divides at its root."""
        text = self._of_the_tree()
        if self.left_out:
            text += f" Left out, with fewer than two samples: {_listed(self.left_out)}."
        if self.counts.max() > _UNEQUAL * self.counts.min():
            text += (
                f" Classes have {self.counts.min():,} to {self.counts.max():,} samples; few span less than they would "
                "with more, which sets rare classes apart."
            )
        return text

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """The class nearest to each, and how near."""
        rows = [
            [name, f"{count:,}", self.class_names[other], f"{self.distances[number, other]:.4g}"]
            for number, (name, count, other) in enumerate(zip(self.class_names, self.counts, self.nearest, strict=True))
        ]
        return ["class", "samples", "nearest", "bits apart"], rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """The tree."""
        return {
            "tree": (
                "Classes that join farther to the right are more alike: the axis is the root of the bits per sample "
                "that one description of two classes costs more than one of each; of groups, Ward's sum of them.",
                trees.dendrogram(
                    self.joined,
                    class_names=self.class_names,
                    unit="√ of bits per sample",
                    title=f"Kinship by volume: {self.name}",
                ),
            )
        }

    def as_dict(self) -> dict[str, Any]:
        """Distances, and the tree as SciPy has it."""
        return {
            "name": self.name,
            "classes": list(self.class_names),
            "samples": self.counts,
            "left_out": list(self.left_out),
            "distances": self.distances,
            "joined": self.joined,
        }

    def _of_the_tree(self) -> str:
        if self.distances.max() < _ALIKE:
            return (
                f"Nothing tells these {len(self.class_names)} classes apart: to describe all as one class costs a "
                "sample no bits, and the order in which they join means nothing."
            )
        first, second = np.triu_indices(len(self.class_names), 1)
        apart = self.distances[first, second]
        nearest = [
            f"{self.class_names[first[i]]} and {self.class_names[second[i]]} ({apart[i]:.3g})"
            for i in np.argsort(apart, kind="stable")[:_LISTED]
        ]
        sides = [_listed(np.array(self.class_names)[self.groups(2) == side]) for side in (0, 1)]
        return (
            f"Most alike, by the bits that a sample costs more if both are one class: {', '.join(nearest)}. At its "
            f"root the tree divides {sides[0]} from {sides[1]}; it knows of volumes alone, and what the members of a "
            "branch have in common is for you to say."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def of(
    classes: Points | Mapping[str, Moments],
    *,
    epsilon: float = 1.0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> ClassTree:
    """The tree of some classes.

    Args:
      classes: points; or moments by name, as they add up over shards. Two with two samples or more.
      epsilon: of the volumes.
      progress: ``(iterable, total) -> iterable``, through which the classes pass.

    Returns:
      Distances and tree; C² / 2 volumes of two classes each are computed for it.

    Raises:
      ValueError: if fewer than two classes have two samples, or C matrices of d² numbers do not fit into memory.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> at = lambda *center: Moments.of(rng.normal(size=(500, 2)) + center)
      >>> tree = of({"cat": at(0, 0), "car": at(9, 9), "dog": at(1, 0), "bus": at(9, 8)})
      >>> tree.groups(2).tolist(), [tree.class_names[other] for other in tree.nearest]
      ([0, 1, 0, 1], ['dog', 'bus', 'cat', 'car'])
    """
    epsilon = validation.positive("epsilon", epsilon)
    name = classes.name if isinstance(classes, Points) else "classes"
    named = moments_by_name(classes)
    kept = {key: value for key, value in named.items() if value.count > 1}
    if len(kept) < 2:
        raise ValueError(f"a tree needs two classes of two samples or more, got {len(kept)}")
    every = list(kept.values())  # made alike one by one: all at once would take as much memory again
    distances = np.zeros((len(kept), len(kept)))
    # One pair is too little for a BLAS with threads of its own.
    with threadpool_limits(1):
        alone = np.array([each.volume(epsilon=epsilon) for each in map(_alike, every)])
        for number, each in enumerate(every if progress is None else progress(every, len(every))):
            this = _alike(each)
            together = [(this + _alike(other)).volume(epsilon=epsilon) for other in every[:number]]
            # Of equal classes rounding may leave less than nothing.
            distances[number, :number] = np.maximum(together - (alone[number] + alone[:number]) / 2, 0)
    return ClassTree(
        distances + distances.T,
        tuple(kept),
        np.array([each.count for each in kept.values()]),
        tuple(key for key in named if key not in kept),
        name,
    )


def _alike(classes: Moments) -> Moments:
    """Those of a class as if it had two samples, so that all weigh alike."""
    return Moments(2, classes.mean, classes.scatter * (2 / classes.count))
