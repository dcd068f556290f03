"""Which examples a training batch holds: random orders and draws, each a pure function of the seed and the step.

Two samplers follow the model: ``"semantic_scale"`` and ``"environments"`` draw by weights of the examples that a run
makes anew at the start of some epochs. With the weights as they are, they too depend on the seed and the step alone.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation

# From the number of a batch, an integer >= 0, to its positions, int32 [batch_size].
Sampler = Callable[[int], np.ndarray]

# An example of a class of n images is drawn with a chance proportional to n^-p. With p = 1 all classes are as likely;
# with p = 2 a class is as likely as the inverse of its size says, the reversed sampler of Zhou et al., 2020.
_POWERS = {"square_root": 0.5, "class_balanced": 1.0, "reversed": 2.0}
_FOLLOWING = ("environments", "semantic_scale")
_WITHOUT_LABELS = frozenset({"plain", *_FOLLOWING})


def names() -> list[str]:
    """The samplers that :func:`create` knows, sorted.

    Example:
      >>> names()[:4]
      ['class_aware', 'class_balanced', 'environments', 'pk']
    """
    return sorted(["plain", "class_aware", "pk", "progressively_balanced", *_POWERS, *_FOLLOWING])


def following(sampling: Sequence[str]) -> str | None:
    """The sampler among ``sampling`` whose weights follow the model; None if there is none.

    Raises:
      ValueError: if there are several: a run keeps one weight of each example.

    Example:
      >>> following(("environments", "reversed")), following(("plain",))
      ('environments', None)
    """
    found = [name for name in sampling if name in _FOLLOWING]
    if len(found) > 1:
        raise ValueError(f"at most one sampler may follow the model, got {' and '.join(map(repr, found))}")
    return found[0] if found else None


def needs_labels(sampling: Sequence[str]) -> bool:
    """Whether one of the samplers asks for the labels of the examples.

    Example:
      >>> needs_labels(("plain", "reversed")), needs_labels(("plain",))
      (True, False)
    """
    return not _WITHOUT_LABELS.issuperset(sampling)


def create(
    name: str,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    examples_per_class: int = 4,
    epochs: int | None = None,
    weights: np.ndarray | None = None,
) -> Sampler:
    """A sampler by its name.

    Args:
      name: ``"plain"``, see :func:`order`; ``"class_balanced"``, where all classes are as likely; ``"square_root"``,
        where a class is as likely as the root of its size says; ``"reversed"``, as the inverse of its size says;
        ``"class_aware"``, see :func:`class_aware`; ``"pk"``, see :func:`pk`; ``"progressively_balanced"``, see
        :func:`progressively_balanced`; ``"environments"``, see :func:`environments`; ``"semantic_scale"``, by
        ``weights``, and as long as they are all equal the plain order.
      labels: of the examples, integers ``[n]``.
      batch_size: how many examples a batch has.
      seed: not negative.
      examples_per_class: of the class-aware sampler, and K of ``"pk"``.
      epochs: of the whole run, for the progressively balanced sampler.
      weights: of the examples, numbers >= 0 ``[n]``, for a sampler that follows the model; all equal by default.

    Returns:
      The sampler. All but the plain one may draw an example several times before another one comes.

    Raises:
      ValueError: an unknown name, or an argument out of range.

    Example:
      >>> draw = create("reversed", np.array([0] * 90 + [1] * 10), 1000, seed=0)
      >>> round(float(np.mean(draw(0) >= 90)), 1)
      0.9

    Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, 2020; Zhou et al., BBN, 2020.
    """
    samples = len(labels)
    given = np.ones(samples) if weights is None else weights
    if name in _FOLLOWING:
        given = _weights(given, samples)
    match name:
        case "plain":
            return order(samples, batch_size, seed=seed)
        case "class_aware":
            return class_aware(labels, batch_size, seed=seed, examples_per_class=examples_per_class)
        case "pk":
            return pk(labels, batch_size, seed=seed, examples_per_class=examples_per_class)
        case "progressively_balanced":
            if epochs is None:
                raise ValueError("sampler 'progressively_balanced' needs epochs, the length of the run; got none")
            return progressively_balanced(labels, batch_size, seed=seed, epochs=epochs)
        case "environments":
            return environments(given, batch_size, seed=seed)
        case "semantic_scale" if (given == given[0]).all():
            return order(samples, batch_size, seed=seed)
        case "semantic_scale":
            return weighted(given, batch_size, seed=seed)
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
    heights = _heights(_weights(weights))
    return lambda step: _drawn(heights, np.random.default_rng([*words(seed), *words(step)]), batch_size)


def by_class(rates: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights with which classes are drawn at given rates, and the examples of a class are all as likely.

    Args:
      rates: numbers >= 0 ``[C]``, proportional to how often each class is to be drawn.
      labels: of the examples, integers ``[n]``.

    Returns:
      ``rates[label] / (examples of the class)``, float64 ``[n]``. Rates that are all equal give weights that are: as
      long as nothing tells the classes apart the examples are drawn as they come.

    Example:
      >>> by_class(np.array([2.0, 1.0]), np.array([0, 0, 1])).tolist()
      [1.0, 1.0, 1.0]
      >>> by_class(np.array([1.0, 3.0]), np.array([0, 0, 1])).tolist()
      [0.5, 0.5, 3.0]

    Source: Sec. 4.1 of the paper, which expects semantic scales to improve sampling rates that follow the number of
    samples, and leaves open how; before its third stage training is plain (Sec. 4.2).
    """
    rates = np.asarray(rates, np.float64)
    if (rates == rates[0]).all():
        return np.ones(len(labels))
    return rates[labels] / np.bincount(labels, minlength=len(rates))[labels]


