"""Examples as batches on the devices, so that no step waits for the host.

A small set is decoded once and lives on the devices; a step then sends the positions of its batch and nothing else. A
larger one is read from disk, decoded on threads and transferred ahead. Both give the same batches, to the bit.
"""

import collections
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dsb_jax import validation
from dsb_jax.data import pipeline
from dsb_jax.data.records import Split

_logger = logging.getLogger(__name__)

_BATCHES_AHEAD = 2  # on their way to the devices while a step runs
_DECODED_AT_ONCE = 256
_FIRST_LOG_SECONDS = 1.0
_SECONDS_BETWEEN_LOGS = 5.0


class Examples:
    """Some examples of a split, as batches on the devices.

    Args:
      split: where the examples are.
      indices: rows of the split, integers ``[n]``; all of them by default.
      sharding: how a batch lies on the devices, by its first axis; on the default device if it is None.
      resident_bytes: a set of at most so many bytes of decoded images is kept on every device.

    Raises:
      ValueError: indices that are not of the split, no examples, or one that cannot be read.

    Attributes:
      resident: whether the images live on the devices.

    Example:
      >>> from dsb_jax import data
      >>> examples = Examples(data.load("digits", "test"))
      >>> batch = next(examples.shuffled(32, seed=0))
      >>> batch["image"].shape, batch["label"].shape
      ((32, 8, 8, 1), (32,))
    """

    def __init__(
        self,
        split: Split,
        indices: np.ndarray | None = None,
        *,
        sharding: NamedSharding | None = None,
        resident_bytes: int = 2**30,
    ) -> None:
        self._split = split
        self._rows = pipeline.rows_of(split, np.arange(len(split)) if indices is None else indices)
        if not len(self._rows):
            raise ValueError(f"no examples of {split.name}/{split.split} are chosen: indices are empty")
        self._sharding = sharding
        self.resident = len(self._rows) * int(np.prod(split.image_shape)) <= resident_bytes
        if self.resident:
            everywhere = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
            self._examples = jax.device_put(_decode(split, self._rows), everywhere)
            self._gather = jax.jit(_gather, out_shardings=sharding)

    def __len__(self) -> int:
        return len(self._rows)

    def shuffled(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[dict[str, jax.Array]]:
        """Endless batches in the random order of :func:`dsb_jax.data.pipeline.order`.

        Args:
          batch_size: at most the number of examples, and a multiple of the devices it is spread over.
          seed: not negative; different seeds give unrelated orders.
          start_step: the number of the first batch.

        Returns:
          Batches ``start_step``, ``start_step + 1``, …: ``image`` uint8 ``[batch_size, height, width, channels]`` and
          ``label`` int32 ``[batch_size]``.

        Raises:
          ValueError: a batch size, seed or step out of range; and from ``next``, an example that cannot be read.
        """
        positions = pipeline.order(len(self), batch_size, seed=seed)
        validation.integer("start_step", start_step, lowest=0)
        self._check_divisible(batch_size)
        if self.resident:
            return (self._gather(self._examples, positions(step)) for step in itertools.count(start_step))
        batches = pipeline.train_batches(self._split, self._rows, batch_size, seed=seed, start_step=start_step)
        return self._transferred(batches)

    def in_order(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """All examples once, in the order of ``indices``, in batches of one shape.

        Args:
          batch_size: any multiple of the devices it is spread over; the last batch is filled up with zeros.

        Returns:
          ⌈n / batch_size⌉ batches: ``image`` and ``label`` on the devices as in :meth:`shuffled`, and on the host
          ``mask``, bool ``[batch_size]``, true where there is an example.

        Raises:
          ValueError: a batch size that does not fit; and from ``next``, an example that cannot be read.
        """
        validation.positive_int("batch_size", batch_size)
        self._check_divisible(batch_size)
        starts = range(0, len(self), batch_size)
        if self.resident:
            # Positions beyond the last example gather zeros.
            rows = (np.arange(start, start + batch_size, dtype=np.int32) for start in starts)
            batches = (self._gather(self._examples, positions) for positions in rows)
        else:
            batches = self._transferred(pipeline.eval_batches(self._split, batch_size, indices=self._rows))
        masks = (np.arange(start, start + batch_size) < len(self) for start in starts)
        return ({**batch, "mask": mask} for batch, mask in zip(batches, masks, strict=True))

    def _transferred(self, batches: Iterable[pipeline.Batch]) -> Iterator[dict[str, jax.Array]]:
        """The batches on the devices, each one on its way before the one ahead of it is asked for."""
        # Grain's prefetching threads would do this too, but print exceptions when the interpreter exits before them.
        ahead = collections.deque()
        for batch in batches:
            ahead.append(jax.device_put({name: batch[name] for name in ("image", "label")}, self._sharding))
            if len(ahead) > _BATCHES_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def _check_divisible(self, batch_size):
        if self._sharding is None:
            return
        devices = self._sharding.num_devices
        parts = devices // self._sharding.shard_shape((devices,))[0]
        if batch_size % parts:
            raise ValueError(f"batch_size must be a multiple of the {parts} devices, got {batch_size}")


def _gather(examples: dict[str, jax.Array], positions: jax.Array) -> dict[str, jax.Array]:
    return {name: array.at[positions].get(mode="fill", fill_value=0) for name, array in examples.items()}


def _decode(split: Split, rows: np.ndarray) -> dict[str, np.ndarray]:
    """All images and labels, with a line about the progress where it takes long."""
    images = np.empty((len(rows), *split.image_shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    begin = time.monotonic()
    next_log, done = begin + _FIRST_LOG_SECONDS, 0
    for batch in pipeline.eval_batches(split, min(_DECODED_AT_ONCE, len(rows)), indices=rows):
        size = int(batch["mask"].sum())
        images[done : done + size], labels[done : done + size] = batch["image"][:size], batch["label"][:size]
        done += size
        now = time.monotonic()
        if now >= next_log and done < len(rows):
            next_log, left = now + _SECONDS_BETWEEN_LOGS, (now - begin) * (len(rows) - done) / done
            _logger.info("Decoding %s/%s: %d of %d images, %.0f s left", split.name, split.split, done, len(rows), left)
    return {"image": images, "label": labels}
