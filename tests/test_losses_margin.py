"""Domain balancing against float64 NumPy, what must hold, and bad input; there is no official code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dsb_jax import losses
from dsb_jax.losses import margin as module

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def weights(classes=12, dim=6, seed=0):
    return 3.0 * np.random.default_rng(seed).standard_normal((classes, dim))


def batch(examples=6, classes=4, seed=0):
    """Cosines, labels and an indicator of every class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=examples).astype(np.int32)
    return rng.uniform(-1, 1, (examples, classes)), labels, rng.uniform(0.5, 2.0, classes)


def frequency_oracle(classifier, neighbours=10, scale=30.0, epsilon=None):
    """The formula, class by class."""
    unit = classifier / np.linalg.norm(classifier, axis=1, keepdims=True)
    compactness = []
    for c in range(len(unit)):
        cosines = sorted((unit[c] @ unit[k] for k in range(len(unit)) if k != c), reverse=True)
        compactness.append(max(np.log(sum(np.exp(scale * cosine) for cosine in cosines[:neighbours])), 1.0))
    indicator = 1 / np.array(compactness)
    return indicator / indicator.mean() if epsilon is None else epsilon * indicator


def balancing_oracle(cosines, labels, frequency, margin=0.35, scale=30.0):
    losses_ = []
    for row, label in zip(cosines, labels, strict=True):
        scores = scale * row
        scores[label] -= scale * margin * frequency[label]
        losses_.append(np.log(np.exp(scores - scores[label]).sum()))
    return np.array(losses_)


# --- Against float64 NumPy --------------------------------------------------------------------------------------------

HYPER = [{}, {"neighbours": 3, "scale": 4.0, "epsilon": 2.0}, {"neighbours": 100, "epsilon": 1.0}]


@pytest.mark.parametrize("hyper", HYPER, ids=["default", "three", "all"])
def test_domain_frequency_equals_the_formula(hyper, dtype, monkeypatch):
    monkeypatch.setattr(module, "_CLASS_BLOCK", 5)  # two blocks and a rest
    classifier = weights()
    value = jax.jit(lambda w: losses.domain_frequency(w, **hyper))(jnp.asarray(classifier, dtype))
    assert value.dtype == dtype
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(value, frequency_oracle(classifier, **hyper), rtol=rtol)
    weighting = np.arange(1.0, 13.0)  # the sum of all is a constant where the mean is 1
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(weighting.astype(dtype) * losses.domain_frequency(w, **hyper))))
    slope = reference.slope(lambda w: (weighting * frequency_oracle(w, **hyper)).sum(), classifier)
    rtol = 1e-5 if dtype == np.float32 else 1e-7  # The second is that of the finite difference.
    np.testing.assert_allclose(gradient(jnp.asarray(classifier, dtype)), slope, rtol=0, atol=rtol * np.abs(slope).max())


@pytest.mark.parametrize("hyper", [{}, {"margin": 0.1, "scale": 5.0}], ids=["default", "other"])
def test_domain_balancing_equals_the_formula(hyper, dtype):
    cosines, labels, frequency = batch()
    narrow = jnp.asarray(cosines, dtype)

    def loss(cosines):
        return losses.domain_balancing(cosines, labels, frequency=jnp.asarray(frequency, dtype), **hyper)

    expected = balancing_oracle(cosines.copy(), labels, frequency, **hyper)
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(loss(narrow), expected, rtol=rtol, atol=rtol)
    slope = reference.slope(lambda z: balancing_oracle(z.copy(), labels, frequency, **hyper).sum(), cosines)
    rtol = 1e-5 if dtype == np.float32 else 1e-7
    gradient = jax.grad(lambda z: jnp.sum(loss(z)))(narrow)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=rtol * np.abs(slope).max())


# --- What must hold ---------------------------------------------------------------------------------------------------


def test_a_crowded_class_has_the_lowest_indicator(variant):
    classifier = jnp.asarray(weights())
    crowded = classifier.at[4].set(classifier[7] + 0.1).at[9].set(classifier[7] - 0.1)
    value = variant(losses.domain_frequency)(crowded)
    assert set(np.argsort(value)[:3].tolist()) == {4, 7, 9}
    np.testing.assert_allclose(jnp.mean(value), 1.0, rtol=1e-6)


