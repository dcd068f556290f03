"""Stanford Online Products."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_COLUMNS = ("image_id", "class_id", "super_class_id", "path")
_CLASSES = {"Ebay_train.txt": 11_318, "Ebay_test.txt": 11_316}  # of each list, numbered on in the second
_IMAGES = {"Ebay_train.txt": 59_551, "Ebay_test.txt": 60_502}


class OnlineProducts(FromFiles, skip_registration=True):
    """120,053 photographs of 22,634 articles that eBay offered (Song et al., 2016).

    The published split is one of classes, so all images are stored as one split, ``train``: those of
    ``Ebay_train.txt``, whose classes are the first 11,318, then those of ``Ebay_test.txt``. A class is called by the
    kind of article and its number.
    """

    name = "sop"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder Stanford_Online_Products (Ebay_train.txt, Ebay_test.txt and bicycle_final/ to toaster_final/), or "
        "the folder of Stanford_Online_Products.zip, of cvgl.stanford.edu/projects/lifted_struct"
    )
    images_per_split = {"train": sum(_IMAGES.values())}  # noqa: RUF012

    def _index(self, archive: Archive) -> Index:
        archive = archive.within("Ebay_train.txt", "Stanford_Online_Products")
        kinds: dict[int, str] = {}
        items: list[Item] = []
        first = 1
        for name, classes in _CLASSES.items():
            before, last = len(items), first + classes - 1
            for number, path in _rows(archive, name):
                if not first <= number <= last:
                    raise ValueError(f"{archive}/{name}: {path} has class {number}, but it lists {first} to {last}")
                kind = _kind(path)
                if kinds.setdefault(number, kind) != kind:
                    raise ValueError(f"{archive}/{name}: class {number} is both {kinds[number]} and {kind}")
                items.append(Item(path, number - 1))
            if lacking := [number for number in range(first, last + 1) if number not in kinds]:
                raise ValueError(f"{archive}/{name} has no images of class {lacking[0]}")
            if len(items) - before != _IMAGES[name]:
                raise ValueError(f"{archive}/{name} must list {_IMAGES[name]:,} images, got {len(items) - before:,}")
            first = last + 1
        folders = sorted({item.path.rpartition("/")[0] for item in items})
        if absent := [folder for folder in folders if not archive.has(folder)]:
            raise FileNotFoundError(f"not in {archive}: {', '.join(absent)}")
        return Index([f"{kinds[number]} {number}" for number in range(1, first)], {"train": items}, archive)


def _rows(archive: Archive, name: str) -> Iterator[tuple[int, str]]:
    """Class and path of each image of a list."""
    header, *lines = archive.text(name).splitlines() or [""]
    if tuple(header.split()) != _COLUMNS:
        raise ValueError(f"{archive}/{name} must begin with {' '.join(_COLUMNS)}, got {header!r}")
    images = set()
    for line, text in enumerate(lines, start=2):
        cells = text.split()
        if not cells:
            continue
        if len(cells) != len(_COLUMNS) or not all(cell.isdecimal() for cell in cells[:3]):
            raise ValueError(f"{archive}/{name}: line {line} must be three numbers and a path, got {text!r}")
        image, number, _, path = cells
        if image in images:
            raise ValueError(f"{archive}/{name} lists image {image} more than once, the second time in line {line}")
        images.add(image)
        yield int(number), path


def _kind(path: str) -> str:
    """The kind of article, of the path of its image.

    Example:
      >>> _kind("coffee_maker_final/111085122871_0.JPG")
      'coffee_maker'
    """
    return path.partition("/")[0].removesuffix("_final")


def _retrieval() -> Protocol:
    first, others = _CLASSES.values()
    splits = {}
    for split, name, start, seed in (("train", "Ebay_train.txt", 0, 0), ("test", "Ebay_test.txt", first, 1)):
        classes = _CLASSES[name]
        counts = specs.profile(_IMAGES[name], classes, smallest=2, largest=12, seed=seed)
        relabel = specs.class_range(start, start + classes, first + others)
        splits[split] = Part(("train",), counts, relabel=relabel)
    return Protocol(f"the first {first:,} classes train, the other {others:,} are searched", splits)


def _classification() -> Protocol:
    """Ours, so that features can be watched while a classifier learns the products (Sec. 2 of Ma et al., 2023)."""
    whole = _retrieval().splits["train"]
    ones = np.ones_like(whole.counts)
    splits = {
        "train": dataclasses.replace(whole, counts=whole.counts - ones, choose=_one_of_each(held_out=False)),
        "test": dataclasses.replace(whole, counts=ones, choose=_one_of_each(held_out=True)),
    }
    return Protocol(f"of the first {len(ones):,} classes an image each, drawn at random, for the test", splits)


def _one_of_each(*, held_out: bool) -> specs.Choice:
    def choose(labels: np.ndarray, subset_seed: int) -> np.ndarray:
        del subset_seed  # the split is the dataset's
        rows = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
        _, first = np.unique(labels[rows], return_index=True)
        return np.sort(rows[first] if held_out else np.delete(rows, first))

    return choose


SPECS = (
    Spec(
        name="sop",
        title="Stanford Online Products",
        stored_as="sop",
        protocols={"retrieval": _retrieval(), "classification": _classification()},
        image_shape=(500, 500, 3),
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence="not stated; images of eBay's sellers, published for research",
        gigabytes=3.08,
        sizes_differ=True,
        profile="made up from the published totals and 2 to 12 images of each class",
    ),
)
