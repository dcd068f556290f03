"""Metrics of a finished evaluation, in float64 NumPy on the host.

Per-class results are vectors ``[num_classes]``; accuracies are fractions in [0, 1], NaN where a class has no
test sample. NaN means "undefined" throughout, is never warned about, and never spreads to another class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score

import dsb_jax
from dsb_jax import validation


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Counts how often each class was predicted as each other one.

    ``M[i, j] = |{n : labels[n] = i, predictions[n] = j}|``; the matrices of parts of a test set add up.

    Args:
      labels: true classes, integers ``[samples]`` in ``[0, num_classes)``.
      predictions: predicted classes, the same.
      num_classes: number of classes C, at least 1.

    Returns:
      int64 ``[C, C]``: a row for each true class, a column for each predicted one.

    Raises:
      ValueError: if a shape, a dtype or a class is wrong.

    Example:
      >>> confusion_matrix([0, 0, 1, 2], [0, 1, 1, 0], 3)
      array([[1, 1, 0],
             [0, 1, 0],
             [1, 0, 0]])
    """
    validation.positive_int("num_classes", num_classes)
    rows = classes("labels", labels, num_classes)
    columns = classes("predictions", predictions, num_classes)
    if len(rows) != len(columns):
        raise ValueError(f"labels and predictions must have one length, got {len(rows)} and {len(columns)}")
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def class_accuracy(confusion: ArrayLike) -> np.ndarray:
    """The fraction of each class's test samples that is recognised (its recall).

    ``a_i = M[i, i] / Σ_j M[i, j]``.

    Args:
      confusion: counts ``[C, C]``, rows true, as from `confusion_matrix`.

    Returns:
      float64 ``[C]``; NaN for a class without test samples.

    Raises:
      ValueError: if ``confusion`` is not a square matrix of counts.

    Example:
      >>> class_accuracy([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
      array([0.75, 1.  ,  nan])
    """
    confusion = _confusion(confusion)
    samples = confusion.sum(axis=1)
    accuracy = np.full(len(samples), np.nan)
    return np.divide(confusion.diagonal(), samples, out=accuracy, where=samples > 0)


