"""The page of a table or figure: the paper's numbers beside ours, and a paired test of every method against its base.

The same tables make Markdown, for where the project is read, and HTML, which has plots too.
"""

import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from dsb_jax.evaluation import page, paired
from dsb_jax.toolkit.output import write_figure
from reproduction import plots
from reproduction.measured import Measured, in_percent, standard_error
from reproduction.targets import Cell, bases

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables(measured: Measured) -> list[Table]:
    """Heading, column headings and rows: of every dataset its methods, and then the differences from bases."""
    made = []
    for on in dict.fromkeys(cell.on for cell in measured.cells):
        cells = [cell for cell in measured.cells if cell.on == on]
        if any(map(measured.has, cells)):
            made.append(_levels(measured, on, cells))
    compared = [pair for pair in bases(measured.cells) if _known(measured, *pair)]
    if compared:
        made.append(_differences(measured, compared))
    return [*made, *_subsets(measured)]


def _levels(measured: Measured, on: str, cells: Sequence[Cell]) -> Table:
    measures = measured.target.measures
    has_printed = any(cell.printed for cell in cells)
    cells = [cell for cell in cells if cell.printed or measured.has(cell)]
    headings = ["method", "runs"]
    for heading in measures.values():
        headings += [heading, f"{heading}, paper"] if has_printed else [heading]
    rows = []
    for cell in cells:
        line = [cell.method, str(max((len(measured.values(cell, measure)) for measure in measures), default=0))]
        for measure in measures:
            line.append(_mean_and_error(list(measured.values(cell, measure).values()), measure))
            if has_printed:
                line.append(_number(cell.printed.get(measure, math.nan), measure))
        rows.append(tuple(line))
    return on, tuple(headings), rows


def _differences(measured: Measured, compared: Sequence[tuple[Cell, Cell]]) -> Table:
    has_printed = any(cell.printed and base.printed for cell, base in compared)
    headings = ["method − base", "on", "seeds"]
    for heading in measured.target.measures.values():
        headings += [heading, "p", f"{heading}, paper"] if has_printed else [heading, "p"]
    rows = []
    for cell, base in compared:
        found = {measure: measured.differences(cell, base, measure) for measure in measured.target.measures}
        line = [f"{cell.method} − {base.method}", cell.on, str(max(map(len, found.values())))]
        for measure, differences in found.items():
            line += [_mean_and_error(differences, measure, sign=True), _p(differences)]
            if has_printed:
                both = cell.printed.get(measure, math.nan) - base.printed.get(measure, math.nan)
                line.append(_number(both, measure, sign=True))
        rows.append(tuple(line))
    return "Differences", tuple(headings), rows


def _subsets(measured: Measured) -> list[Table]:
    """Which images were trained on; the lists themselves are in the runs' folders."""
    seeds = sorted({row["seed"] for row in measured.rows}, key=int)
    digests = defaultdict(lambda: defaultdict(dict))
    for row in measured.rows:
        if row.get("subset"):
            digests[row["on"]][row["seed"]][row["subset"]] = None
    rows = [(on, *(" or ".join(of_seed[seed]) or "–" for seed in seeds)) for on, of_seed in digests.items()]
    headings = ("on", *(f"seed {seed}" for seed in seeds))
    return [("Training images: digests of train_indices.npy", headings, rows)] if rows else []


