"""Speed, as ratios of alternatives timed in turn in one run.

  python launch/benchmark.py pool
  python launch/benchmark.py overhead
  python launch/benchmark.py overhead --shape=inat2018
  python launch/benchmark.py table11
  python launch/benchmark.py data
  python launch/benchmark.py train --model=resnet50 --batch-size=256 --dtype=bfloat16
  python launch/benchmark.py retrieval
  python launch/benchmark.py toolkit
  python launch/benchmark.py imports

``pool``: one update of the feature pool at capacities of 50k, 500k and 5M (C = 1000, d = 64, batch 512), with
interference off and on; at iNaturalist 2018's shape (C = 8142, N = 437,513) against a recompute of all volumes from
the whole pool; and with interference at C = 8142 and C = 100,000.

``overhead``: what a whole training step takes with balancer=dsb over what it takes with balancer=uniform, in time and
in memory; an update of the pool by itself, with interference and without, and where its time goes; and a recompute of
all volumes from the whole pool. At CIFAR's shape, 32x32 images, 10 and 100 classes, a pool of 50,000; or at iNaturalist
2018's, ResNet-50, 224x224, batch 512, C = 8142, N = 437,513. Options shrink a shape, for a trial where it does not fit.

``table11``: DSB-SoftTriple against SoftTriple in iterations per second and in memory, beside the paper's Table 11, in
its five settings. Pixels are made up, classes drawn with each dataset's own counts. The paper says neither the batch
sizes, which here are those of its other experiments on the same data (256 and 512 long-tailed, 32 in retrieval), nor
the backbone, BN-Inception elsewhere, of which ResNet-50 takes the place here. As in SoftTriple's own code, batch
normalisation is frozen, the optimizer is Adam and every class has 10 centres. Each dataset has a process of its own,
and SoftTriple comes first in it, so that the device's peak is of what is running.

``data``: images per second of this pipeline, ``tf.data`` and PyTorch's ``DataLoader``: of 32x32, flipped and cropped
after padding; and of JPEG files of 500x375, of which random parts are resized to 224x224 and flipped. And the share of
its time that training waits for them. All have the same cores: this pipeline as many threads, ``tf.data`` a private
pool of as many, ``DataLoader`` as many workers. All end with augmented batches on JAX's device. Each has its images
where they mostly are: this pipeline in ArrayRecord files, ``tf.data`` in TFRecord files, ``DataLoader`` in image files,
and both of them the small ones in memory. A rival that is not installed is left out. ``--images`` takes JPEG files of
one's own instead of made-up ones.

``train``: images per second of a training step on made-up pixels that are on the device already, with balancer=uniform;
the model's operations per second, three times those of a forward pass, and what share that is of what one large
product of matrices reaches on the same device; and the memory. Beside it timm's network of the same name in PyTorch,
compiled, channels last, with autocast for bfloat16, where both are installed: python -m pip install torch timm.

``retrieval``: R-precision, MAP@R and precision at 1, of one search, of 50,000 embeddings of 64 numbers in classes of
500 and of 10, every one a query; beside pytorch-metric-learning's ``AccuracyCalculator``, whose search is FAISS's, on
the same embeddings and device; and by how much results differ. Ours starts from arrays on the host, and the rival where
its device is. And our time alone for 1000 queries in galleries of 100,000 and a million. The rival is left out where it
is not installed: python -m pip install torch pytorch-metric-learning faiss-cpu.

``toolkit``: the volumes of all of 1000 classes of a million embeddings of 64 numbers, in no order, against the time to
read them with NumPy, from memory and, where the system can be asked to forget a file, from the disk; and against the
package of Ma et al., perceptual_manifold_geometry, class by class, with the search for the rows of a class, which its
users have to do, and without. The package is left out where it is not installed. And the curvature of 500 points beside
the algorithm that they published: as it takes each point by itself, it takes as much longer for more points.

``imports``: a new interpreter that imports dsb_jax, one that imports its trainer and one that imports its toolkit,
against one that imports jax.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import math
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from array_record.python import array_record_data_source, array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax import (
    balancers,
    command_line,
    evaluation,
    feature_pool,
    interference,
    losses,
    models,
    objectives,
    validation,
)
from dsb_jax.data import feed, images, preprocess, spec
from dsb_jax.data.decoding import Decoding
from dsb_jax.data.records import RecordSource, Split
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.neighbourhoods import curvature, nearest
from dsb_jax.training import optimizers
from dsb_jax.training.step import init_state, make_train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import reference
import rivals

DIM, BATCH = 64, 512
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a training step is timed at; ``counts`` makes training images per class, of one dataset or several."""

    model: str
    image_size: int
    batch_size: int
    counts: Callable[[], list[np.ndarray]]


SHAPES = {
    "cifar": Shape("resnet18", 32, 128, lambda: [np.full(10, 5000), np.full(100, 500)]),
    "inat2018": Shape("resnet50", 224, 512, lambda: [spec("inat2018").train_counts()]),
}

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


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the paper's Table 11, of SoftTriple and DSB-SoftTriple, and what it does not say: the batch size."""

    protocol: str
    batch_size: int
    paper_speeds: tuple[float, float]  # iterations per second, on four 2080 Ti
    paper_memory: tuple[float, float]  # GB


