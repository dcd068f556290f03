"""Embeddings, images and point clouds in files, read in blocks: what is larger than memory need not fit into it.

================  ==================================================================================================
``.npz``          an array of features ``[n, d]``, or of uint8 images ``[n, height, width, 1 or 3]``, and one of labels
``.npy``          the same in a file each, the labels beside the features
``.parquet``      a column of lists of numbers, or a column for each number, and a column of labels
``.ply .obj``     the vertices of a mesh or a cloud: points of one class
``.xyz``          the same, a point in each line
================  ==================================================================================================

Several of them, of one kind, are one input: a list, a folder, or a pattern such as ``shards/*.parquet``; ``gs://``,
``s3://`` and where else Arrow gets are places as local folders are. Labels are integers or strings. Classes are what
labels there are, numbers by value and words as a person would sort them, the same in all of the files; a file without
labels is a class of its own, called as the file.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import dsb_jax
from dsb_jax import validation
from dsb_jax.toolkit import points
from dsb_jax.toolkit.inputs import arrays, clouds, names, sources, tables
from dsb_jax.toolkit.inputs.sources import Source
from dsb_jax.toolkit.points import Points

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

SUFFIXES = (".npy", ".npz", ".parquet", *sources.CLOUDS)

_BYTES_AT_A_TIME = 2**24  # of rows; more are not read faster, and their memory is not used again
_LABELS_AT_A_TIME = 2**20
_LARGEST = 1e100  # sums of squares of smaller numbers are finite


class Part(Protocol):
    """Some of the rows of an input, such as those of a file.

    Attributes:
      path: where it comes from.
      row_bytes: what a row takes while it is read.
    """

    @property
    def path(self) -> str: ...

    @property
    def row_bytes(self) -> int: ...

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows in order, about ``size`` at a time: floating ``[size, d]``, and their labels, int32 ``[size]``."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """An input that is read in blocks, as often as is wanted; :class:`points.Points` is one in memory.

    Attributes:
      name: what it is called in titles.
      space: see :class:`points.Points`.
      class_names: C names.
      samples: n.
      dim: d.
      parts: what it consists of.
    """

    name: str
    space: str
    class_names: tuple[str, ...]
    samples: int
    dim: int
    parts: tuple[Part, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    def blocks(self, size: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows in order.

        Args:
          size: of a block in rows, the last of which may have fewer; by default as many as take 16 MiB.

        Yields:
          Points, floating ``[size, d]``, and their labels, int32 ``[size]``.

        Raises:
          ValueError: a file is damaged, or a row is not finite.
        """
        size = self._chunk(*self.parts) if size is None else validation.positive_int("size", size)
        held: list[tuple[np.ndarray, np.ndarray]] = []
        for piece in self._pieces(size):
            held.append(piece)
            while sum(len(labels) for _, labels in held) >= size:
                block, labels = _joined(held)
                held = [(block[size:], labels[size:])] if len(labels) > size else []
                yield block[:size], labels[:size]
        if held:
            yield _joined(held)

    def _pieces(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of one part after the other, checked."""
        for part in self.parts:
            first = 0
            for block, labels in part.blocks(min(size, self._chunk(part))):
                points.require_finite(block, labels, self.class_names, name=part.path, first_row=first, below=_LARGEST)
                first += len(labels)
                yield block, labels

    def _chunk(self, *parts: Part) -> int:
        return max(_BYTES_AT_A_TIME // max(part.row_bytes for part in parts), 1)

    def load(self, progress: Callable[..., Iterable[Any]] | None = None) -> Points:
        """All rows in memory.

        Args:
          progress: ``(iterable, total) -> iterable``, through which the blocks pass, such as ``tqdm.tqdm``.
        """
        size = self._chunk(*self.parts)
        blocks = self.blocks(size) if progress is None else progress(self.blocks(size), -(-self.samples // size))
        whole, all_labels, start = None, np.empty(self.samples, np.int32), 0
        for block, labels in blocks:
            if whole is None:
                whole = np.empty((self.samples, self.dim), block.dtype)
            elif np.result_type(whole, block) != whole.dtype:  # a file of wider numbers than those before
                whole = whole.astype(block.dtype)
            stop = start + len(labels)
            whole[start:stop], all_labels[start:stop] = block, labels
            start = stop
        assert whole is not None
        return Points(whole, all_labels, self.class_names, self.space, self.name)

    def pooled(self, dim: int) -> "Rows":
        """The same with d reduced to ``dim`` by :func:`dsb_jax.pool_features`, in float32 as in training.

        Raises:
          ValueError: ``dim`` is not positive, or more than there are.
        """
        if validation.positive_int("dim", dim) > self.dim:
            raise ValueError(f"dim must be at most {self.dim}, the numbers of a row of {self.name}, got {dim}")
        if dim == self.dim:
            return self
        return dataclasses.replace(self, dim=dim, parts=tuple(Pooled(part, dim) for part in self.parts))


def rows(
    paths: Paths,
    *,
    features: str | None = None,
    labels: str | None = None,
    image_size: int = 16,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Rows:
    """Files as one input. Read now are their headers and labels, of which nothing is kept but the classes.

    Args:
      paths: a file, a folder of files, a pattern, or several.
      features: the array of ``.npz`` files; or the column of ``.parquet`` files, or a pattern of columns such as
        ``f*``, which are taken in natural order. By default looked for under the usual names.
      labels: the array or column likewise, or the other file of an ``.npy`` file; by default looked for likewise, and
        beside the ``.npy`` file. Empty for rows of one class whatever else there is.
      image_size: see :func:`dsb_jax.pixel_features`, by which images become points.
      progress: ``(iterable, total) -> iterable``, through which the files pass, such as ``tqdm.tqdm``.

    Raises:
      ValueError: there is no such file, array or column; or files are damaged, empty, of differing kinds or dims.

    Example:
      >>> np.savez("birds.npz", features=np.eye(3), labels=["wren", "jay", "jay"])
      >>> birds = rows("birds.npz")
      >>> birds.class_names, birds.samples, birds.dim
      (('jay', 'wren'), 3, 3)
      >>> [labels.tolist() for _, labels in birds.blocks(2)]
      [[1, 0], [0]]
    """
    validation.positive_int("image_size", image_size)
    found = listed(paths, labels)
    options: dict[str, Any] = {"features": features, "labels": labels, "image_size": image_size}
    filled = [source for path in found if (source := source_of(path, **options)).samples]
    if not filled:
        raise ValueError(f"{', '.join(found[:3])} must have rows, got none")
    _require_alike(filled)
    values = [_values(source) for source in (filled if progress is None else progress(filled, len(filled)))]
    class_names = tuple(names.in_order({str(value) for of_file in values for value in of_file.to_pylist()}))
    number = {name: label for label, name in enumerate(class_names)}
    parts = tuple(
        _Labelled(source, of_file, np.array([number[str(value)] for value in of_file.to_pylist()], np.int32))
        for source, of_file in zip(filled, values, strict=True)
    )
    samples = sum(source.samples for source in filled)
    return Rows(_name(paths), filled[0].space, class_names, samples, filled[0].dim, parts)


def listed(paths: Paths, labels: str | None = None) -> list[str]:
    """The files that :func:`rows` would read."""
    found = sources.listed([os.fspath(path) for path in _several(paths)], SUFFIXES)
    if labels and len(found) > 1 and found[0].endswith(".npy"):
        raise ValueError(f"{labels} cannot have the labels of several files; put those of each beside it")
    return found


def source_of(path: str, *, features: str | None, labels: str | None, image_size: int) -> Source:
    """A file, of which the header is read, with the options of :func:`rows`."""
    suffix = pathlib.PurePath(path).suffix.lower()
    if features is not None and suffix not in (".npz", ".parquet"):
        raise ValueError(f"{path} has no arrays or columns to choose from, got features={features!r}")
    match suffix:
        case ".npz":
            return arrays.open_npz(path, features=features, labels=labels, image_size=image_size)
        case ".npy":
            return arrays.open_npy(path, labels=labels, image_size=image_size)
        case ".parquet":
            return tables.open_parquet(path, features=features, labels=labels)
    if labels:
        raise ValueError(f"{path} has points of one class, got labels={labels!r}")
    return {".ply": clouds.open_ply, ".obj": clouds.open_obj, ".xyz": clouds.open_lines}[suffix](path)


def _several(paths: Paths) -> Sequence[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else paths


def _name(paths: Paths) -> str:
    first, *more = _several(paths)
    return f"{pathlib.PurePath(first).name}{f' and {len(more):,} more' if more else ''}"


def _require_alike(found: Sequence[Source]) -> None:
    first = found[0]
    stems: dict[str, Source] = {}
    for source in found:
        if (source.space, source.dim) != (first.space, first.dim):
            raise ValueError(
                f"files must have rows of one kind and dim, got {first.dim} ({first.space}) in {first.path} and "
                f"{source.dim} ({source.space}) in {source.path}"
            )
        if source.has_labels != first.has_labels:
            with_, without = (source, first) if source.has_labels else (first, source)
            raise ValueError(f"{with_.path} has labels, but {without.path} has none")
        if not source.has_labels and (other := stems.setdefault(_stem(source), source)) is not source:
            raise ValueError(f"files without labels are classes by their names, got {other.path} and {source.path}")


def _stem(source: Source) -> str:
    return pathlib.PurePath(source.path).stem


def _values(source: Source) -> pa.Array:
    """The distinct labels of a file."""
    if not source.has_labels:
        return pa.array([_stem(source)])
    first, distinct = 0, []
    with sources.reading(source.path):
        for labels in source.labels(_LABELS_AT_A_TIME):
            distinct.append(pc.unique(_plain(labels, source.path, first)))
            first += len(labels)
        return pc.unique(pa.chunked_array(distinct))


def _plain(labels: pa.Array, path: str, first: int) -> pa.Array:
    """Labels as integers or strings; ``first`` is the row of the first."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if pa.types.is_boolean(labels.type):
        labels = labels.cast(pa.int8())
    if not (
        pa.types.is_integer(labels.type) or pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
    ):
        raise ValueError(f"{path}: labels must be integers or strings, got {labels.type}")
    if labels.null_count:
        raise ValueError(f"{path}: row {first + pc.index(labels.is_null(), True).as_py()} has no label (null)")
    return labels


@dataclasses.dataclass(frozen=True, eq=False)
class _Labelled:
    """The rows of a file, with classes for its labels.

    Attributes:
      source: the file.
      values: its distinct labels.
      classes: the class of each of them, int32.
    """

    source: Source
    values: pa.Array
    classes: np.ndarray

    @property
    def path(self) -> str:
        return self.source.path

    @property
    def row_bytes(self) -> int:
        return self.source.row_bytes

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first = 0
        with sources.reading(self.path):
            for block, labels in self.source.blocks(size):
                if labels is None:
                    yield block, np.full(len(block), self.classes[0])
                    continue
                places = pc.index_in(_plain(labels, self.path, first), value_set=self.values)
                if places.null_count:
                    raise ValueError(f"{self.path} has changed while it was read")
                first += len(block)
                yield block, self.classes[places.to_numpy()]


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled:
    """Rows with fewer channels."""

    part: Part
    dim: int

    @property
    def path(self) -> str:
        return self.part.path

    @property
    def row_bytes(self) -> int:
        return self.part.row_bytes

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block, labels in self.part.blocks(size):
            yield np.asarray(dsb_jax.pool_features(block.astype(np.float32, copy=False), self.dim)), labels


def _joined(blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([block for block, _ in blocks]), np.concatenate([labels for _, labels in blocks])