def test_an_order_of_classes_and_a_rotation_change_nothing():
    classifier = weights()
    order = np.random.default_rng(1).permutation(12)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    lengths = np.arange(1.0, 13.0)[:, None]
    with jax.enable_x64(True):
        before = losses.domain_frequency(classifier)
        after = losses.domain_frequency(((lengths * classifier) @ rotation)[order])
        np.testing.assert_allclose(after, before[order], rtol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("classifier", ["zero", "coinciding", "opposite"])
def test_degenerate_classifiers_keep_value_and_gradient_finite(classes, classifier, variant):
    signs = (-1.0) ** np.arange(classes)[:, None]
    factor = {"zero": 0.0 * signs, "coinciding": 1.0 + 0.0 * signs, "opposite": signs}[classifier]
    given = jnp.asarray(factor * np.ones((classes, 3)))
    value = variant(losses.domain_frequency)(given, epsilon=None)
    gradient = variant(jax.grad(lambda w: jnp.sum(losses.domain_frequency(w) ** 2)))(given)
    chex.assert_tree_all_finite((value, gradient))
    assert np.all(value > 0)
    np.testing.assert_allclose(jnp.mean(value), 1.0, rtol=1e-6)


@pytest.mark.parametrize("differentiated", [False, True])
def test_no_array_of_all_pairs_of_classes_is_held(differentiated):
    classes = 8192

    def function(classifier):
        return jnp.sum(losses.domain_frequency(classifier) ** 2)

    function = jax.grad(function) if differentiated else function
    compiled = jax.jit(function).lower(jax.ShapeDtypeStruct((classes, 16), jnp.float32)).compile()
    # A block of similarities is 8 MiB, and sorting it takes a few; all pairs are 256 MiB, as booleans 64.
    assert compiled.memory_analysis().temp_size_in_bytes < 60 * 2**20


def test_an_indicator_of_one_is_cosface_and_none_is_no_margin():
    cosines, labels, _ = batch()
    true_class = np.eye(4)[labels]
    for indicator, margin in ((1.0, 0.35), (0.0, 0.0)):
        value = losses.domain_balancing(cosines, labels, frequency=np.full(4, indicator))
        expected = losses.cross_entropy(30.0 * (cosines - margin * true_class), labels)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_grows_with_the_indicator_but_has_no_gradient_by_it(variant):
    cosines, labels, frequency = batch()
    value = variant(lambda f: losses.domain_balancing(cosines, labels, frequency=f))
    frequency = jnp.asarray(frequency)
    assert np.all(value(frequency + 0.1) > value(frequency))
    np.testing.assert_array_equal(jax.grad(lambda f: jnp.sum(value(f)))(frequency), 0.0)


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_what_is_narrow_is_upcast_first(narrow):
    cosines, labels, frequency = batch()
    cosines, frequency, classifier = (jnp.asarray(array, narrow) for array in (cosines, frequency, weights()))
    pairs = (
        (losses.domain_balancing(x, labels, frequency=f), losses.domain_frequency(w))
        for x, f, w in (
            (cosines, frequency, classifier),
            [array.astype(jnp.float32) for array in (cosines, frequency, classifier)],
        )
    )
    (loss, indicator), (wide_loss, wide_indicator) = pairs
    assert loss.dtype == indicator.dtype == jnp.float32
    np.testing.assert_array_equal(loss, wide_loss)
    np.testing.assert_array_equal(indicator, wide_indicator)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_traced_labels_that_are_no_class_give_nan():
    cosines, _, frequency = batch()
    labels = jnp.array([-1, 2, 4, -5, 2**31 - 1, 3])

    def total(cosines, labels):
        value = losses.domain_balancing(cosines, labels, frequency=frequency)
        return jnp.nansum(value), value

    gradient, value = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(cosines), labels)
    is_class = np.array([False, True, False, False, False, True])
    np.testing.assert_array_equal(np.isfinite(value), is_class)
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=1), is_class)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cosines": np.zeros(4, np.float32)}, r"cosines must have shape \[batch, classes\], got \(4,\)"),
        ({"cosines": np.zeros((6, 4), np.int32)}, "cosines must be floating point, got int32"),
        ({"labels": np.full(6, 4, np.int32)}, r"labels must lie in \[0, 4\), got 4 at position 0"),
        ({"frequency": np.ones(3, np.float32)}, r"frequency must have shape \(4,\), one per class, got \(3,\)"),
        ({"frequency": np.ones(4, np.int32)}, "frequency must be floating point, got int32"),
        ({"frequency": np.array([1, 1, np.inf, 1])}, r"frequency must be finite and not negative, got \[1.0, 1.0, inf"),
        ({"frequency": -np.ones(4)}, r"frequency must be finite and not negative, got \[-1.0"),
        ({"margin": -0.1}, r"margin must be a finite number in \[0, 2\], got -0.1"),
        ({"margin": 9.0}, r"margin must be a finite number in \[0, 2\], got 9.0"),
        ({"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
    ],
)
def test_domain_balancing_refuses(changed, message, variant):
    arguments = dict(zip(("cosines", "labels", "frequency"), batch(), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        variant(lambda: losses.domain_balancing(arguments.pop("cosines"), arguments.pop("labels"), **arguments))()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classifier": np.zeros(4, np.float32)}, r"classifier must have shape \[classes, dim\].*got \(4,\)"),
        ({"classifier": np.zeros((0, 4), np.float32)}, r"none of them 0, got \(0, 4\)"),
        ({"classifier": np.zeros((4, 4), np.int32)}, "classifier must be floating point, got int32"),
        ({"neighbours": 0}, "neighbours must be an integer >= 1, got 0"),
        ({"neighbours": 2.0}, "neighbours must be an integer >= 1, got 2.0"),
        ({"scale": -1.0}, "scale must be a finite number > 0, got -1.0"),
        ({"epsilon": 0.0}, "epsilon must be a finite number > 0, got 0.0"),
    ],
)
def test_domain_frequency_refuses(changed, message):
    arguments = {"classifier": weights()} | changed
    with pytest.raises(ValueError, match=message):
        losses.domain_frequency(arguments.pop("classifier"), **arguments)
