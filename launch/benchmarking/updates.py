"""One update of the feature pool, whole or in parts, and a recompute of all that it keeps up to date."""

import dataclasses
import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.timing import in_turn, machine, table
from dsb_jax import balancers, feature_pool, interference
from dsb_jax.data import spec

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests"))
import reference

DIM, BATCH = 64, 512
# What an update writes, in the order in which one part needs what another has written.
OF_RING = "rows", "labels", "next_rows", "next_labels", "cursor", "entered", "passes", "rejected"
PARTS = {
    "the call itself": (),
    "ring: write, read ahead": OF_RING,
    "sort, counts, centres": ("begun", "count", "anchor", "total", "center"),
    "second moments": ("moment",),
    "factorizations": ("volume", "failed"),
    "interference": ("centers", "present", "distances"),
    "weights": (),
}


class Update:
    """A balancer from a state on, one step at a time; with ``parts`` only the first so many of an update's.

    Updates run ten in a row and count by the tenth: as in training, where nothing else sweeps the caches in between.
    """

    repeats = 10

    def __init__(self, balancer, batches, state, parts=None):
        self.batches, self.state, self.step = batches, state, 0
        written = {name for names in itertools.islice(PARTS.values(), parts) for name in names}

        def update(state, features, labels):
            weights, new = balancer.update(state, features, labels)
            if parts in (None, len(PARTS)):
                return weights, new
            # What nobody asks for is not computed: XLA leaves out all that serves the rest alone.
            return (), jax.tree.map_with_path(lambda path, n, o: n if path[-1].name in written else o, new, state)

        self.update = jax.jit(update, donate_argnums=0).lower(state, *batches[0]).compile()
        jax.block_until_ready(self())

    def __call__(self):
        _, self.state = self.update(self.state, *self.batches[self.step % len(self.batches)])
        self.step += 1
        return self.state


def filled(balancer, counts):
    """A state after one pass of random features, with classes as frequent as ``counts``.

    The statistics are those of a pool without a batch size, which takes in many rows at a time: batch by batch, filling
    a large pool would take longer than what is timed.
    """
    state = balancer.init()
    pool = state.pool
    labels = random_labels(np.random.default_rng(1), counts, pool.capacity)
    rows = jax.random.normal(jax.random.key(1), (pool.capacity, pool.rows.shape[-1]))
    whole = feature_pool.init(*rows.shape, pool.num_classes)
    whole = dataclasses.replace(whole, rows=rows, labels=jnp.asarray(labels), passes=whole.passes + 1)
    whole = feature_pool.rebuild(whole)
    rows, labels = rows.reshape(pool.rows.shape), whole.labels.reshape(pool.labels.shape)
    of_whole = {name: getattr(whole, name) for name in ("passes", "statistics", "count", "center", "volume")}
    pool = dataclasses.replace(pool, rows=rows, labels=labels, next_rows=rows[0], next_labels=labels[0], **of_whole)
    distances = state.interference
    if distances is not None:
        distances = jax.jit(interference.update)(distances, feature_pool.centers(pool), feature_pool.counts(pool) > 0)
    return dataclasses.replace(state, pool=pool, interference=distances)


def random_labels(rng, counts, shape):
    return rng.choice(len(counts), shape, p=counts / np.sum(counts)).astype(np.int32)


def random_batches(counts, batch_size, dim, number):
    rng = np.random.default_rng(0)
    labels = random_labels(rng, counts, (number, batch_size))
    return [(jnp.asarray(rng.normal(size=(batch_size, dim)), jnp.float32), jnp.asarray(row)) for row in labels]


def balancer_of(counts, batch_size, **options):
    """DSB with a pool of an epoch, in whole batches, as the trainer has it."""
    capacity = max(round(int(np.sum(counts)) / batch_size), 1) * batch_size
    return balancers.semantic_scale(len(counts), capacity, batch_size=batch_size, **options)


def pool_update(counts, capacity, *, interclass):
    """An update of a full pool, of samples drawn with the frequencies of ``counts``."""
    capacity = -(-capacity // BATCH) * BATCH
    balancer = balancers.semantic_scale(len(counts), capacity, dim=DIM, interclass=interclass, batch_size=BATCH)
    return Update(balancer, random_batches(counts, BATCH, DIM, 256), filled(balancer, counts))


def pool(rounds):
    """Prints what ``launch/benchmark.py pool`` is."""
    print(f"{machine()}, batch {BATCH}, d = {DIM}")
    even = np.ones(1000)
    for interclass in (False, True):
        updates = {
            f"capacity {capacity:,}": pool_update(even, capacity, interclass=interclass)
            for capacity in (50_000, 500_000, 5_000_000)
        }
        title = f"One update, C = 1000, interference {'on' if interclass else 'off'}"
        table(title, in_turn(updates, rounds), "capacity 50,000")
        del updates

    counts = spec("inat2018").train_counts()
    examples = int(counts.sum())
    update, both = (pool_update(counts, examples, interclass=on) for on in (False, True))
    ring = update.state.pool
    recompute = recompute_of(ring)
    whole, streamed = np.asarray(recompute()), np.asarray(feature_pool.volumes(ring))
    difference = np.max(np.abs(whole - streamed) / np.maximum(whole, 1.0))
    print(f"\nlargest relative difference of a volume from the recompute: {difference:.1e}")
    alternatives = {"update": update, "update with interference": both, "recompute from the whole pool": recompute}
    table(f"C = 8142, N = {examples:,}, long-tailed", in_turn(alternatives, rounds), "update")
    del update, both, ring, recompute, alternatives

    many = np.ones(100_000)
    updates = {
        f"C = 100,000, interference {'on' if on else 'off'}": pool_update(many, 50_000, interclass=on)
        for on in (False, True)
    }
    table("One update, C = 100,000, N = 50,000", in_turn(updates, min(rounds, 5)), next(iter(updates)))


def recompute_of(ring):
    """All volumes from all rows of a pool as it is now, which goes on to change; compiled."""
    recompute = functools.partial(reference.recompute_volumes, ring.rows + 0, ring.labels + 0, ring.num_classes)
    jax.block_until_ready(recompute())
    return recompute


def copied(state):
    """For a step that is given its state away."""
    return jax.tree.map(jnp.copy, state)