SETTINGS = {
    "imagenet_lt": Setting("classification", 256, (6.01, 5.56), (24.29, 24.75)),
    "inat2018": Setting("classification", 512, (3.32, 3.03), (45.13, 46.88)),
    "cars196": Setting("retrieval", 32, (20.21, 18.95), (3.491, 4.097)),
    "cub2011": Setting("retrieval", 32, (21.95, 18.58), (3.225, 3.647)),
    "mini_imagenet": Setting("retrieval", 32, (23.34, 20.36), (3.491, 3.713)),
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


class Training:
    """A run on square images, one step at a time."""

    def __init__(self, model, balancer, balancing, counts, batch_size, size=32, objective=None, optimizer=None):
        rng = np.random.default_rng(0)
        rate = optimizers.schedule("linear", 0.1, 10_000, steps_per_epoch=50_000 / batch_size)
        optimizer = optimizer or optimizers.optimizer("sgd", rate, momentum=0.9, weight_decay=5e-4)
        objective = objective or objectives.Supervised(losses.create("cross_entropy"))
        self.initial = model, objective, balancers.uniform(len(counts)), optimizer

        def preprocessing(images, rng):
            images = preprocess.augment(images, rng, flip=True, crop_padding=4 if size < 64 else 0)
            return preprocess.normalize(images, mean=(0.5,) * 3, std=(0.25,) * 3)

        images = jnp.asarray(rng.integers(0, 256, (batch_size, size, size, 3)), jnp.uint8)
        labels = random_labels(rng, counts, (16, batch_size))
        self.batches = [{"image": images, "label": jnp.asarray(row)} for row in labels]
        self.step, self.done = make_train_step(model, objective, balancer, optimizer, preprocessing), 0
        self.start(balancing)
        for _ in range(2):  # The first also compiles.
            begin = time.perf_counter()
            jax.block_until_ready(self())
        self.repeats = math.ceil(0.5 / (time.perf_counter() - begin))  # so that to wait for the last costs nothing

    def start(self, balancing):
        """A new state, with the balancer's given."""
        images = jnp.zeros(self.batches[0]["image"].shape)
        self.state = dataclasses.replace(init_state(*self.initial, images, seed=0), balancing=balancing)

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batches[self.done % len(self.batches)])
        self.done += 1
        return metrics

    def memory(self):
        """Bytes of the compiled step: what goes in or comes out, once where one becomes the other, and temporaries."""
        size = self.step.lower(self.state, self.batches[0]).compile().memory_analysis()
        arguments = size.argument_size_in_bytes - size.alias_size_in_bytes
        return arguments + size.output_size_in_bytes + size.temp_size_in_bytes


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


def pool_update(counts, capacity, *, interclass):
    """An update of a full pool, of samples drawn with the frequencies of ``counts``."""
    capacity = -(-capacity // BATCH) * BATCH
    balancer = balancers.semantic_scale(len(counts), capacity, dim=DIM, interclass=interclass, batch_size=BATCH)
    return Update(balancer, random_batches(counts, BATCH, DIM, 256), filled(balancer, counts))


def pool(rounds):
    """See the module's docstring."""
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

    (counts,) = SHAPES["inat2018"].counts()
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


def overhead(rounds, shape, dtype):
    """See the module's docstring."""
    size, batch_size = shape.image_size, shape.batch_size
    print(f"{machine()}, {shape.model} in {dtype}, {size}x{size}, batch {batch_size}")
    for counts in shape.counts():
        model = model_of(shape.model, len(counts), size, dtype)
        images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
        outputs, _ = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)
        batches = random_batches(counts, batch_size, outputs.features.shape[1], 16)
        state = filled(balancer_of(counts, batch_size), counts)
        plain = overhead_of_steps(rounds, model, state, counts, batches, size)
        overhead_of_parts(rounds, state, counts, batches, plain)


def model_of(name, num_classes, size, dtype):
    """A classifier, with the stem for small images where they are."""
    stem = {"stem": "cifar"} if models.takes(name, "stem") and size < 64 else {}
    return models.create(name, num_classes, dtype=dtype, **stem)


def overhead_of_steps(rounds, model, state, counts, batches, size):
    """Prints what whole steps take, in time and memory, and returns the times of the plain one."""
    batch_size = len(batches[0][1])
    uniform, dsb = balancers.uniform(len(counts)), balancer_of(counts, batch_size)
    without = balancer_of(counts, batch_size, interclass=False)
    alone = {
        "update alone, interference on": Update(dsb, batches, copied(state)),
        "update alone, interference off": Update(
            without, batches, copied(dataclasses.replace(state, interference=None))
        ),
        "recompute from the whole pool, alone": recompute_of(state.pool),
    }
    steps = {
        "balancer=uniform": Training(model, uniform, uniform.init(), counts, batch_size, size),
        "balancer=dsb": Training(model, dsb, copied(state), counts, batch_size, size),
    }
    times = in_turn(steps, rounds) | in_turn(alone, rounds)
    table(f"A training step, C = {len(counts):,}, a pool of {state.pool.capacity:,}", times, "balancer=uniform")
    plain, more = (training.memory() for training in steps.values())
    state_bytes = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(jax.eval_shape(dsb.init)))
    print(
        f"memory of the compiled step: {mib(plain)}, with dsb {mib(more)}: {mib(more - plain)} more, which is "
        f"{(more - plain) / state_bytes:.4f} of the pool and its statistics, {mib(state_bytes)}"
    )
    left_out = int(steps["balancer=dsb"].state.balancing.pool.rejected)
    if left_out:
        print(f"{left_out:,} rows were not finite: what was timed did not do all the work")
    return times["balancer=uniform"]


