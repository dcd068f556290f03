"""What the losses over class scores ask of their arguments, and the one form that they compute on.

Logits narrower than float32 are upcast to it, float64 is kept. A label outside ``[0, classes)`` raises where its value
can be read; under ``jit`` it becomes -1, and the loss NaN, never that of another class, with a gradient of zero.
Traced counts, priors and mean scores are not checked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation

_ROUNDING = 4e-3  # by which the sum of a prior may differ from 1: by as much bfloat16 rounds its parts
LARGEST_MARGIN = 2.0  # two cosines differ by no more
_ABOVE_ONE = 1e-6  # what rounding may add to a mean of scores that are all 1


def scores_and_labels(
    logits: Any, labels: Any, *, name: str = "logits", mask: jax.typing.ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Logits, in float32 or float64, and labels, -1 where they are no class or masked out."""
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(f"{name} must have shape [batch, classes], got {logits.shape}")
    logits = at_least_float32(name, logits)
    batch, classes = logits.shape
    labels = validation.labels(labels, classes, samples=batch, mask=mask)
    return logits, labels if mask is None else jnp.where(validation.boolean("mask", mask, labels.shape), labels, -1)


def at_least_float32(name: str, array: jax.Array) -> jax.Array:
    """``array`` in float32 or float64; raises ValueError unless it is floating."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {array.dtype}")
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def counts_for(logits: jax.Array, counts: Any) -> jax.Array:
    """Counts in the logits' dtype, all positive."""
    return jnp.asarray(_positive(_per_class("counts", counts, logits)), logits.dtype)


def prior_of(counts: Any) -> jax.Array | np.ndarray:
    """Each class's share of the samples ``[classes]``."""
    counts = _as_given(counts)
    if counts.ndim != 1:
        raise ValueError(f"counts must have shape [classes], got {counts.shape}")
    counts = _positive(counts)
    return counts / counts.sum()


def prior_for(logits: jax.Array, prior: Any) -> jax.Array:
    """A prior in the logits' dtype."""
    prior = _per_class("prior", prior, logits)
    if validation.is_concrete(prior):
        total = np.sum(prior, dtype=np.float64)
        if not ((prior > 0).all() and abs(total - 1.0) <= _ROUNDING):  # NaN and infinity fail this too
            raise ValueError(f"prior must be positive and sum to 1, got {prior.tolist()} with sum {total:g}")
    return jnp.asarray(prior, logits.dtype)


def mean_scores_for(logits: jax.Array, mean_scores: Any) -> jax.Array:
    """Mean scores in the logits' dtype."""
    mean_scores = _per_class("mean_scores", mean_scores, logits)
    if validation.is_concrete(mean_scores) and not ((mean_scores > 0) & (mean_scores <= 1 + _ABOVE_ONE)).all():
        raise ValueError(f"mean_scores must lie in (0, 1], got {mean_scores.tolist()}")
    return jnp.asarray(mean_scores, logits.dtype)


def log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``log softmax(logits)[i, labels[i]]``; NaN where a label is no class."""
    return of_class(jax.nn.log_softmax(logits), labels)


def of_class(rows: jax.Array, labels: jax.Array) -> jax.Array:
    """``rows[i, labels[i]]``; NaN where a label is no class."""

    def pick(row: jax.Array, label: jax.Array) -> jax.Array:
        # Plain indexing would clamp a label that is too large and count a negative one from the end.
        return row.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    return jax.vmap(pick)(rows, labels)


def _per_class(name: str, array: Any, logits: jax.Array) -> jax.Array | np.ndarray:
    array, classes = _as_given(array), logits.shape[1]
    if array.shape != (classes,):
        raise ValueError(f"{name} must have shape ({classes},), one per class, got {array.shape}")
    return array


def _positive(counts: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Floating counts in place of any: as float64 where they can be read, before the logits' dtype rounds them."""
    if not validation.is_concrete(counts):
        return counts.astype(jnp.result_type(float))
    if (wrong := ~(np.isfinite(counts) & (counts > 0))).any():  # the loss would be infinite or NaN
        where = np.argmax(wrong)
        raise ValueError(
            f"counts must be finite and positive, one per class, got {counts[where]} for class {where}; classes "
            "without samples need a loss and an objective that are not of counts, as cross_entropy and supervised"
        )
    return counts.astype(np.float64)


def _as_given(array: Any) -> jax.Array | np.ndarray:
    """A tracer as it is, anything else as NumPy: JAX would wrap a large int64 into an int32 unseen."""
    return np.asarray(array) if validation.is_concrete(array) else array
