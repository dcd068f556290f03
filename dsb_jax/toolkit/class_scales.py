"""How diverse each class is, and which classes are poor: volumes, interference and semantic scales of any points."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import dsb_jax
from dsb_jax import validation
from dsb_jax.evaluation import drawing, page, plots
from dsb_jax.toolkit import spaces
from dsb_jax.toolkit.moments import Moments
from dsb_jax.toolkit.points import Points
from dsb_jax.training.spaces import measures

LONG_TAIL = 2.0  # α is 2 from this ratio of the largest class to the smallest on, as for the paper's long-tailed data
_NAMED = 3  # classes that the reading names
_SMALLEST_RADIUS = 1e-100  # whose square float64 has


@dataclasses.dataclass(frozen=True, eq=False)
class Scales:
    """Measures of every class, ``[C]`` each.

    Attributes:
      name: of the input.
      space: see :class:`dsb_jax.toolkit.Points`.
      class_names: C names.
      samples: N.
      effective_number: E_n (Cui et al., 2019).
      volume: S' in bits, 0 for fewer than two samples.
      interclass: W, how far the class keeps from the others; NaN for a class without samples.
      scale: S = (S'/max S') ⊙ W; NaN where nothing was measured, that is below two samples.
      alpha: smoothing of W.
      epsilon: radius below which differences do not count.
      dim: d.
    """

    name: str
    space: str
    class_names: tuple[str, ...]
    samples: np.ndarray
    effective_number: np.ndarray
    volume: np.ndarray
    interclass: np.ndarray
    scale: np.ndarray
    alpha: float
    epsilon: float
    dim: int

    @property
    def poorest_first(self) -> np.ndarray:
        """Classes by how much they want augmentation: those too small to be measured, then by rising scale."""
        return np.argsort(np.where(np.isnan(self.scale), -1.0, self.scale), kind="stable")

    def imbalance(self) -> dict[str, float]:
        """The largest class over the smallest by samples, volume and scale: 1 is balance."""
        measured = {"samples": self.samples, "volume": self.volume, "scale": self.scale}
        return {key: _ratio(values) for key, values in measured.items()}

    def reading(self) -> str:
        """One line."""
        if not (self.volume > 0).any():
            why = "two samples" if (self.samples < 2).all() else "samples that differ"
            return f"No class has {why}, so none has a volume."
        if len(self.class_names) == 1:
            return f"{self.class_names[0]} takes up {self.volume[0]:.1f} bits; of a single class there is no imbalance."
        imbalance = self.imbalance()
        scale = f"the largest scale is {_times(imbalance['scale'])} the smallest"
        if imbalance["samples"] == 1:
            text = [f"All classes have the same number of samples, yet {scale}."]
        else:
            text = [f"The largest class has {_times(imbalance['samples'])} the samples of the smallest; {scale}."]
        if self.space != "cloud":
            poorest = [self.class_names[i] for i in self.poorest_first[:_NAMED]]
            text.append(f"Augment or collect first: {', '.join(poorest)}.")
        if (unmeasured := int(np.isnan(self.scale).sum())) > 0:
            text.append(f"{unmeasured} of {len(self.scale)} classes have fewer than two samples and no scale.")
        if (alike := np.flatnonzero((self.samples > 1) & (self.volume == 0))).size:
            more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
            text.append(f"All samples are alike of {', '.join(self.class_names[i] for i in alike[:_NAMED])}{more}.")
        return " ".join(text)

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each class, the poorest first."""
        headings = ("class", "samples N", "effective number", "volume S′ (bits)", "distance W", "scale S")
        columns = (self.samples, self.effective_number, self.volume, self.interclass, self.scale)
        forms = ("{:,.0f}", "{:,.0f}", "{:.2f}", "{:.3f}", "{:.3f}")
        rows = [
            (self.class_names[i], *(page.number(column[i], form) for column, form in zip(columns, forms, strict=True)))
            for i in self.poorest_first
        ]
        return headings, rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """Bars from the poorest class on, and from three classes the paper's radar."""
        figures = {
            "scales": (
                "Semantic scale and samples of each class, relative to the largest; the classes at the top are those "
                "to augment first."
                if len(self.scale) <= drawing.NAMED_CLASSES
                else "Semantic scale and samples of the classes, relative to the largest, from the poorest on.",
                _by_class(self),
            )
        }
        if len(self.scale) >= 3 and np.isfinite(self.scale).any():
            shown = min(len(self.scale), plots.RADAR_CLASSES)
            figures["radar"] = (
                f"Semantic scale and samples of {shown} classes, clockwise from most to fewest samples.",
                plots.scales_and_samples(self.scale, self.samples, class_names=self.class_names),
            )
        return figures

    def as_dict(self) -> dict[str, Any]:
        """By class, with what the numbers were made with."""
        columns = ("samples", "effective_number", "volume", "interclass", "scale")
        return {
            "name": self.name,
            "space": self.space,
            "dim": self.dim,
            "alpha": self.alpha,
            "epsilon": self.epsilon,
            "imbalance": self.imbalance(),
            "augment_first": [self.class_names[i] for i in self.poorest_first],
            "classes": {
                name: {column: getattr(self, column)[i] for column in columns}
                for i, name in enumerate(self.class_names)
            },
        }


