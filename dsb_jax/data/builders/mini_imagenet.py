"""Mini-ImageNet, in the split of Ravi and Larochelle."""

import csv
from typing import NamedTuple

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_CLASSES = {"train": 64, "val": 16, "test": 20}  # of each list
_IMAGES_PER_CLASS = 600
_TRAINING_SHARE = 5 / 6  # 500 images, which the sub-datasets of Table 7 are drawn from
_FIRST = 64  # classes: they train where the others are searched (Table 10)


class _Class(NamedTuple):
    """Its number, the list that it is in, and the folder of its images."""

    label: int
    listed: str
    folder: str


class MiniImagenet(FromFiles, skip_registration=True):
    """600 images of each of 100 classes of ImageNet (Vinyals et al., 2016), as listed by Ravi and Larochelle, 2017.

    Their lists divide the classes, so all images are stored as one split, ``train``; classes and images are in the
    order of ``train.csv``, ``val.csv`` and ``test.csv``, a class where it first appears. Copies of the images differ:
    at ImageNet's own sizes or brought to 84x84. Either is taken as it is.
    """

    name = "mini_imagenet"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder of train.csv, val.csv, test.csv (github.com/twitter-research/meta-learning-lstm, "
        "data/miniImagenet) and images/, of n0153282900000005.jpg or n01532829/n0153282900000005.jpg, which "
        "github.com/yaoyao-liu/mini-imagenet-tools makes of ILSVRC2012"
    )
    images_per_split = {"train": sum(_CLASSES.values()) * _IMAGES_PER_CLASS}  # noqa: RUF012
    images_per_class = {"train": specs.alike(_IMAGES_PER_CLASS, sum(_CLASSES.values()))}  # noqa: RUF012

    def _index(self, archive: Archive) -> Index:
        archive = archive.within("train.csv", "mini-imagenet", "mini_imagenet", "miniimagenet", "miniImageNet")
        found: dict[str, _Class] = {}
        items: list[Item] = []
        for split, classes in _CLASSES.items():
            for file, name in _rows(archive, f"{split}.csv"):
                if name not in found:
                    found[name] = _Class(len(found), split, _folder(archive, split, name))
                label, listed, folder = found[name]
                if listed != split:
                    raise ValueError(f"{archive}/{split}.csv lists {file} of {name}, a class of {listed}.csv")
                items.append(Item(f"{folder}/{file}", label))
            if (number := sum(listed == split for _, listed, _ in found.values())) != classes:
                raise ValueError(f"{archive}/{split}.csv must have {classes} classes, got {number}")
        return Index(list(found), {"train": items}, archive)


def _rows(archive: Archive, name: str) -> list[tuple[str, str]]:
    """File and class of each image of a list."""
    header, *rows = [row for row in csv.reader(archive.text(name).splitlines()) if row] or [[]]
    if header != ["filename", "label"]:
        raise ValueError(f"{archive}/{name} must begin with filename,label, got {','.join(header) or 'nothing'}")
    for row in rows:
        if len(row) != 2 or not row[0].startswith(row[1]):
            raise ValueError(f"{archive}/{name} must have a file, called after its class, and the class, got {row}")
    return [(file, label) for file, label in rows]


def _folder(archive: Archive, split: str, name: str) -> str:
    """Where the images of a class are."""
    for folder in (f"images/{name}", "images", f"{split}/{name}", name):
        if archive.has(folder):
            return folder
    raise FileNotFoundError(f"{archive} has no folder images, and none of {name}, a class of {split}.csv")


def _protocols() -> dict[str, Protocol]:
    counts = specs.alike(_IMAGES_PER_CLASS, sum(_CLASSES.values()))
    classification = {
        split: Part(
            ("train",),
            specs.drawn_counts(counts, _TRAINING_SHARE, first=first),
            choose=specs.drawn(_TRAINING_SHARE, first=first),
        )
        for split, first in (("train", True), ("test", False))
    }
    retrieval = {
        split: Part(("train",), counts[start:stop], relabel=specs.class_range(start, stop, len(counts)))
        for split, start, stop in (("train", 0, _FIRST), ("test", _FIRST, len(counts)))
    }
    return {
        "classification": Protocol("of each class 500 images train and 100 test, drawn once for all", classification),
        "retrieval": Protocol("the first 64 classes train, the other 36 are searched", retrieval),
    }


SPECS = (
    Spec(
        name="mini_imagenet",
        title="Mini-ImageNet",
        stored_as="mini_imagenet",
        protocols=_protocols(),
        image_shape=(375, 500, 3),
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence="ImageNet's: for non-commercial research and education",
        gigabytes=3.0,
        sizes_differ=True,
        class_names=specs.named("mini_imagenet"),
    ),
)
