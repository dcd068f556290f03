"""Per-example losses: pure functions ``(logits, labels) -> [batch]``, unweighted and unreduced.

Class weights are a balancer's business, so any loss here combines with any balancer. Not among the names of `create`
is what takes something that changes from step to step: losses of embeddings, which they compare with parameters, and
`equilibrium` with its mean scores.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.losses import inputs
from dsb_jax.losses.adjusted import balanced_softmax, logit_adjusted, seesaw
from dsb_jax.losses.binary import distribution_balanced, sigmoid_focal
from dsb_jax.losses.classification import arcface, cross_entropy, focal, ldam
from dsb_jax.losses.contrastive import circle, paco
from dsb_jax.losses.label_distribution import lade, lade_regularizer
from dsb_jax.losses.margin import domain_balancing, domain_frequency
from dsb_jax.losses.mean_scores import equilibrium, mean_score_update
from dsb_jax.losses.metric import (
    center_cosine_loss,
    center_loss,
    soft_triple,
    soft_triple_regularizer,
)
from dsb_jax.losses.proxies import norm_softmax, proxy_anchor

__all__ = [
    "arcface",
    "balanced_softmax",
    "center_cosine_loss",
    "center_loss",
    "circle",
    "create",
    "cross_entropy",
    "distribution_balanced",
    "domain_balancing",
    "domain_frequency",
    "equilibrium",
    "focal",
    "head",
    "lade",
    "lade_regularizer",
    "ldam",
    "logit_adjusted",
    "mean_score_update",
    "names",
    "norm_softmax",
    "paco",
    "proxy_anchor",
    "seesaw",
    "sigmoid_focal",
    "soft_triple",
    "soft_triple_regularizer",
]

_LOSSES: dict[str, Callable[..., jax.Array]] = {
    "arcface": arcface,
    "balanced_softmax": balanced_softmax,
    "cross_entropy": cross_entropy,
    "distribution_balanced": distribution_balanced,
    "focal": focal,
    "lade": lade,
    "ldam": ldam,
    "logit_adjusted": logit_adjusted,
    "seesaw": seesaw,
    "sigmoid_focal": sigmoid_focal,
}
_ON_COSINES = frozenset({"arcface", "ldam"})


def names() -> list[str]:
    """The names that `create` knows, sorted.

    Example:
      >>> names()[:4]
      ['arcface', 'balanced_softmax', 'cross_entropy', 'distribution_balanced']
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


def create(
    name: str, counts: Any = None, **hyper: Any
) -> Callable[[jax.typing.ArrayLike, jax.typing.ArrayLike], jax.Array]:
    """The loss ``name`` with its hyper-parameters filled in.

    Args:
      name: One of `names()`.
      counts: Training samples per class ``[classes]``; needed by some losses, ignored by the others. A ``prior`` that
        is not given is their shares.
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
    for key in hyper:
        if key not in valid - {"counts"}:
            raise validation.unknown_name(f"hyper-parameter of {name}", key, valid - {"counts"})
    for key in ({"counts", "prior"} & valid) - hyper.keys():
        if counts is None:
            raise ValueError(f"loss {name!r} needs counts, the training samples per class; got none")
        hyper[key] = counts if key == "counts" else inputs.prior_of(counts)
    bound = functools.partial(loss, **hyper)
    # Traced once on shapes alone, so that a bad value fails here and not in the first step.
    classes = np.size(hyper.get("counts", hyper.get("prior", 1)))
    jax.eval_shape(bound, jax.ShapeDtypeStruct((1, classes), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
    return bound


def _lookup(name: str) -> Callable[..., jax.Array]:
    if name not in _LOSSES:
        raise validation.unknown_name("loss", name, _LOSSES)
    return _LOSSES[name]
