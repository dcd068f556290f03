"""Bad input becomes one sentence that names the argument, what came and what is wanted.

What is checked comes back in the one form that the functions work on. Shapes, dtypes and numbers are checked always;
values inside arrays where they can be read, that is outside of ``jit``. Inside it the functions say in their docstrings
what they do with a bad value.
"""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A longer list of valid names would bury the one that is meant.
_NAMES_SHOWN, _NEAREST_SHOWN = 16, 5
_NEAR = 0.5  # of likeness, from 0 to 1: a name that is less like the one that came was not meant


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ValueError:
    """The error for a name that is not one of ``valid``, all of them or the nearest few; the caller raises it.

    Case does not matter to what is near. Where nothing is, no name is suggested.

    Example:
      >>> print(unknown_name("loss", "focl", ["cross_entropy", "focal"]))
      unknown loss 'focl'; did you mean 'focal'? Valid names: cross_entropy, focal
      >>> print(unknown_name("loss", "hinge", ["cross_entropy", "focal"]))
      unknown loss 'hinge'. Valid names: cross_entropy, focal
    """
    valid = sorted(valid)
    nearest = sorted(valid, key=lambda other: _likeness(name, other), reverse=True)[:_NEAREST_SHOWN]
    hint = f"; did you mean {nearest[0]!r}?" if nearest and _is_near(name, nearest[0]) else "."
    if len(valid) > _NAMES_SHOWN:
        return ValueError(f"unknown {kind} {name!r}{hint} The nearest of {len(valid)} names: {', '.join(nearest)}")
    return ValueError(f"unknown {kind} {name!r}{hint} Valid names: {', '.join(valid)}")


def _likeness(name: str, other: str) -> float:
    """Of names, and of options by what is behind their dashes."""
    return difflib.SequenceMatcher(None, other.casefold().lstrip("-"), name.casefold().lstrip("-")).ratio()


def _is_near(name: str, other: str) -> bool:
    shorter, longer = sorted((name.casefold().lstrip("-"), other.casefold().lstrip("-")), key=len)
    return _likeness(name, other) > _NEAR or (len(shorter) > 1 and shorter in longer)


def is_concrete(array: Any) -> bool:
    """Whether the values of ``array`` can be read here and now: it is neither traced nor spread over other hosts."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def positive(name: str, value: float) -> float:
    """``value`` as a float; raises ValueError unless it is a finite number above zero."""
    if not _is_number(value, numbers.Real) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


def at_least(name: str, value: float, lowest: float) -> float:
    """``value`` as a float; raises ValueError unless it is a finite number of at least ``lowest``."""
    if not _is_number(value, numbers.Real) or not lowest <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= {lowest:g}, got {value!r}")
    return float(value)


def in_range(name: str, value: float, lowest: float, highest: float) -> float:
    """``value`` as a float; raises ValueError unless it is a number from ``lowest`` to ``highest``."""
    if not _is_number(value, numbers.Real) or not lowest <= value <= highest:
        raise ValueError(f"{name} must be a finite number in [{lowest:g}, {highest:g}], got {value!r}")
    return float(value)


def below_one(name: str, value: float) -> float:
    """``value`` as a float; raises ValueError unless it is at least zero and less than one."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    return float(value)


def integer(name: str, value: int, *, lowest: int) -> int:
    """``value`` as an int; raises ValueError unless it is an integer of at least ``lowest``."""
    if not _is_number(value, numbers.Integral) or value < lowest:
        raise ValueError(f"{name} must be an integer >= {lowest}, got {value!r}")
    return int(value)


def positive_int(name: str, value: int) -> int:
    """``value`` as an int; raises ValueError unless it is an integer of at least one."""
    return integer(name, value, lowest=1)


def features(array: Any, *, name: str = "features", dim: int | None = None, mask: jax.Array | None = None) -> jax.Array:
    """``array`` as a JAX array; raises ValueError unless it is a floating matrix, finite in the rows of ``mask``."""
    array = jnp.asarray(array)
    if array.ndim != 2 or array.shape[1] < 1 or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"{name} must have shape [samples, {'dim' if dim is None else dim}], got {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {array.dtype}")
    if is_concrete(array) and (mask is None or is_concrete(mask)):
        with jax.ensure_compile_time_eval():  # also where a traced function closes over the array
            bad = np.asarray(~jnp.all(jnp.isfinite(array), axis=1))
        bad = bad if mask is None else bad & np.asarray(mask)
        if bad.any():
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {np.argmax(bad)}")
    return array


def boolean(name: str, array: Any, shape: tuple[int, ...]) -> jax.Array:
    """``array`` as a JAX array, all true for None; raises ValueError unless it is boolean of ``shape``."""
    if array is None:
        return jnp.ones(shape, bool)
    array = jnp.asarray(array)
    if array.shape != shape or array.dtype != jnp.bool_:
        raise ValueError(f"{name} must be boolean of shape {shape}, got {array.dtype} {array.shape}")
    return array


def labels(
    array: Any, num_classes: int, *, samples: int, name: str = "labels", mask: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """``array`` as int32; raises ValueError unless it has an integer in ``[0, num_classes)`` per row of ``mask``.

    Under ``jit``, where values cannot be looked at, what does not fit becomes -1.
    """
    array = array if isinstance(array, jax.Array) else np.asarray(array)
    if array.shape != (samples,):
        raise ValueError(f"{name} must have shape ({samples},), one per sample, got {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    if is_concrete(array) and (mask is None or is_concrete(mask)):
        values = np.asarray(array)
        bad = (values < 0) | (values >= num_classes)
        bad = bad if mask is None else bad & np.asarray(mask)
        if bad.any():
            where = np.argmax(bad)
            raise ValueError(f"{name} must lie in [0, {num_classes}), got {values[where]} at position {where}")
    # Compared before it is narrowed to int32 and after it is widened to it: neither way wraps a label round.
    array = array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)
    return jnp.where((array >= 0) & (array < num_classes), array.astype(jnp.int32), -1)


def _is_number(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)
