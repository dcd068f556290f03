"""NormSoftmax, SoftTriple and Proxy Anchor as objectives, through their heads, and Circle, alone and beside another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.models import heads
from dsb_jax.objectives import (
    Circle,
    CircleExtension,
    DomainBalancing,
    NormSoftmax,
    ProxyAnchor,
    SoftTriple,
    Supervised,
    total_loss,
)

RNG = jax.random.key(0)
LENGTHS = np.random.default_rng(3).uniform(0.3, 4.0, (32, 1))


def on_the_sphere(gradient, embeddings):
    """The gradient to features of other lengths, of which the official code is given the directions."""
    return (gradient - np.sum(gradient * embeddings, 1, keepdims=True) * embeddings) / LENGTHS


def run(objective, head, file, dtype, weights=None):
    """Value, gradients and result, of features that are not at length 1 yet."""
    batch = {"image": "the images", "label": jnp.asarray(file["labels"].astype(np.int32))}
    weights = jnp.ones(10, dtype) if weights is None else jnp.asarray(weights, dtype)

    def loss(features, kernel):
        outputs = models.Outputs(head.apply({"params": {"kernel": kernel}}, features), features, kernel.T)
        result = objective(lambda images: outputs, batch, objective.init(RNG, {}, outputs), RNG)
        return total_loss(result.terms, weights), (result, outputs)

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return both(jnp.asarray(file["embeddings"] * LENGTHS, dtype), jnp.asarray(file["kernel"], dtype))


@pytest.fixture
def norm_softmax(golden):
    file = golden("normsoftmax")
    return file | {"kernel": file["weight"].T}


def soft_triple(file):
    kernel = file["centers"].reshape(16, 10, int(file["K"])).transpose(0, 2, 1)  # columns are class·K + k
    objective = SoftTriple(float(file["la"]), float(file["gamma"]), float(file["tau"]), float(file["margin"]))
    return objective, heads.SoftTripleHead(10, centers=int(file["K"]), gamma=objective.gamma), file | {"kernel": kernel}


def test_norm_softmax_equals_the_official_one(norm_softmax, dtype):
    file, tolerance = norm_softmax, {"float32": 1e-5, "float64": 1e-10}[dtype.name]
    objective = NormSoftmax(float(file["temperature"]))
    (value, (result, outputs)), gradients = run(objective, heads.CosineHead(10), file, dtype)
    np.testing.assert_allclose(value, file["loss"], rtol=tolerance)
    (term,) = result.terms
    np.testing.assert_allclose(term.losses, file["loss_per_example"], rtol=tolerance, atol=10 * tolerance)
    expected = on_the_sphere(file["grad_embeddings"], file["embeddings"])
    np.testing.assert_allclose(gradients[0], expected, rtol=10 * tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(gradients[1], file["grad_weight"].T, rtol=10 * tolerance, atol=10 * tolerance)
    # Evaluation reports the same loss of what the head says.
    evaluated = objective.loss(outputs.logits, result.labels)
    np.testing.assert_allclose(evaluated, file["loss_per_example"], rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(result.features, file["embeddings"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(result.logits * objective.temperature, outputs.logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["softtriple_k1", "softtriple_notau", "softtriple_tau"])
def test_soft_triple_equals_the_official_one(name, golden, dtype):
    objective, head, file = soft_triple(golden(name))
    tolerance = {"float32": 1e-5, "float64": 1e-10}[dtype.name]
    (value, (result, outputs)), gradients = run(objective, head, file, dtype)
    np.testing.assert_allclose(value, file["loss"], rtol=tolerance)
    assert len(result.terms) == (1 if objective.tau == 0 else 2)
    per_example = file["loss_classify_per_example"]
    np.testing.assert_allclose(result.terms[0].losses, per_example, rtol=tolerance, atol=10 * tolerance)
    expected = on_the_sphere(file["grad_embeddings"], file["embeddings"])
    np.testing.assert_allclose(gradients[0], expected, rtol=10 * tolerance, atol=10 * tolerance)
    expected = file["grad_centers"].reshape(16, 10, -1).transpose(0, 2, 1)
    np.testing.assert_allclose(gradients[1], expected, rtol=10 * tolerance, atol=10 * tolerance)
    evaluated = objective.loss(outputs.logits, result.labels)
    np.testing.assert_allclose(evaluated, per_example, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(result.features, file["embeddings"], rtol=tolerance, atol=tolerance)


def test_class_weights_multiply_the_loss_of_soft_triple_and_not_its_regularizer(golden):
    objective, head, file = soft_triple(golden("softtriple_tau"))
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 10)
    (value, _), _ = run(objective, head, file, np.float32, weights)
    regularizer = file["loss"] - file["loss_classify"]
    expected = np.mean(weights[file["labels"]] * file["loss_classify_per_example"]) + regularizer
    assert regularizer > 0.1
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["norm_softmax", "soft_triple"])
def test_a_mixed_image_has_a_term_for_each_of_its_labels(kind, golden, norm_softmax):
    if kind == "norm_softmax":
        objective, head, file = NormSoftmax(), heads.CosineHead(10), norm_softmax
    else:
        objective, head, file = soft_triple(golden("softtriple_notau"))
    features, kernel = jnp.asarray(file["embeddings"], jnp.float32), jnp.asarray(file["kernel"], jnp.float32)
    outputs = models.Outputs(head.apply({"params": {"kernel": kernel}}, features), features, kernel.T)
    labels, share = jnp.asarray(file["labels"].astype(np.int32)), jnp.linspace(0.1, 0.9, 32)
    others = jnp.roll(labels, 1)
    batch = {"image": "the images", "label": labels, "other_label": others, "share": share}
    result = objective(lambda images: outputs, batch, (), RNG)
    own, other = result.terms
    np.testing.assert_allclose(own.losses, share * objective.loss(outputs.logits, labels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.losses, (1 - share) * objective.loss(outputs.logits, others), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(own.labels, labels)
    np.testing.assert_array_equal(other.labels, others)
    np.testing.assert_array_equal(result.labels, np.where(share >= 0.5, labels, others))


@pytest.mark.parametrize(
    ("objective", "classifier", "message"),
    [
        (
            NormSoftmax(),
            None,
            r"norm_softmax needs .* \[classes, dim\], head='cosine'; got None",
        ),
        (NormSoftmax(), (5, 2, 3), r"head='cosine'; got \(5, 2, 3\)"),
        (ProxyAnchor(), None, r"proxy_anchor needs .* \[classes, dim\], head='cosine'; got None"),
        (SoftTriple(), None, r"soft_triple needs .* \[classes, centers, dim\], head='soft_triple'; got None"),
        (SoftTriple(), (5, 3), r"head='soft_triple'; got \(5, 3\)"),
    ],
)
def test_a_model_without_what_they_compare_with_is_refused(objective, classifier, message):
    outputs = models.Outputs(jnp.ones((2, 5)), jnp.ones((2, 3)), classifier and jnp.ones(classifier))
    with pytest.raises(ValueError, match=message):
        objective.init(RNG, {}, outputs)
    batch = {"image": "the images", "label": jnp.array([0, 1])}
    with pytest.raises(ValueError, match=message):
        objective(lambda images: outputs, batch, (), RNG)


@pytest.mark.parametrize("objective", [NormSoftmax(), DomainBalancing(), ProxyAnchor()])
def test_a_linear_head_is_refused(objective):
    """Its class weights have the shape of a cosine head's, and its logits are no cosines."""
    images = jnp.ones((2, 8, 8, 1))
    for head in ("cosine", "linear"):
        model = models.create("lenet", 3, head=head)
        outputs, variables = model.init_with_output(RNG, images, train=False)
        if head == "cosine":
            assert objective.init(RNG, variables, outputs) == ()
        else:
            with pytest.raises(ValueError, match=r"needs logits that are cosines, got a linear head: .*head=cosine"):
                objective.init(RNG, variables, outputs)


