"""Batches from a split: endless and shuffled to train on, in order and padded to evaluate on.

The order is a pure function of the seed and the step. So nothing of a loader belongs in a checkpoint: a run goes on at
step k by asking for step k. Threads read ahead; they cannot change the order.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.data.records import Split

Batch = dict[str, np.ndarray]

# Each thread reads and decodes a batch at a time, for the most part in C++ and without the GIL.
_THREADS = min(8, os.cpu_count() or 1)
_READ_OPTIONS = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)


def order(samples: int, batch_size: int, *, seed: int) -> Callable[[int], np.ndarray]:
    """Which examples every training batch holds.

    Shuffle, repeat, batch: with n = ``samples``, the elements n·e … n·(e+1) − 1 of the stream are a permutation of
    0 … n − 1, another one for every epoch e. Batches are all full, so one may straddle two epochs.

    Args:
      samples: how many examples there are.
      batch_size: at most ``samples``.
      seed: not negative; different seeds give unrelated orders.

    Returns:
      A function from the number of a batch, an integer >= 0, to its positions, int32 ``[batch_size]``.

    Raises:
      ValueError: a batch larger than the set, or a negative seed.

    Example:
      >>> batch = order(5, 2, seed=0)
      >>> sorted(np.concatenate([batch(step) for step in range(5)]).tolist())
      [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """
    validation.positive_int("batch_size", batch_size)
    validation.integer("seed", seed, lowest=0)
    if batch_size > samples:
        raise ValueError(f"batch_size must be at most the {samples} training examples, got {batch_size}")

    # One call per epoch: an index at a time, as Grain shuffles, took 2 ms for a batch of 128.
    @functools.lru_cache(maxsize=2)
    def of_epoch(epoch: int) -> np.ndarray:
        return np.asarray(permutation(_words(seed), _words(epoch), samples))

    def batch(step: int) -> np.ndarray:
        epoch, first = divmod(step * batch_size, samples)
        positions = of_epoch(epoch)[first : first + batch_size]
        missing = batch_size - len(positions)
        return np.concatenate([positions, of_epoch(epoch + 1)[:missing]]) if missing else positions

    return batch


@functools.partial(jax.jit, static_argnames="samples")
def permutation(seed: jax.Array, epoch: jax.Array, samples: int) -> jax.Array:
    """The order of an epoch, made where it is needed: a device that holds the examples makes the same one as the host.

    Args:
      seed: uint32 ``[2]``, the high and the low word of a number >= 0.
      epoch: likewise.
      samples: how many examples there are.

    Returns:
      A permutation of 0 … ``samples`` − 1, int32 ``[samples]``.

    Example:
      >>> words = np.array([0, 7], np.uint32)
      >>> sorted(permutation(words, words, samples=4).tolist())
      [0, 1, 2, 3]
    """
    # Named, so that the order is the same under any `jax_default_prng_impl`.
    key = jax.random.key(0, impl="threefry2x32")
    for word in (seed[0], seed[1], epoch[0], epoch[1]):
        key = jax.random.fold_in(key, word)
    return jax.random.permutation(key, jnp.arange(samples, dtype=jnp.int32))


def _words(number: int) -> np.ndarray:
    return np.array(divmod(number, 2**32), np.uint32)


def train_batches(
    split: Split, indices: np.ndarray, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[Batch]:
    """Endless batches of some examples of a split, in the random order of :func:`order`.

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
    indices = rows_of(split, indices)
    validation.integer("start_step", start_step, lowest=0)
    positions = order(len(indices), batch_size, seed=seed)
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    batches = steps.map(lambda step: _read(split, indices[positions(step)]))
    return iter(batches.to_iter_dataset(_READ_OPTIONS))


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
    indices = np.arange(len(split)) if indices is None else rows_of(split, indices)
    starts = grain.MapDataset.range(0, len(indices), batch_size)
    batches = starts.map(lambda start: _read_padded(split, indices[start : start + batch_size], batch_size))
    return iter(batches.to_iter_dataset(_READ_OPTIONS))


def rows_of(split: Split, indices: np.ndarray) -> np.ndarray:
    """``indices`` as int32 ``[n]``; raises ValueError unless they are integers that lie in the split.

    Example:
      >>> from dsb_jax import data
      >>> rows_of(data.load("digits", "test"), [399, 0]).dtype
      dtype('int32')
    """
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
