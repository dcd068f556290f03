"""The paper's Table 11: DSB-SoftTriple against SoftTriple, in speed and in memory."""

import dataclasses
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.steps import Training, model_of
from benchmarking.timing import in_turn, machine
from benchmarking.updates import DIM, balancer_of, filled
from dsb_jax import balancers, losses, objectives
from dsb_jax.data import spec
from dsb_jax.training import optimizers


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


def compare(rounds, names, model, batch_size, size, dtype):
    """Prints what ``launch/benchmark.py table11`` is."""
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
    model = Embedding(model_of(backbone, len(counts), size, dtype).backbone, len(counts))
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
