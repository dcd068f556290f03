"""Measures of the points of a class as a whole: how far from others, of how many dimensions, how large, of which shape.

Ma et al. proposed them after semantic scale, for what they call perceptual manifolds: the features of a class.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from dsb_jax import validation
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.points import of


def separation_degrees(
    points: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    epsilon: float = 1.0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> np.ndarray:
    """By how much of its own volume each class adds to that of all.

    S(M_i) = (Vol(Z) − Vol(Z without class i)) / Vol(Z_i). It is no distance: of two classes each has its own. A class
    that lies among the others adds little; it even takes away, S < 0, where it makes all more compact.

    Two passes over the points and 4·√C matrices ``[d, d]``: classes are added up in √C groups, then within each group.

    Args:
      points: ``[n, d]``.
      labels: integers ``[n]`` in ``[0, C)``.
      num_classes: C.
      epsilon: the error up to which points are told apart.
      progress: ``(iterable, total) -> iterable``, through which the groups pass.

    Returns:
      float64 ``[C]``; NaN for a class of volume 0, such as one of fewer than two points, and where there is no other.

    Raises:
      ValueError: shapes, dtypes or labels are wrong, or a point is not finite.

    Example:
      >>> square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
      >>> points = np.concatenate([square, square + [9, 0], square + 0.1])
      >>> separation_degrees(points, np.repeat([0, 1, 2], 4), 3).round(2)
      array([-0.12,  3.95, -0.15])

    Source: Ma et al., Curvature-Balanced Feature Manifold Learning for Long-Tailed Classification, 2023.
    """
    epsilon, num_classes = validation.positive("epsilon", epsilon), validation.positive_int("num_classes", num_classes)
    checked = of(points, labels, [str(label) for label in range(num_classes)])
    points, labels = checked.points, checked.labels
    size = math.isqrt(num_classes - 1) + 1
    starts = range(0, num_classes, size)
    groups = moments.of_classes(points, labels // size, len(starts), moments.Moments.of)
    whole = functools.reduce(lambda a, b: a + b, groups).volume(epsilon=epsilon)
    order, counts = moments.sorted_by_class(labels // size, len(starts))
    degrees = np.full(num_classes, np.nan)
    work = zip(starts, np.split(order, np.cumsum(counts)[:-1]), moments.all_but_each(groups), strict=True)
    for start, rows, outside in work if progress is None else progress(work, len(starts)):
        number = min(size, num_classes - start)
        parts = moments.of_classes(points[rows], labels[rows] - start, number, moments.Moments.of)
        _, *rests = moments.all_but_each([outside, *parts])
        for label, (part, rest) in enumerate(zip(parts, rests, strict=True), start):
            own = part.volume(epsilon=epsilon)
            if own > 0 and rest.count:
                degrees[label] = (whole - rest.volume(epsilon=epsilon)) / own
    return degrees


def density(points: ArrayLike, *, epsilon: float = 1.0) -> float:
    """Volume per point, in bits.

    Args:
      points: ``[m, d]``.
      epsilon: the error up to which points are told apart.

    Raises:
      ValueError: the points are no finite matrix.

    Example:
      >>> round(density(np.eye(3)), 4)
      0.3333

    Source: perceptual_manifold_geometry 0.1.4 (Ma, 2024).
    """
    rows = of(points).points
    return moments.volume(rows, epsilon=validation.positive("epsilon", epsilon)) / len(rows)


def participation_ratio(points: ArrayLike) -> float:
    """In how many directions points spread: (tr Σ)² / tr(Σ²) of their covariance Σ, from 1 to d.

    With the eigenvalues λ of Σ it is (Σλ)² / Σλ²: q if q of them are equal and the others 0. The square is that of the
    matrix, and the points are centred; the authors' package squares element by element and does not.

    Args:
      points: ``[m, d]``.

    Returns:
      The ratio; NaN where all points are equal.

    Raises:
      ValueError: the points are no finite matrix.

    Example:
      >>> round(participation_ratio(np.random.default_rng(0).normal(size=(9999, 5)) * [2, 2, 2, 0, 0]), 2)
      3.0

    Source: Gao et al., A Theory of Multineuronal Dimensionality, Dynamics and Measurement, 2017.
    """
    return ratio_of_gram(moments.smaller_gram(moments.centred(of(points).points)[1]))


def ratio_of_gram(gram: np.ndarray) -> float:
    """:func:`participation_ratio` of centred points by either of their Gram matrices."""
    largest = np.abs(gram).max()
    return float(np.trace(gram / largest) ** 2 / np.square(gram / largest).sum()) if largest > 0 else math.nan


def parallelotope_volume(points: ArrayLike) -> float:
    """The volume of the parallelotope that points span as vectors from the origin: log2 √det ZᵀZ, in bits.

    Z has the m points as its columns, and the Gram matrix their products. Vectors are not centred: they are edges. Of
    more points than dimensions, which no parallelotope has room for, it is log2 √det ZZᵀ, that of the d rows of Z: by
    the formula of Cauchy and Binet the root of the sum of the squared volumes of what any d of the points span. Either
    is the product of the singular values of Z, and far from the origin grows with the distance from it.

    Args:
      points: ``[m, d]``, a point in a row.

    Returns:
      Bits; −∞ where the points, or the dimensions, depend on each other.

    Raises:
      ValueError: the points are no finite matrix.

    Example:
      >>> area = 2 ** parallelotope_volume([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
      >>> bool(np.isclose(area, np.linalg.norm(np.cross([1, 2, 3], [3, 2, 1]))))
      True

    Source: Ma et al., Delving into Semantic Scale Imbalance, 2023, Appendix G.
    """
    given = of(points).points
    rows = given.astype(np.float64)
    triangle = np.linalg.qr(rows if len(rows) >= rows.shape[1] else rows.T, mode="r")
    # What is left of each edge beside all longer ones: the last is the height of a parallelotope that may have none.
    heights = np.abs(np.diagonal(linalg.qr(triangle, mode="r", pivoting=True)[0]))
    rounding = max(max(rows.shape) * np.finfo(np.float64).eps, np.finfo(given.dtype).eps)  # of this, and of the points
    if heights[-1] <= rounding * heights[0]:
        return -math.inf
    return float(np.log2(heights).sum())


def shape_similarity(a: ArrayLike, b: ArrayLike, *, directions: int | None = None) -> float:
    """Whether two classes spread in the same directions: the mean of |⟨u_i, v_i⟩|, from 0 to 1.

    u_i and v_i are the eigenvectors of the covariance matrices of both, by falling eigenvalue. The published measure is
    the sum, d times as much.

    What it says depends on eigenvalues that differ. Where two are (nearly) equal their eigenvectors may be any of a
    plane, or be numbered the other way round, which makes two classes of the same shape dissimilar; and where a class
    has no more points than directions are compared, the last ones are those of nothing. Directions that have nothing
    to do with each other do not give 0, but :func:`chance_similarity`, some 0.8/√d.

    Args:
      a: points ``[m, d]``.
      b: points ``[n, d]``.
      directions: how many of the first eigenvectors are compared; None for all d.

    Raises:
      ValueError: the points are no finite matrices of one width, or there are not as many directions.

    Example:
      >>> flat = np.random.default_rng(0).normal(size=(2, 500, 3)) * [4, 2, 1]
      >>> bool(shape_similarity(*flat) > 0.99), bool(shape_similarity(flat[0], flat[1][:, ::-1]) < 0.4)
      (True, True)

    Source: Ma et al., Geometric Prior Guided Feature Representation Learning for Long-Tailed Classification, 2024.
    """
    a, b = of(a, name="a").points.astype(np.float64), of(b, name="b").points.astype(np.float64)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be points of as many dimensions, got {a.shape[1]} and {b.shape[1]}")
    directions = a.shape[1] if directions is None else validation.positive_int("directions", directions)
    if directions > a.shape[1]:
        raise ValueError(f"directions must be at most the {a.shape[1]} dimensions of the points, got {directions}")
    u, v = (principal_directions(moments.centred(each)[1], directions) for each in (a, b))
    return float(np.abs(np.sum(u * v, axis=1)).mean())


def principal_directions(centred: np.ndarray, number: int) -> np.ndarray:
    """The first eigenvectors of the covariance of centred points ``[m, d]``, in rows ``[number, d]``."""
    scatter = centred.T @ centred
    dim = len(scatter)
    return linalg.eigh(scatter, subset_by_index=[dim - number, dim - 1])[1].T[::-1]


def chance_similarity(dim: int) -> float:
    """The mean of |⟨u, v⟩| of directions that have nothing to do with each other: Γ(d/2) / (√π·Γ((d+1)/2)).

    Example:
      >>> round(chance_similarity(64), 2)
      0.1
    """
    return math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)


def scaled_volumes(cloud: ArrayLike, factors: ArrayLike, *, epsilon: float = 1.0) -> np.ndarray:
    """The volume of w·(cloud − centre) for factors w: Figure 6 of the paper. It grows with every factor.

    Args:
      cloud: points ``[m, d]``.
      factors: w ``[F]``, above 0.
      epsilon: the error up to which points are told apart.

    Returns:
      float64 ``[F]`` in bits.

    Raises:
      ValueError: the points are no finite matrix, or a factor is not above 0.

    Example:
      >>> scaled_volumes(np.eye(3), [1, 2, 4]).round(2)
      array([1.  , 2.32, 4.09])

    Source: Ma et al., Delving into Semantic Scale Imbalance, 2023, Appendix C.
    """
    rows, factors = of(cloud, name="cloud").points.astype(np.float64), np.asarray(factors, np.float64)
    if factors.ndim != 1 or not (np.isfinite(factors) & (factors > 0)).all():
        raise ValueError(f"factors must be a vector of finite numbers > 0, got {factors.tolist()}")
    gram = moments.smaller_gram(moments.centred(rows)[1])
    # As large as the cloud is made, as small is what is told apart.
    of_error = functools.partial(moments.volume_of_scatter, gram, *rows.shape)
    return np.array([of_error(epsilon=validation.positive("epsilon", epsilon) / factor) for factor in factors])


def flat_reference(points: ArrayLike, *, seed: int = 0) -> np.ndarray:
    """As many points of the normal distribution with the same covariance: no surface bends in them, all is noise.

    What :func:`~dsb_jax.toolkit.neighbourhoods.curvature` finds in them, it finds without any curvature.

    Args:
      points: ``[m, d]``.
      seed: of the draw.

    Returns:
      float64 ``[m, d]``, about 0.

    Raises:
      ValueError: the points are no finite matrix.

    Example:
      >>> points = np.random.default_rng(1).uniform(size=(5000, 2)) @ [[1.0, 1.0], [0.0, 1.0]]
      >>> bool(np.allclose(np.cov(flat_reference(points).T), np.cov(points.T), rtol=0.1))
      True
    """
    rows = of(points).points.astype(np.float64)
    triangle: Any = np.linalg.qr(moments.centred(rows)[1], mode="r")
    root = triangle / math.sqrt(len(rows))
    return np.random.default_rng(seed).standard_normal((len(rows), len(root))) @ root
