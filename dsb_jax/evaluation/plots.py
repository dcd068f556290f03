"""Plots of a run, class by class, as matplotlib figures that the report and the toolkit share.

Each function returns a new `matplotlib.figure.Figure`: no pyplot, no display, no state left behind. Up to
`NAMED_CLASSES` classes are written out by name; more are drawn as clouds, bundles and areas, readable up to
thousands. Colours differ for every kind of colour vision, and stand out from white and from near-black: blue
is accuracy (or many samples), orange is semantic scale (or few samples), text and axes are `INK`.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike
from sklearn.isotonic import isotonic_regression

from dsb_jax.evaluation.metrics import pearson, vectors

INK = "#1f2328"
ACCURACY = "#1f78c8"
SCALE = "#d55e00"
FEW_TO_MANY = LinearSegmentedColormap.from_list("few_to_many", [SCALE, "#8a8a8a", ACCURACY])
NAMED_CLASSES = 30

_WIDTH, _HEIGHT = 5.4, 3.6  # inches; narrow, so that text keeps its size where a page shows two side by side
_TEXT, _SMALL = 9, 8  # points


def accuracy_against(
    measure: ArrayLike, class_accuracy: ArrayLike, *, measure_name: str, class_names: Sequence[str]
) -> Figure:
    """Class accuracy against a measure of the classes, with Pearson's r.

    The axis of the measure is logarithmic where its largest value is ten times its smallest positive one or
    more; r is that of the values as they are.

    Args:
      measure: ``[C]``, such as training samples or semantic scales; a class with NaN is left out.
      class_accuracy: fractions ``[C]``; a class with NaN is left out.
      measure_name: what to call the measure, with its unit if it has one.
      class_names: C names.

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
    _check_names(class_names, len(accuracy))
    r = pearson(measure, accuracy)
    shown = np.isfinite(measure) & np.isfinite(accuracy)
    x, y = measure[shown], accuracy[shown]

    figure, axes = _figure()
    named = len(accuracy) <= NAMED_CLASSES
    # Above the lines that lead to the labels.
    axes.scatter(x, y, s=28 if named else 14, color=ACCURACY, alpha=1 if named else 0.7, linewidths=0, zorder=4)
    axes.margins(0.08)
    _logarithmic_if_wide(axes, "x", x)
    _percent(axes, y)
    axes.set_xlabel(measure_name, parse_math=False)
    axes.set_ylabel("class accuracy")
    verdict = "Pearson r undefined" if np.isnan(r) else f"Pearson r = {r:.2f}"
    _title(axes, f"Accuracy against {measure_name}: {verdict}")
    if named:
        _label_points(axes, x, y, [name for name, kept in zip(class_names, shown, strict=True) if kept])
    return figure