def test_proxy_anchor_is_the_loss_of_the_batch_and_reports_that_of_each_example_alone(norm_softmax):
    file, objective = norm_softmax, ProxyAnchor(margin=0.2, scale=8.0)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 10)
    (value, (result, outputs)), gradients = run(objective, heads.CosineHead(10), file, np.float32, weights)
    embeddings, labels, proxies = file["embeddings"], file["labels"].astype(np.int32), file["weight"]
    hyper = {"margin": 0.2, "scale": 8.0}
    parts = losses.proxy_anchor(embeddings, labels, proxies=proxies, **hyper)
    np.testing.assert_allclose(value, np.mean(weights[labels] * parts), rtol=1e-5)
    (term,) = result.terms
    np.testing.assert_allclose(term.losses, parts, rtol=1e-5)
    np.testing.assert_array_equal(term.labels, labels)
    assert all(np.any(np.asarray(gradient) != 0) for gradient in gradients)  # of features, and of proxies
    np.testing.assert_allclose(result.features, embeddings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.logits, 8.0 * outputs.logits, rtol=1e-6)
    alone = [losses.proxy_anchor(embeddings[i : i + 1], labels[i : i + 1], proxies=proxies, **hyper)[0] for i in (0, 7)]
    np.testing.assert_allclose(objective.loss(outputs.logits, labels)[np.array([0, 7])], alone, rtol=1e-5)


def test_proxy_anchor_leaves_out_what_is_masked_and_refuses_what_is_mixed(norm_softmax):
    features, kernel = (jnp.asarray(norm_softmax[key], jnp.float32) for key in ("embeddings", "kernel"))
    labels, kept = jnp.asarray(norm_softmax["labels"].astype(np.int32)), np.arange(32) < 20

    def parts(rows, **more):
        outputs = models.Outputs(heads.CosineHead(10).apply({"params": {"kernel": kernel}}, features), features)
        seen = models.Outputs(outputs.logits[rows], features[rows], kernel.T)
        batch = {"image": "the images", "label": labels[rows]} | more
        return ProxyAnchor()(lambda images: seen, batch, (), RNG).terms[0].losses

    rows = jnp.arange(32)
    masked = parts(rows, mask=jnp.asarray(kept))
    np.testing.assert_allclose(masked[:20], parts(rows[:20]), rtol=1e-5)
    np.testing.assert_array_equal(masked[20:], 0.0)
    with pytest.raises(ValueError, match="proxy_anchor compares images by their class, and mixed ones have two"):
        parts(rows, share=jnp.ones(32), other_label=labels)


