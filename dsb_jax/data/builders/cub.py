"""CUB-200-2011."""

from collections.abc import Iterable

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

_COUNTS = {split: specs.listed(f"cub2011_{split}") for split in ("train", "test")}
_FIRST = 100  # of the 200 classes: they train where the others are searched


class Cub(FromFiles, skip_registration=True):
    """11,788 photographs of 200 species of birds (Wah et al., 2011), whole, divided as published.

    Classes and images are in the order of the original's lists.
    """

    name = "cub2011"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder CUB_200_2011 (images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/), "
        "unpacked from CUB_200_2011.tgz of data.caltech.edu/records/65de6-vp158"
    )
    images_per_split = {split: int(counts.sum()) for split, counts in _COUNTS.items()}  # noqa: RUF012
    images_per_class = _COUNTS

    def _index(self, archive: Archive) -> Index:
        archive = archive.within("images.txt", "CUB_200_2011")
        names, paths, labels, training = (
            _column(archive, f"{name}.txt") for name in ("classes", "images", "image_class_labels", "train_test_split")
        )
        if not archive.has("images"):
            raise FileNotFoundError(f"the folder images is not in {archive}")
        if sorted(names) != list(range(1, len(names) + 1)):
            raise ValueError(f"{archive}/classes.txt must number its {len(names)} classes from 1")
        for name, column in (("image_class_labels.txt", labels), ("train_test_split.txt", training)):
            _require_all(archive, name, column, "images.txt", paths)
            _require_all(archive, "images.txt", paths, name, column)
        splits: dict[str, list[Item]] = {"train": [], "test": []}
        for number, path in paths.items():
            label, trains = labels[number], training[number]
            if not label.isdecimal() or int(label) not in names:
                where = f"{archive}/image_class_labels.txt: image {number}"
                raise ValueError(f"{where} has class {label}, but classes.txt has 1 to {len(names)}")
            if trains not in ("0", "1"):
                raise ValueError(f"{archive}/train_test_split.txt: image {number} must have 0 or 1, got {trains}")
            if path.split("/")[0] != names[int(label)]:
                raise ValueError(
                    f"{archive}/image_class_labels.txt: image {number} has class {names[int(label)]}, but images.txt "
                    f"has it in {path}"
                )
            splits["train" if trains == "1" else "test"].append(Item(f"images/{path}", int(label) - 1))
        return Index([names[number] for number in sorted(names)], splits, archive)


def _column(archive: Archive, name: str) -> dict[int, str]:
    """What a list has for each number."""
    column: dict[int, str] = {}
    for line, text in enumerate(archive.text(name).splitlines(), start=1):
        if not text.strip():
            continue
        number, _, value = text.strip().partition(" ")
        if not number.isdecimal() or not value:
            raise ValueError(f"{archive}/{name}: line {line} must be a number and a value, got {text!r}")
        if int(number) in column:
            raise ValueError(f"{archive}/{name} lists {number} more than once, the second time in line {line}")
        column[int(number)] = value
    return column


def _require_all(archive: Archive, name: str, column: Iterable[int], other: str, wanted: Iterable[int]) -> None:
    """Raises unless a list has all images of another one."""
    if lacking := sorted(set(wanted) - set(column)):
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise ValueError(f"{archive}/{name} lacks image {lacking[0]}{more} of {other}")


def _protocols() -> dict[str, Protocol]:
    both = ("train", "test")
    together, classes = _COUNTS["train"] + _COUNTS["test"], len(_COUNTS["train"])
    first, others = specs.class_range(0, _FIRST, classes), specs.class_range(_FIRST, classes, classes)
    retrieval = {
        "train": Part(both, together[:_FIRST], relabel=first),
        "test": Part(both, together[_FIRST:], relabel=others),
    }
    official = {split: Part((split,), counts) for split, counts in _COUNTS.items()}
    return {
        "retrieval": Protocol("the first 100 classes train, the other 100 are searched", retrieval),
        "classification": Protocol("the published split of all 200 classes", official),
    }


SPECS = (
    Spec(
        name="cub2011",
        title="CUB-200-2011",
        stored_as="cub2011",
        protocols=_protocols(),
        image_shape=(375, 500, 3),
        mean=specs.IMAGENET_MEAN,
        std=specs.IMAGENET_STD,
        licence="images of Flickr's users, for non-commercial research and education",
        gigabytes=1.15,
        sizes_differ=True,
        class_names=specs.named("cub2011"),
    ),
)
