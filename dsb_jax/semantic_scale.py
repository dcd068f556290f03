"""Semantic scale: the volume that a class's features span, and how close other classes come to it.

The volume of `m` feature vectors of dimension `d`, with `Zc` their deviations from the mean, is

    Vol = ½·log2 det(I + d/(m·ε²)·ZcᵀZc)      [bits]

and the semantic scale of a class is its volume, divided by the largest one, times a weight `W` that shrinks where the
class's centre lies near those of other classes ("Delving into Semantic Scale Imbalance", ICLR 2023, Eq. 1-3, Sec. 3.4).

Numerics. Everything is float32 (float64 stays float64). Rows are first taken relative to one of them, so a mean of any
size costs no digits. The determinant is that of the smaller of the two Gram matrices (Sylvester's identity), with the
null direction of centring removed, and comes from a QR factorization of the rows below an identity: forming the Gram
matrix itself would square its condition, and features of large scale and low rank would come out tens of percent wrong.
No function of this module passes a gradient.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dsb_jax import validation

_GRAM_SIZES = (16, 64, 256, 1024)  # rows to which a class that has fewer is padded
_ROW_BLOCK = 1024  # rows of one class added up at a time
_FOLDS = 64  # blocks of rows factorized one after the other before they join the rest


def volume(features: jax.typing.ArrayLike, *, epsilon: float = 1.0) -> jax.Array:
    """The volume spanned by feature vectors, ``½·log2 det(I + d/(m·ε²)·ZcᵀZc)``.

    Args:
      features: floating ``[m, d]``, a row per sample.
      epsilon: radius ``ε`` below which differences do not count, in units of the features. The paper's Eq. 3 and
        Algorithm 1 have 1.

    Returns:
      A scalar in bits: 0 for fewer than two rows or for equal rows, positive otherwise.

    Raises:
      ValueError: if ``features`` is not a finite floating matrix or ``epsilon`` not positive.

    Example:
      >>> square = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
      >>> print(f"{volume(square):.4f}")  # covariance I, so ½·log2 det(3·I)
      1.5850
      >>> print(f"{volume(square + 1000.0):.4f}")
      1.5850

    Source: Eq. 2-3 of the paper.
    """
    features = validation.features(features)
    return _volume(features, validation.positive("epsilon", epsilon))


def class_volumes(
    features: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, num_classes: int, *, epsilon: float = 1.0
) -> jax.Array:
    """The volume of every class.

    Args:
      features: floating ``[m, d]``.
      labels: int ``[m]`` in ``[0, num_classes)``. Under ``jit`` rows with another label are left out.
      num_classes: ``C``.
      epsilon: as in :func:`volume`.

    Returns:
      ``[C]`` in bits; 0 for a class with fewer than two rows.

    Raises:
      ValueError: on a wrong shape, dtype, label or ``epsilon``.

    Example:
      >>> features = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
      >>> print(class_volumes(features, jnp.array([0, 0, 1, 1, 2]), 4))  # ½·log2(1 + 2·variance)
      [0.7925 1.585  0.     0.    ]

    Source: Eq. 3 of the paper, class by class.
    """
    features, labels, num_classes = _check_classes(features, labels, num_classes)
    return _class_volumes(features, labels, num_classes, validation.positive("epsilon", epsilon))


def sample_volumes(
    images: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, num_classes: int, *, image_size: int = 16
) -> jax.Array:
    """The volume of every class in pixel space: each image is a point of ``image_size²·3`` coordinates.

    The paper is silent on three points; here uint8 images are scaled to [0, 1], grey ones are repeated to three
    channels, and resizing is bilinear with antialiasing.

    Args:
      images: ``[m, height, width, channels]`` with 1 or 3 channels, uint8, or floating and then taken as it is.
      labels: int ``[m]``.
      num_classes: ``C``.
      image_size: side to which images are resized before they are flattened.

    Returns:
      ``[C]`` in bits.

    Raises:
      ValueError: on a wrong shape, dtype, label or size.

    Example:
      >>> images = jnp.zeros((4, 8, 8, 1), jnp.uint8).at[0].set(255)
      >>> print(sample_volumes(images, jnp.array([0, 0, 1, 1]), 2))  # ½·log2(1 + 768·768/4)
      [8.585 0.   ]

    Source: Algorithm 1 (Appendix E) of the paper.
    """
    return class_volumes(pixel_features(images, image_size=image_size), labels, num_classes)


def pixel_features(images: jax.typing.ArrayLike, *, image_size: int = 16) -> jax.Array:
    """Images as points of ``image_size²·3`` coordinates: the sample space of Figure 2, see :func:`sample_volumes`.

    Args:
      images: ``[m, height, width, channels]`` with 1 or 3 channels, uint8, or floating and then taken as it is.
      image_size: side to which images are resized before they are flattened.

    Returns:
      ``[m, image_size²·3]``, row by row, the channels of a pixel side by side.

    Raises:
      ValueError: on a wrong shape, dtype or size.

    Example:
      >>> pixel_features(jnp.zeros((2, 28, 28, 1), jnp.uint8)).shape
      (2, 768)

    Source: Algorithm 1 (Appendix E) of the paper.
    """
    image_size, images = validation.positive_int("image_size", image_size), jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have shape [samples, height, width, 1 or 3], got {images.shape}")
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}")
    shape = (images.shape[0], image_size, image_size, images.shape[-1])
    resized = jax.image.resize(images, shape, "bilinear", antialias=True)
    return jnp.broadcast_to(resized, (*shape[:3], 3)).reshape(shape[0], -1)


def class_centers(features: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, num_classes: int) -> jax.Array:
    """The mean of every class's features.

    Args:
      features: floating ``[m, d]``.
      labels: int ``[m]`` in ``[0, num_classes)``. Under ``jit`` rows with another label are left out.
      num_classes: ``C``.

    Returns:
      ``[C, d]``; zeros for a class without rows.

    Raises:
      ValueError: on a wrong shape, dtype or label.

    Example:
      >>> print(class_centers(jnp.array([[1.0], [3.0], [7.0]]), jnp.array([0, 0, 2]), 3).ravel())
      [2. 0. 7.]

    Source: Sec. 3.4.1 of the paper.
    """
    return _class_centers(*_check_classes(features, labels, num_classes))


def interclass_weights(
    centers: jax.typing.ArrayLike, alpha: float, *, present: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """How far a class keeps from the others: ``W = log2(α + w/max w)``.

    ``w_i`` is the mean Euclidean distance from centre ``i`` to the centres of the other present classes. The
    distances are exact differences, so nearly coinciding centres far from the origin lose no digits.

    Args:
      centers: floating ``[C, d]``.
      alpha: smoothing ``α >= 1``; the paper takes 2 on long-tailed data and 1 otherwise.
      present: bool ``[C]``, which classes take part; all by default.

    Returns:
      ``[C]``. Where fewer than two classes are present, or all centres coincide, ``w/max w`` is 1. An absent class
      has ``w = 0``.

    Raises:
      ValueError: on a wrong shape or dtype, or ``alpha < 1``.

    Example:
      >>> print(interclass_weights(jnp.array([[0.0], [1.0], [5.0]]), 1.0))  # w = 3, 2.5, 4.5
      [0.737  0.6374 1.    ]

    Source: Sec. 3.4.1 of the paper.
    """
    centers = validation.features(centers, name="centers")
    alpha = validation.at_least("alpha", alpha, 1)
    present = validation.boolean("present", present, centers.shape[:1])
    return weights_from_distances(_distance_sums(_full_precision(centers), present), alpha, present)


def semantic_scales(
    volumes: jax.typing.ArrayLike,
    centers: jax.typing.ArrayLike,
    alpha: float,
    *,
    present: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The semantic scale with inter-class interference, ``S = (S'/max S') ⊙ W``.

    Args:
      volumes: ``S'``, floating ``[C]`` and not negative.
      centers: floating ``[C, d]``.
      alpha: as in :func:`interclass_weights`.
      present: bool ``[C]``, which classes take part; all by default. An absent class has scale 0.

    Returns:
      ``[C]``, in [0, log2(α + 1)].

    Raises:
      ValueError: on a wrong shape or dtype, or ``alpha < 1``.

    Example:
      >>> centers = jnp.array([[0.0], [1.0], [5.0]])
      >>> print(semantic_scales(jnp.array([4.0, 2.0, 1.0]), centers, 1.0))
      [0.737  0.3187 0.25  ]

    Source: Sec. 3.4.1 of the paper.
    """
    volumes, centers = jnp.asarray(volumes), jnp.asarray(centers)
    if volumes.ndim != 1 or not jnp.issubdtype(volumes.dtype, jnp.floating):
        raise ValueError(f"volumes must be floating point of shape [classes], got {volumes.dtype} {volumes.shape}")
    if centers.shape[:1] != volumes.shape:
        raise ValueError(f"centers must have a row per volume ({volumes.shape[0]}), got {centers.shape}")
    present = validation.boolean("present", present, volumes.shape)
    weights = interclass_weights(centers, alpha, present=present)
    return combine(volumes, weights, present)


