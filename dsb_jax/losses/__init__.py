"""Per-example losses: pure functions ``(logits, labels) -> [batch]``, unweighted and unreduced.

Class weights are a balancer's business, so any loss here combines with any balancer. Losses of embeddings are not
among the names of `create`: what they compare embeddings with are parameters, which change from step to step.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.losses.classification import balanced_softmax, cross_entropy, focal, ldam
from dsb_jax.losses.contrastive import circle, paco
from dsb_jax.losses.margin import domain_balancing, domain_frequency
from dsb_jax.losses.metric import (
    center_cosine_loss,
    center_loss,
    norm_softmax,
    soft_triple,
    soft_triple_regularizer,
)

__all__ = [
    "balanced_softmax",
    "center_cosine_loss",
    "center_loss",
    "circle",
    "create",
    "cross_entropy",
    "domain_balancing",
    "domain_frequency",
    "focal",
    "head",
    "ldam",
    "names",
    "norm_softmax",
    "paco",
    "soft_triple",
    "soft_triple_regularizer",
]

_LOSSES = {
    "balanced_softmax": balanced_softmax,
    "cross_entropy": cross_entropy,
    "focal": focal,
    "ldam": ldam,
}
_ON_COSINES = frozenset({"ldam"})


def names() -> list[str]:
    """The names that `create` knows, sorted.

    Example:
      >>> names()
      ['balanced_softmax', 'cross_entropy', 'focal', 'ldam']
    """
    return sorted(_LOSSES)


def head(name: str) -> str:
    """What the loss ``name`` wants for logits: ``"linear"`` scores or ``"cosine"`` similarities.

    Raises:
      ValueError: if there is no such loss.

    Example:
      >>> head("focal"), head("ldam")
      ('linear', 'cosine')
    """
    _lookup(name)
    return "cosine" if name in _ON_COSINES else "linear"


def create(name: str, counts: Any = None, **hyper: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss ``name`` with its hyper-parameters filled in.

    Args:
      name: One of `names()`.
      counts: Training samples per class ``[classes]``; needed by some losses, ignored by the others.
      **hyper: The loss's own keyword arguments.

    Returns:
      A function ``(logits [batch, classes], labels [batch]) -> [batch]``.

    Raises:
      ValueError: on an unknown name or hyper-parameter (naming the nearest), a value that the loss refuses,
        or missing ``counts``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = create("focal", gamma=1.0)
      >>> [f"{value:.3f}" for value in loss(jnp.zeros((1, 2)), jnp.array([0]))]
      ['0.347']
    """
    loss = _lookup(name)
    parameters = inspect.signature(loss).parameters.values()
    valid = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    needs_counts = "counts" in valid
    for key in hyper:
        if key not in valid - {"counts"}:
            raise validation.unknown_name(f"hyper-parameter of {name}", key, valid - {"counts"})
    if needs_counts:
        if counts is None:
            raise ValueError(f"loss {name!r} needs counts, the training samples per class; got none")
        hyper["counts"] = counts
    bound = functools.partial(loss, **hyper)
    # Traced once on shapes alone, so that a bad value fails here and not in the first step.
    classes = np.size(counts) if needs_counts else 1
    jax.eval_shape(bound, jax.ShapeDtypeStruct((1, classes), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
    return bound


def _lookup(name: str) -> Callable[..., jax.Array]:
    if name not in _LOSSES:
        raise validation.unknown_name("loss", name, _LOSSES)
    return _LOSSES[name]
