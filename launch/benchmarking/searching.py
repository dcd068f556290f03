"""The search of embeddings, beside pytorch-metric-learning's."""

import functools
import os

import numpy as np

from benchmarking import rivals
from benchmarking.timing import in_turn, machine, table
from dsb_jax import evaluation


def clustered(samples, per_class, dim):
    """Embeddings of length 1 around the centres of their classes, in no order, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(samples) // per_class
    centers = rng.normal(size=(labels.max() + 1, dim))
    points = 0.5 * centers[labels] + rng.normal(size=(samples, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def retrieval(rounds, samples, dim, class_sizes, galleries, queries):
    """Prints what ``launch/benchmark.py retrieval`` is."""
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
