"""Batches from a split: endless and drawn to train on, in order and padded to evaluate on.

What a batch holds is a pure function of the seed and the step, the parts of images that are seen included. So nothing
of a loader belongs in a checkpoint: a run goes on at step k by asking for step k. Threads read ahead, and processes
read shares; neither can change the order.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from dsb_jax import validation
from dsb_jax.data import samplers
from dsb_jax.data.records import Split
from dsb_jax.data.samplers import words

Batch = dict[str, Any]

# Each thread reads and decodes a batch at a time, for the most part in C++ and without the GIL.
_THREADS = min(8, os.cpu_count() or 1)
_READ_OPTIONS = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)


def train_batches(
    split: Split,
    indices: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    views: int = 1,
    sampling: Sequence[str] = ("plain",),
    environments: Mapping[str, np.ndarray] | None = None,
    weights: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
    reader: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless batches of some examples of a split.

    Args:
      split: where the examples are.
      indices: rows of the split to train on, integers ``[n]``.
      batch_size: of all readers together, a multiple of their number; at most n.
      seed: not negative; different seeds give unrelated batches.
      start_step: the number of the first batch.
      views: how many random crops of each image there are, if the split has such; of others the device makes views.
      sampling: names of :func:`dsb_jax.data.samplers.create`; a batch of each further one stands under its name.
      environments: by name, weights ``[n]`` with which a further batch is drawn.
      weights: ``[n]``, of the sampler that follows the model, if ``sampling`` names one.
      options: further arguments of :func:`dsb_jax.data.samplers.create`.
      reader: number of this reader and how many there are; each reads as many examples, the first one the first of each
        batch, so that their shares in a row are the batch of a single one.

    Returns:
      Batches ``start_step``, ``start_step + 1``, …, with b = ``batch_size`` / readers: ``image`` uint8 ``[b, height,
      width, channels]``, further views of it ``view_1``, ``view_2`` …, ``label`` int32 ``[b]`` and ``index`` int32
      ``[b]``, the row in the split; and a dictionary of the same for each further sampler and environment.

    Raises:
      ValueError: indices that are not of the split, a batch larger than the set, an unknown sampler, a reader that is
        none, a negative seed or step; and from ``next``, an example that cannot be read.

    Example:
      >>> from dsb_jax import data
      >>> train = data.load("digits", "train")
      >>> batch = next(train_batches(train, np.arange(100), 32, seed=0))
      >>> batch["image"].shape, batch["label"].dtype
      ((32, 8, 8, 1), dtype('int32'))
    """
    indices = rows_of(split, indices)
    validation.integer("start_step", start_step, lowest=0)
    validation.positive_int("views", views)
    share = _share(batch_size, reader)
    drawn: dict[str, Any] = {"sampling": sampling, "environments": environments, "weights": weights}
    draws = draws_of(split, indices, batch_size, seed=seed, options=options, **drawn)

    def batch(step: int) -> Batch:
        parts = {
            name: _read_drawn(split, indices[draw(step)], share, views, [*words(seed), *words(step), number])
            for number, (name, draw) in enumerate(draws.items())
        }
        return nested(parts)

    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return iter(steps.map(batch).to_iter_dataset(_READ_OPTIONS))


def draws_of(
    split: Split,
    indices: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    sampling: Sequence[str],
    environments: Mapping[str, np.ndarray] | None = None,
    weights: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, samplers.Sampler]:
    """The samplers and environments of :func:`train_batches` by name, each with a seed of its own."""
    environments = environments or {}
    names = [*sampling, *environments]
    if not sampling or len(set(names)) < len(names):
        raise ValueError(f"sampling must be the names of different samplers, got {tuple(names)}")
    if wrong := [name for name, own in environments.items() if np.shape(own) != (len(indices),)]:
        shape = list(np.shape(environments[wrong[0]]))
        raise ValueError(
            f"environment {wrong[0]!r} must have a weight for each of {len(indices)} examples, got {shape}"
        )
    # Labels may take a while to read.
    labels = split.labels[indices] if samplers.needs_labels(sampling) else np.zeros(len(indices), np.int32)
    seeds = itertools.count(seed, 2**32)  # the first one has the run's
    samplers.following(sampling)  # raises for several
    options = {"weights": weights, **(options or {})}
    draws = {name: samplers.create(name, labels, batch_size, seed=next(seeds), **options) for name in sampling}
    for name, own in environments.items():
        draws[name] = samplers.weighted(own, batch_size, seed=next(seeds))
    return draws


