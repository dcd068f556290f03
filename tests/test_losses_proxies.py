"""Normalised softmax, Proxy Anchor and the center losses against the official numbers, float64 NumPy, and bad input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dsb_jax import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ALL = {
    "norm_softmax": (losses.norm_softmax, "proxies", "embeddings"),
    "proxy_anchor": (losses.proxy_anchor, "proxies", "embeddings"),
    "center_loss": (losses.center_loss, "centers", "features"),
    "center_cosine_loss": (losses.center_cosine_loss, "centers", "features"),
}
every_loss = pytest.mark.parametrize("name", ALL)


def batch(examples=6, classes=4, dim=5, seed=0):
    """Embeddings, labels and what stands for the classes, in float64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=examples).astype(np.int32)
    return rng.standard_normal((examples, dim)), labels, 3.0 * rng.standard_normal((classes, dim))


def call(name, embeddings, labels, points, **hyper):
    loss, argument, _ = ALL[name]
    return loss(embeddings, labels, **{argument: points}, **hyper)


def oracle(name, embeddings, labels, points):
    """The formula, example by example."""
    if name == "proxy_anchor":
        return proxy_anchor_parts(embeddings, labels, points)
    values = []
    for x, label in zip(embeddings, labels, strict=True):
        own = points[label]
        if name == "norm_softmax":
            scores = np.array([x @ w / np.linalg.norm(w) / 0.05 for w in points])
            values.append(np.log(np.exp(scores - scores[label]).sum()))
        elif name == "center_loss":
            values.append(np.clip(sum((x - own) ** 2), 1e-12, 1e12))
        else:
            values.append(1 - x @ own / np.linalg.norm(x) / np.linalg.norm(own))
    return np.array(values)


def proxy_anchor_parts(embeddings, labels, proxies):
    """Each example's part, as the docstring has it."""
    parts, present = [], len(set(labels.tolist()))
    push = np.mean([of_proxy(embeddings, labels, proxies, p)[1] for p in range(len(proxies))])
    for label in labels.tolist():
        alike = np.sum(labels == label)
        pull = of_proxy(embeddings, labels, proxies, label)[0]
        parts.append(len(labels) / present / alike * pull + push)
    return np.array(parts)


def published_proxy_anchor(embeddings, labels, proxies, **hyper):
    """Eq. 4 of the paper, proxy by proxy."""
    both = [of_proxy(embeddings, labels, proxies, p, **hyper) for p in range(len(proxies))]
    pull = [both[p][0] for p in sorted(set(labels.tolist()))]
    return sum(pull) / len(pull) + sum(push for _, push in both) / len(proxies)


def of_proxy(embeddings, labels, proxies, p, margin=0.1, scale=32.0):
    """What pulls examples to a proxy, and what pushes others."""
    pull, push = 1.0, 1.0
    for x, label in zip(embeddings, labels, strict=True):
        s = x @ proxies[p] / np.linalg.norm(x) / np.linalg.norm(proxies[p])
        if label == p:
            pull += np.exp(-scale * (s - margin))
        else:
            push += np.exp(scale * (s + margin))
    return np.log(pull), np.log(push)


# --- Against the official implementations -----------------------------------------------------------------------------


def assert_official(loss, both, file, keys, dtype):
    """The mean, its gradients by both arguments, and the value of every example where there is one."""

    def mean(embeddings, points):
        per_example = loss(embeddings, points)
        return jnp.mean(per_example), per_example

    both = [jnp.asarray(array, dtype) for array in both]
    (value, per_example), gradients = jax.jit(jax.value_and_grad(mean, argnums=(0, 1), has_aux=True))(*both)
    assert per_example.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    rtol = {"float32": 1e-5, "float64": 1e-10}[dtype.name]
    np.testing.assert_allclose(value, file["loss"], rtol=rtol)
    if "loss_per_example" in file:
        np.testing.assert_allclose(per_example, file["loss_per_example"], rtol=rtol, atol=0.1 * rtol)
    for gradient, key in zip(gradients, keys, strict=True):
        np.testing.assert_allclose(gradient, file[key], rtol=0, atol=rtol * np.abs(file[key]).max())