def overhead_of_parts(rounds, state, counts, batches, plain):
    """Prints what each part of an update adds to the parts before it, and what share of a plain step that is."""
    balancer = balancer_of(counts, len(batches[0][1]))
    parts = {name: Update(balancer, batches, copied(state), number) for number, name in enumerate(PARTS, start=1)}
    times = np.array(list(in_turn(parts, rounds).values()))
    print(f"\n{'Of an update alone':40} {'ms':>10} {'of it':>8} {'of a step':>10}")
    for name, added in zip(PARTS, np.diff(times, axis=0, prepend=0.0), strict=True):
        of_update, of_step = (100 * np.median(added / whole) for whole in (times[-1], plain))
        print(f"{name:40} {1e3 * np.median(added):10.3f} {of_update:7.1f}% {of_step:9.3f}%", flush=True)


def copied(state):
    """For a step that is given its state away."""
    return jax.tree.map(jnp.copy, state)


def mib(size):
    return f"{size / 2**20:,.1f} MiB"


class Embedded(NamedTuple):
    """Embeddings ``[batch, dim]``, of length 1, and SoftTriple's centres ``[classes, centres, dim]``."""

    features: jax.Array
    centers: jax.Array


class Embedding(nn.Module):
    """A backbone under an embedding, and the centres of the classes, which are parameters too."""

    backbone: nn.Module
    num_classes: int
    dim: int = DIM
    centers: int = 10

    @nn.compact
    def __call__(self, images, *, train):
        del train  # Batch normalisation is frozen.
        features = self.backbone(images, train=False).astype(jnp.float32)
        embedding = nn.Dense(self.dim)(features)
        length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(embedding), axis=1, keepdims=True), 1e-12))
        shape = (self.num_classes, self.centers, self.dim)
        return Embedded(embedding / length, self.param("centers", nn.initializers.normal(), shape))


class SoftTriple:
    """The loss, whose terms have a class's weight, and the regularizer, which has none."""

    views, samplers = 1, ("plain",)

    def init(self, rng, variables, outputs):
        return ()

    def __call__(self, forward, batch, state, rng):
        (embeddings, centers), labels = forward(batch["image"]), batch["label"]
        apart = jnp.broadcast_to(losses.soft_triple_regularizer(centers), labels.shape)
        terms = [
            objectives.Term(losses.soft_triple(embeddings, labels, centers=centers), labels),
            objectives.Term(apart, None, scale=0.2),
        ]
        return objectives.Result(terms, embeddings, labels, None, state, {})

    def after_update(self, state, params):
        return state


def table11(rounds, names, model, batch_size, size, dtype):
    """See the module's docstring."""
    # This process leaves the device's memory to the others.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        print(f"{processes.submit(machine).result()}, {model} in {dtype}, {size}x{size}")
        columns = "it/s", "quartiles", "paper's", "GB, compiled", "GB, device's peak", "paper's"
        widths = [16 if column == "quartiles" else 26 for column in columns]
        titles = [f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)]
        print(f"{'SoftTriple → with DSB':26}{'C':>6}{'N':>9}{'batch':>6}" + "".join(titles))
        for name in names:
            size_of_batch = batch_size or SETTINGS[name].batch_size
            arguments = rounds, name, model, size_of_batch, size, dtype
            counts, *cells = processes.submit(soft_triple_row, *arguments).result()
            cells = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
            print(f"{name:26}{len(counts):6,}{counts.sum():9,}{size_of_batch:6}" + "".join(cells), flush=True)


def soft_triple_row(rounds, name, backbone, batch_size, size, dtype):
    """A dataset's counts and the cells of its row. Peaks only rise: so SoftTriple alone is first, and then away."""
    setting = SETTINGS[name]
    counts = spec(name).train_counts(setting.protocol)
    model = Embedding(model_of(backbone, 1, size, dtype).backbone, len(counts))
    rate = optimizers.schedule("constant", 1e-4, 10_000, steps_per_epoch=1000)
    optimizer = optimizers.optimizer("adam", rate, adam_epsilon=0.01, weight_decay=1e-4)

    def training(balancer, balancing):
        return Training(model, balancer, balancing, counts, batch_size, size, SoftTriple(), optimizer)

    uniform, dsb = balancers.uniform(len(counts)), balancer_of(counts, batch_size)
    plain = training(uniform, uniform.init())
    peaks, plain.state, plain.batches = [peak()], None, None
    more = training(dsb, filled(dsb, counts))
    peaks.append(peak())
    plain.batches = more.batches
    plain.start(uniform.init())

    times = in_turn({"plain": plain, "more": more}, rounds)
    speeds = [1 / statistics.median(seconds) for seconds in times.values()]
    low, ratio, high = np.percentile(np.divide(times["plain"], times["more"]), (25, 50, 75))
    return (
        counts,
        pair(speeds, 2, ratio),
        f"{low:.4f} {high:.4f}",
        pair(setting.paper_speeds, 2),
        pair([plain.memory() / 1e9, more.memory() / 1e9], 3),
        pair([each / 1e9 for each in peaks], 3) if all(peaks) else "not told",
        pair(setting.paper_memory, 2),
    )


