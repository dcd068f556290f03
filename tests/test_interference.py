"""Streamed distance sums against the definition."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dsb_jax
from dsb_jax import interference

pytestmark = pytest.mark.usefixtures("strict_dtypes")

update = jax.jit(interference.update)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 7, 150]), st.sampled_from([0.0, 100.0, 10_000.0]))
@example(21612, 2, 0.0)  # one class stays alone, with a rounding residue of the other's distance
def test_streaming_equals_the_definition(seed, num_classes, offset):
    rng = np.random.default_rng(seed)
    centers = np.zeros((num_classes, 5), np.float32)
    present = np.zeros(num_classes, bool)
    state = interference.init(num_classes, 5)
    for _ in range(12):
        moving = rng.random(num_classes) < 0.4
        centers[moving] = offset + rng.normal(size=(moving.sum(), 5))
        present[moving] = rng.random(moving.sum()) < 0.8
        # Copied by NumPy: a CPU device reads an array where it lies, and later than the next round writes to it.
        state = update(state, jnp.asarray(centers.copy()), jnp.asarray(present.copy()))
    weights = interference.weights(state, 1.5)
    tolerance = 2e-5 + 1e-7 * offset  # the centres themselves have float32's digits
    np.testing.assert_allclose(weights, reference.interclass_weights(centers, 1.5, present), atol=tolerance)
    scratch = dsb_jax.interclass_weights(jnp.asarray(centers), 1.5, present=jnp.asarray(present))
    np.testing.assert_allclose(weights, scratch, atol=tolerance)


def test_corrections_do_not_add_up_to_an_error():
    rng = np.random.default_rng(0)
    centers, present = rng.normal(size=(40, 8)).astype(np.float32) + 50, np.ones(40, bool)
    state = interference.init(40, 8)
    for step in range(1000):
        centers = centers.copy()
        centers[1 + step % 30] += rng.normal(size=8) * 0.1  # class 0 and 31… never move: corrected 1000 times
        state = update(state, jnp.asarray(centers), jnp.asarray(present))
    np.testing.assert_allclose(interference.weights(state, 1.0), reference.interclass_weights(centers, 1.0), rtol=1e-5)


@pytest.mark.parametrize("at_once", [2**23, 5 * 150])  # all centres, or 5
@pytest.mark.usefixtures("accelerator")
def test_as_many_centres_at_once_as_on_an_accelerator(monkeypatch, at_once):
    monkeypatch.setattr(interference, "_BLOCK", 1)
    monkeypatch.setattr(interference, "_DISTANCES", at_once)
    test_streaming_equals_the_definition.hypothesis.inner_test(0, 150, 100.0)


def test_coinciding_centres_are_no_distance():
    state = update(interference.init(4, 3), jnp.full((4, 3), 1234.567), jnp.ones(4, bool))
    np.testing.assert_array_equal(state.distances, 0.0)
    np.testing.assert_allclose(interference.weights(state, 2.0), np.log2(3.0), rtol=1e-6)


def test_holds_no_array_of_class_pairs():
    arguments = jax.eval_shape(lambda: interference.init(1000, 8)), jnp.zeros((1000, 8)), jnp.zeros(1000, bool)
    text = update.lower(*arguments).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\w+\[([\d,]+)\]", text)}
    assert max(np.prod(shape) for shape in shapes) <= 64 * 1000
