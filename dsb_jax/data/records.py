"""One split of a dataset on disk: random access to its examples, and its labels at once."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import operator
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax.data.decoding import Decoding

Example = dict[str, Any]
Indices = Sequence[int] | np.ndarray

_logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOGS = 10.0
# Bounds the memory of reading all labels: records carry their images with them.
_RECORDS_PER_READ = 4096


class Source(Protocol):
    """Examples by index: ``{"image": uint8 [height, width, channels], "label": int}``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def __getitems__(self, indices: Indices) -> list[Example]:
        """Several examples at once: on disk about ten times the rate of one after the other."""

    def labels(self) -> np.ndarray:
        """The labels of all examples, int32 ``[samples]``, without decoding images."""


class CroppedSource(Source, Protocol):
    """A source of large images, that gives any part of them too."""

    def crops(self, indices: Indices, rngs: Sequence[np.random.Generator]) -> list[Example]:
        """Several examples, each one cropped as its generator says."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a dataset; ``data.load`` makes it.

    Attributes:
      name: of the dataset.
      split: ``"train"``, ``"val"`` or ``"test"``.
      source: random access to the examples.
      class_names: one for each class, in the order of the labels.
      image_shape: ``(height, width, channels)``.
      random_crops: whether training sees other crops of the images each time, which ``source.crops`` gives.
      files: names and sizes of the record files that it is read from; of a rehearsal there are none.
      origin: what else tells the dataset from another one of its name.
    """

    name: str
    split: str
    source: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    random_crops: bool = False
    files: tuple[tuple[str, int], ...] = ()
    origin: str = ""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels of all examples, int32 ``[samples]``, read once; images are not decoded for it."""
        labels = self.source.labels()
        labels.setflags(write=False)
        return labels

    @property
    def digest(self) -> str:
        """Tells this split from another one of its name, wherever it lies; no image is read for it.

        It is of ``files``, ``origin``, the classes and the label of each image in turn: the same images in another
        order are others to a run.
        """
        content = json.dumps([sorted(self.files), self.origin, self.class_names]).encode()
        return hashlib.sha256(content + self.labels.astype("<i4").tobytes()).hexdigest()[:16]

    def __str__(self) -> str:
        """What there is of it, for people."""
        size = sum(size for _, size in self.files)
        stored = f" in {len(self.files):,} files of together {size:,} bytes" if self.files else ""
        return f"{len(self):,} images of {self.num_classes:,} classes{stored}"


class RecordSource:
    """A ``Source`` of serialized ``tf.train.Example`` records with an image and a label.

    Args:
      records: random access to the records as bytes; ``__getitems__`` reads several at once.
      where: what errors call this source, such as ``"mnist/train"``.
      num_classes: labels must lie in ``[0, num_classes)``.
      decoding: what makes images of encoded bytes.
      label: the feature that is the label; the image is ``image``.
      labels_file: where all labels are; without it they are read from the records, and put there if that took long.
    """

    def __init__(
        self,
        records: Any,
        *,
        where: str,
        num_classes: int,
        decoding: Decoding,
        label: str = "label",
        labels_file: pathlib.Path | None = None,
    ) -> None:
        self._records = records
        self._where = where
        self._num_classes = num_classes
        self._decoding = decoding
        self._label = label
        self._labels_file = labels_file

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Indices) -> list[Example]:
        return self._decoded(indices, [self._decoding.whole] * len(indices))

    def crops(self, indices: Indices, rngs: Sequence[np.random.Generator]) -> list[Example]:
        if self._decoding.crop is None:
            raise ValueError(f"{self._where} is decoded without random crops")
        return self._decoded(indices, [functools.partial(self._decoding.crop, rng=rng) for rng in rngs])

    def labels(self) -> np.ndarray:
        file = self._labels_file
        if file is not None and file.exists():
            return self._filed_labels(file)
        labels = np.empty(len(self), np.int32)
        begin = next_log = time.monotonic()
        for start in range(0, len(self), _RECORDS_PER_READ):
            if (now := time.monotonic()) > next_log + _SECONDS_BETWEEN_LOGS:
                _logger.info("Reading the labels of %s: %d of %d, once", self._where, start, len(self))
                next_log = now
            for index, _, label in self._read(range(start, min(start + _RECORDS_PER_READ, len(self)))):
                labels[index] = label
        if time.monotonic() - begin > _SECONDS_BETWEEN_LOGS and file is not None:
            _keep(labels, file)
        return labels

    def _decoded(self, indices, decoders):
        examples = []
        for (index, encoded, label), decode in zip(self._read(indices), decoders, strict=True):
            try:
                image = decode(encoded)
            except ValueError as error:
                raise ValueError(f"{self._where}[{index}]: {error}") from error
            examples.append({"image": image, "label": label})
        return examples

    def _filed_labels(self, file):
        try:
            labels = np.load(file)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if labels.shape != (len(self),) or labels.dtype != np.int32:
            raise ValueError(f"{file} must hold int32 [{len(self)}], got {labels.dtype} {list(labels.shape)}")
        return labels

    def _read(self, indices: Sequence[int]) -> list[tuple[int, bytes, int]]:
        """Index, encoded image and label of each of ``indices``."""
        keys = [operator.index(index) for index in indices]
        for key in keys:
            if not 0 <= key < len(self):
                raise IndexError(f"{self._where} has {len(self)} examples, got index {key}")
        try:
            records = self._records.__getitems__(keys)
        except RuntimeError as error:  # how array_record answers a missing or damaged file
            raise ValueError(f"{self._where}: its record files cannot be read: {error}") from error
        return [(key, *self._parse(record, key)) for key, record in zip(keys, records, strict=True)]

    def _parse(self, record: bytes, index: int) -> tuple[bytes, int]:
        # TFDS's own parser is six times slower, for nested and ragged features that images do not have.
        features = tf_example_pb2.Example.FromString(record).features.feature
        label = features[self._label].int64_list.value[0]
        if not 0 <= label < self._num_classes:
            raise ValueError(f"{self._where}[{index}]: labels must lie in [0, {self._num_classes}), got {label}")
        return features["image"].bytes_list.value[0], label


def _keep(labels: np.ndarray, file: pathlib.Path) -> None:
    """Keeps labels that took long to read, where the folder lets us."""
    partial = file.with_suffix(f".{os.getpid()}.npy")
    with contextlib.suppress(OSError):
        np.save(partial, labels)
        partial.rename(file)


class Selection:
    """A ``Source`` of some examples of others, with other labels.

    Args:
      sources: one after the other.
      rows: of the sources in a row, integers ``[n]``.
      relabel: the new label of each old one; None keeps the labels.
    """

    def __init__(self, sources: Sequence[CroppedSource], rows: np.ndarray, relabel: np.ndarray | None = None) -> None:
        self._sources, self._rows, self._relabel = sources, rows, relabel
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Indices) -> list[Example]:
        return self._gathered(indices, lambda source, places, inner: source.__getitems__(inner))

    def crops(self, indices: Indices, rngs: Sequence[np.random.Generator]) -> list[Example]:
        return self._gathered(
            indices, lambda source, places, inner: source.crops(inner, [rngs[place] for place in places])
        )

    def labels(self) -> np.ndarray:
        labels = np.concatenate([source.labels() for source in self._sources])[self._rows]
        return labels if self._relabel is None else self._relabel[labels].astype(np.int32)

    def _gathered(self, indices, read):
        """Each source is read once, whatever the order of ``indices``."""
        rows = self._rows[np.asarray(indices, np.int64)]
        examples: list[Example] = [{}] * len(rows)
        of_source = np.searchsorted(self._starts, rows, side="right") - 1
        for number, source in enumerate(self._sources):
            places = np.flatnonzero(of_source == number)
            if not len(places):
                continue
            found = read(source, places, rows[places] - self._starts[number])
            for place, example in zip(places, found, strict=True):
                examples[place] = example
        if self._relabel is None:
            return examples
        return [{**example, "label": int(self._relabel[example["label"]])} for example in examples]
