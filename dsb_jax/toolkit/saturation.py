"""How the volume of a class grows with its samples and saturates, and how many more of them are worth taking.

**The curve.** The expected volume of n samples depends on the eigenvalues of the population's covariance alone, as
long as samples are many or dimensions are (Silverstein and Bai, 1995; Hachem, Loubaton and Najim, 2007): with
``λ_j = d/ε²·(n − 1)/n`` times the j-th eigenvalue and ``m = n − 1``,

    E S(n) = ½·[Σ_j log2(1 + u·λ_j) − m·log2 u − m·(1 − u)·log2 e],  where  1/u = 1 + 1/m·Σ_j λ_j/(1 + u·λ_j).

It rises by some ½·log2 of a large number per sample while n < d, and approaches its limit like 1/n where n > d. The
spectra of natural images and of their features fall like powers of j: ``λ_j ∝ j^−γ`` leaves two numbers to fit.

**Chance.** ``n·(S(n) − E S(n))`` is to first order a sum of one independent term for each sample: a random walk. So its
steps between the counts at which the volume was measured are what is fitted, each by its length, and the walk's
variance says how far the volume of further samples may stray.

Tried on CIFAR-10 and MNIST (d = 768 pixels, 64 principal components, 64 random features) in batches of 100 to 500, with
α from 0.3% to 5%: forecasts of the total were off by 1.05 to 1.2 times on average, also those after the first batch,
and 83 to 100% of the intervals, which are meant to be of 80%, held the truth. Few samples in many dimensions are
harder: in batches of 20, digits (64) were off by 1.3 times, too high rather than too low, and 60 to 70% of the
intervals held the truth until n > d; in batches of 50, CIFAR-100 (768) by 1.1 to 1.2 times, which is a batch, and 60%
did. A curve with a free power, ``S∞ − a·n^−b``, was off by up to 2.8 times after the first batch; ``S∞ − a/n`` by 1.1
to 1.3 times, and by half where n < d.
"""

import dataclasses
import math

import numpy as np
from scipy.optimize import brentq, least_squares

_SPAN = 16  # counts smaller than the last one by more than this factor say nothing about what comes
_FEWEST = 8  # counts to fit to
_BLOCKS = 32  # of neighbouring eigenvalues that are taken for equal
_BATCHES = 1000  # how far ahead it is looked
_WALKS = 200
_NEWTON = 100  # steps; some ten are enough unless eigenvalues differ by many powers of ten
_LEVEL, _POWER = (-60.0, 100.0), (0.0, 10.0)  # of log λ_1, and γ


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """What further samples will bring.

    Attributes:
      samples: how many more are expected to be taken until a batch adds too little; ``inf`` for more than can be seen.
      low: with 10% probability so many are enough, or fewer.
      high: and with 90%, these; may be ``inf``.
      counts: from what there is up to where it is enough, batch by batch, ``[B]``.
      volumes: expected there ``[B]``, in bits.
    """

    samples: float
    low: float
    high: float
    counts: np.ndarray
    volumes: np.ndarray


def expected_volume(counts: np.ndarray, eigenvalues: np.ndarray, multiplicities: np.ndarray) -> np.ndarray:
    """The expected volume of samples of a population, about their own mean; see the module.

    Args:
      counts: n, at least 2 ``[T]``.
      eigenvalues: ``d/ε²`` times those of the population's covariance, above 0 ``[K]``.
      multiplicities: how often each of them occurs ``[K]``; d together.

    Returns:
      ``[T]``, in bits.

    Example:
      >>> print(expected_volume(np.array([2, 100, 10_000]), np.array([3.0]), np.array([8.0])).round(3))
      [1.811 7.825 7.998]
    """
    return _with_gradient(counts, eigenvalues, multiplicities)[0]


