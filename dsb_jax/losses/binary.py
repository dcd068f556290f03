"""Losses with a sigmoid for every class: each class is told apart from all others, and none competes with another.

All are functions ``(logits [batch, classes], labels [batch]) -> [batch]`` and treat their input alike:
see :mod:`dsb_jax.losses.inputs`. Value and gradient are finite unless a logit is next to the largest number there is.
An example of C classes is one positive and C - 1 negatives, so training usually begins with a negative bias in the
last layer.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses import inputs


def sigmoid_focal(logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, gamma: float = 1.0) -> jax.Array:
    """Focal loss on one sigmoid per class, the focal loss of CB-Focal.

    With y_c = 1 for the label and 0 elsewhere, ``Σ_c exp(-γ y_c z_c - γ log(1 + e^{-z_c})) BCE(z_c, y_c)``, which is
    ``-Σ_c (1 - q_c)^γ log q_c`` with the probability q_c = sigmoid(±z_c) of what class c is.

    Args:
      logits: Class scores z ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      gamma: Focusing exponent γ >= 0; 0 is sigmoid cross-entropy.

    Returns:
      The loss of every example in nats, ``[batch]``, a sum over classes.

    Raises:
      ValueError: on a wrong shape, dtype or ``gamma``, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{loss:.3f}" for loss in sigmoid_focal(jnp.zeros((1, 4)), jnp.array([0]))]  # 4 · 0.5 log 2
      ['1.386']

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, Sec. 4.3; γ is 0.5, 1 or 2
      there.
    """
    logits, labels = inputs.scores_and_labels(logits, labels)
    validation.at_least("gamma", gamma, 0)
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    losses = _focal(jnp.where(is_label, logits, -logits), gamma)
    return _nan_where_no_class(jnp.sum(losses, axis=1), labels)


def distribution_balanced(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    counts: Any,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    negative_scale: float = 2.0,
    bias: float = 0.05,
    gamma: float = 2.0,
    balance: float = 2.0,
) -> jax.Array:
    """Distribution-balanced loss: re-balanced weights, and negatives that stop pushing a class down early.

    With ``ν_c = κ log(1/p_c - 1)`` for a class's share p_c of the counts n, ``ω_c = α + sigmoid(β (r_c - μ))`` and
    ``r_c = (1/n_c) / (1/n_y)``, it is ``b/C (ω_y F(z_y - ν_y) + Σ_{c≠y} ω_c F(-λ (z_c - ν_c)) / λ)`` with
    ``F(t) = -(1 - sigmoid(t))^γ log sigmoid(t)``.

    The method is for images with several labels, where r_c is the sampling rate of an image by class c over that by
    all of its labels. A single label makes 1 of it for the label itself, whose ω is the same then for all examples;
    and n_y/n_c for a negative, which counts the less the more frequent its class is next to the label's: rare classes
    do not hold frequent ones down.

    Args:
      logits: Class scores z ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      counts: Training samples n per class ``[classes]``, > 0, of at least two classes.
      alpha: Smallest weight α, >= 0; ``map_param.alpha`` of the official code.
      beta: Slope β >= 0 of the weight; ``map_param.beta``.
      mu: The rate μ >= 0 at which it rises fastest; ``map_param.gamma``.
      negative_scale: λ > 0: negatives get their gradient from scores as many times as large; ``logit_reg.neg_scale``.
      bias: κ >= 0 of the class bias; ``logit_reg.init_bias``, which the authors' runs divided by λ unintendedly.
      gamma: Focusing exponent γ >= 0; 0 is without the focal loss.
      balance: Factor b > 0 of all; ``focal.balance_param``.

    Returns:
      The loss of every example in nats, ``[batch]``, a mean over classes. The defaults are the authors' for COCO-MLT.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, on counts that are not finite and positive, on
        fewer than two classes, or on a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> plain = {"alpha": 0.5, "beta": 0.0, "negative_scale": 1.0, "bias": 0.0, "gamma": 0.0, "balance": 1.0}
      >>> loss = distribution_balanced(jnp.zeros((1, 4)), jnp.array([0]), counts=jnp.array([4, 3, 2, 1]), **plain)
      >>> [f"{value:.3f}" for value in loss]  # log 2: sigmoid cross-entropy
      ['0.693']

    Source: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets, 2020;
      their code for the focal loss in it.
    """
    logits, labels = inputs.scores_and_labels(logits, labels)
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError(f"logits must be of at least two classes, got shape {logits.shape}")
    counts = inputs.counts_for(logits, counts)
    for name, value in {"alpha": alpha, "beta": beta, "mu": mu, "bias": bias, "gamma": gamma}.items():
        validation.at_least(name, value, 0)
    validation.positive("negative_scale", negative_scale)
    validation.positive("balance", balance)
    is_label = jax.nn.one_hot(labels, classes, dtype=bool)
    rate = counts[labels][:, None] / counts[None, :]
    weights = alpha + jax.nn.sigmoid(beta * (rate - mu))
    # A sum may round to its largest part; the others are at least one class as large as the smallest.
    others = jnp.maximum(jnp.sum(counts) - counts, jnp.min(counts))
    logits = logits - bias * (jnp.log(others) - jnp.log(counts))[None, :]
    losses = _focal(jnp.where(is_label, logits, -negative_scale * logits), gamma)
    losses = weights * jnp.where(is_label, losses, losses / negative_scale)
    return _nan_where_no_class(balance * jnp.mean(losses, axis=1), labels)


def _focal(margins: jax.Array, gamma: float) -> jax.Array:
    """``-(1 - q)^γ log q`` with q = sigmoid(margins)."""
    loss = jax.nn.softplus(-margins)
    if gamma:  # Not to the power of zero: where a class is ruled out by -inf, its margin is infinite.
        loss = jnp.exp(-gamma * jax.nn.softplus(margins)) * loss
    return loss


def _nan_where_no_class(losses: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.where(labels >= 0, losses, jnp.nan)
