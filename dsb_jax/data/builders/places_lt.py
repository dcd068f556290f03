"""Places-LT: lists that draw a long-tailed training set, and balanced other sets, from those of Places365."""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.imagenet import missing
from dsb_jax.data.builders.imagenet_lt import folder_of_lists, read_list
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_LISTS = {"train": "Places_LT_train.txt", "val": "Places_LT_val.txt", "test": "Places_LT_test.txt"}
# Of the version with paths such as train/airfield/00004851.jpg, and of that with data_256/a/airfield/00004851.jpg.
_MD5 = {
    "train": ("e7795ab1bf428a89f900854127b1e556", "d7a0fa1e2521e7d8fff4338ad1c65bed"),
    "val": ("2f6e727cd6c99c7b7fdecc9876875b1b", "82c2d809e9429344f9f9a2c0d7adca36"),
    "test": ("1347af35b053bd31cf782256306affe7", "c27fb6fd50c2675f1af7a5885fa8cec4"),
}
_COUNTS = {"train": specs.listed("places_lt"), "val": specs.alike(20, 365), "test": specs.alike(100, 365)}

# Where Places365 may have the images of a class, by its name (apartment_building-outdoor) or its folder in the original
# (a/apartment_building/outdoor); the original's validation images lie side by side.
_TRAIN_FOLDERS = ("train/{name}", "places365_standard/train/{name}", "data_256/{nested}", "data_256_standard/{nested}")
_VAL_FOLDERS = ("val/{name}", "places365_standard/val/{name}", "val_256")


class PlacesLt(FromFiles, skip_registration=True):
    """62,500 training images of 365 kinds of places, 5 to 4,980 of each, 20 of each to validate and 100 to test.

    Liu et al., Large-Scale Long-Tailed Recognition in an Open World, 2019. Training and validation images are from the
    training set of Places365, those of the test from its validation set. Either version of the lists gives the same
    dataset, and goes with either arrangement of the images. ``filename`` is that of the version without ``data_256``.
    """

    name = "places_lt"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"the folder of {', '.join(_LISTS.values())} of github.com/zhmiao/OpenLongTailRecognition-OLTR or "
        "github.com/facebookresearch/classifier-balancing, and beside them the small images of Places365-Standard of "
        "places2.csail.mit.edu/download.html: train_256_places365standard.tar and val_256.tar or their folders "
        "data_256/ and val_256/, or the folders train/airfield/ … and val/airfield/ … of "
        "places365standard_easyformat.tar"
    )
    images_per_split = {split: int(counts.sum()) for split, counts in _COUNTS.items()}  # noqa: RUF012
    images_per_class = _COUNTS

    def _further_features(self) -> dict[str, Any]:
        return {"filename": tfds.features.Text()}

    def _index(self, archive: Archive) -> Index:
        lists = folder_of_lists(archive, list(_LISTS.values()), "Places_LT", "Places_LT_v2")
        lines = {
            split: read_list(lists, name, len(_COUNTS["train"]), md5=_MD5[split]) for split, name in _LISTS.items()
        }
        classes = _classes(f"{lists}/{_LISTS['train']}", lines["train"])
        train = _folders(archive, _TRAIN_FOLDERS, classes, "data_256", "train_256_places365standard.tar")
        val = _folders(archive, _VAL_FOLDERS, classes, "val_256", "val_256.tar")
        splits: dict[str, list[Item]] = {}
        for split, images in lines.items():
            top, folders = ("val", val) if split == "test" else ("train", train)
            splits[split] = []
            for path, label in images:
                where = f"{lists}/{_LISTS[split]}"
                listed_top, name = _top_and_class(where, path)
                if listed_top != top:
                    raise ValueError(f"{where} must list images of Places365's {top} set, got {path}")
                if name not in (classes[label], ""):
                    raise ValueError(f"{where} has label {label}, that is {classes[label]}, for {path}")
                file = path.rpartition("/")[2]
                features = {"filename": f"{top}/{classes[label]}/{file}"}
                splits[split].append(Item(f"{folders[label]}/{file}", label, features=features))
        return Index(classes, splits, archive)


def _top_and_class(where: str, path: str) -> tuple[str, str]:
    """``"train"`` or ``"val"``, and the class, empty where the path does not say it."""
    top, *inside = path.split("/")[:-1] or [""]
    if top in ("train", "val") and len(inside) == 1:
        return top, inside[0]
    if top == "data_256" and len(inside) > 1 and inside[1].startswith(inside[0]):
        return "train", "-".join(inside[1:])
    if top == "val_256" and not inside:
        return "val", ""
    raise ValueError(
        f"{where} must list paths such as train/airfield/00004851.jpg or data_256/a/airfield/00004851.jpg, got {path}"
    )


def _classes(where: str, images: Sequence[tuple[str, int]]) -> list[str]:
    """The names of the classes, in the order of their labels."""
    names: dict[int, str] = {}
    for path, label in images:
        _, name = _top_and_class(where, path)
        if names.setdefault(label, name) != name:
            raise ValueError(f"{where} has label {label} for both {names[label]} and {name}")
    if lacking := sorted(set(range(len(_COUNTS["train"]))) - names.keys()):
        raise ValueError(f"{where} has no images with label {lacking[0]}")
    return [names[label] for label in sorted(names)]


def _folders(archive: Archive, templates: Sequence[str], classes: Sequence[str], folder: str, packed: str) -> list[str]:
    """The folder of each class, in the arrangement of which most are there."""
    arranged = {}
    for template in templates:
        places = [template.format(name=name, nested=f"{name[0]}/{name.replace('-', '/')}") for name in classes]
        arranged[template] = places, [place for place in dict.fromkeys(places) if not archive.has(place)]
    places, lacking = min(arranged.values(), key=lambda found: len(found[1]) / len(set(found[0])))
    if len(lacking) == len(set(places)):
        raise FileNotFoundError(f"neither {packed} nor {folder} nor {arranged[templates[0]][0][0]} … is in {archive}")
    if lacking:
        raise FileNotFoundError(f"{missing(lacking, classes, 'class folders')} not in {archive}")
    return places


SPECS = (
    Spec(
        name="places_lt",
        title="Places-LT",
        stored_as="places_lt",
        protocols={
            "classification": Protocol(
                "the published split, its test balanced",
                {split: Part((split,), counts) for split, counts in _COUNTS.items()},
            )
        },
        image_shape=(256, 256, 3),
        # The public code of Liu et al., 2019, and of those after it takes ImageNet's.
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence="for academic research and education",
        gigabytes=26.6,  # of all images of Places365, of which 1.6 GB are kept
        sizes_differ=True,
        long_tailed=True,
        class_names=specs.named("places_lt"),
    ),
)
