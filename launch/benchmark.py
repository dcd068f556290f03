"""Speed, as ratios of alternatives timed in turn in one run.

  python launch/benchmark.py pool

``pool``: one update of the feature pool at capacities of 50k, 500k and 5M (C = 1000, d = 64, batch 512), with
interference off and on; at iNaturalist 2018's shape (C = 8142, N = 437,513) against a recompute of all volumes from
the whole pool; and with interference at C = 8142 and C = 100,000.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import balancers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import reference

DIM, BATCH = 64, 512


def inaturalist_frequencies():
    """Long-tailed as iNaturalist 2018: 8,142 classes of 2 … 1,000 samples, 437,513 in all."""
    rank = np.linspace(0, 1, 8142)
    return 2 + 998 * rank ** (998 / (437_513 / 8142 - 2) - 1)


class Update:
    """A balancer whose pool is full, one step at a time."""

    def __init__(self, name, frequencies, capacity, *, interclass):
        rng = np.random.default_rng(0)
        self.num_classes = len(frequencies)
        capacity = -(-capacity // BATCH) * BATCH
        options = {"dim": DIM, "interclass": interclass, "batch_size": BATCH}
        balancer = balancers.semantic_scale(self.num_classes, capacity, **options)
        probability = frequencies / np.sum(frequencies)
        labels = rng.choice(self.num_classes, size=(256, BATCH), p=probability).astype(np.int32)
        self.batches = [(jnp.asarray(rng.normal(size=(BATCH, DIM)), jnp.float32), jnp.asarray(row)) for row in labels]
        self.step = 0
        self.state = balancer.init()
        self.update = jax.jit(balancer.update, donate_argnums=0).lower(self.state, *self.batches[0]).compile()
        begin = time.perf_counter()
        for done in range(capacity // BATCH):
            self()
            if sys.stderr.isatty() and done % 100 == 0:
                seconds = time.perf_counter() - begin
                left = seconds / (done + 1) * (capacity // BATCH - done)
                print(f"\r{name}: filling {done * BATCH:,}/{capacity:,}, ETA {left:.0f} s ", end="", file=sys.stderr)
        jax.block_until_ready(self.state)

    def __call__(self):
        weights, self.state = self.update(self.state, *self.batches[self.step % len(self.batches)])
        self.step += 1
        return weights


def in_turn(alternatives, rounds):
    """The median seconds of each, taken in turn so that whatever slows the machine slows all.

    Updates run ten in a row and count by the tenth: as in training, where nothing else sweeps the caches in between.
    """
    times = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            repeats = 10 if isinstance(run, Update) else 1
            begin = time.perf_counter()
            for _ in range(repeats):
                result = run()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - begin) / repeats)
    return {name: statistics.median(taken) for name, taken in times.items()}


def table(title, times, base):
    print(f"\n{title}\n{'':40} {'ms':>10} {'ratio':>8}")
    for name, seconds in times.items():
        print(f"{name:40} {1e3 * seconds:10.2f} {seconds / times[base]:8.2f}", flush=True)


def pool(rounds):
    """See the module's docstring."""
    print(f"jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}, batch {BATCH}, d = {DIM}")
    even = np.ones(1000)
    for interclass in (False, True):
        updates = {
            f"capacity {capacity:,}": Update(f"capacity {capacity:,}", even, capacity, interclass=interclass)
            for capacity in (50_000, 500_000, 5_000_000)
        }
        title = f"One update, C = 1000, interference {'on' if interclass else 'off'}"
        table(title, in_turn(updates, rounds), "capacity 50,000")
        del updates

    frequencies, examples = inaturalist_frequencies(), 437_513
    update = Update("update", frequencies, examples, interclass=False)
    both = Update("update with interference", frequencies, examples, interclass=True)
    ring = update.state.pool
    recompute = functools.partial(reference.recompute_volumes, ring.rows + 0, ring.labels + 0, update.num_classes)
    whole, streamed = np.asarray(recompute()), np.asarray(ring.volume[: update.num_classes])
    difference = np.max(np.abs(whole - streamed) / np.maximum(whole, 1.0))
    print(f"\nlargest relative difference of a volume from the recompute: {difference:.1e}")
    alternatives = {"update": update, "update with interference": both, "recompute from the whole pool": recompute}
    table(f"C = 8142, N = {examples:,}, long-tailed", in_turn(alternatives, rounds), "update")
    del update, both, ring, recompute, alternatives

    many = np.ones(100_000)
    updates = {
        f"C = 100,000, interference {'on' if on else 'off'}": Update(f"C = 100,000, {on}", many, 50_000, interclass=on)
        for on in (False, True)
    }
    table("One update, C = 100,000, N = 50,000", in_turn(updates, min(rounds, 5)), next(iter(updates)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["pool"])
    parser.add_argument("--rounds", type=int, default=15, help="how often each alternative is timed")
    arguments = parser.parse_args()
    globals()[arguments.benchmark](arguments.rounds)