def pair(values, digits, ratio=None):
    first, second = values
    return f"{first:,.{digits}f} → {second:,.{digits}f} ({ratio or second / first:.4f})"


def peak():
    """The most bytes that this process has had on the device so far; None where the device does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Records:
    """A split of images on disk, and where the rivals find the same images.

    ``files`` are encoded images, ``stored`` what a ``DataLoader`` starts from, ``decoding`` what ours does.
    """

    def __init__(self, name, files, stored, decoding, folder):
        self.stored, self.decoding = stored, decoding
        self.labels = np.random.default_rng(0).integers(0, 10, len(files)).astype(np.int32)
        self.serialized = [serialized(file, label) for file, label in zip(files, self.labels.tolist(), strict=True)]
        self.path = str(pathlib.Path(folder) / name)
        writer = array_record_module.ArrayRecordWriter(f"{self.path}.array_record", "group_size:1")
        for example in self.serialized:
            writer.write(example)
        writer.close()
        records = array_record_data_source.ArrayRecordDataSource([f"{self.path}.array_record"])
        source = RecordSource(records, where=name, num_classes=10, decoding=decoding)
        self.split = Split(name, "train", source, tuple("0123456789"), decoding.shape, decoding.random)


def ours(records, batch_size, crop_padding):
    """This pipeline: batches on the device, flipped and cropped."""

    @jax.jit
    def augmented(batch, step):
        rng = jax.random.fold_in(jax.random.key(0), step)
        return batch | {"image": preprocess.augment(batch["image"], rng, flip=True, crop_padding=crop_padding)}

    def of(resident_bytes):
        examples = feed.Examples(records.split, resident_bytes=resident_bytes)
        return lambda: map(augmented, examples.shuffled(batch_size, seed=0), itertools.count())

    streamed = {"ours, streamed": of(0)}
    return streamed if records.decoding.random else streamed | {"ours, resident": of(2**30)}


def serialized(file, label):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(file)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def photograph(rng, height, width):
    """Made up, with the spectrum, the edges and the grain of one: uint8 ``[height, width, 3]``."""
    picture = np.full((height, width, 3), rng.uniform(60, 200, 3))
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = rng.normal(size=(cells, cells, 1)) + 0.3 * rng.normal(size=(cells, cells, 3))
        picture += 60 / cells**0.6 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        corners = rng.uniform(0, 1, 2) + rng.normal(size=(5, 2)) * 0.15
        shape = np.zeros((height, width), np.float32)
        cv2.fillConvexPoly(shape, cv2.convexHull((corners * (width, height)).astype(np.int32)), 1.0)
        picture += shape[..., None] * rng.normal(size=3) * 25
    picture += rng.normal(size=picture.shape[:2])[..., None] * 5
    return np.clip(picture, 0, 255).astype(np.uint8)


def small_records(folder, number=50_000):
    """Images of CIFAR's size, cut out of made-up photographs."""
    rng = np.random.default_rng(0)
    pages = [cv2.resize(photograph(rng, 375, 500), (250, 188), interpolation=cv2.INTER_AREA) for _ in range(50)]
    corners = zip(rng.integers(0, 156, number).tolist(), rng.integers(0, 218, number).tolist(), strict=True)
    stored = np.stack([pages[row % 50][top : top + 32, left : left + 32] for row, (top, left) in enumerate(corners)])
    files = [images.encode_png(image) for image in stored]
    return Records("small", files, stored, Decoding.of("small", (32, 32, 3)), folder)


def jpeg_files(directory):
    """Of a folder and those in it."""
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"--images must be a folder of JPEG files, got {str(directory)!r}, which has none")
    return paths


