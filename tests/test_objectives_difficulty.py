"""LOCE and domain balancing as objectives: the order of things, masks, and what carries gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.objectives import DomainBalancing, Loce, total_loss

RNG = jax.random.key(0)


def softmax(logits):
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def call(objective, outputs, state, labels, **more):
    return objective(lambda images: outputs, {"image": "the images", "label": labels, **more}, state, RNG)


# --- LOCE -------------------------------------------------------------------------------------------------------------


def test_the_loss_of_loce_equals_the_official_one_with_its_scores(golden):
    """Which the state then holds already: a decay of 1 takes in nothing more."""
    file = golden("loce_equilibrium")
    labels, state = jnp.asarray(file["labels"].astype(np.int32)), jnp.asarray(file["mean_score"], jnp.float32)

    def loss(logits):
        outputs = models.Outputs(logits, jnp.ones((32, 2)))
        result = call(Loce(decay=1.0), outputs, state, labels)
        return total_loss(result.terms, jnp.ones(10)), result

    (value, result), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(file["logits"], jnp.float32))
    np.testing.assert_allclose(result.terms[0].losses, file["loss_per_example"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, file["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, file["grad_logits"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result.state, state)


def test_mean_scores_of_loce_follow_the_official_ones(golden):
    """Logits are made so that the scores are those of the file; the background of the detector is left out."""
    file = golden("loce_equilibrium")
    objective = Loce(decay=float(file["ema_alpha"]), initial=float(file["ema_init"]))
    state = objective.init(RNG, {}, models.Outputs(jnp.ones((20, 10)), jnp.ones((20, 2))))
    np.testing.assert_allclose(state, np.full(10, 0.01), rtol=1e-6)
    for scores, labels, expected in zip(file["ema_scores"], file["ema_labels"], file["ema_history"], strict=True):
        probabilities = np.tile(((1 - scores) / 9)[:, None], (1, 10))
        probabilities[np.arange(20), labels] = scores
        outputs = models.Outputs(jnp.asarray(np.log(probabilities), jnp.float32), jnp.ones((20, 2)))
        result = call(objective, outputs, state, jnp.asarray(labels.astype(np.int32)))
        state = result.state.at[-1].set(file["ema_bg_score"])
        np.testing.assert_allclose(state, expected, rtol=1e-5)
    # As there, the batch is taken in before its loss is computed.
    expected = losses.equilibrium(outputs.logits, labels.astype(np.int32), mean_scores=result.state)
    np.testing.assert_allclose(result.terms[0].losses, expected, rtol=1e-6)
    assert np.abs(result.terms[0].losses - losses.cross_entropy(outputs.logits, labels.astype(np.int32))).max() > 0.1


def test_mean_scores_carry_no_gradient():
    logits, labels, state = jax.random.normal(RNG, (6, 3)), jnp.array([0, 1, 2, 0, 1, 2]), jnp.full(3, 0.1)

    def loss(logits, update):
        result = call(Loce(decay=0.5 if update else 1.0), models.Outputs(logits, logits), state, labels)
        return jnp.sum(result.terms[0].losses), result.state

    gradient, scores = jax.grad(loss, has_aux=True)(logits, True)
    held = jax.grad(lambda z: jnp.sum(losses.equilibrium(z, labels, mean_scores=scores)))(logits)
    np.testing.assert_allclose(gradient, held, rtol=1e-5, atol=1e-7)


def test_what_is_masked_has_no_score():
    logits, labels, mask = jax.random.normal(RNG, (6, 3)), jnp.array([0, 1, 2, 0, 1, 2]), jnp.arange(6) < 4

    @jax.jit
    def update(logits, labels, mask):
        return call(Loce(), models.Outputs(logits, logits), jnp.full(3, 0.1), labels, mask=mask).state

    without = update(logits[:4], labels[:4], None)
    np.testing.assert_allclose(update(logits.at[4:].set(jnp.nan), labels.at[4:].set(-1), mask), without, rtol=1e-6)


def test_a_mixed_image_has_the_score_of_its_larger_share():
    logits, labels, others = jax.random.normal(RNG, (4, 3)), jnp.array([0, 1, 2, 0]), jnp.array([1, 2, 0, 2])
    share = jnp.array([0.9, 0.2, 0.6, 0.1])
    result = call(Loce(), models.Outputs(logits, logits), jnp.full(3, 0.1), labels, other_label=others, share=share)
    plain = call(Loce(), models.Outputs(logits, logits), jnp.full(3, 0.1), jnp.array([0, 2, 2, 2]))
    np.testing.assert_array_equal(result.state, plain.state)
    assert [term.labels.tolist() for term in result.terms] == [labels.tolist(), others.tolist()]


def test_a_class_that_is_never_right_keeps_a_finite_loss():
    logits, labels = jnp.array([[0.0, 300.0]] * 16), jnp.zeros(16, jnp.int32)
    step = jax.jit(lambda state: call(Loce(), models.Outputs(logits, logits), state, labels))
    state = jnp.full(2, 0.01)
    for _ in range(60):
        result = step(state)
        state = result.state
    assert state[0] < 1e-20
    assert np.isfinite(result.terms[0].losses).all()


def test_evaluation_of_loce_is_by_cross_entropy():
    logits, labels = jnp.array([[1.0, 2.0]]), jnp.array([0])
    np.testing.assert_array_equal(Loce().loss(logits, labels), losses.cross_entropy(logits, labels))


# --- Domain balancing -------------------------------------------------------------------------------------------------


def test_domain_balancing_is_a_margin_from_the_classifier_of_the_same_step():
    rng = np.random.default_rng(0)
    features, classifier = rng.normal(size=(12, 5)), rng.normal(size=(7, 5))
    labels = rng.integers(7, size=12).astype(np.int32)
    objective = DomainBalancing(margin=0.4, scale=8.0, neighbours=3, epsilon=0.5)

    def loss(features, classifier):
        unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (features, classifier)]
        outputs = models.Outputs(unit[0] @ unit[1].T, features, classifier)
        result = call(objective, outputs, objective.init(RNG, {}, outputs), jnp.asarray(labels))
        return jnp.sum(result.terms[0].losses), result

    arguments = jnp.asarray(features, jnp.float32), jnp.asarray(classifier, jnp.float32)
    (_, result), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*arguments)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, classifier)]
    among = np.sort(unit[1] @ unit[1].T - 3 * np.eye(7), axis=1)[:, -3:]
    indicator = 0.5 / np.maximum(np.log(np.exp(8 * among).sum(1)), 1)

    def by_hand(cosines):
        logits = 8 * (cosines - 0.4 * indicator * (np.arange(7) == labels[:, None]))
        return -np.log(softmax(logits)[np.arange(12), labels])

    cosines = unit[0] @ unit[1].T
    np.testing.assert_allclose(result.terms[0].losses, by_hand(cosines), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.logits, 8 * cosines, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(objective.loss(jnp.asarray(cosines), jnp.asarray(labels)),
                               -np.log(softmax(8 * cosines)[np.arange(12), labels]), rtol=1e-5)  # fmt: skip

    def at(classifier):  # with the indicator held
        w = classifier / np.linalg.norm(classifier, axis=1, keepdims=True)
        return by_hand(unit[0] @ w.T).sum()

    direction, step = rng.normal(size=(7, 5)), 1e-6
    slope = (at(classifier + step * direction) - at(classifier - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradients[1] * direction), slope, rtol=1e-3)


@pytest.mark.parametrize("classifier", [None, jnp.ones((5, 2, 3))])
def test_a_model_without_class_weights_is_refused(classifier):
    outputs = models.Outputs(jnp.ones((2, 5)), jnp.ones((2, 3)), classifier)
    with pytest.raises(ValueError, match=r"domain_balancing needs .* class weights \[classes, dim\], head='cosine'"):
        DomainBalancing().init(RNG, {}, outputs)
