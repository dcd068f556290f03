"""A memory of the embeddings of the last batches, for losses that compare examples with more than one batch has."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import validation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyQueue:
    """The keys of the last ``slots`` batches, in no gradient: the oldest batch leaves as a new one enters.

    A batch has a slot of its own, so that the devices that share batches share the queue in the same way, and each
    writes what it has computed: no key moves when a batch enters. To compare with the keys, they are gathered.

    Attributes:
      keys: floating ``[slots, batch, dim]``.
      labels: int32 ``[slots, batch]``, the classes of the keys; -1 where there is none.
      slot: int32, where the next batch goes.
    """

    keys: jax.Array
    labels: jax.Array
    slot: jax.Array


def empty(size: int, batch_size: int, dim: int, dtype: Any = jnp.float32) -> KeyQueue:
    """A queue for ``size`` keys, a multiple of ``batch_size``, that holds none yet."""
    slots = size // batch_size
    return KeyQueue(
        jnp.zeros((slots, batch_size, dim), dtype), jnp.full((slots, batch_size), -1, jnp.int32), jnp.int32(0)
    )


def enqueue(queue: KeyQueue, keys: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None) -> KeyQueue:
    """The queue with a batch in the place of the oldest one.

    Args:
      queue: the queue.
      keys: ``[batch, dim]``.
      labels: int32 ``[batch]``.
      mask: bool ``[batch]``; a key where it is False takes a place but is none.

    Example:
      >>> queue = empty(size=2, batch_size=1, dim=1)
      >>> for number in range(3):
      ...     queue = enqueue(queue, jnp.array([[10.0 + number]]), jnp.array([number]))
      >>> keys, labels, mask = contents(queue)
      >>> print(keys[:, 0], labels, mask)
      [12. 11.] [2 1] [ True  True]
    """
    labels = labels if mask is None else jnp.where(mask, labels, -1)
    keys = lax.stop_gradient(keys).astype(queue.keys.dtype)
    return KeyQueue(
        lax.dynamic_update_index_in_dim(queue.keys, keys, queue.slot, axis=0),
        lax.dynamic_update_index_in_dim(queue.labels, labels.astype(jnp.int32), queue.slot, axis=0),
        (queue.slot + 1) % len(queue.keys),
    )


def contents(queue: KeyQueue) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All places: keys ``[size, dim]``, labels int32 ``[size]`` and bool ``[size]``, whether there is a key."""
    labels = queue.labels.reshape(-1)
    return queue.keys.reshape(-1, queue.keys.shape[-1]), labels, labels >= 0


def shardings(mesh: Mesh, axis: str = "data") -> KeyQueue:
    """Of each array: the batches divided over the mesh axis ``axis``, as the ones that enter are."""
    of_batches: Any = NamedSharding(mesh, P(None, axis))
    position: Any = NamedSharding(mesh, P())
    return KeyQueue(of_batches, of_batches, position)


def check(size: int, batch_size: int) -> None:
    """Raises ValueError unless a queue of ``size`` keys has room for whole batches."""
    validation.positive_int("batch_size", batch_size)
    if validation.positive_int("queue_size", size) % batch_size:
        raise ValueError(f"queue_size must be a multiple of the batch size, {batch_size}, got {size}")
