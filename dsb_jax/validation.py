"""Bad input becomes one sentence that names the argument, what came and what is wanted.

Shapes, dtypes and Python numbers are checked always. Values inside arrays are checked where they can be read, that
is outside of ``jit``; inside it the functions say in their docstrings what they do with a bad value.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ValueError:
    """The error for a name that is not one of ``valid``; the caller raises it.

    Example:
      >>> print(unknown_name("loss", "focl", ["cross_entropy", "focal"]))
      unknown loss 'focl'; did you mean 'focal'? Valid names: cross_entropy, focal
    """
    valid = sorted(valid)
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return ValueError(f"unknown {kind} {name!r}{hint} Valid names: {', '.join(valid)}")


def is_concrete(array: Any) -> bool:
    """Whether the values of ``array`` can be read now, that is, it is not being traced."""
    return not isinstance(array, jax.core.Tracer)


def positive(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is a finite number above zero."""
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def positive_int(name: str, value: int) -> None:
    """Raises ValueError unless ``value`` is an integer of at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def features(array: jax.Array, *, name: str = "features", dim: int | None = None) -> None:
    """Raises ValueError unless ``array`` is a floating, finite matrix ``[samples, dim]``."""
    wanted = f"[samples, {'dim' if dim is None else dim}]"
    if jnp.ndim(array) != 2 or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"{name} must have shape {wanted}, got {jnp.shape(array)}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {array.dtype}")
    if is_concrete(array):
        bad = ~np.all(np.isfinite(np.asarray(array)), axis=1)
        if bad.any():
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {np.argmax(bad)}")


def labels(array: jax.Array, num_classes: int, *, samples: int, mask: jax.Array | None = None) -> None:
    """Raises ValueError unless ``array`` holds one integer in ``[0, num_classes)`` per sample (where ``mask``)."""
    if jnp.shape(array) != (samples,):
        raise ValueError(f"labels must have shape ({samples},), one per sample, got {jnp.shape(array)}")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {array.dtype}")
    if mask is not None and jnp.shape(mask) != (samples,):
        raise ValueError(f"mask must have shape ({samples},), one per sample, got {jnp.shape(mask)}")
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be boolean, got {mask.dtype}")
    if is_concrete(array) and (mask is None or is_concrete(mask)):
        values = np.asarray(array)
        bad = (values < 0) | (values >= num_classes)
        bad = bad if mask is None else bad & np.asarray(mask)
        if bad.any():
            where = np.argmax(bad)
            raise ValueError(f"labels must lie in [0, {num_classes}), got {values[where]} at position {where}")
