"""Subsets of each class that keep as much of its volume as they can: the ``select`` command (Appendix I.1).

The paper asks of a subset that the volume of the class should not shrink and that edges be sampled more than the
inside, and takes the largest in volume of many random subsets ("pizza" sampling). :func:`greedy` builds a larger one.

A large volume does not make a good training set. Of 10% of each class of MNIST and of CIFAR-10, in 64 principal
components, here are the volumes relative to the whole classes', and the test accuracy of what learned from them:

    ==========  ===========  ======================  =======================
    rows        volume       support vector machine  five nearest neighbours
    ==========  ===========  ======================  =======================
    greedy      126%, 124%   95.0%, 32.2%            79.6%, 22.0%
    k-centre    121%, 120%   96.8%, 32.7%            88.8%, 20.0%
    pizza       100%, 100%   97.1%, 43.9%            95.2%, 31.0%
    random      98%, 98%     96.6%, 45.8%            94.8%, 30.3%
    ==========  ===========  ======================  =======================
"""

import dataclasses
import heapq
import numbers
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.linalg import blas, lapack
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from dsb_jax import validation
from dsb_jax.evaluation import drawing
from dsb_jax.evaluation.curves import RUNS
from dsb_jax.evaluation.drawing import ACCURACY, GREY, INK, NAMED_CLASSES, SCALE, SMALL, VECTOR_POINTS
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.points import Points

METHODS: dict[str, str] = {"greedy": "greedy", "pizza": "pizza", "random": "random", "k_center": "k-centre"}
_LOOKS = {"greedy": (SCALE, "o"), "pizza": (ACCURACY, "s"), "random": (RUNS[3], "|"), "k_center": (RUNS[2], "D")}

_ELONGATED = 4  # times as long as wide, from which on a class in a plane is not drawn to scale
_BLOCK = 32  # columns that LAPACK reflects at a time


def greedy(rows: np.ndarray, m: int, *, epsilon: float = 1.0) -> np.ndarray:
    """The rows that one after the other add most to the volume about the mean of all.

    They maximize ``f(A) = ½·log2 det(I + d/(m·ε²)·Σ_{i∈A} (z_i − μ)(z_i − μ)ᵀ)`` with μ the mean of all rows and m the
    final number. f is monotone and submodular, so that of m greedy rows is at least ``1 − 1/e`` of the largest one
    (Nemhauser, Wolsey and Fisher, 1978). A row adds ``½·log2(1 + ‖R⁻ᵀx‖²)``, where x is the row less μ and scaled, and
    ``RᵀR = I + Σ xxᵀ`` of the rows chosen. What a row adds never grows, so what it added once bounds what it adds now,
    and only rows whose bounds are above the best one's gain are measured again (Minoux, 1978).

    It goes for the edges, as the paper asks, and further than the paper goes: rows far from the mean come first, and
    wrong labels and broken samples are among them. A small subset holds hardly any typical row.

    Args:
      rows: ``[n, d]``, finite.
      m: how many to choose, at most n.
      epsilon: the error ε of the volume.

    Returns:
      Their indices, int64 ``[m]``, in the order in which they were chosen; of equal ones the first.

    Example:
      >>> greedy(np.array([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0], [0.0, 2.0]]), 2)
      array([2, 3])
    """
    rows = np.asarray(rows, np.float64)
    x = rows - rows[0]
    x -= x.mean(axis=0)
    x *= np.sqrt(rows.shape[1] / m) / epsilon
    if len(x) < x.shape[1]:  # the same Gram matrix in as many coordinates as there are rows
        upper: Any = np.linalg.qr(x.T, mode="r")
        x = np.ascontiguousarray(upper.T)
    triangle = np.eye(x.shape[1], order="F")
    bounds = [(-gain, row) for row, gain in enumerate(np.square(x).sum(axis=1).tolist())]
    heapq.heapify(bounds)
    chosen = []
    for _ in range(m):
        measured: list[tuple[float, int]] = []
        size = 1
        while bounds and not (measured and measured[0] < bounds[0]):
            block = [heapq.heappop(bounds)[1] for _ in range(min(size, len(bounds)))]
            solved = blas.dtrsm(1.0, triangle, x[block].T, trans_a=1, overwrite_b=1)
            gains = np.square(solved).sum(axis=0).tolist()
            measured = sorted([*measured, *((-gain, row) for gain, row in zip(gains, block, strict=True))])
            size *= 2
        (_, best), *others = measured
        for bound in others:
            heapq.heappush(bounds, bound)
        chosen.append(best)
        # A row below the triangle, folded into it by reflections.
        triangle = lapack.dtpqrt(0, min(_BLOCK, len(triangle)), triangle, x[best : best + 1], overwrite_a=1)[0]
    return np.array(chosen, np.int64)


