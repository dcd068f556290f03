"""The page of a table or figure: the paper's numbers beside ours, and a paired test of every method against its base.

The same tables make Markdown, for where the project is read, and HTML, which has plots too.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsb_jax.evaluation import drawing, page, paired
from dsb_jax.evaluation.drawing import ACCURACY, INK, SCALE, SMALL
from dsb_jax.toolkit.output import write_figure
from reproduction.targets import Cell, Target, bases

# How names of measures begin that are no fractions.
_NO_FRACTIONS = ("r_N", "r_En", "r_W", "r_S", "sum_of_volumes")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What runs of one target at one scale found.

    Attributes:
      target: the table or figure.
      name: its name.
      scale: at which it was studied.
      rows: of results, as :mod:`reproduction.runs` writes them.
    """

    target: Target
    name: str
    scale: str
    rows: Sequence[Mapping[str, str]]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Those of the scale."""
        return self.target.cells[self.scale]

    @classmethod
    def of(cls, target: Target, name: str, scale: str, rows: Sequence[Mapping[str, str]]) -> "Measured":
        """With those rows that are of cells that the target has at this scale."""
        cells = {(cell.on, cell.method) for cell in target.cells.get(scale, ())}
        return cls(target, name, scale, [row for row in rows if (row["on"], row["method"]) in cells])

    def values(self, cell: Cell, measure: str) -> dict[str, float]:
        """A measure of a cell's runs by seed, in the paper's units."""
        unit = 100 if _in_percent(measure) else 1
        return {
            row["seed"]: unit * float(row[measure])
            for row in self.rows
            if (row["on"], row["method"]) == (cell.on, cell.method) and row.get(measure)
        }

    def has(self, cell: Cell) -> bool:
        """Whether a run of the cell found something."""
        return any(self.values(cell, measure) for measure in self.target.measures)

    def differences(self, cell: Cell, base: Cell, measure: str) -> np.ndarray:
        """Those of runs of the same seed."""
        ours, others = self.values(cell, measure), self.values(base, measure)
        return np.array([ours[seed] - others[seed] for seed in sorted(ours) if seed in others])


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
    return made


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


def markdown(measured: Measured, plots: Mapping[str, str] | None = None) -> str:
    """The page as Markdown, with plots by file name: their captions."""
    parts = [f"# {_title(measured)}", *_remarks(measured)]
    for heading, headings, rows in tables(measured):
        lines = [headings, ("---", *["---:"] * (len(headings) - 1)), *rows]
        parts += [f"## {heading}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += [f"![{caption}]({name})" for name, caption in (plots or {}).items()]
    return "\n\n".join(parts) + "\n"


def html(measured: Measured, plots: Mapping[str, tuple[str, Figure]]) -> str:
    """The page as HTML, with its plots, which needs no other file."""
    sections = [f'<p class="reading">{escape(remark)}</p>' for remark in _remarks(measured)]
    sections += [page.section(heading, _table(headings, rows)) for heading, headings, rows in tables(measured)]
    return page.document(_title(measured), "\n".join([*sections, page.section("Plots", page.plots(dict(plots)))]))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return page.table(headings, rows, texts=[place for place, heading in enumerate(headings) if heading == "on"])


def figures(measured: Measured) -> dict[str, tuple[str, Figure]]:
    """Differences from the base in the first measure, those of the paper beside ours."""
    measure, heading = next(iter(measured.target.measures.items()))
    compared = [pair for pair in bases(measured.cells) if len(measured.differences(*pair, measure))]
    if not compared:
        return {}
    of_datasets = {
        on: [pair for pair in compared if pair[0].on == on] for on in dict.fromkeys(c.on for c, _ in compared)
    }
    figure, every = drawing.lists_of_axes([len(pairs) for pairs in of_datasets.values()])
    for axes, (on, pairs) in zip(every, of_datasets.items(), strict=True):
        with_paper = _draw_differences(axes, measured, measure, pairs)
        first = axes is every[0]
        drawing.title(axes, on, legend_lines=int(first and with_paper))
        if first and with_paper:
            drawing.legend(axes)
    every[-1].set_xlabel(f"{heading}: points above the base", fontsize=SMALL, color=INK)
    caption = f"{heading} of each method less that of its base, with the same seeds; bars are standard errors."
    return {"differences": (caption, figure)}


def _draw_differences(axes: Axes, measured: Measured, measure: str, pairs: Sequence[tuple[Cell, Cell]]) -> bool:
    """A line for each pair; whether the paper has numbers of them too."""
    places = np.arange(len(pairs))[::-1]
    differences = [measured.differences(*pair, measure) for pair in pairs]
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.errorbar(
        [each.mean() for each in differences],
        places,
        xerr=[np.nan_to_num(standard_error(each)) for each in differences],
        fmt="o",
        color=ACCURACY,
        markersize=4,
        label="measured",
    )
    axes.set_yticks(places, [cell.method for cell, _ in pairs], fontsize=SMALL, color=INK)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    paper = [cell.printed.get(measure, math.nan) - base.printed.get(measure, math.nan) for cell, base in pairs]
    if np.isfinite(paper).any():
        axes.plot(paper, places, "D", color=SCALE, markersize=4, label="paper")
    return bool(np.isfinite(paper).any())


def standard_error(values: Iterable[float]) -> float:
    """Of the mean; NaN for fewer than two.

    Example:
      >>> round(standard_error([1.0, 2.0, 3.0]), 4)
      0.5774
    """
    values = np.asarray(list(values), float)
    return float(paired.deviation(values) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def _title(measured: Measured) -> str:
    name = re.sub(r"(?<=[a-z])(?=\d)", " ", measured.name).replace("-", ", ").capitalize()
    return f"{name}: {measured.target.title} ({measured.scale})"


def _remarks(measured: Measured) -> list[str]:
    """What a reader has to know before the numbers."""
    seeds = ", ".join(sorted({row["seed"] for row in measured.rows}, key=int))
    commits = ", ".join(dict.fromkeys(_short(commit) for row in measured.rows for commit in row["commit"].split()))
    runs = f"{len(measured.rows)} runs, seeds {seeds}; {_all(measured, 'hardware')}; commit {commits}"
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
    parts = [row["numbers"] for row in measured.rows if row["numbers"] != "true"]
    part = [f"Not the whole dataset: {'; '.join(dict.fromkeys(parts))}."] if parts else []
    note = measured.target.notes.get(measured.scale)
    changed = _changed(measured)
    more = [f"Trained with other settings than the study's (--set): {'; '.join(changed)}."] if changed else []
    return [*([note] if note else []), *more, *part, f"{runs}. {explained}"]


def _changed(measured: Measured) -> list[str]:
    """What runs were told besides the settings of their cells, each once."""
    of_cells = {(cell.on, cell.method): cell.settings for cell in measured.cells}
    more = {row["settings"].removeprefix(of_cells[row["on"], row["method"]]).strip(",") for row in measured.rows}
    return sorted(filter(None, more))


def _apart(measured: Measured, cell: Cell, base: Cell) -> bool:
    """Whether a run of one seed saw other training images than that of its base."""
    subsets = {(row["on"], row["method"], row["seed"]): row.get("subset") for row in measured.rows}
    pairs = [
        (subsets.get((cell.on, cell.method, seed)), subsets.get((base.on, base.method, seed))) for *_, seed in subsets
    ]
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def _short(commit: str) -> str:
    """As Git abbreviates it, with what says that files were changed."""
    return re.sub("^([0-9a-f]{7})[0-9a-f]+", r"\1", commit)


def _all(measured: Measured, column: str) -> str:
    return ", ".join(dict.fromkeys(row[column] for row in measured.rows))


def _known(measured: Measured, cell: Cell, base: Cell) -> bool:
    return any(len(measured.differences(cell, base, measure)) for measure in measured.target.measures)


def _in_percent(measure: str) -> bool:
    return not measure.startswith(_NO_FRACTIONS)


def _number(value: float, measure: str, *, sign: bool = False) -> str:
    digits = 1 if _in_percent(measure) or measure == "sum_of_volumes" else 3
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
    plots = figures(measured)
    drawn = {folder / f"{stem.name}-{name}.png": plot for name, plot in plots.items()}
    captions = {path.name: caption for path, (caption, _) in drawn.items()}
    return [
        page.write(stem.with_suffix(".md"), markdown(measured, captions)),
        page.write(stem.with_suffix(".html"), html(measured, plots)),
        *(write_figure(figure, path) for path, (_, figure) in drawn.items()),
    ]
