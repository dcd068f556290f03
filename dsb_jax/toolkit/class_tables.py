"""Tables of classes, as people keep them: text files with a row for each class."""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dsb_jax import validation

_DELIMITERS = "\t;|,"  # the first that the first line has
_NAMED = 3
_DIGITS = "0123456789"

T = TypeVar("T")


def by_class(
    path: str | os.PathLike[str], default: tuple[str, str], columns: tuple[str, str] | None = None
) -> dict[str, str]:
    """Two columns of a delimited text file: classes, and what each one has.

    Cells are separated by tabs, semicolons, bars or commas. Where the first row holds both names of ``default``, in any
    case, it is a heading, and there may be other columns besides; otherwise all rows are of two cells.

    Args:
      path: of the file, UTF-8.
      default: what the columns are called.
      columns: what they are called in this file, if otherwise; then there must be a heading.

    Returns:
      Texts by class, in the order of the rows.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: naming the file and the row, if it is empty or no such table, or has a class twice.

    Example:
      >>> _ = pathlib.Path("accuracy.csv").write_text("class;samples;accuracy\\ncat;50;0.9\\ndog;30;0.7\\n")
      >>> by_class("accuracy.csv", ("class", "accuracy"))
      {'cat': '0.9', 'dog': '0.7'}
    """
    first, *rest = _rows(pathlib.Path(path))
    heading = [cell.lower() for cell in first]
    wanted = [name.lower() for name in columns or default]
    if columns is not None:
        for name in wanted:
            if name not in heading:
                raise validation.unknown_name(f"column of {path}", name, heading)
    if named := set(wanted) <= set(heading):
        places = [heading.index(name) for name in wanted]
    elif len(first) == 2:
        places = [0, 1]
    else:
        raise ValueError(
            f"{path} must have the columns {' and '.join(default)}, or two columns without a heading, got a first row "
            f"{', '.join(first)}"
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rest if named else [first, *rest], start=1 + named):
        if len(row) != len(first):
            raise ValueError(f"{path}: row {number} has {len(row)} cells, and the first one {len(first)}")
        name, value = (row[place] for place in places)
        if name in found:
            raise ValueError(f"{path}: row {number} is a second one of class {name!r}")
        found[name] = value
    if not found:
        raise ValueError(f"{path} has a heading and no row")
    return found


def require_no_heading(
    found: Mapping[str, str], class_names: Iterable[str], default: tuple[str, str], *, source: str
) -> None:
    """Raises ValueError where the first row is not of a class, and so a heading of other names than ``default``.

    It is one if the classes of all other rows are known, or if it has no digits where values are numbers.

    Example:
      >>> require_no_heading({"child": "parents", "cat": "animal"}, ["cat"], ("child", "parent"), source="map.csv")
      Traceback (most recent call last):
      ValueError: map.csv must have the columns child and parent, or two columns without a heading, got a first row \
child, parents
    """
    (first, value), *rest = found.items()
    known = set(class_names)
    numbers = bool(rest) and all(set(_DIGITS) & set(text) for _, text in rest)
    if first not in known and (
        (rest and all(name in known for name, _ in rest)) or (numbers and not set(_DIGITS) & set(value))
    ):
        raise ValueError(
            f"{source} must have the columns {' and '.join(default)}, or two columns without a heading, got a first "
            f"row {first}, {value}"
        )


def in_order(found: Mapping[str, T], class_names: Iterable[str], *, source: str) -> list[T]:
    """What each class has, in the order of ``class_names``.

    Args:
      found: by class.
      class_names: all of them.
      source: where it is from, for errors.

    Raises:
      ValueError: naming a class that there is not, with the nearest, or those that are missing.

    Example:
      >>> in_order({"dog": 0.7, "cat": 0.9}, ["cat", "dog"], source="accuracy.csv")
      [0.9, 0.7]
      >>> in_order({"dgo": 0.7, "cat": 0.9}, ["cat", "dog"], source="accuracy.csv")
      Traceback (most recent call last):
      ValueError: unknown class in accuracy.csv 'dgo'; did you mean 'dog'? Valid names: cat, dog
    """
    class_names = list(class_names)
    known = set(class_names)
    if unknown := [name for name in found if name not in known]:
        raise validation.unknown_name(f"class in {source}", unknown[0], class_names)
    if missing := [name for name in class_names if name not in found]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(f"{source} lacks {', '.join(missing[:_NAMED])}{more} of the {len(class_names)} classes")
    return [found[name] for name in class_names]


def _rows(path: pathlib.Path) -> list[list[str]]:
    """Of cells without blanks around them; empty lines are left out."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        lines = text.strip().splitlines() or [""]
        delimiter = next((sign for sign in _DELIMITERS if sign in lines[0]), ",")
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no delimited text in UTF-8: {error}") from error
    rows = [row for row in rows if any(row)]
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows
