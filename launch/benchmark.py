"""Speed, as ratios of alternatives timed in turn in one run.

  python launch/benchmark.py pool
  python launch/benchmark.py overhead

``pool``: one update of the feature pool at capacities of 50k, 500k and 5M (C = 1000, d = 64, batch 512), with
interference off and on; at iNaturalist 2018's shape (C = 8142, N = 437,513) against a recompute of all volumes from
the whole pool; and with interference at C = 8142 and C = 100,000.

``overhead``: what a whole training step takes with balancer=dsb over what it takes with balancer=uniform, at CIFAR's
shape: 32x32 images, 10 and 100 classes, a pool of 50,000; and an update of the pool by itself.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.data import preprocess
from dsb_jax.training import optimizers
from dsb_jax.training.step import init_state, make_train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import reference

DIM, BATCH = 64, 512


def inaturalist_frequencies():
    """Long-tailed as iNaturalist 2018: 8,142 classes of 2 … 1,000 samples, 437,513 in all."""
    rank = np.linspace(0, 1, 8142)
    return 2 + 998 * rank ** (998 / (437_513 / 8142 - 2) - 1)


class Update:
    """A balancer whose pool is full, one step at a time.

    Updates run ten in a row and count by the tenth: as in training, where nothing else sweeps the caches in between.
    """

    repeats = 10

    def __init__(self, name, balancer, batches, fill):
        self.balancer, self.batches = balancer, batches
        self.step = 0
        self.state = balancer.init()
        self.update = jax.jit(balancer.update, donate_argnums=0).lower(self.state, *batches[0]).compile()
        begin = time.perf_counter()
        for done in range(fill):
            self()
            if done % 100 == 0:
                progress(f"{name}: filling {done:,}/{fill:,}", begin, done + 1, fill)
        jax.block_until_ready(self.state)

    def __call__(self):
        weights, self.state = self.update(self.state, *self.batches[self.step % len(self.batches)])
        self.step += 1
        return weights

    def copied_state(self):
        return jax.tree.map(jnp.copy, self.state)


class Training:
    """A run on 32x32 images, one step at a time."""

    def __init__(self, model, balancer, balancing, batch_size, num_classes):
        rng = np.random.default_rng(0)
        objective = objectives.Supervised(losses.create("cross_entropy"))
        rate = optimizers.schedule("linear", 0.1, 10_000, steps_per_epoch=50_000 / batch_size)
        optimizer = optimizers.optimizer("sgd", rate, momentum=0.9, weight_decay=5e-4)

        def preprocessing(images, rng):
            images = preprocess.augment(images, rng, flip=True, crop_padding=4)
            return preprocess.normalize(images, mean=(0.5,) * 3, std=(0.25,) * 3)

        shape = (batch_size, 32, 32, 3)
        state = init_state(model, objective, balancer, optimizer, jnp.zeros(shape), seed=0)
        self.state = dataclasses.replace(state, balancing=balancing)
        self.batch = {
            "image": jnp.asarray(rng.integers(0, 256, shape), jnp.uint8),
            "label": random_labels(rng, num_classes, batch_size),
        }
        self.step = make_train_step(model, objective, balancer, optimizer, preprocessing)
        for _ in range(2):  # The first also compiles.
            begin = time.perf_counter()
            jax.block_until_ready(self())
        self.repeats = math.ceil(0.5 / (time.perf_counter() - begin))  # so that to wait for the last costs nothing

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batch)
        return metrics


def random_labels(rng, num_classes, batch_size):
    return jnp.asarray(rng.integers(0, num_classes, batch_size), jnp.int32)


def progress(what, begin, done, steps):
    """A line that the next one overwrites."""
    if sys.stderr.isatty():
        left = (time.perf_counter() - begin) / done * (steps - done)
        print(f"\r\033[K{what}, ETA {left:.0f} s ", end="", file=sys.stderr, flush=True)


def in_turn(alternatives, rounds):
    """The seconds of each in every round; in turn, there and back, so that whatever slows the machine slows all."""
    times = {name: [] for name in alternatives}
    start = time.perf_counter()
    order = list(alternatives)
    for done in range(rounds):
        for name in order:
            run = alternatives[name]
            repeats = getattr(run, "repeats", 1)
            begin = time.perf_counter()
            for _ in range(repeats):
                result = run()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - begin) / repeats)
        order.reverse()
        progress(f"round {done + 1}/{rounds}", start, done + 1, rounds)
    return times


def table(title, times, base):
    """The median of each, and of its ratios to ``base`` within a round the median and the quartiles."""
    print(f"\n{title}\n{'':40} {'ms':>10} {'ratio':>8} {'quartiles':>16}")
    for name, seconds in times.items():
        low, ratio, high = np.percentile(np.divide(seconds, times[base]), (25, 50, 75))
        spread = "" if name == base else f"{low:8.4f} {high:7.4f}"
        print(f"{name:40} {1e3 * statistics.median(seconds):10.2f} {ratio:8.4f} {spread:>16}", flush=True)


def pool_update(name, frequencies, capacity, *, interclass):
    """An update of a full pool, of samples drawn with these ``frequencies`` of classes."""
    rng = np.random.default_rng(0)
    num_classes = len(frequencies)
    capacity = -(-capacity // BATCH) * BATCH
    balancer = balancers.semantic_scale(num_classes, capacity, dim=DIM, interclass=interclass, batch_size=BATCH)
    labels = rng.choice(num_classes, size=(256, BATCH), p=frequencies / np.sum(frequencies)).astype(np.int32)
    batches = [(jnp.asarray(rng.normal(size=(BATCH, DIM)), jnp.float32), jnp.asarray(row)) for row in labels]
    return Update(name, balancer, batches, capacity // BATCH)


def pool(rounds):
    """See the module's docstring."""
    print(f"{machine()}, batch {BATCH}, d = {DIM}")
    even = np.ones(1000)
    for interclass in (False, True):
        updates = {
            f"capacity {capacity:,}": pool_update(f"capacity {capacity:,}", even, capacity, interclass=interclass)
            for capacity in (50_000, 500_000, 5_000_000)
        }
        title = f"One update, C = 1000, interference {'on' if interclass else 'off'}"
        table(title, in_turn(updates, rounds), "capacity 50,000")
        del updates

    frequencies, examples = inaturalist_frequencies(), 437_513
    update = pool_update("update", frequencies, examples, interclass=False)
    both = pool_update("update with interference", frequencies, examples, interclass=True)
    ring = update.state.pool
    recompute = functools.partial(reference.recompute_volumes, ring.rows + 0, ring.labels + 0, len(frequencies))
    whole, streamed = np.asarray(recompute()), np.asarray(ring.volume[: len(frequencies)])
    difference = np.max(np.abs(whole - streamed) / np.maximum(whole, 1.0))
    print(f"\nlargest relative difference of a volume from the recompute: {difference:.1e}")
    alternatives = {"update": update, "update with interference": both, "recompute from the whole pool": recompute}
    table(f"C = 8142, N = {examples:,}, long-tailed", in_turn(alternatives, rounds), "update")
    del update, both, ring, recompute, alternatives

    many = np.ones(100_000)
    updates = {
        f"C = 100,000, interference {'on' if on else 'off'}": pool_update(
            f"C = 100,000, {on}", many, 50_000, interclass=on
        )
        for on in (False, True)
    }
    table("One update, C = 100,000, N = 50,000", in_turn(updates, min(rounds, 5)), next(iter(updates)))


