"""Any directory of class/image files."""

import hashlib
import logging
import os
import pathlib

import numpy as np

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import SUFFIXES, FromFiles, held_out
from dsb_jax.data.builders.index import Index, Item, shown

_logger = logging.getLogger(__name__)

_TEST_FOLDERS = ("test", "val", "validation")  # the first that is there

# Paths of the images of each class.
_Classes = dict[str, list[pathlib.Path]]


class Folder(FromFiles, skip_registration=True):
    """The images of ``DIR/train/CLASS`` and ``DIR/test/CLASS`` (or ``val``), or those of ``DIR/CLASS``.

    Without a test folder, a fifth of each class, at least one image, is drawn for the test with a fixed seed. Classes
    are numbered in the order of their names. Records keep the bytes of the files. The config of this builder has the
    name that the user gives to the dataset; its metadata hold the ``listing`` of the images.
    """

    name = "folder"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder of train/CLASS/IMAGE and test/CLASS/IMAGE (or val), or of CLASS/IMAGE, which is then split; "
        f"images are {', '.join(suffix[1:] for suffix in SUFFIXES)}"
    )

    def _index(self, archive: Archive) -> Index:
        splits = _find(archive.folder)
        self.info.metadata["listing"] = listing(archive.folder)
        labels = {name: label for label, name in enumerate(splits["train"])}
        items = {
            split: [
                Item(path.relative_to(archive.folder).as_posix(), labels[name])
                for name, paths in classes.items()
                for path in paths
            ]
            for split, classes in splits.items()
        }
        return Index(list(labels), items, archive)


def image_paths(archive: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The images under a folder, sorted."""
    # Spelt out to the depth of SPLIT/CLASS/IMAGE: these patterns follow links to folders, and ** does not.
    found = (path for depth in ("[!.]*/*", "[!.]*/[!.]*/*") for path in pathlib.Path(archive).glob(depth))
    return sorted(path for path in found if _is_image(path))


def listing(archive: str | os.PathLike[str]) -> str:
    """A digest of the paths and sizes of the images under a folder, which other images hardly share."""
    lines = (
        f"{path.relative_to(archive).as_posix()}\t{path.stat().st_size if path.exists() else 0}\n"
        for path in image_paths(archive)
    )
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def class_images(archive: str | os.PathLike[str]) -> dict[str, list[pathlib.Path]]:
    """The images of each class: those of ``train/CLASS``, or where classes lie side by side all.

    Raises:
      ValueError: a class has no images, or one of two splits is missing.
    """
    archive = pathlib.Path(archive)
    return _classes(_split_folders(archive)[0] or archive)


def _find(archive: pathlib.Path) -> dict[str, _Classes]:
    """The images of both splits, classes and files in the order of their names."""
    folder, test = _split_folders(archive)
    train = folder or archive
    classes = _classes(train)
    if len(classes) < 2:
        raise ValueError(f"{train} must have a folder for each of at least two classes, got {len(classes)}")
    if test is None:
        return _drawn(classes)
    splits = {"train": classes, "test": _classes(test)}
    if unknown := splits["test"].keys() - classes.keys():
        raise ValueError(
            f"{test / min(unknown)} is a class that {train} lacks; to search classes that are not trained, put all "
            "side by side, and protocol=retrieval trains the first half of them"
        )
    if not splits["test"]:
        raise ValueError(f"{test} has no classes")
    return splits


def _split_folders(archive: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | tuple[None, None]:
    """The folders of the splits, however their names are capitalised; or none, where classes lie side by side.

    A folder of class folders is one of a split, and ``train`` with images alone is a class.
    """
    nested = {path.name.casefold(): path for path in sorted(archive.iterdir()) if _holds_classes(path)}
    train = nested.get("train")
    tests = [nested[name] for name in _TEST_FOLDERS if name in nested]
    if train is None and not tests:
        return None, None
    if train is None:
        raise ValueError(f"{tests[0]} is there, but no folder train of the same classes beside it")
    if not tests:
        raise ValueError(
            f"{train} is there, but no folder {', '.join(_TEST_FOLDERS)} of the same classes beside it; prepare "
            f"{train} to have a part of it kept for the test"
        )
    for unused in tests[1:]:
        _logger.warning("%s is left out: the test is %s", unused, tests[0])
    return train, tests[0]


def _holds_classes(folder: pathlib.Path) -> bool:
    if not folder.is_dir():
        return False
    entries = list(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    own_images = any(_is_image(entry) for entry in entries)
    return any(_is_image(path) for folder in folders for path in folder.iterdir()) or bool(folders and not own_images)


def _classes(folder: pathlib.Path) -> _Classes:
    classes, ignored, empty = {}, [], []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            ignored.append(entry)
            continue
        files = sorted(entry.iterdir())
        classes[entry.name] = [path for path in files if _is_image(path)]
        ignored += [path for path in files if not _is_image(path)]
        if not classes[entry.name]:
            empty.append(entry)
    if empty:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        inner = any(path.is_dir() for path in empty[0].iterdir())
        deeper = ", but folders; is it the one to prepare?" if inner else ""
        has = "has" if len(empty) == 1 else "have"
        raise ValueError(f"{shown([str(entry) for entry in empty])} {has} no images ({kinds}){deeper}")
    if ignored:
        text = "%d entries of %s are no images of a class and are left out, such as %s"
        _logger.warning(text, len(ignored), folder, ignored[0])
    return classes


def _is_image(path: pathlib.Path) -> bool:
    """Whether a file is called one; a link to nowhere is missed when it is read."""
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or (path.is_symlink() and not path.exists()))


def _drawn(classes: _Classes) -> dict[str, _Classes]:
    """The images of each class, split at random."""
    splits: dict[str, _Classes] = {"train": {}, "test": {}}
    for label, (name, paths) in enumerate(classes.items()):
        if len(paths) < 2:
            raise ValueError(f"{paths[0].parent} has one image, but one to train on and one for the test are needed")
        drawn = held_out(label, len(paths))
        for split, chosen in (("train", ~drawn), ("test", drawn)):
            splits[split][name] = [paths[row] for row in np.flatnonzero(chosen)]
    return splits
