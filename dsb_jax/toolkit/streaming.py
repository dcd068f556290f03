"""Moments of classes in one pass over rows that need not fit into memory.

The rows of a block are sorted by class, and those of a class are added to its moments: with m₁ rows before and m₂ now,

    S = S₁ + Σ (z − μ₂)(z − μ₂)ᵀ + m₁·m₂/m·(μ₂ − μ₁)(μ₂ − μ₁)ᵀ,

a product of one matrix with itself, of which the last row is √(m₁·m₂/m)·(μ₂ − μ₁).
"""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dsb_jax import validation
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.inputs.files import Rows
from dsb_jax.toolkit.moments import Moments

# A block has at least so many numbers, and so many rows of each class on average that its d² sums are worth a visit.
_NUMBERS, _ROWS_PER_CLASS = 2**22, 32


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
    require_memory(rows.name, rows.samples, rows.num_classes, rows.dim, memory)
    found, size = _Growing(rows.num_classes, rows.dim), block_rows(rows.num_classes, rows.dim)
    blocks = rows.blocks(size)
    for points, labels in blocks if progress is None else progress(blocks, -(-rows.samples // size)):
        found.add(points, labels)
    return found.moments()


class _Growing:
    """Moments of C classes, which rows are added to."""

    def __init__(self, num_classes: int, dim: int) -> None:
        self._counts = np.zeros(num_classes, np.int64)
        self._means = np.zeros((num_classes, dim))
        self._scatters = np.zeros((num_classes, dim, dim))

    def add(self, points: np.ndarray, labels: np.ndarray) -> None:
        """Adds rows ``[size, d]``."""
        order, counts = moments.sorted_by_class(labels, len(self._counts))
        stops = np.cumsum(counts)
        for label in np.flatnonzero(counts).tolist():
            self._add_to(label, points.take(order[stops[label] - counts[label] : stops[label]], axis=0))

    def _add_to(self, label: int, rows: np.ndarray) -> None:
        before, count = self._counts[label], len(rows)
        after = before + count
        parts = np.empty((count + 1, rows.shape[1]))
        centred = parts[:-1]
        np.subtract(rows, rows[0], out=centred, dtype=np.float64)  # equal rows are exactly 0
        offset = centred.mean(axis=0)
        centred -= offset
        apart = rows[0] + offset - self._means[label]
        parts[-1] = math.sqrt(before / after * count) * apart
        self._counts[label] = after
        self._means[label] += count / after * apart
        self._scatters[label] += parts.T @ parts

    def moments(self) -> list[Moments]:
        """Those of each class."""
        return list(map(Moments, self._counts.tolist(), self._means, self._scatters))


def block_rows(num_classes: int, dim: int) -> int:
    """Rows of a block."""
    return max(_ROWS_PER_CLASS * num_classes, _NUMBERS // dim, 1)


def require_memory(name: str, samples: int, num_classes: int, dim: int, memory: float | None = None) -> None:
    """Raises ValueError if moments need more bytes than ``memory``, by default half of what the machine has."""
    memory = _physical_memory() / 2 if memory is None else validation.positive("memory", memory)
    if (needed := needed_memory(samples, num_classes, dim)) > memory:
        raise ValueError(
            f"{name}: moments of {num_classes:,} classes in {dim} channels need {needed / 2**30:,.2f} GiB, but "
            f"{memory / 2**30:,.2f} GiB may be taken; pool them to fewer channels, such as "
            f"{_largest_dim(samples, num_classes, memory)} (--dim)"
        )


def needed_memory(samples: int, num_classes: int, dim: int) -> int:
    """Bytes: of the moments; of a block of rows in float64, with labels, as they are read and as they are joined."""
    rows = min(block_rows(num_classes, dim), samples)
    return 8 * num_classes * dim * (dim + 1) + rows * (24 * dim + 40)


def _largest_dim(samples: int, num_classes: int, memory: float) -> int:
    """Channels that ``memory`` is enough for: the greatest power of two, and at least one."""
    enough = (2**power for power in range(16, 0, -1) if needed_memory(samples, num_classes, 2**power) <= memory)
    return next(enough, 1)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
