"""What the benchmark times is what it says; how fast it is, no test asserts."""

import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
import benchmark
from benchmarking import rivals, updates

from dsb_jax import models

COUNTS = np.array([50, 30, 10, 5, 1])
BALANCER = updates.balancer_of(COUNTS, 8, dim=4)
BATCHES = updates.random_batches(COUNTS, 8, 4, number=16)


def output_of(*arguments):
    command = [sys.executable, benchmark.__file__, *arguments, "--rounds=1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_filled_pool_is_as_after_a_pass_of_batches():
    """And stays so: in the pass that follows, all its rows leave."""
    update = jax.jit(BALANCER.update)
    filled, entered = updates.filled(BALANCER, COUNTS), BALANCER.init()
    for rows, labels in zip(filled.pool.rows, filled.pool.labels, strict=True):
        _, entered = update(entered, rows, labels)
    for batch in [None, *BATCHES]:
        if batch is not None:
            (weights, filled), (expected, entered) = update(filled, *batch), update(entered, *batch)
            np.testing.assert_allclose(weights, expected, rtol=1e-4)
        for name in ("rows", "labels", "next_rows", "next_labels", "cursor", "entered", "passes", "count"):
            np.testing.assert_array_equal(getattr(filled.pool, name), getattr(entered.pool, name), err_msg=name)
        for name in ("center", "volume"):
            value, expected = getattr(filled.pool, name), getattr(entered.pool, name)
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(filled.interference.distances, entered.interference.distances, rtol=1e-4)


@pytest.mark.slow
def test_the_parts_of_an_update_are_all_of_it():
    state = updates.filled(BALANCER, COUNTS)
    whole = updates.Update(BALANCER, BATCHES, updates.copied(state))
    unchanged = []
    for number, part in enumerate(updates.PARTS, start=1):
        update = updates.Update(BALANCER, BATCHES, updates.copied(state), number)  # it has made a step
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), update.state, whole.state)
        unchanged.append(sum(not each for each in jax.tree.leaves(same)))
        factorizes = "cholesky" in update.update.as_text().lower() or "potrf" in update.update.as_text()
        assert factorizes == (number >= 1 + list(updates.PARTS).index("factorizations")), part
    assert unchanged == sorted(unchanged, reverse=True)
    assert unchanged[0] > 0
    assert unchanged[-1] == 0


@pytest.mark.slow
def test_overhead_runs():
    printed = output_of("overhead", "--model=resnet8", "--image-size=16", "--batch-size=8")
    for name in ("balancer=dsb", "update alone, interference off", "recompute from the whole pool", *updates.PARTS):
        assert len(re.findall(rf"^{re.escape(name)}", printed, re.MULTILINE)) == 2, name  # 10 and 100 classes
    assert "were not finite" not in printed


@pytest.mark.slow
def test_table11_runs():
    printed = output_of("table11", "--datasets=cub2011", "--model=resnet8", "--image-size=16", "--batch-size=8")
    row = printed.splitlines()[-1]
    assert re.match(r"cub2011 +100 +5,864 +8 ", row), printed
    assert row.count("→") == 4  # The CPU does not tell its peak.
    assert "21.95 → 18.58 (0.8465)" in row


@pytest.mark.slow
def test_training_runs():
    """Beside PyTorch where it is installed."""
    output = output_of("train", "--model=resnet8", "--image-size=16", "--batch=4")
    assert re.search(r"training resnet8, 16x16, batches of 4, float32; jax", output)
    assert re.search(r"dsb_jax +[\d.]+ +[\d.]+ +[\d.]+% +[\d.]+ MiB", output)
    assert re.search(r"a product of matrices of 4096x4096: [\d.]+ TFLOP/s", output)
    assert "images per second over PyTorch's" in output or "PyTorch is left out" in output


@pytest.mark.slow
def test_retrieval_runs():
    """Beside pytorch-metric-learning where it is installed, whose results are the same."""
    output = output_of("retrieval", "--samples=300", "--class-sizes=30,3", "--galleries=400", "--queries=20")
    assert re.findall(r"^300 x 64, classes of (\d+)$", output, re.MULTILINE) == ["30", "3"]
    assert len(re.findall(r"^dsb_jax +[\d.]+ +1.0000", output, re.MULTILINE)) == 2
    assert re.search(r"^20 of 400 +[\d.]+", output, re.MULTILINE)
    differences = re.findall(r"^largest difference of a result: (.*)$", output, re.MULTILINE)
    assert len(differences) == 2 or "pip install" in output
    assert all(float(each) < 1e-6 for each in differences)


def test_toolkit_runs():
    """Beside the package of Ma et al. where it is installed, whose volumes are the same."""
    output = output_of("toolkit", "--samples=2000", "--classes=20", "--dim=4", "--bent=40", "--neighbours=5")
    assert re.search(r"^Volumes of 20 classes of 2,000 x 4, and reading them$", output, re.MULTILINE)
    assert len(re.findall(r"^np.load, from memory +[\d.]+ +1.0000", output, re.MULTILINE)) == 1
    assert re.search(r"^the published algorithm +[\d.]+ +[\d.]+", output, re.MULTILINE)
    differences = re.findall(
        r"^largest relative difference of a volume, theirs in (.*): (.*); 0 inf", output, re.MULTILINE
    )
    assert [precision for precision, _ in differences] == ["float32", "float64"] or "pip install" in output
    assert all(float(each) < (1e-5 if precision == "float32" else 1e-12) for precision, each in differences)


def test_the_published_curvature_is_that(golden):
    file = golden("geometry_curvature")
    for case in range(4):
        found = rivals.published_curvature(file[f"X{case}"], int(file[f"k{case}"]))
        np.testing.assert_allclose(found, file[f"local_angle{case}"], rtol=1e-8, atol=1e-8)


def test_operations_are_those_of_the_published_networks():
    """Multiply-adds of one image as their papers have them: 1.8 and 4.1 billion; XLA leaves out those with padding."""
    for name, billions in (("resnet18", 1.8), ("resnet50", 4.1)):
        assert abs(models.size(name).operations / 2e9 / billions - 1) < 0.08


@pytest.mark.slow
def test_imports_run():
    output = output_of("imports")
    names = re.findall(r"^import (\S+) +[\d.]+ +[\d.]+", output, re.MULTILINE)
    assert names == ["jax", "dsb_jax", "dsb_jax.training", "dsb_jax.toolkit"]
