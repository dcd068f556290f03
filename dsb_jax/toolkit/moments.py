"""Count, mean and scatter of classes in float64: what volumes are made of, and what adds up over parts of the data.

``Vol = ½·log2 det(I + d/(m·ε²)·S)`` with the scatter ``S = Σ (z − μ)(z − μ)ᵀ`` of m rows about their mean. Two parts of
a class have together (Chan et al., Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979)

    m = m₁ + m₂,  μ = μ₁ + m₂/m·(μ₂ − μ₁),  S = S₁ + S₂ + m₁·m₂/m·(μ₂ − μ₁)(μ₂ − μ₁)ᵀ.

The core measures features of a training step in float32 on the device; here it is whole datasets on a host, once, which
float64 takes without care for offsets, and BLAS takes about as fast as they are read. Where rows span fewer directions
than they have coordinates and are large, rounding spans the rest, and the identity no longer hides it: there directions
of rounding are told from those of the rows, and left out.
"""

import dataclasses
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

from dsb_jax import validation

_LOST = 1e6  # times that a pivot may be less than its diagonal entry before it is looked at for rounding
_ROUNDING = 100 * np.finfo(np.float64).eps  # of a diagonal entry: what is left of less is rounding
_OFF_CENTRE = 16.0  # times that squares about 0 may be those about the mean
_BLOCK = 2**18  # numbers of the classes that are measured together: 2 MiB
_LARGE = 2**15  # numbers of a class whose rows are gathered by themselves, in blocks of 4·_BLOCK


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of one class.

    Attributes:
      count: m.
      mean: float64 ``[d]``; zeros where there is no row.
      scatter: float64 ``[d, d]``.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def none(cls, dim: int) -> "Moments":
        """Those of no rows."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, rows: np.ndarray) -> "Moments":
        """Those of rows ``[m, d]``.

        Example:
          >>> of = Moments.of(np.array([[0.0, 1.0], [2.0, 1.0]]))
          >>> of.count, of.mean.tolist(), of.scatter.tolist()
          (2, [1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
        """
        rows = np.asarray(rows, np.float64)
        if not len(rows):
            return cls.none(rows.shape[1])
        mean, relative = centred(rows)
        return cls(len(rows), mean, relative.T @ relative)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both parts together.

        Example:
          >>> rows = np.random.default_rng(0).normal(size=(9, 2))
          >>> whole, parts = Moments.of(rows), Moments.of(rows[:4]) + Moments.of(rows[4:])
          >>> bool(np.allclose(whole.scatter, parts.scatter))
          True
        """
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + (self.count * other.count / count) * np.outer(apart, apart)
        return Moments(count, self.mean + (other.count / count) * apart, scatter)

    def volume(self, *, epsilon: float = 1.0) -> float:
        """In bits; 0 for fewer than two rows.

        Example:
          >>> square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
          >>> round(Moments.of(square).volume(), 4)
          1.585
        """
        return volume_of_scatter(self.scatter, self.count, len(self.mean), epsilon=epsilon)


def all_but_each(parts: Sequence[Moments]) -> Iterator[Moments]:
    """Of all parts but one, in turn: what is before it and what is after, since to subtract it would lose digits.

    Example:
      >>> parts = [Moments.of(np.full((count, 1), 7.0)) for count in (2, 3, 4)]
      >>> [rest.count for rest in all_but_each(parts)]
      [7, 6, 5]
    """
    none = Moments.none(len(parts[0].mean))
    after = list(itertools.accumulate(reversed(parts), operator.add, initial=none))
    after.pop()
    before = none
    for part in parts:
        yield before + after.pop()
        before += part


def volume(rows: np.ndarray, *, epsilon: float = 1.0) -> float:
    """The volume of rows ``[m, d]`` in bits, by the smaller one of the two Gram matrices.

    Example:
      >>> round(volume(np.eye(3)), 4)  # a regular triangle, 3/3·eigenvalues 1, 1, 0
      1.0
    """
    rows = np.asarray(rows, np.float64)
    if len(rows) < 2:
        return 0.0
    return volume_of_scatter(smaller_gram(centred(rows)[1]), len(rows), rows.shape[1], epsilon=epsilon)


def volume_of_scatter(scatter: np.ndarray, count: int, dim: int, *, epsilon: float = 1.0) -> float:
    """``½·log2 det(I + d/(m·ε²)·S)``; ``scatter`` may be either Gram matrix, and only its upper triangle is read.

    Example:
      >>> round(volume_of_scatter(np.array([[3.0, 1.0], [np.nan, 3.0]]), count=2, dim=2), 4)
      1.9534
    """
    return float(_volumes_of_scatters(scatter[None], np.array([count]), dim, epsilon)[0])


def of_classes(
    points: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    summary: Callable[[np.ndarray], Any],
    progress: Callable[..., Iterable[Any]] | None = None,
) -> list[Any]:
    """``summary`` of the rows of every class, in float64, on all cores.

    Args:
      points: ``[n, d]``.
      labels: int ``[n]`` in ``[0, C)``.
      num_classes: C.
      summary: ``rows [m, d] -> anything``; m may be 0. The rows are its own.
      progress: ``(iterable, total) -> iterable``, through which the classes pass.

    Example:
      >>> of_classes(np.array([[1.0], [2.0], [4.0]]), np.array([1, 0, 1]), 2, lambda rows: rows.ravel().tolist())
      [[2.0], [1.0, 4.0]]
    """
    order, counts = sorted_by_class(labels, num_classes)
    stops = np.cumsum(counts)

    def of_class(label: int) -> Any:
        rows = order[stops[label] - counts[label] : stops[label]]
        return summary(points.take(rows, axis=0).astype(np.float64))

    return on_all_cores(of_class, range(num_classes), progress)


def on_all_cores(
    function: Callable[[Any], Any], items: Sequence[Any], progress: Callable[..., Iterable[Any]] | None = None
) -> list[Any]:
    """``function`` of every item, in order, in threads: for work that NumPy and BLAS do without Python's lock.

    Example:
      >>> on_all_cores(np.linalg.norm, [np.array([3.0, 4.0]), np.zeros(2)])
      [np.float64(5.0), np.float64(0.0)]
    """
    # An item is too little for a BLAS with threads of its own.
    with threadpool_limits(1), ThreadPoolExecutor(threads()) as pool:
        results = pool.map(function, items)
        return list(results if progress is None else progress(results, len(items)))


def sorted_by_class(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their classes, those of a class as they are, and how many each class has.

    Example:
      >>> order, counts = sorted_by_class(np.array([1, 0, 1]), 3)
      >>> order.tolist(), counts.tolist()
      ([1, 0, 2], [1, 2, 0])
    """
    # SciPy turns rows into columns by counting, which is linear where a sort is not.
    index = np.int32 if len(labels) < 2**31 else np.int64
    columns, row_starts = labels.astype(index), np.arange(len(labels) + 1, dtype=index)
    each = sparse.csr_array((np.ones(len(labels), bool), columns, row_starts), shape=(len(labels), num_classes)).tocsc()
    return each.indices, np.diff(each.indptr)


def volumes(points: np.ndarray, labels: np.ndarray, num_classes: int, *, epsilon: float = 1.0) -> np.ndarray:
    """The volume of every class, float64 ``[C]`` in bits: :func:`dsb_jax.class_volumes` on a host and in float64.

    Example:
      >>> points = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
      >>> print(volumes(points, np.array([0, 0, 1, 1, 2]), 4).round(4))
      [0.7925 1.585  0.     0.    ]
    """
    return volumes_and_means(points, labels, num_classes, epsilon=epsilon)[0]


def volumes_and_means(
    points: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    epsilon: float = 1.0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The volume of every class, and its mean, float64 ``[C]`` and ``[C, d]``; zeros for a class without rows.

    Args:
      points: ``[n, d]``.
      labels: int ``[n]`` in ``[0, C)``.
      num_classes: C.
      epsilon: radius of the volume.
      progress: ``(iterable, total) -> iterable``, through which blocks of classes pass.

    Example:
      >>> volumes_and_means(np.array([[1.0], [3.0], [7.0]]), np.array([0, 0, 2]), 3)[1].tolist()
      [[2.0], [0.0], [7.0]]
    """
    epsilon = validation.positive("epsilon", epsilon)
    order, counts = sorted_by_class(labels, num_classes)
    starts, dim = np.cumsum(counts) - counts, points.shape[1]

    def of_block(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = counts[classes]
        of_each = _one_by_one if int(own[0]) * dim > _LARGE else _together
        return of_each(points, order, starts[classes], own, epsilon)

    volumes, means, blocks = np.zeros(num_classes), np.zeros((num_classes, dim)), _blocks(counts, dim)
    alone = np.flatnonzero(counts == 1)
    means[alone] = points[order[starts[alone]]]
    for classes, (of_each, mean) in zip(blocks, on_all_cores(of_block, blocks, progress), strict=True):
        volumes[classes], means[classes] = of_each, mean
    return volumes, means


def _together(
    points: np.ndarray, order: np.ndarray, starts: np.ndarray, counts: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Volumes and means of classes of about as many rows each."""
    place, own = np.arange(counts.max()), counts[:, None]
    filled_up = place >= own  # with the class's first row, which, subtracted, adds nothing to its mean
    rows = order.take(starts[:, None] + np.where(filled_up, 0, place))
    relative = points.take(rows, axis=0).astype(np.float64)
    first = relative[:, :1].copy()
    relative -= first
    offset = np.ones((1, len(place))) @ relative / own[..., None]
    relative -= offset
    relative[filled_up] = 0.0
    volumes = _volumes_of_scatters(smaller_gram(relative), counts, points.shape[1], epsilon)
    return volumes, (first + offset)[:, 0]


def _one_by_one(
    points: np.ndarray, order: np.ndarray, starts: np.ndarray, counts: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`_together`, of classes that fill a core's cache by themselves.

    ``Σ zzᵀ − m·μμᵀ`` takes two passes over the rows less than to centre them does. It serves where there are rows
    enough and where it leaves them their digits.
    """
    dim = points.shape[1]

    def rows_of(place: np.integer) -> np.ndarray:
        return points.take(order[starts[place] : starts[place] + counts[place]], axis=0)

    many = np.flatnonzero(counts >= dim)
    volumes, means, kept = np.zeros(len(counts)), np.zeros((len(counts), dim)), np.zeros(len(counts), bool)
    volumes[many], means[many], kept[many] = _about_zero(map(rows_of, many), counts[many], dim, epsilon)
    for place in np.flatnonzero(~kept):
        means[place], relative = centred(rows_of(place))
        volumes[place] = volume_of_scatter(smaller_gram(relative), counts[place], dim, epsilon=epsilon)
    return volumes, means


@np.errstate(over="ignore", invalid="ignore")  # of squares, where these do not serve
def _about_zero(
    classes: Iterable[np.ndarray], counts: np.ndarray, dim: int, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes and means of classes by squares about 0, and for which of them these serve."""
    scatters, means = np.empty((len(counts), dim, dim)), np.empty((len(counts), dim))
    for scatter, mean, rows in zip(scatters, means, classes, strict=True):
        rows = rows.astype(np.float64, copy=False)
        np.matmul(np.full(len(rows), 1 / len(rows)), rows, out=mean)
        np.matmul(rows.T, rows, out=scatter)
    diagonals = np.einsum("cii->ci", scatters)
    squares = diagonals.copy()
    scatters -= (counts[:, None] * means)[:, :, None] * means[:, None, :]
    near = (squares <= _OFF_CENTRE * diagonals).all(axis=1)
    volumes, lost = _by_cholesky(scatters, dim / (counts * epsilon**2), _LOST / _OFF_CENTRE)
    return volumes, means, near & ~lost & np.isfinite(volumes)


def _blocks(counts: np.ndarray, dim: int) -> list[np.ndarray]:
    """Classes of two rows or more, in blocks of nearly equal sizes; what is in use of one stays in a core's cache.

    A call for each class would leave threads waiting for each other: between its calls NumPy holds Python's lock.
    """
    classes = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 1)]
    blocks, start = [], 0
    while start < len(classes):
        numbers = int(counts[classes[start]]) * dim
        stop = start + max((4 * _BLOCK if numbers > _LARGE else _BLOCK) // numbers, 1)
        blocks.append(classes[start:stop])
        start = stop
    return blocks


def _volumes_of_scatters(scatters: np.ndarray, counts: np.ndarray, dim: int, epsilon: float) -> np.ndarray:
    """Of ``[C, d, d]``."""
    factors = dim / (np.maximum(counts, 1) * epsilon**2)
    volumes, lost = _by_cholesky(scatters, factors)
    for label in np.flatnonzero(lost & (counts > 1)):
        volumes[label] = _volume_of_rank(scatters[label] * factors[label])
    return np.where(counts > 1, volumes, 0.0)


def _by_cholesky(scatters: np.ndarray, factors: np.ndarray, lost: float = _LOST) -> tuple[np.ndarray, np.ndarray]:
    """``½·log2 det(I + f·S)``, and of which S the rounding may count; the identity keeps all pivots from 0."""
    matrices = scatters * factors[:, None, None]
    np.einsum("cii->ci", matrices)[...] += 1.0
    try:
        pivots = np.linalg.cholesky(matrices.swapaxes(1, 2)).diagonal(axis1=1, axis2=2)
    except np.linalg.LinAlgError:  # the identity is less than what rounding leaves
        return np.zeros(len(factors)), np.ones(len(factors), bool)
    rounded = (matrices.diagonal(axis1=1, axis2=2) > lost * pivots**2).any(axis=1)
    return np.log2(pivots).sum(axis=1), rounded


def _volume_of_rank(matrix: np.ndarray) -> float:
    """``½·log2 det(I + A)`` of ``A = L·Lᵀ`` by the r columns of L that are not of rounding: it is ``det(I + LᵀL)``.

    They are found by a Cholesky factorization with pivoting of A with a diagonal of ones, so that one wide direction
    leaves the others what they are. The QR factorization of L above I need not square it; rows in falling order and
    pivoting keep its small rows their digits (Cox and Higham, Stability of Householder QR Factorization for Weighted
    Least Squares Problems, 1998).
    """
    widths = np.sqrt(matrix.diagonal())
    inverse = np.divide(1.0, widths, out=np.zeros_like(widths), where=widths > 0)
    size = len(widths)
    tolerance = max(_ROUNDING, size * np.finfo(np.float64).eps)
    upper, order, rank, _ = linalg.lapack.dpstrf(matrix * inverse[:, None] * inverse, tol=tolerance)
    factor = np.triu(upper)[:rank].T * widths[order - 1, None]
    stacked = np.concatenate([factor, np.eye(rank)])
    stacked = stacked[np.argsort(-np.linalg.norm(stacked, axis=1), kind="stable")]
    return float(np.log2(np.abs(linalg.qr(stacked, mode="r", pivoting=True)[0].diagonal())).sum())


def centred(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of rows ``[m, d]``, and rows less it, in float64; about the first row, so that equal rows are exactly 0.

    Example:
      >>> centred(np.array([[1e20, 1.0], [1e20, 3.0]]))[1]
      array([[ 0., -1.],
             [ 0.,  1.]])
    """
    relative = np.subtract(rows, rows[0], dtype=np.float64)
    offset = np.full(len(rows), 1 / len(rows)) @ relative
    relative -= offset
    return rows[0] + offset, relative


def smaller_gram(rows: np.ndarray) -> np.ndarray:
    """The smaller one of ``XᵀX`` and ``XXᵀ`` of rows ``[..., m, d]``; both have the same eigenvalues above 0.

    Example:
      >>> smaller_gram(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
      array([[5., 0.],
             [0., 1.]])
    """
    turned = rows.swapaxes(-1, -2)
    return turned @ rows if rows.shape[-1] <= rows.shape[-2] else rows @ turned


def threads() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
