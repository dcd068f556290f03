"""What the neighbours of a point tell of the surface it lies on: its dimension, and how it bends.

All of it is of shape alone: the same for points that are moved, turned or scaled. Neighbours are searched for once,

    near = nearest(points, 20)
    dimension, bending = tight_local_estimate(points, near), curvature(points, near)
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from dsb_jax import validation
from dsb_jax.evaluation import paired
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.points import of

_HELD = 2**20  # numbers of the neighbourhoods that are looked at together: 8 MiB
_DISTINCT = 1e-4  # of the radius of a neighbourhood: the least distance that tells of dimension
_ROUNDING = 1e-7  # of a width or distance: less is none


def nearest(points: ArrayLike, neighbours: int) -> np.ndarray:
    """The nearest other points of each, by Euclidean distance.

    Args:
      points: ``[m, d]``.
      neighbours: k, below m.

    Returns:
      Their rows, int64 ``[m, k]``, the nearest first.

    Raises:
      ValueError: there are too few points, or they are no finite matrix.

    Example:
      >>> nearest([[0.0], [1.0], [3.0]], 1).ravel().tolist()
      [1, 0, 1]
    """
    points, neighbours = _standard(points), validation.positive_int("neighbours", neighbours)
    if len(points) <= neighbours:
        raise ValueError(f"points must be more than neighbours={neighbours}, got {len(points)}")
    return NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(return_distance=False)


def tight_local_estimate(
    points: ArrayLike, near: np.ndarray, *, progress: Callable[..., Iterable[Any]] | None = None
) -> np.ndarray:
    """The intrinsic dimension about each point: how fast the number of points grows with the distance (TLE).

    With neighbours at distances ``d_1 ≤ … ≤ d_k = r`` of a point and ``v_ij`` of each other, distances are also
    measured from every neighbour i, within a ball that touches the first one from inside: to j it is

        s_ij = 2·r·v_ij² / (b + √(b² + 4·v_ij²·(r² − d_i²))),  b = d_i² + v_ij² − d_j²,

    and t_ij likewise to j's mirror image at the point, with ``2·d_i² + 2·d_j² − v_ij²`` for v_ij². The estimate is that
    of maximum likelihood from all of them,

        −2·k² / (2·Σ_i ln d_i/r + Σ_{i≠j} (ln s_ij/r + ln t_ij/r)),

    without what is below 10⁻⁴ of r, whose logarithms would be of rounding: d_i, or both of a pair. It is steadier at
    small k than one from the k distances alone; like all, it falls short where dimensions are high and points few.

    Args:
      points: ``[m, d]``.
      near: neighbours ``[m, k]``, from :func:`nearest`.
      progress: ``(iterable, total) -> iterable``, through which blocks of points pass.

    Returns:
      float64 ``[m]``; NaN for a point that coincides with all its neighbours. The estimate for a class is the mean.

    Raises:
      ValueError: the points are no finite matrix, or ``near`` is not of them.

    Example:
      >>> plane = np.random.default_rng(0).uniform(size=(500, 2)) @ [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]
      >>> round(tight_local_estimate(plane, nearest(plane, 20)).mean(), 1)
      np.float64(2.0)

    Source: Amsaleg et al., Intrinsic Dimensionality Estimation within Tight Localities, 2019.
    """
    points, near = _checked(points, near)
    k = near.shape[1]
    others = ~np.eye(k, dtype=bool)

    def of_block(rows: slice) -> np.ndarray:
        relative = points[near[rows]] - points[rows, None]
        products = relative @ relative.swapaxes(1, 2)
        squares = np.einsum("bii->bi", products)
        farthest = squares.max(axis=1)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            squares, products = squares / farthest, products / farthest[:, None]  # so that r = 1
            ours, theirs = squares[:, :, None], squares[:, None, :]
            between, mirrored = ours + theirs - 2 * products, ours + theirs + 2 * products
            s, t = _from_within(between, ours, theirs), _from_within(mirrored, ours, theirs)
            apart = np.minimum(between, mirrored) > _ROUNDING**2
            pairs = apart & (np.minimum(s, t) >= _DISTINCT) & others
            single = squares >= _DISTINCT**2
            logarithms = np.log(np.where(pairs, s * t, 1)).sum(axis=(1, 2))
            logarithms += np.log(np.where(single, squares, 1)).sum(axis=1)
            return 2 * (pairs.sum(axis=(1, 2)) + single.sum(axis=1)) / np.abs(logarithms)

    return _by_blocks(of_block, len(points), k * (points.shape[1] + 12 * k), progress)


def tangent_dimension(points: ArrayLike, near: np.ndarray) -> int:
    """In how many directions the neighbours of a point spread: the mean participation ratio of neighbourhoods, rounded.

    Args:
      points: ``[m, d]``.
      near: neighbours ``[m, k]``, from :func:`nearest`.

    Returns:
      1 or more. With noise in all of many directions it is below k/2, which tells more of k than of the points.

    Raises:
      ValueError: see :func:`tight_local_estimate`.

    Example:
      >>> sphere = np.random.default_rng(0).normal(size=(500, 3))
      >>> sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
      >>> tangent_dimension(sphere, nearest(sphere, 10))
      2
    """
    points, near = _checked(points, near)

    def of_block(rows: slice) -> np.ndarray:
        gram = moments.smaller_gram(_about_their_mean(points, near[rows]))
        with np.errstate(invalid="ignore"):
            return np.trace(gram, axis1=1, axis2=2) ** 2 / np.square(gram).sum(axis=(1, 2))

    ratios = _by_blocks(of_block, len(points), near.shape[1] * points.shape[1])
    return max(round(float(np.nan_to_num(paired.mean(ratios), nan=1.0))), 1)


def tangent_spaces(
    points: ArrayLike, near: np.ndarray, dimension: int, *, progress: Callable[..., Iterable[Any]] | None = None
) -> np.ndarray:
    """An orthonormal basis of the tangent space at each point: the directions in which its neighbours spread most.

    They are the first right singular vectors of the neighbours less their mean, ``[k, d]``.

    Args:
      points: ``[m, d]``.
      near: neighbours ``[m, k]``, from :func:`nearest`.
      dimension: q, at most d and below k.
      progress: ``(iterable, total) -> iterable``, through which blocks of points pass.

    Returns:
      float64 ``[m, q, d]``, a direction in a row; NaNs for a point whose neighbours spread in fewer directions.

    Raises:
      ValueError: see :func:`tight_local_estimate`; or the dimension does not fit.

    Example:
      >>> plane = np.random.default_rng(0).normal(size=(30, 3)) * [1, 1, 0]
      >>> tangent_spaces(plane, nearest(plane, 5), 2)[:, :, 2].any()
      np.False_
    """
    points, near = _checked(points, near)
    require_possible(dimension, near.shape[1], points.shape[1])

    def of_block(rows: slice) -> np.ndarray:
        _, widths, directions = np.linalg.svd(_about_their_mean(points, near[rows]), full_matrices=False)
        spaces = directions[:, :dimension].copy()
        spaces[widths[:, dimension - 1] <= _ROUNDING * widths[:, 0]] = np.nan
        return spaces

    return _by_blocks(of_block, len(points), near.shape[1] * points.shape[1], progress)


def require_possible(dimension: int, neighbours: int, dim: int) -> None:
    """Raises ValueError unless tangent spaces can have that dimension: k neighbours spread in k − 1 directions."""
    most = min(dim, neighbours - 1)
    if validation.positive_int("dimension", dimension) > most:
        raise ValueError(
            f"dimension of tangent spaces must be at most {most} with {neighbours} neighbours in {dim} dimensions, "
            f"got {dimension}"
        )


def curvature(
    points: ArrayLike,
    near: np.ndarray,
    dimension: int | None = None,
    *,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> np.ndarray:
    """How far the tangent space turns from a point to its neighbours, in radians from 0 to π/2.

    The angle θ between two tangent spaces with bases U and V ``[q, d]`` is that of

        cos² θ = ‖U·Vᵀ‖² / q,

    the mean of the squared cosines of their principal angles: on a curve the angle of its tangents. It is the angle
    between the projections onto them as matrices (√q·sin θ is the chordal distance of Conway, Hardin and Sloane, 1996).
    Unlike the mean of the principal angles themselves it is smooth, and asks for no decomposition of every pair. Its
    mean over the neighbours is the point's curvature, and the mean of those the class's.

    It is an angle, and not the inverse of a radius: of half as many points the neighbours are farther away, and the
    angles larger; and a larger ball bends less only if its points are as close together. And noise turns tangent spaces
    as bending does: what has no surface, such as a ball full of points, has large angles. With as many dimensions as
    there are, q = d, all tangent spaces are the same and all angles 0.

    Args:
      points: ``[m, d]``.
      near: neighbours ``[m, k]``, from :func:`nearest`.
      dimension: q of the tangent spaces, at most d and below k; None for :func:`tangent_dimension`.
      progress: ``(iterable, total) -> iterable``, through which blocks of points pass.

    Returns:
      float64 ``[m]``; NaN for a point that has no tangent space or whose neighbours have none.

    Raises:
      ValueError: see :func:`tangent_spaces`.

    Example:
      >>> angles = 2 * np.pi * np.arange(100)[:, None] / 100
      >>> circle = np.hstack([np.cos(angles), np.sin(angles)])  # the 2 nearest are 2π/100 away, the next 4π/100
      >>> round(curvature(circle, nearest(circle, 4), 1).mean() / np.pi, 6)
      np.float64(0.03)

    Source: Ma et al., Curvature-Balanced Feature Manifold Learning for Long-Tailed Classification, 2023. The code they
    published takes left singular vectors, which are directions among the neighbours instead of in space, and divides by
    widths: what it gives depends on the order of neighbours and on the scale of the data.
    """
    points, near = _checked(points, near)
    dimension = tangent_dimension(points, near) if dimension is None else dimension
    spaces = tangent_spaces(points, near, dimension, progress=progress)
    k, dim = near.shape[1], points.shape[1]

    def of_block(rows: slice) -> np.ndarray:
        theirs = spaces[near[rows]].reshape(-1, k * dimension, dim)
        products = (theirs @ spaces[rows].swapaxes(1, 2)).reshape(-1, k, dimension**2)
        cosines = np.sqrt(np.square(products).sum(axis=2) / dimension)
        return paired.mean(np.arccos(np.minimum(cosines, 1.0)), axis=1)

    return _by_blocks(of_block, len(points), k * dimension * dim, progress)


def _from_within(between: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """``s_ij`` from ``v_ij²``, ``d_i²`` and ``d_j²`` for r = 1, by whichever root of its equation subtracts nothing."""
    room, lead = 1 - ours, ours + between - theirs
    root = np.sqrt(np.maximum(lead**2 + 4 * between * room, 0))
    return np.where(lead >= 0, 2 * between / (lead + root), (root - lead) / (2 * room))


def _about_their_mean(points: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Neighbours ``[b, k, d]`` less their mean."""
    neighbours = points[near]
    return neighbours - neighbours.mean(axis=1, keepdims=True)