def photograph_records(folder, directory, number=500):
    """JPEG files, those of a directory or made-up ones."""
    if directory is None:
        directory, rng = pathlib.Path(folder) / "jpeg", np.random.default_rng(0)
        directory.mkdir()
        for row in range(number):
            picture = photograph(rng, 375, 500)[..., ::-1]
            cv2.imwrite(str(directory / f"{row}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    paths = jpeg_files(directory)
    paths = paths[: 4 * number]
    print(f"{len(paths)} JPEG files of {statistics.mean(path.stat().st_size for path in paths) / 1024:.0f} KiB")
    paths *= -(-number // len(paths))
    files = [path.read_bytes() for path in paths]
    decoding = Decoding.of("photographs", (None, None, 3), image_size=224, random_crop="resize")
    return Records("photographs", files, paths, decoding, folder)


def tf_data(records, batch_size, cores, augmented):
    """``tf.data`` with a private pool of ``cores`` threads: of TFRecord files one by one, in memory batch by batch."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def of_record(record):
        example = tf.io.parse_single_example(record, features)
        return augmented(example["image"]), tf.cast(example["label"], tf.int32)

    def of_batch(batch, labels):
        return augmented(batch), labels

    if records.decoding.random:
        with tf.io.TFRecordWriter(f"{records.path}.tfrecord") as writer:
            for example in records.serialized:
                writer.write(example)
        examples = tf.data.TFRecordDataset(f"{records.path}.tfrecord").shuffle(len(records.labels)).repeat()
        batches = examples.map(of_record, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    else:
        examples = tf.data.Dataset.from_tensor_slices((records.stored, records.labels))
        examples = examples.shuffle(len(records.labels)).repeat()
        batches = examples.batch(batch_size).map(of_batch, num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.prefetch(tf.data.AUTOTUNE).with_options(options)
    return lambda: map(jax.device_put, batches.as_numpy_iterator())


def shifted_by_tf(batch):
    """A whole batch at once: image by image, as it is mostly written, takes four times as long."""
    import tensorflow as tf

    number = tf.shape(batch)[0]
    first = tf.random.uniform([2, number, 1], 0, 9, tf.int32)
    rows, columns = first[0] + tf.range(32), first[1] + tf.range(32)
    columns = tf.where(tf.random.uniform([number, 1]) < 0.5, tf.reverse(columns, [1]), columns)
    cropped = tf.gather(tf.pad(batch, [[0, 0], [4, 4], [4, 4], [0, 0]]), rows, batch_dims=1)
    return tf.gather(cropped, tf.broadcast_to(columns[:, None], [number, 32, 32]), batch_dims=2)


def cut_by_tf(encoded):
    """As in TensorFlow's own ResNet: what lies outside of the crop is not decoded."""
    import tensorflow as tf

    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(encoded),
        tf.zeros([1, 0, 4]),
        min_object_covered=0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], size[:2]], 0), channels=3)
    return tf.image.random_flip_left_right(tf.cast(tf.image.resize(image, (224, 224)), tf.uint8))


@dataclasses.dataclass
class ForDataLoader:
    """A dataset of PyTorch's; ``transform`` makes a Pillow image of one that is stored, with torchvision's steps."""

    stored: object
    labels: np.ndarray
    transform: object

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        import torch

        image = np.array(self.transform(self.stored[index], np.random.default_rng(torch.randint(2**62, ()).item())))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous().to(torch.float32).div(255), self.labels[index]


def shifted_by_pillow(stored, rng):
    padded = PIL.Image.fromarray(np.pad(stored, [(4, 4), (4, 4), (0, 0)]))
    left, top = rng.integers(0, 9, 2).tolist()
    return flipped(padded.crop((left, top, left + 32, top + 32)), rng)


def cut_by_pillow(path, rng):
    with open(path, "rb") as file:
        image = PIL.Image.open(file).convert("RGB")
    top, left, bottom, right = images._draw_rectangle(*image.size[::-1], rng, (0.08, 1), (3 / 4, 4 / 3))
    part = image.crop((left, top, right, bottom))
    return flipped(part.resize((224, 224), PIL.Image.Resampling.BILINEAR), rng)


def flipped(image, rng):
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def data_loader(records, batch_size, cores, transform):
    """PyTorch's, with ``cores`` workers that stay; they are started anew, since JAX's threads do not survive a fork."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        ForDataLoader(records.stored, records.labels, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def start():
        while True:
            for batch in loader:
                yield jax.device_put([array.numpy() for array in batch])

    return start


def pace(start, batch_size, seconds):
    """Images per second once as much time has passed without a count, so that nothing read ahead is left."""
    batches = start()
    jax.block_until_ready(next(batches))  # workers may take long to start
    for _ in range(2):
        begin, done = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            jax.block_until_ready(next(batches))
            done += 1
    return done * batch_size / (time.perf_counter() - begin)


def paces(title, alternatives, batch_size, rounds, cores, seconds=3):
    """The median rate of each, and the median and the quartiles of what it is to each rival's in the same round."""
    rates = {name: [] for name in alternatives}
    order, begin = list(alternatives), time.perf_counter()
    for done in range(rounds):
        for name in order:
            rates[name].append(pace(alternatives[name], batch_size, seconds))
        order.reverse()
        progress(f"round {done + 1}/{rounds}", begin, done + 1, rounds)
    rivals = [name for name in alternatives if not name.startswith("ours")]
    print(f"\n{title}\n{'':24} {'images/s':>9} {'per core':>9}" + "".join(f"{f'of {name}':>26}" for name in rivals))
    for name, own in rates.items():
        columns = [np.percentile(np.divide(own, rates[rival]), (25, 50, 75)) for rival in rivals]
        ratios = "".join(f"{f'{ratio:.2f} ({low:.2f} … {high:.2f})':>26}" for low, ratio, high in columns)
        print(f"{name:24} {statistics.median(own):9,.0f} {statistics.median(own) / cores:9,.0f}{ratios}", flush=True)


def waiting(title, training, start, steps):
    """The share of its time that training waits for batches, one step being under way while the next is asked for."""
    batches, waited, running = start(), 0.0, training()
    training.batches = [next(batches)]  # what starts with the first is not waited for again
    begin = time.perf_counter()
    for done in range(steps):
        asked = time.perf_counter()
        training.batches = [next(batches)]
        waited += time.perf_counter() - asked
        ahead, running = running, training()
        jax.block_until_ready(ahead)
        progress(title, begin, done + 1, steps)
    jax.block_until_ready(running)
    total = time.perf_counter() - begin
    print(f"{title:52} {100 * waited / total:6.2f} % of a step of {1e3 * total / steps:,.0f} ms", flush=True)


