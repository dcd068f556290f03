"""How fast features change while a model trains, and whether a pool of earlier ones can stand for those of now.

Of the same n samples before and after some training the drift is (Wang et al., Cross-Batch Memory for Embedding
Learning, 2020, where Δ is a number of iterations)

    D = mean ‖f(x; θ_t) − f(x; θ_{t−Δ})‖,  here over the spread of the features of now, σ = √(mean ‖f − mean f‖²):

0 where nothing changes, and about 1.4 (√2) where the features before and after have nothing to do with each other.
Volumes do not change if all features turn together, and so drift is given after the best rotation, too. But a pool
holds features of different moments: in it they do not turn together, and what counts there is drift as it is.

The paper builds on two statements (Sec. 2): features are relatively stable after two passes over the data, and drift
gets extremely slow when the learning rate falls. Both are checked on the run at hand, in this form: while the rate is
what it was, no drift after the second pass is more than half of the largest before; and over three intervals after a
rate that at least halves, drift is at most half of that over three before. As drift falls with time whatever the rate
does, it must also be at most half of what its trend before the fall leads to, as a power of time or exponential in it,
whichever is less; or else nothing can be said. A third is what they stand for: weights from a pool, of which a random
half is of the snapshot before, are within 10 % of those from the features of now.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.linalg import orthogonal_procrustes
from scipy.stats import spearmanr

from dsb_jax import validation
from dsb_jax.evaluation import drawing, metrics
from dsb_jax.evaluation.drawing import ACCURACY, GREY, INK, SCALE
from dsb_jax.toolkit import moments, spaces
from dsb_jax.toolkit import points as pointsets
from dsb_jax.toolkit.inputs import run_features
from dsb_jax.toolkit.points import Points
from dsb_jax.training.spaces import measures as measures_of

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be said"

_PASSES = 2.0  # over the data, after which features are said to be stable
_SLOWER = 0.5  # of what a drift was, that it must come down to
_LOWER = 0.5  # likewise of a learning rate that falls
_AROUND = 3  # intervals before and after such a fall that are compared
_TREND = 3  # intervals before such a fall that tell where drift was going
_EVEN = 1.5  # times that the longest interval may be of the shortest, if their drifts are to be compared
_FRESH = 0.1  # relative error of a weight that a pool may have


class Statement(NamedTuple):
    """Something that is said of features, and whether it is so here.

    Attributes:
      claim: what is said.
      verdict: `HOLDS`, `FAILS` or `UNKNOWN`.
      why: the numbers behind it, or what is missing.
    """

    claim: str
    verdict: str
    why: str


@dataclasses.dataclass(frozen=True, eq=False)
class Drift:
    """Drift from each of T snapshots to the next. A :class:`dsb_jax.toolkit.findings.Finding`.

    Attributes:
      epochs: of the snapshots, ``[T]``.
      drifts: over the spread of the features after it, ``[T − 1]``; NaN where these are all alike.
      aligned: the same after the rotation and shift that bring the features before nearest to those after.
      spreads: σ of every snapshot, ``[T]``.
      learning_rates: between two snapshots, ``[T − 1]``; NaN where not known.
      old_errors: the largest relative error of a class weight 1/S from the features before, ``[T − 1]``.
      pool_errors: likewise from a pool, half of which is of the features before.
      rank_correlations: Spearman's ρ of the scales from that pool with those of now.
      worst: the class that pool is most wrong about, int ``[T − 1]``.
      start_epoch: at which weights are to begin.
      class_names: C names.
      name: what the features are of.
    """

    epochs: np.ndarray
    drifts: np.ndarray
    aligned: np.ndarray
    spreads: np.ndarray
    learning_rates: np.ndarray
    old_errors: np.ndarray
    pool_errors: np.ndarray
    rank_correlations: np.ndarray
    worst: np.ndarray
    start_epoch: float
    class_names: tuple[str, ...]
    name: str

    @functools.cached_property
    def statements(self) -> tuple[Statement, Statement, Statement]:
        """The paper's two, and whether the pool is fresh."""
        return self._stable(), self._slower(), self._fresh()

    def reading(self) -> str:
        """Each statement with its verdict."""
        return " ".join(f"{each.claim}: {each.verdict}; {each.why}." for each in self.statements)

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each interval."""
        headings = ["epochs", "drift", "aligned", "learning rate", "error, all old", "error, half old", "rho of scales"]
        columns = (self.drifts, self.aligned, self.learning_rates, self.old_errors, self.pool_errors)
        forms = (".4f", ".4f", ".4g", ".2%", ".2%", ".4f")
        rows = []
        for place, numbers in enumerate(zip(*columns, self.rank_correlations, strict=True)):
            cells = ["" if np.isnan(cell) else format(cell, form) for cell, form in zip(numbers, forms, strict=True)]
            rows.append([f"{self.epochs[place]:.4g} to {self.epochs[place + 1]:.4g}", *cells])
        return headings, rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """Drift with the learning rate, and what the pool makes of it."""
        return {
            "drift": (
                "How far features move from one snapshot to the next, in units of their spread (1.4: nothing of them "
                "is left), as they are and after the best rotation.",
                self._drift_figure(),
            ),
            "weights": (
                "The largest error of a class weight if all features, or a random half of them, are those of the "
                "snapshot before; up to the dashed line a pool counts as fresh.",
                self._weights_figure(),
            ),
        }

    def as_dict(self) -> dict[str, Any]:
        """All numbers and statements."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["class_names"] = list(self.class_names)
        return fields | {"statements": [each._asdict() for each in self.statements]}

    @property
    def _middles(self) -> np.ndarray:
        return (self.epochs[1:] + self.epochs[:-1]) / 2

    @property
    def _falls(self) -> np.ndarray:
        """The intervals in which the learning rate is at most half of what it was in the one before."""
        with np.errstate(invalid="ignore"):
            return 1 + np.flatnonzero(self.learning_rates[1:] <= _LOWER * self.learning_rates[:-1])

    def _incomparable(self) -> str:
        """Why drifts do not compare, if they do not."""
        if np.isnan(self.drifts).any():
            return "at some snapshot all features are alike"
        lengths = np.diff(self.epochs)
        if lengths.max() <= _EVEN * lengths.min():
            return ""
        return f"snapshots are {lengths.min():.3g} to {lengths.max():.3g} epochs apart, and drifts do not compare"

    def _stable(self) -> Statement:
        claim = "After two passes drift is at most half of what it was"
        early = self._middles < _PASSES
        late = ~early & (np.arange(len(early)) < min(self._falls, default=len(early)))
        if incomparable := self._incomparable():
            return Statement(claim, UNKNOWN, incomparable)
        if not early.any() or not late.any():
            when = "after the second pass and before the rate falls" if early.any() else "before the second pass ends"
            return Statement(claim, UNKNOWN, f"there is no pair of snapshots {when}")
        before, after = np.max(self.drifts[early]), self.drifts[late]
        above = np.flatnonzero(~(after <= _SLOWER * before))
        text = f"it was up to {before:.2g} of the spread before, and is {after.min():.2g} to {after.max():.2g} after"
        if self.epochs[0] >= 1:
            text += " (the first pass, of which most is expected, is not among the snapshots)"
        if not above.size:
            return Statement(claim, HOLDS, text)
        if above[-1] + 1 == len(after):
            return Statement(claim, FAILS, f"{text}, not half for good before the rate falls or the run ends")
        settled = self.epochs[:-1][late][above[-1] + 1]
        return Statement(claim, FAILS, f"{text}, half or less only from epoch {settled:.3g} on")

    def _slower(self) -> Statement:
        claim = "Drift falls to half or less when the learning rate does"
        if np.isnan(self.learning_rates).any():
            return Statement(claim, UNKNOWN, "the learning rate is not known")
        if incomparable := self._incomparable():
            return Statement(claim, UNKNOWN, incomparable)
        if not len(self._falls):
            text = "the rate never halves from one snapshot to the next"
            if np.ptp(self.learning_rates) > 0 and len(self.drifts) > 2:
                rho = float(spearmanr(self.learning_rates, self.drifts).statistic)
                text += f"; drift goes with it at ρ = {rho:.2f}".replace("-", "−") + ", but may fall with time alone"
            return Statement(claim, UNKNOWN, text)
        told, verdicts, edges = [], [], [0, *self._falls, len(self.drifts)]
        for first, fall, last in zip(edges, edges[1:], edges[2:], strict=False):
            stop = min(last, fall + _AROUND)
            before = float(np.mean(self.drifts[max(first, fall - _AROUND) : fall]))
            after = float(np.mean(self.drifts[fall:stop]))
            by_time = self._by_time(slice(first, fall), slice(fall, stop))
            beyond = HOLDS if after <= _SLOWER * by_time else UNKNOWN
            verdicts.append(beyond if after <= _SLOWER * before else FAILS)
            text = f"from {before:.2g} to {after:.2g} at epoch {self.epochs[fall]:.3g}"
            told.append(text if np.isnan(by_time) else f"{text} (by the trend before to {by_time:.2g})")
        verdict = next(each for each in (FAILS, UNKNOWN, HOLDS) if each in verdicts)
        text = f"it went {', '.join(told)}"
        if verdict == UNKNOWN:
            text += f"; it falls with time as well, which may be all, or cannot be told from under {_TREND} intervals"
        return Statement(claim, verdict, text)

    def _by_time(self, before: slice, after: slice) -> float:
        """Where drift was going, by the steeper one of two trends; NaN where too few intervals tell."""
        known, times = self.drifts[before], self._middles
        if len(known) < _TREND or not (known > 0).all() or times[before][0] <= 0:
            return math.nan
        trends = (np.polynomial.Polynomial.fit(t[before], np.log(known), 1)(t[after]) for t in (times, np.log(times)))
        return min(float(np.mean(np.exp(trend))) for trend in trends)

    def _fresh(self) -> Statement:
        claim = f"At epoch {self.start_epoch:g} a pool is fresh enough for weights within {_FRESH:.0%}"
        ends = self.epochs[1:]
        at = int(np.argmin(np.abs(ends - self.start_epoch)))
        length = self.epochs[at + 1] - self.epochs[at]
        if abs(ends[at] - self.start_epoch) > max(length / 2, 0.5):
            return Statement(claim, UNKNOWN, f"the nearest pair of snapshots ends at epoch {ends[at]:.3g}")
        error = self.pool_errors[at]
        if np.isnan(error):
            return Statement(claim, UNKNOWN, "fewer than two classes have a scale")
        text = (
            f"with a half that is {length:.2g} {'epoch' if length == 1 else 'epochs'} old weights are off by up to "
            f"{error:.1%} "
            f"({self.class_names[self.worst[at]]}) at epoch {ends[at]:.3g}"
        )
        if error <= _FRESH:
            return Statement(claim, HOLDS, text)
        stale = np.flatnonzero(~(self.pool_errors <= _FRESH))
        if stale[-1] + 1 < len(ends):
            text += f"; they stay within from epoch {ends[stale[-1] + 1]:.3g} on"
        return Statement(claim, FAILS, text)

    def _drift_figure(self) -> Figure:
        rates = bool(np.isfinite(self.learning_rates).any())
        figure, (above, *lowest) = drawing.stacked_axes(1 + rates)
        self._lines(above, ("as they are", self.drifts), ("rotated", self.aligned))
        above.set_ylabel("drift / spread")
        drawing.logarithmic_if_wide(above, "y", np.concatenate([self.drifts, self.aligned]))
        for axes in lowest:
            axes.stairs(self.learning_rates, self.epochs, color=INK, linewidth=1.3, baseline=None)
            axes.set_ylabel("learning rate")
            drawing.logarithmic_if_wide(axes, "y", self.learning_rates)
        drawing.title(above, f"Drift of features: {drawing.short(self.name, 34)}", legend_lines=1)
        self._mark(figure)
        return figure

    def _weights_figure(self) -> Figure:
        figure, (above, below) = drawing.stacked_axes(2)
        self._lines(above, ("half of them old", 100 * self.pool_errors), ("all old", 100 * self.old_errors))
        above.axhline(100 * _FRESH, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        above.set_ylabel("largest error (%)")
        drawing.logarithmic_if_wide(above, "y", 100 * np.concatenate([self.pool_errors, self.old_errors]))
        below.plot(self.epochs[1:], self.rank_correlations, color=SCALE, marker=".", markersize=4, linewidth=1.3)
        below.set_ylabel("ρ of scales")
        drawing.title(above, "Class weights from features of before", legend_lines=1)
        self._mark(figure)
        return figure

    def _lines(self, axes: Axes, *lines: tuple[str, np.ndarray]) -> None:
        """Two, with their names."""
        for (label, values), colour, dashes in zip(lines, (SCALE, ACCURACY), ("-", (0, (4, 1.5))), strict=True):
            style: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": ".", "markersize": 4}
            axes.plot(self.epochs[1:], values, label=label, linewidth=1.4, **style)
        drawing.legend(axes)

    def _mark(self, figure: Figure) -> None:
        """Two passes, and the epoch at which weights begin."""
        for axes in figure.axes:
            for epoch in (_PASSES, self.start_epoch):
                if self.epochs[0] <= epoch <= self.epochs[-1]:
                    axes.axvline(epoch, color=GREY, linewidth=0.8, zorder=0)
        figure.axes[-1].set_xlabel(f"epoch (lines: two passes, and epoch {self.start_epoch:g}, when weights begin)")


def drift(
    features: Iterable[ArrayLike],
    labels: ArrayLike,
    epochs: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    learning_rates: ArrayLike | None = None,
    start_epoch: float = 5.0,
    alpha: float = 2.0,
    epsilon: float = 1.0,
    seed: int = 0,
    name: str = "features",
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Drift:
    """The drift of features over snapshots of a model.

    Args:
      features: of the same samples in the same order at each snapshot, floating ``[n, d]``; two are held at a time.
      labels: classes of the samples, int ``[n]``.
      epochs: passes over the data until each snapshot, rising, ``[T]`` with T >= 2.
      class_names: by default the numbers of the labels.
      learning_rates: of the training that led to each snapshot, ``[T]``; the first is not used.
      start_epoch: at which weights are to begin.
      alpha: of the scales.
      epsilon: of the volumes.
      seed: draws the half of each class that is of before in the pool.
      name: what the features are of, for titles.
      progress: ``(iterable, total) -> iterable``, through which the snapshots pass.

    Returns:
      Drift, weight errors and statements.

    Raises:
      ValueError: if lengths differ, epochs do not rise, there are fewer than two snapshots, one is not finite or of
        another shape, or ``start_epoch`` is no epoch.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> labels, final = np.repeat([0, 1], 50), rng.normal(size=(100, 8)) * np.repeat([3, 6], 50)[:, None]
      >>> snapshots = [final + 9 / 2**epoch * rng.normal(size=final.shape) for epoch in range(1, 8)]
      >>> found = drift(snapshots, labels, range(1, 8), learning_rates=[0.1] * 7)
      >>> print(found.drifts.round(2))
      [0.91 0.52 0.25 0.12 0.06 0.03]
      >>> [each.verdict for each in found.statements]
      ['does not hold', 'cannot be said', 'holds']

    Source: Ma et al., Delving into Semantic Scale Imbalance, 2023, Sec. 2; Wang et al., 2020.
    """
    (epochs,) = metrics.vectors(epochs=epochs)
    start_epoch = validation.at_least("start_epoch", start_epoch, 0)
    if len(epochs) < 2 or not (np.diff(epochs) > 0).all():
        raise ValueError(f"epochs must be of two snapshots or more and rise, got {epochs.tolist()}")
    rates = np.full(len(epochs), np.nan) if learning_rates is None else learning_rates
    _, rates = metrics.vectors(epochs=epochs, learning_rates=rates)
    spreads, pairs, before = [], [], None
    for place, rows in enumerate(features if progress is None else progress(features, len(epochs))):
        if place == len(epochs):
            raise ValueError(f"{name}: epochs are of {len(epochs)} snapshots, got more")
        at = f"{name} at epoch {epochs[place]:g}"
        now = _snapshot(pointsets.of(rows, labels, class_names, name=at), alpha, epsilon)
        spreads.append(now.spread)
        if before is None:
            old = _half_of_each_class(now.points, seed)
        else:
            pairs.append(_pair(before, now, old, alpha, epsilon))
        before = now
    if len(spreads) != len(epochs):
        raise ValueError(f"{name}: epochs are of {len(epochs)} snapshots, got {len(spreads)}")
    drifts, aligned, old_errors, pool_errors, rank_correlations, worst = map(np.array, zip(*pairs, strict=True))
    return Drift(
        epochs=epochs,
        drifts=drifts,
        aligned=aligned,
        spreads=np.array(spreads),
        learning_rates=rates[1:],
        old_errors=old_errors,
        pool_errors=pool_errors,
        rank_correlations=rank_correlations,
        worst=worst,
        start_epoch=start_epoch,
        class_names=now.points.class_names,
        name=name,
    )


def of_points(snapshots: Iterable[Points], epochs: ArrayLike, **options: Any) -> Drift:
    """Likewise of points, as they are read from files: of the same samples at each snapshot.

    Args:
      snapshots: with the same labels.
      epochs: of these, ``[T]``.
      **options: of :func:`drift`, but for ``class_names`` and ``name``.

    Raises:
      ValueError: as :func:`drift` does, and if labels differ.
    """
    iterator = iter(snapshots)
    first = next(iterator, None)
    if first is None:
        raise ValueError("drift needs two snapshots or more, got none")

    def features() -> Iterator[np.ndarray]:
        yield first.points
        for each in iterator:
            shapes = [list(points.points.shape) for points in (first, each)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{each.name} must have the shape of {first.name}, {shapes[0]}, got {shapes[1]}")
            if not np.array_equal(each.labels, first.labels):
                raise ValueError(f"{each.name} must have the labels of {first.name} in the same order: got others")
            yield each.points

    return drift(features(), first.labels, epochs, class_names=first.class_names, name=first.name, **options)


def of_run(
    workdir: str | os.PathLike[str],
    *,
    split: str = "train",
    start_epoch: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Drift:
    """Likewise of a run, from the checkpoints that it kept.

    A run keeps all of its checkpoints with ``keep_checkpoints`` of at least its epochs, one each ``save_every`` epochs.

    Args:
      workdir: the run's, which is only read.
      split: ``"train"`` or ``"test"``.
      start_epoch: at which weights are to begin; by default as the run has it, or 5.
      data_dir: where its dataset lies here; by default as the run has it.
      progress: ``(iterable, total) -> iterable``, through which the checkpoints pass.

    Raises:
      ValueError: if there is no run, or it kept fewer than two checkpoints.
      FileNotFoundError: if its dataset is not prepared.

    Example:
      >>> of_run("runs/none")
      Traceback (most recent call last):
      ValueError: input must be the workdir of a run, got 'runs/none': there is no config.json
    """
    run = run_features.load(workdir, split=split, data_dir=data_dir)
    if len(run.steps) < 2:
        raise ValueError(
            f"drift needs two checkpoints or more, got {len(run.steps)} in {workdir}: a run keeps them with "
            "keep_checkpoints=1000,save_every=1"
        )
    if start_epoch is None:
        start_epoch = run.config.start_epoch if run.config.start_epoch is not None else 5
    return of_points(
        (run.points(step) for step in run.steps),
        [run.epoch(step) for step in run.steps],
        learning_rates=[
            run.learning_rate(first, last) for first, last in zip((0, *run.steps), run.steps, strict=False)
        ],
        start_epoch=start_epoch,
        alpha=run.experiment.alpha,
        epsilon=run.config.dsb.epsilon,
        progress=progress,
    )


class _Snapshot(NamedTuple):
    """Points with their spread and the class weights 1/S, of mean 1, NaN for a class that has no scale."""

    points: Points
    spread: float
    weights: np.ndarray


def _snapshot(points: Points, alpha: float, epsilon: float) -> _Snapshot:
    rows = points.points.astype(np.float64)
    spread = np.sqrt(np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1)))
    scales = measures_of(spaces.space(points, epsilon=epsilon), alpha)["scale"].astype(np.float64)
    weights = np.divide(1.0, scales, out=np.full(len(scales), np.nan), where=scales > 0)
    if (scales > 0).any():
        weights /= np.mean(weights[scales > 0])
    return _Snapshot(points, float(spread), weights)


def _pair(before: _Snapshot, now: _Snapshot, old: np.ndarray, alpha: float, epsilon: float) -> tuple[float | int, ...]:
    """Drift as it is and aligned; errors of old weights and the pool's; ρ of the latter, and where they are worst."""
    if before.points.points.shape != now.points.points.shape:
        shapes = [list(each.points.points.shape) for each in (before, now)]
        raise ValueError(f"{now.points.name}: snapshots must be of the same samples, got {shapes[0]}, then {shapes[1]}")
    mixed = np.where(old[:, None], before.points.points, now.points.points)
    pool = _snapshot(dataclasses.replace(now.points, points=mixed), alpha, epsilon)
    moved = _moved(before.points.points, now.points.points)
    drifts = [distance / now.spread if now.spread else math.nan for distance in moved]
    known = np.isfinite(before.weights + pool.weights + now.weights)
    if known.sum() < 2:
        return (*drifts, math.nan, math.nan, math.nan, 0)
    errors = [np.abs(each.weights / now.weights - 1) for each in (before, pool)]
    # Of weights that are all alike there is no order, and spearmanr would warn.
    varied = np.ptp(pool.weights[known]) > 0 and np.ptp(now.weights[known]) > 0
    rho = spearmanr(pool.weights[known], now.weights[known]).statistic if varied else math.nan
    worst = int(np.flatnonzero(known)[errors[1][known].argmax()])
    return (*drifts, *(float(each[known].max()) for each in errors), float(rho), worst)


def _moved(before: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """The mean distance, as it is and after the best rotation and shift."""
    before, now = before.astype(np.float64), now.astype(np.float64)
    as_it_is = np.mean(np.linalg.norm(now - before, axis=1))
    before, now = before - before.mean(axis=0), now - now.mean(axis=0)
    rotation, _ = orthogonal_procrustes(before, now)
    return float(as_it_is), float(np.mean(np.linalg.norm(now - before @ rotation, axis=1)))


def _half_of_each_class(points: Points, seed: int) -> np.ndarray:
    """Bool ``[n]``; of an odd number the smaller half."""
    rng = np.random.default_rng(seed)
    order, counts = moments.sorted_by_class(points.labels, points.num_classes)
    chosen = np.zeros(len(order), bool)
    for rows in np.split(order, np.cumsum(counts)[:-1]):
        chosen[rng.permutation(rows)[: len(rows) // 2]] = True
    return chosen
