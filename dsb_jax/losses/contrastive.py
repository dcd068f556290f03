"""Losses that compare the examples of a batch with each other, and with keys that other batches or views left.

All are functions ``(embeddings [batch, dim], labels [batch], ...) -> [batch]``: the loss of every example as the anchor
of its comparisons. They hold arrays of ``[batch, batch + keys]``. What is narrower than float32 is upcast to it;
float64, of any argument, is kept. A label that is no class raises where its value can be read; under ``jit`` its loss
is NaN, its gradient zero, and nothing is compared with it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.losses import inputs
from dsb_jax.losses.embeddings import checked, comparable, in_one_dtype, normalized, similarity

_ANY_CLASS = np.iinfo(np.int32).max  # labels of a loss without a number of classes are below this
_PRIOR_FLOOR = 1e-9  # that of the official code


def circle(
    embeddings: jax.Array,
    labels: jax.typing.ArrayLike,
    *,
    margin: float = 0.4,
    scale: float = 80.0,
    mask: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Circle loss: pairs of one class become similar, others not, and the farther a pair is from that the faster.

    With the embeddings at length 1 and s their inner products, an anchor's loss is
    ``softplus(log Σ_p exp(-scale α_p (s_p - 1 + margin)) + log Σ_n exp(scale α_n (s_n - margin)))`` over the other
    examples p of its class and those n of other classes, with ``α_p = max(1 + margin - s_p, 0)`` and
    ``α_n = max(s_n + margin, 0)`` constants in the gradient. An anchor that lacks either has the loss 0, so a batch
    should hold several examples of several classes; the method's mean is over anchors with a loss > 0.

    This is the form per anchor, as of pytorch-metric-learning. One sum over all pairs of the batch, which is the other
    form in use, is another value.

    Args:
      embeddings: ``[batch, dim]``, floating, of any length.
      labels: Class indices ``[batch]``, integers >= 0.
      margin: How far from 0 and 1 similarities may stay, in [0, 1].
      scale: Inverse temperature γ, > 0.
      mask: ``[batch]``, false for examples that have the loss 0 and that none is compared with; all count by default.

    Returns:
      The loss of every anchor, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, or a negative label.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
      >>> loss = circle(embeddings, jnp.array([0, 0, 1]), scale=1.0)  # log(1 + e^(-0.4²) e^(-0.4²)), and no positive
      >>> [f"{value:.3f}" for value in loss]
      ['0.546', '0.546', '0.000']

    Source: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020, Eq. 6, in the form
    and with the defaults of pytorch-metric-learning 2.9.
    """
    embeddings = normalized(checked("embeddings", embeddings, "batch, dim"))
    validation.in_range("margin", margin, 0, 1)
    validation.positive("scale", scale)
    batch = embeddings.shape[0]
    kept = validation.boolean("mask", mask, (batch,))
    labels = validation.labels(labels, _ANY_CLASS, samples=batch, mask=None if mask is None else kept)
    embeddings = jnp.where(kept[:, None], embeddings, 0.0)
    counted = jnp.where(kept, labels, -1)
    of_pair = similarity(embeddings, embeddings)
    positive, other = _pairs(counted, counted)
    negative = other & ~positive
    complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)

    def log_sum(pull: jax.Array, pairs: jax.Array) -> jax.Array:
        # An incomplete anchor sums over everything: masked below, but finite, for the logarithm of 0 has no gradient.
        return jax.nn.logsumexp(jnp.where(pairs | ~complete[:, None], scale * pull, -jnp.inf), axis=1)

    to_positive = jax.lax.stop_gradient(jax.nn.relu(1.0 + margin - of_pair))
    to_negative = jax.lax.stop_gradient(jax.nn.relu(of_pair + margin))
    positives = log_sum(-to_positive * (of_pair - (1.0 - margin)), positive)
    negatives = log_sum(to_negative * (of_pair - margin), negative)
    loss = jnp.where(complete, jax.nn.softplus(positives + negatives), 0.0)
    return jnp.where(kept, jnp.where(labels >= 0, loss, jnp.nan), 0.0)


