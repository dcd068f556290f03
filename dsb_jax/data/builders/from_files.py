"""TFDS builders of image files: what belongs to a dataset is said by an index, and one way of writing serves all.

Every image is decoded once before it is written, so that training meets none that ends early. Shards are written one by
one beside the dataset and stay when a preparation is stopped; the next one goes on with the first that is missing. A
dataset appears whole or not at all.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from dsb_jax.data import images
from dsb_jax.data.archive import Archive

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_EXAMPLES_PER_SHARD = 2048
_NAMES_SHOWN = 20
_THREADS = min(32, 2 * (os.cpu_count() or 1))
_SECONDS_BETWEEN_LINES = 30.0  # of progress where no one watches


class Item(NamedTuple):
    """One image of a split.

    Attributes:
      path: the file's name in the archive; the example's key, so that no two of a split have the same.
      label: its class.
      features: what the example has besides ``image`` and ``label``.
      key: of the example where one file has several; the path by default.
    """

    path: str
    label: int
    features: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Index:
    """What a dataset consists of.

    Attributes:
      class_names: in the order of the labels.
      splits: the images of each.
      archive: what paths are relative to.
    """

    class_names: Sequence[str]
    splits: dict[str, list[Item]]
    archive: Archive


class FromFiles(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):
    """A builder of image files; a dataset defines ``_index``, and what its examples have besides image and label.

    Its docstring is the description. ``MANUAL_DOWNLOAD_INSTRUCTIONS`` says which files are wanted from where.

    Attributes:
      skip_bad: go on without files that are missing or damaged, and record them in the metadata.
      images_per_split: how many there must be; splits without an entry may have any number.
      images_per_class: likewise of each class, integers ``[num_classes]``.
      image_shape: of all images, None where sizes differ.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # see builders/__init__.py
    skip_bad: bool = False
    images_per_split: dict[str, int] = {}  # noqa: RUF012  (a constant of the class)
    images_per_class: dict[str, np.ndarray] = {}  # noqa: RUF012  (likewise)
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

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Writes all shards, then moves them to where TFDS makes the dataset appear."""
        del download_config
        index = self._index(Archive(dl_manager.manual_dir))
        _check(self.name, index)
        _check_numbers(self.name, index, self.images_per_split, self.images_per_class)
        self.info.features["label"].names = list(index.class_names)
        writer = _ShardWriter(self._unfinished_folder(), index, self.info.features, skip_bad=self.skip_bad)
        shards = writer.write_all()
        splits = []
        for split, parts in shards.items():
            template = self._get_filename_template(split_name=split)
            for number, part in enumerate(parts):
                part.path.rename(template.sharded_filepath(shard_index=number, num_shards=len(parts)))
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
        if skipped := [bad for parts in shards.values() for part in parts for bad in part.bad]:
            self.info.metadata["skipped"] = skipped
        shutil.rmtree(writer.folder)

    def _unfinished_folder(self) -> pathlib.Path:
        """Where shards are until they are all there: beside the dataset."""
        folder = pathlib.Path(self.data_dir_root, self.info.full_name)
        return folder.with_name(f"unfinished.{folder.name}")


def labels_file(folder: str | os.PathLike[str], split: str) -> pathlib.Path:
    """Where the labels of a split are, so that no one reads all images for them."""
    return pathlib.Path(folder) / f"labels-{split}.npy"


def class_folders(archive: Archive, suffixes: Sequence[str] = SUFFIXES) -> dict[str, list[str]]:
    """The image files of each folder, both in the order of their names."""
    return {name: image_files(archive, name, suffixes) for name in archive.folders()}


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
    for split, items in index.splits.items():
        keys = collections.Counter(item.key or item.path for item in items)
        if repeated := [key for key, number in keys.items() if number > 1]:
            raise ValueError(f"{name}/{split} lists {_shown(repeated)} more than once")
        if wrong := [item for item in items if not 0 <= item.label < classes]:
            label, path = wrong[0].label, wrong[0].path
            raise ValueError(f"{name}/{split}: labels must lie in [0, {classes}), got {label} of {path}")


def _check_numbers(
    name: str, index: Index, per_split: dict[str, int], per_class: dict[str, Sequence[int] | np.ndarray]
) -> None:
    """Raises unless the index is complete."""
    if lacking := (per_split.keys() | per_class.keys()) - index.splits.keys():
        raise ValueError(f"{name} must have the split {min(lacking)}, but {index.archive} has none")
    for split, items in index.splits.items():
        if not items:
            raise ValueError(f"{name}/{split} has no images in {index.archive}")
        if (wanted := per_split.get(split, len(items))) != len(items):
            raise ValueError(f"{name}/{split} must have {wanted:,} images, but {len(items):,} are in {index.archive}")
        counts = np.bincount([item.label for item in items], minlength=len(index.class_names))
        if split in per_class and len(per_class[split]) != len(counts):
            raise ValueError(f"{name} must have {len(per_class[split])} classes, got {len(counts)} in {index.archive}")
        if split in per_class and (wrong := np.flatnonzero(counts != np.asarray(per_class[split]))).size:
            label = wrong[0]
            raise ValueError(
                f"{name}/{split} must have {per_class[split][label]:,} images of class {index.class_names[label]}, but "
                f"{counts[label]:,} are in {index.archive}"
            )
        if split == "train" and not counts.all():
            raise ValueError(f"{name}/train has no images of class {index.class_names[int(np.argmin(counts))]}")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of records that is complete; ``bad`` are the files that it lacks, with what is wrong with them."""

    path: pathlib.Path
    labels: list[int]
    size: int
    bad: list[str]

    @property
    def examples(self) -> int:
        return len(self.labels)


