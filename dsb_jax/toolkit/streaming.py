"""Moments of classes in one pass over rows that need not fit into memory.

Each block is sorted by class, and the moments of its part of a class are added to those of the parts before. Adding
takes d² operations and a row as many, so blocks grow with the number of classes: to d rows of each on average, which
take no more memory than the moments themselves.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from dsb_jax import validation
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.inputs.files import Rows
from dsb_jax.toolkit.moments import Moments

_FEWEST_ROWS = 2**16


def class_moments(
    rows: Rows, *, memory: float | None = None, progress: Callable[..., Iterable[Any]] | None = None
) -> list[Moments]:
    """Count, mean and scatter of every class, whatever order the rows are in.

    Args:
      rows: n rows of C classes and d channels.
      memory: bytes that may be taken; by default half of what the machine has.
      progress: ``(iterable, total) -> iterable``, through which the blocks pass, such as ``tqdm.tqdm``.

    Returns:
      C of them.

    Raises:
      ValueError: C matrices of d² numbers do not fit into ``memory``; or rows are not finite, or cannot be read.

    Example:
      >>> from dsb_jax.toolkit.inputs import files
      >>> np.save("all.npy", np.eye(4)), np.save("all_labels.npy", np.array([1, 1, 1, 0]))
      (None, None)
      >>> [(each.count, round(each.volume(), 4)) for each in class_moments(files.rows("all.npy"))]
      [(1, 0.0), (3, 1.2224)]

    Source: Chan et al., Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    """
    memory = physical_memory() / 2 if memory is None else validation.positive("memory", memory)
    if (needed := needed_memory(rows.num_classes, rows.dim)) > memory:
        raise ValueError(
            f"{rows.name}: moments of {rows.num_classes:,} classes in {rows.dim} channels need {needed / 2**30:,.2f} "
            f"GiB, but {memory / 2**30:,.2f} GiB may be taken; pool them to fewer channels, such as "
            f"{largest_dim(rows.num_classes, memory)} (--dim)"
        )
    size = block_rows(rows.num_classes, rows.dim)
    total = [Moments.none(rows.dim) for _ in range(rows.num_classes)]
    blocks = rows.blocks(size)
    for points, labels in blocks if progress is None else progress(blocks, -(-rows.samples // size)):
        for label, part in enumerate(moments.of_classes(points, labels, rows.num_classes, Moments.of)):
            total[label] += part
    return total


def block_rows(num_classes: int, dim: int) -> int:
    """Rows of a block."""
    return max(num_classes * dim, _FEWEST_ROWS)


def needed_memory(num_classes: int, dim: int) -> int:
    """Bytes: of moments and of those of a block; of its rows and labels, as they are read and as they are joined."""
    return 16 * num_classes * dim**2 + 16 * block_rows(num_classes, dim) * (dim + 4)


def largest_dim(num_classes: int, memory: float) -> int:
    """Channels for which moments need no more than ``memory``, a power of two, and at least one."""
    fits = (2**power for power in range(16, 0, -1) if needed_memory(num_classes, 2**power) <= memory)
    return next(fits, 1)


def physical_memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
