"""Moments in one pass against those of everything at once, whatever the order, the files and the blocks."""

import itertools
import re
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsb_jax
from dsb_jax.toolkit import moments, streaming
from dsb_jax.toolkit.inputs import files


def of_all(points, labels, num_classes):
    """Count, mean and scatter by their definitions, in extended precision."""
    for label in range(num_classes):
        rows = points[labels == label].astype(np.longdouble)
        centred = rows - rows.mean(axis=0)
        yield len(rows), rows.mean(axis=0), centred.T @ centred


def require_equal(found, points, labels, tolerance=1e-12):
    for one, (count, mean, scatter) in zip(found, of_all(points, labels, len(found)), strict=True):
        assert one.count == count
        np.testing.assert_allclose(one.mean, mean.astype(float), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(one.scatter, scatter.astype(float), rtol=tolerance, atol=tolerance * scatter.max())


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    fewest=st.integers(1, 50),
    num_classes=st.integers(1, 6),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    far=st.sampled_from([0.0, 1e7]),
    is_sorted=st.booleans(),
)
def test_blocks_add_up_to_the_whole(seed, lengths, fewest, num_classes, offset, far, is_sorted, tmp_path_factory):
    """Also far from 0, with a first row far from the others, of classes side by side or apart, and of single rows."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("shards")
    points = offset + rng.normal(size=(sum(lengths), 3)) * [1, 0, 100]
    points[0] += far
    labels = rng.integers(0, num_classes, len(points))
    labels = np.sort(labels) if is_sorted else labels
    for shard, (start, stop) in enumerate(itertools.pairwise(np.cumsum([0, *lengths]))):
        np.savez(folder / f"{shard}.npz", x=points[start:stop], y=labels[start:stop])
    with mock.patch.multiple(streaming, _NUMBERS=3 * fewest, _ROWS_PER_CLASS=1):
        found = streaming.class_moments(files.rows(folder))
    present, labels = np.unique(labels, return_inverse=True)
    assert len(found) == len(present)
    # A mean of a million is known to 1e-10, and so is what lies between two of them.
    require_equal(found, points, labels, 1e-12 * max(offset, 1) ** 0.5)


def test_what_is_pooled_and_what_passes_through_a_bar(tmp_path):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(500, 12)).astype(np.float32), rng.integers(0, 4, 500)
    np.savez(tmp_path / "a.npz", x=points, y=labels)
    totals = []
    with mock.patch.object(streaming, "_NUMBERS", 7):
        found = streaming.class_moments(
            files.rows(tmp_path / "a.npz").pooled(4),
            progress=lambda blocks, total: totals.append((seen := list(blocks), total)) or seen,
        )
    assert [(len(blocks), total) for blocks, total in totals] == [(4, 4)]  # of 4·32 rows, the last of fewer
    pooled = np.asarray(dsb_jax.pool_features(points, 4))
    require_equal(found, pooled, labels, 1e-6)  # in float32, of which sums are not in one order
    volumes = [of_class.volume() for of_class in found]
    np.testing.assert_allclose(volumes, moments.volumes(pooled, labels, 4), rtol=1e-6)
    np.testing.assert_allclose(volumes, dsb_jax.class_volumes(pooled, labels, 4), rtol=1e-5)


def test_more_classes_and_channels_than_memory_takes_are_refused_before_a_row_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((30, 2048), np.nan, np.float32), y=np.arange(30))
    rows = files.rows(tmp_path / "a.npz")
    message = (
        "a.npz: moments of 30 classes in 2048 channels need 0.94 GiB, but 0.10 GiB may be taken; pool them to fewer "
        "channels, such as 512 (--dim)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        streaming.class_moments(rows, memory=0.1 * 2**30)
    assert streaming.needed_memory(30, 30, 512) < 0.1 * 2**30 < streaming.needed_memory(30, 30, 1024)
    with pytest.raises(ValueError, match="memory must be a finite number > 0"):
        streaming.class_moments(rows, memory=0)
    with pytest.raises(ValueError, match="got NaN or infinity in row 0"):
        streaming.class_moments(rows, memory=4 * 2**30)


def test_no_more_memory_is_taken_than_is_said(tmp_path):
    rng = np.random.default_rng(0)
    points, num_classes = rng.normal(size=(40_000, 64)), 100
    np.savez(tmp_path / "a.npz", x=points, y=rng.integers(0, num_classes, len(points)))
    with mock.patch.object(streaming, "_NUMBERS", 1):
        rows, said = files.rows(tmp_path / "a.npz"), streaming.needed_memory(len(points), num_classes, 64)
        tracemalloc.start()
        streaming.class_moments(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said / 2 < peak < said < points.nbytes