def data(rounds, directory, cores):
    """See the module's docstring."""
    if directory is not None:
        jpeg_files(directory)  # before all else takes its time
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cores = len(os.sched_getaffinity(0))
    missing = {name for name in ("tensorflow", "torch") if importlib.util.find_spec(name) is None}
    for name in sorted(missing):
        print(f"{name} is not installed, and left out")
    print(f"{machine()}, {cores} cores")
    with tempfile.TemporaryDirectory() as folder:
        small = "32x32", small_records(folder), 128, 4
        large = "500x375 to 224x224", photograph_records(folder, directory), 64, 0
        for (title, records, batch_size, padding), by_tf, by_pillow in (
            (small, shifted_by_tf, shifted_by_pillow),
            (large, cut_by_tf, cut_by_pillow),
        ):
            alternatives = ours(records, batch_size, padding)
            if "tensorflow" not in missing:
                alternatives["tf.data"] = tf_data(records, batch_size, cores, by_tf)
            if "torch" not in missing:
                alternatives["DataLoader"] = data_loader(records, batch_size, cores, by_pillow)
            paces(f"{title}, batches of {batch_size}", alternatives, batch_size, rounds, cores)
        print("\nWaiting for input, resnet8")
        for (title, records, _, padding), batch_size, steps in ((small, 128, 30), (large, 16, 10)):
            for name, start in ours(records, batch_size, padding).items():
                model, uniform = models.create("resnet8", 10), balancers.uniform(10)
                size = records.decoding.shape[0]
                training = Training(model, uniform, uniform.init(), np.ones(10), batch_size, size)
                waiting(f"{title}, batches of {batch_size}, {name}", training, start, steps)


def train(rounds, name, batch_size, size, dtype, num_classes=1000):
    """Prints speed and memory of a step, beside PyTorch's."""
    print(f"training {name}, {size}x{size}, batches of {batch_size}, {dtype}; {machine()}", flush=True)
    uniform, counts = balancers.uniform(num_classes), np.ones(num_classes)
    ours = Training(model_of(name, num_classes, size, dtype), uniform, uniform.init(), counts, batch_size, size)
    alternatives, theirs = {"dsb_jax": ours}, None
    if lacking := rivals.missing(rivals.PYTORCH):
        print(f"{' and '.join(lacking)} not installed: PyTorch is left out")
    elif why := rivals.lacks(name, size):
        print(f"{why}: PyTorch is left out")
    else:
        theirs = rivals.TorchTraining(name, num_classes, batch_size, size, dtype)
        print(f"beside {theirs.described()}", flush=True)
        alternatives["PyTorch, compiled, channels last"] = theirs
        for _ in range(3):  # the first also compiles
            theirs()
    times = in_turn(alternatives, rounds)
    table("A training step", times, "dsb_jax")
    stem = {"stem": "cifar"} if models.takes(name, "stem") and size < 64 else {}
    operations = 3 * batch_size * models.size(name, num_classes, image=(size, size, 3), **stem).operations
    matmul = matmul_rate(dtype)
    print(f"\n{'':40} {'images/s':>10} {'TFLOP/s':>8} {'of a matmul':>12} {'memory':>12}")
    for each, training in alternatives.items():
        rate = 1 / statistics.median(times[each])
        memory = training.memory()
        told = mib(memory) if memory else "-"
        share = operations * rate / matmul
        print(f"{each:40} {batch_size * rate:10.1f} {operations * rate / 1e12:8.2f} {share:12.1%} {told:>12}")
    print(f"a product of matrices of {_MATRIX}x{_MATRIX}: {matmul / 1e12:.2f} TFLOP/s")
    if theirs is not None:
        ratio = np.median(np.divide(times["PyTorch, compiled, channels last"], times["dsb_jax"]))
        print(f"images per second over PyTorch's: {ratio:.3f}")


_MATRIX = 4096


def matmul_rate(dtype):
    """Operations per second of a product of large matrices."""
    a, b = (jax.random.normal(jax.random.key(seed), (_MATRIX, _MATRIX)).astype(dtype) for seed in range(2))
    product = jax.jit(jnp.matmul)
    seconds = in_turn({"product": functools.partial(product, a, b)}, 7)["product"]
    return 2 * _MATRIX**3 / statistics.median(seconds[1:])


def clustered(samples, per_class, dim):
    """Embeddings of length 1 around the centres of their classes, in no order, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(samples) // per_class
    centers = rng.normal(size=(labels.max() + 1, dim))
    points = 0.5 * centers[labels] + rng.normal(size=(samples, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def retrieval(rounds, samples, dim, class_sizes, galleries, queries):
    """See the module's docstring."""
    print(f"{machine()}, {len(os.sched_getaffinity(0))} cores", flush=True)
    lacking = rivals.missing(rivals.METRIC_LEARNING)
    if lacking:
        print(f"pytorch-metric-learning is left out; python -m pip install {' '.join(lacking)}")
    for per_class in class_sizes:
        beside_metric_learning(rounds, clustered(samples, per_class, dim), bool(lacking))
    alone = {}
    for gallery in galleries:
        embeddings, labels = clustered(gallery, max(class_sizes), dim)
        rows = np.random.default_rng(1).choice(gallery, min(queries, gallery), replace=False)
        alone[f"{len(rows):,} of {gallery:,}"] = functools.partial(
            evaluation.measure, embeddings, labels, ks=(1,), queries=rows
        )
    for search in alone.values():
        search()  # compiles
    if alone:
        table("dsb_jax alone, queries of a gallery", in_turn(alone, rounds), next(iter(alone)))


