"""The losses of embeddings against the official implementations' numbers, float64 NumPy, and bad input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dsb_jax import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")

HYPER = {"scale": 7.0, "gamma": 0.3, "margin": 0.05}


def batch(examples=6, classes=4, per_class=3, dim=5, seed=0):
    """Embeddings of length 1, labels and centres of any length, in float64."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((examples, dim))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    centers = 3.0 * rng.standard_normal((classes, per_class, dim))
    return embeddings, rng.integers(classes, size=examples).astype(np.int32), centers


def loss_oracle(embeddings, labels, centers, *, scale=20.0, gamma=0.1, margin=0.01):
    """The formula, example by example and class by class."""
    losses = []
    for x, label in zip(embeddings, labels, strict=True):
        scores = []
        for c, of_class in enumerate(centers):
            similarity = np.array([x @ w / np.linalg.norm(w) for w in of_class])
            share = np.exp(similarity / gamma) / np.exp(similarity / gamma).sum()
            scores.append(scale * ((share * similarity).sum() - margin * (c == label)))
        losses.append(np.log(np.exp(scores).sum()) - scores[label])
    return np.array(losses)


def regularizer_oracle(centers):
    total, (classes, per_class, _) = 0.0, centers.shape
    for of_class in centers:
        unit = of_class / np.linalg.norm(of_class, axis=1, keepdims=True)
        total += sum(np.sqrt(2 + 1e-5 - 2 * unit[j] @ unit[k]) for k in range(per_class) for j in range(k))
    return total / (classes * per_class * (per_class - 1))


# --- Against the official implementation ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softtriple_k1", "softtriple_notau", "softtriple_tau"])
def test_value_and_gradient_equal_the_official_ones(name, golden, dtype):
    file = golden(name)
    per_class, tau, labels = int(file["K"]), float(file["tau"]), file["labels"].astype(np.int32)
    hyper = {"scale": float(file["la"]), "gamma": float(file["gamma"]), "margin": float(file["margin"])}

    def total(embeddings, columns):  # [dim, classes·K], column class·K + k
        centers = columns.T.reshape(-1, per_class, columns.shape[0])
        per_example = losses.soft_triple(embeddings, labels, centers=centers, **hyper)
        return jnp.mean(per_example) + tau * losses.soft_triple_regularizer(centers), per_example

    both = jnp.asarray(file["embeddings"], dtype), jnp.asarray(file["centers"], dtype)
    (value, per_example), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(*both)
    assert per_example.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    rtol, atol = {"float32": (1e-5, 1e-6), "float64": (1e-10, 1e-14)}[dtype.name]
    np.testing.assert_allclose(value, file["loss"], rtol=rtol)
    np.testing.assert_allclose(per_example, file["loss_classify_per_example"], rtol=rtol, atol=atol)
    for gradient, key in zip(gradients, ("grad_embeddings", "grad_centers"), strict=True):
        np.testing.assert_allclose(gradient, file[key], rtol=rtol, atol=10 * atol * np.abs(file[key]).max())


# --- Against float64 NumPy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", [{}, HYPER], ids=["default", "other"])
@pytest.mark.parametrize("per_class", [1, 3])
def test_soft_triple_equals_the_formula(hyper, per_class, dtype):
    embeddings, labels, centers = batch(per_class=per_class)
    expected = functools.partial(loss_oracle, labels=labels, **hyper)

    def mean(embeddings, centers):
        return jnp.mean(losses.soft_triple(embeddings, labels, centers=centers, **hyper))

    value = losses.soft_triple(jnp.asarray(embeddings, dtype), labels, centers=jnp.asarray(centers, dtype), **hyper)
    chex.assert_shape(value, (6,))
    tolerance = {"rtol": 2e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12}
    np.testing.assert_allclose(value, expected(embeddings, centers=centers), **tolerance)
    of_both = jax.grad(mean, argnums=(0, 1))(jnp.asarray(embeddings, dtype), jnp.asarray(centers, dtype))
    differences = (
        reference.slope(lambda x: expected(x, centers=centers).mean(), embeddings),
        reference.slope(lambda w: expected(embeddings, centers=w).mean(), centers),
    )
    tolerance = 5e-5 if dtype == np.float32 else 1e-7  # The second is that of the finite difference.
    for gradient, difference in zip(of_both, differences, strict=True):
        np.testing.assert_allclose(gradient, difference, rtol=tolerance, atol=tolerance)


def test_the_regularizer_equals_the_formula(dtype):
    _, _, centers = batch()
    value, gradient = jax.value_and_grad(losses.soft_triple_regularizer)(jnp.asarray(centers, dtype))
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(value, regularizer_oracle(centers), rtol=1e-6 if dtype == np.float32 else 1e-14)
    tolerance = 1e-5 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(gradient, reference.slope(regularizer_oracle, centers), rtol=tolerance, atol=tolerance)


# --- What must hold ---------------------------------------------------------------------------------------------------


