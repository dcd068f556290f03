"""Cars196."""

import io
from typing import Any

import numpy as np
from scipy import io as scipy_io

from dsb_jax.data import long_tail, specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_COUNTS = {split: specs.listed(f"cars196_{split}") for split in ("train", "test")}
_FIRST = 98  # of the 196 classes: they train where the others are searched
_IMBALANCES = (10, 20, 50)
# N of the long tails, which the paper does not state: the largest that leaves every class enough images at all three
# imbalances. Class 1 bounds it: it has 64 images.
_LARGEST = 66
_FOLDERS = ("stanford_cars", "cars196")


class Cars(FromFiles, skip_registration=True):
    """16,185 photographs of 196 models of cars (Krause et al., 2013), whole, divided as published.

    Classes are in the order of ``cars_meta.mat``, images in that of the annotations.
    """

    name = "cars196"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder of cars_train/, cars_test/, devkit/ (cars_meta.mat, cars_train_annos.mat) and "
        "cars_test_annos_withlabels.mat, or that of car_ims/ and cars_annos.mat, from "
        "ai.stanford.edu/~jkrause/cars/car_dataset.html, or from the copies in github.com/pytorch/vision/issues/7545"
    )
    images_per_split = {split: int(counts.sum()) for split, counts in _COUNTS.items()}  # noqa: RUF012
    images_per_class = _COUNTS

    def _index(self, archive: Archive) -> Index:
        try:
            pooled = archive.within("car_ims", *_FOLDERS)
        except FileNotFoundError:
            return _in_two_folders(archive.within("cars_train", *_FOLDERS))
        return _in_one_folder(pooled)


def _in_two_folders(archive: Archive) -> Index:
    """Images of a split in a folder of its own, and its annotations in a file."""
    if not archive.has("cars_test"):
        raise FileNotFoundError(f"cars_test is not in {archive}")
    names = _class_names(archive, "devkit/cars_meta.mat")
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    if not archive.has(files["test"]):
        files["test"] = f"devkit/{files['test']}"
    if not archive.has(files["test"]):
        raise FileNotFoundError(
            f"cars_test_annos_withlabels.mat is neither in {archive} nor in its devkit, and the cars_test_annos.mat "
            "there has no labels"
        )
    splits = {
        split: [
            Item(f"cars_{split}/{path}", label) for path, label, _ in _annotations(archive, file, "fname", len(names))
        ]
        for split, file in files.items()
    }
    return Index(names, splits, archive)


def _in_one_folder(archive: Archive) -> Index:
    """All images in a folder, and all annotations in a file."""
    names = _class_names(archive, "cars_annos.mat")
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for path, label, row in _annotations(archive, "cars_annos.mat", "relative_im_path", len(names), "test"):
        if row["test"] not in (0, 1):
            raise ValueError(f"{archive}/cars_annos.mat: test of {path} must be 0 or 1, got {row['test']}")
        splits["test" if row["test"] else "train"].append(Item(path, label))
    return Index(names, splits, archive)


def _class_names(archive: Archive, file: str) -> list[str]:
    return [str(name) for name in np.atleast_1d(_variable(archive, file, "class_names"))]


def _annotations(
    archive: Archive, file: str, path_field: str, num_classes: int, *more_fields: str
) -> list[tuple[str, int, Any]]:
    """The path of each image, its label from 0, and all that is said of it."""
    rows = np.atleast_1d(_variable(archive, file, "annotations"))
    fields = rows.dtype.names or ()
    if lacking := [field for field in (path_field, "class", *more_fields) if field not in fields]:
        raise ValueError(f"{archive}/{file} must say {lacking[0]} of every image, but says {', '.join(fields)}")
    found, paths = [], set()
    for row in rows:
        path, number = str(row[path_field]), int(row["class"])
        if path in paths:
            raise ValueError(f"{archive}/{file} lists {path} more than once")
        if not 1 <= number <= num_classes:
            raise ValueError(f"{archive}/{file}: {path} has class {number}, but there are 1 to {num_classes}")
        paths.add(path)
        found.append((path, number - 1, row))
    return found


def _variable(archive: Archive, file: str, name: str) -> np.ndarray:
    content = archive.read(file)
    try:
        variables = scipy_io.loadmat(io.BytesIO(content), squeeze_me=True)
    except Exception as error:  # scipy lets out whatever a damaged file leads it to
        raise ValueError(f"{archive}/{file} is no complete MATLAB file: {error}") from error
    if name not in variables:
        found = ", ".join(sorted(key for key in variables if not key.startswith("__")))
        raise ValueError(f"{archive}/{file} must hold {name}, but holds {found or 'nothing'}")
    return variables[name]


def _protocols() -> dict[str, Protocol]:
    both = ("train", "test")
    together, classes = _COUNTS["train"] + _COUNTS["test"], len(_COUNTS["train"])
    first, others = specs.class_range(0, _FIRST, classes), specs.class_range(_FIRST, classes, classes)
    test = Part(both, together[_FIRST:], relabel=others)
    train = Part(both, together[:_FIRST], relabel=first)
    protocols = {
        "retrieval": Protocol("the first 98 classes train, the other 98 are searched", {"train": train, "test": test}),
        "classification": Protocol(
            "the published split of all 196 classes",
            {split: Part((split,), counts) for split, counts in _COUNTS.items()},
        ),
    }
    for imbalance in _IMBALANCES:
        counts = long_tail.exponential_counts(_LARGEST, _FIRST, imbalance)
        train = Part(both, counts, relabel=first, choose=specs.thinned(counts))
        protocols[f"retrieval_lt_{imbalance}"] = Protocol(
            f"the first 98 classes, of imbalance {imbalance}, train, the other 98 are searched (Table 9)",
            {"train": train, "test": test},
            long_tailed=True,
        )
    return protocols


SPECS = (
    Spec(
        name="cars196",
        title="Cars196",
        stored_as="cars196",
        protocols=_protocols(),
        image_shape=(483, 700, 3),
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence="for non-commercial research",
        gigabytes=1.96,
        sizes_differ=True,
        class_names=specs.named("cars196"),
    ),
)
