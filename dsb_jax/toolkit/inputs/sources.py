"""What the readers of files share: what a file of rows is, where it is, and what is said of one that cannot be read."""

import contextlib
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from pyarrow import fs

from dsb_jax import validation
from dsb_jax.toolkit.inputs import names

# Under what names features and labels are looked for, where none is given.
FEATURES = ("features", "feature", "embeddings", "embedding", "points", "images", "x", "arr_0")
LABELS = ("labels", "label", "targets", "target", "classes", "class", "y", "arr_1")
CLOUDS = (".obj", ".ply", ".xyz")

# What libraries make of damaged files; the last two NumPy, of a header.
_OF_DAMAGE = (
    pa.ArrowException, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError, tokenize.TokenError,
)  # fmt: skip


class Source(Protocol):
    """A file of rows.

    It is small, so that it can be sent to another process: what it opens it closes again.

    Attributes:
      path: of the file.
      samples: rows.
      dim: d of a row as it is yielded.
      space: what rows are, see :class:`points.Points`.
      row_bytes: what a row takes while it is read.
      has_labels: whether rows have classes; if not, they are all of one.
    """

    @property
    def path(self) -> str: ...

    @property
    def samples(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def space(self) -> str: ...

    @property
    def row_bytes(self) -> int: ...

    @property
    def has_labels(self) -> bool: ...

    def labels(self, size: int) -> Iterator[pa.Array]:
        """The labels of ``size`` rows at a time, whatever they are."""

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, pa.Array | None]]:
        """The next ``size`` rows, floating ``[size, d]`` and not checked, and their labels; the last are fewer."""


def located(path: str) -> tuple[fs.FileSystem, str]:
    """The file system that a path or URI (``gs://``, ``s3://``, ``hdfs://``, …) is on, and the path there."""
    try:
        return fs.FileSystem.from_uri(path.rstrip("/") if "://" in path else os.path.abspath(path))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be reached: {one_line(error)}") from error


def opened(path: str) -> pa.NativeFile:
    """The bytes of a file.

    Raises:
      ValueError: there is no such file, with the nearest one that there is; or it is empty.
    """
    file_system, inner = located(path)
    with reading(path):
        info = file_system.get_file_info(inner)
        if info.type == fs.FileType.NotFound:
            raise _missing(path)
        if info.type == fs.FileType.Directory:
            raise ValueError(f"{path} is a folder, but a file is wanted")
        if info.size == 0:
            raise ValueError(f"{path} is empty (0 bytes)")
        return file_system.open_input_file(inner)


def exists(path: str) -> bool:
    """Whether there is a file."""
    file_system, inner = located(path)
    return file_system.get_file_info(inner).is_file


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Whatever a damaged file makes of the libraries that read it becomes a ValueError of one line."""
    try:
        yield
    except OSError as error:
        what = "" if error.errno else " it is damaged, cut short or of another kind:"
        raise ValueError(f"{path} cannot be read:{what} {one_line(error)}") from error
    except _OF_DAMAGE as error:
        raise ValueError(f"{path} is damaged, cut short or of another kind: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__


def listed(paths: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """The files that paths, folders (with the folders in them) and patterns with ``*``, ``?`` or ``[`` stand for.

    Names that begin with ``.`` or ``_``, which writers of shards give to their own notes, are left out of folders and
    patterns, and so are files of labels beside those of features.

    Raises:
      ValueError: there is nothing, or something of another kind than the ``suffixes``, or of several kinds.
    """
    found = [file for path in paths for file in _expanded(path, suffixes)]
    if not found:
        raise ValueError("files are wanted, got none")
    kinds: dict[str, str] = {}
    for path in found:
        suffix = pathlib.PurePath(path).suffix.lower()
        if suffix not in suffixes:
            raise ValueError(f"{path}: {validation.unknown_name('kind of file', suffix, suffixes)}")
        kinds.setdefault("cloud" if suffix in CLOUDS else suffix, path)
    if len(kinds) > 1:
        raise ValueError(f"files of one kind are wanted, got {' and '.join(kinds.values())}; choose by a pattern")
    return found


def _expanded(path: str, suffixes: Sequence[str]) -> list[str]:
    file_system, inner = located(path)
    with reading(path):
        kind = file_system.get_file_info(inner).type
        if kind == fs.FileType.File:
            return [path]
        parts = pathlib.PurePosixPath(inner).parts
        depth = next((place for place, part in enumerate(parts) if set("*?[") & set(part)), len(parts))
        is_pattern = kind == fs.FileType.NotFound
        if is_pattern and depth == len(parts):
            raise _missing(path)
        folder = str(pathlib.PurePosixPath(*parts[:depth])) if is_pattern else inner
        deeper = not is_pattern or depth < len(parts) - 1
        within = file_system.get_file_info(fs.FileSelector(folder, recursive=deeper, allow_not_found=True))
    files = [pathlib.PurePosixPath(entry.path) for entry in within if entry.is_file]
    if is_pattern:
        files = [file for file in files if len(file.parts) == len(parts) and file.match(inner)]
    else:
        files = [file for file in files if file.suffix.lower() in suffixes]
    shards = [file for file in files if not (_is_note(file.relative_to(folder)) or _is_labels(file))]
    if not shards:
        raise ValueError(f"{path} has no files of {', '.join(suffixes)}")
    return names.in_order(_as_given(str(file), path, inner) for file in shards)


def _is_note(path: pathlib.PurePath) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _is_labels(path: pathlib.PurePath) -> bool:
    return path.suffix == ".npy" and path.stem.rpartition("_")[2] == "labels"


def _as_given(found: str, path: str, inner: str) -> str:
    """A path that was found, written as ``path`` is, which is ``inner`` on its file system."""
    if "://" in path:
        return path.rstrip("/").removesuffix(inner) + found
    return found if os.path.isabs(path) else os.path.relpath(found)


def _missing(path: str) -> ValueError:
    file_system, inner = located(path)
    folder, _, name = inner.rpartition("/")
    there = file_system.get_file_info(fs.FileSelector(folder or "/", allow_not_found=True))
    if not there:
        return ValueError(f"{path} is not there, and {folder} is no folder with files")
    before = path.rstrip("/").removesuffix(name)
    return validation.unknown_name("file", path, [before + entry.base_name for entry in there])


def chosen(kind: str, wanted: str | None, usual: Sequence[str], available: Sequence[str], *, path: str) -> str | None:
    """The name of an array or column: the one ``wanted``, else the first of the ``usual`` ones that there is, or None.

    Raises:
      ValueError: there is none of the name wanted.
    """
    if wanted is None:
        return next((name for name in usual if name in available), None)
    if wanted not in available:
        raise ValueError(f"{path}: {validation.unknown_name(kind, wanted, available)}")
    return wanted


def chosen_labels(kind: str, wanted: str | None, others: Sequence[str], *, path: str) -> str | None:
    """The name of what holds the labels, of what there is beside the features; None for rows of one class.

    They are of one class if nothing else is there, or if ``wanted`` is empty.

    Raises:
      ValueError: there is none of the name wanted, or which of several others has the labels cannot be known.
    """
    if wanted == "":
        return None
    name = chosen(kind, wanted, LABELS, others, path=path)
    if name is None and others:
        raise ValueError(
            f"{path}: which {kind} has the labels? None is called {', '.join(LABELS)}, but there are "
            f"{', '.join(others)}; name one, or none ('') for rows of one class"
        )
    return name
