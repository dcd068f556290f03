"""Rehearsals: a dataset's classes, numbers and sizes with made-up pixels, before its images are here.

What costs time and memory is as it will be: images are bytes of a file's size, read by index and decoded each time.
What is learnt from them means nothing.
"""

from typing import Any

import cv2
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax.data import images
from dsb_jax.data.decoding import Decoding
from dsb_jax.data.records import RecordSource, Split
from dsb_jax.data.specs import Spec

_FILES = 64  # different ones at most; every example is one of them
_PIXELS = 2**24  # of all files together
_DETAIL = 24.0  # standard deviation of single pixels, for which a photograph's JPEG has its size


def load(spec: Spec, split: str, *, protocol: str | None = None, seed: int = 0, **sizes: Any) -> Split:
    """One split of a dataset as :func:`dsb_jax.data.load` would give it, of made-up images.

    Args:
      spec: what is known of the dataset.
      split: as for ``data.load``.
      protocol: likewise.
      seed: draws pixels and the order of the labels.
      **sizes: ``image_size``, ``shorter_side``, ``random_crop`` and ``crop_scale`` as for ``data.load``.

    Returns:
      The split: the dataset's classes, each with its number of examples.

    Raises:
      ValueError: an unknown split or protocol, or sizes that ``data.load`` refuses.

    Example:
      >>> from dsb_jax import data
      >>> split = load(data.spec("mnist_lt_2"), "train")
      >>> len(split), split.num_classes, split.image_shape
      (16651, 10, (28, 28, 1))
    """
    part = spec.part(split, protocol)
    stored_shape = (None, None, spec.image_shape[-1]) if spec.sizes_differ else spec.image_shape
    decoding = Decoding.of(spec.name, stored_shape, **sizes)
    labels = np.repeat(np.arange(len(part.counts), dtype=np.int32), part.counts)
    labels = np.random.default_rng(seed).permutation(labels)
    source = _MadeUp(_Records(_files(spec, seed), labels), where=f"synthetic {spec.name}/{split}", decoding=decoding)
    return Split(
        spec.name,
        split,
        source,
        _class_names(spec, split, protocol),
        decoding.shape,
        decoding.random,
        origin=f"rehearsal {spec.name} {protocol or next(iter(spec.protocols))} {seed}",
    )


class _Records:
    """Serialized examples by index, of a few files."""

    def __init__(self, files: list[bytes], labels: np.ndarray) -> None:
        self.labels, self._files = labels, files

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[int]) -> list[bytes]:
        return [self._record(key) for key in keys]

    def _record(self, key):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(self._files[key % len(self._files)])
        example.features.feature["label"].int64_list.value.append(int(self.labels[key]))
        return example.SerializeToString()


class _MadeUp(RecordSource):
    """A source whose labels are known without reading."""

    def __init__(self, records: _Records, *, where: str, decoding: Decoding) -> None:
        super().__init__(records, where=where, num_classes=int(records.labels.max()) + 1, decoding=decoding)

    def labels(self) -> np.ndarray:
        return self._records.labels.copy()


def _files(spec: Spec, seed: int) -> list[bytes]:
    """Images with coarse shapes and fine detail, encoded as those of the dataset are."""
    height, width, channels = spec.image_shape
    rng = np.random.default_rng([seed, height, width])
    encode = images.encode_jpeg if spec.encoding == ".jpg" and channels == 3 else images.encode_png
    files = []
    for _ in range(max(min(_FILES, _PIXELS // (height * width)), 2)):
        coarse = cv2.resize(rng.uniform(0, 255, (5, 7, channels)), (width, height), interpolation=cv2.INTER_CUBIC)
        detail = rng.normal(0, _DETAIL, (height, width, 1))
        image = coarse.reshape(height, width, channels) + detail
        files.append(encode(np.clip(image, 0, 255).astype(np.uint8).squeeze()))
    return files


def _class_names(spec: Spec, split: str, protocol: str | None) -> tuple[str, ...]:
    part, names = spec.part(split, protocol), spec.protocol(protocol).class_names
    if not names and spec.class_names:
        names = part.class_names(spec.class_names)
    return names or tuple(f"class {label}" for label in range(len(part.counts)))
