"""Record files of image files, written one by one; those that are there are found again.

A shard has a stamp of all that it was made of: names, labels, sizes and times of change. So mended images come in, and
a preparation of other images does not go on from this one.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tqdm
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from dsb_jax.data import images
from dsb_jax.data.builders.index import Index, Item

_EXAMPLES_PER_SHARD = 2048
_REASONS_SHOWN = 20
_THREADS = min(32, 2 * (os.cpu_count() or 1))
_SECONDS_BETWEEN_LINES = 30.0  # of progress where no one watches
# Errors for which a file is not to blame.
_NOT_THE_FILES = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT),
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records that is complete.

    Attributes:
      path: where it is.
      labels: of its examples.
      size: in bytes.
      bad: the files that it lacks, with what is wrong with them.
      stamp: of the files that it was made of.
    """

    path: pathlib.Path
    labels: list[int]
    size: int
    bad: list[str]
    stamp: str

    @property
    def examples(self) -> int:
        """How many it has."""
        return len(self.labels)


class ShardWriter:
    """Writes the shards of an index into a folder.

    Args:
      folder: where they are kept; what is there of other images is written over.
      index: the images.
      features: of the examples, in TFDS's form.
      skip_bad: go on without files that cannot be used.
    """

    def __init__(self, folder: pathlib.Path, index: Index, features: Any, *, skip_bad: bool) -> None:
        self._folder, self._index, self._skip_bad = folder, index, skip_bad
        self._features, self._shape = features, tuple(features["image"].shape)
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        folder.mkdir(parents=True, exist_ok=True)

    def write_all(self) -> dict[str, list[Shard]]:
        """All shards by split.

        Raises:
          ValueError: files that cannot be used, all of them named, unless they are to be skipped; or a split of which
            none can be used.
        """
        total = sum(map(len, self._index.splits.values()))
        interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
        shards: dict[str, list[Shard]] = {}
        with (
            tqdm.tqdm(total=total, unit=" images", mininterval=interval, leave=False) as progress,
            concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        ):
            for split, items in self._index.splits.items():
                numbers = range(-(-len(items) // _EXAMPLES_PER_SHARD))
                shards[split] = [self._shard(split, number, pool, progress) for number in numbers]
        bad = [text for parts in shards.values() for part in parts for text in part.bad]
        if bad and not self._skip_bad:
            raise ValueError(self._complaint(bad, total))
        for split, parts in shards.items():
            if not sum(part.examples for part in parts):
                raise ValueError(f"no image of {split} can be used")
        return shards

    def _complaint(self, bad, total):
        text = f"{len(bad)} of {total:,} images cannot be used; mend them, or leave them out with --skip-bad"
        if len(bad) > _REASONS_SHOWN:
            path = self._folder / "bad.txt"
            path.write_text("\n".join(bad) + "\n")
            return f"{text}; all are listed in {path}, such as {'; '.join(bad[:_REASONS_SHOWN])}"
        return f"{text}: {'; '.join(bad)}"

    def _shard(self, split, number, pool, progress):
        """One shard; whatever stops its writing, a file of its name is complete."""
        first = number * _EXAMPLES_PER_SHARD
        items = self._index.splits[split][first : first + _EXAMPLES_PER_SHARD]
        path = self._folder / f"{split}-{number:05d}"
        stamp = self._stamp(items)
        if (found := _found(path)) is not None and found.stamp == stamp and (self._skip_bad or not found.bad):
            progress.update(len(items))
            return found
        partial = path.with_suffix(".partial")
        labels, bad = self._write(partial, items, pool, progress)
        shard = Shard(path, labels, partial.stat().st_size, bad, stamp)
        _sync(partial)
        partial.rename(path)
        record = path.with_suffix(".tmp")
        record.write_text(json.dumps({key: value for key, value in vars(shard).items() if key != "path"}))
        _sync(record)
        record.rename(path.with_suffix(".json"))
        return shard

    def _write(self, path, items, pool, progress):
        """The labels of the images that are written, and what is wrong with the others."""
        labels, bad = [], []
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for item, content in self._contents(items, pool):
            if isinstance(content, str):
                bad.append(f"{item.path}: {content}")
            else:
                example = {"image": io.BytesIO(content), "label": item.label, **item.features}
                writer.write(self._serializer.serialize_example(self._features.encode_example(example)))
                labels.append(item.label)
            progress.update()
        writer.close()
        return labels, bad

    def _contents(self, items: list[Item], pool: concurrent.futures.Executor) -> Iterator[tuple[Item, bytes | str]]:
        """The images in order, some of them read ahead: all of a shard may be more than memory holds."""
        ahead: collections.deque[tuple[Item, concurrent.futures.Future[bytes | str]]] = collections.deque()
        for item in items:
            ahead.append((item, pool.submit(self._content, item)))
            if len(ahead) > 2 * _THREADS:
                first, content = ahead.popleft()
                yield first, content.result()
        for item, content in ahead:
            yield item, content.result()

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
            if not self._index.archive.folder.is_dir():
                raise  # a disk that is gone
            return "it is missing"
        except OSError as error:
            if error.errno in _NOT_THE_FILES:
                raise
            return f"it cannot be read: {error.strerror or error}"
        return content

    def _stamp(self, items: Sequence[Item]) -> str:
        stamps = (f"{item!r} {self._index.archive.stamp(item.path)}" for item in items)
        text = "\n".join([str(self._features), *stamps])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def place(path: pathlib.Path, target: str | os.PathLike[str]) -> None:
    """Makes a shard appear as ``target`` too, so that it is not lost if the dataset is not finished after all."""
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)


def _found(path: pathlib.Path) -> Shard | None:
    """The shard of this path, if it is whole."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        shard = Shard(path, **json.loads(path.with_suffix(".json").read_text()))
        if path.stat().st_size == shard.size:
            return shard
    return None


def _sync(path):
    """Has a file on the disk before another one says that it is there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