def markdown(measured: Measured, captions: Mapping[str, str] | None = None) -> str:
    """The page as Markdown, with plots by file name: what they show."""
    parts = [f"# {_title(measured)}", *_remarks(measured)]
    for heading, headings, rows in tables(measured):
        lines = [headings, ("---", *["---:"] * (len(headings) - 1)), *rows]
        parts += [f"## {heading}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += [f"![{caption}]({name})" for name, caption in (captions or {}).items()]
    return "\n\n".join(parts) + "\n"


def html(measured: Measured, drawn: Mapping[str, tuple[str, Figure]]) -> str:
    """The page as HTML, with its plots, which needs no other file."""
    sections = [f'<p class="reading">{escape(remark)}</p>' for remark in _remarks(measured)]
    sections += [page.section(heading, _table(headings, rows)) for heading, headings, rows in tables(measured)]
    return page.document(_title(measured), "\n".join([*sections, page.section("Plots", page.plots(dict(drawn)))]))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return page.table(headings, rows, texts=[place for place, heading in enumerate(headings) if heading == "on"])


def _title(measured: Measured) -> str:
    name = re.sub(r"(?<=[a-z])(?=\d)", " ", measured.name).replace("-", ", ").capitalize()
    return f"{name}: {measured.target.title} ({measured.scale})"


def _remarks(measured: Measured) -> list[str]:
    """What a reader has to know before the numbers."""
    seeds = ", ".join(sorted({row["seed"] for row in measured.rows}, key=int))
    commits = ", ".join(dict.fromkeys(_short(commit) for row in measured.rows for commit in row["commit"].split()))
    runs = f"{len(measured.rows)} runs, seeds {seeds}; {_all(measured, 'hardware')}; {_all(measured, 'versions')}; "
    runs += f"commit {commits}"
    having = sum(map(measured.has, measured.cells))
    runs += f"; {having} of {len(measured.cells)} cells" if having < len(measured.cells) else ""
    explained = (
        "Mean ± standard error over seeds, of the last epoch; p is of a paired t-test over seeds, and not corrected "
        "for the number of tests. A method and its base differ in the balancer alone: same subset, order of examples "
        "and first weights."
    )
    apart = sorted(
        {f"{cell.method} and {base.method}" for cell, base in bases(measured.cells) if _apart(measured, cell, base)}
    )
    explained += f" But {', '.join(apart)} were trained on other subsets of the data." if apart else ""
    told = sorted(
        {f"{cell.method} and {base.method}" for cell, base in bases(measured.cells) if _told(measured, cell, base)}
    )
    explained += f" {', '.join(told)} are not compared where --set told them different things." if told else ""
    parts = [row["numbers"] for row in measured.rows if row["numbers"] != "true"]
    part = [f"Not the whole dataset: {'; '.join(dict.fromkeys(parts))}."] if parts else []
    note = measured.target.notes.get(measured.scale)
    changed = _changed(measured)
    more = [f"Trained with other settings than the study's (--set): {'; '.join(changed)}."] if changed else []
    return [*([note] if note else []), *more, *part, f"{runs}. {explained}"]


def _changed(measured: Measured) -> list[str]:
    """What runs were told besides the settings of their cells, each once."""
    more = (measured.changes(row).items() for row in measured.rows)
    return sorted({",".join(f"{name}={value}" for name, value in items) for items in more if items})


def _apart(measured: Measured, cell: Cell, base: Cell) -> bool:
    """Whether a run of one seed saw other training images than that of its base."""
    subsets = {(row["on"], row["method"], row["seed"]): row.get("subset") for row in measured.rows}
    pairs = [
        (subsets.get((cell.on, cell.method, seed)), subsets.get((base.on, base.method, seed))) for *_, seed in subsets
    ]
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def _told(measured: Measured, cell: Cell, base: Cell) -> bool:
    """Whether runs of one seed cannot be compared for what they were told."""
    seeds = {row["seed"] for row in measured.rows}
    return any(not measured.comparable((cell, base), seed) for seed in seeds)


def _short(commit: str) -> str:
    """As Git abbreviates it, with what says that files were changed."""
    return re.sub("^([0-9a-f]{7})[0-9a-f]+", r"\1", commit)


def _all(measured: Measured, column: str) -> str:
    return " and ".join(dict.fromkeys(row[column] for row in measured.rows))


def _known(measured: Measured, cell: Cell, base: Cell) -> bool:
    return any(len(measured.differences(cell, base, measure)) for measure in measured.target.measures)


def _number(value: float, measure: str, *, sign: bool = False) -> str:
    digits = 1 if in_percent(measure) or measure == "sum_of_volumes" else 3
    return page.number(value, f"{{:{'+' if sign else ''}.{digits}f}}")


def _mean_and_error(values: Sequence[float], measure: str, *, sign: bool = False) -> str:
    values = np.asarray(list(values), float)
    if not len(values):
        return "–"
    error = standard_error(values)
    mean = _number(float(values.mean()), measure, sign=sign)
    return mean if math.isnan(error) else f"{mean} ± {_number(error, measure)}"


def _p(differences: np.ndarray) -> str:
    return page.number(paired.t_test(differences), "{:.3f}")


def write(measured: Measured, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes ``<name>-<scale>.md`` with a ``.png`` for each plot, and ``.html``."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{measured.name}-{measured.scale}"
    drawn = plots.of(measured)
    paths = {folder / f"{stem.name}-{name}.png": plot for name, plot in drawn.items()}
    captions = {path.name: caption for path, (caption, _) in paths.items()}
    return [
        page.write(stem.with_suffix(".md"), markdown(measured, captions)),
        page.write(stem.with_suffix(".html"), html(measured, drawn)),
        *(write_figure(figure, path) for path, (_, figure) in paths.items()),
    ]
