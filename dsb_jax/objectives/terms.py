"""What an objective returns, and the one rule by which class weights enter."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax.balancers import weighted_mean


class Term(NamedTuple):
    """One addend of the loss.

    Attributes:
      losses: floating ``[batch]``, a row for each row of the result's features.
      labels: int32 ``[batch]``, whose class weight multiplies; None for a term that is not weighted.
      scale: a factor.
    """

    losses: jax.Array
    labels: jax.Array | None
    scale: jax.Array | float = 1.0


class Result(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
      terms: the addends of the loss.
      features: ``[batch, d]``, what enters the feature pool.
      labels: int32 ``[batch]``, their classes.
      mask: bool ``[batch]`` or None, which of them count.
      state: the objective's own state after this batch.
      metrics: scalars to log.
      logits: ``[batch, C]`` or None, and
      classifier: ``[C, d]`` or None, the weights of the last layer: for balancers that ask for them.
    """

    terms: Sequence[Term]
    features: jax.Array
    labels: jax.Array
    mask: jax.Array | None
    state: Any
    metrics: dict[str, jax.Array]
    logits: jax.Array | None = None
    classifier: jax.Array | None = None


class Objective(Protocol):
    """A method that may need more than a loss on one batch.

    A batch has ``image`` floating ``[batch, height, width, channels]`` and ``label`` int32 ``[batch]``; further views
    ``view_1``, ``view_2`` … of the same images; and under the name of each further sampler a batch of its own. Where
    images are mixed, ``other_label`` is the label of what else is in each, and ``share`` floating ``[batch]`` is what
    of its loss is by ``label``: as much as it has of that image, or as Remix decides.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, what evaluation reports.
      views: how many augmented views of each image it asks of the pipeline.
      samplers: the samplers whose batches it asks for, names of :func:`dsb_jax.data.samplers.create`.
      rows_per_example: rows of a result for each example of the batch; 1 if it is not there.
    """

    @property
    def loss(self) -> Callable[[jax.Array, jax.Array], jax.Array]: ...

    @property
    def views(self) -> int: ...

    @property
    def samplers(self) -> tuple[str, ...]: ...

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """Its state, from the model's variables and the outputs on an example batch.

        The variables of a teacher, where the run has one, are ``variables["teacher"]``.
        """

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """The terms of a batch.

        ``forward(images)`` gives the model's outputs with the parameters that are trained, and lets batch statistics
        follow. Further keywords are the model's, ``method="classify"`` among them for features instead of images; with
        ``variables=`` it computes with those, which are not changed, and with ``train=False`` as in evaluation.
        """

    def after_update(self, state: Any, params: Any) -> Any:
        """Its state after the parameters have changed."""

    # One that has a method ``state_shardings(mesh) -> state``, of a ``NamedSharding`` for each array or each tree of
    # them, says by it how its state lies on the devices of a mesh.


class Unmoved:
    """What most objectives have: no state, or one that only their calls change."""

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng, variables, outputs
        return ()

    def after_update(self, state: Any, params: Any) -> Any:
        """Nothing follows the parameters."""
        del params
        return state


def state_shardings(objective: Objective, mesh: Mesh) -> Any:
    """How the state of an objective lies on a mesh: as the objective says, else whole on every device.

    Returns:
      A ``NamedSharding`` for each array of the state, or for a tree of them.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> objective = objectives.Supervised(losses.create("cross_entropy"))
      >>> state_shardings(objective, jax.make_mesh((1,), ("data",))).spec
      P()
    """
    if hasattr(objective, "state_shardings"):
        return objective.state_shardings(mesh)
    return NamedSharding(mesh, P())


def majority_labels(batch: dict[str, Any]) -> jax.Array:
    """The label of every image; of a mixed one, the one that has the larger share of the loss.

    As this class the image enters a pool or memory. Under Remix it is not the class of which there is more of the
    image, but that as which the loss wants it classified: its features go there in training. The two are the same
    with a τ of at most ½, the published one, since then a class takes all of the loss only where it has most of the
    image.

    Example:
      >>> batch = {"label": jnp.array([0, 1]), "other_label": jnp.array([1, 0]), "share": jnp.array([0.3, 0.6])}
      >>> print(majority_labels(batch))
      [1 1]
    """
    if "share" not in batch:
        return batch["label"]
    return jnp.where(batch["share"] >= 0.5, batch["label"], batch["other_label"])


def result_of(terms: Sequence[Term], outputs: Any, batch: dict[str, Any], state: Any) -> Result:
    """The result of a batch that passed through the model once, with the accuracy on it.

    Args:
      terms: the addends of the loss.
      outputs: the model's.
      batch: of whose images they are; mixed ones enter the pool as :func:`majority_labels` says.
      state: the objective's own.
    """
    labels, mask = majority_labels(batch), batch.get("mask")
    correct = jnp.argmax(outputs.logits, axis=1) == labels
    return Result(
        terms=terms,
        features=outputs.features,
        labels=labels,
        mask=mask,
        state=state,
        metrics={"accuracy": jnp.mean(correct, where=mask, dtype=jnp.float32)},
        logits=outputs.logits,
        classifier=outputs.classifier,
    )


def total_loss(terms: Sequence[Term], weights: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """``Σ_terms scale·mean(weights[labels]·losses)``.

    Args:
      terms: the addends.
      weights: floating ``[C]``, one per class.
      mask: bool ``[batch]``, which examples count; all by default.

    Returns:
      A scalar.

    Example:
      >>> labels = jnp.array([0, 1])
      >>> terms = [Term(jnp.array([1.0, 2.0]), labels), Term(jnp.array([4.0, 4.0]), None, scale=0.25)]
      >>> print(total_loss(terms, jnp.array([0.5, 1.5])))
      2.75
    """

    def mean(term):
        if term.labels is not None:
            return weighted_mean(term.losses, term.labels, weights, mask=mask)
        one_class = jnp.zeros(term.losses.shape, jnp.int32)
        return weighted_mean(term.losses, one_class, jnp.ones(1, term.losses.dtype), mask=mask)

    return sum(term.scale * mean(term) for term in terms)
