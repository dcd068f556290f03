"""Features and labels in NumPy's files, ``.npz`` and ``.npy``, read in blocks."""

import contextlib
import dataclasses
import io
import math
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy

import dsb_jax
from dsb_jax.toolkit import points
from dsb_jax.toolkit.inputs import sources

_SMALL = 2**10  # bytes
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of a file, of which only the header has been read.

    Attributes:
      path: of the file.
      member: of an ``.npz`` file; None for an ``.npy`` file.
      shape: of the array.
      dtype: likewise.
      by_columns: whether it is in Fortran's order.
    """

    path: str
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool

    def __str__(self) -> str:
        return self.path if self.member is None else f"{self.path}[{self.member}]"

    @property
    def kind(self) -> str:
        """Its dtype and shape, for messages."""
        objects = " of pickled Python objects, which are not read: save them as numbers or strings"
        return f"{self.dtype} {list(self.shape)}{objects if self.dtype.hasobject else ''}"

    @classmethod
    def of(cls, path: str, member: str | None = None) -> "Stored":
        """Reads the header.

        Raises:
          ValueError: it is damaged, or more bytes follow or fewer than it says.
        """
        with _stream(path, member) as (stream, size):
            return cls._read(stream, size, path, member)

    @classmethod
    def _read(cls, stream: IO[bytes], size: int, path: str, member: str | None) -> "Stored":
        try:
            shape, by_columns, dtype = _READ_HEADER[npy.read_magic(stream)](stream)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}{f'[{member}]' if member else ''} is no NumPy array: {error}") from error
        stored = cls(path, member, shape, dtype, by_columns and len(shape) > 1)
        wanted, rest = math.prod(shape) * dtype.itemsize, size - stream.tell()
        if rest != wanted and not dtype.hasobject:
            raise ValueError(
                f"{stored} is damaged or cut short: {dtype} {list(shape)} is {wanted:,} bytes, but {rest:,} follow"
            )
        return stored

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """The next ``size`` entries of the first axis; in Fortran's order, which has no rows, all are read at once."""
        with _stream(self.path, self.member) as (stream, length):
            if self._read(stream, length, self.path, self.member) != self:
                raise ValueError(f"{self} has changed while it was read")
            native = self.dtype.newbyteorder("=")
            if self.by_columns:
                whole = _filled(np.empty(self.shape[::-1], self.dtype), stream, self).T
            for start in range(0, self.shape[0], size):
                stop = min(start + size, self.shape[0])
                if self.by_columns:
                    block = whole[start:stop]
                else:
                    block = _filled(np.empty((stop - start, *self.shape[1:]), self.dtype), stream, self)
                yield block.astype(native, copy=False)
            stream.read(1)  # at the end of a member, its checksum is compared


@contextlib.contextmanager
def _stream(path: str, member: str | None) -> Iterator[tuple[Any, int]]:
    """The bytes of an array with its header, and how many they are."""
    with sources.reading(path), sources.opened(path) as file:
        if member is None:
            yield file, file.size()
            return
        with zipfile.ZipFile(file) as archive, archive.open(f"{member}.npy") as inner:
            yield inner, archive.getinfo(f"{member}.npy").file_size