def class_precision(confusion: ArrayLike) -> np.ndarray:
    """The fraction of what is taken for a class that is of it.

    ``p_j = M[j, j] / Σ_i M[i, j]``; its mean over classes is the precision of the paper's Table 6, as in Tang et al.,
    Invariant Feature Learning for Generalized Long-Tailed Classification, 2022.

    Args:
      confusion: counts ``[C, C]``, rows true, as from `confusion_matrix`.

    Returns:
      float64 ``[C]``; 0 for a class that nothing is taken for, NaN for one without test samples.

    Raises:
      ValueError: if ``confusion`` is not a square matrix of counts.

    Example:
      >>> class_precision([[3, 1, 0], [1, 1, 0], [0, 2, 0]])
      array([0.75, 0.25, 0.  ])
    """
    confusion = _confusion(confusion)
    taken = confusion.sum(axis=0)
    precision = np.divide(confusion.diagonal(), taken, out=np.zeros(len(taken)), where=taken > 0)
    return np.where(confusion.sum(axis=1) > 0, precision, np.nan)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """How far up the samples of each class come when all are ordered by the score of that class.

    ``AP = Σ_n (R_n − R_{n−1})·P_n`` over the thresholds of falling score, with precision P and recall R; of each class
    against all others, as the paper's Figures 11 and 12 measure eyes. It is scikit-learn's.

    Args:
      labels: true classes, integers ``[samples]`` in ``[0, C)``.
      scores: of every class, such as probabilities, finite ``[samples, C]``.

    Returns:
      float64 ``[C]`` in [0, 1]; NaN for a class without samples.

    Raises:
      ValueError: if a shape, a dtype or a class is wrong, or a score is not finite.

    Example:
      >>> average_precision([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.95, 0.05]])
      array([0.5   , 0.8333])
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating) or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite floats [samples, C], got {scores.dtype} {list(scores.shape)}")
    labels = classes("labels", labels, scores.shape[1])
    if len(labels) != len(scores):
        raise ValueError(f"labels and scores must have one length, got {len(labels)} and {len(scores)}")
    present = np.unique(labels)
    precision = np.full(scores.shape[1], np.nan)
    precision[present] = [average_precision_score(labels == label, scores[:, label]) for label in present]
    return precision


def hardest_pairs(confusion: ArrayLike, number: int = 6) -> np.ndarray:
    """The pairs of classes of which one is most often taken for the other.

    Pairs ``(i, j)`` with ``i ≠ j`` by falling error rate ``M[i, j] / Σ_k M[i, k]``, the fraction of class i that is
    taken for class j. A pair has a direction: (cat, dog) and (dog, cat) may both be among them. Of equal rates the one
    of more samples is first, as the surer one, and then the one of smaller i, then j.

    Args:
      confusion: counts ``[C, C]``, rows true, as from `confusion_matrix`.
      number: how many pairs to return at most.

    Returns:
      int64 ``[P, 2]`` of (true class, predicted class), P <= ``number``: a pair that was never confused is not hard.

    Raises:
      ValueError: if ``confusion`` is not a square matrix of counts, or ``number`` not a positive integer.

    Example:
      >>> hardest_pairs([[8, 2, 0], [1, 1, 0], [0, 4, 4]])
      array([[2, 1],
             [1, 0],
             [0, 1]])
    """
    confusion, number = _confusion(confusion), validation.positive_int("number", number)
    true, predicted = np.nonzero(confusion)
    wrong = true != predicted
    true, predicted = true[wrong], predicted[wrong]
    errors = confusion[true, predicted]
    rate = errors / confusion.sum(axis=1)[true]
    hardest = np.lexsort((predicted, true, -errors, -rate))[:number]
    return np.column_stack([true[hardest], predicted[hardest]])


def shot_accuracy(
    class_accuracy: ArrayLike, counts: ArrayLike, *, head: float = 100, tail: float = 20
) -> dict[str, float]:
    """Mean class accuracy over the classes with many, some and few training samples.

    Head classes have more than ``head`` training samples, tail classes fewer than ``tail``, middle classes
    the rest, both bounds included ("Delving into Semantic Scale Imbalance", ICLR 2023, Table 2).

    Args:
      class_accuracy: ``[C]`` in [0, 1]; a class with NaN, that is without test samples, is left out.
      counts: training samples of each class ``[C]``.
      head: the most samples that a class outside of the head may have.
      tail: the fewest samples that a class outside of the tail may have, at most ``head``.

    Returns:
      ``{"head": ..., "middle": ..., "tail": ...}`` without the keys of empty groups.

    Raises:
      ValueError: if lengths differ, a value is out of range or the bounds are in the wrong order.

    Example:
      >>> shot_accuracy([1.0, 0.5, 0.25, 0.75], [500, 101, 20, 100])
      {'head': 0.75, 'middle': 0.5}
    """
    accuracy, counts = vectors(class_accuracy=class_accuracy, counts=counts)
    _fractions("class_accuracy", accuracy)
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("counts must be finite numbers >= 0, one for each class")
    if not 0 <= tail <= head:
        raise ValueError(f"bounds must satisfy 0 <= tail <= head, got tail={tail!r} and head={head!r}")
    tested = np.isfinite(accuracy)
    groups = {"head": counts > head, "middle": (counts >= tail) & (counts <= head), "tail": counts < tail}
    return {
        name: float(accuracy[members & tested].mean()) for name, members in groups.items() if (members & tested).any()
    }


def accuracy_by_scale(class_accuracy: ArrayLike, scales: ArrayLike) -> dict[str, float]:
    """Mean class accuracy over the thirds of the classes by semantic scale (Ma et al., 2023, Appendix H.3, Figure 19).

    Of 1,000 classes the smallest 333 are ``"low"``, the next 333 ``"middle"`` and the largest 334 ``"high"``; of equal
    scales the class of the lower number comes first.

    Args:
      class_accuracy: ``[C]`` in [0, 1]; a class with NaN, that is without test samples, is left out.
      scales: semantic scale of each class ``[C]``; one with NaN is in no third.

    Returns:
      ``{"low": ..., "middle": ..., "high": ...}`` without the keys of thirds in which no class is tested.

    Raises:
      ValueError: if lengths differ or an accuracy is out of range.

    Example:
      >>> accuracy_by_scale([0.9, 0.1, 0.5, 0.7], [4.0, 1.0, 2.0, 3.0])
      {'low': 0.1, 'middle': 0.5, 'high': 0.8}
    """
    accuracy, scales = vectors(class_accuracy=class_accuracy, scales=scales)
    _fractions("class_accuracy", accuracy)
    order = np.argsort(scales, kind="stable")[: np.count_nonzero(~np.isnan(scales))]
    bounds = len(order) // 3, 2 * len(order) // 3
    thirds = zip(("low", "middle", "high"), np.split(accuracy[order], bounds), strict=True)
    return {name: float(np.nanmean(of_third)) for name, of_third in thirds if np.isfinite(of_third).any()}


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's coefficient of linear correlation.

    ``r = Σ (x - x̄)(y - ȳ) / √(Σ (x - x̄)² · Σ (y - ȳ)²)`` over the pairs in which both are finite. Numbers
    of any magnitude that float64 has, and means far above the spread, cost no digits.

    Args:
      x: numbers ``[n]``.
      y: numbers ``[n]``.

    Returns:
      r in [-1, 1], or NaN where it is undefined: for a constant, and for fewer than two finite pairs.

    Raises:
      ValueError: if the arguments are not vectors of one length.

    Example:
      >>> round(pearson([1, 2, 3, 4], [1, 3, 2, 5]), 4)
      0.8315
      >>> pearson([1, 2, 3], [7, 7, 7])
      nan
    """
    x, y = vectors(x=x, y=y)
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.sum() < 2:
        return float("nan")
    x, y = _standardized(x[finite]), _standardized(y[finite])
    return float(np.clip(x @ y, -1.0, 1.0))


