"""LADE: scores are freed from the training set's label distribution, which is estimated on every batch.

Unlike the other losses these look at a batch as a whole. Input is treated as in :mod:`dsb_jax.losses.inputs`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses import inputs
from dsb_jax.losses.adjusted import logit_adjusted


def lade(
    logits: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, prior: Any, weight: float = 0.1, penalty: float = 0.1
) -> jax.Array:
    """LADE: :func:`logit_adjusted` of every example, and to each ``weight`` times :func:`lade_regularizer`.

    So the mean over a batch, weighted or not, is the method's loss. The regularizer is of the whole batch: batches
    must be large enough to estimate from, and an example's loss depends on the others beside it, also on those that
    only fill a batch up.

    Args:
      logits: Class scores ``[batch, classes]``, floating.
      labels: Class indices ``[batch]``, integers.
      prior: Probability π of every class in training ``[classes]``, positive, with sum 1.
      weight: Of the regularizer, >= 0; ``lade_weight`` of the official code.
      penalty: λ of the regularizer, >= 0; ``remine_lambda`` of the official code.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, on a prior that is not positive or does not sum to 1, or
        on a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, labels, prior = jnp.log(jnp.array([[2.0, 1.0], [1.0, 2.0]])), jnp.array([0, 1]), [0.5, 0.5]
      >>> [f"{value:.4f}" for value in lade(logits, labels, prior=prior)]  # -log 2/3, and -0.1 · 0.2712
      ['0.3783', '0.3783']

    Source: Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, 2021.
    """
    validation.at_least("weight", weight, 0)
    regularizer = lade_regularizer(logits, labels, prior=prior, penalty=penalty)
    return logit_adjusted(logits, labels, prior=prior) + weight * regularizer


def lade_regularizer(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    prior: Any,
    penalty: float = 0.1,
    mask: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """How far a batch's scores are from log-ratios of densities that know nothing of the label distribution.

    ``-Σ_c π_c (a_c - b_c - λ b_c²)``, where a_c is the mean of z_c over the batch's N examples *of* class c, 0 where it
    has none, and ``b_c = log(1/N Σ_i e^{z_ic} / (C π_c))`` that over all of them as if classes were equally frequent:
    the Donsker-Varadhan bound, with λ b² to keep it from drifting. The larger the batch, the less it is biased.

    Args:
      logits: Class scores ``[batch, classes]``, floating. A class that -inf rules out of all examples is left out.
      labels: Class indices ``[batch]``, integers. Examples whose traced label is no class are left out.
      prior: Probability π of every class in training ``[classes]``, positive, with sum 1.
      penalty: λ >= 0; ``remine_lambda`` of the official code.
      mask: bool ``[batch]``, which examples there are; all by default.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: on a wrong shape, dtype or ``penalty``, on a prior that is not positive or does not sum to 1, or on a
        label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, labels = jnp.log(jnp.array([[2.0, 1.0], [1.0, 2.0]])), jnp.array([0, 1])
      >>> print(f"{lade_regularizer(logits, labels, prior=[0.5, 0.5]):.4f}")  # -(log 2 - log 3/2 - 0.1 (log 3/2)²)
      -0.2712

    Source: Hong et al., 2021; the official code adds 1e-9 to probabilities and 1e-8 to counts.
    """
    logits, labels = inputs.scores_and_labels(logits, labels, mask=mask)
    prior = inputs.prior_for(logits, prior)
    validation.at_least("penalty", penalty, 0)
    classes = logits.shape[1]
    is_own = jax.nn.one_hot(labels, classes, dtype=bool)
    examples_of_class = jnp.sum(is_own, axis=0, dtype=logits.dtype)
    examples = jnp.sum(examples_of_class)

    considered = jnp.where((labels >= 0)[:, None], logits, -jnp.inf)
    # The gradient of a log-sum-exp of nothing but -inf is NaN; so it gets zeros, and the class is left out below.
    ruled_out = jnp.all(jnp.isneginf(considered), axis=0)
    considered = jnp.where(ruled_out[None, :], 0.0, considered)

    own_mean = jnp.sum(jnp.where(is_own, logits, 0.0), axis=0) / jnp.maximum(examples_of_class, 1.0)
    log_mean = jax.nn.logsumexp(considered, axis=0) - jnp.log(jnp.maximum(examples, 1.0)) - jnp.log(classes * prior)
    bound = own_mean - log_mean - penalty * jnp.square(log_mean)
    return -jnp.sum(jnp.where(ruled_out, 0.0, prior * bound))