def progressively_balanced(labels: np.ndarray, batch_size: int, *, seed: int, epochs: int) -> Sampler:
    """Examples drawn with replacement, in the first epoch all as likely, and then more and more all classes.

    In epoch t of T, counted from 0, class j has the probability ``(1 - t/T)·n_j/n + (t/T)/C``.

    Args:
      labels: integers ``[n]``.
      batch_size: how many are drawn; an epoch ends with the first batch that begins after n more draws.
      seed: not negative.
      epochs: ``T``.

    Returns:
      A function from the number of a batch, an integer >= 0, to its positions, int32 ``[batch_size]``.

    Raises:
      ValueError: an argument out of range.

    Example:
      >>> draw = progressively_balanced(np.array([0] * 900 + [1] * 100), 1000, seed=0, epochs=4)
      >>> [round(float(np.mean(draw(epoch) >= 900)), 1) for epoch in (0, 2, 4)]
      [0.1, 0.3, 0.5]

    Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, 2020, Eq. 2.
    """
    validation.positive_int("batch_size", batch_size)
    validation.integer("seed", seed, lowest=0)
    validation.positive_int("epochs", epochs)
    samples, counts = len(labels), np.bincount(labels)
    plain, balanced = np.full(samples, 1 / samples), 1 / (counts[labels] * np.count_nonzero(counts))

    @functools.lru_cache(maxsize=2)
    def heights(epoch: int) -> np.ndarray:
        return _heights(plain + epoch / epochs * (balanced - plain))

    def batch(step: int) -> np.ndarray:
        epoch = min(step * batch_size // samples, epochs)
        return _drawn(heights(epoch), np.random.default_rng([*words(seed), *words(step)]), batch_size)

    return batch


def environments(weights: np.ndarray, batch_size: int, *, seed: int) -> Sampler:
    """Two environments in every batch: the examples at even places come in plain order, those at odd ones by weights.

    Side by side, so that every part of a batch has of both, whatever devices or steps divide it.

    Args:
      weights: of the second environment, numbers >= 0 ``[n]``, not all of them 0.
      batch_size: of both together, at least 2.
      seed: not negative.

    Returns:
      A function from the number of a batch, an integer >= 0, to its positions, int32 ``[batch_size]``.

    Raises:
      ValueError: weights that are no such numbers, or an argument out of range.

    Example:
      >>> environments(np.array([0.0, 0.0, 1.0]), 4, seed=0)(1)[1::2].tolist()
      [2, 2]

    Source: Tang et al., Invariant Feature Learning for Generalized Long-Tailed Classification, 2022. In their code the
    first environment is drawn with replacement as well.
    """
    validation.integer("batch_size", batch_size, lowest=2)
    weights, second = _weights(weights), batch_size // 2
    parts = order(len(weights), batch_size - second, seed=seed), weighted(weights, second, seed=seed)

    def batch(step: int) -> np.ndarray:
        positions = np.empty(batch_size, np.int32)
        for place, part in enumerate(parts):
            positions[place::2] = part(step)
        return positions

    return batch


def class_aware(labels: np.ndarray, batch_size: int, *, seed: int, examples_per_class: int = 4) -> Sampler:
    """Some examples of one class, as many of the next: classes in random order, and so the examples of each.

    The stream of examples is made of groups of ``examples_per_class`` of one class. All C classes that have examples
    come once, in random order, then all again in another order, and so on; the groups of a class, one after the other,
    are all its examples in random order, then all again in another order, and so on.

    Args:
      labels: integers ``[n]``.
      batch_size: any number; a group that does not fit goes on in the next batch.
      seed: not negative.
      examples_per_class: at least 1.

    Returns:
      A function from the number of a batch, an integer >= 0, to its positions, int32 ``[batch_size]``.

    Raises:
      ValueError: an argument out of range.

    Example:
      >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
      >>> labels[class_aware(labels, 8, seed=0, examples_per_class=4)(0)].tolist()
      [1, 1, 1, 1, 0, 0, 0, 0]

    Source: Shen et al., Relay Backpropagation, 2016; Kang et al., 2020, with 4 examples per class in their code.
    """
    validation.positive_int("batch_size", batch_size)
    validation.integer("seed", seed, lowest=0)
    validation.positive_int("examples_per_class", examples_per_class)
    classes, shuffled = _of_classes(labels), functools.partial(_shuffled, seed)

    @functools.lru_cache(maxsize=2)
    def classes_of(cycle: int) -> np.ndarray:
        return shuffled(np.arange(len(classes)), *words(cycle), 0)

    # Of each class the order that is under way, and the next one, to which other threads may have come.
    @functools.lru_cache(maxsize=2 * len(classes))
    def examples_of(label: int, order: int) -> np.ndarray:
        return shuffled(classes[label], *words(order), 1 + label)

    def group(number: int) -> np.ndarray:
        """All examples of a group. A class comes once in a cycle, so that the cycle counts its groups."""
        cycle, place = divmod(number, len(classes))
        label = int(classes_of(cycle)[place])
        drawn, missing = [], examples_per_class
        order, first = divmod(cycle * examples_per_class, len(classes[label]))
        while missing:
            drawn.append(examples_of(label, order)[first : first + missing])
            order, first, missing = order + 1, 0, missing - len(drawn[-1])
        return np.concatenate(drawn)

    def batch(step: int) -> np.ndarray:
        first, offset = divmod(step * batch_size, examples_per_class)
        groups = range(first, -(-(step + 1) * batch_size // examples_per_class))
        return np.concatenate([group(number) for number in groups])[offset : offset + batch_size]

    return batch


def pk(labels: np.ndarray, batch_size: int, *, seed: int, examples_per_class: int = 4) -> Sampler:
    """P classes in every batch, none of them twice, and K examples of each, one after the other.

    The C classes that have examples are shuffled and cut into batches, then again in another order, and so on. Where P
    does not divide C, C mod P classes sit out each cycle, and take turns at it: at no time have two classes come in
    numbers of batches that differ by more than 2, and whenever all have sat out equally often, they do not differ.

    The n examples of a class are shuffled and cut into ⌊n / K⌋ groups of K, then again in another order, and so on: no
    batch has one twice. Of a class with fewer than K, a batch has all of them in random order, and again from the
    first one on until there are K.

    Args:
      labels: integers ``[n]``.
      batch_size: P · K.
      seed: not negative.
      examples_per_class: K, at least 1.

    Returns:
      A function from the number of a batch, an integer >= 0, to its positions, int32 ``[batch_size]``.

    Raises:
      ValueError: an argument out of range, a batch size that K does not divide, or more than C classes in a batch.

    Example:
      >>> labels = np.repeat([0, 1, 2], 4)
      >>> labels[pk(labels, 6, seed=0, examples_per_class=3)(0)].tolist()
      [1, 1, 1, 2, 2, 2]

    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017, Sec. 2; Zhai & Wu,
    Classification is a Strong Baseline for Deep Metric Learning, 2019, with 25 classes and 3 examples of each. That
    all take turns is ours: of independent draws some classes would come several times before others.
    """
    validation.positive_int("batch_size", batch_size)
    validation.integer("seed", seed, lowest=0)
    classes, shuffled = _of_classes(labels), functools.partial(_shuffled, seed)
    number = len(classes)
    per_batch = classes_per_batch(number, batch_size, examples_per_class)
    batches, resting = divmod(number, per_batch)
    # Cycles after which all have sat out equally often, and those who do are chosen anew.
    cycles = number // math.gcd(number, resting)

    @functools.lru_cache(maxsize=2)
    def turns_of(turn: int) -> np.ndarray:
        return shuffled(np.arange(number), *words(turn), 1)

    @functools.lru_cache(maxsize=2)
    def classes_of(cycle: int) -> np.ndarray:
        turn, place = divmod(cycle, cycles)
        return shuffled(np.roll(turns_of(turn), -place * resting)[resting:], *words(cycle), 0)

    # Of each class the order that is under way, and the next one, to which other threads may have come.
    @functools.lru_cache(maxsize=2 * number)
    def examples_of(label: int, order: int) -> np.ndarray:
        return shuffled(classes[label], *words(order), 2 + label)

    def group(label: int, cycle: int) -> np.ndarray:
        """A class's examples in a cycle; those of one that it sits out are not moved on to the next."""
        order, place = divmod(cycle, max(len(classes[label]) // examples_per_class, 1))
        first = place * examples_per_class
        return np.resize(examples_of(label, order)[first : first + examples_per_class], examples_per_class)

    def batch(step: int) -> np.ndarray:
        cycle, place = divmod(step, batches)
        chosen = classes_of(cycle)[place * per_batch : (place + 1) * per_batch]
        return np.concatenate([group(label, cycle) for label in chosen.tolist()])

    return batch


def classes_per_batch(classes: int, batch_size: int, examples_per_class: int) -> int:
    """P of the sampler ``"pk"``.

    Args:
      classes: how many have examples.
      batch_size: P · K.
      examples_per_class: K.

    Raises:
      ValueError: a batch size that K does not divide, or more classes in a batch than there are.

    Example:
      >>> classes_per_batch(100, 75, 3)
      25
    """
    validation.positive_int("examples_per_class", examples_per_class)
    per_batch, rest = divmod(batch_size, examples_per_class)
    if rest:
        raise ValueError(
            f"batch_size must be a multiple of examples_per_class = {examples_per_class} for sampler 'pk', "
            f"got {batch_size}"
        )
    if per_batch > classes:
        raise ValueError(
            f"sampler 'pk' draws batch_size / examples_per_class = {batch_size} / {examples_per_class} = {per_batch} "
            f"different classes, got {classes} that have examples"
        )
    return per_batch


def _of_classes(labels: np.ndarray) -> list[np.ndarray]:
    """The positions of each class that has some, int32."""
    rows = np.argsort(labels, kind="stable").astype(np.int32)
    return [part for part in np.split(rows, np.cumsum(np.bincount(labels))[:-1]) if len(part)]


def _shuffled(seed: int, array: np.ndarray, *which: int) -> np.ndarray:
    return np.random.default_rng([*words(seed), *which]).permutation(array)


def _weights(weights, samples=None):
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError("weights must be finite numbers >= 0 [examples], not all of them 0")
    if samples is not None and len(weights) != samples:
        raise ValueError(f"weights must be one for each of {samples} examples, got {len(weights)}")
    return weights


def _heights(weights: np.ndarray) -> np.ndarray:
    """Weights put on top of each other: where each one ends, up to the last that is not 0."""
    return np.cumsum(weights)[: np.flatnonzero(weights)[-1] + 1]


def _drawn(heights: np.ndarray, rng: np.random.Generator, number: int) -> np.ndarray:
    # From the right, so that an example of weight 0 has no height of its own; rounding may reach the very top.
    positions = np.searchsorted(heights, rng.random(number) * heights[-1], side="right")
    return positions.clip(max=len(heights) - 1).astype(np.int32)