def test_a_single_centre_needs_no_regularizer(variant):
    _, _, centers = batch(per_class=1)
    value, gradient = variant(jax.value_and_grad(losses.soft_triple_regularizer))(jnp.asarray(centers))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_centres_that_coincide_count_as_one(variant):
    """The similarity of a class is then that to its only centre, and the regularizer is at its lowest."""
    embeddings, labels, centers = batch(per_class=1, dim=64)
    several = jnp.asarray(np.repeat(centers, 5, axis=1))
    one = losses.soft_triple(embeddings, labels, centers=centers)
    np.testing.assert_allclose(losses.soft_triple(embeddings, labels, centers=several), one, rtol=1e-5, atol=1e-6)
    value, gradient = variant(jax.value_and_grad(losses.soft_triple_regularizer))(several)
    np.testing.assert_allclose(value, np.sqrt(1e-5) / 2, rtol=0.05)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-3)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e15])
def test_centres_of_any_length_keep_value_and_gradient_finite(length, variant):
    embeddings, labels, centers = batch()
    centers = length * jnp.asarray(centers)

    def total(centers):
        mean = jnp.mean(losses.soft_triple(embeddings, labels, centers=centers))
        return mean + losses.soft_triple_regularizer(centers)

    chex.assert_tree_all_finite(variant(jax.value_and_grad(total))(centers))


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_what_is_narrow_is_upcast_first(narrow):
    embeddings, labels, centers = batch()
    embeddings, centers = jnp.asarray(embeddings, narrow), jnp.asarray(centers, narrow)
    value = losses.soft_triple(embeddings, labels, centers=centers)
    wide = embeddings.astype(jnp.float32), centers.astype(jnp.float32)
    np.testing.assert_array_equal(value, losses.soft_triple(wide[0], labels, centers=wide[1]))
    assert value.dtype == losses.soft_triple_regularizer(centers).dtype == jnp.float32
    np.testing.assert_array_equal(value, losses.soft_triple(embeddings, labels, centers=wide[1]))


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_traced_labels_that_are_no_class_give_nan():
    embeddings, _, centers = batch()
    labels = jnp.array([-1, 2, 4, -5, 2**31 - 1, 3])
    is_class = np.array([False, True, False, False, False, True])

    def total(embeddings, labels):
        value = losses.soft_triple(embeddings, labels, centers=centers)
        return jnp.nansum(value), value

    gradient, value = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(embeddings), labels)
    np.testing.assert_array_equal(np.isfinite(value), is_class)
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=1), is_class)


@pytest.mark.parametrize("bad", [-1, 4, 2**32])
def test_readable_labels_that_are_no_class_raise(bad, variant):
    embeddings, labels, centers = batch()
    labels = labels.astype(np.int64)
    labels[2] = bad
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 4\), got {bad} at position 2"):
        variant(lambda x: losses.soft_triple(x, labels, centers=centers))(embeddings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": np.zeros(5, np.float32)}, r"embeddings must have shape \[batch, dim\], got \(5,\)"),
        ({"embeddings": np.zeros((6, 5), np.int32)}, "embeddings must be floating point, got int32"),
        ({"embeddings": np.zeros((6, 4), np.float32)}, r"the same last dimension, got \(6, 4\) and \(4, 3, 5\)"),
        ({"labels": np.zeros(5, np.int32)}, r"labels must have shape \(6,\), one per sample, got \(5,\)"),
        ({"labels": np.zeros(6, np.float32)}, "labels must be integers, got float32"),
        ({"centers": np.zeros((4, 5), np.float32)}, r"centers must have shape \[classes, centers, dim\].*\(4, 5\)"),
        ({"centers": np.zeros((4, 0, 5), np.float32)}, r"none of them 0, got \(4, 0, 5\)"),
        ({"centers": np.zeros((4, 3, 5), np.int32)}, "centers must be floating point, got int32"),
        ({"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"gamma": -0.1}, "gamma must be a finite number > 0, got -0.1"),
        ({"margin": -0.1}, r"margin must be a finite number in \[0, 2\], got -0.1"),
        ({"margin": 9.0}, r"margin must be a finite number in \[0, 2\], got 9.0"),
        ({"margin": float("nan")}, r"margin must be a finite number in \[0, 2\], got nan"),
        ({"scale": "20"}, "scale must be a finite number > 0, got '20'"),
    ],
)
def test_bad_input_raises(changed, message):
    embeddings, labels, centers = batch()
    arguments = {"embeddings": embeddings, "labels": labels, "centers": centers} | changed
    with pytest.raises(ValueError, match=message):
        losses.soft_triple(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)


@pytest.mark.parametrize(
    ("centers", "message"),
    [
        (np.zeros((4, 5), np.float32), r"centers must have shape \[classes, centers, dim\]"),
        (np.zeros((4, 3, 5), np.int32), "centers must be floating point, got int32"),
    ],
)
def test_the_regularizer_refuses(centers, message):
    with pytest.raises(ValueError, match=message):
        losses.soft_triple_regularizer(centers)