def nested(parts: Mapping[str, Batch]) -> Batch:
    """One batch of several: the first one, with the others in it by name."""
    first, *others = parts
    return parts[first] | {name: parts[name] for name in others}


def eval_batches(
    split: Split, batch_size: int, *, indices: np.ndarray | None = None, reader: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Examples of a split once, in order, in batches of one shape.

    Args:
      split: where the examples are.
      batch_size: of all readers together, a multiple of their number; the last batch is filled up with zeros.
      indices: rows of the split, integers ``[n]``; all of them by default.
      reader: as for :func:`train_batches`.

    Returns:
      ⌈n / batch_size⌉ batches, with b = ``batch_size`` / readers: ``image`` uint8 ``[b, height, width, channels]``,
      ``label`` int32 ``[b]`` and ``mask`` bool ``[b]``, true where there is an example.

    Raises:
      ValueError: indices that are not of the split, a batch size below one or a reader that is none; and from ``next``,
        an example that cannot be read.

    Example:
      >>> from dsb_jax import data
      >>> test = data.load("digits", "test")
      >>> [int(batch["mask"].sum()) for batch in eval_batches(test, 150)]
      [150, 150, 100]
    """
    share = _share(batch_size, reader)
    indices = np.arange(len(split)) if indices is None else rows_of(split, indices)

    def batch(start: int) -> Batch:
        return _read_padded(split, indices[start : start + batch_size][share.start : share.stop], len(share))

    starts = grain.MapDataset.range(0, len(indices), batch_size)
    return iter(starts.map(batch).to_iter_dataset(_READ_OPTIONS))


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


def _share(batch_size: int, reader: tuple[int, int]) -> range:
    """The places in a batch that a reader reads."""
    number, readers = reader
    validation.positive_int("batch_size", batch_size)
    validation.positive_int("readers", readers)
    if not 0 <= number < readers:
        raise ValueError(f"reader must lie in [0, {readers}), got {number}")
    if batch_size % readers:
        raise ValueError(f"batch_size must be a multiple of the {readers} readers, got {batch_size}")
    length = batch_size // readers
    return range(number * length, (number + 1) * length)


def _read_drawn(split: Split, rows: np.ndarray, share: range, views: int, entropy: list[int]) -> Batch:
    """A reader's share of a batch; where crops are random, each has a generator of its own, by its place."""
    rows = rows[share.start : share.stop]
    if not split.random_crops:
        return _stacked(split.source.__getitems__(rows)) | {"index": rows}
    source: Any = split.source  # a CroppedSource, as random_crops says
    seen = [
        _stacked(source.crops(rows, [np.random.default_rng([*entropy, view, place]) for place in share]))
        for view in range(views)
    ]
    further = {f"view_{number}": view["image"] for number, view in enumerate(seen[1:], start=1)}
    return seen[0] | {"index": rows} | further


def _stacked(examples: list[dict[str, Any]]) -> Batch:
    return {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
    }


def _read_padded(split: Split, rows: np.ndarray, batch_size: int) -> Batch:
    samples = len(rows)
    images, labels = np.zeros((batch_size, *split.image_shape), np.uint8), np.zeros(batch_size, np.int32)
    if samples:  # the last batch may have none for the last readers
        found = _stacked(split.source.__getitems__(rows))
        images[:samples], labels[:samples] = found["image"], found["label"]
    return {"image": images, "label": labels, "mask": np.arange(batch_size) < samples}