def test_norm_softmax_equals_the_official_one(golden, dtype):
    file = golden("normsoftmax")
    labels, temperature = file["labels"].astype(np.int32), float(file["temperature"])

    def loss(embeddings, weight):
        return losses.norm_softmax(embeddings, labels, proxies=weight, temperature=temperature)

    assert_official(loss, (file["embeddings"], file["weight"]), file, ("grad_embeddings", "grad_weight"), dtype)


@pytest.mark.parametrize(("name", "file"), [("center_loss", "ifl_center"), ("center_cosine_loss", "ifl_center_cos")])
def test_center_losses_equal_the_official_ones(name, file, golden, dtype):
    file = golden(file)

    def loss(features, centers):
        return call(name, features, file["labels"].astype(np.int32), centers)

    assert_official(loss, (file["features"], file["centers"]), file, ("grad_features", "grad_centers"), dtype)


# --- Against float64 NumPy --------------------------------------------------------------------------------------------


@every_loss
def test_value_and_gradient_equal_the_formula(name, dtype):
    embeddings, labels, points = batch()
    narrow = jnp.asarray(embeddings, dtype), jnp.asarray(points, dtype)
    expected = oracle(name, embeddings, labels, points)
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(call(name, narrow[0], labels, narrow[1]), expected, rtol=rtol, atol=rtol)
    gradients = jax.grad(lambda x, w: jnp.sum(call(name, x, labels, w)), argnums=(0, 1))(*narrow)
    slopes = (
        reference.slope(lambda x: oracle(name, x, labels, points).sum(), embeddings),
        reference.slope(lambda w: oracle(name, embeddings, labels, w).sum(), points),
    )
    rtol = 1e-5 if dtype == np.float32 else 1e-7  # The second is that of the finite difference.
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=0, atol=rtol * np.abs(slope).max())


# --- What must hold ---------------------------------------------------------------------------------------------------


@every_loss
def test_a_rotation_of_everything_changes_nothing(name):
    embeddings, labels, points = batch()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    with jax.enable_x64(True):
        before = call(name, embeddings, labels, points)
        np.testing.assert_allclose(call(name, embeddings @ rotation, labels, points @ rotation), before, rtol=1e-11)


def test_what_does_not_depend_on_lengths():
    embeddings, labels, points = batch()
    lengths = np.arange(1.0, 5.0)[:, None]
    with jax.enable_x64(True):
        for name in ("norm_softmax", "proxy_anchor", "center_cosine_loss"):
            before = call(name, embeddings, labels, points)
            np.testing.assert_allclose(call(name, embeddings, labels, lengths * points), before, rtol=1e-12)
        np.testing.assert_allclose(call("center_cosine_loss", 7 * embeddings, labels, points), before, rtol=1e-12)


@pytest.mark.parametrize("hyper", [{}, {"margin": 0.3, "scale": 4.0}], ids=["default", "other"])
@pytest.mark.parametrize("classes", [1, 2, 4, 9])
def test_the_mean_of_proxy_anchor_is_the_published_loss(classes, hyper):
    """Also where the batch lacks some of the classes."""
    embeddings, labels, proxies = batch(examples=7, classes=classes)
    with jax.enable_x64(True):
        value = jnp.mean(losses.proxy_anchor(embeddings, labels, proxies=proxies, **hyper))
    np.testing.assert_allclose(value, published_proxy_anchor(embeddings, labels, proxies, **hyper), rtol=1e-12)


def test_proxy_anchor_does_not_depend_on_lengths():
    embeddings, labels, proxies = batch()
    with jax.enable_x64(True):
        before = losses.proxy_anchor(embeddings, labels, proxies=proxies)
        longer = np.arange(1.0, 7.0)[:, None] * embeddings
        np.testing.assert_allclose(losses.proxy_anchor(longer, labels, proxies=proxies), before, rtol=1e-12)