def class_correlation(class_accuracy: ArrayLike, measure: ArrayLike) -> float:
    """How closely class accuracy follows a measure of classes: :func:`pearson` over three classes or more.

    Args:
      class_accuracy: ``[C]``.
      measure: ``[C]``.

    Returns:
      r in [-1, 1], or NaN where it is undefined or says nothing: two classes lie on a line whatever they are.

    Raises:
      ValueError: if the arguments are not vectors of one length.

    Example:
      >>> class_correlation([0.9, 0.6], [30, 20]), class_correlation([0.9, 0.6, 0.3], [30, 20, 10])
      (nan, 1.0)
    """
    accuracy, measure = vectors(class_accuracy=class_accuracy, measure=measure)
    return pearson(accuracy, measure) if np.isfinite(accuracy + measure).sum() > 2 else float("nan")


def correlations(
    class_accuracy: ArrayLike,
    *,
    samples: ArrayLike,
    effective_number: ArrayLike,
    interclass: ArrayLike,
    volume: ArrayLike,
    scale: ArrayLike,
) -> dict[str, float]:
    """How closely class accuracy follows each measure of a class: a row of the paper's Table 1.

    Args:
      class_accuracy: ``[C]``, NaN for classes without test samples.
      samples: training samples N ``[C]``.
      effective_number: effective number of samples E_n ``[C]`` (Cui et al., 2019).
      interclass: interference weights W ``[C]``.
      volume: feature volumes S' ``[C]``, in bits or any other unit.
      scale: semantic scales S ``[C]``.

    Returns:
      Pearson's r of ``class_accuracy`` with each, by name in the table's order; NaN where undefined. Classes
      in which either is NaN are left out, so a measure that was not taken may be given as NaNs.

    Raises:
      ValueError: if lengths differ or an accuracy is outside of [0, 1].

    Example:
      >>> r = correlations(
      ...     [0.9, 0.6, 0.8, 0.5], samples=[50] * 4, effective_number=[49.9] * 4,
      ...     interclass=[1.5, 1.4, 1.5, 1.4], volume=[9.0, 6.0, 8.0, 7.0], scale=[1.5, 1.0, 1.1, 0.9])
      >>> {name: round(value, 2) for name, value in r.items()}
      {'samples': nan, 'effective_number': nan, 'interclass': 0.95, 'volume': 0.85, 'scale': 0.9}
    """
    measures = {
        "samples": samples,
        "effective_number": effective_number,
        "interclass": interclass,
        "volume": volume,
        "scale": scale,
    }
    accuracy, *columns = vectors(class_accuracy=class_accuracy, **measures)
    _fractions("class_accuracy", accuracy)
    return {name: class_correlation(accuracy, column) for name, column in zip(measures, columns, strict=True)}


