"""The marginal effect: how the volume of a class grows with its samples, and where more of them add little."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.linalg import blas

from dsb_jax import validation
from dsb_jax.evaluation import drawing, page
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.points import Points

DRAWN_CLASSES = 10  # as in the paper's Figure 2
_GRID = 40  # numbers of samples at which the volume is read, if they are not given
_SATURATED = 0.05  # the last doubling of the samples adds less than this share


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
    """Volumes of growing parts of every class.

    Attributes:
      name: of the input.
      space: see :class:`dsb_jax.toolkit.Points`.
      class_names: C names.
      samples: of each class, ``[C]``.
      counts: numbers of samples m, rising, ``[G]``.
      volumes: in bits, ``[C, draws, G]``; NaN where a class has fewer samples.
    """

    name: str
    space: str
    class_names: tuple[str, ...]
    samples: np.ndarray
    counts: np.ndarray
    volumes: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over draws, ``[C, G]``."""
        return self.volumes.mean(axis=1)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation over draws, ``[C, G]``; NaN for a single one."""
        draws = self.volumes.shape[1]
        return self.volumes.std(axis=1, ddof=1) if draws > 1 else np.full_like(self.mean, np.nan)

    @functools.cached_property
    def last_doubling(self) -> np.ndarray:
        """What the second half of a class's samples added, as a share of its volume, ``[C]``; NaN below four."""
        found = np.full(len(self.class_names), np.nan)
        for label, volumes in enumerate(self.mean):
            there = np.flatnonzero(np.isfinite(volumes))
            if len(there) and self.counts[there[-1]] >= 4 and volumes[there[-1]] > 0:
                half = np.interp(self.counts[there[-1]] / 2, self.counts[there], volumes[there])
                found[label] = 1 - half / volumes[there[-1]]
        return found

    @functools.cached_property
    def linear_until(self) -> np.ndarray:
        """Samples up to which the volume grows faster than in proportion to them, ``[C]``; NaN where it never does.

        Between neighbouring numbers of samples the exponent ``Δ log S' / Δ log m`` says how fast: above 1 twice the
        samples are more than twice the volume.
        """
        found = np.full(len(self.class_names), np.nan)
        for label, exponents in enumerate(self.exponents):
            if len(exponents) and exponents[0] > 1:
                below = np.flatnonzero(exponents <= 1)
                last = below[0] if len(below) else np.isfinite(exponents).sum()
                found[label] = self.counts[last]
        return found

    @property
    def exponents(self) -> np.ndarray:
        """``Δ log S' / Δ log m`` between neighbouring numbers of samples, ``[C, G − 1]``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.diff(np.log(self.mean), axis=1) / np.diff(np.log(self.counts))
        return np.where(np.isfinite(slopes), slopes, np.nan)

    def reading(self) -> str:
        """One line."""
        measured = np.isfinite(self.last_doubling)
        if not measured.any():
            return "No class has four samples that differ, so nothing can be said of growth."
        saturated = int((self.last_doubling[measured] < _SATURATED).sum())
        text = (
            f"The second half of the samples adds {np.median(self.last_doubling[measured]):.1%} of the volume (median "
            f"of {measured.sum()} classes); in {saturated} it adds less than {_SATURATED:.0%}, so more samples like "
            "these would change little there."
        )
        hungry = [i for i in np.argsort(-np.nan_to_num(self.last_doubling))[:3] if self.last_doubling[i] >= _SATURATED]
        if hungry:
            text += f" More samples are worth most for {', '.join(self.class_names[i] for i in hungry)}."
        if np.isfinite(self.linear_until).any():
            text += (
                " Growth is faster than in proportion to the samples up to about "
                f"{np.nanmedian(self.linear_until):.0f} of them."
            )
        else:
            text += " Growth is nowhere faster than in proportion to the samples."
        return text

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each class."""
        headings = (
            "class",
            "samples",
            "volume (bits)",
            "± over draws at half",
            "second half adds",
            "faster than linear up to",
        )
        rows = []
        for label, name in enumerate(self.class_names):
            there = np.flatnonzero(np.isfinite(self.mean[label]))
            volume = self.mean[label, there[-1]] if len(there) else np.nan
            half = np.searchsorted(self.counts, self.samples[label] / 2)
            spread = self.deviation[label, min(half, len(self.counts) - 1)]
            cells = ((self.samples[label], "{:,.0f}"), (volume, "{:.2f}"), (spread, "{:.2f}"))
            cells += ((self.last_doubling[label], "{:.1%}"), (self.linear_until[label], "{:.0f}"))
            rows.append((name, *(page.number(value, form) for value, form in cells)))
        return headings, rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """Volume against samples, and the start of it on logarithmic axes."""
        shown = self.drawn_classes
        of = "each class" if len(shown) == len(self.class_names) else f"{len(shown)} of {len(self.class_names)} classes"
        return {
            "growth": (f"Volume of {of} by number of samples: mean and standard deviation over draws.", _curves(self)),
            "start": (
                f"The same of {of} on logarithmic axes; the grey lines are growth in proportion to the samples.",
                _start(self),
            ),
        }

    @property
    def drawn_classes(self) -> list[int]:
        """Of many classes some, at even distances by final volume."""
        final = np.array([v[np.isfinite(v)][-1] if np.isfinite(v).any() else np.nan for v in self.mean])
        order = [int(i) for i in np.argsort(final) if np.isfinite(final[i])]
        if len(order) <= DRAWN_CLASSES:
            return sorted(order)
        return [order[i] for i in np.linspace(0, len(order) - 1, DRAWN_CLASSES).round().astype(int)]

    def as_dict(self) -> dict[str, Any]:
        """By class."""
        return {
            "command": "marginal",
            "input": self.name,
            "space": self.space,
            "counts": self.counts,
            "draws": self.volumes.shape[1],
            "classes": {
                name: {
                    "samples": self.samples[i],
                    "mean": self.mean[i],
                    "deviation": self.deviation[i],
                    "second_half_adds": self.last_doubling[i],
                    "faster_than_linear_until": self.linear_until[i],
                }
                for i, name in enumerate(self.class_names)
            },
        }


