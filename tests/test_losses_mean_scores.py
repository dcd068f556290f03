"""The mean scores of LOCE against the official code's numbers, a loop in NumPy, and what must hold for any input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def steps_of(batches, decay, mean_scores):
    """The update as a loop over classes."""
    mean_scores = np.array(mean_scores, np.float64)
    for scores, labels in batches:
        for c in np.unique(labels):
            kept = decay ** np.sum(labels == c)
            mean_scores[c] = kept * mean_scores[c] + (1 - kept) * scores[labels == c].mean()
    return mean_scores


def test_three_steps_equal_the_official_ones(golden, dtype):
    """There the last class is the background, which the detector sets back after every step."""
    file = golden("loce_equilibrium")
    update = jax.jit(functools.partial(losses.mean_score_update, decay=float(file["ema_alpha"])))
    mean_scores = jnp.full(10, file["ema_init"], dtype)
    for scores, labels, expected in zip(file["ema_scores"], file["ema_labels"], file["ema_history"], strict=True):
        mean_scores = update(mean_scores, scores.astype(dtype), labels).at[-1].set(file["ema_bg_score"])
        assert mean_scores.dtype == dtype
        np.testing.assert_allclose(mean_scores, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
def test_updates_equal_a_loop_over_classes(decay, dtype):
    rng = np.random.default_rng(0)
    batches = [(rng.uniform(size=20).astype(dtype), rng.integers(6, size=20)) for _ in range(4)]
    mean_scores = jnp.full(8, 0.01, dtype)  # Two classes never come.
    for scores, labels in batches:
        mean_scores = losses.mean_score_update(mean_scores, scores, labels, decay=decay)
    expected = steps_of(batches, decay, np.full(8, 0.01))
    np.testing.assert_allclose(mean_scores, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)
    np.testing.assert_array_equal(mean_scores[6:], np.full(2, 0.01, dtype))


def test_it_runs_in_a_scan_and_stays_in_bounds():
    scores, labels = jnp.ones((500, 4)), jnp.tile(jnp.array([0, 0, 1, 2]), (500, 1))
    begin = jnp.full(3, 0.01)
    end, _ = jax.lax.scan(lambda s, x: (losses.mean_score_update(s, *x), None), begin, (scores, labels))
    np.testing.assert_allclose(end, 1.0, rtol=1e-6)
    losses.equilibrium(jnp.zeros((1, 3)), jnp.array([0]), mean_scores=end)


def test_traced_labels_that_are_no_class_count_for_none():
    mean_scores, scores = jnp.array([0.1, 0.2]), jnp.array([0.5, jnp.nan, jnp.nan])
    updated = jax.jit(losses.mean_score_update)(mean_scores, scores, jnp.array([1, -1, 2]))
    np.testing.assert_allclose(updated, [0.1, 0.9 * 0.2 + 0.1 * 0.5], rtol=1e-6)


@pytest.mark.parametrize("use_jit", [False, True])
def test_what_is_masked_counts_for_none(use_jit):
    update = jax.jit(losses.mean_score_update) if use_jit else losses.mean_score_update
    scores, labels, mask = jnp.array([0.5, jnp.nan, 0.3]), jnp.array([1, 0, 7]), jnp.array([True, False, False])
    np.testing.assert_allclose(update(jnp.array([0.1, 0.2]), scores, labels, mask=mask), [0.1, 0.23], rtol=1e-6)


def test_a_sharded_batch_gives_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
    rng = np.random.default_rng(1)
    scores, labels = rng.uniform(size=32).astype(np.float32), rng.integers(5, size=32).astype(np.int32)
    update = functools.partial(losses.mean_score_update, jnp.full(5, 0.01))
    np.testing.assert_allclose(
        jax.jit(update)(*jax.device_put((scores, labels), rows)), update(scores, labels), rtol=1e-6
    )


def test_narrow_input_is_upcast():
    labels = jnp.array([0, 1])
    updated = losses.mean_score_update(jnp.full(2, 0.5, jnp.bfloat16), jnp.full(2, 0.25, jnp.float16), labels)
    assert updated.dtype == jnp.float32
    np.testing.assert_allclose(updated, 0.9 * 0.5 + 0.1 * 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_scores": jnp.ones((2, 2))}, r"mean_scores must have shape \[classes\], got \(2, 2\)"),
        ({"mean_scores": jnp.ones(2, int)}, "mean_scores must be floating point, got int32"),
        ({"scores": jnp.ones((3, 2))}, r"scores must have shape \[batch\], got \(3, 2\)"),
        ({"scores": jnp.ones(3, int)}, "scores must be floating point, got int32"),
        ({"scores": jnp.ones(4)}, r"labels must have shape \(4,\), one per sample, got \(3,\)"),
        ({"scores": jnp.array([0.0, 1.0, 1.5])}, r"scores must lie in \[0, 1\], got 1.5 at position 2"),
        ({"scores": jnp.array([0.0, jnp.nan, 1.5])}, r"scores must lie in \[0, 1\], got nan at position 1"),
        ({"labels": jnp.array([0, 1, 2])}, r"labels must lie in \[0, 2\), got 2 at position 2"),
        ({"decay": 1.5}, r"decay must be a finite number in \[0, 1\], got 1.5"),
        ({"decay": -0.1}, r"decay must be a finite number in \[0, 1\], got -0.1"),
    ],
)
def test_bad_input_raises(changes, message):
    arguments = {"mean_scores": jnp.ones(2), "scores": jnp.ones(3), "labels": jnp.array([0, 1, 1])} | changes
    with pytest.raises(ValueError, match=message):
        losses.mean_score_update(**arguments)
