"""Parametric contrastive learning: classes and examples compete in one softmax."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import validation
from dsb_jax.objectives import key_queue
from dsb_jax.objectives.key_queue import KeyQueue
from dsb_jax.objectives.metric import require_one_class
from dsb_jax.objectives.terms import Result, Term, Unmoved, result_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PacoState:
    """What `Paco` remembers.

    Attributes:
      encoder: the parameters of the key encoder.
      queue: its keys of the last batches.
    """

    encoder: Any
    queue: KeyQueue


@dataclasses.dataclass(frozen=True)
class Paco:
    """PaCo: a query is told from the classes, the other queries, the keys of the batch and those of earlier batches.

    The query is an image's first view; its key is the embedding of the second by an encoder whose parameters follow
    the model's, ``θ_k ← m·θ_k + (1 − m)·θ`` after every update. Keys have no gradient. The keys of a batch enter the
    queue after its loss is taken; until the queue is full, its empty places take no part, where the official code has
    random keys of random classes there. So the loss rises at first, as there is more to tell a query from.

    The key encoder normalises by the statistics of its batch, and keeps no running ones. As normalisation is over the
    whole batch on however many devices, no statistics of a single device's few examples tell a key which query is its
    own, and nothing need be shuffled between the devices as MoCo does it.

    A query's loss is one term and has the weight of its class: all that the query is told from, it is told from with
    that weight. The queries' features enter the pool, the keys' do not.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, what evaluation reports, of the plain logits.
      contrast: `dsb_jax.losses.paco` with its prior and hyper-parameters filled in.
      batch_size: of the batches.
      queue_size: keys in the queue, a multiple of ``batch_size``.
      momentum: m, in [0, 1].

    Raises:
      ValueError: on a queue that whole batches do not fill, or a momentum out of range.

    Example:
      >>> import functools
      >>> from dsb_jax import losses
      >>> contrast = functools.partial(losses.paco, prior=jnp.array([0.9, 0.1]))
      >>> objective = Paco(losses.create("cross_entropy"), contrast, batch_size=64, queue_size=1024)
      >>> objective.views, objective.samplers
      (2, ('plain',))

    Source: Cui et al., Parametric Contrastive Learning, 2021; He et al., Momentum Contrast for Unsupervised Visual
    Representation Learning, 2020.
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    contrast: Callable[..., jax.Array]
    batch_size: int
    queue_size: int = 8192
    momentum: float = 0.999
    samplers: tuple[str, ...] = ("plain",)
    views: int = 2

    def __post_init__(self) -> None:
        key_queue.check(self.queue_size, self.batch_size)
        validation.in_range("momentum", self.momentum, 0, 1)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> PacoState:
        """The model's parameters, and an empty queue.

        Raises:
          ValueError: if the model has no embeddings.
        """
        del rng
        return PacoState(variables["params"], _queue_for(outputs, self))

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: PacoState, rng: jax.Array) -> Result:
        """A term of the queries' losses.

        Raises:
          ValueError: on mixed images, or a batch of another size.
        """
        del rng
        _check(batch, self)
        labels, mask = batch["label"], batch.get("mask")
        queries = forward(batch["image"])
        keys = forward(batch["view_1"], variables={"params": state.encoder}).projected
        queued, of_queued, filled = key_queue.contents(state.queue)
        losses = self.contrast(
            queries.projected,
            labels,
            logits=queries.logits,
            mask=mask,
            keys=jnp.concatenate([keys, queued]),
            key_labels=jnp.concatenate([labels, of_queued]),
            key_mask=jnp.concatenate([jnp.ones(len(labels), bool) if mask is None else mask, filled]),
        )
        queue = key_queue.enqueue(state.queue, keys, labels, mask=mask)
        return result_of([Term(losses, labels)], queries, batch, PacoState(state.encoder, queue))

    def after_update(self, state: PacoState, params: Any) -> PacoState:
        """The key encoder follows the parameters."""
        encoder = jax.tree.map(lambda k, q: self.momentum * k + (1 - self.momentum) * q, state.encoder, params)
        return dataclasses.replace(state, encoder=encoder)

    def state_shardings(self, mesh: Mesh) -> PacoState:
        """The queue is divided as batches are, the key encoder whole on every device."""
        return PacoState(NamedSharding(mesh, P()), key_queue.shardings(mesh))


