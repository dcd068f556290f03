"""Class weights against their definitions, and what holds whatever comes in."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dsb_jax
from dsb_jax import balancers, feature_pool, losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def batch(seed, size=64, dim=8, num_classes=5, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, size=size, p=0.5 ** np.arange(num_classes) / sum(0.5 ** np.arange(num_classes)))
    features = rng.normal(size=(size, dim)) * spread * (1 + labels[:, None]) + labels[:, None]
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)


def expected_weights(features, labels, num_classes, *, alpha, interclass=True, power=1.0, normalize="mean"):
    """The definitions, for a pool that holds just these rows."""
    features, labels = np.asarray(features), np.asarray(labels)
    counts = np.bincount(labels, minlength=num_classes)
    volumes = reference.class_volumes(features, labels, num_classes)
    centers = reference.class_centers(features, labels, num_classes)
    scales = reference.semantic_scales(volumes, centers, alpha, counts > 0) if interclass else volumes / volumes.max()
    measured = (counts > 1) & (scales > 0)
    weights = np.where(measured, np.where(measured, scales, 1.0) ** -power, 0.0)
    weights[~measured] = weights[measured].max()
    scale = {
        "mean": num_classes / weights.sum(),
        "sum": 1 / weights.sum(),
        "expected": counts.sum() / (counts * weights).sum(),
        "none": 1.0,
    }[normalize]
    return weights * scale


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 2.0},
        {"alpha": 1.0},
        {"alpha": 1.5, "interclass": False},
        {"alpha": 2.0, "power": 0.5},
        {"alpha": 2.0, "power": 2.0},
        {"alpha": 2.0, "normalize": "sum"},
        {"alpha": 2.0, "normalize": "expected"},
        {"alpha": 2.0, "normalize": "none"},
    ],
)
def test_semantic_scale_weights_equal_their_definition(options):
    features, labels = batch(0)
    balancer = balancers.semantic_scale(7, 64, dim=8, **options)  # classes 5 and 6 are absent
    weights, state = jax.jit(balancer.update)(balancer.init(), features, labels)
    np.testing.assert_allclose(weights, expected_weights(features, labels, 7, **options), rtol=1e-4)
    summary = balancer.summary(state)
    np.testing.assert_allclose(summary["weights"], weights, rtol=1e-6)
    np.testing.assert_array_equal(summary["counts"], np.bincount(labels, minlength=7))
    centers = reference.class_centers(features, np.asarray(labels), 7)
    np.testing.assert_allclose(summary["centers"], centers, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(summary["volumes"], reference.class_volumes(features, np.asarray(labels), 7), rtol=1e-5)


def test_rows_may_be_bfloat16():
    features, labels = batch(0)
    balancer = balancers.semantic_scale(5, 64, dim=8, dtype=jnp.bfloat16)
    weights, state = jax.jit(balancer.update)(balancer.init(), features, labels)
    chex.assert_type(state.pool.rows, jnp.bfloat16)
    stored = features.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(weights, expected_weights(stored, labels, 5, alpha=2.0), rtol=1e-4)


def test_weights_follow_the_latest_features():
    balancer = balancers.semantic_scale(5, 128, dim=8, alpha=2.0, batch_size=64)
    update, state, stream = (
        jax.jit(balancer.update),
        balancer.init(),
        [batch(seed, spread=1 + seed) for seed in range(6)],
    )
    for features, labels in stream:
        weights, state = update(state, features, labels)
    latest = [jnp.concatenate(parts) for parts in zip(*stream[-2:], strict=True)]
    np.testing.assert_allclose(weights, expected_weights(*latest, 5, alpha=2.0), rtol=1e-4)


def test_long_features_are_pooled():
    features, labels = batch(0, dim=32)
    balancer = balancers.semantic_scale(5, 64, dim=8)
    weights, _ = balancer.update(balancer.init(), features, labels)
    np.testing.assert_allclose(
        weights, expected_weights(features.reshape(64, 8, 4).mean(2), labels, 5, alpha=2.0), rtol=1e-4
    )


def test_offsets_are_logarithms_of_coding_lengths_and_those_of_a_class_too_rare_the_smallest():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 11, 1])
    features = rng.normal(size=(32, 4)).astype(np.float32) * np.array([3.0, 1.0, 1.0])[labels][:, None]
    balancer = balancers.start_at(1, balancers.semantic_scale(4, 64, dim=4, logit_adjustment=0.5, power=0.0))
    state = balancer.init()
    np.testing.assert_array_equal(balancer.summary(state)["offsets"], np.zeros(4))
    for expected in (np.zeros(4), None):
        weights, state = balancer.update(state, jnp.asarray(features), jnp.asarray(labels))
        np.testing.assert_array_equal(weights, np.ones(4))
        if expected is not None:
            np.testing.assert_array_equal(balancer.summary(state)["offsets"], expected)
    pooled = [np.tile(features[labels == c].astype(float), (2, 1)) for c in (0, 1)]
    logs = [0.5 * np.log((len(rows) + 4) * reference.volume(rows)) for rows in pooled]
    expected = np.array([*logs, min(logs), min(logs)]) - max(logs)
    np.testing.assert_allclose(balancer.summary(state)["offsets"], expected, rtol=1e-5, atol=1e-6)


def test_without_any_measured_scale_all_offsets_are_zero():
    balancer = balancers.semantic_scale(3, 8, dim=2, logit_adjustment=1.0)
    state = balancer.init()
    np.testing.assert_array_equal(balancer.summary(state)["offsets"], np.zeros(3))
    _, state = balancer.update(state, jnp.ones((4, 2)), jnp.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(balancer.summary(state)["offsets"], np.zeros(3))


@pytest.mark.parametrize("normalize", ["mean", "sum", "expected", "none"])
def test_without_any_measured_scale_all_weights_are_one(normalize):
    balancer = balancers.semantic_scale(3, 8, dim=2, normalize=normalize)
    single = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0, 1])
    np.testing.assert_array_equal(balancer.update(balancer.init(), *single)[0], 1.0)
    equal = jnp.ones((4, 2)), jnp.array([0, 0, 1, 1])
    np.testing.assert_array_equal(balancer.update(balancer.init(), *equal)[0], 1.0)


@functools.cache
def compiled(normalize, power):
    balancer = balancers.semantic_scale(4, 12, dim=3, alpha=1.0, power=power, normalize=normalize)
    return balancer, jax.jit(balancer.update)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18, 3e37]),
    st.sampled_from([("mean", 1), ("sum", 40.0), ("expected", 3.5), ("none", 40.0), ("none", 0)]),
)
def test_weights_are_finite_and_positive_whatever_comes_in(seed, spread, options):
    rng = np.random.default_rng(seed)
    balancer, update = compiled(*options)
    state = balancer.init()
    for _ in range(4):
        features = (spread * rng.normal(size=(6, 3))).astype(np.float32)
        features[rng.random((6, 3)) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
        labels = rng.integers(-2, 7, size=6).astype(np.int32)
        weights, state = update(state, features, labels, mask=rng.random(6) < 0.9)
        assert bool(jnp.all(jnp.isfinite(weights) & (weights > 0))), weights


def test_class_balanced_equals_the_official_weights(golden):
    file = golden("class_balanced_weights")
    for beta, weights in zip(file["betas"], file["weights"], strict=True):
        balancer = dsb_jax.class_balanced(jnp.asarray(file["counts"], jnp.int32), beta=float(beta))
        np.testing.assert_allclose(balancer.summary(balancer.init())["weights"], weights, rtol=1e-5)


OF_CDB = {
    "cdb_imagenet_t1": {"tau": 1.0},
    "cdb_imagenet_t15": {"tau": 1.5},
    "cdb_imagenet_dyn": {"dynamic": "imagenet_lt"},
    "cdb_imagenet_dyn_saturated": {"dynamic": "imagenet_lt"},
    "cdb_cifar_t1": {"tau": 1.0},
    "cdb_cifar_t15": {"tau": 1.5},
    "cdb_cifar_dyn": {"dynamic": "cifar_lt"},
    "cdb_cifar_dyn_saturated": {"dynamic": "cifar_lt"},
}


@pytest.mark.parametrize("name", OF_CDB)
def test_class_difficulty_equals_the_official_code(golden, name):
    """Weights, and the loss and its gradient with them, reduced as each of the two files does."""
    file = golden(name)
    balancer = balancers.class_difficulty(10, **OF_CDB[name])
    update = jax.jit(balancer.update)
    labels = jnp.asarray(file["labels"], jnp.int32)
    weights, state = update(balancer.init(), jnp.zeros((32, 1)), labels, accuracy=jnp.asarray(file["val_accuracy"]))
    np.testing.assert_allclose(weights, file["weights"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(balancer.summary(state)["weights"], weights, rtol=1e-6)
    divisor = 1.0 if name.startswith("cdb_cifar") else jnp.mean(weights[labels])  # the latter: a weighted mean

    def loss(logits):
        return dsb_jax.weighted_mean(losses.cross_entropy(logits, labels), labels, weights) / divisor

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(file["logits"], jnp.float32))
    np.testing.assert_allclose(value, file["loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, file["grad_logits"], rtol=1e-5, atol=1e-6 * np.abs(file["grad_logits"]).max())


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"tau": 2.5}, {"dynamic": "imagenet_lt"}, {"dynamic": "cifar_lt"}])
def test_class_difficulty_where_accuracies_say_little(options):
    balancer = balancers.class_difficulty(3, **options)

    def weights(*accuracy):
        return balancer.update(balancer.init(), X, Y, accuracy=jnp.array(accuracy))[0]

    np.testing.assert_array_equal(balancer.summary(balancer.init())["weights"], 1.0)  # before any is known
    np.testing.assert_array_equal(weights(jnp.nan, jnp.nan, jnp.nan), 1.0)
    np.testing.assert_allclose(weights(1.0, 1.0, 1.0), 1.0)
    np.testing.assert_allclose(weights(0.0, 0.0, 0.0), 1.0)
    found = weights(0.2, jnp.nan, 0.6)  # without examples: as difficult as the others are in the mean
    np.testing.assert_allclose(found, weights(0.2, 0.4, 0.6), rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(found), 3.0, rtol=1e-6)


def test_fixed_balancers():
    counts = np.array([100, 10, 0, 1])
    inverse = np.array([1 / 100, 1 / 10, 1.0, 1.0])
    effective = (1 - 0.99 ** np.array([100, 10, 1, 1])) / (1 - 0.99)
    for balancer, values in (
        (dsb_jax.uniform(4), np.ones(4)),
        (dsb_jax.inverse_frequency(jnp.asarray(counts)), inverse),
        (balancers.inverse_sqrt_frequency(jnp.asarray(counts)), np.sqrt(inverse)),
        (dsb_jax.class_balanced(jnp.asarray(counts), beta=0.99), 1 / effective),
    ):
        weights, state = balancer.update(balancer.init(), jnp.ones((2, 3)), jnp.array([0, 1]))
        np.testing.assert_allclose(weights, 4 * values / values.sum(), rtol=1e-5)
        assert not jax.tree.leaves(state)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_start_at_feeds_from_the_first_update_and_weights_from_its_step(step):
    plain = balancers.semantic_scale(5, 192, dim=8, batch_size=64)
    delayed = balancers.start_at(step, plain)
    state, reference_state = delayed.init(), plain.init()
    for number in range(5):
        weights, state = jax.jit(delayed.update)(state, *batch(number))
        expected, reference_state = jax.jit(plain.update)(reference_state, *batch(number))
        np.testing.assert_array_equal(weights, expected if number >= step else np.ones(5))
        np.testing.assert_allclose(delayed.summary(state)["weights"], weights, rtol=1e-6)
    chex.assert_trees_all_equal(state.state, reference_state)


def test_a_rebuilt_pool_gives_the_same_weights():
    """Every centre then differs in its last digit, more than one step's batches move."""
    balancer = balancers.semantic_scale(40, 960, dim=8, alpha=1.0, batch_size=16)
    update, state, rng = jax.jit(balancer.update), balancer.init(), np.random.default_rng(0)
    for _ in range(70):
        labels = rng.integers(0, 40, 16)
        features = (rng.normal(size=(16, 8)) + labels[:, None]).astype(np.float32)
        _, state = update(state, features, labels.astype(np.int32))
    rebuilt = dataclasses.replace(state, pool=feature_pool.rebuild(state.pool))
    assert np.any(np.asarray(rebuilt.pool.center) != np.asarray(state.pool.center))
    weights, _ = update(state, features, labels.astype(np.int32))
    np.testing.assert_allclose(update(rebuilt, features, labels.astype(np.int32))[0], weights, rtol=1e-4)


