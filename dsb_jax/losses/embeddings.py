"""What the losses of embeddings share: the checks of their arrays, one dtype for all of them, and length 1."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax.losses import inputs

_MIN_NORM = 1e-12  # a shorter vector is divided by this instead of by its own length


def checked(name: str, array: Any, axes: str, *, filled: bool = False) -> jax.Array:
    """``array`` in float32 or float64.

    Raises:
      ValueError: unless it is floating and has the ``axes``, which are named as in ``"batch, dim"``; where it must be
        ``filled``, also if it has no entries.
    """
    array = jnp.asarray(array)
    if array.ndim != axes.count(",") + 1 or (filled and 0 in array.shape):
        wanted = f"[{axes}]{', none of them 0' if filled else ''}"
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
    return inputs.at_least_float32(name, array)


def comparable(**arrays: jax.Array) -> list[jax.Array]:
    """The arrays in the widest dtype among them; raises ValueError unless their vectors have the same length."""
    if len({array.shape[-1] for array in arrays.values()}) > 1:
        shapes = " and ".join(str(array.shape) for array in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} must have the same last dimension, got {shapes}")
    return in_one_dtype(*arrays.values())


def in_one_dtype(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in the widest dtype among them."""
    dtype = functools.reduce(jnp.promote_types, (array.dtype for array in arrays))
    return [array.astype(dtype) for array in arrays]


def normalized(vectors: jax.Array) -> jax.Array:
    """The vectors along the last axis at length 1; next to nothing stays next to nothing."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, _MIN_NORM**2))


def similarity(left: jax.Array, right: jax.Array) -> jax.Array:
    """Inner products ``[left, right]``, in full float32 also where matrix products default to less: scales follow."""
    return jnp.einsum("ld,rd->lr", left, right, precision=jax.lax.Precision.HIGHEST)
