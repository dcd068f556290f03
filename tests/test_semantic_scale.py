"""Volumes, centres, interference and scales against float64 NumPy, and the properties the paper claims for them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dsb_jax

pytestmark = pytest.mark.usefixtures("strict_dtypes")

DIMS = (3, 64, 512, 768, 2048)
SETTINGS = settings(max_examples=15, deadline=None)


def gaussian(seed, samples, dim, offset=0.0):
    """Features of unit spread about a mean ``offset`` times as far out."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(samples, dim)) + offset * rng.normal(size=dim)).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dim", DIMS)
def test_volume_equals_float64(dim, offset):
    for samples in (2, 3, 17, 64, 300, 2049):
        features = gaussian(samples, samples, dim, offset)
        np.testing.assert_allclose(dsb_jax.volume(jnp.asarray(features)), reference.volume(features), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "dim", "offset"),
    [*((50_000, dim, offset) for dim in DIMS for offset in (0.0, 100.0)), (1_000_000, 64, 100.0)],
)
def test_volume_equals_float64_with_many_samples(samples, dim, offset):
    features = gaussian(0, samples, dim, offset)
    expected = reference.volume(features)
    np.testing.assert_allclose(dsb_jax.volume(jnp.asarray(features)), expected, rtol=1e-5)
    labels = jnp.zeros(len(features), jnp.int32)
    np.testing.assert_allclose(dsb_jax.class_volumes(jnp.asarray(features), labels, 1)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["relu", "pixels", "outlier first"])
def test_volume_of_features_as_they_occur(kind):
    rng = np.random.default_rng(0)
    features = {
        "relu": np.maximum(rng.normal(size=(500, 64)) + 3.0, 0.0),
        "pixels": np.clip(rng.normal(0.8, 0.05, size=(500, 768)), 0, 1),
        "outlier first": np.concatenate([np.full((1, 64), 1000.0), rng.normal(size=(499, 64))]),
    }[kind].astype(np.float32)
    np.testing.assert_allclose(dsb_jax.volume(jnp.asarray(features)), reference.volume(features), rtol=1e-5)


def test_volume_of_large_scale_and_low_rank():
    """A float32 Gram matrix loses the identity here: its determinant is tens of percent off, or not finite."""
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 2048)) * 6
    raw_pixels = np.clip(rng.normal(128, 90, size=(180, 12)) @ rng.normal(size=(12, 768)) / 3 + 128, 0, 255)
    outlier = rng.normal(size=(5, 768))
    outlier[0] += 1e4
    for features in (low_rank, raw_pixels, outlier):
        features = features.astype(np.float32)
        expected = reference.volume(features)
        labels = jnp.zeros(len(features), jnp.int32)
        np.testing.assert_allclose(dsb_jax.volume(jnp.asarray(features)), expected, rtol=1e-3)
        np.testing.assert_allclose(dsb_jax.class_volumes(features, labels, 1)[0], expected, rtol=1e-3)


@pytest.mark.parametrize("spread", [1e-6, 1e-4, 1e-2])
def test_small_volumes(spread):
    for samples, dim in ((5, 3), (40, 64), (500, 64)):
        features = (spread * np.random.default_rng(0).normal(size=(samples, dim)) + 1).astype(np.float32)
        volume = dsb_jax.volume(jnp.asarray(features))
        np.testing.assert_allclose(volume, reference.volume(features), rtol=2e-3)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, list])
@pytest.mark.parametrize("num_classes", [127, 128, 256, 300])
def test_labels_of_any_integer_type(dtype, num_classes):
    features, labels = gaussian(0, 40, 5), np.arange(40) % 7
    given_labels = labels.tolist() if dtype is list else labels.astype(dtype)
    expected = reference.class_centers(features, labels, num_classes)
    np.testing.assert_allclose(dsb_jax.class_centers(features, given_labels, num_classes), expected, atol=1e-6)
    if dtype is not list:
        centers = jax.jit(dsb_jax.class_centers, static_argnums=2)(features, given_labels, num_classes)
        np.testing.assert_allclose(centers, expected, atol=1e-6)


def test_numpy_numbers_are_numbers():
    features = gaussian(0, 40, 5)
    volumes = dsb_jax.class_volumes(features, np.zeros(40, int), np.int64(1), epsilon=np.float32(2.0))
    np.testing.assert_allclose(volumes[0], reference.volume(features, 2.0), rtol=1e-5)


