"""Subsets of a training set, long-tailed or balanced: how many images each class keeps, and which."""

from collections.abc import Sequence

import numpy as np

from dsb_jax import validation

# MNIST-LT-1 and MNIST-LT-2, by class (Ma et al., 2023, Table 8). No exponential profile gives them.
MNIST_LT: dict[int, tuple[int, ...]] = {
    1: (5923, 3590, 2940, 2518, 2256, 1972, 1700, 1300, 1100, 900),
    2: (5923, 3090, 2540, 1818, 1356, 972, 484, 272, 122, 74),
}

# Images per class of the balanced sub-datasets (Ma et al., 2023, Table 7, Figures 2 and 22). Each one holds those
# before it ("new samples are continuously added to the original samples instead of re-selecting", Appendix K), as the
# subsets of one seed do; settings ``long_tail="balanced"`` and ``images_per_class``.
BALANCED: dict[str, tuple[int, ...]] = {
    "cifar10": (50, 100, 200, 300, 400, 500, 600, 800, 1000, 2000, 3000, 4000, 5000),
    "cifar100": (10, 20, 30, 50, 100, 200, 300, 400, 500),
    "mini_imagenet": (10, 20, 30, 50, 100, 200, 300, 400, 500),
}


KINDS = ("none", "exponential", "balanced", "mnist_lt_1", "mnist_lt_2")


def subset_counts(
    kind: str, available: np.ndarray, *, imbalance: float = 1.0, images_per_class: int | None = None
) -> np.ndarray:
    """Images per class of a subset by its name, as settings have it.

    Args:
      kind: one of ``KINDS``.
      available: images of each class that there are, integers ``[C]``.
      imbalance: of ``"exponential"``.
      images_per_class: of the largest class of ``"exponential"``, of each one of ``"balanced"``; by default as many as
        the smallest class has.

    Returns:
      Counts, int64 ``[C]``; of ``"none"`` all that there are.

    Raises:
      ValueError: an unknown kind, or an argument out of its range.

    Example:
      >>> subset_counts("exponential", np.array([90, 80, 80]), imbalance=4.0).tolist()
      [80, 40, 20]
    """
    available = np.asarray(available, np.int64)
    if kind not in KINDS:
        raise validation.unknown_name("long_tail", kind, KINDS)
    if kind == "none":
        return available
    largest = int(available.min())
    if images_per_class is not None:
        largest = validation.positive_int("images_per_class", images_per_class)
    match kind:
        case "exponential":
            return exponential_counts(largest, len(available), imbalance)
        case "balanced":
            return balanced_counts(largest, len(available))
        case _:
            return np.array(MNIST_LT[int(kind[-1])], np.int64)


def balanced_counts(images_per_class: int, num_classes: int) -> np.ndarray:
    """Images per class of a balanced subset: the same number of every class.

    Args:
      images_per_class: m of Table 7.
      num_classes: number of classes.

    Returns:
      Counts, int64 ``[num_classes]``.

    Raises:
      ValueError: an argument below 1.

    Example:
      >>> labels = np.arange(1000) % 4
      >>> small, large = (subset(labels, balanced_counts(m, 4), seed=0) for m in (50, 100))
      >>> len(small), len(large), set(small) <= set(large)
      (200, 400, True)

    Ma et al., Delving into Semantic Scale Imbalance, 2023, Sec. 3.3 and Appendix D.1.
    """
    validation.positive_int("images_per_class", images_per_class)
    validation.positive_int("num_classes", num_classes)
    return np.full(num_classes, images_per_class, np.int64)


def exponential_counts(largest: int, num_classes: int, imbalance: float) -> np.ndarray:
    """Images per class of an exponential long tail.

    n_i = ⌊N · μ^(i / (1 − M))⌋ for i = 0..M−1, with N = ``largest``, M = ``num_classes`` and μ = ``imbalance``, the
    ratio of the largest class to the smallest.

    Args:
      largest: images of class 0.
      num_classes: number of classes.
      imbalance: at least 1; 1 keeps all classes alike.

    Returns:
      Counts, int64 ``[num_classes]``, never increasing.

    Raises:
      ValueError: an argument out of its range, or a tail so thin that a class keeps no image.

    Example:
      >>> exponential_counts(5000, 10, 100).tolist()
      [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]

    Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019; the formula as in Ma et al., 2023.
    """
    validation.positive_int("largest", largest)
    validation.positive_int("num_classes", num_classes)
    validation.positive("imbalance", imbalance)
    if imbalance < 1:
        raise ValueError(f"imbalance is the largest class over the smallest and must be >= 1, got {imbalance!r}")
    if largest < imbalance:
        raise ValueError(f"imbalance must be at most the images of the largest class, {largest}, got {imbalance!r}")
    last = max(num_classes - 1, 1)
    # One division per class: multiplying by 1/imbalance would round 4900/49 down to 99.
    return np.array([int(largest / imbalance ** (i / last)) for i in range(num_classes)], np.int64)


def subset(labels: np.ndarray, counts: Sequence[int] | np.ndarray, *, seed: int) -> np.ndarray:
    """The rows of a subset of a training set: ``counts[c]`` random rows of every class c.

    Each class is shuffled by itself, with a seed made of ``seed`` and c, and its first ``counts[c]`` rows are kept. So
    subsets of one seed are nested: smaller counts keep a part of what larger ones keep.

    Args:
      labels: integers ``[samples]``.
      counts: rows to keep of each class, integers ``[num_classes]``.
      seed: not negative.

    Returns:
      The rows kept, int64 ``[sum(counts)]``, ascending.

    Raises:
      ValueError: counts are no vector of integers >= 0, labels lie outside of them, or a class has fewer rows than its
        count (none, where counts is for more classes than there are labels of).

    Example:
      >>> labels = np.array([0, 1, 0, 1, 0])
      >>> rows = subset(labels, [2, 1], seed=0)
      >>> np.bincount(labels[rows]).tolist()
      [2, 1]
    """
    labels, counts = np.asarray(labels), np.asarray(counts)
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise ValueError(f"counts must be integers >= 0 [num_classes], got {counts.tolist()}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    validation.labels(labels, len(counts), samples=labels.size)
    available = np.bincount(labels, minlength=len(counts))
    if (short := np.flatnonzero(counts > available)).size:
        label = short[0]
        raise ValueError(f"class {label} has {available[label]} samples, but {counts[label]} are wanted of it")
    kept = [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts.tolist())
    ]
    return np.sort(np.concatenate(kept)).astype(np.int64)
