"""Images that a table lists: a CSV or Parquet file of paths and labels."""

import csv
import hashlib
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles, Index, Item, held_out

_SPLITS = {"train": "train", "test": "test", "val": "test", "validation": "test"}


class Listing(FromFiles, skip_registration=True):
    """The images in the rows of a table with the columns ``path`` and ``label``, and ``split`` where there is one.

    Paths are relative to the folder of the table. Labels are class names, numbered in their order; where all of them
    are integers, in that of the integers. ``split`` is ``train``, or ``test`` (or ``val``); without it, a fifth of each
    class, at least one image, is drawn for the test with a fixed seed. The config of this builder has the name that the
    user gives to the dataset.
    """

    name = "listing"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "a .csv or .parquet file with the columns path and label, and split (train or test) where the images are "
        "divided already; paths are relative to its folder"
    )
    table: str = ""  # the file's name in the archive's folder

    def _index(self, archive: Archive) -> Index:
        rows = _read(archive, self.table)
        self.info.metadata["listing"] = digest(archive.folder / self.table)
        names = _ordered({label for _, label, _ in rows})
        labels = np.array([names.index(label) for _, label, _ in rows])
        divided = [split for _, _, split in rows if split]
        if divided and len(divided) < len(rows):
            raise ValueError(f"{archive.folder / self.table}: {len(rows) - len(divided)} rows have no split")
        in_test = np.array([split == "test" for _, _, split in rows]) if divided else _drawn(labels, names)
        items = [Item(path, int(label)) for (path, _, _), label in zip(rows, labels, strict=True)]
        splits = {
            split: [item for item, chosen in zip(items, in_test == is_test, strict=True) if chosen]
            for split, is_test in (("train", False), ("test", True))
        }
        return Index(names, splits, archive)


def digest(table: str | os.PathLike[str]) -> str:
    """Tells a table from another one."""
    return hashlib.sha256(pathlib.Path(table).read_bytes()).hexdigest()


def _read(archive: Archive, table: str) -> list[tuple[str, str, str]]:
    """Path, label and split of each row, as text."""
    where, content = archive.folder / table, archive.read(table)
    columns = _parquet_columns(where, content) if table.endswith(".parquet") else _csv_columns(where, content)
    for wanted in ("path", "label"):
        if wanted not in columns:
            raise ValueError(f"{where} must have the columns path and label, got {', '.join(columns) or 'none'}")
    splits = columns.get("split") or [""] * len(columns["path"])
    rows = list(zip(columns["path"], columns["label"], splits, strict=True))
    read = []
    for number, (path, label, split) in enumerate(rows, start=1):
        if not path or not label:
            raise ValueError(f"{where}: row {number} has no {'path' if not path else 'label'}")
        if split and split.lower() not in _SPLITS:
            raise ValueError(f"{where}: split must be one of {', '.join(_SPLITS)}, got {split!r} in row {number}")
        read.append((pathlib.PurePath(path).as_posix(), label, _SPLITS.get(split.lower(), "")))
    if not read:
        raise ValueError(f"{where} has no rows")
    return read


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
        raise ValueError(f"{where} is no Parquet file: {error}") from error
    return {
        name.lower(): ["" if value is None else str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
        if name.lower() in ("path", "label", "split")
    }


def _ordered(labels: set[str]) -> list[str]:
    """Class names in their order: of numbers that of their values."""
    try:
        return sorted(labels, key=int)
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
