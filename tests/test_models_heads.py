"""Heads of methods against the official numbers, SoftTriple's against NumPy, and their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.models import heads

TOLERANCE = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-10}


@pytest.mark.parametrize("head", heads.NAMES)
def test_every_head_has_its_classes_last(head):
    model = models.create("lenet", 7, head=head)
    variables = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=False)
    outputs = model.apply(variables, jnp.ones((2, 8, 8, 1)), train=False)
    assert outputs.logits.shape == (2, 7)
    centers = (10,) if head == "soft_triple" else ()
    assert variables["params"]["head"]["kernel"].shape == (128, *centers, 7)
    assert outputs.classifier.shape == (7, *centers, 128)


# --- Two-stage training -----------------------------------------------------------------------------------------------


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


# --- Deconfound-TDE ---------------------------------------------------------------------------------------------------


def causal(file, **changed):
    options = {"heads": int(file["num_head"])} | {key: float(file[key]) for key in ("tau", "alpha", "gamma", "mu")}
    return heads.CausalHead(10, **options | changed)


@pytest.mark.parametrize("name", ["tde_a", "tde_b"])
def test_the_causal_head_equals_the_official_one(name, golden, dtype):
    file, tolerance = golden(name), {"float32": 1e-5, "float64": 1e-10}[dtype.name]
    head, kernel = causal(file), jnp.asarray(file["weight"].T, dtype)
    statistics = {"mean": jnp.zeros(16, dtype)}
    for batch, mean in zip(file["feature_batches"].astype(dtype), file["embed_mean_history"], strict=True):
        variables = {"params": {"kernel": kernel}, "batch_stats": statistics}
        logits, changed = head.apply(variables, batch, train=True, mutable=["batch_stats"])
        statistics = changed["batch_stats"]
        np.testing.assert_allclose(statistics["mean"], mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(logits, file["logits_train"], rtol=tolerance, atol=tolerance)

    def loss(features, kernel):
        logits, _ = head.apply(
            {"params": {"kernel": kernel}, "batch_stats": statistics}, features, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(losses.cross_entropy(logits, file["labels"].astype(np.int32)))

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(batch, kernel)
    np.testing.assert_allclose(value, file["loss"], rtol=tolerance)
    np.testing.assert_allclose(gradients[0], file["grad_features"], rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(gradients[1], file["grad_weight"].T, rtol=10 * tolerance, atol=tolerance)
    variables = {"params": {"kernel": kernel}, "batch_stats": statistics}
    for alpha, expected in ((head.alpha, "logits_test_effect"), (0.0, "logits_test_no_effect")):
        logits = causal(file, alpha=alpha).apply(variables, batch, train=False)
        np.testing.assert_allclose(logits, file[expected], rtol=tolerance, atol=10 * tolerance)


def test_evaluation_of_the_causal_head_changes_no_statistic():
    head, features = heads.CausalHead(3), jnp.ones((2, 4))
    variables = head.init(jax.random.key(0), features, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(4))
    _, changed = head.apply(variables, features, train=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(changed["batch_stats"]["mean"], np.zeros(4))


def test_nothing_but_zeros_gives_the_causal_head_no_nan():
    head, features = heads.CausalHead(3, gamma=0.0), jnp.zeros((2, 4))
    variables = {"params": {"kernel": jnp.zeros((4, 3))}, "batch_stats": {"mean": jnp.zeros(4)}}

    def total(variables, features, train):
        return jnp.sum(head.apply(variables, features, train=train, mutable=["batch_stats"])[0])

    for train in (True, False):
        for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(variables, features, train)):
            assert np.isfinite(leaf).all()


def test_a_classifier_with_a_causal_head_is_told_whether_it_trains():
    model = models.create("lenet", 3, head="causal", head_options={"heads": 4, "tau": 8.0})
    assert model.head == heads.CausalHead(3, heads=4, tau=8.0)
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    outputs, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(changed["batch_stats"]["head"]["mean"], outputs.features.mean(0), rtol=1e-5, atol=1e-6)
    evaluated = model.apply({"params": variables["params"], **changed}, images, train=False)
    assert np.abs(evaluated.logits - outputs.logits).max() > 1e-2
    np.testing.assert_array_equal(outputs.classifier, variables["params"]["head"]["kernel"].T)
    again, _ = model.apply(variables, outputs.features, train=True, method="classify", mutable=["batch_stats"])
    np.testing.assert_allclose(again, outputs.logits, rtol=1e-6)


def test_features_that_the_causal_head_cannot_cut():
    with pytest.raises(
        ValueError, match="cuts features into heads = 3 parts, which must divide their dimension, got 4"
    ):
        heads.CausalHead(5, heads=3).init(jax.random.key(0), jnp.ones((2, 4)))


# --- SoftTriple -------------------------------------------------------------------------------------------------------


def test_the_soft_triple_head_equals_float64():
    rng = np.random.default_rng(0)
    features, kernel = rng.normal(size=(7, 5)), rng.normal(size=(5, 3, 4))
    logits = heads.SoftTripleHead(4, 2.0, centers=3, gamma=0.3).apply(
        {"params": {"kernel": kernel.astype(np.float32)}}, features.astype(np.float32)
    )
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.einsum("bd,dkc->bkc", unit, kernel / np.linalg.norm(kernel, axis=0))
    shares = np.exp(cosines / 0.3) / np.exp(cosines / 0.3).sum(1, keepdims=True)
    np.testing.assert_allclose(logits, 2 * (shares * cosines).sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["softtriple_k1", "softtriple_tau"])
def test_the_soft_triple_head_is_what_the_loss_compares(name, golden):
    file = golden(name)
    kernel = file["centers"].reshape(16, 10, -1).transpose(0, 2, 1)  # columns are class·K + k
    head = heads.SoftTripleHead(10, float(file["la"]), centers=int(file["K"]), gamma=float(file["gamma"]))
    logits = head.apply({"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, file["embeddings"].astype(np.float32))
    own = np.arange(10) == file["labels"][:, None]
    value = losses.cross_entropy(logits - float(file["la"] * file["margin"]) * own, file["labels"].astype(np.int32))
    np.testing.assert_allclose(value, file["loss_classify_per_example"], rtol=1e-5, atol=1e-5)


def test_a_classifier_with_several_centres_hands_them_out_class_first():
    model = models.create("lenet", 3, head="soft_triple", head_options={"centers": 4})
    images = jnp.ones((2, 8, 8, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    kernel = variables["params"]["head"]["kernel"]
    assert kernel.shape == (128, 4, 3)  # the classes are last, as of every head
    np.testing.assert_allclose(np.var(kernel), 1 / 128, rtol=0.15)  # as of a linear head
    np.testing.assert_array_equal(
        model.apply(variables, images, train=False).classifier, np.transpose(kernel, (2, 1, 0))
    )


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("linear", {"tau": 2.0}, "a linear head has no options, got tau=2.0"),
        ("causal", {"tua": 2.0}, "unknown option of a causal head 'tua'; did you mean 'tau'"),
        ("causal", {"heads": 0}, "heads must be an integer >= 1, got 0"),
        ("causal", {"tau": 0.0}, "tau must be a finite number > 0"),
        ("causal", {"alpha": -1.0}, "alpha must be a finite number >= 0"),
        ("causal", {"gamma": -1.0}, "gamma must be a finite number >= 0"),
        ("causal", {"mu": 1.0}, r"mu must lie in \[0, 1\), got 1.0"),
        ("soft_triple", {"centers": 0}, "centers must be an integer >= 1, got 0"),
        ("soft_triple", {"gamma": 0.0}, "gamma must be a finite number > 0"),
        ("tau_normalized", {"tau": -0.5}, "tau must be a finite number >= 0, got -0.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(head, options, message):
    with pytest.raises(ValueError, match=message):
        models.create("lenet", 3, head=head, head_options=options)


def test_what_no_head_is_or_has_is_refused():
    with pytest.raises(ValueError, match=r"head_scale belongs to the cosine head, got head_scale=2\.0 with a causal"):
        models.create("lenet", 3, head="causal", head_scale=2.0)
    with pytest.raises(ValueError, match="unknown head 'scalde'; did you mean 'scaled'"):
        models.create("lenet", 3, head="scalde")