def random_subset(rows: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """``m`` of the rows ``[n, d]``, every subset alike; indices int64 ``[m]``.

    Example:
      >>> len(set(random_subset(np.zeros((5, 2)), 3, np.random.default_rng(0))))
      3
    """
    return rng.permutation(len(rows))[:m]


def pizza(
    rows: np.ndarray, m: int, rng: np.random.Generator, *, subsets: int = 100, epsilon: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The one of many random subsets whose volume is largest: the paper's "pizza" sampling.

    The paper draws k subsets, repeats that, and keeps the largest; ``subsets`` is of all repetitions together. Of one
    class, the largest in volume is the largest in semantic scale.

    Args:
      rows: ``[n, d]``.
      m: rows of a subset.
      rng: what subsets are drawn with.
      subsets: how many are drawn.
      epsilon: the error ε of the volume.

    Returns:
      The indices int64 ``[m]`` of the best, and the volumes ``[subsets]`` of all, in bits.

    Example:
      >>> rows = np.random.default_rng(0).normal(size=(50, 2))
      >>> best, volumes = pizza(rows, 10, np.random.default_rng(0), subsets=20)
      >>> bool(moments.volume(rows[best]) == volumes.max())
      True

    Source: Appendix I.1 of the paper.
    """
    best, volumes = np.empty(0, np.int64), np.empty(subsets)
    for i in range(subsets):
        drawn = random_subset(rows, m, rng)
        volumes[i] = moments.volume(rows[drawn], epsilon=epsilon)
        if volumes[i] > volumes[:i].max(initial=-np.inf):
            best = drawn
    return best, volumes


def k_center(rows: np.ndarray, m: int) -> np.ndarray:
    """The row nearest to the mean, and then each time the row that is farthest from those chosen.

    No row is then farther from its nearest chosen one than twice what the best m rows could have (Gonzalez, Clustering
    to Minimize the Maximum Intercluster Distance, 1985); a core-set for active learning in Sener and Savarese, 2018.

    Args:
      rows: ``[n, d]``.
      m: how many to choose, at most n.

    Returns:
      Their indices, int64 ``[m]``, in the order in which they were chosen; of equal ones the first.

    Example:
      >>> k_center(np.array([[0.0], [4.0], [5.0], [9.0]]), 3)
      array([1, 3, 0])
    """
    rows = np.asarray(rows, np.float64)
    nearest = np.full(len(rows), np.inf)
    chosen = [int(cdist(rows, rows.mean(axis=0, keepdims=True), "sqeuclidean").argmin())]
    while len(chosen) < m:
        np.minimum(nearest, cdist(rows, rows[chosen[-1:]], "sqeuclidean")[:, 0], out=nearest)
        nearest[chosen[-1]] = -np.inf  # an equal row may be chosen, this one not again
        chosen.append(int(nearest.argmax()))
    return np.array(chosen, np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """A class as it lies in the plane of its first two principal components.

    Attributes:
      label: which class.
      coordinates: ``[n, 2]``.
      chosen: bool ``[n]`` of every method.
    """

    label: int
    coordinates: np.ndarray
    chosen: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """A subset of rows, and how it compares with others of the same size (a `findings.Finding`).

    Attributes:
      indices: of the rows kept, int64 ``[k]``, ascending.
      counts: rows of each class ``[C]``.
      kept: rows kept of each ``[C]``.
      volumes: of the whole classes ``[C]``, in bits.
      volume_kept: of each method, the volumes of its subsets as fractions of the whole classes' ``[C]``: 1 where all
        rows are kept, NaN where the whole class has none. Of ``"random"``, the mean over draws.
      random_spread: the standard deviation over draws ``[C]``, NaN where random subsets were not measured.
      taken: the method of the subset that each class keeps; ``"all"`` where it keeps all rows.
      method: what was asked for.
      subsets: how many random subsets were drawn.
      plane: of the largest class of which rows are left out; None where there is none.
      class_names: C names.
      name: of the points.
    """

    indices: np.ndarray
    counts: np.ndarray
    kept: np.ndarray
    volumes: np.ndarray
    volume_kept: dict[str, np.ndarray]
    random_spread: np.ndarray
    taken: tuple[str, ...]
    method: str
    subsets: int
    plane: Plane | None
    class_names: tuple[str, ...]
    name: str

    @property
    def fractions(self) -> np.ndarray:
        """What the subset keeps of each class's volume ``[C]``."""
        return np.array(
            [
                self.volume_kept[self.method if taken == "all" else taken][label]
                for label, taken in enumerate(self.taken)
            ]
        )

    def reading(self) -> str:
        """See `findings.Finding`."""
        text = f"Kept {len(self.indices):,} of {self.counts.sum():,} rows"
        fractions = self.fractions
        reduced = np.flatnonzero(np.isfinite(fractions) & (self.kept < self.counts))
        if not reduced.size:
            return f"{text}: no class with a volume has been made smaller, so there is nothing to compare."
        least = reduced[fractions[reduced].argmin()]
        text += (
            f": on average over {len(reduced)} reduced {'class' if len(reduced) == 1 else 'classes'} they span "
            f"{fractions[reduced].mean():.0%} of the volume of all rows (least: {self.class_names[least]} with "
            f"{fractions[least]:.0%})"
        )
        if self.method != "random" and "random" in self.volume_kept:
            text += f", where as many random rows span {self.volume_kept['random'][reduced].mean():.0%}"
        text += "."
        if (fractions[reduced] > 1).any():
            text += (
                " Above 100%, rows far from the middle of their class are kept more often than others, which the paper "
                "wants: wrong labels and broken samples are among them, and a model that learns from few such rows can "
                "be worse than one that learns from random rows, so compare."
            )
        others = sum(taken not in (self.method, "all") for taken in self.taken)
        if others:
            text += (
                f" In {others} {'class' if others == 1 else 'classes'} the best of {self.subsets} random subsets was "
                f"larger than the greedy one, and was taken."
            )
        return text

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """See `findings.Finding`; a star is at what was taken."""
        headings = ["class", "rows", "kept", "volume (bits)", *(METHODS[method] for method in self.volume_kept)]

        def cell(method: str, label: int) -> str:
            fraction = self.volume_kept[method][label]
            text = "–" if np.isnan(fraction) else f"{fraction:.1%}"
            if method == "random" and self.random_spread[label] > 0:
                text += f" ± {self.random_spread[label]:.1%}"
            return text + "*" * (self.taken[label] == method)

        return headings, [
            [
                name,
                f"{self.counts[label]:,}",
                f"{self.kept[label]:,}",
                f"{self.volumes[label]:.2f}",
                *(cell(method, label) for method in self.volume_kept),
            ]
            for label, name in enumerate(self.class_names)
        ]

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """See `findings.Finding`."""
        found = {
            "volume_kept": (
                "The volume of each class's subset relative to that of the whole class, for each way to choose as many "
                "rows. Above 100%, rows at the edges are kept more often than rows inside.",
                _volume_kept(self),
            )
        }
        if self.plane is not None:
            found["chosen"] = (
                f"What is chosen of class {self.class_names[self.plane.label]}, in the plane of its first two "
                "principal components: most of what sets rows apart lies outside of this plane.",
                _chosen_in_plane(self, self.plane),
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """See `findings.Finding`."""
        return {
            "name": self.name,
            "method": self.method,
            "subsets": self.subsets,
            "indices": self.indices,
            "classes": {
                name: {
                    "rows": self.counts[label],
                    "kept": self.kept[label],
                    "volume": self.volumes[label],
                    "taken": self.taken[label],
                    "volume_kept": {method: fractions[label] for method, fractions in self.volume_kept.items()},
                    "random_spread": self.random_spread[label],
                }
                for label, name in enumerate(self.class_names)
            },
        }


def select(
    points: Points,
    *,
    keep: float,
    method: str = "greedy",
    against: Collection[str] = ("pizza", "random", "k_center"),
    subsets: int = 100,
    epsilon: float = 1.0,
    seed: int = 0,
    progress: Callable[..., Iterable[int]] | None = None,
) -> Selection:
    """Keeps some rows of every class, those that span most, and measures what other choices would keep.

    A subset's volume is measured as that of any class: about its own mean and at its own number of rows, where
    :func:`greedy` sees the mean of the class. So the greedy subset is nearly always larger than the best random one
    but need not be, and of the two the larger is taken: no subset is smaller than the paper's of the same seed and the
    same number of draws.

    Args:
      points: the rows.
      keep: rows to keep of every class, an integer (a smaller class keeps all), or the fraction of every class to keep,
        a float in (0, 1] (at least one row of a class).
      method: ``"greedy"``, or ``"pizza"`` as in the paper, or ``"random"`` or ``"k_center"``.
      against: methods to compare with. k-centre looks at all rows of a class for each row it keeps, and is the slowest
        where thousands of hundred thousands are kept.
      subsets: how many random subsets are drawn of a class.
      epsilon: the error ε of the volume.
      seed: of random subsets; the first one is that of :func:`dsb_jax.data.long_tail.subset`.
      progress: ``(iterable, total) -> iterable``, through which the classes pass.

    Returns:
      The indices of the rows, and the comparison.

    Raises:
      ValueError: on an unknown method, or a number out of range.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> rng = np.random.default_rng(0)
      >>> found = select(points.of(rng.normal(size=(200, 8)), np.repeat([0, 1], 100)), keep=0.1)
      >>> len(found.indices), found.taken
      (20, ('greedy', 'greedy'))
      >>> bool((found.volume_kept["greedy"] > found.volume_kept["pizza"]).all())
      True

    Source: Appendix I.1 of the paper.
    """
    subsets, epsilon = validation.positive_int("subsets", subsets), validation.positive("epsilon", epsilon)
    seed = validation.integer("seed", seed, lowest=0)
    # The best random subset is what a greedy one must not fall below.
    compared = {method, *against, *(["pizza"] if method == "greedy" else [])}
    for name in compared:
        if name not in METHODS:
            raise validation.unknown_name("method", name, METHODS)
    methods = [name for name in METHODS if name in compared]
    order, counts = moments.sorted_by_class(points.labels, points.num_classes)
    kept = _kept(keep, counts)
    shown = int(np.where(kept < counts, counts, 0).argmax())

    of_class = np.split(order, np.cumsum(counts)[:-1])
    volumes, fractions = np.zeros(len(counts)), {name: np.full(len(counts), np.nan) for name in methods}
    spread, taken, plane = np.full(len(counts), np.nan), ["all"] * len(counts), None
    labels = range(len(counts))
    with threadpool_limits(1):  # of small products several threads wait for each other
        for label in labels if progress is None else progress(labels, len(counts)):
            rows = points.points.take(of_class[label], axis=0).astype(np.float64)
            volumes[label] = moments.volume(rows, epsilon=epsilon)
            whole = volumes[label] or np.nan
            if kept[label] == counts[label]:
                for name in methods:
                    fractions[name][label] = volumes[label] / whole
                continue
            chosen, found, deviation = _subsets(
                rows, int(kept[label]), methods, subsets=subsets, epsilon=epsilon, seed=[seed, label]
            )
            taken[label] = "pizza" if method == "greedy" and found["pizza"] > found["greedy"] else method
            of_class[label] = of_class[label][chosen[taken[label]]]
            spread[label] = deviation / whole
            for name in methods:
                fractions[name][label] = found[name] / whole
            if label == shown and volumes[label]:
                plane = _plane(label, rows, chosen)

    return Selection(
        indices=np.sort(np.concatenate(of_class)).astype(np.int64),
        counts=counts,
        kept=kept,
        volumes=volumes,
        volume_kept=fractions,
        random_spread=spread,
        taken=tuple(taken),
        method=method,
        subsets=subsets,
        plane=plane,
        class_names=points.class_names,
        name=points.name,
    )


def _kept(keep: float, counts: np.ndarray) -> np.ndarray:
    """Rows to keep of each class."""
    if isinstance(keep, numbers.Integral) and not isinstance(keep, bool) and keep >= 1:
        return np.minimum(int(keep), counts)
    if isinstance(keep, numbers.Real) and not isinstance(keep, numbers.Integral) and 0 < keep <= 1:
        return np.minimum(np.maximum(np.rint(keep * counts).astype(counts.dtype), 1), counts)
    raise ValueError(
        f"keep must be rows of each class, an integer >= 1, or the fraction of each, a float in (0, 1], got {keep!r}"
    )


def _subsets(
    rows: np.ndarray, m: int, methods: Sequence[str], *, subsets: int, epsilon: float, seed: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, float], float]:
    """What each method chooses of a class, the volumes of that, and the standard deviation of random ones."""
    chosen, deviation = {}, np.nan
    if "greedy" in methods:
        chosen["greedy"] = greedy(rows, m, epsilon=epsilon)
    if "k_center" in methods:
        chosen["k_center"] = k_center(rows, m)
    found = {name: moments.volume(rows[picked], epsilon=epsilon) for name, picked in chosen.items()}
    if "pizza" in methods or "random" in methods:
        chosen["random"] = random_subset(rows, m, np.random.default_rng(seed))  # the first of those
        chosen["pizza"], volumes = pizza(rows, m, np.random.default_rng(seed), subsets=subsets, epsilon=epsilon)
        found |= {"pizza": float(volumes.max()), "random": float(volumes.mean())}
        deviation = float(volumes.std())
    return chosen, found, deviation


def _plane(label: int, rows: np.ndarray, chosen: dict[str, np.ndarray]) -> Plane:
    from sklearn.decomposition import PCA  # takes a second to import

    components = min(2, *rows.shape)
    coordinates = PCA(components, random_state=0).fit_transform(rows)
    masks = {name: np.isin(np.arange(len(rows)), picked) for name, picked in chosen.items()}
    return Plane(label, np.pad(coordinates, ((0, 0), (0, 2 - components))), masks)


def _volume_kept(selection: Selection) -> Figure:
    order = np.argsort(-selection.counts, kind="stable")
    draw, height = (
        (_dots_of_classes, 1.3 + 0.19 * len(order)) if len(order) <= NAMED_CLASSES else (_lines_of_classes, 3.4)
    )
    figure, axes = drawing.figure_and_axes(height=height)
    draw(axes, selection, order)
    lines = -(-len(selection.volume_kept) // 2)
    drawing.title(axes, "Volume kept, relative to all rows", legend_lines=lines)
    drawing.legend(axes)
    return figure


def _dots_of_classes(axes: Axes, selection: Selection, order: np.ndarray) -> None:
    places = np.arange(len(order))
    axes.axvline(1, color=INK, linewidth=0.8)
    for method, fractions in selection.volume_kept.items():
        colour, marker = _LOOKS[method]
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 5}
        look["label"] = METHODS[method]
        if method == "random":
            axes.errorbar(fractions[order], places, xerr=selection.random_spread[order], **look)
        else:
            axes.plot(fractions[order], places, **look)
    sizes = [f"{selection.kept[i]:,} of {selection.counts[i]:,}" for i in order]
    names = [f"{drawing.short(selection.class_names[i])} ({size})" for i, size in zip(order, sizes, strict=True)]
    axes.set_yticks(places, names, fontsize=SMALL, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))


def _lines_of_classes(axes: Axes, selection: Selection, order: np.ndarray) -> None:
    rank, width = np.arange(1, len(order) + 1), max(5, len(order) // 25)
    axes.axhline(1, color=INK, linewidth=0.8)
    for method, fractions in selection.volume_kept.items():
        colour, _ = _LOOKS[method]
        axes.scatter(rank, fractions[order], s=5, color=colour, alpha=0.25, linewidths=0, rasterized=True)
        axes.plot(rank, drawing.running_mean(fractions[order], width), color=colour, label=METHODS[method])
    axes.set_xlabel(f"rank of the class by rows; lines are means of {width} neighbours")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))


def _chosen_in_plane(selection: Selection, plane: Plane) -> Figure:
    shown = [method for method in METHODS if method in plane.chosen]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(drawing.WIDTH, 0.5 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
    extents = np.ptp(plane.coordinates, axis=0)
    for axes, method in zip(grid, shown, strict=False):
        drawing.style(axes)
        chosen = plane.chosen[method]
        look = {"linewidths": 0, "rasterized": len(chosen) > VECTOR_POINTS}
        axes.scatter(*plane.coordinates[~chosen].T, s=4, color=GREY, alpha=0.35, **look)
        axes.scatter(*plane.coordinates[chosen].T, s=7, color=_LOOKS[method][0], **look)
        if extents.max() < _ELONGATED * extents.min():  # else a strip would be left of them
            axes.set_aspect("equal")
        drawing.title(axes, METHODS[method])
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    name = drawing.short(selection.class_names[plane.label])
    drawing.figure_title(figure, f"{name}: {selection.kept[plane.label]:,} of {len(plane.coordinates):,} rows chosen")
    return figure