def accuracy_by_class(
    class_accuracy: ArrayLike,
    counts: ArrayLike,
    *,
    scales: ArrayLike | None = None,
    class_names: Sequence[str],
) -> Figure:
    """Accuracy of each class, from most to fewest training samples, with its semantic scale beside it.

    Args:
      class_accuracy: fractions ``[C]``; NaN for classes without test samples, which get no bar.
      counts: training samples ``[C]``.
      scales: semantic scales ``[C]``, drawn relative to the largest; NaN or None where not measured.
      class_names: C names.

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
    _check_names(class_names, len(accuracy))
    order = np.argsort(-counts, kind="stable")
    measured = np.isfinite(scales) & (scales > 0)
    relative = scales / scales[measured].max() if measured.any() else np.full_like(scales, np.nan)
    if len(accuracy) <= NAMED_CLASSES:
        names = [f"{_short(class_names[i])} ({counts[i]:g})" for i in order]
        return _class_bars(accuracy[order], relative[order], names)
    return _class_area(accuracy[order], relative[order], counts[order])


def weights_over_time(
    epochs: ArrayLike, weights: ArrayLike, *, counts: ArrayLike, class_names: Sequence[str]
) -> Figure:
    """The weight of each class through training, coloured by its training samples.

    Args:
      epochs: ``[T]``.
      weights: ``[T, C]``, finite and >= 0.
      counts: training samples ``[C]``.
      class_names: C names, written at the lines' ends where they are few.

    Returns:
      The figure.

    Raises:
      ValueError: if shapes disagree or a weight is out of range.

    Example:
      >>> figure = weights_over_time([0, 1], [[1, 1], [0.8, 1.2]], counts=[90, 10], class_names="ab")
      >>> len(figure.axes[0].lines)
      2
    """
    epochs, counts = vectors(epochs=epochs)[0], vectors(counts=counts)[0]
    weights = np.asarray(weights, np.float64)
    if not len(epochs) or weights.shape != (len(epochs), len(counts)):
        wanted = (max(len(epochs), 1), len(counts))
        raise ValueError(f"weights must have shape {wanted}, epochs by classes, got {weights.shape}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights must be finite numbers >= 0")
    _check_names(class_names, len(counts))
    named = len(counts) <= NAMED_CLASSES
    low = max(counts.min(), 1)
    norm = LogNorm(low, max(counts.max(), 2 * low))  # a balanced set still needs a range

    figure, axes = _figure(height=max(_HEIGHT, 0.19 * len(counts)) if named else _HEIGHT)
    for i in np.argsort(-counts, kind="stable"):
        axes.plot(
            epochs,
            weights[:, i],
            color=FEW_TO_MANY(norm(max(counts[i], low))),
            linewidth=1.5 if named else 0.7,
            alpha=1.0 if named else 0.5,
            marker="." if len(epochs) == 1 else "",
            rasterized=not named,
        )
    _logarithmic_if_wide(axes, "y", weights)
    axes.set_xlabel("epoch")
    axes.set_ylabel("class weight")
    _title(axes, "Class weights during training")
    if named:
        _label_line_ends(axes, epochs[-1], weights[-1], class_names)
    else:
        bar = figure.colorbar(ScalarMappable(norm, FEW_TO_MANY), ax=axes)
        _plain_numbers(bar.ax.yaxis)
        bar.ax.tick_params(labelsize=_SMALL, color=INK, labelcolor=INK)
        bar.outline.set_visible(False)
        bar.set_label("training samples", color=INK, size=_TEXT)
    return figure


def training_curves(
    *,
    epochs: ArrayLike,
    loss: ArrayLike,
    accuracy: ArrayLike,
    test_epochs: ArrayLike,
    test_accuracy: ArrayLike,
) -> Figure:
    """Training loss, and training and test accuracy, by epoch.

    Args:
      epochs: times of the training measurements ``[T]``.
      loss: training loss ``[T]``.
      accuracy: training accuracy ``[T]``, fractions.
      test_epochs: times of the evaluations ``[E]``.
      test_accuracy: test accuracy ``[E]``, fractions.

    Returns:
      The figure: the loss above, the accuracies below.

    Raises:
      ValueError: if lengths differ.

    Example:
      >>> figure = training_curves(
      ...     epochs=[0.5, 1], loss=[2.3, 1.9], accuracy=[0.1, 0.3], test_epochs=[1], test_accuracy=[0.25])
      >>> [axes.get_ylabel() for axes in figure.axes]
      ['training loss', 'accuracy']
    """
    epochs, loss, accuracy = vectors(epochs=epochs, loss=loss, accuracy=accuracy)
    test_epochs, test_accuracy = vectors(test_epochs=test_epochs, test_accuracy=test_accuracy)
    figure = Figure(figsize=(_WIDTH, 1.25 * _HEIGHT), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for axes in (above, below):
        _style(axes)
    dense = {"rasterized": len(epochs) > 5000, "linewidth": 1.3}
    above.plot(epochs, loss, color=SCALE, **dense)
    above.set_ylabel("training loss")
    _title(above, "Training")
    below.plot(epochs, accuracy, color=SCALE, linestyle=(0, (4, 1.5)), label="training batches", **dense)
    below.plot(test_epochs, test_accuracy, color=ACCURACY, marker="o", markersize=3.5, label="test set")
    _percent(below, np.concatenate([accuracy, test_accuracy]))
    below.set_xlabel("epoch")
    below.set_ylabel("accuracy")
    _legend(below)
    return figure


def _class_bars(accuracy: np.ndarray, relative: np.ndarray, names: list[str]) -> Figure:
    figure, axes = _figure(height=1.1 + 0.19 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows, np.nan_to_num(accuracy), height=0.72, color=ACCURACY, label="accuracy")
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
    axes.set_yticks(rows, names, fontsize=_SMALL, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.03)
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    _title(axes, "Accuracy by class (training samples)", above_legend=True)
    _legend(axes)
    return figure


def _class_area(accuracy: np.ndarray, relative: np.ndarray, counts: np.ndarray) -> Figure:
    figure, axes = _figure()
    rank = np.arange(1, len(accuracy) + 1)
    width = max(5, len(accuracy) // 25)
    axes.fill_between(rank, np.nan_to_num(accuracy), step="mid", color=ACCURACY, alpha=0.3, linewidth=0)
    axes.plot(rank, _running_mean(accuracy, width), color=ACCURACY, linewidth=2, label="accuracy")
    if np.isfinite(relative).any():
        smooth = _running_mean(relative, width)
        label = "semantic scale, relative to the largest"
        axes.plot(rank, smooth, color=SCALE, linewidth=2, linestyle=(0, (4, 1.5)), label=label)
    ticks = np.unique(np.linspace(0, len(rank) - 1, 6).round().astype(int))
    axes.set_xticks(rank[ticks], [f"{rank[i]}\n({counts[i]:g})" for i in ticks])
    axes.set_xlim(0.5, len(rank) + 0.5)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.set_xlabel("rank of the class by training samples (samples)")
    _title(axes, f"Accuracy by class; lines are means of {width} neighbours", above_legend=True)
    _legend(axes)
    return figure


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the finite ones among the ``width`` values around each; NaN where there is none."""
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    number = np.convolve(finite.astype(float), window, mode="same")
    return np.divide(total, number, out=np.full_like(values, np.nan), where=number > 0.5)


