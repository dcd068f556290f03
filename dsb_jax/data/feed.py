"""Examples as batches on the devices, so that no step waits for the host.

A small set is decoded once and lives on the devices, which make the order of each epoch too: a step needs nothing of
the host. A larger one is read from disk, decoded on threads and transferred ahead. Both give the same batches, to the
bit.

Of several processes each reads what its own devices take of every batch, and its share of a set that is to live on all
of them; the batches are those of a single process.
"""

import collections
import functools
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dsb_jax import validation
from dsb_jax.data import pipeline, samplers
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
      sharding: how a batch lies on the devices, by its first axis, those of a process side by side; on the default
        device if it is None.
      resident_bytes: a set of at most so many bytes of decoded images is kept on every device, unless the host has to
        crop them at random.

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
        self._reader = (jax.process_index(), jax.process_count()) if sharding is not None else (0, 1)
        small = len(self._rows) * int(np.prod(split.image_shape)) <= resident_bytes
        self.resident = small and not split.random_crops
        if self.resident:
            everywhere = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
            self._examples = self._on_devices(everywhere)
            self._gather = jax.jit(_gather, out_shardings=sharding)
            self._draw = jax.jit(
                _draw, static_argnames="batch_size", donate_argnames="position", out_shardings=(sharding, everywhere)
            )
            self._next_epoch = jax.jit(_next_epoch, static_argnames=("samples", "batch_size"), out_shardings=everywhere)

    def __len__(self) -> int:
        return len(self._rows)

    def _on_devices(self, everywhere):
        """All images and labels on every device; each process decodes its share, and the devices exchange them."""
        if everywhere is None or self._sharding is None:
            return jax.device_put(_decode(self._split, self._rows))
        samples, parts = len(self), self._sharding.num_devices
        padded = -(-samples // parts) * parts
        number, readers = self._reader
        share = slice(number * padded // readers, (number + 1) * padded // readers)
        part = _decode(self._split, np.resize(self._rows, padded)[share])
        spread = NamedSharding(everywhere.mesh, PartitionSpec(everywhere.mesh.axis_names))
        part = {name: jax.make_array_from_process_local_data(spread, array) for name, array in part.items()}
        return jax.jit(lambda part: jax.tree.map(lambda array: array[:samples], part), out_shardings=everywhere)(part)

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        views: int = 1,
        sampling: Sequence[str] = ("plain",),
        environments: Mapping[str, np.ndarray] | None = None,
        weights: np.ndarray | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Endless batches, drawn at random; all arguments are those of :func:`dsb_jax.data.pipeline.train_batches`.

        Args:
          batch_size: at most the number of examples, and a multiple of the devices it is spread over.
          seed: not negative; different seeds give unrelated orders.
          start_step: the number of the first batch.
          views: of each image, where the host crops at random.
          sampling: names of samplers, of which the first is at the top level of a batch.
          environments: weights of the examples by name.
          weights: of the examples, for the sampler that follows the model.
          options: of the samplers.

        Returns:
          Batches ``start_step``, ``start_step + 1``, …: ``image`` uint8 ``[batch_size, height, width, channels]`` and
          ``label`` int32 ``[batch_size]``, further views and the batches of further samplers and environments.

        Raises:
          ValueError: a batch size, seed or step out of range; and from ``next``, an example that cannot be read.
        """
        validation.integer("start_step", start_step, lowest=0)
        drawn: dict[str, Any] = {"seed": seed, "sampling": sampling, "environments": environments, "weights": weights}
        drawn["options"] = options
        draws = pipeline.draws_of(self._split, self._rows, batch_size, **drawn)
        self._check_divisible(batch_size)
        if not self.resident:
            drawn |= {"start_step": start_step, "views": views, "reader": self._reader}
            return self._transferred(pipeline.train_batches(self._split, self._rows, batch_size, **drawn))
        if tuple(draws) == ("plain",):
            return self._permuted(batch_size, seed, start_step)
        return (self._gathered(draws, step) for step in itertools.count(start_step))

    def _permuted(self, batch_size, seed, start_step):
        """The plain order, made on the devices; the host knows when an epoch ends, and has nothing to send."""
        samples = len(self)
        epoch, first = divmod(start_step * batch_size, samples)
        seed, position = jax.device_put((samplers.words(seed), np.int32(first)))
        words = jax.device_put(samplers.words(epoch))
        while True:
            words, order = self._next_epoch(seed, words, samples=samples, batch_size=batch_size)
            while first < samples:
                batch, position = self._draw(self._examples, order, position, batch_size=batch_size)
                yield batch
                first += batch_size
            first -= samples

    def _gathered(self, draws, step):
        return pipeline.nested({name: self._gather(self._examples, draw(step)) for name, draw in draws.items()})

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
            batches: Iterable[dict[str, Any]] = (self._gather(self._examples, positions) for positions in rows)
        else:
            read = pipeline.eval_batches(self._split, batch_size, indices=self._rows, reader=self._reader)
            batches = self._transferred(read)
        masks = (np.arange(start, start + batch_size) < len(self) for start in starts)
        return ({**batch, "mask": mask} for batch, mask in zip(batches, masks, strict=True))

    def _transferred(self, batches: Iterable[pipeline.Batch]) -> Iterator[dict[str, jax.Array]]:
        """The batches on the devices, each one on its way before the one ahead of it is asked for."""
        # Grain's prefetching threads would do this too, but print exceptions when the interpreter exits before them.
        ahead: collections.deque[dict[str, jax.Array]] = collections.deque()
        for batch in batches:
            ahead.append(self._transfer(_without_index(batch)))
            if len(ahead) > _BATCHES_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def _transfer(self, share):
        if self._reader == (0, 1):
            return jax.device_put(share, self._sharding)
        return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, self._sharding), share)

    def _check_divisible(self, batch_size):
        if self._sharding is None:
            return
        devices = self._sharding.num_devices
        parts = devices // self._sharding.shard_shape((devices,))[0]
        if batch_size % parts:
            raise ValueError(f"batch_size must be a multiple of the {parts} devices, got {batch_size}")


def _gather(examples: dict[str, jax.Array], positions: jax.Array) -> dict[str, jax.Array]:
    return {name: array.at[positions].get(mode="fill", fill_value=0) for name, array in examples.items()}


def _draw(
    examples: dict[str, jax.Array], order: jax.Array, position: jax.Array, *, batch_size: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """A batch from ``position`` of the order on, and the position of the next one, counted within its epoch."""
    samples = examples["label"].shape[0]
    batch = _gather(examples, jax.lax.dynamic_slice_in_dim(order, position, batch_size))
    return batch, (position + batch_size) % samples


def _next_epoch(seed: jax.Array, epoch: jax.Array, *, samples: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """The number of the next epoch, and the order of this one with as much of the next as a batch may straddle."""
    following = jnp.stack([epoch[0] + (epoch[1] == jnp.uint32(2**32 - 1)), epoch[1] + jnp.uint32(1)])
    orders = [samplers.permutation(seed, words, samples) for words in (epoch, following)]
    return following, jnp.concatenate([orders[0], orders[1][:batch_size]])


def _without_index(batch: pipeline.Batch) -> pipeline.Batch:
    """What devices need of a batch: not where its examples came from."""
    return {
        name: _without_index(value) if isinstance(value, dict) else value
        for name, value in batch.items()
        if name not in ("index", "mask")
    }


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