def correlations_by_alpha(
    class_accuracy: ArrayLike,
    volumes: ArrayLike,
    centers: ArrayLike,
    *,
    present: ArrayLike,
    alphas: Sequence[float] = (1, 1.5, 2, 2.5, 3),
) -> dict[str, Any]:
    """How closely class accuracy follows W, S' and S in one space, for several α: a part of the paper's Table 1.

    The paper does not say whether its Table 1 measured features in the pool, features of the whole training set or
    the images themselves; call this with the volumes and centres of each.

    Args:
      class_accuracy: ``[C]``, NaN for classes without test samples.
      volumes: S' ``[C]``, in bits.
      centers: ``[C, d]``, in the space in which the volumes were measured.
      present: bool ``[C]``; an absent class has neither volume nor centre, and is left out.
      alphas: smoothing of the interference, each >= 1.

    Returns:
      ``{"volume": r, "interclass": {"1": r, "1.5": r, ...}, "scale": {"1": r, "1.5": r, ...}}``; NaN where undefined.

    Raises:
      ValueError: if a shape is wrong, an accuracy is outside of [0, 1] or an alpha below 1.

    Example:
      >>> centers = np.array([[0.0], [1.0], [5.0]], np.float32)
      >>> r = correlations_by_alpha(
      ...     [0.9, 0.6, 0.8], np.array([9.0, 6.0, 7.0], np.float32), centers, present=[True] * 3, alphas=(1, 2))
      >>> round(r["volume"], 2), {alpha: round(value, 2) for alpha, value in r["scale"].items()}
      (0.93, {'1': 0.91, '2': 1.0})
    """
    accuracy, volumes = vectors(class_accuracy=class_accuracy, volumes=volumes)
    _fractions("class_accuracy", accuracy)
    centers, present, volumes32 = np.asarray(centers), np.asarray(present), volumes.astype(np.float32)

    def follows(measure: ArrayLike) -> float:
        return class_correlation(accuracy, np.where(present, measure, np.nan))

    w = {f"{alpha:g}": dsb_jax.interclass_weights(centers, alpha, present=present) for alpha in alphas}
    s = {f"{alpha:g}": dsb_jax.semantic_scales(volumes32, centers, alpha, present=present) for alpha in alphas}
    return {
        "volume": follows(volumes),
        "interclass": {alpha: follows(measure) for alpha, measure in w.items()},
        "scale": {alpha: follows(measure) for alpha, measure in s.items()},
    }


def vectors(**columns: ArrayLike) -> list[np.ndarray]:
    """The arguments as float64 vectors of one length.

    Raises:
      ValueError: naming the first argument that is no vector of real numbers or as long as the first one.

    Example:
      >>> vectors(accuracy=[1, 0], counts=[30, 20])
      [array([1., 0.]), array([30., 20.])]
    """
    arrays: list[np.ndarray] = []
    for name, column in columns.items():
        array = np.asarray(column)
        if array.ndim != 1:
            raise ValueError(f"{name} must be a vector, got shape {array.shape}")
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
            raise ValueError(f"{name} must hold real numbers, got {array.dtype}")
        if arrays and len(array) != len(arrays[0]):
            first = next(iter(columns))
            raise ValueError(f"{name} must be as long as {first}, got {len(array)} and {len(arrays[0])}")
        arrays.append(array.astype(np.float64))
    return arrays


def classes(name: str, values: ArrayLike, num_classes: int) -> np.ndarray:
    """The argument ``name`` as int64 classes ``[samples]``.

    Raises:
      ValueError: if it is no vector of integers in ``[0, num_classes)``.

    Example:
      >>> classes("labels", np.array([2, 0], np.uint8), 3)
      array([2, 0])
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape [samples], got {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    bad = (array < 0) | (array >= num_classes)
    if bad.any():
        where = int(bad.argmax())
        raise ValueError(f"{name} must lie in [0, {num_classes}), got {array[where]} at position {where}")
    return array.astype(np.int64)


def _standardized(x: np.ndarray) -> np.ndarray:
    """``x`` less its mean, of length 1; NaNs if all are equal."""
    # A power of two scales without rounding, and where the mean dwarfs the spread a member of the sample subtracts
    # without rounding. So no digit is lost, and no square under- or overflows.
    x = np.ldexp(x, -np.frexp(np.abs(x).max())[1])
    x = x - x[0]
    if not x.any():
        return np.full_like(x, np.nan)
    x = x - x.mean()
    return x / np.linalg.norm(x)


def _confusion(confusion: ArrayLike) -> np.ndarray:
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion must have shape [num_classes, num_classes], got {confusion.shape}")
    if not np.issubdtype(confusion.dtype, np.integer) or (confusion < 0).any():
        raise ValueError("confusion must hold counts, integers >= 0")
    return confusion


def _fractions(name: str, array: np.ndarray) -> None:
    bad = (array < 0) | (array > 1)
    if bad.any():
        where = int(bad.argmax())
        raise ValueError(f"{name} must lie in [0, 1], got {array[where]:g} at position {where}")