def test_works_in_64_bit_mode():
    with jax.enable_x64(True):
        features, labels = batch(0)
        balancer = balancers.start_at(0, balancers.semantic_scale(7, 64, dim=8))
        weights, _ = jax.jit(balancer.update)(balancer.init(), features, labels)
        chex.assert_type(weights, jnp.float32)
        np.testing.assert_allclose(weights, expected_weights(features, labels, 7, alpha=2.0), rtol=1e-4)


def test_weighted_mean_of_half_precision_losses_does_not_overflow():
    mean = dsb_jax.weighted_mean(jnp.full(70_000, 10, jnp.float16), np.zeros(70_000, int), np.ones(1, np.float32))
    np.testing.assert_allclose(mean, 10.0, rtol=1e-6)


@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_weights_equal_one_device(devices):
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    alone = balancers.semantic_scale(5, 192, dim=8, batch_size=64)
    shared = balancers.semantic_scale(5, 192, dim=8, batch_size=64, mesh=mesh)
    shardings = balancers.state_shardings(shared, mesh)
    update = jax.jit(shared.update, donate_argnums=0, out_shardings=(None, shardings))
    one, many = alone.init(), jax.jit(shared.init, out_shardings=shardings)()
    for number in range(5):
        expected, one = jax.jit(alone.update)(one, *batch(number))
        weights, many = update(many, *batch(number))
        np.testing.assert_array_equal(jax.device_get(weights), expected)
    assert many.pool.rows.sharding.spec == jax.sharding.PartitionSpec(None, "data")
    assert jax.tree.map(lambda x: x.sharding, many) == shardings


