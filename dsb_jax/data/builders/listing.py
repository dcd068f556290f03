"""Images that a table lists: a CSV or Parquet file of paths and labels."""

import collections
import csv
import hashlib
import io
import math
import os
import pathlib
import posixpath
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles, held_out
from dsb_jax.data.builders.index import Index, Item, shown

_COLUMNS = ("path", "label", "split")
_SPLITS = {"train": "train", "test": "test", "val": "val", "validation": "val"}


class Listing(FromFiles, skip_registration=True):
    """The images in the rows of a table with the columns ``path`` and ``label``, and ``split`` where there is one.

    Paths are relative to the folder of the table, or absolute. Labels are class names, numbered in their order; where
    all of them are integers, in that of the integers. ``split`` is ``train``, ``test`` or ``val``, which is the test
    where there is no other; without it, a fifth of each class, at least one image, is drawn for the test with a fixed
    seed. The config of this builder has the name that the user gives to the dataset.
    """

    name = "listing"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "a .csv or .parquet file with the columns path and label, and split (train, test or val) where the images "
        "are divided already; paths are relative to its folder"
    )
    table: str = ""  # the file's name in the archive's folder

    def _index(self, archive: Archive) -> Index:
        where = archive.folder / self.table
        rows = _read(archive, self.table)
        _check(where, rows)
        self.info.metadata["listing"] = digest(where)
        names = _ordered({row.label for row in rows})
        if len(names) < 2:
            raise ValueError(f"{where} must have at least two classes, got {shown(names)}")
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers[row.label] for row in rows])
        places = [row.split for row in rows]
        if not any(places):
            places = ["test" if drawn else "train" for drawn in _drawn(labels, names)]
        elif "test" not in places:
            places = ["test" if place == "val" else place for place in places]
        splits: dict[str, list[Item]] = {"train": [], "test": []}
        if "val" in places:
            splits["val"] = []
        for row, label, place in zip(rows, labels, places, strict=True):
            splits[place].append(Item(row.path, int(label)))
        return Index(names, splits, archive)


class _Row(NamedTuple):
    """A row as texts: ``split`` is train, test, val, or empty where the table has no such column."""

    path: str
    label: str
    split: str


def digest(table: str | os.PathLike[str]) -> str:
    """Tells a table from another one."""
    return hashlib.sha256(pathlib.Path(table).read_bytes()).hexdigest()


def image_paths(table: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The images that a table lists, in its order."""
    table = pathlib.Path(table)
    return [table.parent / row.path for row in _read(Archive(table.parent), table.name)]


def _read(archive: Archive, table: str) -> list[_Row]:
    where, content = archive.folder / table, archive.read(table)
    columns = _parquet_columns(where, content) if table.lower().endswith(".parquet") else _csv_columns(where, content)
    for wanted in ("path", "label"):
        if wanted not in columns:
            raise ValueError(f"{where} must have the columns path and label, got {', '.join(columns) or 'none'}")
    if not columns["path"]:
        raise ValueError(f"{where} has no rows")
    splits = [_SPLITS.get(split.lower(), split) for split in columns.get("split") or [""] * len(columns["path"])]
    paths = [path and posixpath.normpath(pathlib.PurePath(path).as_posix()) for path in columns["path"]]
    return [_Row(*row) for row in zip(paths, columns["label"], splits, strict=True)]


def _check(where: pathlib.Path, rows: list[_Row]) -> None:
    """Raises ValueError naming all that is wrong with the rows."""
    wrong = []
    divided = any(row.split for row in rows)
    for number, row in enumerate(rows, start=1):
        wrong += [f"row {number} has no {name}" for name in ("path", "label") if not getattr(row, name)]
        if divided and row.split not in _SPLITS.values():
            wrong.append(f"row {number} must have a split of {', '.join(_SPLITS)}, got {row.split!r}")
    folder = str(where.parent.resolve())
    places = [posixpath.normpath(posixpath.join(folder, row.path)) for row in rows if row.path]
    repeated = collections.Counter(place.removeprefix(f"{folder}/") for place in places)
    wrong += [f"{path} is listed {number} times" for path, number in repeated.items() if number > 1]
    if wrong:
        raise ValueError(f"{where} (rows without the headings and blank lines): {shown(wrong)}")


def _csv_columns(where: pathlib.Path, content: bytes) -> dict[str, list[str]]:
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig")), strict=True)
        header, *rows = [[cell.strip() for cell in line] for line in lines if line] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where} is no CSV file: {error}") from error
    if wrong := [number for number, row in enumerate(rows, start=1) if len(row) != len(header)]:
        raise ValueError(f"{where}: row {wrong[0]} has {len(rows[wrong[0] - 1])} cells, but {len(header)} are named")
    return {name.lower(): [row[place] for row in rows] for place, name in enumerate(header)}


def _parquet_columns(where: pathlib.Path, content: bytes) -> dict[str, list[str]]:
    import pyarrow as pa  # takes half a second to import, and only such a file needs it
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except pa.ArrowException as error:
        raise ValueError(f"{where} is no Parquet file, or was cut short") from error
    return {  # of others the name alone, for errors
        name.lower(): [_text(value) for value in table.column(name).to_pylist()] if name.lower() in _COLUMNS else []
        for name in table.column_names
    }


def _text(value: object) -> str:
    """A cell as it stands in a CSV file; whole numbers among floats, as of a column with gaps, are whole."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _ordered(labels: set[str]) -> list[str]:
    """Class names in their order: of numbers that of their values."""
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)


def _drawn(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Which rows are for the test, bool ``[rows]``."""
    chosen = np.zeros(len(labels), bool)
    for label, name in enumerate(names):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise ValueError(f"class {name} has one image, but one to train on and one for the test are needed")
        chosen[rows] = held_out(label, len(rows))
    return chosen
