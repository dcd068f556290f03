"""The marginal effect: how the volume of a class grows with its samples, and where more of them add little."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

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
      counts: of each class the numbers of samples m, rising to all that it has, ``[G]``; empty for a class of none.
      volumes: of each class in bits, ``[draws, G]``.
    """

    name: str
    space: str
    class_names: tuple[str, ...]
    counts: tuple[np.ndarray, ...]
    volumes: tuple[np.ndarray, ...]

    @property
    def samples(self) -> np.ndarray:
        """Of each class, ``[C]``."""
        return np.array([counts[-1] if len(counts) else 0 for counts in self.counts])

    @functools.cached_property
    def mean(self) -> list[np.ndarray]:
        """Over draws, C times ``[G]``."""
        return [volumes.mean(axis=0) for volumes in self.volumes]

    @functools.cached_property
    def deviation(self) -> list[np.ndarray]:
        """Standard deviation over draws, C times ``[G]``; NaN for a single one."""
        return [
            volumes.std(axis=0, ddof=1) if len(volumes) > 1 else np.full(volumes.shape[1], np.nan)
            for volumes in self.volumes
        ]

    @property
    def final(self) -> np.ndarray:
        """Volume of all samples, ``[C]``; NaN for a class of none."""
        return np.array([mean[-1] if len(mean) else np.nan for mean in self.mean])

    @functools.cached_property
    def last_doubling(self) -> np.ndarray:
        """What the second half of a class's samples added, as a share of its volume, ``[C]``; NaN below four."""
        found = np.full(len(self.class_names), np.nan)
        for label, (counts, mean) in enumerate(zip(self.counts, self.mean, strict=True)):
            if len(counts) and counts[-1] >= 4 and mean[-1] > 0:
                found[label] = 1 - np.interp(counts[-1] / 2, counts, mean) / mean[-1]
        return found

    def exponents(self, label: int) -> np.ndarray:
        """``Δ log S' / Δ log m`` of a class between neighbouring numbers of samples, ``[G − 1]``.

        Above 1, twice the samples are more than twice the volume. NaN from a volume of 0 on.
        """
        counts, mean = self.counts[label], self.mean[label]
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.diff(np.log(mean)) / np.diff(np.log(counts))
        return np.where(np.isfinite(slopes), slopes, np.nan)

    @functools.cached_property
    def linear_until(self) -> np.ndarray:
        """Samples up to which the volume grows faster than in proportion to them, ``[C]``; NaN where it never does."""
        found = np.full(len(self.class_names), np.nan)
        for label, counts in enumerate(self.counts):
            exponents = self.exponents(label)
            measured = np.flatnonzero(np.isfinite(exponents))
            if len(measured) and exponents[measured[0]] > 1:
                slower = measured[exponents[measured] <= 1]
                found[label] = counts[slower[0] if len(slower) else measured[-1] + 1]
        return found

    @functools.cached_property
    def drawn_classes(self) -> list[int]:
        """Of many classes some, at even distances by final volume."""
        measured = np.flatnonzero(np.isfinite(self.final))
        order = measured[np.argsort(self.final[measured], kind="stable")]
        if len(order) <= DRAWN_CLASSES:
            return sorted(order.tolist())
        return order[np.linspace(0, len(order) - 1, DRAWN_CLASSES).round().astype(int)].tolist()

    def reading(self) -> str:
        """One line."""
        measured = np.isfinite(self.last_doubling)
        if not measured.any():
            return "No class has four samples that differ, so nothing can be said of growth."
        adds, linear = self.last_doubling, self.linear_until
        saturated = int((adds[measured] < _SATURATED).sum())
        text = [
            f"The second half of the samples adds {np.median(adds[measured]):.1%} of the volume (median of "
            f"{measured.sum()} classes)."
        ]
        if saturated:
            all_there = saturated == measured.sum()
            text.append(
                f"In {'all' if all_there else saturated} it adds less than {_SATURATED:.0%}: more samples like these "
                f"would change little{'' if all_there else ' there'}."
            )
        hungry = [i for i in np.argsort(-np.nan_to_num(adds), kind="stable")[:3] if adds[i] >= _SATURATED]
        if hungry:
            text.append(f"More samples are worth most for {', '.join(self.class_names[i] for i in hungry)}.")
        if np.isfinite(linear).any():
            text.append(
                f"The first {np.nanmedian(linear):.0f} or so samples add more than in proportion, in part because a "
                "single one has no volume."
            )
        elif (first := min(counts[0] for counts in self.counts if len(counts))) > 2:
            text.append(f"How it begins cannot be said of counts from {first} on.")
        else:
            text.append("Growth is nowhere faster than in proportion to the samples.")
        return " ".join(text)

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each class."""
        rows = []
        for label, name in enumerate(self.class_names):
            counts = self.counts[label]
            half = np.searchsorted(counts, counts[-1] / 2) if len(counts) else 0
            spread = self.deviation[label][half] if len(counts) else np.nan
            cells = [(self.samples[label], "{:,.0f}"), (self.final[label], "{:.2f}"), (spread, "{:.2f}")]
            cells += [(self.last_doubling[label], "{:.1%}"), (self.linear_until[label], "{:.0f}")]
            rows.append((name, *(page.number(value, form) for value, form in cells)))
        return ("class", "samples", "volume (bits)", "± at half", "second half adds", "superlinear up to"), rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """Volume against samples, and the start of it on logarithmic axes."""
        shown, all_classes = len(self.drawn_classes), len(self.class_names)
        of = "each class" if shown == all_classes else f"{shown} of {all_classes} classes"
        return {
            "growth": (f"Volume of {of} by number of samples: mean and standard deviation over draws.", _curves(self)),
            "start": (
                f"The same of {of} on logarithmic axes; the grey lines are growth in proportion to the samples.",
                _start(self),
            ),
        }

    def as_dict(self) -> dict[str, Any]:
        """By class."""
        return {
            "name": self.name,
            "space": self.space,
            "draws": len(self.volumes[0]),
            "classes": {
                name: {
                    "counts": self.counts[i],
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

    A single sample has volume 0, and m of them span m − 1 directions: that the first few add more than in proportion is
    in part how volume is defined.

    Args:
      points: what is measured.
      counts: numbers of samples m at which the volume is read, each at least 1; by default 40 from 1 to the largest
        class, closer together at the beginning. A class's own size and half of it are always among its own.
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
    seed, samples = validation.integer("seed", seed, lowest=0), points.counts
    if counts is None:
        counts = np.geomspace(1, max(samples.max(), 1), _GRID).round().astype(int).tolist()
    grid = np.unique([validation.positive_int("counts", count) for count in counts])
    grids = tuple(_with_half(grid, int(total)) for total in samples)
    order, _ = moments.sorted_by_class(points.labels, points.num_classes)
    stops = np.cumsum(samples)

    def of_draw(label_and_draw: tuple[int, int]) -> np.ndarray:
        label, draw = label_and_draw
        rows = order[stops[label] - samples[label] : stops[label]]
        rows = np.random.default_rng([seed, label, draw]).permutation(rows)
        return _volumes_of_first(points.points[rows].astype(np.float64), grids[label], epsilon)

    jobs = list(itertools.product(range(points.num_classes), range(draws)))
    found = moments.on_all_cores(of_draw, jobs, progress)
    volumes = tuple(np.array(found[start : start + draws]) for start in range(0, len(jobs), draws))
    return Growth(points.name, points.space, points.class_names, grids, volumes)


def _with_half(grid: np.ndarray, total: int) -> np.ndarray:
    """The numbers below ``total``, with it and its half, from which on the second half adds; none of none."""
    own = [total // 2, total - total // 2, total]
    return np.unique([count for count in (*grid[grid < total], *own) if count > 0]).astype(int)


def _volumes_of_first(rows: np.ndarray, counts: np.ndarray, epsilon: float) -> np.ndarray:
    """The volume of the first m rows for every m of ``counts``, rising to all of them."""
    volumes = np.zeros(len(counts))
    if not len(rows):
        return volumes
    dim = rows.shape[1]
    rows = rows - rows.mean(axis=0)
    few = rows[:dim]
    gram = few @ few.T
    products, sums, taken = np.zeros((dim, dim)), np.zeros(dim), 0
    for place, count in enumerate(counts):
        if count <= len(few):
            corner = gram[:count, :count]
            means = corner.mean(axis=1)
            scatter = corner - means[:, None] - means[None, :] + means.mean()
        else:
            added = rows[taken:count]
            products += added.T @ added
            sums, taken = sums + added.sum(axis=0), count
            scatter = products - np.outer(sums, sums) / count
        volumes[place] = moments.volume_of_scatter(scatter, int(count), dim, epsilon=epsilon)
    return volumes


def _curves(found: Growth) -> Figure:
    figure, axes = drawing.figure_and_axes(height=drawing.HEIGHT * 1.15)
    for label in found.drawn_classes:
        counts, mean, spread = found.counts[label], found.mean[label], found.deviation[label]
        axes.plot(counts, mean, linewidth=1.4, color=_shade(found, label))
        axes.fill_between(counts, mean - spread, mean + spread, color=_shade(found, label), alpha=0.15, linewidth=0)
    axes.set_xlabel("samples of the class")
    axes.set_ylabel("volume S′ (bits)")
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    drawing.plain_numbers(axes.xaxis)
    space = {"sample": "Sample volume", "feature": "Feature volume"}.get(found.space, "Volume")
    drawing.title(axes, f"{space} by number of samples")
    names = [found.class_names[label] for label in found.drawn_classes]
    ends = found.samples[found.drawn_classes], found.final[found.drawn_classes]
    drawing.label_line_ends(axes, *ends, names)
    return figure


def _start(found: Growth) -> Figure:
    figure, axes = drawing.figure_and_axes()
    measured = [label for label in found.drawn_classes if found.final[label] > 0]
    if measured:
        positive = [found.mean[label][found.mean[label] > 0] for label in measured]
        lowest, highest = min(mean.min() for mean in positive), max(mean.max() for mean in positive)
        most = found.samples.max()
        for begin in lowest * 4.0 ** np.arange(-8, 8):
            axes.plot([2, most], [begin, begin * most / 2], color=drawing.GREY, linewidth=0.6, linestyle=(0, (3, 3)))
        for label, mean in zip(measured, positive, strict=True):
            axes.plot(found.counts[label][-len(mean) :], mean, linewidth=1.4, color=_shade(found, label))
        axes.set_ylim(lowest / 1.3, highest * 1.3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        if highest < 100 * lowest:
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    drawing.plain_numbers(axes.xaxis)
    drawing.plain_numbers(axes.yaxis)
    axes.set_xlabel("samples of the class")
    axes.set_ylabel("volume S′ (bits)")
    drawing.title(axes, "Steeper than the grey lines: faster than linear")
    return figure


def _shade(found: Growth, label: int) -> tuple[float, ...]:
    """From few to many bits by the place among the classes drawn."""
    drawn = found.drawn_classes
    place = np.argsort(np.argsort(found.final[drawn]))[drawn.index(label)]
    return drawing.FEW_TO_MANY(place / max(len(drawn) - 1, 1))
