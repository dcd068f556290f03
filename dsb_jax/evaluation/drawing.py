"""How plots look, and how text finds its place in them: what `plots` and `curves` share.

Colours differ for every kind of colour vision, and stand out from white and from near-black: blue is accuracy (or
many samples), orange is semantic scale (or few samples), text and axes are `INK`. No pyplot, no display, no state
left behind.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike
from sklearn.isotonic import isotonic_regression

INK = "#1f2328"
ACCURACY = "#1f78c8"
SCALE = "#d55e00"
GREY = "#767b82"  # on white and on near-black
FEW_TO_MANY = LinearSegmentedColormap.from_list("few_to_many", [SCALE, "#8a8a8a", ACCURACY])
NAMED_CLASSES = 30  # up to so many classes are written out by name
VECTOR_POINTS = 500  # more marks than these are drawn as pixels: a page of thousands of them stays small

WIDTH, HEIGHT = 4.5, 3.2  # inches; narrow, so that text can be read on a phone
TEXT, SMALL = 9, 8  # points


def figure_and_axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A new figure with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    style(axes)
    return figure, axes


def stacked_axes(number: int) -> tuple[Figure, list[Axes]]:
    """A new figure with axes above each other that share their x axis."""
    figure = Figure(figsize=(WIDTH, 0.6 + 0.47 * HEIGHT * number), layout="constrained")
    axes = list(figure.subplots(number, sharex=True, squeeze=False)[:, 0])
    for each in axes:
        style(each)
    return figure, axes


def lists_of_axes(lines: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A new figure with axes above each other that share x, each with a title and so many names at its left."""
    figure = Figure(figsize=(WIDTH, 0.8 + sum(0.4 + 0.22 * each for each in lines)), layout="constrained")
    axes = list(figure.subplots(len(lines), sharex=True, squeeze=False, height_ratios=lines)[:, 0])
    for each in axes:
        style(each)
    return figure, axes


def style(axes: Axes) -> None:
    """Two spines, a faint grid and everything in ink."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(INK)
    axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=SMALL, color=INK, labelcolor=INK)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=INK, fontsize=TEXT)


def title(axes: Axes, text: str, *, legend_lines: int = 0) -> None:
    """A title at the left, above a legend of so many lines."""
    pad = 6 + 2 * SMALL * legend_lines
    axes.set_title(text, loc="left", pad=pad, color=INK, fontsize=TEXT + 1, parse_math=False)


def figure_title(figure: Figure, text: str) -> None:
    """A title from the figure's left edge, with room for more than over axes that have names at their left."""
    figure.suptitle(short(text, 60), x=0.01, ha="left", color=INK, fontsize=TEXT + 1, parse_math=False)


def legend(axes: Axes, *, columns: int = 2) -> None:
    """A legend between the axes and the title, where it covers no data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderpad=0,
        borderaxespad=0.4,
        handlelength=2.2,
    )


def percent(axes: Axes, values: np.ndarray) -> None:
    """A y axis in per cent around ``values``, at least ten points high."""
    values = values[np.isfinite(values)]
    low, high = values.min(initial=1.0), values.max(initial=0.0)
    if low > high:
        low, high = 0.0, 1.0
    margin = max(0.1 * (high - low), 0.05)
    axes.set_ylim(max(low - margin, -0.04), min(high + margin, 1.04))
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))


def logarithmic_if_wide(axes: Axes, which: str, values: np.ndarray) -> None:
    """A logarithmic axis ``which`` where the largest value is ten times the smallest positive one or more."""
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
    plain_numbers(axis)


def plain_numbers(axis: Axis) -> None:
    """Numbers as people write them, also on logarithmic axes."""
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}".replace("-", "−")))
    axis.set_minor_formatter(ticker.NullFormatter())


def check_names(class_names: Sequence[str], num_classes: int) -> None:
    """Raises ValueError unless there is a name for each class."""
    if len(class_names) != num_classes:
        raise ValueError(f"class_names must name {num_classes} classes, got {len(class_names)} names")


def short(name: str, length: int = 18) -> str:
    """A name in one line of at most ``length`` characters."""
    name = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    return name if len(name) <= length else name[: length - 1] + "…"


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the finite ones among the ``width`` values around each; NaN where there is none."""
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    number = np.convolve(finite.astype(float), window, mode="same")
    return np.divide(total, number, out=np.full_like(values, np.nan), where=number > 0.5)


def label_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Writes each name by its point, the nearest place that covers no point, no name and not the frame."""
    with _measuring(axes) as measure:
        frame = axes.get_window_extent()
        points = axes.transData.transform(np.column_stack([x, y]))
        taken = [Bbox.from_bounds(px - 4, py - 4, 8, 8) for px, py in points]
        for name, data, point in zip(names, zip(x, y, strict=True), points, strict=True):
            size = measure(short(name))
            for offset in _offsets(size):
                box = Bbox.from_bounds(*(point + offset - size / 2), *size)
                inside = np.all(box.min >= frame.min) and np.all(box.max <= frame.max)
                if inside and not box.count_overlaps(taken):
                    taken.append(box)
                    place = offset * 72 / axes.figure.dpi
                    _annotate(axes, short(name), data, place, "offset points", ha="center")
                    break


def label_line_ends(axes: Axes, x: ArrayLike, y: np.ndarray, names: Sequence[str]) -> None:
    """Writes the names in a column right of the axes, in the order of the lines' ends ``(x, y)``; none for a NaN.

    ``x`` is that of each end, or of all.
    """
    shown = np.flatnonzero(np.isfinite(y))
    if not shown.size:
        return
    x, y, names = np.broadcast_to(x, y.shape)[shown], y[shown], [names[i] for i in shown.tolist()]
    with _measuring(axes) as measure:
        frame = axes.get_window_extent()
        gap = 1.05 * measure("Xg")[1] / frame.height
        ends = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))[:, 1]
        for i, height in zip(np.argsort(ends), _spread(np.sort(ends), gap), strict=True):
            place = (1.04, height)
            _annotate(axes, short(names[i]), (x[i], y[i]), place, "axes fraction", ha="left")


def _offsets(size: np.ndarray) -> Iterator[np.ndarray]:
    """Where the middle of a text of this size may lie relative to its point, nearest first, in pixels."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for gap in (5, 9, 14, 20, 28, 38, 50, 65, 85, 110, 140):
        for angle in angles:
            yield np.array([np.cos(angle), np.sin(angle)]) * (size / 2 + gap)


def _spread(positions: np.ndarray, gap: float) -> np.ndarray:
    """Sorted positions in [0, 1], moved as little as makes them ``gap`` apart."""
    steps = gap * np.arange(len(positions))
    return isotonic_regression(positions - steps, y_min=0, y_max=max(1 - steps[-1], 0)) + steps


def _annotate(axes: Axes, name: str, data: Any, place: Any, coordinates: str, *, ha: str) -> None:
    axes.annotate(
        name,
        data,
        xytext=tuple(place),
        textcoords=coordinates,
        ha=ha,
        va="center",
        color=INK,
        fontsize=SMALL,
        parse_math=False,
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
    )


@contextmanager
def _measuring(axes: Axes) -> Iterator[Callable[[str], np.ndarray]]:
    """Lays the figure out and yields a function from a small text to its width and height in pixels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a viewer's own fonts may have it
        figure: Any = axes.figure  # none of ours is within another one
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        ruler = axes.text(0, 0, "", fontsize=SMALL, parse_math=False)

        def measure(text: str) -> np.ndarray:
            ruler.set_text(text)
            return np.array(ruler.get_window_extent(renderer).size)

        yield measure
        ruler.remove()
