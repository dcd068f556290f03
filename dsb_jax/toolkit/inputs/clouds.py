"""Point clouds in ``.ply``, ``.obj`` and ``.xyz`` files, read in blocks.

Of a mesh the vertices are the points. The header of a ``.ply`` file says how its vertices are stored, as text or in
binary of either byte order, which is what NumPy's structured types describe; one without a header is read as ``.xyz``.
(OpenCV 5 reads such files too, but takes what lies behind the end of one that is cut short for points.)
"""

import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dsb_jax.toolkit.inputs import sources

_AXES = ("x", "y", "z")
_KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
_CALLED = ("char uchar short ushort int uint float double", "int8 uint8 int16 uint16 int32 uint32 float32 float64")
_TYPES = {name: kind for called in _CALLED for name, kind in zip(called.split(), _KINDS, strict=True)}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST_HEADER = 2**20


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Where the rows of points are in a file, and which columns of theirs are x, y and z.

    Attributes:
      columns: of x, y and z.
      kind: of a row in binary; None for text, a row in a line.
      start: bytes before the rows.
      skipped: lines before them after that.
      count: how many; None for all that there are.
      mark: what rows begin with in a file of other lines too.
    """

    columns: tuple[int, int, int] = (0, 1, 2)
    kind: np.dtype | None = None
    start: int = 0
    skipped: int = 0
    count: int | None = None
    mark: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class CloudSource:
    """The points of a file, all of one class, as a :class:`sources.Source`."""

    path: str
    rows: _Rows
    samples: int
    dim: int = 3
    space: str = "cloud"
    row_bytes: int = 24
    has_labels: bool = False

    def labels(self, size: int) -> Iterator[pa.Array]:
        yield from ()

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, None]]:
        with sources.reading(self.path), sources.opened(self.path) as file:
            file.seek(self.rows.start)
            kind = self.rows.kind
            lines = _lines(file, self.rows) if kind is None else iter(())
            for first in range(0, self.samples, size):
                count = min(size, self.samples - first)
                yield self._text(lines, count, first) if kind is None else self._binary(file, count, kind), None

    def _binary(self, file: pa.NativeFile, count: int, kind: np.dtype) -> np.ndarray:
        content = file.read(count * kind.itemsize)
        if len(content) < count * kind.itemsize:
            raise ValueError(f"{self.path} is cut short")
        rows = np.frombuffer(content, kind)
        return np.stack([rows[axis].astype(np.float64) for axis in _AXES], axis=1)

    def _text(self, lines: Iterator[str], count: int, first: int) -> np.ndarray:
        texts = list(itertools.islice(lines, count))
        if len(texts) < count:
            raise ValueError(
                f"{self.path} is cut short: {self.samples:,} points are promised, {first + len(texts):,} there"
            )
        try:
            return np.loadtxt(texts, usecols=self.rows.columns, ndmin=2, comments=None)
        except ValueError:
            bad = next((row for row, text in enumerate(texts) if not _is_point(text, self.rows.columns)), 0)
            text = texts[bad].strip()[:40]
            raise ValueError(f"{self.path}: a point must be numbers x y z, got {text!r} in row {first + bad}") from None


def open_ply(path: str) -> CloudSource:
    """The vertices of a ``.ply`` file, or the lines of one without a header.

    Raises:
      ValueError: the header is damaged, has no vertices with x, y and z, or more of them than the file has bytes for.
    """
    with sources.reading(path), sources.opened(path) as file:
        if file.read(3) != b"ply":
            return open_lines(path)
        file.seek(0)
        head, end, after = file.read(_LONGEST_HEADER).partition(b"end_header")
        if not end:
            raise ValueError(f"{path} is damaged or cut short: its header does not end")
        start = len(head) + len(end) + (2 if after.startswith(b"\r\n") else 1)
        rows = _header(path, head.decode("ascii", "replace").splitlines(), start)
        count = rows.count or 0
        if rows.kind is not None and file.size() < rows.start + count * rows.kind.itemsize:
            raise ValueError(
                f"{path} is cut short: {count:,} points of {rows.kind.itemsize} bytes are promised, but there are "
                f"{max(file.size() - rows.start, 0):,} bytes"
            )
    return CloudSource(path, rows, count)


def open_lines(path: str) -> CloudSource:
    """The points of a file that has x, y and z in each line, whatever follows them; ``#`` begins a comment."""
    return _counted(path, _Rows())


def open_obj(path: str) -> CloudSource:
    """The vertices of an ``.obj`` file."""
    return _counted(path, _Rows(columns=(1, 2, 3), mark=("v ", "v\t")))


def _counted(path: str, rows: _Rows) -> CloudSource:
    with sources.reading(path), sources.opened(path) as file:
        return CloudSource(path, rows, sum(1 for _ in _lines(file, rows)))


def _lines(file: pa.NativeFile, rows: _Rows) -> Iterator[str]:
    lines: Iterator[str] = io.TextIOWrapper(file, "ascii", "replace")
    if rows.count is not None:
        return itertools.islice(lines, rows.skipped, rows.skipped + rows.count)
    if rows.mark:
        return (line for line in lines if line.startswith(rows.mark))
    return (line for line in lines if not (line.isspace() or line.startswith("#")))


def _is_point(text: str, columns: Sequence[int]) -> bool:
    words = text.split()
    try:
        return len([float(words[column]) for column in columns]) == 3
    except (ValueError, IndexError):
        return False


def _header(path: str, lines: Sequence[str], start: int) -> _Rows:
    """What the header of a ``.ply`` file says of its vertices."""
    order: str | None = None
    elements: dict[str, tuple[int, dict[str, Any]]] = {}
    for words in map(str.split, lines):
        match words:
            case ["format", form, *_] if form in _ORDERS:
                order = _ORDERS[form]
            case ["element", name, count] if count.isdecimal():
                properties: dict[str, Any] = {}
                elements[name] = int(count), properties
            case ["property", "list", _, _, name] if elements:
                properties[name] = None
            case ["property", kind, name] if kind in _TYPES and elements:
                properties[name] = _TYPES[kind]
            case [] | ["ply" | "comment" | "obj_info", *_]:
                pass
            case _:
                raise ValueError(f"{path}: its header has a line that is not understood: {' '.join(words)[:60]!r}")
    if order is None or not elements.get("vertex", (0, {}))[1].keys() >= set(_AXES):
        raise ValueError(
            f"{path}: its header says nothing of {'x, y and z of vertices' if order is not None else 'a format'}"
        )
    before = list(itertools.takewhile(lambda name: name != "vertex", elements))
    number, properties = elements["vertex"]
    if None in properties.values() or (order and any(None in elements[name][1].values() for name in before)):
        raise ValueError(f"{path}: vertices with lists, or after other lists in binary, are not read")
    x, y, z = (list(properties).index(axis) for axis in _AXES)
    skipped = sum(elements[name][0] for name in before)
    if not order:
        return _Rows((x, y, z), start=start, skipped=skipped, count=number)
    size = sum(elements[name][0] * _kind(order, elements[name][1]).itemsize for name in before)
    return _Rows((x, y, z), _kind(order, properties), start + size, count=number)


def _kind(order: str, properties: dict[str, str]) -> np.dtype:
    return np.dtype([(name, order + kind) for name, kind in properties.items()])