def scales(
    points: Points,
    *,
    alpha: float | None = None,
    epsilon: float = 1.0,
    beta: float = 0.9999,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Scales:
    """Volume, interference, semantic scale and effective number of every class.

    ``S' = ½·log2 det(I + d/(m·ε²)·ZcᵀZc)`` in float64, ``W = log2(α + w/max w)`` with ``w`` the mean distance to the
    other classes' centres, ``S = (S'/max S') ⊙ W``.

    Args:
      points: what is measured.
      alpha: at least 1; by default 2 where the largest class has `LONG_TAIL` times the samples of the smallest or more,
        else 1, as the paper has it.
      epsilon: radius of the volume.
      beta: of the effective number.
      progress: ``(iterable, total) -> iterable``, through which the classes pass.

    Raises:
      ValueError: ``alpha < 1``, ``epsilon <= 0`` or ``beta`` outside [0, 1).

    Example:
      >>> from dsb_jax.toolkit import points
      >>> cloud = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
      >>> found = scales(points.of(cloud, np.array([0, 0, 1, 1, 2]), ["cat", "dog", "cow"]), alpha=1.0)
      >>> found.volume.round(4).tolist()
      [0.7925, 1.585, 0.0]
      >>> found.reading().split(". ")[-2]
      'Augment or collect first: cow, cat, dog'

    Source: Eq. 3 and Sec. 3.4.1 of the paper.
    """
    space = spaces.space(points, epsilon=_radius(epsilon), progress=progress)
    return _scales(points.name, points.space, points.class_names, points.counts, space, alpha, epsilon, beta)


def of_moments(
    of_classes: Sequence[Moments],
    class_names: Sequence[str],
    *,
    space: str = "feature",
    name: str = "points",
    alpha: float | None = None,
    epsilon: float = 1.0,
    beta: float = 0.9999,
) -> Scales:
    """:func:`scales` of what a stream or a pipeline has added up.

    Args:
      of_classes: C.
      class_names: C names.
      space: see :class:`dsb_jax.toolkit.Points`.
      name: likewise.
      alpha: as for :func:`scales`.
      epsilon: likewise.
      beta: likewise.

    Example:
      >>> cloud = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
      >>> of_moments([Moments.of(cloud[:2]), Moments.of(cloud[2:])], ["cat", "dog"]).volume.round(4).tolist()
      [0.7925, 1.585]
    """
    epsilon = _radius(epsilon)
    counts = np.array([one.count for one in of_classes])
    volumes = np.array([one.volume(epsilon=epsilon) for one in of_classes])
    space_of_classes = spaces.of(volumes, np.array([one.mean for one in of_classes]), counts)
    return _scales(name, space, tuple(class_names), counts, space_of_classes, alpha, epsilon, beta)


def _radius(epsilon: float) -> float:
    if validation.positive("epsilon", epsilon) < _SMALLEST_RADIUS:
        raise ValueError(f"epsilon must be at least {_SMALLEST_RADIUS:g}, or volumes overflow, got {epsilon:g}")
    return epsilon


def _scales(
    name: str,
    kind: str,
    class_names: tuple[str, ...],
    counts: np.ndarray,
    space: dict[str, np.ndarray],
    alpha: float | None,
    epsilon: float,
    beta: float,
) -> Scales:
    if alpha is None:
        alpha = 2.0 if _ratio(counts) >= LONG_TAIL else 1.0
    measured = measures(space, alpha)
    return Scales(
        name=name,
        space=kind,
        class_names=class_names,
        samples=counts,
        effective_number=np.asarray(dsb_jax.effective_number(counts, beta=beta), np.float64),
        volume=space["volumes"],
        interclass=np.where(space["present"], measured["interclass"].astype(np.float64), np.nan),
        scale=np.where(counts > 1, measured["scale"].astype(np.float64), np.nan),
        alpha=alpha,
        epsilon=epsilon,
        dim=space["centers"].shape[1],
    )


def _ratio(values: np.ndarray) -> float:
    """The largest over the smallest; infinite where a class has nothing, 1 where none has."""
    values = np.where(np.isnan(values), 0.0, values).astype(np.float64)
    if values.max() == values.min():
        return 1.0
    return float(values.max() / values.min()) if values.min() > 0 else math.inf


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times" if math.isfinite(ratio) else "infinitely many times (one has none)"


def _by_class(found: Scales) -> Figure:
    order = found.poorest_first
    scale = np.nan_to_num(found.scale[order]) / (np.nanmax(found.scale, initial=0.0) or 1.0)
    samples = found.samples[order] / max(found.samples.max(), 1)
    named = len(order) <= drawing.NAMED_CLASSES
    figure, axes = drawing.figure_and_axes(height=1.3 + 0.22 * len(order) if named else drawing.HEIGHT)
    places = np.arange(len(order))
    if named:
        axes.barh(places, scale, height=0.6, color=drawing.SCALE, label="semantic scale")
        axes.scatter(samples, places, s=26, color=drawing.ACCURACY, label="samples", zorder=4, linewidths=0)
        axes.set_yticks(places, [drawing.short(found.class_names[i]) for i in order], parse_math=False)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(0, 1.04)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        axes.fill_between(places, scale, color=drawing.SCALE, alpha=0.25, linewidth=0)
        axes.plot(places, scale, color=drawing.SCALE, linewidth=1.6, label="semantic scale")
        axes.scatter(places, samples, s=4, color=drawing.ACCURACY, label="samples", linewidths=0, rasterized=True)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("classes, from the poorest on")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    drawing.legend(axes)
    drawing.title(axes, "Relative to the largest", legend_lines=1)
    return figure
