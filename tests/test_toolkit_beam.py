"""Moments by Apache Beam against those of one pass in this process."""

import functools
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsb_jax.toolkit import beam, streaming
from dsb_jax.toolkit.inputs import files
from dsb_jax.toolkit.moments import Moments

RNG = np.random.default_rng(0)

needs_beam = pytest.mark.skipif(
    beam.apache_beam is None, reason="Apache Beam is not installed: pip install 'dsb-jax[beam]'"
)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), groups=st.lists(st.lists(st.integers(1, 5), max_size=4), max_size=4))
def test_moments_add_up_in_any_order_and_grouping(seed, groups):
    """As Beam does it: parts to accumulators on any machine, some of which see none, and these to one."""
    rng, add = np.random.default_rng(seed), beam.SumOfMoments()
    rows = [[100 + rng.normal(size=(length, 3)) for length in group] for group in groups]
    accumulators = [functools.reduce(add.add_input, map(Moments.of, group), add.create_accumulator()) for group in rows]
    rng.shuffle(accumulators)
    found = add.extract_output(add.merge_accumulators(accumulators))
    parts = [part for group in rows for part in group]
    assert found.count == sum(map(len, parts))
    if parts:
        whole = Moments.of(np.concatenate(parts))
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(found.scatter, whole.scatter, rtol=1e-9, atol=1e-10)


def test_without_beam_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(beam, "apache_beam", None)
    with pytest.raises(ImportError, match=re.escape("Apache Beam is not installed: pip install 'dsb-jax[beam]'")):
        beam.class_moments("a.npz")


def shards(folder, number, dim=8, classes=5):
    """Files of which each lacks a class, the first one has no rows, and columns and types differ in order."""
    for shard in range(number):
        count = 40 * shard
        labels = RNG.permutation(np.arange(count) % classes)
        labels[labels == shard % classes] = (shard + 1) % classes
        points = 1000 + RNG.normal(size=(count, dim))
        table = {
            "label": [f"class {label}" for label in labels],
            "embedding": pa.array(list(points), pa.list_(pa.float64())),
        }
        pq.write_table(pa.table(table), folder / f"{shard}.parquet")


def require_equal(found, rows):
    assert tuple(found) == rows.class_names
    for one, other in zip(found.values(), streaming.class_moments(rows), strict=True):
        assert one.count == other.count
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
        np.testing.assert_allclose(one.scatter, other.scatter, rtol=1e-9, atol=1e-9)


@needs_beam
@pytest.mark.parametrize("dim", [None, 4])
def test_a_pipeline_finds_what_one_pass_finds(dim, tmp_path):
    shards(tmp_path, 9)
    space, found = beam.class_moments(tmp_path, features="embedding", labels="label", dim=dim)
    rows = files.rows(tmp_path)
    assert space == "feature"
    require_equal(found, rows if dim is None else rows.pooled(dim))


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_two_workers_find_what_one_pass_finds(mode, tmp_path):
    (tmp_path / "shards").mkdir()
    shards(tmp_path / "shards", 9)
    arguments = ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    space, found = beam.class_moments(f"{tmp_path}/shards/*", arguments=arguments, folder=str(tmp_path / "found"))
    assert space == "feature"
    require_equal(found, files.rows(tmp_path / "shards"))
    _, again = beam.class_moments(
        f"{tmp_path}/shards/8*", folder=str(tmp_path / "found")
    )  # of which the folder has others
    require_equal(again, files.rows(tmp_path / "shards" / "8.parquet"))


@needs_beam
def test_bad_files_are_all_named(tmp_path):
    shards(tmp_path, 3)
    (tmp_path / "3.parquet").touch()
    pq.write_table(pa.table({"embedding": [[1.0, float("nan")]], "label": ["a"]}), tmp_path / "4.parquet")
    with pytest.raises(ValueError, match="2 files cannot be used: ") as raised:
        beam.class_moments(tmp_path)
    assert "3.parquet is empty (0 bytes)" in str(raised.value)
    assert "4.parquet: points must be finite, got NaN or infinity in row 0 (class a)" in str(raised.value)
    assert "\n" not in str(raised.value)


@needs_beam
def test_what_does_not_fit_is_refused(tmp_path):
    shards(tmp_path, 2, dim=8)
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=range(3))
    np.savez(tmp_path / "b.npz", x=np.eye(2), y=range(2))
    with pytest.raises(ValueError, match=r"rows of one dim and kind, got \(2, 'feature'\) and \(3, 'feature'\)"):
        beam.class_moments(f"{tmp_path}/*.npz")
    for name in ("c.npy", "d.npy"):
        np.save(tmp_path / name, np.eye(3))
    with pytest.raises(ValueError, match=r"c\.npy cannot have the labels of several files"):
        beam.class_moments(f"{tmp_path}/*.npy", labels=str(tmp_path / "c.npy"))
    with pytest.raises(ValueError, match="files must have rows, got none"):
        beam.class_moments(tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="a folder that FlinkRunner's workers write to and this process reads"):
        beam.class_moments(f"{tmp_path}/*.npz", arguments=["--runner=FlinkRunner"])
