"""What the page of a table or figure shows beside its numbers: plots, each with a sentence that says what it is."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsb_jax.evaluation import drawing
from dsb_jax.evaluation.curves import RUNS
from dsb_jax.evaluation.drawing import ACCURACY, GREY, INK, SCALE, SMALL
from reproduction.measured import Measured, standard_error
from reproduction.targets import Cell, bases

Plot = tuple[str, Figure]

_MARKERS = "os^Dv<>P"


def of(measured: Measured) -> dict[str, Plot]:
    """Those that a page has, by name: what is not measured is left out."""
    drawn = {draw.__name__.replace("_", "-"): draw(measured) for draw in (differences, *measured.target.plots)}
    return {name: plot for name, plot in drawn.items() if plot is not None}


def differences(measured: Measured) -> Plot | None:
    """Those from the base in the first measure, those of the paper beside ours."""
    measure, heading = next(iter(measured.target.measures.items()))
    compared = [pair for pair in bases(measured.cells) if len(measured.differences(*pair, measure))]
    if not compared:
        return None
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
    return f"{heading} of each method less that of its base, with the same seeds; bars are standard errors.", figure


def _draw_differences(axes: Axes, measured: Measured, measure: str, pairs: Sequence[tuple[Cell, Cell]]) -> bool:
    """A line for each pair; whether the paper has numbers of them too."""
    places = np.arange(len(pairs))[::-1]
    found = [measured.differences(*pair, measure) for pair in pairs]
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.errorbar(
        [each.mean() for each in found],
        places,
        xerr=[np.nan_to_num(standard_error(each)) for each in found],
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


def weak_classes(measured: Measured) -> Plot | None:
    """The accuracy of each class by every model, one line a model: where they agree, all fall together (Figure 4)."""
    scores = _of_classes(measured, "score")
    if len(scores) < 2:
        return None
    names = sorted(set.intersection(*map(set, scores.values())), key=lambda name: _mean(scores, name))
    figure, (axes,) = drawing.lists_of_axes([len(names)])
    colours = drawing.FEW_TO_MANY(np.linspace(0, 1, len(scores)))
    for (on, of_class), colour, marker in zip(scores.items(), colours, itertools.cycle(_MARKERS), strict=False):
        values = [100 * of_class[name] for name in names]
        axes.plot(values, np.arange(len(names)), f"{marker}-", color=colour, markersize=4, linewidth=1, label=on)
    _name_classes(axes, names)
    axes.set_xlabel("accuracy of the class, %", fontsize=SMALL, color=INK)
    drawing.title(axes, "Accuracy of classes by model", legend_lines=len(scores))
    drawing.legend(axes, columns=1)
    return (
        "Accuracy of each class by every model, mean over seeds; the class that is weakest on the whole below.",
        figure,
    )


def beside_scale(measured: Measured) -> Plot | None:
    """The accuracy of each class beside its scale and number of samples, as parts of the largest (Figure 3)."""
    scores = _of_classes(measured, "score")
    scores = {on: of_class for on, of_class in scores.items() if len(of_class) <= drawing.NAMED_CLASSES}
    if not scores:
        return None
    others = ((SCALE, "s", "S / max S", "scale_of_class"), (GREY, "^", "N / max N", "samples"))
    figure, every = drawing.lists_of_axes([len(of_class) for of_class in scores.values()])
    for axes, (on, of_class) in zip(every, scores.items(), strict=True):
        names = list(reversed(of_class))  # as the dataset has them, the first one above
        places = np.arange(len(names))
        axes.plot([of_class[name] for name in names], places, "o-", color=ACCURACY, markersize=4, label="accuracy")
        for colour, marker, label, column in others:
            values = _of_classes(measured, column)[on]
            parts = np.array([values.get(name, math.nan) for name in names]) / max(values.values())
            axes.plot(parts, places, f"{marker}-", color=colour, markersize=4, linewidth=1, label=label)
        _name_classes(axes, names)
        drawing.title(axes, on, legend_lines=int(axes is every[0]))
    drawing.legend(every[0], columns=3)
    every[-1].set_xlabel("accuracy, and parts of the largest", fontsize=SMALL, color=INK)
    return "Accuracy, semantic scale and number of samples of each class, mean over seeds.", figure


def by_number(measured: Measured) -> Plot | None:
    """Top-1 and the sum of volumes by how many samples each class has (Figure 2, right)."""
    series: dict[str, list[Cell]] = {}
    for cell in filter(measured.has, measured.cells):
        series.setdefault(re.sub(r", \d+ of each", "", cell.on), []).append(cell)
    if not series:
        return None
    figure, (above, below) = drawing.stacked_axes(2)
    looks = itertools.cycle(zip(RUNS, _MARKERS, strict=False))
    for (name, cells), (colour, marker) in zip(series.items(), looks, strict=False):
        number = [cell.configured().images_per_class for cell in cells]
        for axes, measure in ((above, "top1"), (below, "sum_of_volumes")):
            found = [list(measured.values(cell, measure).values()) for cell in cells]
            means, errors = np.array([(np.mean(values), standard_error(values)) for values in found]).T
            unit = 1 if axes is above else means.max()  # volumes of ten and of a hundred classes have one axis
            style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1, "label": name}
            axes.errorbar(number, means / unit, np.nan_to_num(errors) / unit, **style)
    above.set_ylabel("top-1, %")
    below.set_ylabel("sum of S′ / largest")
    below.set_xlabel("images of each class")
    drawing.logarithmic_if_wide(
        below, "x", np.array([c.configured().images_per_class for cs in series.values() for c in cs])
    )
    drawing.title(above, "By number of samples", legend_lines=math.ceil(len(series) / 2))
    drawing.legend(above)
    return "Top-1 and the sum of the classes' volumes by number of images; bars are standard errors.", figure


def _of_classes(measured: Measured, column: str) -> Mapping[str, Mapping[str, float]]:
    """Of every model, the classes' means over its runs."""
    found: dict[str, dict[str, list[float]]] = {}
    for (on, _, _), of_class in measured.by_class(column).items():
        for name, value in of_class.items():
            found.setdefault(on, {}).setdefault(name, []).append(value)
    return {on: {name: float(np.mean(values)) for name, values in of_class.items()} for on, of_class in found.items()}


def _mean(scores: Mapping[str, Mapping[str, float]], name: str) -> float:
    return float(np.mean([of_class[name] for of_class in scores.values()]))


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(np.arange(len(names)), [drawing.short(name) for name in names], fontsize=SMALL, color=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
