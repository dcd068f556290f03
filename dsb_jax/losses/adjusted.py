"""Losses that shift class scores by what is known of the classes: how frequent they are, how well they are scored.

All are functions ``(logits [batch, classes], labels [batch]) -> [batch]``, cross-entropies of the shifted scores, and
treat their input alike: see :mod:`dsb_jax.losses.inputs`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses import inputs


def balanced_softmax(logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, counts: Any) -> jax.Array:
    """Cross-entropy under the class prior of the training set; plain logits then suit balanced test data.

    ``-log softmax(logits + log counts)_y``. Only the ratios of the counts matter.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      counts: Training samples per class ``[classes]``, > 0: the logarithm of 0 is infinite.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape or dtype, on counts that are not finite and positive, or on a label outside
        ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = balanced_softmax(jnp.zeros((2, 2)), jnp.array([0, 1]), counts=jnp.array([300, 100]))
      >>> [f"{p:.2f}" for p in jnp.exp(-loss)]  # the prior
      ['0.75', '0.25']

    Source: Ren et al., 2020, Eq. 4.
    """
    logits, labels = inputs.scores_and_labels(logits, labels)
    counts = inputs.counts_for(logits, counts)
    return -inputs.log_likelihood(logits + jnp.log(counts)[None, :], labels)


def logit_adjusted(
    logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, prior: Any, tau: float = 1.0
) -> jax.Array:
    """Cross-entropy under a class prior π raised to a power: ``-log softmax(logits + τ log π)_y``.

    With τ = 1 and the counts' shares for a prior it is :func:`balanced_softmax`, and PriorCE of LADE, whose code adds
    1e-9 to the prior.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      prior: Probability π of every class ``[classes]``, positive, with sum 1.
      tau: Exponent τ >= 0 of the prior; 0 is cross-entropy.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or ``tau``, on a prior that is not positive or does not sum to 1, or on a
        label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = logit_adjusted(jnp.zeros((2, 2)), jnp.array([0, 1]), prior=[0.75, 0.25], tau=2.0)
      >>> [f"{p:.2f}" for p in jnp.exp(-loss)]  # 9 : 1
      ['0.90', '0.10']

    Source: Menon et al., Long-tail Learning via Logit Adjustment, 2021, Eq. 10; Hong et al., 2021, for PriorCE.
    """
    logits, labels = inputs.scores_and_labels(logits, labels)
    prior = inputs.prior_for(logits, prior)
    validation.at_least("tau", tau, 0)
    return -inputs.log_likelihood(logits + tau * jnp.log(prior)[None, :], labels)


def seesaw(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    counts: Any,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 0.01,
) -> jax.Array:
    """Seesaw: what frequent classes do to a rarer one is mitigated, and compensated where they win over it.

    With σ = softmax(logits), of which no gradient is taken, ``-log(e^z_y / Σ_j S_yj e^z_j)`` with ``S_yj = M_yj C_yj``,
    mitigation ``M_yj = min(1, n_j / n_y)^p`` and compensation ``C_yj = max(1, σ_j / max(σ_y, ε))^q``; ``S_yy`` is 1.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      counts: Training samples n per class ``[classes]``, > 0, of the whole set or, as in the method, of what has been
        seen so far, with 1 for a class of which there was none yet, as the official code has it.
      p: Exponent of the mitigation, >= 0; 0 is none.
      q: Exponent of the compensation, >= 0; 0 is none.
      eps: Smallest σ_y of the compensation, in (0, 1].

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, on counts that are not finite and positive, or on a
        label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = seesaw(jnp.zeros((2, 2)), jnp.array([0, 1]), counts=jnp.array([4, 1]), p=1.0)
      >>> [f"{p:.2f}" for p in jnp.exp(-loss)]  # the rare class weighs a quarter in the loss of the frequent one
      ['0.80', '0.50']

    Source: Wang et al., Seesaw Loss for Long-Tailed Instance Segmentation, 2021; ε of their code.
    """
    logits, labels = inputs.scores_and_labels(logits, labels)
    log_counts = jnp.log(inputs.counts_for(logits, counts))
    validation.at_least("p", p, 0)
    validation.at_least("q", q, 0)
    if not 0 < eps <= 1:
        raise ValueError(f"eps must be a number in (0, 1], got {eps!r}")
    # Where a label is no class, any will do here: the loss is NaN, and its gradient must not be.
    own = jnp.maximum(labels, 0)
    log_scores = jax.nn.log_softmax(jax.lax.stop_gradient(logits))
    log_own_score = jnp.maximum(inputs.of_class(log_scores, own), math.log(eps))
    mitigation = p * jnp.minimum(0.0, log_counts[None, :] - log_counts[own][:, None])
    compensation = q * jnp.maximum(0.0, log_scores - log_own_score[:, None])
    return -inputs.log_likelihood(logits + mitigation + compensation, labels)
