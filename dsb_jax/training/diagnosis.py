"""Where a step first met a number that is not finite: found on the device, put into words on the host.

What a step computes follows one upon the other, so the first place that is not finite is where the trouble began: the
parameters it started from, the images, their features, the batch statistics, the losses of the examples, the class
weights, the weighted loss, the gradient, the updated parameters. A step reports that place and which class, or which
array, in two integers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# In the order in which they are blamed; also the keys of what `first` takes.
PLACES = (
    "parameter",
    "image",
    "features",
    "statistic",
    "losses",
    "weight",
    "loss",
    "gradient",
    "gradient_norm",
    "update",
)

# Leaving out a step does not mend this one.
INCURABLE = PLACES.index("parameter")

# What `first` adds to the metrics of a step.
NAMES = ("nonfinite_place", "nonfinite_index")


class Finding(NamedTuple):
    """Whether something is not finite, bool, and which class or array comes first, int32; -1 where none does."""

    found: jax.Array
    index: jax.Array  # type: ignore[assignment]  # a tuple's method of this name is of no use here


def examples(values: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Finding:
    """The lowest class with an example that is not finite.

    The lowest, because it takes one small reduction however many devices share the batch.

    Args:
      values: ``[batch, …]``.
      labels: int ``[batch]``.
      mask: bool ``[batch]``, which examples count; all by default.

    Example:
      >>> found, index = examples(jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([4, 7, 5]))
      >>> print(found, index)
      True 5
    """
    bad = ~jnp.all(jnp.isfinite(values), axis=tuple(range(1, values.ndim)))
    bad = bad if mask is None else bad & mask
    none = jnp.iinfo(jnp.int32).max
    lowest = jnp.min(jnp.where(bad, labels.astype(jnp.int32), none))
    return Finding(lowest < none, jnp.where(lowest < none, lowest, -1))


def arrays(tree: Any) -> Finding:
    """The number, in the order of ``jax.tree.leaves``, of the first array whose norm is not finite.

    The norm, because that of a gradient is computed anyway; beyond 1e19 it overflows.

    Example:
      >>> found, index = arrays({"bias": jnp.zeros(2), "kernel": jnp.array([1.0, jnp.inf])})
      >>> print(found, index)
      True 1
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return nothing()
    norms = jnp.stack([optax.tree.norm(leaf) for leaf in leaves])
    return _first_of(~jnp.isfinite(norms), jnp.arange(len(leaves), dtype=jnp.int32))


def scalar(value: jax.Array) -> Finding:
    """Whether a number that belongs to no class or array is not finite."""
    return Finding(~jnp.isfinite(value), jnp.full((), -1, jnp.int32))


def nothing() -> Finding:
    """All is finite."""
    return Finding(jnp.zeros((), bool), jnp.full((), -1, jnp.int32))


def lowest(*findings: Finding) -> Finding:
    """The lowest class of several findings; one of them may be several itself, stacked."""
    found, index = (jnp.concatenate([jnp.ravel(part) for part in parts]) for parts in zip(*findings, strict=True))
    none = jnp.iinfo(jnp.int32).max
    return Finding(jnp.any(found), jnp.where(jnp.any(found), jnp.min(jnp.where(found, index, none)), -1))


def first(findings: Mapping[str, Finding]) -> dict[str, jax.Array]:
    """Two int32 metrics: the first of `PLACES` where something was found, and its class or array; -1 for neither.

    Example:
      >>> broken = examples(jnp.array([jnp.inf]), jnp.array([3]))
      >>> found = first({"gradient": scalar(jnp.nan), "losses": broken})
      >>> print(PLACES[found["nonfinite_place"]], found["nonfinite_index"])
      losses 3
    """
    known = [findings.get(place, nothing()) for place in PLACES]
    found, index = (jnp.stack(part) for part in zip(*known, strict=True))
    place = _first_of(found, jnp.arange(len(PLACES), dtype=jnp.int32))
    return dict(zip(NAMES, (place.index, _first_of(found, index).index), strict=True))


def describe(metrics: Mapping[str, Any], class_names: Sequence[str], params: Any, batch_stats: Any = ()) -> str | None:
    """One line on what was not finite in a step, or None.

    Args:
      metrics: those of the step, fetched.
      class_names: in the order of the labels.
      params: the model's parameters, for their names alone.
      batch_stats: its batch statistics, for the same.

    Example:
      >>> metrics = {"nonfinite_place": 7, "nonfinite_index": 1, "loss": 2.31, "gradient_norm": float("inf")}
      >>> describe(metrics, ["cat", "dog"], {"conv1": {"bias": 0.0, "kernel": 0.0}})
      'the gradient of conv1/kernel is not finite (loss 2.31, gradient norm inf)'
    """
    place, index = (int(metrics[name]) for name in NAMES)
    if place < 0:
        return None

    def of_class():
        known = 0 <= index < len(class_names)
        return f"of class {class_names[index]!r}" if known else f"with label {index}"

    def array(tree):
        return _array_names(tree)[index]

    match PLACES[place]:
        case "parameter":
            subject = f"the parameter {array(params)} is"
        case "image":
            subject = f"an image {of_class()} is"
        case "features":
            subject = f"the features of an image {of_class()} are"
        case "statistic":
            subject = f"the batch statistic {array(batch_stats)} is"
        case "losses":
            subject = f"the loss of an image {of_class()} is"
        case "weight":
            subject = f"the weight {of_class()} is"
        case "loss":
            subject = "the loss of the batch is"
        case "gradient":
            subject = f"the gradient of {array(params)} is"
        case "gradient_norm":
            subject = "the norm of the gradient is"
        case "update":
            subject = f"the update of {array(params)} is"
    return f"{subject} not finite (loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g})"


def _first_of(found, index):
    return Finding(jnp.any(found), jnp.where(jnp.any(found), index[jnp.argmax(found)].astype(jnp.int32), -1))


def _array_names(tree):
    paths, _ = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
