"""ImageNet, as of the challenge of 2012, and the classes of it that the paper matches with their superclasses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles, image_files
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

IMAGES = (
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of image-net.org/download-images, after registration, or what "
    "they unpack to, train/n01440764/n01440764_18.JPEG … and val/ILSVRC2012_val_00000001.JPEG … or "
    "val/n01751748/ILSVRC2012_val_00000001.JPEG …"
)
LICENCE = "ImageNet's terms of access: non-commercial research and education only, images belong to their owners"
GIGABYTES = 153.0

# Where images are: unpacked by hand, packed, in folders called after the packed files, and as Kaggle has them.
_TRAIN_FOLDERS = ("train/", "", "ILSVRC2012_img_train/", "ILSVRC/Data/CLS-LOC/train/")
_VAL_FOLDERS = ("val/", "", "ILSVRC2012_img_val/", "ILSVRC/Data/CLS-LOC/val/")
_NAMES_SHOWN = 3


class Imagenet2012(FromFiles, skip_registration=True):
    """1,281,167 images for training and 50,000 for validation of 1,000 classes (Russakovsky et al., 2015).

    Name, version, features and splits are those of TFDS, and so is what labels mean: they number the WordNet ids in
    their order. Files are stored as they are, 22 of them CMYK and one a PNG, which TFDS converts.
    """

    name = "imagenet2012"
    VERSION = tfds.core.Version("5.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"the folder of {IMAGES}"
    images_per_split = {"train": 1_281_167, "validation": 50_000}  # noqa: RUF012  (a constant of the class)
    images_per_class = {"validation": specs.alike(50, 1000)}  # noqa: RUF012  (likewise)

    def _further_features(self) -> dict[str, Any]:
        return {"file_name": tfds.features.Text()}

    def _index(self, archive: Archive) -> Index:
        classes = wnids()
        val = val_images(archive)  # first: it is the smaller one that is forgotten
        folder = train_folder(archive)
        if unknown := [path for path in archive.folders(folder.rstrip("/")) if _is_unknown_class(path, classes)]:
            raise ValueError(f"{archive}/{unknown[0]} is no class of ILSVRC 2012: of which dataset is {archive}?")
        train = []
        for label, wnid in enumerate(classes):
            for path in image_files(archive, folder + wnid, (".jpeg",)):
                name = path.rpartition("/")[2]
                if not name.startswith(f"{wnid}_"):
                    raise ValueError(f"{archive}/{path} lies among the images of {wnid}, but is called after others")
                train.append(Item(path, label, features={"file_name": name}))
        labels = {wnid: label for label, wnid in enumerate(classes)}
        validation = [
            Item(val[name], labels[wnid], features={"file_name": name}) for name, wnid in val_classes().items()
        ]
        return Index(classes, {"train": train, "validation": validation}, archive)


def wnids() -> list[str]:
    """The classes in the order of their labels, as TFDS has them."""
    return _tfds_lines("labels.txt")


def val_classes() -> dict[str, str]:
    """The class of each validation image, by the file's name."""
    lines = enumerate(_tfds_lines("validation_labels.txt"), start=1)
    return {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in lines}


def train_folder(archive: Archive) -> str:
    """What precedes the names of the class folders of training images: ``train/``, or nothing for those in the tar.

    Raises:
      FileNotFoundError: not all of them are there.
    """
    classes = wnids()
    lacking = {folder: [wnid for wnid in classes if not archive.has(folder + wnid)] for folder in _TRAIN_FOLDERS}
    folder = min(_TRAIN_FOLDERS, key=lambda folder: len(lacking[folder]))
    if len(lacking[folder]) == len(classes):
        raise FileNotFoundError(f"neither ILSVRC2012_img_train.tar nor train/{classes[0]} … is in {archive}")
    if lacking[folder]:
        raise FileNotFoundError(f"{missing(lacking[folder], classes, 'class folders')} not in {archive}/{folder}")
    return folder


def val_images(archive: Archive) -> dict[str, str]:
    """Where each validation image is or ought to be, by the file's name.

    Raises:
      FileNotFoundError: none of them is there.
      ValueError: one is in the folder of another class.
    """
    classes = val_classes()
    for folder in _VAL_FOLDERS:
        found = {path.rpartition("/")[2]: path for path in image_files(archive, folder.rstrip("/"), (".jpeg",))}
        flat = not classes.keys().isdisjoint(found)
        for wnid in wnids() if folder and not flat else ():
            for path in image_files(archive, folder + wnid, (".jpeg",)):
                name = path.rpartition("/")[2]
                if classes.get(name, wnid) != wnid:
                    raise ValueError(f"{archive}/{path} is of class {classes[name]}, and ought to be in its folder")
                found[name] = path
        if not classes.keys().isdisjoint(found):
            # Those that are missing are named, all at once, when they are read.
            places = {name: folder if flat else f"{folder}{wnid}/" for name, wnid in classes.items()}
            return {name: found.get(name, place + name) for name, place in places.items()}
    raise FileNotFoundError(f"neither ILSVRC2012_img_val.tar nor val/{next(iter(classes))} is in {archive}")