def test_an_update_holds_no_array_of_class_pairs_and_traces_once():
    balancer = balancers.semantic_scale(1000, 2048, dim=8, batch_size=512)
    update = jax.jit(chex.assert_max_traces(n=1)(lambda *args: balancer.update(*args)), donate_argnums=0)
    rng, state = np.random.default_rng(0), balancer.init()
    for _ in range(3):
        features = jnp.asarray(rng.normal(size=(512, 8)), jnp.float32)
        weights, state = update(state, features, jnp.asarray(rng.integers(0, 1000, 512), jnp.int32))
    text = jax.jit(balancer.update).lower(state, features, jnp.zeros(512, jnp.int32)).compile().as_text()
    pairs = re.findall(r"\w+\[(?:1000|1024),(?:1000|1024)[\],]", text)
    assert not pairs
    chex.assert_tree_all_finite(weights)


def test_no_gradient_flows_into_weights():
    features, labels = batch(0)
    balancer = balancers.semantic_scale(5, 64, dim=8)

    def loss(x):
        weights, _ = balancer.update(balancer.init(), x, labels)
        return dsb_jax.weighted_mean(jnp.sum(x * x, axis=1), labels, weights)

    weights, _ = balancer.update(balancer.init(), features, labels)
    np.testing.assert_allclose(jax.grad(loss)(features), features * weights[labels][:, None] / 32, rtol=1e-5)