def test_examples_that_are_masked_take_no_part_whatever_they_hold():
    embeddings, labels, proxies = batch(examples=9)
    mask = np.arange(9) % 3 != 1
    spoilt = np.where(mask[:, None], embeddings, np.nan)
    marked = np.where(mask, labels, -7).astype(np.int32)
    with jax.enable_x64(True):

        def mean(x, w, **given):
            of_each = losses.proxy_anchor(x, proxies=w, **given)
            return jnp.sum(of_each) / 6, of_each

        of_all = jax.value_and_grad(functools.partial(mean, labels=marked, mask=mask), argnums=(0, 1), has_aux=True)
        of_kept = jax.value_and_grad(functools.partial(mean, labels=labels[mask]), argnums=(0, 1), has_aux=True)
        (value, of_each), gradients = of_all(jnp.asarray(spoilt), proxies)
        (expected, _), slopes = of_kept(jnp.asarray(embeddings[mask]), proxies)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(value, published_proxy_anchor(embeddings[mask], labels[mask], proxies), rtol=1e-12)
    np.testing.assert_array_equal(of_each[~mask], 0.0)
    np.testing.assert_array_equal(gradients[0][~mask], 0.0)
    np.testing.assert_allclose(gradients[0][mask], slopes[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradients[1], slopes[1], rtol=1e-9, atol=1e-12)


def test_proxy_anchor_of_nothing_is_zero(variant):
    embeddings, labels, proxies = batch()
    loss = functools.partial(losses.proxy_anchor, labels=labels, proxies=proxies, mask=np.zeros(6, bool))
    value, gradient = variant(lambda x: (loss(x), jax.grad(lambda x: jnp.sum(loss(x)))(x)))(jnp.asarray(embeddings))
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_proxy_anchor_is_as_without_examples_whose_traced_labels_are_no_class():
    embeddings, labels, proxies = batch()
    marked = labels.copy()
    marked[[1, 4]] = -1, 4
    kept = np.isin(np.arange(6), (1, 4), invert=True)
    value = jax.jit(functools.partial(losses.proxy_anchor, proxies=proxies))(embeddings, jnp.asarray(marked))
    expected = losses.proxy_anchor(embeddings[kept], labels[kept], proxies=proxies)
    np.testing.assert_allclose(value[kept], expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [32.0, 1e4])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_saturated_proxy_anchor_is_finite(direction, scale, variant):
    """All at their proxy and away from the others, or all at another one."""
    labels = jnp.array([0, 0, 1, 1])
    embeddings = direction * jnp.array([[3.0], [1.0], [-1.0], [-2.0]])

    def loss(x, w):
        return jnp.mean(losses.proxy_anchor(x, labels, proxies=w, scale=scale))

    value, gradients = variant(jax.value_and_grad(loss, argnums=(0, 1)))(embeddings, jnp.array([[1.0], [-1.0]]))
    chex.assert_tree_all_finite(gradients)
    if direction > 0:
        np.testing.assert_allclose(value, 2 * np.log1p(2 * np.exp(-0.9 * scale)), rtol=1e-4)
    else:
        np.testing.assert_allclose(value, 2 * (np.log(2) + 1.1 * scale), rtol=1e-6)


def test_class_weights_multiply_what_pulls_and_their_mean_what_pushes():
    embeddings, labels, proxies = batch(examples=8)
    weights = np.array([0.3, 0.9, 1.4, 2.0])
    both = [of_proxy(embeddings, labels, proxies, p) for p in range(4)]
    present = sorted(set(labels.tolist()))
    expected = np.mean([weights[p] * both[p][0] for p in present])
    expected += np.mean(weights[labels]) * np.mean([push for _, push in both])
    with jax.enable_x64(True):
        value = jnp.mean(weights[labels] * losses.proxy_anchor(embeddings, labels, proxies=proxies))
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_norm_softmax_is_soft_triple_with_one_centre():
    embeddings, labels, proxies = batch()
    one = losses.soft_triple(embeddings, labels, centers=proxies[:, None, :], scale=20.0, margin=0.0)
    np.testing.assert_allclose(losses.norm_softmax(embeddings, labels, proxies=proxies), one, rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e15])
def test_points_of_any_length_keep_value_and_gradient_finite(name, length, variant):
    embeddings, labels, points = batch()
    embeddings = embeddings if name == "norm_softmax" else jnp.asarray(length * embeddings)
    total = functools.partial(lambda x, w: jnp.sum(call(name, x, labels, w)), embeddings)
    chex.assert_tree_all_finite(variant(jax.value_and_grad(total))(length * jnp.asarray(points)))