def test_volume_equals_the_authors_code(golden):
    file = golden("geometry_volume")
    for i in range(int(file["n_cases"])):
        features, official = file[f"Z{i}"], file[f"volume{i}"]
        if not np.isfinite(official):  # their determinant overflows
            official = reference.volume(features, np.sqrt(features.shape[1] / file[f"d{i}"]))
        epsilon = float(np.sqrt(features.shape[1] / file[f"d{i}"]))  # their d is a parameter
        ours = dsb_jax.volume(jnp.asarray(features, jnp.float32), epsilon=epsilon)
        np.testing.assert_allclose(ours, official, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [3, 64, 300])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_class_volumes_and_centers_equal_float64(dim, offset):
    counts = [0, 1, 2, 15, 16, 17, 70, 257, 1030, 2500]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), counts)).astype(np.int32)
    features = gaussian(1, len(labels), dim, offset) * (1.0 + labels[:, None]).astype(np.float32)
    volumes = dsb_jax.class_volumes(jnp.asarray(features), jnp.asarray(labels), 10)
    np.testing.assert_allclose(volumes, reference.class_volumes(features, labels, 10), rtol=1e-5)
    centers = dsb_jax.class_centers(jnp.asarray(features), jnp.asarray(labels), 10)
    expected = reference.class_centers(features, labels, 10)
    np.testing.assert_allclose(centers, expected, atol=3e-7 * np.abs(features).max())


def test_class_volumes_leave_out_foreign_labels_under_jit():
    features, labels = gaussian(0, 40, 5), np.arange(40, dtype=np.int32) % 4 - 1
    volumes = jax.jit(dsb_jax.class_volumes, static_argnums=2)(features, labels, 2)
    np.testing.assert_allclose(volumes, reference.class_volumes(features, labels, 2), rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 1000.0])
def test_epsilon(epsilon):
    features = gaussian(0, 200, 16)
    expected = reference.volume(features, epsilon)
    # At 1000 what is left beside the identity is near its last digits, as methods of the paper's text would find.
    tolerance = 1e-5 if epsilon < 100 else 2e-2
    np.testing.assert_allclose(dsb_jax.volume(jnp.asarray(features), epsilon=epsilon), expected, rtol=tolerance)


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([2, 17, 60]), st.sampled_from([1, 20]))
def test_volume_is_invariant_to_order_rotation_and_translation(seed, samples, dim):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(samples, dim)) * rng.uniform(0.1, 3.0, size=dim)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    variants = [features, rng.permutation(features), features @ rotation, features + 10 * rng.normal(size=dim)]
    volumes = [dsb_jax.volume(jnp.asarray(x, jnp.float32)) for x in variants]
    chex.assert_trees_all_close(volumes, [volumes[0]] * 4, rtol=2e-5, atol=1e-6)


@SETTINGS
@given(st.integers(0, 10**6), st.floats(1.01, 10.0))
def test_volume_grows_when_features_are_scaled_about_their_mean(seed, factor):
    features = gaussian(seed, 50, 8, 5.0)
    mean = features.mean(axis=0)
    assert dsb_jax.volume(jnp.asarray(mean + factor * (features - mean))) > dsb_jax.volume(jnp.asarray(features))


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 29]), st.booleans())
def test_volume_is_positive_iff_two_rows_differ(seed, samples, differ):
    rng = np.random.default_rng(seed)
    features = np.tile(rng.normal(size=(1, 6)) * 100, (samples + 1, 1)).astype(np.float32)
    if differ:
        features[rng.integers(samples + 1)] += 1.0
    labels = jnp.zeros(samples + 1, jnp.int32)
    volumes = [dsb_jax.volume(jnp.asarray(features)), dsb_jax.class_volumes(jnp.asarray(features), labels, 1)[0]]
    assert [bool(v > 0) for v in volumes] == [differ, differ]