def paco(
    queries: jax.Array,
    labels: jax.typing.ArrayLike,
    *,
    keys: jax.Array,
    key_labels: jax.Array,
    logits: jax.typing.ArrayLike,
    prior: Any,
    mask: jax.typing.ArrayLike | None = None,
    key_mask: jax.Array | None = None,
    alpha: float = 0.05,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 0.2,
    logit_temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """PaCo: a supervised contrastive loss in which the classes, by their logits, take part beside the examples.

    A query is scored against every class, ``s_c = (z_c + log(prior_c + 1e-9)) / logit_temperature``, and, as
    ``s_i = q·x_i / temperature``, against all other queries and all keys x_i. With P those of them of its own class,
    the loss is the mean of ``log(Σ_c exp s_c + γ Σ_i exp s_i) - s`` over its class y, weighing β, and P, each weighing
    α. The keys are constants in the gradient, the other queries are not. With ``label_smoothing`` ε, the share ε of β
    goes to the other classes in equal parts.

    Args:
      queries: ``[batch, dim]``, floating, of length 1 in the method.
      labels: Class indices ``[batch]``, integers.
      keys: ``[keys, dim]``, floating, of length 1 in the method: the batch's other view, then the queue.
      key_labels: Class indices ``[keys]``, integers.
      logits: Class scores z of the queries ``[batch, classes]``, floating.
      prior: Share of every class in the training set ``[classes]``, > 0, of sum 1; not checked under ``jit``.
      mask: ``[batch]``, false for queries that have the loss 0 and that none is compared with; all count by default.
      key_mask: ``[keys]``, false for keys to leave out, as in a queue that is not yet full; all are used by default.
      alpha: Weight of an example of the own class, >= 0.
      beta: Weight of the own class, > 0.
      gamma: Weight of the examples against the classes in the normalizer, >= 0.
      temperature: Temperature of the similarities, > 0.
      logit_temperature: Temperature of the logits, > 0.
      label_smoothing: ε, in [0, 1].

    Returns:
      The loss of every query in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype, prior or hyper-parameter, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> query, keys = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> shares = {"logits": jnp.zeros((1, 2)), "prior": jnp.array([0.5, 0.5])}
      >>> loss = paco(query, jnp.array([0]), keys=keys, key_labels=jnp.array([0, 1]), **shares, temperature=1.0)
      >>> [f"{value:.3f}" for value in loss]  # log(2/2 + e + 1) less the mean of log 1/2 and, weighing 0.05, of 1
      ['2.164']

    Source: Cui et al., Parametric Contrastive Learning, 2021, as in its code (PaCo/LT/losses.py), but without the 1e-12
    that this adds to the normalizer; label smoothing of Cui et al., Generalized Parametric Contrastive Learning, 2023.
    """
    queries, keys = comparable(
        queries=checked("queries", queries, "batch, dim"), keys=checked("keys", keys, "keys, dim")
    )
    logits = checked("logits", logits, "batch, classes")
    queries, keys, logits = in_one_dtype(queries, keys, logits)
    if logits.shape[0] != queries.shape[0]:
        raise ValueError(f"logits must have one row per query, {queries.shape[0]}, got {logits.shape}")
    validation.at_least("alpha", alpha, 0)
    validation.positive("beta", beta)
    validation.at_least("gamma", gamma, 0)
    validation.positive("temperature", temperature)
    validation.positive("logit_temperature", logit_temperature)
    validation.in_range("label_smoothing", label_smoothing, 0, 1)
    prior = inputs.prior_for(logits, prior)
    classes = logits.shape[1]
    kept = validation.boolean("mask", mask, queries.shape[:1])
    labels = validation.labels(labels, classes, samples=queries.shape[0], mask=None if mask is None else kept)
    used = validation.boolean("key_mask", key_mask, keys.shape[:1])
    # Under jit a default of all would be traced, and labels that can be read not be checked.
    key_labels = validation.labels(
        key_labels, classes, samples=keys.shape[0], name="key_labels", mask=None if key_mask is None else used
    )
    keys = jnp.where(used[:, None], keys, 0.0)  # in an unused place of a queue may lie anything
    queries, logits = jnp.where(kept[:, None], queries, 0.0), jnp.where(kept[:, None], logits, 0.0)
    counted = jnp.where(kept, labels, -1)

    of_class = (logits + jnp.log(prior + _PRIOR_FLOOR)[None, :]) / logit_temperature
    # Not of both at once: in that way a gradient of the keys would be computed, only to be dropped.
    others = (queries, jax.lax.stop_gradient(keys))
    of_other = jnp.concatenate([similarity(queries, other) for other in others], axis=1) / temperature
    positive, other = _pairs(counted, jnp.concatenate([counted, jnp.where(used, key_labels, -1)]))
    log_gamma = math.log(gamma) if gamma else -math.inf
    normalizer = jax.nn.logsumexp(
        jnp.concatenate([of_class, jnp.where(other, of_other + log_gamma, -jnp.inf)], axis=1), axis=1
    )
    own_class = jnp.take_along_axis(of_class, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    if label_smoothing and classes > 1:
        of_others = (jnp.sum(of_class, axis=1) - own_class) / (classes - 1)
        own_class = (1 - label_smoothing) * own_class + label_smoothing * of_others
    own = beta * own_class + alpha * jnp.sum(jnp.where(positive, of_other, 0.0), axis=1)
    loss = normalizer - own / (beta + alpha * jnp.sum(positive, axis=1, dtype=own.dtype))
    return jnp.where(kept, jnp.where(labels >= 0, loss, jnp.nan), 0.0)


def _pairs(labels: jax.Array, other_labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which pairs ``[batch, others]`` are of one class, and which are pairs at all: not of an anchor with itself.

    The first of the others are the anchors themselves; with a label of -1 there are no pairs.
    """
    batch, others = labels.shape[0], other_labels.shape[0]
    itself = jnp.arange(batch)[:, None] == jnp.arange(others)[None, :]
    pair = ~itself & (labels >= 0)[:, None] & (other_labels >= 0)[None, :]
    return pair & (labels[:, None] == other_labels[None, :]), pair
