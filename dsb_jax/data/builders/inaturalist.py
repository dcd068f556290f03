"""iNaturalist, as of the competition of 2018."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_LISTS = {"train": "train2018.json", "validation": "val2018.json"}
_IMAGES = "train_val2018"


class INaturalist2018(FromFiles, skip_registration=True):
    """437,513 training and 24,426 validation images of 8,142 species (Van Horn et al., 2018).

    Name, version, features and labels are those of TFDS, and the splits are its ``train`` and ``validation``; the
    images of the competition's test have no labels.
    """

    name = "i_naturalist2018"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"the folder of {', '.join(_LISTS.values())} and {_IMAGES}/, unpacked from train2018.json.tar.gz, "
        "val2018.json.tar.gz and train_val2018.tar.gz of github.com/visipedia/inat_comp/tree/master/2018"
    )
    images_per_split = {"train": 437_513, "validation": 24_426}  # noqa: RUF012  (a constant of the class)
    images_per_class = {"validation": specs.alike(3, 8142)}  # noqa: RUF012  (likewise)

    def _further_features(self) -> dict[str, Any]:
        kingdoms = tfds.features.ClassLabel(names=supercategories())
        return {"id": tfds.features.Text(), "supercategory": kingdoms}

    def _index(self, archive: Archive) -> Index:
        classes, groups = species(), supercategories()
        splits = {split: _items(archive, name, classes, groups) for split, name in _LISTS.items()}
        return Index(classes, splits, archive.within(_IMAGES))


def species() -> list[str]:
    """The classes in the order of their labels; the published annotations have numbers instead."""
    return _tfds_lines("inaturalist2018_labels.txt")


def supercategories() -> list[str]:
    """The 14 groups of species, in the order of their numbers in TFDS."""
    return _tfds_lines("inaturalist2018_supercategories.txt")


def _tfds_lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"image_classification/i_naturalist2018/{name}").read_text().splitlines()


def _items(archive: Archive, name: str, classes: Sequence[str], groups: Sequence[str]) -> list[Item]:
    """The images of one list, in its order."""
    where = f"{archive}/{name}"
    paths, labels = _read(archive, name)
    if lacking := sorted(paths.keys() - labels.keys()) or sorted(labels.keys() - paths.keys()):
        lacks = "annotation" if lacking[0] in paths else "image"
        raise ValueError(f"{where} has no {lacks} for image {lacking[0]}; {len(lacking):,} are without")
    items = []
    for number, path in paths.items():
        label = labels[number]
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise ValueError(f"{where}: category_id must lie in [0, {len(classes)}), got {label} of {path}")
        place = path.split("/")
        if len(place) != 4 or place[0] != _IMAGES or place[1] not in groups:
            raise ValueError(f"{where} must list {_IMAGES}/SUPERCATEGORY/CATEGORY_ID/IMAGE, got {path}")
        if place[2] != str(label):
            raise ValueError(f"{where} has category {label} for {path}")
        features = {"id": place[3].partition(".")[0], "supercategory": place[1]}
        items.append(Item(path, label, features=features))
    return items


def _read(archive: Archive, name: str) -> tuple[dict[int, str], dict[int, int]]:
    """The path and the class of each image, by its number."""
    try:
        content = json.loads(archive.text(name))
    except json.JSONDecodeError as error:
        raise ValueError(f"{archive}/{name} is no complete JSON file: {error}") from error
    try:
        images = [(image["id"], image["file_name"]) for image in content["images"]]
        annotations = [(each["image_id"], each["category_id"]) for each in content["annotations"]]
        paths, labels = dict(images), dict(annotations)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{archive}/{name} must have images, each with an id and a file_name, and annotations, each with an "
            f"image_id and a category_id: {error!r}"
        ) from error
    for found, rows in ((paths, images), (labels, annotations)):
        if len(found) != len(rows):
            what = "images" if rows is images else "annotations"
            raise ValueError(f"{archive}/{name} has {len(rows):,} {what}, but of {len(found):,} image numbers")
    return paths, labels


# Classes, images, and the least and the most of one class, of tail, middle and head. Their numbers of classes are those
# that public code for long-tailed recognition has; how the images are divided among them is made up, but for the sum.
_PROFILE = ((3599, 45_000, 2, 19), (3701, 155_000, 20, 100), (842, 237_513, 101, 1000))


def _train_counts() -> np.ndarray:
    """A profile, for the list of the classes' true numbers is not at hand."""
    groups = [
        specs.profile(images, classes, smallest=smallest, largest=largest)
        for classes, images, smallest, largest in _PROFILE
    ]
    return np.random.default_rng(0).permutation(np.concatenate(groups))


SPECS = (
    Spec(
        name="inat2018",
        title="iNaturalist 2018",
        stored_as=INaturalist2018.name,
        protocols={
            "classification": Protocol(
                "the published split, validation images balanced",
                {
                    "train": Part(("train",), _train_counts()),
                    "val": Part(("validation",), specs.alike(3, 8142)),
                },
                evaluation="val",
            )
        },
        image_shape=(600, 800, 3),
        # Of the public code of Kang et al., Decoupling Representation and Classifier, 2020, and of most after it.
        mean=(0.466, 0.471, 0.380),
        std=(0.195, 0.194, 0.192),
        licence="non-commercial research and education, images not to be distributed; iNaturalist's terms of service",
        gigabytes=120.0,
        sizes_differ=True,
        long_tailed=True,
        class_names=tuple(species()),
        profile="made up: a seeded long-tailed profile with exactly 437,513 images, 2 to 1,000 of each class",
    ),
)
