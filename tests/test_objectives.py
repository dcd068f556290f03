"""One rule by which class weights enter the loss, and the plain objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.objectives import Regularized, Supervised, Term, total_loss

BATCH, CLASSES = 24, 5


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    return {
        "losses": rng.gamma(2.0, 1.0, (3, BATCH)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, (3, BATCH)).astype(np.int32),
        "weights": rng.gamma(2.0, 1.0, CLASSES).astype(np.float32),
        "mask": rng.random(BATCH) < 0.6,
    }


def by_hand(terms, weights, mask):
    """Σ_terms mean(scale·weights[labels]·losses) over the examples that count, in float64."""
    weights = np.asarray(weights, np.float64)
    total = 0.0
    for values, labels, scale in terms:
        weight = np.ones(len(values)) if labels is None else weights[labels]
        total += np.mean((scale * weight * np.asarray(values, np.float64))[mask])
    return total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("use_jit", [False, True])
def test_total_loss_is_that_of_numpy(numbers, masked, use_jit):
    rows = [
        (numbers["losses"][0], numbers["labels"][0], 0.3),
        (numbers["losses"][1], numbers["labels"][1], 0.7),
        (numbers["losses"][2], None, -0.25),
    ]
    mask = numbers["mask"] if masked else np.ones(BATCH, bool)

    def total(weights):
        terms = [Term(jnp.asarray(a), None if b is None else jnp.asarray(b), c) for a, b, c in rows]
        return total_loss(terms, weights, mask=jnp.asarray(mask) if masked else None)

    total = jax.jit(total) if use_jit else total
    np.testing.assert_allclose(total(numbers["weights"]), by_hand(rows, numbers["weights"], mask), rtol=1e-6)


def test_the_scale_is_1_unless_given_and_may_be_traced(numbers):
    values, labels, weights = numbers["losses"][0], numbers["labels"][0], jnp.asarray(numbers["weights"])
    plain = total_loss([Term(values, labels)], weights)
    traced = jax.jit(lambda scale: total_loss([Term(values, labels, scale)], weights))(jnp.float32(0.4))
    np.testing.assert_allclose(plain, by_hand([(values, labels, 1.0)], weights, slice(None)), rtol=1e-6)
    np.testing.assert_allclose(traced, 0.4 * plain, rtol=1e-6)


def test_an_unlabeled_term_does_not_see_the_weights(numbers):
    values = jnp.asarray(numbers["losses"][0])
    totals = [total_loss([Term(values, None)], factor * jnp.asarray(numbers["weights"])) for factor in (1.0, 7.0)]
    assert totals[0] == totals[1]
    np.testing.assert_allclose(totals[0], np.mean(numbers["losses"][0], dtype=np.float64), rtol=1e-6)


def test_masked_examples_may_hold_anything(numbers):
    mask = numbers["mask"]
    clean = [
        Term(jnp.asarray(numbers["losses"][0]), jnp.asarray(numbers["labels"][0])),
        Term(numbers["losses"][1], None),
    ]
    dirty = [
        Term(jnp.where(mask, clean[0].losses, jnp.nan), jnp.where(mask, clean[0].labels, CLASSES + 3)),
        Term(jnp.where(mask, clean[1].losses, jnp.inf), None),
    ]
    weights = jnp.asarray(numbers["weights"])
    assert total_loss(dirty, weights, mask=mask) == total_loss(clean, weights, mask=mask)


def test_gradients_are_scale_times_weight_over_samples_and_weights_have_none(numbers):
    mask, labels, weights = numbers["mask"], numbers["labels"][0], numbers["weights"]

    def total(values, weights):
        return total_loss([Term(values, jnp.asarray(labels), 0.3)], weights, mask=jnp.asarray(mask))

    of_losses, of_weights = jax.grad(total, argnums=(0, 1))(jnp.asarray(numbers["losses"][0]), jnp.asarray(weights))
    np.testing.assert_allclose(of_losses, np.where(mask, 0.3 * weights[labels] / mask.sum(), 0.0), rtol=1e-6)
    np.testing.assert_array_equal(of_weights, np.zeros(CLASSES))


def test_a_label_without_a_weight_is_refused(numbers):
    labels = numbers["labels"][0].copy()
    labels[7] = CLASSES
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, {CLASSES}\), got {CLASSES} at position 7"):
        total_loss([Term(numbers["losses"][0], labels)], jnp.asarray(numbers["weights"]))


def run_supervised(logits, labels, mask=None):
    outputs = models.Outputs(jnp.asarray(logits), jnp.ones((len(labels), 2)))
    batch = {"image": "the images", "label": jnp.asarray(labels)} | ({} if mask is None else {"mask": mask})
    seen = []
    objective = Supervised(losses.create("focal", gamma=1.5))
    result = objective(lambda images: seen.append(images) or outputs, batch, (), jax.random.key(0))
    assert seen == ["the images"]
    return result, outputs


def test_supervised_is_one_term_of_the_loss(numbers):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(BATCH, CLASSES)).astype(np.float32), numbers["labels"][0]
    result, outputs = run_supervised(logits, labels)
    (term,) = result.terms
    exp = np.exp(logits.astype(np.float64))
    p = (exp / exp.sum(axis=1, keepdims=True))[np.arange(BATCH), labels]
    np.testing.assert_allclose(term.losses, -((1 - p) ** 1.5) * np.log(p), rtol=1e-5)
    np.testing.assert_array_equal(term.labels, labels)
    assert term.scale == 1.0
    assert result.features is outputs.features
    np.testing.assert_array_equal(result.labels, labels)
    assert result.mask is None
    assert result.state == ()
    np.testing.assert_allclose(result.metrics["accuracy"], np.mean(logits.argmax(axis=1) == labels), rtol=1e-6)


def test_supervised_accuracy_is_over_the_examples_that_count(numbers):
    labels, mask = np.arange(4) % 2, np.array([True, True, True, False])
    logits = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]  # right, right, wrong; the last is padding
    result, _ = run_supervised(logits, labels, jnp.asarray(mask))
    np.testing.assert_allclose(result.metrics["accuracy"], 2 / 3, rtol=1e-6)
    np.testing.assert_array_equal(result.mask, mask)


def test_supervised_has_no_state():
    objective = Supervised(losses.create("cross_entropy"))
    state = objective.init(jax.random.key(0), {}, None)
    assert jax.tree.leaves(state) == []
    assert objective.after_update(state, {"w": jnp.ones(2)}) == state


@pytest.mark.parametrize("name", ["lade_a", "lade_b"])
def test_class_weights_multiply_the_adjusted_cross_entropy_of_lade_and_not_its_regularizer(golden, name):
    file = golden(name)
    labels, prior = file["labels"].astype(np.int32), file["counts"] / file["counts"].sum()
    regularizer = functools.partial(losses.lade_regularizer, prior=prior, penalty=float(file["remine_lambda"]))
    supervised = Supervised(functools.partial(losses.logit_adjusted, prior=prior))
    objective = Regularized(supervised, regularizer, scale=float(file["lade_weight"]))
    batch = {"image": "the images", "label": jnp.asarray(labels)}
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 10).astype(np.float32)
    seen = []

    def loss(logits, weights):
        outputs = models.Outputs(logits, jnp.ones((len(labels), 2)))
        result = objective(lambda images: seen.append(images) or outputs, batch, (), jax.random.key(0))
        return total_loss(result.terms, weights)

    logits = jnp.asarray(file["logits"], jnp.float32)
    value, gradient = jax.value_and_grad(loss)(logits, jnp.ones(10))
    assert seen == ["the images"]  # they pass through the model once
    np.testing.assert_allclose(value, file["loss_total"], rtol=1e-5)
    np.testing.assert_allclose(gradient, file["grad_logits_total"], rtol=1e-4, atol=1e-6)
    adjusted = file["logits"] + np.log(prior)
    cross_entropy = np.log(np.exp(adjusted).sum(1)) - adjusted[np.arange(len(labels)), labels]
    expected = np.mean(weights[labels] * cross_entropy) + file["lade_weight"] * file["loss_lade"]
    np.testing.assert_allclose(loss(logits, jnp.asarray(weights)), expected, rtol=1e-5)
    assert objective.loss is supervised.loss


def test_what_is_masked_is_not_regularized():
    prior, mask = np.array([0.5, 0.5]), jnp.array([True, True, False])
    regularizer = functools.partial(losses.lade_regularizer, prior=prior)
    objective = Regularized(Supervised(losses.create("cross_entropy")), regularizer, scale=0.1)
    logits = jnp.array([[1.0, 0.0], [0.5, 2.0], [50.0, -50.0]])

    def value(number):
        outputs = models.Outputs(logits[:number], jnp.ones((number, 2)))
        batch = {"image": "the images", "label": jnp.array([0, 1, 1])[:number], "mask": mask[:number]}
        return objective(lambda images: outputs, batch, (), jax.random.key(0)).terms[-1].losses[0]

    np.testing.assert_allclose(value(3), value(2), rtol=1e-6)