def _filled(array: np.ndarray, stream: Any, name: Any) -> np.ndarray:
    """An array with the next bytes."""
    content = array.reshape(-1).view(np.uint8)
    done = 0
    while done < len(content):
        if not (count := stream.readinto(content[done:])):
            raise ValueError(f"{name} is cut short")
        done += count
    return array


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Two arrays as a :class:`sources.Source`: rows, or images that become rows of sample space, and their labels."""

    path: str
    features: Stored
    targets: Stored | None
    image_size: int

    def __post_init__(self) -> None:
        shape = self.features.shape
        if self.features.dtype.kind not in "fiub":
            raise ValueError(f"{self.features}: features must be real numbers, got {self.features.kind}")
        if not (len(shape) == 2 and shape[1]) and self.space == "feature":
            raise ValueError(
                f"{self.features}: features must be rows [samples, dim], or uint8 images [samples, height, width] "
                f"or [samples, height, width, 1 or 3], got {self.features.kind}"
            )
        if self.targets is None:
            return
        if len(self.targets.shape) != 1 or self.targets.dtype.kind not in "iubUS":
            raise ValueError(
                f"{self.targets}: labels must be integers or strings, one per row, got {self.targets.kind}"
            )
        if self.targets.shape[0] != shape[0]:
            raise ValueError(
                f"{self.features} and {self.targets} must be of one length, got {shape[0]:,} rows and "
                f"{self.targets.shape[0]:,} labels"
            )

    @property
    def samples(self) -> int:
        return self.features.shape[0]

    @property
    def space(self) -> str:
        shape = self.features.shape
        is_images = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
        return "sample" if is_images and self.features.dtype == np.uint8 and math.prod(shape[1:]) > 0 else "feature"

    @property
    def dim(self) -> int:
        return 3 * self.image_size**2 if self.space == "sample" else self.features.shape[1]

    @property
    def row_bytes(self) -> int:
        stored = math.prod(self.features.shape[1:]) * self.features.dtype.itemsize
        return stored * 5 if self.space == "sample" else stored  # pixels become float32

    @property
    def has_labels(self) -> bool:
        return self.targets is not None

    def labels(self, size: int) -> Iterator[pa.Array]:
        if self.targets is not None:
            yield from map(_labels, self.targets.blocks(size))

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, pa.Array | None]]:
        labels = self.labels(size)
        for block in self.features.blocks(size):
            yield self._points(block), next(labels, None)

    def _points(self, block: np.ndarray) -> np.ndarray:
        if self.space == "sample":
            pixels = block if block.ndim == 4 else block[..., None]
            return np.asarray(dsb_jax.pixel_features(pixels, image_size=self.image_size))
        return points.floating(block)


def _labels(block: np.ndarray) -> pa.Array:
    if block.dtype.kind == "b":
        block = block.astype(np.int8)
    return pa.array(block).cast(pa.string()) if block.dtype.kind == "S" else pa.array(block)


def open_npz(path: str, *, features: str | None, labels: str | None, image_size: int) -> ArraySource:
    """Arrays of an ``.npz`` file, called ``features`` and ``labels`` or as is usual.

    Raises:
      ValueError: the file is damaged, or has no arrays of these names.
    """
    with sources.reading(path), sources.opened(path) as file, zipfile.ZipFile(_seekable(file)) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    chosen = sources.chosen("array", features, sources.FEATURES, names, path=path)
    if chosen is None and len(names) == 1:
        chosen = names[0]
    if chosen is None:
        raise ValueError(
            f"{path}: which array has the features? None is called {', '.join(sources.FEATURES)}; there are "
            f"{', '.join(names) or 'none'}"
        )
    others = [name for name in names if name != chosen]
    target = sources.chosen_labels("array", labels, others, path=path)
    return ArraySource(path, Stored.of(path, chosen), None if target is None else Stored.of(path, target), image_size)


def _seekable(file: pa.NativeFile) -> pa.NativeFile | io.BytesIO:
    """Arrow refuses what zipfile tries, to look before the beginning of a file that is too small to be one."""
    return io.BytesIO(file.read()) if file.size() < _SMALL else file


def open_npy(path: str, *, labels: str | None, image_size: int) -> ArraySource:
    """The array of an ``.npy`` file; its labels are in another one, ``labels`` or the one beside it, if there is one.

    Of ``x.npy`` that is ``x_labels.npy`` or ``labels.npy``, of ``train_features.npy`` also ``train_labels.npy``.

    Raises:
      ValueError: a file is damaged, or there is none of this name.
    """
    features = Stored.of(path)
    if labels is None:
        labels = next((beside for beside in _beside(path) if sources.exists(beside)), None)
    return ArraySource(path, features, Stored.of(labels) if labels else None, image_size)


def _beside(path: str) -> Iterator[str]:
    folder, slash, name = path.rpartition("/")
    stem = name.removesuffix(".npy")
    yield f"{folder}{slash}{stem}_labels.npy"
    for word in ("features", "embeddings"):
        if word in stem:
            yield f"{folder}{slash}{stem.replace(word, 'labels')}.npy"
    yield f"{folder}{slash}labels.npy"
