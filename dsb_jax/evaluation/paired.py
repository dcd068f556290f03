"""Paired differences: their mean, their spread, and how surely they are not chance."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from dsb_jax.evaluation.metrics import vectors


def t_test(differences: ArrayLike) -> float:
    """The two-sided p of the paired t-test: how often chance gave as clear a mean difference, were there none.

    Args:
      differences: of the pairs ``[n]``; NaNs are left out.

    Returns:
      p in [0, 1], or NaN where it is undefined: for fewer than two pairs, and for differences that are all the same.

    Raises:
      ValueError: if ``differences`` is no vector.

    Example:
      >>> round(t_test([1.0, 2.0, 3.0]), 4)
      0.0742
    """
    (paired,) = vectors(differences=differences)
    paired = paired[np.isfinite(paired)]
    if len(paired) < 2 or np.ptp(paired) <= 1e-9 * np.abs(paired).max():
        return math.nan
    return float(stats.ttest_1samp(paired, 0.0).pvalue)


def wilcoxon(differences: ArrayLike) -> float:
    """The two-sided p of Wilcoxon's signed-rank test, which needs no normal differences: it looks at ranks alone.

    Args:
      differences: of the pairs ``[n]``; NaNs and zeros are left out.

    Returns:
      p in [0, 1], exact for up to 50 pairs without ties; NaN where no pair differs.

    Raises:
      ValueError: if ``differences`` is no vector.

    Example:
      >>> wilcoxon([0.1, 0.2, 0.3, 0.0])
      0.25
    """
    (paired,) = vectors(differences=differences)
    paired = paired[np.isfinite(paired) & (paired != 0)]
    return float(stats.wilcoxon(paired).pvalue) if len(paired) else math.nan


def mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean over an axis of what is finite; NaN where nothing is.

    Example:
      >>> mean(np.array([[1.0, np.nan], [2.0, np.nan]]))
      array([1.5, nan])
    """
    finite = np.isfinite(values)
    number, total = finite.sum(axis=axis), np.where(finite, values, 0.0).sum(axis=axis)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)


def deviation(values: np.ndarray) -> np.ndarray:
    """The standard deviation over the first axis of what is finite, with n − 1; NaN for fewer than two.

    Example:
      >>> deviation(np.array([[1.0, 5.0], [3.0, np.nan]]))
      array([1.4142,    nan])
    """
    number = np.isfinite(values).sum(axis=0)
    variance = mean((values - mean(values)) ** 2) * number
    variance = np.divide(variance, number - 1, out=np.full(np.shape(variance), np.nan), where=number > 1)
    return np.sqrt(variance)
