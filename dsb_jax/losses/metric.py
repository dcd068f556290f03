"""Losses of metric learning: embeddings near what stands for their class, and far from what stands for others.

All are functions ``(embeddings [batch, dim], labels [batch], ...) -> [batch]``. Embeddings are taken as they come, of
length 1 where the method has them so; what stands for a class is brought to length 1 here. What is narrower than
float32 is upcast to it; float64, of either argument, is kept. A label outside ``[0, classes)`` raises where its value
can be read; under ``jit`` its loss is NaN, and its gradient zero.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses.classification import cross_entropy

_MIN_NORM = 1e-12  # a shorter centre is divided by this instead of by its own length
_INSIDE_ROOT = 1e-5  # where two centres meet, the slope of the root of nothing would be infinite


def soft_triple(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    centers: jax.Array,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
) -> jax.Array:
    """SoftTriple: cross-entropy of the similarities to classes that have several centres each.

    With the centres w_ck at length 1, the similarity of an embedding x to a class is that to its centres, to the
    nearest before all, ``s_c = Σ_k softmax_k(x·w_ck / γ) x·w_ck``, and the loss is
    ``-log softmax(scale · (s - margin e_y))_y``. It goes with :func:`soft_triple_regularizer`.

    Args:
      embeddings: ``[batch, dim]``, floating, of length 1 in the method.
      labels: Class indices ``[batch]``, integers.
      centers: ``[classes, centers, dim]``, floating, of any length.
      scale: Inverse temperature over classes, > 0.
      gamma: Temperature γ over a class's centres, > 0.
      margin: By how much the true class must be the most similar, >= 0.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> centers = jnp.array([[[2.0, 0.0], [0.0, 3.0]], [[-1.0, 0.0], [0.0, -1.0]]])
      >>> loss = soft_triple(jnp.array([[1.0, 0.0]]), jnp.array([0]), centers=centers, scale=1.0, margin=0.0)
      >>> [f"{value:.3f}" for value in loss]  # the nearest centres are at 1 and at 0: log(1 + 1/e)
      ['0.313']

    Source: Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019; Eq. 6 of the paper.
    """
    embeddings, centers = _checked_embeddings(embeddings), _checked_centers(centers)
    if embeddings.shape[1] != centers.shape[2]:
        raise ValueError(
            f"embeddings and centers must have the same last dimension, got {embeddings.shape} and {centers.shape}"
        )
    validation.positive("scale", scale)
    validation.positive("gamma", gamma)
    validation.at_least("margin", margin, 0)
    classes = centers.shape[0]
    labels = validation.labels(labels, classes, samples=embeddings.shape[0])
    dtype = jnp.promote_types(embeddings.dtype, centers.dtype)
    embeddings, centers = embeddings.astype(dtype), centers.astype(dtype)
    # Full float32 also where matrix products default to less: the scale multiplies errors.
    similarity = jnp.einsum("bd,ckd->bck", embeddings, _normalized(centers), precision=jax.lax.Precision.HIGHEST)
    similarity = jnp.sum(jax.nn.softmax(similarity / gamma, axis=2) * similarity, axis=2)
    true_class = jax.nn.one_hot(labels, classes, dtype=dtype)
    return cross_entropy(scale * (similarity - margin * true_class), labels)


def soft_triple_regularizer(centers: jax.Array) -> jax.Array:
    """How far apart SoftTriple's centres of one class are: minimized, it merges those that a class does not need.

    ``Σ_c Σ_{j<k} √(2 + 1e-5 - 2 w_cj·w_ck) / (C K (K - 1))`` with the centres w at length 1: half of the mean distance.
    The method adds 0.2 of it to the mean loss of a batch.

    Args:
      centers: ``[classes, centers, dim]``, floating, of any length.

    Returns:
      A scalar, 0 where classes have one centre.

    Raises:
      ValueError: on a wrong shape or dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> print(f"{soft_triple_regularizer(jnp.array([[[2.0, 0.0], [0.0, 3.0]]])):.4f}")  # half of √2
      0.7071

    Source: Qian et al., 2019, with the 1e-5 of their code; the paper's Eq. 6 is without this term.
    """
    centers = _normalized(_checked_centers(centers))
    classes, per_class, _ = centers.shape
    if per_class == 1:
        return jnp.zeros((), centers.dtype)
    cosine = jnp.einsum("cjd,ckd->cjk", centers, centers, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.sqrt(2.0 + _INSIDE_ROOT - 2.0 * jnp.minimum(cosine, 1.0))  # rounding may leave more than 1
    return jnp.sum(jnp.triu(distance, 1)) / (classes * per_class * (per_class - 1))


def _normalized(centers: jax.Array) -> jax.Array:
    squares = jnp.sum(jnp.square(centers), axis=-1, keepdims=True)
    return centers / jnp.sqrt(jnp.maximum(squares, _MIN_NORM**2))


def _checked_embeddings(embeddings: Any) -> jax.Array:
    embeddings = jnp.asarray(embeddings)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must have shape [batch, dim], got {embeddings.shape}")
    return _at_least_float32("embeddings", embeddings)


def _checked_centers(centers: Any) -> jax.Array:
    centers = jnp.asarray(centers)
    if centers.ndim != 3 or 0 in centers.shape:
        raise ValueError(f"centers must have shape [classes, centers, dim], none of them 0, got {centers.shape}")
    return _at_least_float32("centers", centers)


def _at_least_float32(name: str, array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {array.dtype}")
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)
