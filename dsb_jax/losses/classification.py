"""Losses over class scores: cross-entropy, and the ways to make it heed hard, rare or tail classes.

All are functions ``(logits [batch, classes], labels [batch]) -> [batch]`` and treat their input alike.
Logits narrower than float32 are upcast to it, float64 is kept. A label outside ``[0, classes)`` raises where its
value can be read; under ``jit`` its loss is NaN, never that of another class, and its gradient zero. Traced
counts are not checked.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy, optionally against smoothed labels.

    With p = softmax(logits) and smoothing s, ``-(1 - s) log p_y - s/C Σ_c log p_c``.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      label_smoothing: Share of the target spread evenly over all classes, in [0, 1].

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or ``label_smoothing``, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{loss:.3f}" for loss in cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))]  # log 4
      ['1.386', '1.386']

    Source: Szegedy et al., 2016, Sec. 7 (label smoothing).
    """
    logits, labels = _checked(logits, labels)
    _in_range("label_smoothing", label_smoothing, high=1.0)
    loss = -_log_likelihood(logits, labels)
    if label_smoothing:  # Not multiplied by zero: a class masked with a logit of -inf has an infinite mean.
        mean = jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        loss = (1.0 - label_smoothing) * loss - label_smoothing * mean
    return loss


def focal(logits: jax.Array, labels: jax.Array, *, gamma: float = 2.0, detach_modulator: bool = False) -> jax.Array:
    """Focal loss on the softmax: examples that are already classified well count less.

    With p = softmax(logits), ``-(1 - p_y)^γ log p_y``. Value and gradient are finite for all finite logits.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      gamma: Focusing exponent γ >= 0; 0 is cross-entropy.
      detach_modulator: Treat ``(1 - p_y)^γ`` as a constant in the gradient.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or ``gamma``, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{loss:.3f}" for loss in focal(jnp.zeros((1, 2)), jnp.array([0]), gamma=1.0)]  # 0.5 log 2
      ['0.347']

    Source: Lin et al., 2017, Eq. 4, with the softmax in place of the sigmoid.
    """
    logits, labels = _checked(logits, labels)
    _in_range("gamma", gamma)
    log_p = _log_likelihood(logits, labels)
    # For gamma < 1 the power has an infinite slope at p = 1, where -log p is 0; the floor makes their product 0.
    modulator = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny) ** gamma
    if detach_modulator:
        modulator = jax.lax.stop_gradient(modulator)
    return -modulator * log_p


def balanced_softmax(logits: jax.Array, labels: jax.Array, *, counts: Any) -> jax.Array:
    """Cross-entropy under the class prior of the training set; plain logits then suit balanced test data.

    ``-log softmax(logits + log counts)_y``. Only the ratios of the counts matter.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      counts: Training samples per class ``[classes]``. A class with none is treated as the rarest that has some:
        its own logarithm is infinite.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape or dtype, on counts that are negative, not finite or all zero, or on a
        label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = balanced_softmax(jnp.zeros((2, 2)), jnp.array([0, 1]), counts=jnp.array([300, 100]))
      >>> [f"{p:.2f}" for p in jnp.exp(-loss)]  # the prior
      ['0.75', '0.25']

    Source: Ren et al., 2020, Eq. 4.
    """
    logits, labels = _checked(logits, labels)
    counts = _checked_counts(counts, logits)
    return -_log_likelihood(logits + jnp.log(counts)[None, :], labels)


def ldam(
    cosines: jax.Array, labels: jax.Array, *, counts: Any, max_margin: float = 0.5, scale: float = 30.0
) -> jax.Array:
    """Label-distribution-aware margin: cross-entropy that asks rare classes for a larger margin.

    ``-log softmax(scale · (cosines - m_y e_y))_y`` with margins m_c ∝ n_c^(-1/4), the largest ``max_margin``.

    Args:
      cosines: Cosines of features with class weights ``[batch, classes]``, as of a cosine head with scale 1.
      labels: Class indices ``[batch]``, integers.
      counts: Training samples n per class ``[classes]``. A class with none is treated as the rarest that has
        some, so its margin is ``max_margin``.
      max_margin: Margin of the rarest class, in cosine, >= 0.
      scale: Inverse temperature, > 0.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, on counts that are negative, not finite or all
        zero, or on a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> cosines, labels = jnp.array([[0.5, 0.0], [0.0, 0.5]]), jnp.array([0, 1])
      >>> loss = ldam(cosines, labels, counts=jnp.array([16, 1]), scale=4.0)  # margins 0.25 and 0.5
      >>> [f"{value:.3f}" for value in loss]
      ['0.313', '0.693']

    Source: Cao et al., 2019, Eq. 13.
    """
    cosines, labels = _checked(cosines, labels)
    counts = _checked_counts(counts, cosines)
    _in_range("max_margin", max_margin)
    validation.positive("scale", scale)
    margins = max_margin * (jnp.min(counts) / counts) ** 0.25
    true_class = jax.nn.one_hot(labels, cosines.shape[1], dtype=cosines.dtype)
    return -_log_likelihood(scale * (cosines - margins[None, :] * true_class), labels)


def _log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``log softmax(logits)[i, labels[i]]``; NaN where a label is no class."""

    def pick(row: jax.Array, label: jax.Array) -> jax.Array:
        # Plain indexing would clamp a label that is too large and count a negative one from the end.
        return row.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    return jax.vmap(pick)(jax.nn.log_softmax(logits), labels)


def _checked(logits: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Logits, in float32 or float64, and labels."""
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [batch, classes], got {logits.shape}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    batch, classes = logits.shape
    labels = validation.labels(labels, classes, samples=batch)
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32), labels


def _checked_counts(counts: Any, logits: jax.Array) -> jax.Array:
    """Counts in the logits' dtype, all positive: where there are none, those of the rarest class that has some."""
    counts = _as_given(counts)
    classes = logits.shape[1]
    if counts.shape != (classes,):
        raise ValueError(f"counts must have shape ({classes},), one per class, got {counts.shape}")
    if validation.is_concrete(counts):
        valid = np.isfinite(counts).all() and (counts >= 0).all() and (counts > 0).any()
        if not valid:
            raise ValueError(f"counts must be finite, not negative and not all zero, got {counts.tolist()}")
    counts = jnp.asarray(counts, logits.dtype)
    rarest = jnp.min(counts, where=counts > 0, initial=jnp.inf)
    return jnp.where(counts > 0, counts, rarest)


def _as_given(array: Any) -> jax.Array | np.ndarray:
    """A tracer as it is, anything else as NumPy: JAX would wrap a large int64 into an int32 unseen."""
    return np.asarray(array) if validation.is_concrete(array) else array


def _in_range(name: str, value: float, high: float = math.inf) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= high):
        wanted = ">= 0" if high == math.inf else f"in [0, {high:g}]"
        raise ValueError(f"{name} must be a finite number {wanted}, got {value!r}")
