"""LOCE: the mean score of a class, followed through training, says how much the others must hold back.

Input is treated as in :mod:`dsb_jax.losses.inputs`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.losses import inputs


def equilibrium(logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, mean_scores: Any) -> jax.Array:
    """LOCE's equilibrium loss: cross-entropy that asks more of classes whose mean score is still low.

    ``-log(s_y e^{z_y} / Σ_c s_c e^{z_c})`` with the mean scores s, which :func:`mean_score_update` follows: a margin
    ``log(s_c / s_y)`` of class y against every other. Only their ratios matter.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      mean_scores: What the examples of a class have lately been scored for it, ``[classes]``, in (0, 1].

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape or dtype, on mean scores outside (0, 1], or on a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = equilibrium(jnp.zeros((2, 2)), jnp.array([0, 1]), mean_scores=jnp.array([0.6, 0.2]))
      >>> [f"{p:.2f}" for p in jnp.exp(-loss)]
      ['0.75', '0.25']

    Source: Feng et al., Exploring Classification Equilibrium in Long-Tailed Object Detection, 2021.
    """
    logits, labels = inputs.scores_and_labels(logits, labels)
    mean_scores = inputs.mean_scores_for(logits, mean_scores)
    return -inputs.log_likelihood(logits + jnp.log(mean_scores)[None, :], labels)


def mean_score_update(
    mean_scores: jax.Array,
    scores: jax.Array,
    labels: jax.typing.ArrayLike,
    *,
    decay: float = 0.9,
    mask: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Mean scores after one more batch: the more examples of a class it has, the more of the old is forgotten.

    ``s_c <- d^k s_c + (1 - d^k) · mean of the class's k scores``, so a class that is not in the batch stays as it is.
    The method begins with 0.01 everywhere, and where there is a background class sets that one back to 0.01.

    Args:
      mean_scores: ``[classes]``, floating.
      scores: What every example scored for its own class, as ``softmax(logits)[i, labels[i]]``, ``[batch]``, floating.
      labels: Class indices ``[batch]``, integers. Under ``jit`` what is no class counts for none.
      decay: d in [0, 1]; 1 forgets nothing.
      mask: bool ``[batch]``; where it is False, score and label may be anything.

    Returns:
      ``[classes]``, in the dtype of ``mean_scores``, which narrower than float32 are upcast to it.

    Raises:
      ValueError: on a wrong shape, dtype or ``decay``, on scores outside [0, 1], or on a label outside
        ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> scores, labels = jnp.array([0.8, 0.6]), jnp.array([0, 0])
      >>> print(mean_score_update(jnp.array([0.1, 0.2]), scores, labels, decay=0.5))  # 0.25 · 0.1 + 0.75 · 0.7
      [0.55 0.2 ]

    Source: Feng et al., 2021, as their code applies it: once a batch, with the decay to the power k.
    """
    mean_scores, scores = jnp.asarray(mean_scores), jnp.asarray(scores)
    if mean_scores.ndim != 1:
        raise ValueError(f"mean_scores must have shape [classes], got {mean_scores.shape}")
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape [batch], got {scores.shape}")
    mean_scores = inputs.at_least_float32("mean_scores", mean_scores)
    scores = inputs.at_least_float32("scores", scores)
    mask = validation.boolean("mask", mask, scores.shape)
    labels = validation.labels(labels, mean_scores.shape[0], samples=scores.shape[0], mask=mask)
    validation.in_range("decay", decay, 0, 1.0)
    if validation.is_concrete(scores) and validation.is_concrete(mask):
        values = np.asarray(scores)
        fits = ((values >= 0) & (values <= 1)) | ~np.asarray(mask)
        if not fits.all():
            where = np.argmin(fits)
            raise ValueError(f"scores must lie in [0, 1], got {values[where]:g} at position {where}")
    # Sums over a mask and not a scatter, whose order of additions a GPU leaves open.
    is_own = jax.nn.one_hot(labels, mean_scores.shape[0], dtype=bool) & mask[:, None]
    examples = jnp.sum(is_own, axis=0, dtype=mean_scores.dtype)
    total = jnp.sum(jnp.where(is_own, scores.astype(mean_scores.dtype)[:, None], 0.0), axis=0)
    kept = decay**examples
    return kept * mean_scores + (1.0 - kept) * total / jnp.maximum(examples, 1.0)
