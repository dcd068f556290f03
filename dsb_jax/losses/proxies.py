"""Losses of metric learning with one proxy per class: a vector that is trained, and compared with the embeddings.

All are functions ``(embeddings [batch, dim], labels [batch], *, proxies [classes, dim], ...) -> [batch]``. Proxies are
brought to length 1 here. What is narrower than float32 is upcast to it; float64, of either argument, is kept. A label
outside ``[0, classes)`` raises where its value can be read; under ``jit`` its loss is NaN, and its gradient zero.
"""

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses.classification import cross_entropy
from dsb_jax.losses.embeddings import checked, comparable, normalized, similarity


def norm_softmax(
    embeddings: jax.Array, labels: jax.typing.ArrayLike, *, proxies: jax.Array, temperature: float = 0.05
) -> jax.Array:
    """Normalised softmax: cross-entropy of the similarities to one proxy per class.

    With the proxies w_c at length 1, ``-log softmax(x·w_c / temperature)_y``.

    Args:
      embeddings: ``[batch, dim]``, floating, of length 1 in the method.
      labels: Class indices ``[batch]``, integers.
      proxies: ``[classes, dim]``, floating, of any length.
      temperature: Temperature σ, > 0.

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or ``temperature``, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> proxies = jnp.array([[2.0, 0.0], [0.0, 3.0]])
      >>> loss = norm_softmax(jnp.array([[1.0, 0.0]]), jnp.array([0]), proxies=proxies, temperature=1.0)
      >>> [f"{value:.3f}" for value in loss]  # log(1 + 1/e)
      ['0.313']

    Source: Zhai & Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019.
    """
    embeddings, proxies = comparable(
        embeddings=checked("embeddings", embeddings, "batch, dim"),
        proxies=checked("proxies", proxies, "classes, dim", filled=True),
    )
    validation.positive("temperature", temperature)
    labels = validation.labels(labels, proxies.shape[0], samples=embeddings.shape[0])
    return cross_entropy(similarity(embeddings, normalized(proxies)) / temperature, labels)


def proxy_anchor(
    embeddings: jax.Array,
    labels: jax.typing.ArrayLike,
    *,
    proxies: jax.Array,
    margin: float = 0.1,
    scale: float = 32.0,
    mask: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Proxy Anchor: every proxy pulls the batch's examples of its class, the farthest before all, and pushes others.

    With embeddings and proxies at length 1 and s_xp their inner products, the loss of a batch is the mean, over the
    classes that it has, of ``log(1 + Σ_x exp(-scale (s_xp - margin)))`` over the examples x of class p, and the mean,
    over all classes, of ``log(1 + Σ_x exp(scale (s_xp + margin)))`` over those of other classes.

    That is no sum over examples, and needs the whole batch. Divided among its B examples so that the mean of their
    losses is the published one, which is ours, an example has the first logarithm of its class, times B over the
    number of classes that the batch has and over the examples of this one, and the whole second mean, as all others.
    A class weight so multiplies what pulls to the class's proxy; what pushes is multiplied by the batch's mean weight.

    Args:
      embeddings: ``[batch, dim]``, floating, of any length.
      labels: Class indices ``[batch]``, integers.
      proxies: ``[classes, dim]``, floating, of any length.
      margin: δ, by how much similarities of a class should be above 0 and others below, in [0, 1].
      scale: Inverse temperature α, > 0.
      mask: ``[batch]``, false for examples that take no part and have the loss 0; all count by default. The mean over
        those that do is the loss of a batch of them alone.

    Returns:
      The loss of every example in nats, ``[batch]``. One whose label is no class under ``jit`` takes no part either.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> proxies = jnp.array([[2.0, 0.0], [0.0, 3.0]])
      >>> loss = proxy_anchor(jnp.array([[1.0, 0.0]]), jnp.array([0]), proxies=proxies, margin=0.0, scale=1.0)
      >>> [f"{value:.3f}" for value in loss]  # log(1 + 1/e), and of the two proxies' 0 and log 2 the mean
      ['0.660']

    Source: Kim et al., Proxy Anchor Loss for Deep Metric Learning, 2020, Eq. 4.
    """
    embeddings, proxies = comparable(
        embeddings=checked("embeddings", embeddings, "batch, dim"),
        proxies=checked("proxies", proxies, "classes, dim", filled=True),
    )
    validation.in_range("margin", margin, 0, 1)
    validation.positive("scale", scale)
    (batch, _), classes, dtype = embeddings.shape, proxies.shape[0], embeddings.dtype
    kept = validation.boolean("mask", mask, (batch,))
    labels = validation.labels(labels, classes, samples=batch, mask=None if mask is None else kept)
    counted = kept & (labels >= 0)
    # Before they are brought to length 1: what is masked may be anything, and 0 times the slope of NaN is NaN.
    embeddings = normalized(jnp.where(counted[:, None], embeddings, 0.0))
    to_proxies = similarity(embeddings, normalized(proxies))
    own = jax.nn.one_hot(jnp.where(counted, labels, -1), classes, dtype=bool)
    pull = _log_one_plus_sum(-scale * (to_proxies - margin), own)
    push = jnp.mean(_log_one_plus_sum(scale * (to_proxies + margin), counted[:, None] & ~own))
    of_class = jnp.sum(own, axis=0, dtype=dtype)
    present = jnp.maximum(jnp.sum(of_class > 0, dtype=dtype), 1)
    share = jnp.sum(of_class) / (present * jnp.maximum(of_class, 1))  # B / (classes in the batch · examples of this)
    loss = jnp.where(counted, (share * pull)[jnp.maximum(labels, 0)] + push, jnp.nan)
    return jnp.where(kept, loss, 0.0)


def _log_one_plus_sum(exponents: jax.Array, where: jax.Array) -> jax.Array:
    """``log(1 + Σ_i exp(x_ic))`` of each column, over some rows of it."""
    some = jnp.any(where, axis=0)
    # A column without rows sums over all: masked below, but finite, for the logarithm of 0 has no gradient.
    log_sum = jax.nn.logsumexp(jnp.where(where | ~some[None, :], exponents, -jnp.inf), axis=0)
    return jnp.where(some, jax.nn.softplus(log_sum), 0.0)
