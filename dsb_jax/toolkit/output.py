"""Where findings go: to a terminal, into a folder, onto a page."""

import json
import os
import pathlib
import warnings
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from dsb_jax.evaluation import page
from dsb_jax.toolkit.findings import Finding, to_json

_ROWS_SHOWN = 40
_DPI = 150


def text(found: Finding) -> str:
    """A table of at most `_ROWS_SHOWN` rows, and what it says.

    Example:
      >>> import numpy as np
      >>> from dsb_jax.toolkit import class_scales, points
      >>> print(text(class_scales.scales(points.of(np.eye(3), np.array([0, 0, 0])))))
      class  samples N  effective number  volume S′ (bits)  distance W  scale S
      0              3                 3              1.00       1.000    1.000
      <BLANKLINE>
      0 takes up 1.0 bits; of a single class there is no imbalance.
    """
    headings, rows = found.table()
    shown = [[" ".join(cell.split()) for cell in row] for row in (headings, *rows[:_ROWS_SHOWN])]
    widths = [max(len(row[column]) for row in shown) for column in range(len(headings))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in shown
    ]
    if len(rows) > _ROWS_SHOWN:
        lines.append(f"… and {len(rows) - _ROWS_SHOWN:,} more")
    return "\n".join(line.rstrip() for line in [*lines, "", " ".join(found.reading().split())])


def as_json(found: Finding, command: str, plots: Sequence[str] = ()) -> str:
    """All of a finding, after the command that made it, what it says and the names of its plots."""
    return to_json({"command": command, "reading": found.reading(), "plots": plots, **found.as_dict()}) + "\n"


def write_text(text: str, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a file, and its folder, whole or not at all.

    Returns:
      The path.

    Raises:
      OSError: it cannot be written; the error has its name.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return page.write(path, text)


def write(found: Finding, folder: str | os.PathLike[str], command: str) -> list[pathlib.Path]:
    """Writes ``<command>.json`` and a PNG for each figure, each whole or not at all.

    Plots that an earlier ``<command>.json`` names and this one has not, of another input, say, are removed.

    Returns:
      The paths.

    Raises:
      OSError: one cannot be written; the error has its name.
    """
    folder = pathlib.Path(folder)
    of_json, figures = folder / f"{command}.json", found.figures()
    drawn = {f"{command}.png" if name == command else f"{command}-{name}.png": plot for name, plot in figures.items()}
    older = _plots_named(of_json, command)
    paths = [write_text(as_json(found, command, list(drawn)), of_json)]
    paths += [write_figure(figure, folder / name) for name, (_, figure) in drawn.items()]
    for name in older - drawn.keys():
        (folder / name).unlink(missing_ok=True)
    return paths


def plots(paths: Sequence[pathlib.Path]) -> list[str]:
    """The names of those that are plots.

    Example:
      >>> plots([pathlib.Path("digits/scales.json"), pathlib.Path("digits/scales-radar.png")])
      ['scales-radar.png']
    """
    return [path.name for path in paths if path.suffix == ".png"]


def _plots_named(path: pathlib.Path, command: str) -> set[str]:
    """Those that an earlier call of the command has left, as its JSON names them."""
    try:
        paths = [pathlib.PurePath(name) for name in json.loads(path.read_text(encoding="utf-8"))["plots"]]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is not of this command
        return set()
    return {one.name for one in paths if one.suffix == ".png" and one.name.startswith(command) and one.name == str(one)}


def write_figure(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a PNG on white, whole or not at all.

    Returns:
      The path.

    Raises:
      OSError: it cannot be written; the error has its name.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # plots are for people; JSON has the names
            figure.savefig(unfinished, format="png", dpi=_DPI, facecolor="white")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path


def write_page(found: Sequence[tuple[str, Finding]], path: str | os.PathLike[str], title: str) -> pathlib.Path:
    """Writes a self-contained page with a section for each heading and finding.

    Returns:
      The path. The page appears whole or not at all; an older one is replaced.

    Raises:
      OSError: it cannot be written; the error has its name.
    """
    body = "\n".join(_section(number, heading, one) for number, (heading, one) in enumerate(found))
    return write_text(page.document(title, body), path)


def _section(number: int, heading: str, found: Finding) -> str:
    headings, rows = found.table()
    figures = {f"f{number}-{name}": figure for name, figure in found.figures().items()}
    reading = f'<p class="reading">{escape(found.reading())}</p>'
    return page.section(heading, reading, page.plots(figures), page.sortable_table(headings, rows))
