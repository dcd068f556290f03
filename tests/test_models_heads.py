"""Heads of two-stage training, against the official numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.models import heads

TOLERANCE = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-10}


def test_scaled_head_is_the_official_one_of_lws(golden, dtype):
    file = golden("lws")
    features, scales = (jnp.asarray(file[name], dtype) for name in ("features", "scales"))
    kernel, bias = jnp.asarray(file["weight"].T, dtype), jnp.asarray(file["bias"], dtype)
    labels = file["labels"].astype(np.int32)
    head = heads.create("scaled", 10)

    def loss(scales, features):
        params = {"kernel": kernel, "bias": bias, "scales": scales}
        logits = head.apply({"params": params}, features)
        return jnp.mean(losses.cross_entropy(logits, labels)), logits

    (value, logits), (of_scales, of_features) = jax.value_and_grad(loss, (0, 1), has_aux=True)(scales, features)
    options = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(logits, file["logits"], **options)
    np.testing.assert_allclose(value, file["loss"], **options)
    np.testing.assert_allclose(of_scales, file["grad_scales"], **options)
    np.testing.assert_allclose(of_features, file["grad_features"], **options)


def test_scales_begin_at_1():
    variables = heads.create("scaled", 3).init(jax.random.key(0), jnp.ones((2, 4)))
    linear = heads.create("linear", 3)
    np.testing.assert_array_equal(variables["params"]["scales"], np.ones(3))
    params = {name: variables["params"][name] for name in ("kernel", "bias")}
    features = jax.random.normal(jax.random.key(1), (5, 4))
    scaled = heads.create("scaled", 3).apply(variables, features)
    np.testing.assert_array_equal(scaled, linear.apply({"params": params}, features))


def test_tau_normalized_head_is_the_official_one(golden, dtype):
    file = golden("tau_norm")
    features, kernel = jnp.asarray(file["features"], dtype), jnp.asarray(file["weight"].T, dtype)
    options = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert len(file["p"]) == 21
    for tau, logits in zip(file["p"], file["logits"], strict=True):
        head = heads.create("tau_normalized", 10, tau=float(tau))
        np.testing.assert_allclose(head.apply({"params": {"kernel": kernel}}, features), logits, **options)


def test_a_class_weight_of_zero_has_a_gradient():
    head, features = heads.create("tau_normalized", 2, tau=1.0), jnp.ones((1, 3))
    kernel = jnp.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    gradient = jax.grad(lambda kernel: jnp.sum(head.apply({"params": {"kernel": kernel}}, features)))(kernel)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("head", heads.NAMES)
def test_every_head_has_its_classes_last(head):
    model = models.create("lenet", 7, head=head)
    variables = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=False)
    outputs = model.apply(variables, jnp.ones((2, 8, 8, 1)), train=False)
    assert outputs.logits.shape == (2, 7)
    centers = (10,) if head == "soft_triple" else ()
    assert variables["params"]["head"]["kernel"].shape == (128, *centers, 7)
    assert outputs.classifier.shape == (7, *centers, 128)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"tau must be a finite number >= 0, got -0\.5"):
        models.create("lenet", 3, head="tau_normalized", head_options={"tau": -0.5})
    with pytest.raises(ValueError, match=r"head_scale belongs to the cosine head, got head_scale=2\.0"):
        models.create("lenet", 3, head="scaled", head_scale=2.0)
    with pytest.raises(ValueError, match="unknown head 'scalde'; did you mean 'scaled'"):
        models.create("lenet", 3, head="scalde")
