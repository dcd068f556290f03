"""Plots of a run, class by class, as matplotlib figures that the pages and the toolkit share.

Each function returns a new `matplotlib.figure.Figure`. Up to `drawing.NAMED_CLASSES` classes are written out by name;
more are drawn as clouds, areas and images, readable up to thousands.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dsb_jax.evaluation import drawing, metrics
from dsb_jax.evaluation.drawing import ACCURACY, INK, NAMED_CLASSES, SCALE, SMALL, TEXT, VECTOR_POINTS
from dsb_jax.evaluation.metrics import class_correlation, vectors

ANNOTATED_CLASSES = 20  # a larger confusion matrix has no room for numbers
RADAR_CLASSES = 24  # a radar of more has no room for names

_IMAGE_CELLS = 200  # a larger confusion matrix is shown in blocks


def accuracy_against(
    measure: ArrayLike,
    class_accuracy: ArrayLike,
    *,
    measure_name: str,
    class_names: Sequence[str],
    score_name: str = "accuracy",
) -> Figure:
    """Class accuracy against a measure of the classes, with Pearson's r.

    The axis of the measure is logarithmic where its largest value is ten times its smallest positive one or
    more; r is that of the values as they are.

    Args:
      measure: ``[C]``, such as training samples or semantic scales; a class with NaN is left out.
      class_accuracy: fractions ``[C]``; a class with NaN is left out.
      measure_name: what to call the measure, with its unit if it has one.
      class_names: C names.
      score_name: what to call the accuracy, which may be another fraction.

    Returns:
      The figure.

    Raises:
      ValueError: if lengths differ.

    Example:
      >>> figure = accuracy_against([100, 9], [0.9, 0.4], measure_name="training samples", class_names="ab")
      >>> figure.axes[0].get_xscale()
      'log'
    """
    measure, accuracy = vectors(measure=measure, class_accuracy=class_accuracy)
    drawing.check_names(class_names, len(accuracy))
    r = class_correlation(accuracy, measure)
    shown = np.isfinite(measure) & np.isfinite(accuracy)
    x, y = measure[shown], accuracy[shown]

    figure, axes = drawing.figure_and_axes()
    named = len(accuracy) <= NAMED_CLASSES
    # Above the lines that lead to the labels.
    size, opacity = (28, 1.0) if named else (14, 0.7)
    rasterized = len(x) > VECTOR_POINTS
    axes.scatter(x, y, s=size, color=ACCURACY, alpha=opacity, linewidths=0, zorder=4, rasterized=rasterized)
    axes.margins(0.08)
    drawing.logarithmic_if_wide(axes, "x", x)
    drawing.percent(axes, y)
    axes.set_xlabel(measure_name, parse_math=False)
    axes.set_ylabel(f"class {score_name}")
    verdict = "r undefined" if np.isnan(r) else f"r = {r:.2f}".replace("-", "−")
    drawing.title(axes, f"{_capital(score_name)} against {measure_name}: {verdict}")
    if named:
        drawing.label_points(axes, x, y, [name for name, kept in zip(class_names, shown, strict=True) if kept])
    return figure


def accuracy_by_class(
    class_accuracy: ArrayLike,
    counts: ArrayLike,
    *,
    scales: ArrayLike | None = None,
    class_names: Sequence[str],
    score_name: str = "accuracy",
    sizes_name: str = "training samples",
) -> Figure:
    """Accuracy of each class, from most to fewest training samples, with its semantic scale beside it.

    Args:
      class_accuracy: fractions ``[C]``; NaN for classes without test samples, which get no bar.
      counts: training samples ``[C]``.
      scales: semantic scales ``[C]``, drawn relative to the largest; NaN or None where not measured.
      class_names: C names.
      score_name: what to call the accuracy, which may be another fraction.
      sizes_name: what to call the counts.

    Returns:
      The figure: bars with names, or for many classes an area, with means over neighbouring classes.

    Raises:
      ValueError: if lengths differ.

    Example:
      >>> figure = accuracy_by_class([0.9, 0.4], [9, 100], class_names=["cat", "dog"])
      >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
      ['dog (100)', 'cat (9)']
    """
    scales = np.full(np.shape(class_accuracy), np.nan) if scales is None else scales
    accuracy, counts, scales = vectors(class_accuracy=class_accuracy, counts=counts, scales=scales)
    drawing.check_names(class_names, len(accuracy))
    order = np.argsort(-counts, kind="stable")
    relative = _relative(scales)
    if len(accuracy) <= NAMED_CLASSES:
        names = [f"{drawing.short(class_names[i])} ({counts[i]:g})" for i in order]
        return _class_bars(accuracy[order], relative[order], names, score_name, sizes_name)
    return _class_area(accuracy[order], relative[order], counts[order], score_name, sizes_name)


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, counts: ArrayLike, *, class_names: Sequence[str]
) -> Figure:
    """What each class is taken for: a row for each true class, a column for each predicted one.

    Both from most to fewest training samples, so that a bias towards frequent classes is a shade left of the diagonal.
    Fractions of a row are opacities, of errors by their square root and relative to the largest: also few errors show.

    Args:
      labels: true classes, integers ``[n]`` in ``[0, C)``.
      predictions: predicted classes, the same.
      counts: training samples ``[C]``.
      class_names: C names.

    Returns:
      The figure: with numbers for up to `ANNOTATED_CLASSES` classes, an image for more, of blocks of
      `classes_per_cell` neighbours where they are hundreds.

    Raises:
      ValueError: if lengths differ or a class is out of range.

    Example:
      >>> figure = confusion_matrix([0, 0, 1, 1], [0, 1, 1, 1], [9, 100], class_names=["cat", "dog"])
      >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
      ['dog (100)', 'cat (9)']
    """
    (counts,) = vectors(counts=counts)
    drawing.check_names(class_names, len(counts))
    order = np.argsort(-counts, kind="stable")
    block = classes_per_cell(len(counts))
    right, wrong = _rates(labels, predictions, order, block)

    cells = len(right)
    figure, axes = drawing.figure_and_axes(height=max(3.2, min(5.6, 1.5 + 0.3 * cells)))
    axes.grid(visible=False)
    most = wrong.max(initial=0.0)
    right = np.diag(right)
    for rates, opacity, colour in ((wrong, np.sqrt(wrong / (most or 1.0)), SCALE), (right, right, ACCURACY)):
        shade = np.where(rates > 0, 0.06 + 0.6 * opacity, 0.0)  # weaker than ink on any page: numbers stay readable
        pixels = np.concatenate([np.broadcast_to(to_rgb(colour), (cells, cells, 3)), shade[..., None]], axis=2)
        axes.imshow(pixels, interpolation="none", aspect="auto")
    if cells <= ANNOTATED_CLASSES:
        _annotate_cells(axes, wrong + right)
    if len(order) <= NAMED_CLASSES:
        _name_cells(axes, [drawing.short(class_names[i]) for i in order], counts[order])
    else:
        _rank_cells(axes, counts[order], block)
    drawing.figure_title(figure, f"Right in blue, wrong in orange (at most {most:.1%} of a row)")
    return figure


def classes_per_cell(num_classes: int) -> int:
    """How many neighbouring classes share a cell of `confusion_matrix`.

    Example:
      >>> classes_per_cell(100), classes_per_cell(1000)
      (1, 5)
    """
    return -(-num_classes // _IMAGE_CELLS)


def scales_and_samples(scales: ArrayLike, counts: ArrayLike, *, class_names: Sequence[str]) -> Figure:
    """A radar of the classes' semantic scales and numbers of samples, each relative to its largest.

    The paper's Figure 7. Classes go round from most to fewest training samples; of more than `RADAR_CLASSES`, so many
    are shown, at even distances in that order, the first and the last among them.

    Args:
      scales: semantic scales ``[C]``, NaN where not measured.
      counts: training samples ``[C]``.
      class_names: C names.

    Returns:
      The figure.

    Raises:
      ValueError: if lengths differ.

    Example:
      >>> figure = scales_and_samples([1.2, 0.9, 1.5], [9, 100, 50], class_names=["cat", "dog", "cow"])
      >>> [line.get_label() for line in figure.axes[0].lines]
      ['samples', 'semantic scale']
    """
    scales, counts = vectors(scales=scales, counts=counts)
    drawing.check_names(class_names, len(counts))
    order = np.argsort(-counts, kind="stable")
    if len(order) > RADAR_CLASSES:
        order = order[np.linspace(0, len(order) - 1, RADAR_CLASSES).round().astype(int)]
    angles = np.linspace(0, 2 * np.pi, len(order), endpoint=False)

    figure = Figure(figsize=(drawing.WIDTH, 4.8), layout="constrained")
    axes: Any = figure.subplots(subplot_kw={"projection": "polar"})  # PolarAxes, says what is drawn on
    drawing.style(axes)
    axes.spines["polar"].set(visible=True, edgecolor=INK, alpha=0.3)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    for values, colour, dashes, name in (
        (counts, ACCURACY, (0, (4, 1.5)), "samples"),
        (scales, SCALE, "-", "semantic scale"),
    ):
        radius = _relative(values)[order]
        closed = np.append(angles, angles[:1]), np.append(radius, radius[:1])
        axes.plot(*closed, color=colour, linestyle=dashes, linewidth=1.8, marker=".", markersize=5, label=name)
        axes.fill(*closed, color=colour, alpha=0.1, linewidth=0)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0.25, 0.5, 0.75, 1], ["", "0.5", "", "1"], fontsize=SMALL - 1)
    axes.set_rlabel_position(np.degrees(angles[1]) / 2 if len(order) > 1 else 0)
    _names_around(axes, angles, [drawing.short(class_names[i], 14) for i in order])
    legend = figure.legend(
        title="Semantic scale and number of samples, relative to the largest",
        alignment="left",
        loc="outside upper left",  # of the figure: above the names, which are above the circle
        ncols=2,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderpad=0,
    )
    legend.get_title().set(color=INK, fontsize=TEXT + 1)
    return figure


def accuracy_differences(
    differences: ArrayLike,
    counts: ArrayLike,
    *,
    spread: ArrayLike | None = None,
    title: str,
    class_names: Sequence[str],
    score_name: str = "accuracy",
    sizes_name: str = "training samples",
) -> Figure:
    """Differences in accuracy, from the class with most training samples to the one with fewest.

    Args:
      differences: of fractions ``[C]``; NaN for classes without test samples, which get no bar.
      counts: training samples ``[C]``.
      spread: standard deviations over seeds ``[C]``, drawn where classes are few enough for names.
      title: what is compared with what.
      class_names: C names.
      score_name: what to call the accuracy, which may be another fraction.
      sizes_name: what to call the counts.

    Returns:
      The figure: bars with names, or for many classes an area, with means over neighbouring classes.

    Raises:
      ValueError: if lengths differ.

    Example:
      >>> figure = accuracy_differences([0.1, -0.02], [9, 100], title="b - a", class_names=["cat", "dog"])
      >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
      [-0.02, 0.1]
    """
    spread = np.full(np.shape(differences), np.nan) if spread is None else spread
    differences, counts, spread = vectors(differences=differences, counts=counts, spread=spread)
    drawing.check_names(class_names, len(counts))
    order = np.argsort(-counts, kind="stable")
    differences, spread = differences[order], spread[order]
    points = ticker.FuncFormatter(lambda value, _: f"{100 * value:+.3g}".replace("-", "−") if value else "0")
    if len(order) <= NAMED_CLASSES:
        names = [f"{drawing.short(class_names[i])} ({counts[i]:g})" for i in order]
        figure, axes = _difference_bars(differences, spread, names)
        axes.xaxis.set_major_formatter(points)
        axes.set_xlabel(f"difference in {score_name} (points)")
        drawing.figure_title(figure, title)
    else:
        figure, axes, width = _difference_area(differences, counts[order], sizes_name)
        axes.yaxis.set_major_formatter(points)
        axes.set_ylabel(f"difference in {score_name} (points)")
        drawing.figure_title(figure, f"{title}; line: mean of {width} neighbours")
    return figure


def _difference_bars(differences: np.ndarray, spread: np.ndarray, names: list[str]) -> tuple[Figure, Axes]:
    figure, axes = drawing.figure_and_axes(height=1.1 + 0.19 * len(names))
    rows = np.arange(len(names))
    colours = np.where(differences < 0, SCALE, ACCURACY)
    axes.barh(rows, np.nan_to_num(differences), height=0.72, color=colours)
    known = np.isfinite(differences) & np.isfinite(spread)
    axes.errorbar(differences[known], rows[known], xerr=spread[known], fmt="none", ecolor=INK, elinewidth=0.9)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(rows, names, fontsize=SMALL, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.06)
    return figure, axes


def _difference_area(differences: np.ndarray, counts: np.ndarray, sizes_name: str) -> tuple[Figure, Axes, int]:
    figure, axes = drawing.figure_and_axes()
    rank = np.arange(1, len(counts) + 1)
    width = max(5, len(counts) // 25)
    filled, rasterized = np.nan_to_num(differences), len(rank) > VECTOR_POINTS
    for part, colour in ((np.maximum(filled, 0), ACCURACY), (np.minimum(filled, 0), SCALE)):
        axes.fill_between(rank, part, step="mid", color=colour, alpha=0.45, linewidth=0, rasterized=rasterized)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.plot(rank, drawing.running_mean(differences, width), color=INK, linewidth=1.8)
    _rank_axis(axes, counts, sizes_name)
    return figure, axes, width


def _class_bars(
    accuracy: np.ndarray, relative: np.ndarray, names: list[str], score_name: str, sizes_name: str
) -> Figure:
    figure, axes = drawing.figure_and_axes(height=1.1 + 0.19 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows, np.nan_to_num(accuracy), height=0.72, color=ACCURACY, label=score_name)
    if np.isfinite(relative).any():
        axes.plot(
            relative,
            rows,
            linestyle="none",
            marker="D",
            markersize=5,
            color=SCALE,
            markeredgecolor="white",
            markeredgewidth=0.8,
            label="semantic scale, relative to the largest",
        )
    axes.set_yticks(rows, names, fontsize=SMALL, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.03)
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    drawing.title(axes, f"{_capital(score_name)} by class ({sizes_name})", legend_lines=2)
    drawing.legend(axes, columns=1)
    return figure


def _class_area(
    accuracy: np.ndarray, relative: np.ndarray, counts: np.ndarray, score_name: str, sizes_name: str
) -> Figure:
    figure, axes = drawing.figure_and_axes()
    rank = np.arange(1, len(accuracy) + 1)
    width = max(5, len(accuracy) // 25)
    rasterized = len(rank) > VECTOR_POINTS
    filled = np.nan_to_num(accuracy)
    axes.fill_between(rank, filled, step="mid", color=ACCURACY, alpha=0.3, linewidth=0, rasterized=rasterized)
    axes.plot(rank, drawing.running_mean(accuracy, width), color=ACCURACY, linewidth=2, label=score_name)
    if np.isfinite(relative).any():
        smooth = drawing.running_mean(relative, width)
        label = "semantic scale, relative to the largest"
        axes.plot(rank, smooth, color=SCALE, linewidth=2, linestyle=(0, (4, 1.5)), label=label)
    _rank_axis(axes, counts, sizes_name)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    drawing.title(axes, f"{_capital(score_name)} by class; lines are means of {width} neighbours", legend_lines=2)
    drawing.legend(axes, columns=1)
    return figure


def _name_cells(axes: Axes, names: list[str], counts: np.ndarray) -> None:
    axes.set_yticks(range(len(names)), [f"{name} ({count:g})" for name, count in zip(names, counts, strict=True)])
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(parse_math=False, fontsize=SMALL if len(names) <= ANNOTATED_CLASSES else SMALL - 1)
    axes.tick_params(length=0)
    axes.set_ylabel("true class (training samples)")
    axes.set_xlabel("predicted class")


def _rank_cells(axes: Axes, counts: np.ndarray, block: int) -> None:
    ticks = np.unique(np.linspace(0, len(counts) - 1, 6).round().astype(int))
    axes.set_xticks(ticks // block, ticks + 1)
    axes.set_yticks(ticks // block, [f"{i + 1} ({counts[i]:g})" for i in ticks])
    axes.tick_params(length=0)
    axes.set_ylabel("rank of the true class (samples)")
    axes.set_xlabel("rank of the predicted class by training samples")


def _names_around(axes: Axes, angles: np.ndarray, names: list[str]) -> None:
    """Names outside of a circle, clockwise from the top, along the radius so that many have room."""
    axes.set_xticks(angles, [""] * len(angles))
    for angle, name in zip(angles, names, strict=True):
        slope = 90 - np.degrees(angle)  # of the radius on the page
        side, turn = ("left", slope) if slope >= -90 else ("right", slope + 180)
        place = {"ha": side, "va": "center", "rotation": turn, "rotation_mode": "anchor"}
        if len(name) <= 3:  # a turned 6 is a 9
            place = {"ha": "center", "va": "center"}
        axes.text(angle, 1.13, name, color=INK, fontsize=SMALL, parse_math=False, **place)


def _rank_axis(axes: Axes, counts: np.ndarray, sizes_name: str) -> None:
    """An x axis of ranks by ``counts``, which are sorted."""
    ticks = np.unique(np.linspace(0, len(counts) - 1, 6).round().astype(int))
    axes.set_xticks(ticks + 1, [f"{i + 1}\n({counts[i]:g})" for i in ticks])
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.set_xlabel(f"rank of the class by {sizes_name} (how many)")


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _relative(values: np.ndarray) -> np.ndarray:
    """Values over the largest; NaNs where none is above 0."""
    measured = np.isfinite(values) & (values > 0)
    return values / values[measured].max() if measured.any() else np.full_like(values, np.nan)


def _rates(labels: ArrayLike, predictions: ArrayLike, order: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of each block of true classes that are right ``[B]``, and wrong by predicted block ``[B, B]``."""
    labels = metrics.classes("labels", labels, len(order))
    predictions = metrics.classes("predictions", predictions, len(order))
    if len(labels) != len(predictions):
        raise ValueError(f"labels and predictions must have one length, got {len(labels)} and {len(predictions)}")
    cell = np.argsort(order) // block
    cells = -(-len(order) // block)
    true, predicted, wrong = cell[labels], cell[predictions], labels != predictions
    errors = np.bincount(true[wrong] * cells + predicted[wrong], minlength=cells**2).reshape(cells, cells)
    samples = np.maximum(np.bincount(true, minlength=cells), 1)
    return np.bincount(true[~wrong], minlength=cells) / samples, errors / samples[:, None]


def _annotate_cells(axes: Axes, rates: np.ndarray) -> None:
    size = min(TEXT - 1, 90 / len(rates))
    for row, column in zip(*np.nonzero(rates), strict=True):
        percent = 100 * rates[row, column]
        text = f"{percent:.0f}" if percent >= 1 else "<1"
        axes.text(column, row, text, ha="center", va="center", color=INK, fontsize=size)
