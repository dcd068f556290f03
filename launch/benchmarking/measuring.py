"""What the toolkit computes of arrays, beside what others published for it."""

import functools
import os
import tempfile

import numpy as np

from benchmarking import rivals
from benchmarking.timing import in_turn, table
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.neighbourhoods import curvature, nearest


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
    """Prints what ``launch/benchmark.py toolkit`` is."""
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
