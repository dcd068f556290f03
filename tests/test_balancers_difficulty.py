"""Balancers that read how hard classes are from logits or from the classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import balancers, losses

FEATURES, LABELS = jnp.zeros((6, 2)), jnp.array([0, 1, 2, 0, 1, 2])
LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def scores_by_hand(scores, logits, labels, decay):
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    scores = np.array(scores, np.float64)
    for c in np.unique(labels):
        own = probabilities[labels == c, c]
        scores[c] = decay ** len(own) * scores[c] + (1 - decay ** len(own)) * own.mean()
    return scores


def test_weights_of_loce_are_the_inverse_of_the_mean_scores(variant):
    balancer = balancers.loce(4, decay=0.8, initial=0.05)
    update, state, scores = variant(balancer.update), balancer.init(), np.full(4, 0.05)
    np.testing.assert_allclose(balancer.summary(state)["weights"], np.ones(4), rtol=1e-6)
    for _ in range(3):
        weights, state = update(state, FEATURES, LABELS, logits=jnp.asarray(LOGITS))
        scores = scores_by_hand(scores, LOGITS, np.asarray(LABELS), 0.8)
        np.testing.assert_allclose(weights, 4 / scores / np.sum(1 / scores), rtol=1e-5)
        summary = balancer.summary(state)
        np.testing.assert_allclose(summary["scores"], scores, rtol=1e-5)
        np.testing.assert_allclose(summary["weights"], weights, rtol=1e-6)
    assert weights[3] == weights.max()  # of which there was none


def test_rows_that_do_not_count_have_no_score(variant):
    balancer = balancers.loce(4)
    expected, _ = balancer.update(balancer.init(), FEATURES[:4], LABELS[:4], logits=jnp.asarray(LOGITS[:4]))
    dirty = jnp.asarray(LOGITS).at[4].set(jnp.nan).at[5].set(jnp.inf)
    update = variant(balancer.update)
    not_finite, _ = update(balancer.init(), FEATURES, LABELS, logits=dirty)
    masked, _ = update(balancer.init(), FEATURES, LABELS, logits=jnp.asarray(LOGITS), mask=jnp.arange(6) < 4)
    np.testing.assert_allclose(not_finite, expected, rtol=1e-6)
    np.testing.assert_allclose(masked, expected, rtol=1e-6)


def test_a_class_that_is_never_right_has_a_finite_weight():
    balancer, logits = balancers.loce(2, decay=0.0), jnp.array([[-300.0, 0.0], [0.0, 0.0]])
    weights, _ = balancer.update(balancer.init(), FEATURES[:2], jnp.array([0, 1]), logits=logits)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()


def test_weights_by_domain_are_larger_for_rare_ones(variant):
    rng = np.random.default_rng(1)
    classifier = rng.normal(size=(9, 6)).astype(np.float32)
    classifier[:5] = classifier[0] + 0.1 * rng.normal(size=(5, 6))  # a frequent domain
    balancer = balancers.domain_frequency(9, neighbours=3, scale=10.0)
    state = balancer.init()
    np.testing.assert_array_equal(balancer.summary(state)["weights"], np.ones(9))
    weights, state = variant(balancer.update)(state, FEATURES, LABELS, classifier=jnp.asarray(classifier))
    unit = classifier / np.linalg.norm(classifier, axis=1, keepdims=True).astype(np.float64)
    among = np.sort(unit @ unit.T - 3 * np.eye(9), axis=1)[:, -3:]
    indicator = 1 / np.maximum(np.log(np.exp(10 * among).sum(1)), 1)
    np.testing.assert_allclose(weights, 9 * indicator / indicator.sum(), rtol=1e-5)
    assert weights[5:].min() > weights[:5].max()
    np.testing.assert_array_equal(balancer.summary(state)["weights"], weights)


def test_by_domain_is_in_proportion_to_the_indicator_of_the_losses():
    classifier = jax.random.normal(jax.random.key(0), (12, 5))
    balancer = balancers.domain_frequency(12)
    weights, _ = balancer.update(balancer.init(), FEATURES, LABELS, classifier=classifier)
    indicator = losses.domain_frequency(classifier, epsilon=0.1)
    np.testing.assert_allclose(weights / weights[0], indicator / indicator[0], rtol=1e-5)


def test_what_they_need_and_do_not_get_is_named():
    for balancer, message in (
        (balancers.loce(4), "loce needs logits, of which it makes scores; got none"),
        (balancers.domain_frequency(4), "domain_frequency needs classifier, each class's weights .*; got none"),
        (balancers.start_at(2, balancers.loce(4)), "loce needs logits"),
    ):
        with pytest.raises(ValueError, match=message):
            balancer.update(balancer.init(), FEATURES, LABELS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: balancers.loce(0), "num_classes must be an integer >= 1, got 0"),
        (lambda: balancers.loce(3, decay=1.5), r"decay must be .* in \[0, 1\], got 1.5"),
        (lambda: balancers.loce(3, initial=0.0), r"initial must be .* > 0, got 0.0"),
        (lambda: balancers.domain_frequency(3, neighbours=0), "neighbours must be an integer >= 1, got 0"),
        (lambda: balancers.domain_frequency(3, scale=0.0), "scale must be a finite number > 0, got 0.0"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_arrays_of_other_shapes_are_refused():
    balancer = balancers.loce(3)
    with pytest.raises(ValueError, match=r"logits must have shape \[batch, 3\], got \(6, 4\)"):
        balancer.update(balancer.init(), FEATURES, LABELS, logits=LOGITS)
    balancer = balancers.domain_frequency(3)
    with pytest.raises(ValueError, match=r"classifier must have shape \[3, dim\], got \(3, 4, 2\)"):
        balancer.update(balancer.init(), FEATURES, LABELS, classifier=jnp.ones((3, 4, 2)))


def test_effective_number_is_class_balanced():
    counts = jnp.array([1, 100])
    weights = [f(counts, beta=0.9) for f in (balancers.effective_number, balancers.class_balanced)]
    np.testing.assert_array_equal(*(balancer.summary(balancer.init())["weights"] for balancer in weights))