def test_circle_alone_is_the_official_loss_of_each_anchor_and_leaves_the_logits_be(golden):
    file = golden("circle_pml_m04_g80")
    features, labels = jnp.asarray(file["embeddings"], jnp.float32), jnp.asarray(file["labels"].astype(np.int32))
    batch, objective = {"image": "the images", "label": labels}, Circle()
    weights = np.linspace(0.5, 1.5, 100)

    def loss(features, logits):
        outputs = models.Outputs(logits, features, jnp.ones((100, features.shape[1])))
        result = objective(lambda images: outputs, batch, objective.init(RNG, {}, outputs), RNG)
        return total_loss(result.terms, jnp.asarray(weights, jnp.float32)), result

    logits = jnp.zeros((32, 100))
    (value, result), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(jnp.asarray(LENGTHS) * features, logits)
    official = file["loss_per_anchor"][:, 0]
    np.testing.assert_allclose(value, np.mean(weights[file["labels"]] * official), rtol=1e-5)
    (term,) = result.terms
    np.testing.assert_allclose(term.losses, official, rtol=1e-5, atol=1e-5)
    assert (term.scale, result.logits, result.classifier) == (1.0, None, None)
    np.testing.assert_allclose(jnp.linalg.norm(result.features, axis=1), 1.0, rtol=1e-6)
    assert bool(jnp.any(gradients[0] != 0))
    np.testing.assert_array_equal(gradients[1], 0.0)
    with pytest.raises(ValueError, match="circle compares images by their class, and mixed ones have two"):
        objective(None, batch | {"share": jnp.ones(32)}, (), RNG)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Circle(margin=2.0), r"margin must be .* in \[0, 1\], got 2.0"),
        (lambda: Circle(scale=0.0), "scale must be .* > 0, got 0.0"),
        (lambda: CircleExtension(Circle(), weight=-1.0), "weight must be .* >= 0, got -1.0"),
        (lambda: ProxyAnchor(margin=2.0), r"margin must be .* in \[0, 1\], got 2.0"),
        (lambda: ProxyAnchor(scale=0.0), "scale must be .* > 0, got 0.0"),
    ],
)
def test_bad_numbers_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_circle_adds_the_official_loss_of_each_anchor(golden):
    file = golden("circle_pml_m04_g80")
    features, labels = jnp.asarray(file["embeddings"], jnp.float32), jnp.asarray(file["labels"].astype(np.int32))
    outputs = models.Outputs(jnp.zeros((32, 100)), features)
    objective = CircleExtension(Supervised(losses.create("cross_entropy")), weight=0.5)
    batch = {"image": "the images", "label": labels}
    result = objective(lambda images: outputs, batch, objective.init(RNG, {}, outputs), RNG)
    own, of_anchors = result.terms
    np.testing.assert_allclose(own.losses, np.log(100), rtol=1e-6)
    np.testing.assert_allclose(of_anchors.losses, file["loss_per_anchor"][:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(of_anchors.labels, labels)
    weights = np.linspace(0.5, 1.5, 100)
    expected = np.mean(weights[file["labels"]] * (np.log(100) + 0.5 * file["loss_per_anchor"][:, 0]))
    np.testing.assert_allclose(total_loss(result.terms, jnp.asarray(weights, jnp.float32)), expected, rtol=1e-5)


def test_circle_leaves_out_what_is_masked_and_refuses_what_is_mixed(golden):
    file = golden("circle_pml_m04_g80")
    features, labels = jnp.asarray(file["embeddings"], jnp.float32), jnp.asarray(file["labels"].astype(np.int32))
    objective = CircleExtension(Supervised(losses.create("cross_entropy")))
    kept = np.arange(32) < 20

    def of_anchors(rows, **more):
        outputs = models.Outputs(jnp.zeros((len(rows), 100)), features[rows])
        batch = {"image": "the images", "label": labels[rows]} | more
        return objective(lambda images: outputs, batch, (), RNG).terms[-1].losses

    rows = jnp.arange(32)
    masked, alone = of_anchors(rows, mask=jnp.asarray(kept)), of_anchors(rows[:20])
    # gamma takes a cosine's rounding eighty-fold, and how it is rounded depends on the shape.
    np.testing.assert_allclose(masked[:20], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(masked[20:], 0.0)
    with pytest.raises(ValueError, match="circle compares images by their class, and mixed ones have two"):
        of_anchors(rows, share=jnp.ones(32), other_label=labels)