@every_loss
def test_a_single_class_and_example(name, variant):
    value, gradient = variant(jax.value_and_grad(lambda x: jnp.sum(call(name, x, jnp.array([0]), x))))(jnp.ones((1, 3)))
    np.testing.assert_allclose(value, 0.0, atol=2e-7)
    np.testing.assert_allclose(gradient, 0.0, atol=2e-7)


def test_center_loss_is_clamped(variant):
    """With no gradient beyond, as in the official code."""
    features = jnp.array([[0.0], [2e6], [3.0]])
    loss = variant(lambda x: losses.center_loss(x, jnp.zeros(3, jnp.int32), centers=jnp.zeros((1, 1))))
    np.testing.assert_allclose(loss(features), [1e-12, 1e12, 9.0], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(loss(x)))(features)[:, 0], [0.0, 0.0, 6.0], rtol=1e-6)


@every_loss
@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_what_is_narrow_is_upcast_first(name, narrow):
    embeddings, labels, points = batch()
    embeddings, points = jnp.asarray(embeddings, narrow), jnp.asarray(points, narrow)
    value = call(name, embeddings, labels, points)
    assert value.dtype == jnp.float32
    wide = call(name, embeddings.astype(jnp.float32), labels, points.astype(jnp.float32))
    np.testing.assert_array_equal(value, wide)


# --- Bad input --------------------------------------------------------------------------------------------------------


@every_loss
def test_traced_labels_that_are_no_class_give_nan(name):
    embeddings, _, points = batch()
    labels = jnp.array([-1, 2, 4, -5, 2**31 - 1, 3])
    is_class = np.array([False, True, False, False, False, True])

    def total(embeddings, labels):
        value = call(name, embeddings, labels, points)
        return jnp.nansum(value), value

    gradient, value = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(embeddings), labels)
    np.testing.assert_array_equal(np.isfinite(value), is_class)
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=1), is_class)


@every_loss
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": np.zeros(5, np.float32)}, r"{x} must have shape \[batch, dim\], got \(5,\)"),
        ({"embeddings": np.zeros((6, 5), np.int32)}, "{x} must be floating point, got int32"),
        (
            {"embeddings": np.zeros((6, 4), np.float32)},
            r"{x} and {w} must have the same last dimension, got \(6, 4\) and \(4, 5\)",
        ),
        ({"labels": np.zeros(5, np.int32)}, r"labels must have shape \(6,\), one per sample, got \(5,\)"),
        ({"labels": np.zeros(6, np.float32)}, "labels must be integers, got float32"),
        ({"labels": np.full(6, 4, np.int32)}, r"labels must lie in \[0, 4\), got 4 at position 0"),
        ({"points": np.zeros((4, 1, 5), np.float32)}, r"{w} must have shape \[classes, dim\].*\(4, 1, 5\)"),
        ({"points": np.zeros((0, 5), np.float32)}, r"{w} must have shape .*none of them 0, got \(0, 5\)"),
        ({"points": np.zeros((4, 5), np.int32)}, "{w} must be floating point, got int32"),
    ],
)
def test_bad_input_raises(name, changed, message):
    _, w, x = ALL[name]
    arguments = dict(zip(("embeddings", "labels", "points"), batch(), strict=True)) | changed
    with pytest.raises(ValueError, match=message.replace("{x}", x).replace("{w}", w)):
        call(name, **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"margin": -0.1}, r"margin must be a finite number in \[0, 1\], got -0.1"),
        ({"margin": 1.5}, r"margin must be a finite number in \[0, 1\], got 1.5"),
        ({"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"mask": np.ones(5, bool)}, r"mask must be boolean of shape \(6,\), got bool \(5,\)"),
        ({"mask": np.ones(6, np.float32)}, r"mask must be boolean of shape \(6,\), got float32 \(6,\)"),
    ],
)
def test_proxy_anchor_refuses(changed, message, variant):
    with pytest.raises(ValueError, match=message):
        variant(lambda: call("proxy_anchor", *batch(), **changed))()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "1"])
def test_a_bad_temperature_raises(bad):
    with pytest.raises(ValueError, match=f"temperature must be a finite number > 0, got {bad!r}"):
        call("norm_softmax", *batch(), temperature=bad)
