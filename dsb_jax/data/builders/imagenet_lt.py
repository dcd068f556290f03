"""ImageNet-LT: lists that draw a long-tailed training set, and a balanced validation set, from those of ImageNet."""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import imagenet
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_LISTS = {"train": "ImageNet_LT_train.txt", "validation": "ImageNet_LT_val.txt", "test": "ImageNet_LT_test.txt"}
# Of the file whose SHA-256 TFDS has; those of the other two are not published.
_MD5 = {"validation": "ef44f8e43fbc904809a77216042e7498"}
_COUNTS = {
    "train": specs.listed("imagenet_lt"),
    "validation": specs.alike(20, 1000),
    "test": specs.alike(50, 1000),
}


class ImagenetLt(FromFiles, skip_registration=True):
    """115,846 training images of 1,000 classes, 5 to 1,280 of each, 20 of each to validate and 50 to test.

    Liu et al., Large-Scale Long-Tailed Recognition in an Open World, 2019. Training and validation images are from
    ImageNet's training set, those of the test are its validation set. Name, version, features, splits and labels are
    those of TFDS.
    """

    name = "imagenet_lt"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"the folder of {', '.join(_LISTS.values())} of github.com/zhmiao/OpenLongTailRecognition-OLTR, and "
        f"beside them {imagenet.IMAGES}"
    )
    images_per_split = {split: int(counts.sum()) for split, counts in _COUNTS.items()}  # noqa: RUF012
    images_per_class = _COUNTS

    def _further_features(self) -> dict[str, Any]:
        return {"file_name": tfds.features.Text()}

    def _index(self, archive: Archive) -> Index:
        classes = imagenet.wnids()
        lists = folder_of_lists(archive, list(_LISTS.values()), "ImageNet_LT")
        lines = {split: read_list(lists, name, len(classes), md5=_MD5.get(split, ())) for split, name in _LISTS.items()}
        val, val_classes = imagenet.val_images(archive), imagenet.val_classes()
        folder = imagenet.train_folder(archive)
        splits: dict[str, list[Item]] = {}
        for split, images in lines.items():
            where, top = f"{lists}/{_LISTS[split]}", "val" if split == "test" else "train"
            splits[split] = []
            for path, label in images:
                *place, name = path.split("/")
                own_class = val_classes.get(name) if split == "test" else name.partition("_")[0]
                if place != [top, own_class]:
                    raise ValueError(f"{where} lists {path}, which is no {top}/CLASS/IMAGE of ImageNet")
                if own_class != classes[label]:
                    raise ValueError(f"{where} has label {label}, that is {classes[label]}, for {path}")
                stored = val[name] if split == "test" else f"{folder}{own_class}/{name}"
                splits[split].append(Item(stored, label, features={"file_name": name}))
        return Index(classes, splits, archive)


def folder_of_lists(archive: Archive, names: Sequence[str], *folders: str) -> Archive:
    """Where the lists are: in the archive, or in one of these folders in it.

    Raises:
      FileNotFoundError: not all of them are there.
    """
    lists = archive.within(names[0], *folders)
    if lacking := [name for name in names if not lists.has(name)]:
        raise FileNotFoundError(f"{' and '.join(lacking)} not in {lists}, where {names[0]} is")
    return lists


def read_list(archive: Archive, name: str, num_classes: int, *, md5: str | Sequence[str] = ()) -> list[tuple[str, int]]:
    """The path and the label in each line of a list.

    Raises:
      ValueError: a line that is none, a label that is no class, or a path that is listed twice.
    """
    images: dict[str, int] = {}
    for number, line in enumerate(archive.text(name, md5=md5).splitlines(), start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal():
            raise ValueError(f"{archive}/{name}: line {number} must be a path and a label, got {line!r}")
        if int(label) >= num_classes:
            raise ValueError(f"{archive}/{name}: labels must lie in [0, {num_classes}), got {label} of {path}")
        if path in images:
            raise ValueError(f"{archive}/{name} lists {path} more than once, the second time in line {number}")
        images[path] = int(label)
    return list(images.items())


_STORED = {"train": "train", "val": "validation", "test": "test"}

SPECS = (
    Spec(
        name="imagenet_lt",
        title="ImageNet-LT",
        stored_as="imagenet_lt",
        protocols={
            "classification": Protocol(
                "the published split, its test balanced",
                {split: Part((stored,), _COUNTS[stored]) for split, stored in _STORED.items()},
            )
        },
        image_shape=(375, 500, 3),
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence=imagenet.LICENCE,
        # What is kept of ImageNet's; all of those have to be there.
        gigabytes=imagenet.GIGABYTES,
        sizes_differ=True,
        long_tailed=True,
        class_names=tuple(imagenet.wnids()),
    ),
)
