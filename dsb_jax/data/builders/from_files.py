"""TFDS builders of image files: what belongs to a dataset is said by an index, and one way of writing serves all.

Every image is decoded once before it is written, so that training meets none that ends early. Shards are written one by
one beside the dataset and stay when a preparation is stopped; the next one goes on with the first that is missing. A
dataset appears whole or not at all.
"""

import collections
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.index import Index, shown
from dsb_jax.data.builders.shards import Shard, ShardWriter, place

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class FromFiles(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):
    """A builder of image files; a dataset defines ``_index``, and what its examples have besides image and label.

    Its docstring is the description. ``MANUAL_DOWNLOAD_INSTRUCTIONS`` says which files are wanted from where.

    Attributes:
      skip_bad: go on without files that are missing or damaged, and record them in the metadata; of those whose names
        are not known, how many there are.
      images_per_split: how many there must be; splits without an entry may have any number.
      images_per_class: likewise of each class, integers ``[num_classes]``.
      image_shape: of all images, None where sizes differ.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # see builders/__init__.py
    skip_bad: bool = False
    images_per_split: dict[str, int] = {}  # noqa: RUF012  (a constant of the class)
    images_per_class: Mapping[str, Sequence[int] | np.ndarray] = {}
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)

    def _index(self, archive: Archive) -> Index:
        """Finds the images and their labels, without reading an image."""
        raise NotImplementedError

    def _further_features(self) -> dict[str, Any]:
        """What examples have besides ``image`` and ``label``, as TFDS's feature connectors."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        image, label = tfds.features.Image(shape=self.image_shape), tfds.features.ClassLabel()
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({"image": image, "label": label, **self._further_features()}),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, **options: Any) -> None:
        """As TFDS has it, with a ``manual_dir`` and nothing to download; shards are kept until the dataset is there.

        Raises:
          ValueError: another file format than array_record, or files that cannot be used.
        """
        if self.info.file_format is None or self.info.file_format.value != "array_record":
            raise ValueError(f"{self.name} is written as array_record, got file_format={self.info.file_format}")
        super().download_and_prepare(**options)
        shutil.rmtree(self._unfinished_folder(), ignore_errors=True)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Writes all shards, then puts them where TFDS makes the dataset appear."""
        del download_config
        index = self._index(Archive(dl_manager.manual_dir))
        _check(self.name, index)
        wanted = self.images_per_split, self.images_per_class
        lacking = _check_numbers(self.name, index, *wanted, skip_bad=self.skip_bad)
        self.info.features["label"].names = list(index.class_names)
        writer = ShardWriter(self._unfinished_folder(), index, self.info.features, skip_bad=self.skip_bad)
        shards, splits = writer.write_all(), []
        _check_labels(self.name, index, shards)
        for split, parts in shards.items():
            template = self._get_filename_template(split_name=split)
            for number, part in enumerate(parts):
                place(part.path, template.sharded_filepath(shard_index=number, num_shards=len(parts)))
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[part.examples for part in parts],
                    num_bytes=sum(part.size for part in parts),
                    filename_template=template,
                )
            )
            labels = np.array([label for part in parts for label in part.labels], np.int32)
            np.save(labels_file(self.data_path, split), labels)
        self.info.set_splits(tfds.core.splits.SplitDict(splits))
        if skipped := [*lacking, *(bad for parts in shards.values() for part in parts for bad in part.bad)]:
            self.info.metadata["skipped"] = skipped

    def _unfinished_folder(self) -> pathlib.Path:
        """Where shards are until they are all there: beside the dataset."""
        folder = pathlib.Path(self.data_dir_root, self.info.full_name)
        return folder.with_name(f"unfinished.{folder.name}")


def labels_file(folder: str | os.PathLike[str], split: str) -> pathlib.Path:
    """Where the labels of a split are, so that no one reads all images for them."""
    return pathlib.Path(folder) / f"labels-{split}.npy"


def image_files(archive: Archive, folder: str, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """The names of the image files of a folder, sorted."""
    return [name for name in archive.files(folder) if name.lower().endswith(tuple(suffixes))]


def held_out(label: int, count: int) -> np.ndarray:
    """Which of the ``count`` images of a class are for the test, bool ``[count]``: a fifth, at least one, at random.

    Example:
      >>> [int(held_out(0, count).sum()) for count in (2, 10, 24)]
      [1, 2, 5]
    """
    rows = np.zeros(count, bool)
    rows[np.random.default_rng([0, label]).permutation(count)[: max(round(0.2 * count), 1)]] = True
    return rows


def _check(name: str, index: Index) -> None:
    """Raises unless the index makes sense."""
    classes = len(index.class_names)
    if repeated := [name for name, number in collections.Counter(index.class_names).items() if number > 1]:
        raise ValueError(f"{name}: class names must differ, got {repeated[0]!r} more than once")
    # TFDS keeps them as the lines of a text.
    if wrong := [name for name in index.class_names if name != name.strip() or name.splitlines() != [name]]:
        raise ValueError(f"{name}: class names must be one line without outer blanks, got {wrong[0]!r}")
    texts = [*index.class_names, *(item.path for items in index.splits.values() for item in items)]
    if wrong := [text for text in texts if not text.isprintable() and _is_no_text(text)]:
        raise ValueError(f"{name}: names must be UTF-8, got {wrong[0]!r}")
    for split, items in index.splits.items():
        keys = collections.Counter(item.key or item.path for item in items)
        if repeated := [key for key, number in keys.items() if number > 1]:
            raise ValueError(f"{name}/{split} lists {shown(repeated)} more than once")
        if outside := [item for item in items if not 0 <= item.label < classes]:
            label, path = outside[0].label, outside[0].path
            raise ValueError(f"{name}/{split}: labels must lie in [0, {classes}), got {label} of {path}")


def _is_no_text(text: str) -> bool:
    # Other bytes than UTF-8 are surrogates to Python.
    return "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text)


def _check_numbers(
    name: str,
    index: Index,
    per_split: dict[str, int],
    per_class: Mapping[str, Sequence[int] | np.ndarray],
    *,
    skip_bad: bool,
) -> list[str]:
    """Raises unless the index is complete, but for images whose names it does not know and that may be skipped.

    Returns:
      Of which splits or classes how many images are missing so, in words.
    """
    if lacking := (per_split.keys() | per_class.keys()) - index.splits.keys():
        raise ValueError(f"{name} must have the split {min(lacking)}, but {index.archive} has none")
    short = []
    for split, items in index.splits.items():
        if not items:
            raise ValueError(f"{name}/{split} has no images in {index.archive}")
        counts = np.bincount([item.label for item in items], minlength=len(index.class_names))
        if split in per_class and len(per_class[split]) != len(counts):
            raise ValueError(f"{name} must have {len(per_class[split])} classes, got {len(counts)} in {index.archive}")
        numbers = [("", per_split.get(split, len(items)), len(items))]
        numbers += [
            (f" of class {class_name}", int(wanted), int(found))
            for class_name, wanted, found in zip(index.class_names, per_class.get(split, counts), counts, strict=True)
        ]
        for what, wanted, found in numbers:
            if found > wanted or (found < wanted and not skip_bad):
                raise ValueError(
                    f"{name}/{split} must have {wanted:,} images{what}, but {found:,} are in {index.archive}"
                )
        # Images that a class lacks are those that the split lacks.
        short += _shortfalls(split, numbers[1:] if split in per_class else numbers)
        if split == "train" and not counts.all():
            raise ValueError(f"{name}/train has no images of class {index.class_names[int(np.argmin(counts))]}")
    return short


def _shortfalls(split: str, numbers: Sequence[tuple[str, int, int]]) -> list[str]:
    return [
        f"{split}: {wanted - found:,} of {wanted:,} images{what} are missing"
        for what, wanted, found in numbers
        if found < wanted
    ]


def number_skipped(skipped: Sequence[str]) -> int:
    """How many files a dataset lacks whose metadata say this; an entry is of one, or of several without names.

    Example:
      >>> number_skipped(["a/b.jpg: it is missing", "train: 1,200 of 5,000 images are missing"])
      1201
    """
    several = (re.fullmatch(r"\w+: ([\d,]+) of [\d,]+ images( of class .*)? are missing", text) for text in skipped)
    return sum(int(found[1].replace(",", "")) if found else 1 for found in several)


def _check_labels(name: str, index: Index, shards: dict[str, list[Shard]]) -> None:
    """Raises if a class was left without images to train on."""
    written = np.bincount([label for part in shards.get("train", ()) for label in part.labels], minlength=1)
    planned = np.bincount([item.label for item in index.splits.get("train", ())], minlength=1)
    written = np.pad(written, (0, len(planned) - len(written)))
    if (empty := np.flatnonzero((written == 0) & (planned > 0))).size:
        raise ValueError(
            f"{name}/train: no image of {shown([index.class_names[label] for label in empty.tolist()])} can be used"
        )