def _standard(points: ArrayLike) -> np.ndarray:
    """Points about the first, of which none is farther than 1 in a direction: no digits are lost to where they lie."""
    rows = of(points).points.astype(np.float64)
    rows = rows - rows[0]
    return rows / (np.abs(rows).max() or 1.0)


def _checked(points: ArrayLike, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, near = _standard(points), np.asarray(near)
    if near.ndim != 2 or len(near) != len(points) or near.dtype.kind not in "iu":
        raise ValueError(f"near must be rows [{len(points)}, neighbours], got {near.dtype} {list(near.shape)}")
    if near.min() < 0 or near.max() >= len(points):
        raise ValueError(f"near must hold rows in [0, {len(points)}), got {near.min()} to {near.max()}")
    return points, near


def _by_blocks(
    function: Callable[[slice], np.ndarray],
    total: int,
    numbers: int,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> np.ndarray:
    """What a function makes of rows, of which each takes so many numbers, put together; on all cores."""
    size = max(_HELD // numbers, 1)
    blocks = [slice(start, min(start + size, total)) for start in range(0, total, size)]
    if len(blocks) == 1:  # a class of few points: to start threads would take longer
        return function(blocks[0])
    with threadpool_limits(1), ThreadPoolExecutor(moments.threads()) as pool:
        results = pool.map(function, blocks)
        return np.concatenate(list(results if progress is None else progress(results, len(blocks))))
