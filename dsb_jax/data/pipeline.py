"""Batches from a split: endless and shuffled to train on, in order and padded to evaluate on.

The order is a pure function of the seed and the step. So nothing of a loader belongs in a checkpoint: a run goes on at
step k by asking for step k. Threads read ahead; they cannot change the order.
"""

import os
from collections.abc import Iterator

import grain
import numpy as np

from dsb_jax import validation
from dsb_jax.data.records import Split

Batch = dict[str, np.ndarray]

# Each thread reads and decodes a batch at a time, for the most part in C++ and without the GIL.
_THREADS = min(8, os.cpu_count() or 1)
_READ_OPTIONS = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)


def train_batches(
    split: Split, indices: np.ndarray, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[Batch]:
    """Endless batches of some examples of a split, in random order.

    Shuffle, repeat, batch: with n = ``len(indices)``, the examples n·e … n·(e+1) − 1 of the stream are a permutation of
    ``indices``, another one for every epoch e. Batches are all full, so one may straddle two epochs.

    Args:
      split: where the examples are.
      indices: rows of the split to train on, integers ``[n]``.
      batch_size: at most n.
      seed: not negative; different seeds give unrelated orders.
      start_step: the number of the first batch.

    Returns:
      Batches ``start_step``, ``start_step + 1``, …: ``image`` uint8 ``[batch_size, height, width, channels]``,
      ``label`` int32 ``[batch_size]`` and ``index`` int32 ``[batch_size]``, the row in the split.

    Raises:
      ValueError: indices that are not of the split, a batch larger than the set, a negative seed or step; and from
        ``next``, an example that cannot be read.

    Example:
      >>> from dsb_jax import data
      >>> train = data.load("digits", "train")
      >>> batch = next(train_batches(train, np.arange(100), 32, seed=0))
      >>> batch["image"].shape, batch["label"].dtype
      ((32, 8, 8, 1), dtype('int32'))
    """
    indices = _rows_of(split, indices)
    validation.positive_int("batch_size", batch_size)
    if batch_size > len(indices):
        raise ValueError(f"batch_size must be at most the {len(indices)} training examples, got {batch_size}")
    for name, value in (("seed", seed), ("start_step", start_step)):
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
    # Grain shuffles epoch e by seed + e: without this, a run with the next seed would repeat this run's orders.
    spread_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    positions = grain.MapDataset.range(len(indices)).shuffle(seed=spread_seed).repeat()
    # No remainder comes of an endless stream; to say so avoids an overflow of its length at batch_size 1.
    batches = positions.batch(batch_size, drop_remainder=True).map(lambda batch: _read(split, indices[batch]))
    return iter(batches[start_step:].to_iter_dataset(_READ_OPTIONS))


def eval_batches(split: Split, batch_size: int, *, indices: np.ndarray | None = None) -> Iterator[Batch]:
    """Examples of a split once, in order, in batches of one shape.

    Args:
      split: where the examples are.
      batch_size: any; the last batch is filled up with zeros.
      indices: rows of the split, integers ``[n]``; all of them by default.

    Returns:
      ⌈n / batch_size⌉ batches: ``image`` uint8 ``[batch_size, height, width, channels]``, ``label`` int32
      ``[batch_size]`` and ``mask`` bool ``[batch_size]``, true where there is an example.

    Raises:
      ValueError: indices that are not of the split or a batch size below one; and from ``next``, an example that
        cannot be read.

    Example:
      >>> from dsb_jax import data
      >>> test = data.load("digits", "test")
      >>> [int(batch["mask"].sum()) for batch in eval_batches(test, 150)]
      [150, 150, 100]
    """
    validation.positive_int("batch_size", batch_size)
    indices = np.arange(len(split)) if indices is None else _rows_of(split, indices)
    starts = grain.MapDataset.range(0, len(indices), batch_size)
    batches = starts.map(lambda start: _read_padded(split, indices[start : start + batch_size], batch_size))
    return iter(batches.to_iter_dataset(_READ_OPTIONS))


def _rows_of(split: Split, indices: np.ndarray) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices must be integers [examples], got {indices.dtype} {list(indices.shape)}")
    bad = (indices < 0) | (indices >= len(split))
    if bad.any():
        where = int(np.argmax(bad))
        raise ValueError(
            f"indices must lie in [0, {len(split)}) for {split.name}/{split.split}, "
            f"got {indices[where]} at position {where}"
        )
    return indices.astype(np.int32)


def _read(split: Split, rows: np.ndarray) -> Batch:
    examples = split.source.__getitems__(rows)
    return {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
        "index": rows,
    }


def _read_padded(split: Split, rows: np.ndarray, batch_size: int) -> Batch:
    batch, samples = _read(split, rows), len(rows)
    return {
        "image": np.pad(batch["image"], [(0, batch_size - samples), (0, 0), (0, 0), (0, 0)]),
        "label": np.pad(batch["label"], (0, batch_size - samples)),
        "mask": np.arange(batch_size) < samples,
    }