def overhead(rounds, name, batch_size):
    """See the module's docstring."""
    capacity = round(50_000 / batch_size) * batch_size
    print(f"{machine()}, {name}, batch {batch_size}, a pool of {capacity:,}")
    for num_classes in (10, 100):
        model = models.create(name, num_classes)
        if hasattr(model.backbone, "stem"):
            model = models.create(name, num_classes, stem="cifar")
        update, without = (
            training_update(model, num_classes, batch_size, capacity, interclass=on) for on in (True, False)
        )
        updates = {"update alone, interference on": update, "update alone, interference off": without}
        uniform = balancers.uniform(num_classes)
        alternatives = {
            "balancer=uniform": Training(model, uniform, uniform.init(), batch_size, num_classes),
            "balancer=dsb": Training(model, update.balancer, update.copied_state(), batch_size, num_classes),
        }
        times = in_turn(alternatives, rounds) | in_turn(updates, rounds)
        table(f"A training step, C = {num_classes}", times, "balancer=uniform")


def training_update(model, num_classes, batch_size, capacity, *, interclass):
    """An update of a full pool, with random features of the model's dimension."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32)
    outputs, _ = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)
    balancer = balancers.semantic_scale(num_classes, capacity, interclass=interclass, batch_size=batch_size)
    batches = [
        (jnp.asarray(rng.normal(size=outputs.features.shape), jnp.float32), random_labels(rng, num_classes, batch_size))
        for _ in range(16)
    ]
    return Update(f"pool of {num_classes} classes", balancer, batches, capacity // batch_size)


def machine():
    return f"jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    of_pool = benchmarks.add_parser("pool")
    of_overhead = benchmarks.add_parser("overhead")
    of_overhead.add_argument(
        "--model", default="resnet18", help="with the cifar stem, where it has stems (%(default)s)"
    )
    of_overhead.add_argument("--batch-size", type=int, default=128, help="(%(default)s)")
    for chosen, rounds in ((of_pool, 15), (of_overhead, 9)):
        chosen.add_argument(
            "--rounds", type=int, default=rounds, help="how often each alternative is timed (%(default)s)"
        )
    arguments = parser.parse_args()
    if arguments.benchmark == "pool":
        pool(arguments.rounds)
    else:
        overhead(arguments.rounds, arguments.model, arguments.batch_size)