def _figure(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(INK)
    axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=_SMALL, color=INK, labelcolor=INK)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=INK, fontsize=_TEXT)


def _title(axes: Axes, text: str, *, above_legend: bool = False) -> None:
    pad = 6 + (2 * _SMALL if above_legend else 0)
    axes.set_title(text, loc="left", pad=pad, color=INK, fontsize=_TEXT + 1, parse_math=False)


def _legend(axes: Axes) -> None:
    """A legend in one line between the axes and the title, where it covers no data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=_SMALL,
        labelcolor=INK,
        borderpad=0,
        borderaxespad=0.4,
        handlelength=2.2,
    )


def _percent(axes: Axes, values: np.ndarray) -> None:
    """A y axis in per cent around ``values``, at least ten points high."""
    values = values[np.isfinite(values)]
    low, high = values.min(initial=1.0), values.max(initial=0.0)
    if low > high:
        low, high = 0.0, 1.0
    margin = max(0.1 * (high - low), 0.05)
    axes.set_ylim(max(low - margin, -0.04), min(high + margin, 1.04))
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))


def _logarithmic_if_wide(axes: Axes, which: str, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if not positive.size or values.min() < 0 or values.max() < 10 * positive.min():
        return
    set_scale, axis = (axes.set_xscale, axes.xaxis) if which == "x" else (axes.set_yscale, axes.yaxis)
    if positive.size < values.size:
        set_scale("symlog", linthresh=positive.min(), linscale=0.5)  # zeros keep a place beside the smallest
    else:
        set_scale("log")
        if values.max() < 1000 * values.min():
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    _plain_numbers(axis)


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _check_names(class_names: Sequence[str], num_classes: int) -> None:
    if len(class_names) != num_classes:
        raise ValueError(f"class_names must name {num_classes} classes, got {len(class_names)} names")


def _short(name: str, length: int = 18) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    return name if len(name) <= length else name[: length - 1] + "…"


def _label_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Writes each name by its point, the nearest place that covers no point, no name and not the frame."""
    with _measuring(axes) as measure:
        frame = axes.get_window_extent()
        points = axes.transData.transform(np.column_stack([x, y]))
        taken = [Bbox.from_bounds(px - 4, py - 4, 8, 8) for px, py in points]
        for name, data, point in zip(names, zip(x, y, strict=True), points, strict=True):
            size = measure(_short(name))
            for offset in _offsets(size):
                box = Bbox.from_bounds(*(point + offset - size / 2), *size)
                inside = (box.min >= frame.min).all() and (box.max <= frame.max).all()
                if inside and not box.count_overlaps(taken):
                    taken.append(box)
                    place = offset * 72 / axes.figure.dpi
                    _annotate(axes, _short(name), data, place, "offset points", ha="center")
                    break


def _offsets(size: np.ndarray) -> Iterator[np.ndarray]:
    """Where the middle of a text of this size may lie relative to its point, nearest first, in pixels."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for gap in (5, 9, 14, 20, 28, 38, 50, 65, 85, 110, 140):
        for angle in angles:
            yield np.array([np.cos(angle), np.sin(angle)]) * (size / 2 + gap)


def _label_line_ends(axes: Axes, x: float, y: np.ndarray, names: Sequence[str]) -> None:
    """Writes the names in a column right of the axes, in the order of the lines' ends ``(x, y)``."""
    with _measuring(axes) as measure:
        frame = axes.get_window_extent()
        gap = 1.05 * measure("Xg")[1] / frame.height
        ends = axes.transAxes.inverted().transform(axes.transData.transform([(x, value) for value in y]))[:, 1]
        for i, height in zip(np.argsort(ends), _spread(np.sort(ends), gap), strict=True):
            place = (1.04, height)
            _annotate(axes, _short(names[i]), (x, y[i]), place, "axes fraction", ha="left")


def _spread(positions: np.ndarray, gap: float) -> np.ndarray:
    """Sorted positions in [0, 1], moved as little as makes them ``gap`` apart."""
    steps = gap * np.arange(len(positions))
    return isotonic_regression(positions - steps, y_min=0, y_max=max(1 - steps[-1], 0)) + steps


def _annotate(axes: Axes, name: str, data: tuple, place: tuple, coordinates: str, *, ha: str) -> None:
    axes.annotate(
        name,
        data,
        xytext=tuple(place),
        textcoords=coordinates,
        ha=ha,
        va="center",
        color=INK,
        fontsize=_SMALL,
        parse_math=False,
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
    )


@contextmanager
def _measuring(axes: Axes) -> Iterator:
    """Lays the figure out and yields a function from a small text to its width and height in pixels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a viewer's own fonts may have it
        renderer = FigureCanvasAgg(axes.figure).get_renderer()
        axes.figure.draw_without_rendering()
        ruler = axes.text(0, 0, "", fontsize=_SMALL, parse_math=False)

        def measure(text: str) -> np.ndarray:
            ruler.set_text(text)
            return np.array(ruler.get_window_extent(renderer).size)

        yield measure
        ruler.remove()
