"""Whole training steps: what DSB adds to them, and how fast they are."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking import rivals
from benchmarking.timing import in_turn, machine, mib, table
from benchmarking.updates import PARTS, Update, balancer_of, copied, filled, random_batches, random_labels, recompute_of
from dsb_jax import balancers, losses, models, objectives
from dsb_jax.data import preprocess, spec
from dsb_jax.training import optimizers
from dsb_jax.training.step import init_state, make_train_step

_MATRIX = 4096


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


def overhead(rounds, shape, dtype):
    """Prints what ``launch/benchmark.py overhead`` is."""
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


def matmul_rate(dtype):
    """Operations per second of a product of large matrices."""
    a, b = (jax.random.normal(jax.random.key(seed), (_MATRIX, _MATRIX)).astype(dtype) for seed in range(2))
    product = jax.jit(jnp.matmul)
    seconds = in_turn({"product": functools.partial(product, a, b)}, 7)["product"]
    return 2 * _MATRIX**3 / statistics.median(seconds[1:])
