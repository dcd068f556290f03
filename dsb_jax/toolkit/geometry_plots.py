"""Plots of the geometry of classes, each with a caption."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from dsb_jax.evaluation import drawing
from dsb_jax.evaluation.drawing import ACCURACY, GREY, INK, NAMED_CLASSES, SCALE, SMALL, TEXT, VECTOR_POINTS

if TYPE_CHECKING:
    from dsb_jax.toolkit.class_geometry import Geometry

_UNALIKE_TO_ALIKE = LinearSegmentedColormap.from_list("unalike_to_alike", ["#ffffff", ACCURACY, "#0b2545"])
_FLAT_TO_CURVED = LinearSegmentedColormap.from_list("flat_to_curved", [ACCURACY, "#c9c9c9", SCALE])
_LETTERS = 20  # of a name
_LINES = ((0, ()), (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))


def measures(found: "Geometry") -> tuple[str, Figure]:
    """Separation, dimension and curvature of classes, from most to fewest points."""
    order = np.argsort(-found.counts, kind="stable")
    panels = [
        ("separation", found.separation[order], None),
        ("dimension", found.dimension[order], None),
        ("curvature (rad)", found.curvature[order], found.flat_curvature[order]),
    ]
    # Such as the separation of a single class, which there is not.
    panels = [panel for panel in panels if np.isfinite(panel[1]).any()] or panels
    if len(order) <= NAMED_CLASSES:
        names = [f"{_short(found.shown_names[i])} ({found.counts[i]:,})" for i in order]
        figure = _beside_each_other(panels, names)
    else:
        figure = _above_each_other(panels, found.counts[order])
    apart = "how far each class stands apart for its volume, " if np.isfinite(found.separation).any() else ""
    caption = (
        f"{found.name}: {apart}how many dimensions it has about a point, and "
        f"by how much tangent spaces of {found.tangent_dimension} dimensions turn from a point to its "
        f"{found.neighbours} neighbours; in grey, what they would in noise of the same covariance."
    )
    return caption, figure


def shapes(name: str, class_names: Sequence[str], pairs: np.ndarray, chance: float) -> tuple[str, Figure]:
    """How alike each two different classes are in shape ``[C, C]``, without classes of which that is NaN."""
    measured = np.flatnonzero(np.isfinite(pairs).any(axis=1))
    class_names, pairs = [class_names[label] for label in measured.tolist()], pairs[np.ix_(measured, measured)]
    cells = len(measured)
    figure, axes = drawing.figure_and_axes(height=max(3.2, min(4.8, 1.5 + 0.2 * cells)))
    axes.grid(visible=False)
    limits = {"vmin": min(chance, np.nanmin(pairs)), "vmax": np.nanmax(pairs)}
    image = axes.imshow(pairs, cmap=_UNALIKE_TO_ALIKE, interpolation="none", **limits)
    if cells <= NAMED_CLASSES:
        names = [_short(each) for each in class_names]
        axes.set_xticks(range(cells), names, rotation=90 if max(map(len, names)) > 3 else 0, parse_math=False)
        axes.set_yticks(range(cells), names, parse_math=False)
    else:
        axes.set_xlabel("number among the measured classes")
        axes.set_ylabel("number among the measured classes")
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.ax.tick_params(labelsize=SMALL, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)
    drawing.figure_title(figure, "Shapes alike: mean |cosine| of principal directions")
    caption = (
        f"{name}: whether each two classes spread in the same directions, from 0 to 1; directions that have nothing to "
        f"do with each other have {chance:.2f}."
    )
    return caption, figure


def cloud(name: str, points: np.ndarray, turned: np.ndarray) -> tuple[str, Figure]:
    """A point cloud ``[n, 3]``, coloured by the curvature ``[n]`` at each point."""
    figure = Figure(figsize=(drawing.WIDTH, 0.8 * drawing.WIDTH), layout="constrained")
    axes: Axes3D = figure.add_subplot(projection="3d")
    axes.view_init(elev=12, azim=20, vertical_axis="y")  # as scanners and modellers have it
    axes.set_axis_off()
    axes.set_box_aspect(np.ptp(points, axis=0) + 1e-9 * np.ptp(points), zoom=1.6)
    known = np.isfinite(turned)
    limits = np.percentile(turned[known], (2, 98)) if known.any() else (0, 1)
    image = axes.scatter(
        *points[known].T,
        c=turned[known],
        cmap=_FLAT_TO_CURVED,
        vmin=limits[0],
        vmax=limits[1],
        s=min(20_000 / max(len(points), 1), 40),
        linewidths=0,
        depthshade=False,
        rasterized=True,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.6, extend="both")
    bar.set_label("curvature (rad)", color=INK, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)
    drawing.figure_title(figure, f"Where {name} bends")
    return f"{name}: how far its tangent planes turn from each of {len(points):,} points to its neighbours.", figure


def scaling(class_names: Sequence[str], factors: np.ndarray, volumes: np.ndarray) -> tuple[str, Figure]:
    """Volumes ``[C, F]`` of point clouds that are scaled up (Figure 6 of the paper)."""
    figure, axes = drawing.figure_and_axes()
    colours = (ACCURACY, SCALE, GREY)
    for label, of_cloud in enumerate(volumes):
        colour, dashes = colours[label % len(colours)], _LINES[label // len(colours) % len(_LINES)]
        axes.plot(factors, of_cloud, linewidth=1.8, color=colour, linestyle=dashes)
    axes.set_xscale("log")
    drawing.plain_numbers(axes.xaxis)
    axes.set_xlabel("scaled up by")
    axes.set_ylabel("volume (bits)")
    drawing.title(axes, "Volume grows with the size of a point cloud")
    if len(class_names) <= NAMED_CLASSES:
        drawing.label_line_ends(axes, factors[-1], volumes[:, -1], class_names)
    return "Volume of each point cloud, moved to its centre and multiplied by a factor (Figure 6 of the paper).", figure


def _short(name: str) -> str:
    """A name without its middle where it is long: those of files often differ at the end alone."""
    name = drawing.short(name, len(name))
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2]}…{name[1 - _LETTERS // 2 :]}"


def _beside_each_other(panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]], names: list[str]) -> Figure:
    """A panel of dots for each measure, and a row for each class."""
    figure = Figure(figsize=(drawing.WIDTH, 1.5 + 0.19 * len(names)), layout="constrained")
    every: list[Axes] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    rows = np.arange(len(names))
    for axes, (title, values, reference) in zip(every, panels, strict=True):
        drawing.style(axes)
        if reference is not None:
            axes.plot(reference, rows, linestyle="none", marker="|", markersize=8, markeredgewidth=1.6, color=GREY)
        axes.plot(values, rows, linestyle="none", marker="o", markersize=5, color=ACCURACY)
        axes.set_title(title, loc="left", color=INK, fontsize=TEXT)
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=2)
        drawing.plain_numbers(axes.xaxis)
        axes.tick_params(axis="x", rotation=90)  # side by side, numbers of many digits would run into each other
        axes.tick_params(axis="y", length=0)
    every[0].set_yticks(rows, names, fontsize=SMALL, parse_math=False)
    every[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _above_each_other(panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]], counts: np.ndarray) -> Figure:
    """A panel of dots for each measure over the ranks of classes, with means of neighbouring ranks."""
    figure, every = drawing.stacked_axes(len(panels))
    rank = np.arange(1, len(counts) + 1)
    width = max(5, len(counts) // 25)
    for axes, (title, values, reference) in zip(every, panels, strict=True):
        dots: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 4, "markeredgewidth": 0}
        axes.plot(rank, values, color=ACCURACY, alpha=0.35, rasterized=len(rank) > VECTOR_POINTS, **dots)
        axes.plot(rank, drawing.running_mean(values, width), color=ACCURACY, linewidth=2)
        if reference is not None:
            axes.plot(rank, drawing.running_mean(reference, width), color=GREY, linewidth=2, linestyle=(0, (4, 1.5)))
        axes.set_ylabel(title)
    ticks = np.unique(np.linspace(0, len(counts) - 1, 6).round().astype(int))
    every[-1].set_xticks(ticks + 1, [f"{i + 1}\n({counts[i]:,})" for i in ticks])
    every[-1].set_xlabel("rank of the class by points (how many)")
    drawing.figure_title(figure, f"Classes; lines are means of {width} neighbours")
    return figure