class _ShardWriter:
    """Writes the shards of an index into a folder, and finds again those that an earlier call wrote."""

    def __init__(self, folder: pathlib.Path, index: Index, features: Any, *, skip_bad: bool) -> None:
        self.folder, self._index, self._skip_bad = folder, index, skip_bad
        self._features, self._shape = features, tuple(features["image"].shape)
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        self._plan = _plan(index)
        if (folder / "plan").exists() and (folder / "plan").read_text() != self._plan:
            shutil.rmtree(folder)  # of other images
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan").write_text(self._plan)

    def write_all(self) -> dict[str, list[_Shard]]:
        """All shards by split; raises ValueError naming every bad file, unless they are to be skipped."""
        total = sum(map(len, self._index.splits.values()))
        interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
        shards: dict[str, list[_Shard]] = {}
        progress = tqdm.tqdm(total=total, unit=" images", mininterval=interval, leave=False)
        with progress, concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for split, items in self._index.splits.items():
                numbers = range(-(-len(items) // _EXAMPLES_PER_SHARD))
                shards[split] = [self._shard(split, number, pool, progress) for number in numbers]
        bad = [text for parts in shards.values() for part in parts for text in part.bad]
        if bad and not self._skip_bad:
            raise ValueError(
                f"{len(bad)} of {total:,} images cannot be used; mend them, or leave them out with --skip-bad: "
                + "; ".join(bad[:_NAMES_SHOWN])
                + self._all_bad(bad)
            )
        for split, parts in shards.items():
            if not sum(part.examples for part in parts):
                raise ValueError(f"no image of {split} can be used")
        return shards

    def _all_bad(self, bad):
        if len(bad) <= _NAMES_SHOWN:
            return ""
        path = self.folder / "bad.txt"
        path.write_text("\n".join(bad) + "\n")
        return f"; … all {len(bad)} are listed in {path}"

    def _shard(self, split, number, pool, progress):
        """One shard; whatever stops its writing, a file of its name is complete."""
        first = number * _EXAMPLES_PER_SHARD
        items = self._index.splits[split][first : first + _EXAMPLES_PER_SHARD]
        path = self.folder / f"{split}-{number:05d}"
        record = path.with_suffix(".json")
        if record.exists():
            found = json.loads(record.read_text())
            if not found["bad"] or self._skip_bad:
                progress.update(len(items))
                return _Shard(path, **found)
        partial = path.with_suffix(".partial")
        labels, bad = self._write(partial, items, pool, progress)
        content = {"labels": labels, "size": partial.stat().st_size, "bad": bad}
        partial.rename(path)
        record.with_suffix(".tmp").write_text(json.dumps(content))
        record.with_suffix(".tmp").rename(record)
        return _Shard(path, **content)

    def _write(self, path, items, pool, progress):
        """The labels of the images that are written, and what is wrong with the others."""
        labels, bad = [], []
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for item, content in zip(items, pool.map(self._content, items), strict=True):
            if isinstance(content, str):
                bad.append(f"{item.path}: {content}")
            else:
                writer.write(self._record(item, content))
                labels.append(item.label)
            progress.update()
        writer.close()
        return labels, bad

    def _content(self, item: Item) -> bytes | str:
        """The bytes of an image that decodes, or what is wrong with it."""
        try:
            content = self._index.archive.read(item.path)
            images.check(content)
            if None not in self._shape:
                images.decode(content, self._shape)
        except ValueError as error:
            return str(error)
        except FileNotFoundError:
            return "it is missing"
        return content

    def _record(self, item, content):
        example = {"image": io.BytesIO(content), "label": item.label, **item.features}
        return self._serializer.serialize_example(self._features.encode_example(example))


def _plan(index: Index) -> str:
    """A digest of all that decides what is written."""
    digest = hashlib.sha256(f"{_EXAMPLES_PER_SHARD} {list(index.class_names)}".encode())
    for split, items in sorted(index.splits.items()):
        for item in items:
            digest.update(repr((split, *item)).encode())
    return digest.hexdigest()