def beside_metric_learning(rounds, data, alone):
    """Prints the times of all measures of all embeddings, and how far results are apart."""
    embeddings, labels = data
    alternatives = {"dsb_jax": functools.partial(evaluation.measure, embeddings, labels, ks=(1,))}
    found = alternatives["dsb_jax"]()  # compiles
    mine = {
        "precision_at_1": found.precision_at_1,
        "r_precision": found.r_precision,
        "mean_average_precision_at_r": found.map_at_r,
    }
    if not alone:
        rival = rivals.MetricLearning(embeddings, labels)
        print(f"beside {rival.described()}", flush=True)
        theirs = rival()
        alternatives["pytorch-metric-learning"] = rival
    title = f"{len(labels):,} x {embeddings.shape[1]}, classes of {np.bincount(labels).max()}"
    table(title, in_turn(alternatives, rounds), "dsb_jax")
    print(", ".join(f"{name} {value:.6f}" for name, value in mine.items()))
    if not alone:
        print(f"largest difference of a result: {max(abs(theirs[name] - mine[name]) for name in mine):.1e}")


class Reading:
    """Reads an array from a file; ``forgotten`` by the system after each time, so that it comes from the disk."""

    def __init__(self, path, array, *, forgotten=False):
        self._path, self._forgotten = path, forgotten
        np.save(path, array)
        self()

    def __call__(self):
        array = np.load(self._path)
        if self._forgotten:
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return array


def toolkit(rounds, samples, num_classes, dim, bent, neighbours):
    """See the module's docstring."""
    print(f"numpy {np.__version__}, {len(os.sched_getaffinity(0))} cores", flush=True)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((samples, dim), np.float32)
    labels = rng.integers(num_classes, size=samples)
    volumes_of_classes(rounds, points, labels, num_classes)
    points = rng.standard_normal((bent, dim))
    alternatives = {
        "dsb_jax": lambda: curvature(points, nearest(points, neighbours)),
        "the published algorithm": lambda: rivals.published_curvature(points, neighbours),
    }
    title = f"Curvature of {bent:,} points of {dim} numbers, {neighbours} neighbours"
    table(title, in_turn(alternatives, rounds), "dsb_jax")


def volumes_of_classes(rounds, points, labels, num_classes):
    """Prints the times of volumes, of reading points and of the package of Ma et al., and how far results differ."""
    ours = functools.partial(moments.volumes, points, labels, num_classes)
    title = f"Volumes of {num_classes:,} classes of {points.shape[0]:,} x {points.shape[1]}"
    with tempfile.TemporaryDirectory() as folder:
        reading = {"np.load, from memory": Reading(f"{folder}/warm.npy", points), "dsb_jax": ours}
        if hasattr(os, "posix_fadvise"):
            reading["np.load, from the disk"] = Reading(f"{folder}/cold.npy", points, forgotten=True)
        table(f"{title}, and reading them", in_turn(reading, rounds), "np.load, from memory")
    if lacking := rivals.missing(rivals.MANIFOLDS):
        print(f"{' and '.join(lacking)} is left out; python -m pip install {' '.join(lacking)}")
        return
    rival = rivals.ManifoldVolumes(points, labels)
    classes = [points[labels == label] for label in range(num_classes)]
    alternatives = {
        "dsb_jax": ours,
        "perceptual_manifold_geometry": rival,
        "  with the rows of classes put together": functools.partial(rival.of, classes),
    }
    table(title, in_turn(alternatives, rounds), "dsb_jax")
    mine = ours()
    for precision, rows in ("float32", classes), ("float64", [each.astype(np.float64) for each in classes]):
        theirs = rival.of(rows)
        finite = np.isfinite(theirs)
        apart = np.max(np.abs(theirs - mine)[finite] / np.maximum(mine[finite], 1), initial=0)
        print(
            f"largest relative difference of a volume, theirs in {precision}: {apart:.1e}; {(~finite).sum()} infinite"
        )


def imports(rounds):
    """See the module's docstring."""
    print(machine(), flush=True)
    alternatives = {
        f"import {name}": functools.partial(interpreter, f"import {name}")
        for name in ("jax", "dsb_jax", "dsb_jax.training", "dsb_jax.toolkit")
    }
    for run in alternatives.values():
        run()  # writes bytecode and fills the system's cache
    table("A new interpreter", in_turn(alternatives, rounds), "import jax")


def interpreter(statement):
    """Runs a statement in a new one."""
    subprocess.run([sys.executable, "-c", statement], check=True)


def machine():
    return f"jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}"


def integers(text):
    try:
        return [validation.positive_int("", int(each)) for each in text.split(",") if each]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers >= 1 with commas between them, got {text!r}") from None


def dataset_names(text):
    for name in (names := text.split(",")):
        if name not in SETTINGS:
            raise argparse.ArgumentTypeError(str(validation.unknown_name("dataset of Table 11", name, SETTINGS)))
    return names