@dataclasses.dataclass(frozen=True)
class GPaco(Unmoved):
    """GPaCo: PaCo without a key encoder. Both views of an image are queries of the one model.

    Each is told from the classes, the others of both views and the queue, and the gradient flows through both. What
    the second view leaves in the queue has none. The loss of an image is the mean of its views', with the weight of its
    class; the first view's features enter the pool.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, what evaluation reports, of the plain logits.
      contrast: `dsb_jax.losses.paco` with its prior and hyper-parameters filled in.
      batch_size: of the batches.
      queue_size: embeddings in the queue, a multiple of ``batch_size``.

    Raises:
      ValueError: on a queue that whole batches do not fill.

    Example:
      >>> import functools
      >>> from dsb_jax import losses
      >>> contrast = functools.partial(losses.paco, prior=jnp.array([0.9, 0.1]), label_smoothing=0.1)
      >>> objective = GPaco(losses.create("cross_entropy"), contrast, batch_size=64, queue_size=1024)
      >>> objective.views, objective.samplers
      (2, ('plain',))

    Source: Cui et al., Generalized Parametric Contrastive Learning, 2023, as in its code (GPaCo/LT/moco/builder.py).
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    contrast: Callable[..., jax.Array]
    batch_size: int
    queue_size: int = 8192
    samplers: tuple[str, ...] = ("plain",)
    views: int = 2

    def __post_init__(self) -> None:
        key_queue.check(self.queue_size, self.batch_size)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> KeyQueue:
        """An empty queue.

        Raises:
          ValueError: if the model has no embeddings.
        """
        del rng, variables
        return _queue_for(outputs, self)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: KeyQueue, rng: jax.Array) -> Result:
        """A term of each view's losses.

        Raises:
          ValueError: on mixed images, or a batch of another size.
        """
        del rng
        _check(batch, self)
        labels, mask = batch["label"], batch.get("mask")
        views = [forward(batch[name]) for name in ("image", "view_1")]
        queued, of_queued, filled = key_queue.contents(state)
        losses = self.contrast(
            jnp.concatenate([view.projected for view in views]),
            jnp.concatenate([labels, labels]),
            logits=jnp.concatenate([view.logits for view in views]),
            mask=None if mask is None else jnp.concatenate([mask, mask]),
            keys=queued,
            key_labels=of_queued,
            key_mask=filled,
        )
        terms = [Term(of_view, labels, 0.5) for of_view in jnp.split(losses, 2)]
        return result_of(terms, views[0], batch, key_queue.enqueue(state, views[1].projected, labels, mask=mask))

    def state_shardings(self, mesh: Mesh) -> KeyQueue:
        """The queue is divided as batches are."""
        return key_queue.shardings(mesh)


def _queue_for(outputs, objective):
    if outputs.projected is None:
        name = type(objective).__name__
        raise ValueError(
            f"{name} compares embeddings, and the model gives none: it needs models.create(..., projection=128), in a "
            f"config {name.lower()}.dim=128"
        )
    embedding = outputs.projected
    return key_queue.empty(objective.queue_size, objective.batch_size, embedding.shape[1], embedding.dtype)


def _check(batch, objective):
    name = type(objective).__name__
    require_one_class(name, batch)
    if len(batch["label"]) != objective.batch_size:
        raise ValueError(
            f"{name} was made for batches of {objective.batch_size}, got one of {len(batch['label'])}; "
            "they pass through the model whole: accumulate must be 1"
        )
