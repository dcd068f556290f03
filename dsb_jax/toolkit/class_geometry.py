"""The geometry of classes: all measures of `manifolds` and `neighbourhoods` for each of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dsb_jax import validation
from dsb_jax.evaluation import paired
from dsb_jax.toolkit import geometry_plots, manifolds, moments, neighbourhoods
from dsb_jax.toolkit.points import Points

Progress = Callable[..., Iterable[Any]] | None

COMPARED_CLASSES = 100  # shapes of more are not compared in pairs
FACTORS = np.geomspace(1, 1000, 31)  # by which point clouds are scaled up
_AS_NOISE = 0.9  # of the curvature of noise: what has more may as well be that
_UNEQUAL = 2  # times as many points: classes are not compared
_NAMED = 3  # classes without a measure that the reading names
_DRAWN_CLOUDS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """What :func:`geometry` finds; NaN where a class has no such measure.

    Attributes:
      name: what the points are of.
      class_names: C names.
      counts: points of each class ``[C]``.
      volumes: in bits ``[C]``.
      separation: ``[C]``, see :func:`~dsb_jax.toolkit.manifolds.separation_degrees`; NaN of point clouds.
      participation: ``[C]``, see :func:`~dsb_jax.toolkit.manifolds.participation_ratio`.
      dimension: ``[C]``, the mean of :func:`~dsb_jax.toolkit.neighbourhoods.tight_local_estimate`.
      curvature: in radians ``[C]``, the mean of :func:`~dsb_jax.toolkit.neighbourhoods.curvature`.
      flat_curvature: likewise, of :func:`~dsb_jax.toolkit.manifolds.flat_reference`.
      parallelotope: in bits ``[C]``, see :func:`~dsb_jax.toolkit.manifolds.parallelotope_volume`.
      similarity: of each two classes ``[C, C]``, see :func:`~dsb_jax.toolkit.manifolds.shape_similarity`; None of more
        than `COMPARED_CLASSES`.
      chance: what directions that have nothing to do with each other have of it.
      neighbours: k of dimension and curvature.
      tangent_dimension: of the tangent spaces of all classes; 0 where no class is measured.
      measured: from how many points of each class dimension and curvature are ``[C]``.
      epsilon: of the volumes.
      clouds: of point clouds by their class, the measured points and the curvature at each of them; otherwise empty.
      scaled: of point clouds, their volumes when scaled up by `FACTORS` ``[C, F]``; otherwise None.
    """

    name: str
    class_names: tuple[str, ...]
    counts: np.ndarray
    volumes: np.ndarray
    separation: np.ndarray
    participation: np.ndarray
    dimension: np.ndarray
    curvature: np.ndarray
    flat_curvature: np.ndarray
    parallelotope: np.ndarray
    similarity: np.ndarray | None
    chance: float
    neighbours: int
    tangent_dimension: int
    measured: np.ndarray
    epsilon: float
    clouds: dict[int, tuple[np.ndarray, np.ndarray]]
    scaled: np.ndarray | None

    @property
    def densities(self) -> np.ndarray:
        """Volume per point ``[C]``, in bits."""
        return np.divide(self.volumes, self.counts, out=np.full(len(self.counts), np.nan), where=self.counts > 0)

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Names of the classes; of a single one the name of the points, which says more."""
        return self.class_names if len(self.class_names) > 1 else (self.name,)

    @property
    def _pairs(self) -> np.ndarray:
        """Similarities of each two different classes, NaN elsewhere."""
        similarity: Any = self.similarity  # asked for only where there is one
        return np.where(np.eye(len(self.counts), dtype=bool), np.nan, similarity)

    def reading(self) -> str:
        """What it says, in plain words, in one line."""
        parts = self._of_separation(), self._of_dimension(), self._of_curvature(), self._of_shapes(), self._of_scaling()
        return " ".join(filter(None, (*parts, self._of_gaps())))

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each class."""
        columns = {
            "volume (bits)": self.volumes,
            "density (bits)": self.densities,
            "separation": self.separation,
            "participation": self.participation,
            "dimension": self.dimension,
            "curvature (rad)": self.curvature,
            "of noise (rad)": self.flat_curvature,
            "parallelotope (bits)": self.parallelotope,
        }
        measures = zip(*columns.values(), strict=True)
        rows = [
            (name, f"{count:,}", *map(_number, of_class))
            for name, count, of_class in zip(self.class_names, self.counts, measures, strict=True)
        ]
        return ("class", "points", *columns), rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """Measures by class, shapes compared, and of point clouds where they bend and how their volumes grow."""
        figures = {}
        if len(self.class_names) > 1 or self.scaled is None:
            figures["measures"] = geometry_plots.measures(self)
        if self.similarity is not None and np.isfinite(self._pairs).any():
            figures["shapes"] = geometry_plots.shapes(self.name, self.class_names, self._pairs, self.chance)
        names = self.shown_names
        for number, (label, (points, turned)) in enumerate(list(self.clouds.items())[:_DRAWN_CLOUDS], start=1):
            if points.shape[1] == 3:
                figures[f"cloud_{number}"] = geometry_plots.cloud(names[label], points, turned)
        if self.scaled is not None:
            figures["scaling"] = geometry_plots.scaling(names, FACTORS, self.scaled)
        return figures

    def as_dict(self) -> dict[str, Any]:
        """All of it, but for the points of clouds."""
        measures = (
            "counts", "volumes", "densities", "separation", "participation", "dimension", "curvature",
            "flat_curvature", "parallelotope", "measured",
        )  # fmt: skip
        found = {name: getattr(self, name) for name in ("name", "epsilon", "neighbours", "tangent_dimension", "chance")}
        found["classes"] = {
            name: {measure: getattr(self, measure)[label] for measure in measures}
            for label, name in enumerate(self.class_names)
        }
        found["similarity"] = self.similarity
        if self.scaled is not None:
            found["scaled"] = {"factors": FACTORS, "volumes": self.scaled}
        return found

    def _at(self, measure: np.ndarray, extreme: Callable[[np.ndarray], np.intp]) -> tuple[str, float]:
        """The class where a measure is extreme, and its measure."""
        at = extreme(measure)
        return self.class_names[at], float(measure[at])

    def _of_separation(self) -> str:
        if np.isfinite(self.separation).sum() < 2:
            return ""
        (most, adds), (least, fewest) = (self._at(self.separation, each) for each in (np.nanargmax, np.nanargmin))
        return (
            f"{most} stands apart most, adding {_number(adds, '.1%')} of its own volume to that of the other classes, "
            f"and {least} least ({_number(fewest, '.1%')})."
        )

    def _of_dimension(self) -> str:
        known = np.isfinite(self.dimension)
        if not known.any():
            return ""
        if len(known) == 1:
            by = f"by its {self.neighbours} nearest neighbours"
            return f"{self.name} has {_number(self.dimension[0], '.1f')} dimensions about a point, {by}."
        (most, its), middle = self._at(self.dimension, np.nanargmax), np.median(self.dimension[known])
        said = f"{most} has most dimensions about a point ({its:.1f}; median {middle:.1f})"
        fewest, points = self.measured[known].min(), self.measured[known].max()
        if points > _UNEQUAL * fewest:
            return (
                f"{said}, which says little, as dimension and curvature depend on the number of points, here from "
                f"{fewest:,} to {points:,}; rows={fewest} measures all alike."
            )
        if self.scaled is not None:  # point clouds, which nothing learns
            return f"{said}."
        return f"{said}; Ma et al. found classes of more to be harder to learn."

    def _of_curvature(self) -> str:
        known = np.isfinite(self.curvature) & (self.flat_curvature > 0)
        if not known.any():
            return ""
        turn, flat = (float(np.median(each[known])) for each in (self.curvature, self.flat_curvature))
        noise = f"noise of the same covariance, which lies on none, by {flat:.2f}"
        if turn >= _AS_NOISE * flat:
            return (
                f"No curved surface can be seen: from a point to its neighbours tangent spaces turn by {turn:.2f} rad, "
                f"and those of {noise}."
            )
        most, its = self._at(self.curvature, np.nanargmax)
        where = f", most in {most} ({its:.2f})" if known.sum() > 1 else ""
        return (
            f"Points lie near a surface of {self.tangent_dimension} dimensions, which from a point to its neighbours "
            f"turns by {turn:.2f} rad{where}; {noise}."
        )

    def _of_shapes(self) -> str:
        if self.similarity is None or not np.isfinite(self._pairs).any():
            return ""
        row, column = np.unravel_index(np.nanargmax(self._pairs), self._pairs.shape)
        alike = f"{self.class_names[row]} and {self.class_names[column]}"
        return f"Most alike in shape are {alike} ({self._pairs[row, column]:.2f}; by chance {self.chance:.2f})."

    def _of_scaling(self) -> str:
        if self.scaled is None:
            return ""
        grows = bool((np.diff(self.scaled, axis=1) > 0).all())
        return (
            f"Scaled up from {FACTORS[0]:g} to {FACTORS[-1]:g} times, volume "
            f"{'grows' if grows else 'does not always grow'} with every step."
        )

    def _of_gaps(self) -> str:
        few, equal = self.counts <= self.neighbours, (self.counts > 1) & (self.volumes == 0)
        equal &= ~few
        fewer = f"dimension or curvature, which take more than {self.neighbours} points"
        its = "its" if equal.sum() == 1 else "their"
        alike = f"separation, dimension or curvature, as {its} points hardly differ beside epsilon"
        return " ".join(
            f"{_names(self.class_names, classes)} no {what}."
            for classes, what in ((few, fewer), (equal, alike))
            if classes.any()
        )


def geometry(
    points: Points,
    *,
    neighbours: int = 20,
    dimension: int | None = None,
    rows: int = 5000,
    epsilon: float = 1.0,
    seed: int = 0,
    progress: Progress = None,
) -> Geometry:
    """All measures of every class.

    Dimension and curvature are those of a class's own points, without the others; they take time and memory in
    proportion to the points they are measured from, some 0.3 s for 1000 of 64 numbers on two cores. As curvature goes
    down where points are closer together, classes are comparable where they have about as many: fewer ``rows`` make
    them so.

    Args:
      points: with classes.
      neighbours: k, of which dimension and curvature are; classes of no more points have neither.
      dimension: of the tangent spaces; None for the median of :func:`~dsb_jax.toolkit.neighbourhoods.tangent_dimension`
        over the classes, so that all are compared at the same.
      rows: from how many points of a class, drawn at random, dimension and curvature are measured at most.
      epsilon: of volumes, the error up to which points are told apart.
      seed: of what is drawn.
      progress: ``(iterable, total) -> iterable``, through which classes pass, four times; where dimension and curvature
        are of one class alone, blocks of its points instead.

    Returns:
      The finding.

    Raises:
      ValueError: a number is out of its range.

    Example:
      >>> from dsb_jax.toolkit.points import of
      >>> rng = np.random.default_rng(0)
      >>> ball, plane = rng.normal(size=(2, 300, 3)) * [[[1, 1, 1]], [[9, 9, 0]]]
      >>> found = geometry(of(np.concatenate([ball, plane]), np.repeat([0, 1], 300), ["ball", "plane"]), dimension=2)
      >>> found.dimension.round(), found.curvature.round(1)
      (array([3., 2.]), array([0.6, 0. ]))
    """
    neighbours = validation.integer("neighbours", neighbours, lowest=2)
    rows = validation.integer("rows", rows, lowest=neighbours + 1)
    epsilon, seed = validation.positive("epsilon", epsilon), validation.integer("seed", seed, lowest=0)
    dim, num_classes = points.points.shape[1], points.num_classes
    if dimension is not None:
        neighbourhoods.require_possible(dimension, neighbours, dim)

    compared = min(dim, neighbours) if num_classes <= COMPARED_CLASSES else 0
    whole = functools.partial(_whole, compared=compared, epsilon=epsilon, dtype=points.points.dtype)
    wholes = moments.of_classes(points.points, points.labels, num_classes, whole, progress)
    volumes, participation, parallelotope, directions = (list(each) for each in zip(*wholes, strict=True))
    separation = np.full(num_classes, np.nan)  # point clouds have coordinates of their own each
    if points.space != "cloud":
        separation = manifolds.separation_degrees(
            points.points, points.labels, num_classes, epsilon=epsilon, progress=progress
        )

    enough = (points.counts > neighbours) & (np.array(volumes) > 0)
    drawn = _drawn(points, np.flatnonzero(enough), rows, seed)
    dimensions, spread = _dimensions(points.points, drawn, neighbours, progress)
    dimension = dimension or round(float(np.median(spread or [0])))
    turned, flat = _curvatures(points.points, drawn, neighbours, dimension, seed, progress)

    def by_class(found: dict[int, float]) -> np.ndarray:
        return np.array([found.get(label, np.nan) for label in range(num_classes)])

    of_cloud = points.space == "cloud"
    return Geometry(
        name=points.name,
        class_names=points.class_names,
        counts=points.counts,
        volumes=np.array(volumes),
        separation=separation,
        participation=np.array(participation),
        dimension=by_class(dimensions),
        curvature=by_class({label: float(paired.mean(each)) for label, each in turned.items()}),
        flat_curvature=by_class(flat),
        parallelotope=np.array(parallelotope),
        similarity=_similarity(np.array(directions)) if compared else None,
        chance=manifolds.chance_similarity(dim),
        neighbours=neighbours,
        tangent_dimension=dimension,
        measured=np.array([len(drawn.get(label, ())) for label in range(num_classes)]),
        epsilon=epsilon,
        clouds={label: (points.points[own], turned[label]) for label, own in drawn.items()} if of_cloud else {},
        scaled=_scaled(points, epsilon) if of_cloud else None,
    )


def _whole(rows: np.ndarray, compared: int, epsilon: float, dtype: np.dtype) -> tuple[float, float, float, np.ndarray]:
    """Volume, participation ratio, volume of the parallelotope and first directions of a class, given as ``dtype``."""
    count, dim = rows.shape
    directions = np.full((compared, dim), np.nan)
    if not count:
        return 0.0, np.nan, np.nan, directions
    _, centred = moments.centred(rows)
    gram = moments.smaller_gram(centred)
    if count > compared > 0 and gram.any():
        directions[:] = manifolds.principal_directions(centred, compared)
    volume = moments.volume_of_scatter(gram, count, dim, epsilon=epsilon)
    return volume, manifolds.ratio_of_gram(gram), manifolds.parallelotope_volume(rows.astype(dtype)), directions


def _similarity(directions: np.ndarray) -> np.ndarray:
    """:func:`~dsb_jax.toolkit.manifolds.shape_similarity` of each two of ``[C, q, d]``."""
    return np.mean([np.abs(each @ each.T) for each in directions.swapaxes(0, 1)], axis=0)


def _drawn(points: Points, classes: np.ndarray, rows: int, seed: int) -> dict[int, np.ndarray]:
    """The rows of classes from which dimension and curvature are measured."""
    order, counts = moments.sorted_by_class(points.labels, points.num_classes)
    own = np.split(order, np.cumsum(counts)[:-1])
    return {
        label: np.sort(np.random.default_rng([seed, label]).choice(own[label], min(rows, counts[label]), replace=False))
        for label in classes.tolist()
    }


def _dimensions(
    points: np.ndarray, drawn: dict[int, np.ndarray], neighbours: int, progress: Progress
) -> tuple[dict[int, float], list[int]]:
    """Dimensions of classes, and those of their tangent spaces."""
    dimensions, spread = {}, []
    of_classes, of_blocks = _divided(progress, drawn)
    for label, rows in _through(of_classes, drawn):
        near = neighbourhoods.nearest(points[rows], neighbours)
        dimensions[label] = float(
            paired.mean(neighbourhoods.tight_local_estimate(points[rows], near, progress=of_blocks))
        )
        spread.append(neighbourhoods.tangent_dimension(points[rows], near))
    return dimensions, spread


def _curvatures(
    points: np.ndarray,
    drawn: dict[int, np.ndarray],
    neighbours: int,
    dimension: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """The curvature of classes at every point, and what it is on average in flat noise."""
    of_classes, of_blocks = _divided(progress, drawn)

    def turned(rows: np.ndarray) -> np.ndarray:
        near = neighbourhoods.nearest(rows, neighbours)
        return neighbourhoods.curvature(rows, near, dimension, progress=of_blocks)

    found, flat = {}, {}
    for label, rows in _through(of_classes, drawn):
        found[label] = turned(points[rows])
        flat[label] = float(paired.mean(turned(manifolds.flat_reference(points[rows], seed=seed))))
    return found, flat


def _divided(progress: Progress, drawn: dict[int, np.ndarray]) -> tuple[Progress, Progress]:
    """Progress of classes, and of blocks of points: of one class alone that of classes would tell nothing."""
    return (None, progress) if len(drawn) == 1 else (progress, None)


def _through(progress: Progress, drawn: dict[int, np.ndarray]) -> Iterable[tuple[int, np.ndarray]]:
    return drawn.items() if progress is None else progress(drawn.items(), len(drawn))


def _scaled(points: Points, epsilon: float) -> np.ndarray:
    """Volumes of every class, scaled up by `FACTORS`."""

    def of_class(rows: np.ndarray) -> np.ndarray:
        return manifolds.scaled_volumes(rows, FACTORS, epsilon=epsilon) if len(rows) else np.zeros(len(FACTORS))

    return np.stack(moments.of_classes(points.points, points.labels, points.num_classes, of_class))


def _number(value: float, digits: str = ".4g") -> str:
    if np.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if np.isinf(value) else f"{value:{digits}}".replace("-", "−")


def _names(class_names: Sequence[str], which: np.ndarray) -> str:
    """The names of some classes, and of how many more."""
    names = [class_names[label] for label in np.flatnonzero(which).tolist()]
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{shown} {'have' if len(names) > 1 else 'has'}"
