"""Images of datasets and folders as rows: pixels, or features by a network with PyTorch's weights."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import dsb_jax
from dsb_jax import data
from dsb_jax.data import images, pipeline
from dsb_jax.data.builders import folder
from dsb_jax.models import zoo
from dsb_jax.toolkit.inputs import run_features
from dsb_jax.toolkit.inputs.files import Rows

_BATCH = 256  # images of one size, for which a program is compiled once
_LARGER = 4  # images of many sizes are brought to so many times the side of sample space first
_BORDER = 0.875  # of the shorter side, what a network sees, as in the usual evaluation on ImageNet

Batches = Iterator[tuple[np.ndarray, np.ndarray]]


def samples(name: str, split: str, *, image_size: int = 16, **options: Any) -> Rows:
    """A prepared dataset in sample space; of images of many sizes the middle square.

    Args:
      name: see :func:`dsb_jax.data.load`.
      split: likewise.
      image_size: see :func:`dsb_jax.pixel_features`.
      **options: ``protocol`` and ``data_dir``, likewise.

    Example:
      >>> digits = samples("digits", "test")
      >>> digits.samples, digits.dim, digits.space
      (400, 768, 'sample')
    """
    spec = data.spec(name)
    size = _LARGER * image_size if spec is None or spec.sizes_differ else None
    images_of = data.load(name, split, image_size=size, **options)
    return in_sample_space(images_of, np.arange(len(images_of)), image_size=image_size)


def in_sample_space(split: data.Split, indices: np.ndarray, *, image_size: int = 16) -> Rows:
    """Some images of a split of one size, in sample space.

    Args:
      split: where they are.
      indices: their rows.
      image_size: see :func:`dsb_jax.pixel_features`.
    """
    vectors = jax.jit(functools.partial(dsb_jax.pixel_features, image_size=image_size))

    def batches() -> Batches:
        for batch in pipeline.eval_batches(split, _BATCH, indices=indices):
            yield np.asarray(vectors(batch["image"]))[batch["mask"]], batch["label"][batch["mask"]]

    name = f"{split.name}/{split.split}"
    part = Batched(name, 4 * 3 * image_size**2, batches)
    return Rows(name, "sample", tuple(split.class_names), len(indices), 3 * image_size**2, (part,))


def features(name: str, split: str, model: str, weights: str | os.PathLike[str], **options: Any) -> Rows:
    """Features of a prepared dataset by a network with PyTorch's weights, as large as the network was published for.

    Args:
      name: see :func:`dsb_jax.data.load`.
      split: likewise.
      model: see :func:`run_features.Network`.
      weights: likewise.
      **options: ``protocol`` and ``data_dir``, of :func:`dsb_jax.data.load`.
    """
    size = zoo.entry(model).image[0]
    spec = data.spec(name)
    same = spec is not None and not spec.sizes_differ and spec.image_shape[:2] == (size, size)
    scaled: dict[str, Any] = {} if same else {"image_size": size, "shorter_side": round(size / _BORDER)}
    images_of = data.load(name, split, **scaled, **options)

    def batches() -> Batches:
        for batch in pipeline.eval_batches(images_of, _BATCH):
            yield batch["image"][batch["mask"]], batch["label"][batch["mask"]]

    return _by_network(f"{name}/{split}", tuple(images_of.class_names), len(images_of), batches, model, weights)


def folder_features(path: str | os.PathLike[str], model: str, weights: str | os.PathLike[str]) -> Rows:
    """Features of a folder of CLASS/IMAGE by a network with PyTorch's weights.

    Args:
      path: of the folder.
      model: see :func:`run_features.Network`.
      weights: likewise.

    Raises:
      ValueError: a class has no images; or, when it comes to it, a file is no image.
    """
    classes = folder.class_images(path)
    named = [(label, file) for label, found in enumerate(classes.values()) for file in found]
    size = zoo.entry(model).image[0]

    def batches() -> Batches:
        for start in range(0, len(named), _BATCH):
            labels, paths = zip(*named[start : start + _BATCH], strict=True)
            yield _decoded(paths, size), np.array(labels, np.int32)

    files = tuple(str(file) for _, file in named)
    return _by_network(pathlib.Path(path).name, tuple(classes), len(named), batches, model, weights, files)


def _decoded(paths: Sequence[pathlib.Path], size: int) -> np.ndarray:
    decoded = []
    for path in paths:
        try:
            decoded.append(images.decode_square(path.read_bytes(), size, 3, shorter_side=round(size / _BORDER)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return np.stack(decoded)


def _by_network(
    name: str,
    class_names: tuple[str, ...],
    number: int,
    batches: Callable[[], Batches],
    model: str,
    weights: str | os.PathLike[str],
    files: tuple[str, ...] = (),
) -> Rows:
    network = run_features.Network(model, weights)

    def featured() -> Batches:
        for pixels, labels in batches():
            yield network(pixels), labels

    return Rows(name, "feature", class_names, number, network.dim, (Batched(name, 4 * network.dim, featured, files),))


@dataclasses.dataclass(frozen=True, eq=False)
class Batched:
    """A part whose blocks are what ``batches`` gives, cut where they are too large; ``files`` are those of its rows."""

    path: str
    row_bytes: int
    batches: Callable[[], Batches]
    files: tuple[str, ...] = ()

    def blocks(self, size: int) -> Batches:
        for points, labels in self.batches():
            for start in range(0, len(labels), size):
                yield points[start : start + size], labels[start : start + size]