def test_weighted_mean_equals_its_definition():
    rng = np.random.default_rng(0)
    losses, labels, weights = rng.random(9, np.float32), rng.integers(0, 4, 9), rng.random(4, np.float32)
    mean = dsb_jax.weighted_mean(jnp.asarray(losses), jnp.asarray(labels, jnp.int32), jnp.asarray(weights))
    np.testing.assert_allclose(mean, np.mean(losses * weights[labels]), rtol=1e-6)
    mask = np.arange(9) < 5
    losses[7], labels[6] = np.nan, 99  # what is masked may hold anything
    arguments = jnp.asarray(losses), jnp.asarray(labels, jnp.int32), jnp.asarray(weights)
    masked = dsb_jax.weighted_mean(*arguments, mask=jnp.asarray(mask))
    np.testing.assert_allclose(masked, np.mean(losses[:5] * weights[labels[:5]]), rtol=1e-6)
    assert float(dsb_jax.weighted_mean(*arguments, mask=jnp.zeros(9, bool))) == 0.0


def test_a_wrong_label_under_jit_makes_the_mean_nan():
    for label in (-1, 4):
        assert jnp.isnan(jax.jit(dsb_jax.weighted_mean)(jnp.ones(2), jnp.array([0, label]), jnp.ones(4)))


