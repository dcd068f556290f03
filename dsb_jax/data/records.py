"""One split of a dataset on disk: random access to its examples, and its labels at once."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

Example = dict[str, Any]

# Bounds the memory of reading all labels: records carry their images with them.
_RECORDS_PER_READ = 4096


class Source(Protocol):
    """Examples by index: ``{"image": uint8 [height, width, channels], "label": int}``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several examples at once: on disk about ten times the rate of one after the other."""

    def labels(self) -> np.ndarray:
        """The labels of all examples, int32 ``[samples]``, without decoding images."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a dataset; ``data.load`` makes it.

    Attributes:
      name: of the dataset.
      split: ``"train"`` or ``"test"``.
      source: random access to the examples.
      class_names: one for each class, in the order of the labels.
      image_shape: ``(height, width, channels)``.
    """

    name: str
    split: str
    source: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

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


class RecordSource:
    """A ``Source`` of serialized ``tf.train.Example`` records with the features ``image`` and ``label``.

    Args:
      records: random access to the records as bytes; ``__getitems__`` reads several at once.
      where: what errors call this source, such as ``"mnist/train"``.
      num_classes: labels must lie in ``[0, num_classes)``.
      decode: makes a uint8 image ``[height, width, channels]`` of encoded bytes; raises ValueError where it cannot.
    """

    def __init__(self, records: Any, *, where: str, num_classes: int, decode: Callable[[bytes], np.ndarray]) -> None:
        self._records = records
        self._where = where
        self._num_classes = num_classes
        self._decode = decode

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        examples = []
        for index, encoded, label in self._read(indices):
            try:
                image = self._decode(encoded)
            except ValueError as error:
                raise ValueError(f"{self._where}[{index}]: {error}") from error
            examples.append({"image": image, "label": label})
        return examples

    def labels(self) -> np.ndarray:
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), _RECORDS_PER_READ):
            for index, _, label in self._read(range(start, min(start + _RECORDS_PER_READ, len(self)))):
                labels[index] = label
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
        label = features["label"].int64_list.value[0]
        if not 0 <= label < self._num_classes:
            raise ValueError(f"{self._where}[{index}]: labels must lie in [0, {self._num_classes}), got {label}")
        return features["image"].bytes_list.value[0], label
