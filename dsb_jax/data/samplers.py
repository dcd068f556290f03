"""Which examples a training batch holds: random orders and draws, each a pure function of the seed and the step."""

import functools
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation

# From the number of a batch, an integer >= 0, to its positions, int32 [batch_size].
Sampler = Callable[[int], np.ndarray]

# An example of a class of n images is drawn with a chance proportional to n^-p. With p = 1 all classes are as likely;
# with p = 2 a class is as likely as the inverse of its size says, the reversed sampler of Zhou et al., 2020.
_POWERS = {"square_root": 0.5, "class_balanced": 1.0, "reversed": 2.0}


def names() -> list[str]:
    """The samplers that :func:`create` knows, sorted.

    Example:
      >>> names()
      ['class_balanced', 'plain', 'reversed', 'square_root']
    """
    return sorted(["plain", *_POWERS])


def create(name: str, labels: np.ndarray, batch_size: int, *, seed: int) -> Sampler:
    """A sampler by its name.

    Args:
      name: ``"plain"``, see :func:`order`; ``"class_balanced"``, where all classes are as likely; ``"square_root"``,
        where a class is as likely as the root of its size says; ``"reversed"``, as the inverse of its size says.
      labels: of the examples, integers ``[n]``.
      batch_size: how many examples a batch has.
      seed: not negative.

    Returns:
      The sampler. All but the plain one draw with replacement.

    Raises:
      ValueError: an unknown name, or an argument out of range.

    Example:
      >>> draw = create("reversed", np.array([0] * 90 + [1] * 10), 1000, seed=0)
      >>> round(float(np.mean(draw(0) >= 90)), 1)
      0.9

    Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, 2020; Zhou et al., BBN, 2020.
    """
    if name == "plain":
        return order(len(labels), batch_size, seed=seed)
    if name not in _POWERS:
        raise validation.unknown_name("sampler", name, names())
    return weighted(np.bincount(labels)[labels] ** -_POWERS[name], batch_size, seed=seed)


def order(samples: int, batch_size: int, *, seed: int) -> Sampler:
    """Every example once, then again in another order.

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
    def made(epoch: int) -> np.ndarray:
        return np.asarray(permutation(words(seed), words(epoch), samples))

    lock = threading.Lock()

    def of_epoch(epoch: int) -> np.ndarray:
        with lock:  # several threads come to a new epoch at once
            return made(epoch)

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
      seed: ``words`` of it.
      epoch: likewise.
      samples: how many examples there are.

    Returns:
      A permutation of 0 … ``samples`` − 1, int32 ``[samples]``.

    Example:
      >>> sorted(permutation(words(0), words(7), samples=4).tolist())
      [0, 1, 2, 3]
    """
    # Named, so that the order is the same under any `jax_default_prng_impl`.
    key = jax.random.key(0, impl="threefry2x32")
    for word in (seed[0], seed[1], epoch[0], epoch[1]):
        key = jax.random.fold_in(key, word)
    return jax.random.permutation(key, jnp.arange(samples, dtype=jnp.int32))


def words(number: int) -> np.ndarray:
    """The high and the low word of a number below 2**64, uint32 ``[2]``.

    Example:
      >>> words(2**32 + 5).tolist()
      [1, 5]
    """
    return np.array(divmod(number, 2**32), np.uint32)


def weighted(weights: np.ndarray, batch_size: int, *, seed: int) -> Sampler:
    """Examples drawn with replacement, each as likely as its weight says.

    Args:
      weights: numbers >= 0 ``[n]``, not all of them 0; such as those of an environment of invariant feature learning.
      batch_size: how many are drawn.
      seed: not negative; different seeds give unrelated draws.

    Returns:
      A function from the number of a batch, an integer >= 0, to its positions, int32 ``[batch_size]``.

    Raises:
      ValueError: weights that are no such numbers, or an argument out of range.

    Example:
      >>> weighted(np.array([0.0, 1.0, 0.0]), 4, seed=0)(9).tolist()
      [1, 1, 1, 1]
    """
    validation.positive_int("batch_size", batch_size)
    validation.integer("seed", seed, lowest=0)
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError("weights must be finite numbers >= 0 [examples], not all of them 0")
    upto, last = np.cumsum(weights), np.flatnonzero(weights)[-1]

    def batch(step: int) -> np.ndarray:
        heights = np.random.default_rng([*words(seed), *words(step)]).random(batch_size) * upto[-1]
        # From the right, so that an example of weight 0 has no height of its own.
        return np.searchsorted(upto, heights, side="right").clip(max=last).astype(np.int32)

    return batch