@SETTINGS
@given(st.integers(0, 10**6))
def test_one_percent_of_noise_moves_the_volume_by_less_than_one_percent(seed):
    """Appendix C: the measure is insensitive to noisy samples."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(1000, 64)) * rng.uniform(0.5, 2.0, size=64)
    noisy = features.copy()
    noisy[:10] = rng.normal(size=(10, 64)) * features.std()
    before, after = (dsb_jax.volume(jnp.asarray(x, jnp.float32)) for x in (features, noisy))
    assert abs(after - before) < 0.01 * before


def test_sample_volumes_equal_algorithm_1():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(30, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(30, dtype=np.int32) % 3
    expected = reference.class_volumes(images.reshape(30, -1) / 255.0, labels, 3)
    np.testing.assert_allclose(dsb_jax.sample_volumes(images, jnp.asarray(labels), 3), expected, rtol=1e-5)


@pytest.mark.parametrize("side", [8, 28, 40])
def test_sample_volumes_resize_as_pillow_does(side):
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, size=(12, side, side, 1), dtype=np.uint8)
    resized = [
        PIL.Image.fromarray(image[..., 0].astype(np.float32) / 255).resize((16, 16), PIL.Image.Resampling.BILINEAR)
        for image in images
    ]
    grey = np.repeat(np.stack([np.asarray(x) for x in resized])[..., None], 3, axis=3).reshape(12, -1)
    labels = jnp.zeros(12, jnp.int32)
    np.testing.assert_allclose(dsb_jax.sample_volumes(images, labels, 1)[0], reference.volume(grey), rtol=1e-4)


@SETTINGS
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 9]), st.sampled_from([1.0, 2.0]), st.booleans())
def test_scales_equal_their_definition(seed, num_classes, alpha, all_present):
    rng = np.random.default_rng(seed)
    centers = (rng.normal(size=(num_classes, 5)) + 100).astype(np.float32)
    volumes = rng.uniform(0, 50, size=num_classes).astype(np.float32)
    present = np.ones(num_classes, bool) if all_present else rng.random(num_classes) < 0.5
    weights = dsb_jax.interclass_weights(jnp.asarray(centers), alpha, present=jnp.asarray(present))
    np.testing.assert_allclose(weights, reference.interclass_weights(centers, alpha, present), rtol=1e-4, atol=1e-5)
    scales = dsb_jax.semantic_scales(jnp.asarray(volumes), jnp.asarray(centers), alpha, present=jnp.asarray(present))
    expected = reference.semantic_scales(volumes, centers, alpha, present)
    np.testing.assert_allclose(scales, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("centers", "present"),
    [
        ([[3.0, 1e4]] * 4, [True] * 4),
        ([[0.0, 0.0], [1.0, 5.0]], [True, False]),
        ([[0.0, 0.0], [1.0, 5.0]], [False] * 2),
    ],
)
def test_interference_without_a_distance_is_one(centers, present):
    weights = dsb_jax.interclass_weights(jnp.asarray(centers), 2.0, present=jnp.asarray(present))
    np.testing.assert_allclose(weights, np.log2(3.0), rtol=1e-6)


def test_scales_of_classes_without_volume_are_zero_not_nan():
    scales = dsb_jax.semantic_scales(jnp.zeros(3), jnp.zeros((3, 2)), 1.0)
    np.testing.assert_array_equal(scales, 0.0)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-9])
def test_effective_number_equals_float64(beta):
    counts = np.array([0, 1, 2, 10, 1280, 10**6])
    exact = np.expm1(counts * np.log1p(beta - 1.0)) / (beta - 1.0) if beta else (counts > 0).astype(float)
    np.testing.assert_allclose(dsb_jax.effective_number(jnp.asarray(counts), beta=beta), exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "dim"), [(2048, 64), (512, 64), (100, 64), (65, 64), (1000, 7), (64, 64), (10, 64)]
)
def test_pool_features_equals_adaptive_average_pooling(channels, dim):
    features = gaussian(0, 3, channels)
    edges = [(i * channels // dim, -(-(i + 1) * channels // dim)) for i in range(dim)]
    expected = features if channels <= dim else np.stack([features[:, a:b].mean(axis=1) for a, b in edges], axis=1)
    np.testing.assert_allclose(dsb_jax.pool_features(jnp.asarray(features), dim), expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_into_statistics():
    features, labels = jnp.asarray(gaussian(0, 20, 4)), jnp.arange(20, dtype=jnp.int32) % 2

    def total(x):
        centers = dsb_jax.class_centers(x, labels, 2)
        volumes = dsb_jax.class_volumes(x, labels, 2)
        return jnp.sum(centers) + dsb_jax.volume(x) + jnp.sum(dsb_jax.semantic_scales(volumes, centers, 2.0))

    np.testing.assert_array_equal(jax.grad(total)(features), 0.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_statistics_are_float32_of_the_features_given(dtype):
    features = jnp.asarray(gaussian(0, 50, 8)).astype(dtype)
    volume = dsb_jax.volume(features)
    chex.assert_type(volume, jnp.float32)
    np.testing.assert_allclose(volume, reference.volume(np.asarray(features.astype(jnp.float32))), rtol=1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        features, labels = np.random.default_rng(0).normal(size=(50, 8)), np.arange(50) % 2
        volume = dsb_jax.volume(jnp.asarray(features))
        volumes = dsb_jax.class_volumes(features, labels, 2)
        centers = dsb_jax.class_centers(features, labels, 2)
        chex.assert_type([volume, volumes, centers], jnp.float64)
        np.testing.assert_allclose(volume, reference.volume(features), rtol=1e-13)
        np.testing.assert_allclose(volumes, reference.class_volumes(features, labels, 2), rtol=1e-13)
        np.testing.assert_allclose(centers, reference.class_centers(features, labels, 2), rtol=1e-13)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_same_with_and_without_jit(self):
        features, labels = gaussian(0, 30, 4), np.arange(30, dtype=np.int32) % 3
        volumes = self.variant(lambda x, y: dsb_jax.class_volumes(x, y, 3))(jnp.asarray(features), jnp.asarray(labels))
        chex.assert_shape(volumes, (3,))
        np.testing.assert_allclose(volumes, reference.class_volumes(features, labels, 3), rtol=1e-5)


F, L = jnp.ones((4, 2)), jnp.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dsb_jax.volume(jnp.ones(3)), r"features must have shape \[samples, dim\], got \(3,\)"),
        (lambda: dsb_jax.volume(jnp.ones((3, 0))), r"features must have shape \[samples, dim\], got \(3, 0\)"),
        (lambda: dsb_jax.volume(jnp.ones((2, 2), jnp.int32)), "features must be floating point, got int32"),
        (lambda: dsb_jax.volume(F.at[2, 1].set(jnp.nan)), "features must be finite, got NaN or infinity in row 2"),
        (lambda: dsb_jax.volume(F, epsilon=0.0), "epsilon must be a finite number > 0, got 0.0"),
        (lambda: dsb_jax.class_volumes(F, L, 1), r"labels must lie in \[0, 1\), got 1 at position 1"),
        (lambda: dsb_jax.class_volumes(F, L - 1, 2), r"labels must lie in \[0, 2\), got -1 at position 0"),
        (lambda: dsb_jax.class_volumes(F, L[:3], 2), r"labels must have shape \(4,\)"),
        (lambda: dsb_jax.class_volumes(F, L.astype(jnp.float32), 2), "labels must be integers, got float32"),
        (lambda: dsb_jax.class_centers(F, L, 0), "num_classes must be an integer >= 1, got 0"),
        (lambda: dsb_jax.interclass_weights(F, 0.5), "alpha must be a finite number >= 1, got 0.5"),
        (lambda: dsb_jax.interclass_weights(F, 1.0, present=L), "present must be boolean"),
        (lambda: dsb_jax.semantic_scales(jnp.ones(3), F, 1.0), r"centers must have a row per volume \(3\)"),
        (lambda: dsb_jax.semantic_scales(F, F, 1.0), r"volumes must be floating point of shape \[classes\]"),
        (lambda: dsb_jax.sample_volumes(F, L, 2), r"images must have shape \[samples, height, width, 1 or 3\]"),
        (lambda: dsb_jax.sample_volumes(jnp.ones((4, 2, 2, 1), jnp.int32), L, 2), "images must be uint8 or floating"),
        (lambda: dsb_jax.effective_number(L, beta=1.0), r"beta must lie in \[0, 1\), got 1.0"),
        (lambda: dsb_jax.effective_number(L - 1), "counts must not be negative, got -1"),
        (lambda: dsb_jax.pool_features(jnp.ones(3)), r"features must be floating point of shape \[batch, channels\]"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