def parsed(arguments):
    """The command line."""
    parser = command_line.Parser(
        prog="python launch/benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    of_pool = benchmarks.add_parser("pool")
    of_overhead = benchmarks.add_parser("overhead")
    of_overhead.add_argument("--shape", choices=SHAPES, default="cifar", help="(%(default)s)")
    of_overhead.add_argument(
        "--model",
        choices=models.names(),
        metavar="NAME",
        help="with the cifar stem for small images, where it has stems (the shape's)",
    )
    of_overhead.add_argument("--image-size", type=command_line.positive_int, help="(the shape's)")
    of_overhead.add_argument("--batch-size", type=command_line.positive_int, help="(the shape's)")
    of_table11 = benchmarks.add_parser("table11")
    of_table11.add_argument("--datasets", type=dataset_names, default=list(SETTINGS), help=f"({','.join(SETTINGS)})")
    of_table11.add_argument(
        "--model", choices=models.names(), metavar="NAME", default="resnet50", help="the backbone (%(default)s)"
    )
    of_table11.add_argument("--image-size", type=command_line.positive_int, default=224, help="(%(default)s)")
    of_table11.add_argument("--batch-size", type=command_line.positive_int, help="(each dataset's)")
    of_train = benchmarks.add_parser("train")
    of_train.add_argument("--model", choices=models.names(), metavar="NAME", default="resnet50", help="(%(default)s)")
    of_train.add_argument("--image-size", type=command_line.positive_int, default=224, help="(%(default)s)")
    of_train.add_argument("--batch-size", "--batch", type=command_line.positive_int, default=256, help="(%(default)s)")
    for chosen in (of_overhead, of_table11, of_train):
        chosen.add_argument(
            "--dtype", choices=DTYPES, default="float32", help="what the backbone computes in (%(default)s)"
        )
    of_data = benchmarks.add_parser("data")
    of_data.add_argument("--images", type=pathlib.Path, metavar="DIR", help="JPEG files (made-up ones)")
    of_data.add_argument("--cores", type=command_line.positive_int, default=os.cpu_count(), help="(%(default)s)")
    of_retrieval = benchmarks.add_parser("retrieval")
    of_retrieval.add_argument("--samples", type=command_line.positive_int, default=50_000, help="(%(default)s)")
    of_retrieval.add_argument("--dim", type=command_line.positive_int, default=DIM, help="(%(default)s)")
    of_retrieval.add_argument("--class-sizes", type=integers, default=[500, 10], help="(500,10)")
    of_retrieval.add_argument("--galleries", type=integers, default=[10**5, 10**6], help="searched alone (10^5,10^6)")
    of_retrieval.add_argument(
        "--queries", type=command_line.positive_int, default=1000, help="that search them (%(default)s)"
    )
    of_toolkit = benchmarks.add_parser("toolkit")
    of_toolkit.add_argument("--samples", type=command_line.positive_int, default=10**6, help="(%(default)s)")
    of_toolkit.add_argument("--classes", type=command_line.positive_int, default=1000, help="(%(default)s)")
    of_toolkit.add_argument("--dim", type=command_line.positive_int, default=DIM, help="(%(default)s)")
    of_toolkit.add_argument(
        "--bent", type=command_line.positive_int, default=500, help="points whose curvature is measured (%(default)s)"
    )
    of_toolkit.add_argument("--neighbours", type=command_line.positive_int, default=20, help="(%(default)s)")
    of_imports = benchmarks.add_parser("imports")
    defaults = (of_pool, 15), (of_overhead, 9), (of_table11, 9), (of_data, 7), (of_train, 9), (of_retrieval, 5)
    for chosen, rounds in (*defaults, (of_toolkit, 7), (of_imports, 7)):
        chosen.add_argument(
            "--rounds",
            type=command_line.positive_int,
            default=rounds,
            help="how often each alternative is timed (%(default)s)",
        )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Times what is asked for; the exit code is 0, or 2 after one line on what is wrong."""
    return command_line.answer(lambda: run(parsed(arguments)))


def run(arguments):
    match arguments.benchmark:
        case "pool":
            pool(arguments.rounds)
        case "overhead":
            changed = {name: getattr(arguments, name) for name in ("model", "image_size", "batch_size")}
            changed = {name: value for name, value in changed.items() if value is not None}
            overhead(arguments.rounds, dataclasses.replace(SHAPES[arguments.shape], **changed), arguments.dtype)
        case "table11":
            size, batch_size = arguments.image_size, arguments.batch_size
            table11(arguments.rounds, arguments.datasets, arguments.model, batch_size, size, arguments.dtype)
        case "train":
            size, batch_size = arguments.image_size, arguments.batch_size
            train(arguments.rounds, arguments.model, batch_size, size, arguments.dtype)
        case "retrieval":
            sizes = arguments.samples, arguments.dim, arguments.class_sizes, arguments.galleries, arguments.queries
            retrieval(arguments.rounds, *sizes)
        case "toolkit":
            sizes = arguments.samples, arguments.classes, arguments.dim, arguments.bent, arguments.neighbours
            toolkit(arguments.rounds, *sizes)
        case "imports":
            imports(arguments.rounds)
        case "data":
            data(arguments.rounds, arguments.images, arguments.cores)


if __name__ == "__main__":
    sys.exit(main())