X, Y = jnp.ones((4, 2)), jnp.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: balancers.semantic_scale(0, 8), "num_classes must be an integer >= 1, got 0"),
        (lambda: balancers.semantic_scale(2, 8, alpha=0.9), "alpha must be a finite number >= 1, got 0.9"),
        (lambda: balancers.semantic_scale(2, 8, power=-1), "power must be a finite number >= 0, got -1"),
        (lambda: balancers.semantic_scale(2, 8, normalize="men"), "unknown normalize 'men'; did you mean 'mean'"),
        (
            lambda: balancers.semantic_scale(2, 8, logit_adjustment=-1.0),
            "logit_adjustment must be a finite number >= 0",
        ),
        (lambda: balancers.semantic_scale(2, 8, batch_size=3), "capacity must be a multiple of batch_size"),
        (lambda: balancers.semantic_scale(2, 8, epsilon=0.0), "epsilon must be a finite number > 0"),
        (
            lambda: (b := balancers.semantic_scale(2, 8)).update(b.init(), X, Y),
            "2 channels, fewer than the balancer's dim = 64",
        ),
        (lambda: (b := balancers.semantic_scale(2, 2, dim=2)).update(b.init(), X, Y), "at most capacity = 2 rows"),
        (lambda: (b := balancers.semantic_scale(1, 8, dim=2)).update(b.init(), X, Y), r"labels must lie in \[0, 1\)"),
        (lambda: balancers.start_at(3, 3), "balancer must be a Balancer, got 3"),
        (lambda: balancers.semantic_scale(2, 8, interclass="no"), "interclass must be True or False, got 'no'"),
        (lambda: balancers.start_at(-1, balancers.uniform(2)), "step must be an integer >= 0, got -1"),
        (lambda: balancers.inverse_frequency(jnp.array([-1, 2])), "counts must be finite, >= 0 and not all 0"),
        (lambda: balancers.inverse_sqrt_frequency(jnp.zeros(3)), "counts must be finite, >= 0 and not all 0"),
        (lambda: balancers.class_difficulty(0), "num_classes must be an integer >= 1, got 0"),
        (lambda: balancers.class_difficulty(2, tau=-1.0), "tau must be a finite number >= 0, got -1.0"),
        (lambda: balancers.class_difficulty(2, dynamic="cifar"), "unknown dynamic 'cifar'; did you mean 'cifar_lt'"),
        (lambda: (b := balancers.class_difficulty(2)).update(b.init(), X, Y), "class_difficulty needs accuracy"),
        (
            lambda: (b := balancers.class_difficulty(2)).update(b.init(), X, Y, accuracy=jnp.ones(3)),
            r"accuracy must have shape \(2,\), one per class, got \(3,\)",
        ),
        (
            lambda: (b := balancers.class_difficulty(2)).update(b.init(), X, Y, accuracy=jnp.array([0.5, 50.0])),
            r"accuracy must lie in \[0, 1\], or be NaN where it is not known, got \[0.5, 50.0\]",
        ),
        (lambda: balancers.class_balanced(jnp.zeros(3)), "counts must be finite, >= 0 and not all 0"),
        (lambda: balancers.class_balanced(jnp.ones((3, 1))), r"counts must have shape \[classes\]"),
        (lambda: balancers.class_balanced(Y + 1, beta=1.0), r"beta must lie in \[0, 1\)"),
        (lambda: dsb_jax.weighted_mean(X, Y, jnp.ones(2)), r"losses must be floating point of shape \[batch\]"),
        (lambda: dsb_jax.weighted_mean(jnp.ones(4), Y, X), r"weights must be floating point of shape \[classes\]"),
        (lambda: dsb_jax.weighted_mean(jnp.ones(4), Y, jnp.ones(1)), r"labels must lie in \[0, 1\), got 1"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