def missing(names: Sequence[str], wanted: Sequence[str], what: str) -> str:
    """``3 of 1,000 class folders (n01440764, n01443537, n01484850) are``, for a message that goes on.

    Example:
      >>> missing(["a", "b", "c", "d"], "abcdefgh", "lists")
      '4 of 8 lists (a, b, c …) are'
    """
    more = " …" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names):,} of {len(wanted):,} {what} ({', '.join(names[:_NAMES_SHOWN])}{more}) are"


def _tfds_lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def _is_unknown_class(path: str, classes: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return len(name) == len("n01440764") and name[0] == "n" and name[1:].isdecimal() and name not in classes


# The 105 classes of fewer than 1,300 images; those of 1,300 are listed in the public code of SubImageNetDataset.
_FEWER = (
    *(43, 51, 62, 98, 103, 147, 152, 158, 164, 165, 166, 167, 168, 175, 181, 183, 188, 190, 194, 206, 221, 252, 262),
    *(268, 335, 390, 392, 409, 418, 426, 439, 465, 481, 491, 499, 501, 503, 507, 521, 531, 536, 550, 551, 567, 577),
    *(583, 585, 590, 596, 610, 623, 630, 631, 635, 653, 662, 663, 675, 676, 678, 686, 689, 706, 708, 712, 714, 722),
    *(723, 724, 727, 728, 729, 731, 740, 747, 753, 771, 772, 782, 789, 798, 810, 811, 812, 821, 826, 838, 841, 854),
    *(857, 860, 869, 872, 885, 891, 892, 901, 906, 914, 921, 925, 926, 940, 946, 969),
)

# By their labels. Poodles are three classes; the parents are what else there is of dogs, of cats that are kept, and of
# apes and monkeys, without wolves and other wild dogs (269 to 280), wild cats (286 to 293) and lemurs (383, 384).
_CHILDREN = {
    "Poodles": (265, 266, 267),
    "Samoyeds": (258,),
    "Labradors": (208,),
    "Persian cats": (283,),
    "Siamese cats": (284,),
    "Chimpanzees": (367,),
    "Gorillas": (366,),
}
_WITH_CHILDREN = {"Dogs": range(151, 269), "Cats": range(281, 286), "Monkeys": range(365, 383)}
_PARENTS = {
    name: tuple(label for label in labels if not any(label in child for child in _CHILDREN.values()))
    for name, labels in _WITH_CHILDREN.items()
}


def _train_counts() -> np.ndarray:
    counts = specs.alike(1300, 1000)
    others = Imagenet2012.images_per_split["train"] - 1300 * (len(counts) - len(_FEWER))
    counts[list(_FEWER)] = specs.profile(others, len(_FEWER), smallest=732, largest=1299)
    return counts


def _regrouped(description: str, groups: dict[str, tuple[int, ...]]) -> Protocol:
    """Some of the classes, put together in groups that have their own names."""
    relabel = np.full(1000, -1)
    for label, classes in enumerate(groups.values()):
        relabel[list(classes)] = label
    val = np.array([50 * len(classes) for classes in groups.values()], np.int64)
    counts = specs.alike(1000, len(groups))
    splits = {
        "train": Part(("train",), counts, relabel, choose=specs.thinned(counts, seed=0)),
        "val": Part(("validation",), val, relabel),
    }
    return Protocol(description, splits, evaluation="val", class_names=tuple(groups))


def _spec(name: str, title: str, protocols: dict[str, Protocol], **facts: Any) -> Spec:
    return Spec(
        name=name,
        title=title,
        stored_as="imagenet2012",
        protocols=protocols,
        image_shape=(375, 500, 3),
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence=LICENCE,
        gigabytes=GIGABYTES,
        sizes_differ=True,
        class_names=tuple(wnids()),
        **facts,
    )


SPECS = (
    _spec(
        "imagenet2012",
        "ImageNet (ILSVRC 2012)",
        {
            "classification": Protocol(
                "the published split",
                {"train": Part(("train",), _train_counts()), "val": Part(("validation",), specs.alike(50, 1000))},
                evaluation="val",
            )
        },
        profile="true for 895 classes, of 1,300 images; made up for the 105 others, a profile with their true sum",
    ),
    _spec(
        "imagenet_hierarchy",
        "Seven classes of ImageNet and their superclasses (Appendix L)",
        {
            "children": _regrouped("1,000 training images of each of seven classes", _CHILDREN),
            # The paper mixes a child into its parent, which says nothing of images that the parent has already.
            "parents": _regrouped("1,000 training images of other dogs, cats and monkeys than the children", _PARENTS),
        },
    ),
)
