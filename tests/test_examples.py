"""The examples run as they stand, are short, and learn; DSB is three lines of each."""

import importlib.util
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import dsb_jax

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "launch" / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_an_example_learns(name):
    if name == "pytorch_loop":
        pytest.importorskip("torch", reason="PyTorch is no dependency; pip install torch")
    # By the rarest digits, of which there are five, it does not reach what balanced data would.
    assert loaded(name).main() > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_dsb_is_three_lines_of_it(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert text.count("\n") < 60
    made = re.findall(r"balancers\.semantic_scale\(|balancer\.update|update\(pool,|weighted_mean\(|weights\)\)\[", text)
    of_pytorch = 1 if name == "pytorch_loop" else 0  # compiles the update in a line of its own
    assert len(made) == 3 + of_pytorch, made


def test_what_a_loop_of_pytorch_does_with_numpy_is_what_ours_does():
    """NumPy goes in and comes out, and the mean is written by hand."""
    rng = np.random.default_rng(0)
    theirs = ours = (balancer := dsb_jax.balancers.semantic_scale(3, 24, dim=4)).init()
    for _ in range(3):
        features, labels = rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)
        losses = rng.uniform(size=8).astype(np.float32)
        weights, theirs = balancer.update(theirs, features, labels)
        expected, ours = balancer.update(ours, jnp.asarray(features), jnp.asarray(labels))
        np.testing.assert_array_equal(np.asarray(weights), expected)
        mean = np.mean(np.asarray(weights)[labels] * losses)
        np.testing.assert_allclose(mean, dsb_jax.weighted_mean(losses, labels, expected), rtol=1e-6)