def effective_number(counts: jax.typing.ArrayLike, *, beta: float = 0.9999) -> jax.Array:
    """The effective number of samples, ``(1 − βⁿ)/(1 − β)``.

    Args:
      counts: ``n``, samples per class, ``[C]``, not negative.
      beta: in [0, 1); 0 counts every class with samples as one, towards 1 it becomes ``n``.

    Returns:
      float32 ``[C]``.

    Raises:
      ValueError: if ``beta`` is outside [0, 1) or a count is negative.

    Example:
      >>> print(effective_number(jnp.array([0, 1, 100]), beta=0.9))
      [0.     1.     9.9997]

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019.
    """
    if not validation.at_least("beta", beta, 0) < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta!r}")
    counts = jnp.asarray(counts)
    if validation.is_concrete(counts) and not np.all(np.asarray(counts) >= 0):
        raise ValueError(f"counts must not be negative, got {np.min(counts)}")
    counts = counts.astype(jnp.float32)
    if beta == 0.0:
        return jnp.where(counts > 0, 1.0, 0.0)
    return jnp.expm1(counts * math.log(beta)) / (beta - 1.0)


def pool_features(features: jax.typing.ArrayLike, dim: int = 64) -> jax.Array:
    """Shortens feature vectors by one-dimensional average pooling over their channels.

    Output ``i`` is the mean of channels ``⌊i·d/dim⌋`` to ``⌈(i+1)·d/dim⌉``, which is plain pooling with kernel and
    stride ``d/dim`` where that is whole, and adaptive pooling where it is not.

    Args:
      features: floating ``[batch, d]``.
      dim: channels wanted.

    Returns:
      ``[batch, dim]``, or ``features`` itself where ``d <= dim``.

    Raises:
      ValueError: if ``features`` is not a floating matrix or ``dim`` not positive.

    Example:
      >>> print(pool_features(jnp.array([[1.0, 3.0, 5.0, 7.0]]), 2))
      [[2. 6.]]

    Source: Appendix F.2 of the paper.
    """
    dim, features = validation.positive_int("dim", dim), jnp.asarray(features)
    if features.ndim != 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(
            f"features must be floating point of shape [batch, channels], got {features.dtype} {features.shape}"
        )
    channels = features.shape[1]
    if channels <= dim:
        return features
    if channels % dim == 0:
        return jnp.mean(features.reshape(-1, dim, channels // dim), axis=2)
    output, channel = jnp.arange(dim), jnp.arange(channels)[:, None]
    start, stop = output * channels // dim, -(-(output + 1) * channels // dim)
    inside = (channel >= start[None, :]) & (channel < stop[None, :])
    window = inside.astype(features.dtype) / (stop - start).astype(features.dtype)[None, :]
    return jnp.matmul(features, window, precision=lax.Precision.HIGHEST)


def combine(volumes: jax.Array, weights: jax.Array, present: jax.Array) -> jax.Array:
    """``(S'/max S') ⊙ W`` over the present classes, 0 elsewhere; no volume above 0 leaves all scales 0."""
    volumes = jnp.where(present, lax.stop_gradient(volumes), 0.0)
    largest = jnp.max(volumes)
    return weights * volumes / jnp.where(largest > 0, largest, 1.0)


def weights_from_distances(sums: jax.Array, alpha: float, present: jax.Array) -> jax.Array:
    """``log2(α + w/max w)`` from each class's sum of distances to the present ones."""
    mean = sums / jnp.maximum(jnp.sum(present) - 1, 1).astype(sums.dtype)
    # One class alone has no distance; a streamed sum may keep a last digit of those that left.
    largest = jnp.where(jnp.sum(present, dtype=jnp.int32) > 1, jnp.max(mean), 0.0)
    ratio = jnp.where(largest > 0, mean / jnp.where(largest > 0, largest, 1.0), 1.0)
    return jnp.log2(alpha + ratio)


def _check_classes(features, labels, num_classes):
    features = validation.features(features)
    num_classes = validation.positive_int("num_classes", num_classes)
    return features, validation.labels(labels, num_classes, samples=features.shape[0]), num_classes


def _full_precision(array):
    """At least float32, without gradients."""
    dtype = jnp.float64 if array.dtype == jnp.float64 else jnp.float32
    return lax.stop_gradient(array).astype(dtype)


def _contrasts(difference, mean, count):
    """Rows whose Gram matrix is that of the centred samples, from differences to the first sample.

    A Householder reflection that sends (1,…,1)/√m to the first axis removes the null direction of centring: with
    the first sample at the origin, the rows 2…m of the result are ``z_i − mean·√m/(√m+1)`` and the first is dropped.
    """
    root = jnp.sqrt(count)
    return difference - (root / (root + 1.0)) * mean[None, :]


def _fold(factor, rows):
    """The triangle of ``[factor; rows]``: its Gram matrix is the sum of theirs."""
    return jnp.linalg.qr(jnp.concatenate([factor, rows]), mode="r")


def _triangle(count, block_at, dim, dtype):
    """The triangle of an identity above ``count`` blocks of rows.

    Folded in groups, and the groups then together: rounding grows with the folds that follow one another.
    """

    def group(j, factor):
        stop = jnp.minimum((j + 1) * _FOLDS, count)
        rows = lax.fori_loop(j * _FOLDS, stop, lambda i, part: _fold(part, block_at(i)), jnp.zeros((dim, dim), dtype))
        return _fold(factor, rows)

    return lax.fori_loop(0, (count + _FOLDS - 1) // _FOLDS, group, jnp.eye(dim, dtype=dtype))


def _bits(factor, trace):
    """``½·log2 det(I + G)`` from the triangle of ``I + G``, and ``tr G``.

    The determinant lies between ``1 + tr G`` and ``exp(tr G)``, which says more than the triangle where G is tiny.
    """
    bits = jnp.sum(jnp.log2(jnp.abs(jnp.diagonal(factor))))
    return jnp.clip(bits, jnp.log1p(trace) / (2 * math.log(2)), trace / (2 * math.log(2)))


@partial(jax.jit, static_argnames="epsilon")
def _volume(features, epsilon):
    features = _full_precision(features)
    samples, dim = features.shape
    if samples < 2:
        return jnp.zeros((), features.dtype)
    difference = features[1:] - features[:1]
    mean = jnp.sum(difference, axis=0) / samples
    rows = _contrasts(difference, mean, jnp.asarray(samples, features.dtype))
    rows *= math.sqrt(dim / samples) / epsilon
    trace = jnp.sum(jnp.square(rows))
    if samples - 1 < dim:
        return _bits(_fold(jnp.eye(samples - 1, dtype=rows.dtype), rows.T), trace)
    size = _fold_size(dim)
    rows = jnp.pad(rows, ((0, -len(rows) % size), (0, 0)))
    factor = _triangle(len(rows) // size, lambda i: lax.dynamic_slice_in_dim(rows, i * size, size), dim, rows.dtype)
    return _bits(factor, trace)


def _fold_size(dim):
    return max(dim, 64)


def _sort_by_class(features, labels, num_classes):
    """Rows in order of their class, padded so that a block may be read at any of them, and each class's range."""
    labels = jnp.where(labels >= 0, labels, num_classes)
    order = jnp.argsort(labels, stable=True)
    rows = _full_precision(features)[order]
    rows = jnp.pad(rows, ((0, max(_ROW_BLOCK, rows.shape[1])), (0, 0)))
    edges = jnp.searchsorted(labels[order], jnp.arange(num_classes + 1, dtype=jnp.int32)).astype(jnp.int32)
    return rows, edges[:-1], edges[1:] - edges[:-1]


def _rows_at(rows, start, offset, size, count):
    """Rows ``offset … offset+size`` of the class that begins at ``start``, and which of them are the class's."""
    block = lax.dynamic_slice_in_dim(rows, start + offset, size)
    return block, (offset + jnp.arange(size, dtype=jnp.int32) < count)[:, None]


def _over_rows(rows, start, count, size, step, init):
    """``step(carry, block, valid)`` over the rows of a class, ``size`` at a time."""

    def body(i, carry):
        return step(carry, *_rows_at(rows, start, i * size, size, count))

    return lax.fori_loop(0, (count + size - 1) // size, body, init)


def _mean_difference(rows, start, count):
    """The mean of a class relative to its first row."""
    anchor = rows[start]

    def add(total, block, valid):
        return total + jnp.sum(jnp.where(valid, block - anchor[None, :], 0.0), axis=0)

    total = _over_rows(rows, start, count, _ROW_BLOCK, add, jnp.zeros_like(anchor))
    return total / jnp.maximum(count, 1).astype(rows.dtype)


@partial(jax.jit, static_argnames="num_classes")
def _class_centers(features, labels, num_classes):
    rows, starts, counts = _sort_by_class(features, labels, num_classes)

    def center(bounds):
        start, count = bounds
        return jnp.where(count > 0, rows[start] + _mean_difference(rows, start, count), 0.0)

    return lax.map(center, (starts, counts))


@partial(jax.jit, static_argnames=("num_classes", "epsilon"))
def _class_volumes(features, labels, num_classes, epsilon):
    rows, starts, counts = _sort_by_class(features, labels, num_classes)
    dim = rows.shape[1]
    sizes = [*(size for size in _GRAM_SIZES if size < dim), dim]

    def of_class(bounds):
        start, count = bounds
        samples = jnp.maximum(count, 1).astype(rows.dtype)
        anchor, mean = rows[start], _mean_difference(rows, start, count)
        scale = jnp.sqrt(dim / samples) / epsilon

        def few_rows(size):
            block, valid = _rows_at(rows, start, 0, size, count)
            kept = valid & (jnp.arange(size, dtype=jnp.int32) > 0)[:, None]  # the first is the null direction
            block = jnp.where(kept, scale * _contrasts(block - anchor[None, :], mean, samples), 0.0)
            return _bits(_fold(jnp.eye(size, dtype=rows.dtype), block.T), jnp.sum(jnp.square(block)))

        def many_rows():
            size = _fold_size(dim)

            def centred(block, valid):
                return jnp.where(valid, scale * (block - (anchor + mean)[None, :]), 0.0)

            def add(total, block, valid):
                return total + jnp.sum(jnp.square(centred(block, valid)))

            def block_at(i):
                return centred(*_rows_at(rows, start, i * size, size, count))

            trace = _over_rows(rows, start, count, _ROW_BLOCK, add, jnp.zeros((), rows.dtype))
            return _bits(_triangle((count + size - 1) // size, block_at, dim, rows.dtype), trace)

        branches: list[Callable[[], jax.Array]] = [*(partial(few_rows, size) for size in sizes), many_rows]
        tier = jnp.searchsorted(jnp.asarray(sizes, jnp.int32), count).astype(jnp.int32)
        return jnp.where(count > 1, lax.switch(tier, branches), 0.0)

    return lax.map(of_class, (starts, counts))


def _distance_sums(centers, present):
    """Sum of each centre's distances to the present ones, ``[C]``, one centre at a time."""

    def of_center(center):
        distance = jnp.sqrt(jnp.sum(jnp.square(centers - center[None, :]), axis=1))
        return jnp.sum(jnp.where(present, distance, 0.0))

    return jnp.where(present, lax.map(of_center, centers, batch_size=16), 0.0)
