"""Inter-class interference, streamed: how far every class's centre is from the others, when few centres move at a time.

A class's weight ``W`` needs the sum of its centre's distances to all others. A step of training moves the centres of
the classes in two batches only, so their sums are taken anew and all other sums are corrected by what these moved:
``O(moved·C·d)`` work and, of many classes, never a ``[C, C]`` array. A class that stays in a feature pool moves at
least once per pass, when its rows are replaced, so corrections add up over one pass at most.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dsb_jax.semantic_scale import weights_from_distances

_BLOCK = 64  # on a CPU: centres whose distances to all others, in its caches, are held at a time
_DISTANCES = 2**23  # elsewhere: distances held at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interference:
    """Centres and the sums of their distances.

    Attributes:
      centers: float32 ``[C, dim]``.
      present: bool ``[C]``, classes that have a centre.
      distances: float32 ``[C]``, each present centre's sum of distances to the present ones.
    """

    centers: jax.Array
    present: jax.Array
    distances: jax.Array


def init(num_classes: int, dim: int) -> Interference:
    """No class present."""
    return Interference(
        centers=jnp.zeros((num_classes, dim), jnp.float32),
        present=jnp.zeros(num_classes, bool),
        distances=jnp.zeros(num_classes, jnp.float32),
    )


def update(state: Interference, centers: jax.Array, present: jax.Array) -> Interference:
    """Moves centres.

    Args:
      state: the centres so far.
      centers: float32 ``[C, dim]``, all centres now.
      present: bool ``[C]``, which classes have one now.

    Returns:
      The state of the centres given.

    Example:
      >>> state = init(num_classes=3, dim=1)
      >>> state = update(state, jnp.array([[0.0], [1.0], [5.0]]), jnp.array([True, True, True]))
      >>> state = update(state, jnp.array([[0.0], [2.0], [5.0]]), jnp.array([True, True, True]))
      >>> print(state.distances)
      [7. 5. 8.]

    Source: Sec. 3.4.1 of the paper; the streaming form is ours.
    """
    num_classes = centers.shape[0]
    # A GPU waits for its host at every turn of a loop that may end there, and so takes as many at a time as it holds.
    large = min(max(_DISTANCES // num_classes, _BLOCK), num_classes)
    return lax.platform_dependent(
        state, centers, present, cpu=partial(_update, block=_BLOCK), default=partial(_update, block=large)
    )


def _update(state, centers, present, *, block):
    num_classes = centers.shape[0]
    moved = jnp.any(centers != state.centers, axis=1) | (present != state.present)
    index = jnp.nonzero(moved, size=num_classes, fill_value=num_classes)[0].astype(jnp.int32)
    index = jnp.pad(index, (0, -num_classes % block), constant_values=num_classes)
    blocks = 1 if block >= num_classes else (jnp.sum(moved, dtype=jnp.int32) + block - 1) // block
    # Distances do not depend on the origin, and near the centres' mean they keep their digits.
    classes_present = jnp.maximum(jnp.sum(present, dtype=jnp.float32), 1.0)
    origin = jnp.sum(jnp.where(present[:, None], centers, 0.0), axis=0) / classes_present
    new, old = centers - origin[None, :], state.centers - origin[None, :]

    def correct(i, carry):
        correction, fresh = carry
        which = lax.dynamic_slice_in_dim(index, i * block, block)
        now = _distances(new, present, which)
        before = _distances(old, state.present, which)
        sums = jnp.sum(jnp.where(present[None, :], now, 0.0), axis=1)
        return correction + jnp.sum(now - before, axis=0), fresh.at[which].set(sums, mode="drop")

    zeros = jnp.zeros(num_classes, jnp.float32)
    correction, fresh = lax.fori_loop(0, blocks, correct, (zeros, zeros))
    distances = jnp.where(moved, fresh, state.distances + correction)
    return Interference(centers=centers, present=present, distances=jnp.where(present, distances, 0.0))


def weights(state: Interference, alpha: float) -> jax.Array:
    """``W = log2(α + w/max w)`` of all classes, as :func:`dsb_jax.interclass_weights` has it from scratch."""
    return weights_from_distances(state.distances, alpha, state.present)


def _distances(centers, present, which):
    """Distances ``[block, C]`` from some centres to all, 0 where the first is absent or both are the same class."""
    some = centers.at[which].get(mode="fill", fill_value=0.0)
    there = present.at[which].get(mode="fill", fill_value=False)
    norm, all_norms = jnp.sum(some * some, axis=1)[:, None], jnp.sum(centers * centers, axis=1)[None, :]
    product = jnp.matmul(some, centers.T, precision=lax.Precision.HIGHEST)
    square = norm + all_norms - 2.0 * product
    # What is left of the squares' last digits is not a distance: coinciding centres are 0 apart.
    noise = 8.0 * jnp.finfo(jnp.float32).eps * (norm + all_norms)
    apart = (
        (square > noise) & there[:, None] & (which[:, None] != jnp.arange(centers.shape[0], dtype=jnp.int32)[None, :])
    )
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
