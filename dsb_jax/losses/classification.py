"""Losses over class scores: cross-entropy, and the ways to make it heed hard classes or keep a margin.

All are functions ``(logits [batch, classes], labels [batch]) -> [batch]`` and treat their input alike:
see :mod:`dsb_jax.losses.inputs`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses import inputs

_LARGEST_ANGLE = math.pi / 2


def cross_entropy(
    logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, label_smoothing: float = 0.0
) -> jax.Array:
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
    logits, labels = inputs.scores_and_labels(logits, labels)
    validation.in_range("label_smoothing", label_smoothing, 0, 1.0)
    loss = -inputs.log_likelihood(logits, labels)
    if label_smoothing:  # Not multiplied by zero: a class masked with a logit of -inf has an infinite mean.
        mean = jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        loss = (1.0 - label_smoothing) * loss - label_smoothing * mean
    return loss


def focal(
    logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, gamma: float = 2.0, detach_modulator: bool = False
) -> jax.Array:
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
    logits, labels = inputs.scores_and_labels(logits, labels)
    validation.at_least("gamma", gamma, 0)
    log_p = inputs.log_likelihood(logits, labels)
    # For gamma < 1 the power has an infinite slope at p = 1, where -log p is 0; the floor makes their product 0.
    modulator = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny) ** gamma
    if detach_modulator:
        modulator = jax.lax.stop_gradient(modulator)
    return -modulator * log_p


def ldam(
    cosines: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    counts: Any,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> jax.Array:
    """Label-distribution-aware margin: cross-entropy that asks rare classes for a larger margin.

    ``-log softmax(scale · (cosines - m_y e_y))_y`` with margins m_c ∝ n_c^(-1/4), the largest ``max_margin``.

    Args:
      cosines: Cosines of features with class weights ``[batch, classes]``, as of a cosine head with scale 1.
      labels: Class indices ``[batch]``, integers.
      counts: Training samples n per class ``[classes]``, > 0.
      max_margin: Margin of the rarest class, in cosine, in [0, 2]: two cosines differ by no more.
      scale: Inverse temperature, > 0.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, on counts that are not finite and positive, or on a label
        outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> cosines, labels = jnp.array([[0.5, 0.0], [0.0, 0.5]]), jnp.array([0, 1])
      >>> loss = ldam(cosines, labels, counts=jnp.array([16, 1]), scale=4.0)  # margins 0.25 and 0.5
      >>> [f"{value:.3f}" for value in loss]
      ['0.313', '0.693']

    Source: Cao et al., 2019, Eq. 13.
    """
    cosines, labels = inputs.scores_and_labels(cosines, labels, name="cosines")
    counts = inputs.counts_for(cosines, counts)
    validation.in_range("max_margin", max_margin, 0, inputs.LARGEST_MARGIN)
    validation.positive("scale", scale)
    margins = max_margin * (jnp.min(counts) / counts) ** 0.25
    true_class = jax.nn.one_hot(labels, cosines.shape[1], dtype=cosines.dtype)
    return -inputs.log_likelihood(scale * (cosines - margins[None, :] * true_class), labels)


def arcface(
    cosines: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, margin: float = 0.5, scale: float = 64.0
) -> jax.Array:
    """ArcFace: cross-entropy that asks for an angle to the true class smaller by a margin than to the others.

    With θ the angle of features to the weights of the true class y, ``-log softmax(scale · s)_y``, where s are the
    cosines but for ``s_y = cos(θ + margin)``. Where θ + margin is more than π, and that would rise again, it is
    ``cos θ - margin sin(margin)``, which is less than at any smaller θ. Value and gradient are finite for all cosines;
    where θ is 0 or π, and the sine has no slope, its gradient counts as 0. A cosine that rounding has brought beyond 1
    counts as one of 1 in the sine.

    Args:
      cosines: Cosines of features with class weights ``[batch, classes]``, as of a cosine head with scale 1.
      labels: Class indices ``[batch]``, integers.
      margin: Angle in radians, in [0, π/2]: with a larger one, s_y would no longer fall with θ.
      scale: Inverse temperature, > 0.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> cosines = jnp.array([[0.5, 0.0], [0.5, 0.5]])  # the angle is π/3, and with the margin π/2
      >>> loss = arcface(cosines, jnp.array([0, 1]), margin=jnp.pi / 6, scale=1.0)
      >>> [f"{value:.3f}" for value in loss]  # log 2 and log(1 + e^½)
      ['0.693', '0.974']

    Source: Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019, Eq. 3; beyond π as in
    their code.
    """
    cosines, labels = inputs.scores_and_labels(cosines, labels, name="cosines")
    validation.in_range("margin", margin, 0, _LARGEST_ANGLE)
    validation.positive("scale", scale)
    true_class = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
    return -inputs.log_likelihood(scale * jnp.where(true_class, _at_wider_angle(cosines, margin), cosines), labels)


def _at_wider_angle(cosines: jax.Array, margin: float) -> jax.Array:
    """cos(θ + margin) of cos θ, and beyond π what goes on falling."""
    # By sums of angles: an arc cosine has no finite slope at the ends, and neither has the root, which is left out.
    between = jnp.abs(cosines) < 1
    inside = jnp.where(between, cosines, 0.0)
    sines = jnp.where(between, jnp.sqrt((1 - inside) * (1 + inside)), 0.0)
    widened = cosines * math.cos(margin) - sines * math.sin(margin)
    return jnp.where(cosines > -math.cos(margin), widened, cosines - margin * math.sin(margin))