def marginal(
    points: Points,
    *,
    counts: Sequence[int] | None = None,
    draws: int = 5,
    epsilon: float = 1.0,
    seed: int = 0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Growth:
    """The volume of every class by number of samples, in one pass over each random order of them.

    A draw puts a class's samples in a random order, and its first m are a sample of size m ("new samples are
    continuously added", Appendix K). Their scatter grows by what is added, ``O(d²)`` per sample; only the factorization
    is made anew at each m, of the smaller Gram matrix: below d samples this is a corner of one that is made once.

    Args:
      points: what is measured.
      counts: numbers of samples m at which the volume is read, each at least 1; by default 40 from 1 to the largest
        class, closer together at the beginning. A class's own size is always one of them.
      draws: random orders of each class.
      epsilon: radius of the volume.
      seed: of the orders.
      progress: ``(iterable, total) -> iterable``, through which the draws of all classes pass.

    Raises:
      ValueError: counts or draws that are no positive integers, or ``epsilon <= 0``.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> cloud = np.random.default_rng(0).normal(size=(64, 4))
      >>> found = marginal(points.of(cloud), counts=[2, 8, 64], draws=3)
      >>> bool((np.diff(found.mean[0]) > 0).all())
      True

    Source: Sec. 3.3 and Appendix K of the paper, Figures 2 and 22 (left).
    """
    epsilon, draws = validation.positive("epsilon", epsilon), validation.positive_int("draws", draws)
    samples = points.counts
    if counts is None:
        counts = np.unique(np.geomspace(1, max(samples.max(), 1), _GRID).round().astype(int))
    counts = [validation.positive_int("counts", int(count)) for count in counts]
    grid = np.unique([*(count for count in counts if count <= samples.max()), *samples[samples > 0]])
    order, _ = moments.sorted_by_class(points.labels, points.num_classes)
    stops = np.cumsum(samples)

    def of_draw(label_and_draw: tuple[int, int]) -> np.ndarray:
        label, draw = label_and_draw
        rows = order[stops[label] - samples[label] : stops[label]]
        rows = np.random.default_rng([seed, label, draw]).permutation(rows)
        return _volumes_of_first(points.points[rows].astype(np.float64), grid, epsilon)

    jobs = list(itertools.product(range(points.num_classes), range(draws)))
    done = map(of_draw, jobs)
    volumes = np.array(list(done if progress is None else progress(done, len(jobs))))
    volumes = volumes.reshape(points.num_classes, draws, len(grid))
    return Growth(points.name, points.space, points.class_names, samples, grid, volumes)


def _volumes_of_first(rows: np.ndarray, counts: np.ndarray, epsilon: float) -> np.ndarray:
    """The volume of the first m rows for every m of ``counts``, NaN where there are fewer."""
    total, dim = rows.shape
    volumes = np.full(len(counts), np.nan)
    if not total:
        return volumes
    rows = rows - rows.mean(axis=0)
    few = rows[: min(dim, total)]
    gram = few @ few.T if counts[0] <= len(few) else None
    products, sums, taken = np.zeros((dim, dim), order="F"), np.zeros(dim), 0
    for place, count in enumerate(counts[counts <= total]):
        if count <= len(few):
            matrix = gram[:count, :count]
            means = matrix.mean(axis=1)
            scatter = matrix - means[:, None] - means[None, :] + means.mean()
        else:
            added = rows[taken:count]
            products = blas.dsyrk(1.0, added.T, beta=1.0, c=products, overwrite_c=1)
            sums, taken = sums + added.sum(axis=0), count
            scatter = products - np.outer(sums, sums) / count
        volumes[place] = moments.volume_of_scatter(scatter, int(count), dim, epsilon=epsilon)
    return volumes


def _curves(found: Growth) -> Figure:
    figure, axes = drawing.figure_and_axes(height=drawing.HEIGHT * 1.15)
    ends = []
    for label in found.drawn_classes:
        there = np.isfinite(found.mean[label])
        counts, mean, spread = found.counts[there], found.mean[label, there], found.deviation[label, there]
        (line,) = axes.plot(counts, mean, linewidth=1.4, color=_shade(found, label))
        axes.fill_between(counts, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)
        ends.append(mean[-1])
    axes.set_xlabel("samples of the class")
    axes.set_ylabel("volume S′ (bits)")
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    drawing.plain_numbers(axes.xaxis)
    drawing.title(axes, f"{_space(found)} volume by number of samples")
    names = [found.class_names[label] for label in found.drawn_classes]
    drawing.label_line_ends(axes, float(found.counts[-1]), np.array(ends), names)
    return figure


def _start(found: Growth) -> Figure:
    figure, axes = drawing.figure_and_axes()
    lowest, highest = np.inf, 0.0
    for label in found.drawn_classes:
        there = np.isfinite(found.mean[label]) & (found.mean[label] > 0)
        axes.plot(found.counts[there], found.mean[label, there], linewidth=1.4, color=_shade(found, label))
        if there.any():
            lowest, highest = (
                min(lowest, found.mean[label, there].min()),
                max(highest, found.mean[label].max(where=there, initial=0)),
            )
    if np.isfinite(lowest):
        most = found.counts[-1]
        for begin in lowest * 4.0 ** np.arange(-8, 8):
            axes.plot(
                [2, most], [begin, begin * most / 2], color=drawing.GREY, linewidth=0.6, linestyle=(0, (3, 3)), zorder=1
            )
        axes.set_ylim(lowest / 1.3, highest * 1.3)
        axes.set_xscale("log")
        axes.set_yscale("log")
    drawing.plain_numbers(axes.xaxis)
    drawing.plain_numbers(axes.yaxis)
    axes.set_xlabel("samples of the class")
    axes.set_ylabel("volume S′ (bits)")
    drawing.title(axes, "Steeper than the grey lines: faster than linear")
    return figure


def _shade(found: Growth, label: int) -> tuple[float, ...]:
    """From few to many bits by the place among the classes drawn."""
    drawn = found.drawn_classes
    final = [np.nanmax(found.mean[one]) for one in drawn]
    place = np.argsort(np.argsort(final))[drawn.index(label)]
    return drawing.FEW_TO_MANY(place / max(len(drawn) - 1, 1))


def _space(found: Growth) -> str:
    return "Sample" if found.space == "sample" else "Feature" if found.space == "feature" else "The"