def _with_gradient(
    counts: np.ndarray, eigenvalues: np.ndarray, multiplicities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The expected volumes ``[T]``, and their derivatives by the logarithms of the eigenvalues ``[T, K]``."""
    m = np.asarray(counts, np.float64)[:, None] - 1
    scaled = eigenvalues * (m / (m + 1))
    # u + Σ u·λ/(1 + u·λ)/m = 1: the left is concave, so Newton's method rises to u from below and does not pass it.
    u = 1 / (1 + (scaled @ multiplicities)[:, None] / m)
    for _ in range(_NEWTON):
        share = u * scaled / (1 + u * scaled)
        missing = 1 - u - (share @ multiplicities)[:, None] / m
        if (missing <= 1e-13).all():
            break
        u = u + missing / (1 + ((share * (1 - share)) @ multiplicities)[:, None] / (m * u))
    # The volume is stationary in u, which leaves to the derivatives what is seen of λ itself.
    gradient = multiplicities * share / (2 * math.log(2))
    nats = np.log1p(u * scaled) @ multiplicities - (m * (np.log(u) + 1 - u))[:, 0]
    return nats / (2 * math.log(2)), gradient


def forecast(counts: np.ndarray, volumes: np.ndarray, dim: int, *, batch: int, tolerance: float) -> Forecast | None:
    """How many more samples until another batch adds less than a fraction of the volume.

    Args:
      counts: rising numbers of samples ``[T]``.
      volumes: of the first so many samples ``[T]``, in bits.
      dim: d.
      batch: samples of each further batch.
      tolerance: batches are taken until ``S_n − S_{n−1} < tolerance·S_n``.

    Returns:
      The forecast, or None of too few samples or of a volume of 0.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> counts = np.array([10, 15, 22, 30, 40, 55, 75, 100])
      >>> volumes = expected_volume(counts, np.full(8, 2.0), np.ones(8)) + 0.1 * rng.normal(size=8) / np.sqrt(counts)
      >>> found = forecast(counts, volumes, 8, batch=50, tolerance=0.001)
      >>> bool(found.low <= found.samples <= found.high)
      True
    """
    counts, volumes = np.asarray(counts, np.float64), np.asarray(volumes, np.float64)
    if len(counts) < _FEWEST:
        return None
    recent = (counts > 1) & (counts * _SPAN >= counts[-1])
    counts, volumes = counts[recent], volumes[recent]
    if len(counts) < _FEWEST or not volumes[-1] > 0:
        return None
    fitted, covariance, variance = _fit(counts, volumes, dim)

    ahead = counts[-1] + batch * np.arange(_BATCHES + 1.0)
    curve, slopes = _of_power_law(fitted, ahead, dim)
    rng = np.random.default_rng(0)
    curves = curve + rng.multivariate_normal(np.zeros(2), covariance, _WALKS, check_valid="ignore") @ slopes.T
    walks = rng.normal(scale=math.sqrt(variance * batch), size=(_WALKS, _BATCHES)).cumsum(axis=1)
    walks = np.pad(walks, ((0, 0), (1, 0)))
    # All go on from the volume that was measured.
    expected = curve + (volumes[-1] - curve[0]) * counts[-1] / ahead
    possible = curves + ((volumes[-1] - curves[:, :1]) * counts[-1] + walks) / ahead

    batches = _batches_until(expected[None], tolerance)[0]
    low, high = np.quantile(_batches_until(possible, tolerance), (0.1, 0.9), method="nearest")
    shown = slice(int(min(batches, _BATCHES)) + 1)
    return Forecast(
        samples=float(batches * batch),
        low=float(min(low, batches) * batch),
        high=float(max(high, batches) * batch),
        counts=ahead[shown],
        volumes=expected[shown],
    )


def _of_power_law(parameters: np.ndarray, counts: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The expected volumes where the j-th eigenvalue is ``exp(level)·j^−power``, and their derivatives ``[T, 2]``."""
    level, power = parameters
    edges = np.unique(np.geomspace(1, dim + 1, _BLOCKS + 1).round())
    log_rank = np.log((edges[:-1] + edges[1:] - 1) / 2)
    volumes, gradient = _with_gradient(counts, np.exp(level - power * log_rank), np.diff(edges))
    return volumes, np.stack([gradient.sum(axis=1), -gradient @ log_rank], axis=1)


def _fit(counts: np.ndarray, volumes: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The parameters, their covariance, and the variance of the walk for each sample."""
    lengths = np.sqrt(np.diff(counts, prepend=0))

    def steps(parameters: np.ndarray) -> np.ndarray:
        return np.diff(counts * (volumes - _of_power_law(parameters, counts, dim)[0]), prepend=0) / lengths

    def slopes(parameters: np.ndarray) -> np.ndarray:
        slopes = counts[:, None] * _of_power_law(parameters, counts, dim)[1]
        return -np.diff(slopes, axis=0, prepend=0) / lengths[:, None]

    def excess(level: float) -> float:
        return _of_power_law(np.array([level, 1.0]), counts[-1:], dim)[0][0] - volumes[-1]

    start = brentq(excess, *_LEVEL, xtol=1e-3)
    found = least_squares(steps, [start, 1.0], slopes, bounds=tuple(zip(_LEVEL, _POWER, strict=True)))
    variance = 2 * found.cost / (len(counts) - 2)
    return found.x, variance * np.linalg.pinv(found.jac.T @ found.jac), variance


def _batches_until(curves: np.ndarray, tolerance: float) -> np.ndarray:
    """How many batches until one adds too little, ``[W]`` of ``[W, 1 + batches]``; ``inf`` where none does."""
    small = np.diff(curves) < tolerance * curves[:, 1:]
    return np.where(small.any(axis=1), small.argmax(axis=1) + 1.0, math.inf)
