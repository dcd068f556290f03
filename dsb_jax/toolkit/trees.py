"""Pictures of what belongs to what: children with their parents, and classes that join one by one."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.cluster import hierarchy

from dsb_jax.evaluation import drawing
from dsb_jax.evaluation.drawing import ACCURACY, GREY, INK, NAMED_CLASSES, SCALE, SMALL

NONE = -1  # the parent of a child that has none, or whose is not known

_ANNOTATED = 12  # columns of a matrix in which there is room for numbers
_LINE = 0.19  # inches from a name to the next one


def matches(
    predicted: np.ndarray,
    real: np.ndarray,
    clearness: np.ndarray,
    *,
    parent_names: Sequence[str],
    child_labels: Sequence[str],
    title: str,
) -> Figure:
    """Parents at the left, children at the right, and a line for each match: orange where the parent is another one.

    Args:
      predicted: parents of the children, int ``[C]``, `NONE` where there is none.
      real: likewise, where they are known.
      clearness: ``[C]``, >= 0 or NaN: the more, the thicker the line.
      parent_names: P names, written where they are few.
      child_labels: C texts, written where they are few; of many children it is only seen how many lines go astray.
      title: of the figure.

    Example:
      >>> figure = matches(
      ...     np.array([0, 0]), np.array([0, 1]), np.ones(2), parent_names=["pets", "cattle"],
      ...     child_labels=["cat", "cow"], title="Pets and cattle")
      >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
      ['pets', 'cattle']
    """
    named = len(predicted) <= NAMED_CLASSES
    rows = max(len(predicted), min(len(parent_names), NAMED_CLASSES)) if named else NAMED_CLASSES
    figure, axes = drawing.figure_and_axes(height=max(2.4, 0.6 + _LINE * rows))
    children, parents = np.empty(len(predicted)), _places(len(parent_names))
    children[family_order(predicted, real)] = _places(len(predicted))
    wrong = (real != NONE) & (real != predicted)
    known = np.nan_to_num(clearness)
    widths = (0.8 + 2.4 * known / (known.max(initial=0.0) or 1.0)) * (1.0 if named else 0.5)
    opacity = 0.9 if named else max(min(0.7, 70 / len(predicted)), 0.12)
    for child in np.flatnonzero(predicted != NONE):
        ends = [parents[predicted[child]], children[child]]
        style = {"color": SCALE if wrong[child] else ACCURACY, "linewidth": widths[child]}
        # The few that go astray in front; of many, those that do not.
        axes.plot([0, 1], ends, alpha=opacity, zorder=3 if wrong[child] == named else 2, **style)
    for child in np.flatnonzero(wrong & named):
        ends = [parents[real[child]], children[child]]
        axes.plot([0, 1], ends, color=GREY, linewidth=0.7, linestyle=(0, (3, 3)), zorder=1)
    axes.set(xlim=(0, 1), ylim=(1.02, -0.02))
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    for side in (axes, right):
        _without_frame(side)
    few = len(parent_names) <= NAMED_CLASSES
    axes.set_yticks(parents, [drawing.short(name) if few else "" for name in parent_names], parse_math=False)
    right.set_yticks(children if named else [], child_labels if named else [], parse_math=False)
    for label, astray in zip(right.get_yticklabels(), wrong, strict=False):
        label.set_color(SCALE if astray else INK)
    if not named:
        right.set_ylabel(_many(len(predicted)))
    drawing.figure_title(figure, title)
    return figure


def changes(
    ratios: np.ndarray,
    predicted: np.ndarray,
    real: np.ndarray,
    *,
    parent_names: Sequence[str],
    child_names: Sequence[str],
    title: str,
) -> Figure:
    """A row for each child, a column for each parent, the darker the nearer its ratio is to 1.

    Args:
      ratios: ``[C, P]``, NaN where there is none; written where there is room.
      predicted: as for `matches`.
      real: likewise; framed.
      parent_names: P names.
      child_names: C names.
      title: of the figure.

    Example:
      >>> figure = changes(
      ...     np.array([[1.0, 1.5], [1.4, 1.1]]), np.array([0, 1]), np.array([0, 1]), parent_names=["pets", "cattle"],
      ...     child_names=["cat", "cow"], title="Pets and cattle")
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['1.00', '1.50', '1.40', '1.10']
    """
    rows, columns = ratios.shape
    named, order = rows <= NAMED_CLASSES, family_order(predicted, real)
    figure, axes = drawing.figure_and_axes(height=max(2.6, 1.2 + 0.22 * min(rows, 24)))
    axes.grid(visible=False)
    apart = np.abs(ratios - 1)
    most = np.max(apart, axis=1, where=np.isfinite(apart), initial=0.0)[:, None]
    closeness = 1 - np.divide(apart, most, out=np.zeros_like(apart), where=most > 0)
    # Weaker than ink on any page, so that numbers stay readable.
    shade = np.where(np.isfinite(ratios), 0.04 + 0.6 * closeness**2, 0.0)[order]
    pixels = np.concatenate([np.broadcast_to(to_rgb(ACCURACY), (rows, columns, 3)), shade[..., None]], axis=2)
    axes.imshow(pixels, interpolation="none", aspect="auto")
    for row, child in enumerate(order[: rows if named else 0]):
        for column in np.flatnonzero(np.isfinite(ratios[child]) & (columns <= _ANNOTATED)).tolist():
            text = f"{ratios[child, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=INK, fontsize=SMALL - 1)
        if real[child] != NONE:
            colour = INK if real[child] == predicted[child] else SCALE
            corner = (real[child] - 0.48, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.96, 0.92, fill=False, edgecolor=colour, linewidth=1.2))
    axes.tick_params(length=0)
    few = columns <= NAMED_CLASSES
    axes.set_xticks(range(columns if few else 0), [drawing.short(name) for name in parent_names[: few * columns]])
    axes.set_yticks(range(rows if named else 0), [drawing.short(child_names[child]) for child in order[: named * rows]])
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(parse_math=False, fontsize=SMALL)
    for label in axes.get_xticklabels():
        label.set(rotation=90 if columns > 4 else 0)
    if not few:
        axes.set_xlabel(f"{columns:,} parents")
    if not named:
        axes.set_ylabel(_many(rows))
    drawing.figure_title(figure, title)
    return figure


def dendrogram(joined: np.ndarray, *, class_names: Sequence[str], unit: str, title: str) -> Figure:
    """Classes at the right, which join towards the left, the farther the less they have in common.

    Args:
      joined: float64 ``[C − 1, 4]``, as :func:`scipy.cluster.hierarchy.linkage` gives it.
      class_names: C names, written where they are few; of more the last `NAMED_CLASSES` groups are shown.
      unit: of the heights.
      title: of the figure.

    Example:
      >>> joined = hierarchy.linkage(np.array([[0.0], [1.0], [9.0]]), "ward")
      >>> figure = dendrogram(joined, class_names=["cat", "dog", "car"], unit="bits", title="Kin")
      >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
      ['car', 'cat', 'dog']
    """
    number = len(class_names)
    named = number <= NAMED_CLASSES
    figure, axes = drawing.figure_and_axes(height=max(2.4, 0.9 + _LINE * min(number, NAMED_CLASSES)))
    shown = hierarchy.dendrogram(
        joined,
        no_plot=True,
        truncate_mode=None if named else "lastp",
        p=NAMED_CLASSES,
    )
    for heights, places in zip(shown["dcoord"], shown["icoord"], strict=True):
        axes.plot(heights, places, color=ACCURACY, linewidth=1.4)
    labels = [_group(leaf, joined, class_names) for leaf in shown["leaves"]]
    axes.set_yticks(5.0 + 10.0 * np.arange(len(labels)), labels, parse_math=False, fontsize=SMALL)
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlim(1.03 * joined[-1, 2] or 1.0, 0)  # where nothing is apart, all join at 0
    axes.set_ylim(10.0 * len(labels), 0)
    axes.set_xlabel(unit)
    drawing.figure_title(figure, title)
    return figure


def family_order(predicted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Children so that those of a parent, the real one where it is known, are side by side."""
    return np.argsort(np.where(real == NONE, predicted, real), kind="stable")


def _group(leaf: int, joined: np.ndarray, class_names: Sequence[str]) -> str:
    """The name of a class, or of several that are one leaf, the first two and how many more."""
    if leaf < len(class_names):
        return drawing.short(class_names[leaf])
    members = hierarchy.to_tree(joined, rd=True)[1][leaf].pre_order()
    more = f" +{len(members) - 2}" if len(members) > 2 else ""
    return ", ".join(drawing.short(class_names[i], 12) for i in members[:2]) + more


def _places(number: int) -> np.ndarray:
    """From top to bottom, with half of a gap at either end."""
    return (np.arange(number) + 0.5) / max(number, 1)


def _without_frame(axes: Axes) -> None:
    drawing.style(axes)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _many(children: int) -> str:
    return f"{children:,} children, those of a parent side by side"
