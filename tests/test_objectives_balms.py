"""The learned sampler of BALMS: its gradient by hand and by finite differences, and which way its rates go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import digits

from dsb_jax import losses, models, objectives
from dsb_jax.objectives import Balms, total_loss
from dsb_jax.objectives.balms import META, Scored, meta_loss
from dsb_jax.training import experiment, stages

CLASSES, DIM, BATCH, JUDGES = 3, 4, 7, 5
COUNTS = np.array([200, 60, 12])
RATE = 0.3


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(DIM, CLASSES)), rng.normal(size=CLASSES)

    def scored(n):
        features = rng.normal(size=(n, DIM))
        return Scored(features, features @ kernel + bias, rng.integers(0, CLASSES, n).astype(np.int32))

    candidates, judges = scored(BATCH), scored(JUDGES)
    return rng.normal(size=CLASSES), rng.gumbel(size=(BATCH, BATCH)), candidates, judges


def slopes(scored, shift):
    """Of each example's cross-entropy of logits + shift, by the classifier: ``[n, DIM + 1, CLASSES]``."""
    z = scored.logits + shift
    p = np.exp(z - z.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(CLASSES)[scored.labels]
    return np.concatenate([scored.features, np.ones((len(error), 1))], axis=1)[:, :, None] * error[:, None, :]


def by_hand(psi, noise, candidates, judges, *, hard):
    """The meta loss, and its gradient in ψ, in NumPy."""
    shift = np.log(COUNTS)
    rates = 1 / (1 + np.exp(-psi))
    scores = np.log(rates)[candidates.labels] + noise
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    drawn = np.eye(BATCH)[scores.argmax(1)] if hard else soft
    of_examples = slopes(candidates, shift)
    step = -RATE * np.tensordot(drawn.mean(0), of_examples, 1)
    inputs = np.concatenate([judges.features, np.ones((JUDGES, 1))], axis=1)
    moved = judges._replace(logits=judges.logits + inputs @ step)
    value = np.mean(np.log(np.exp(moved.logits).sum(1)) - moved.logits[np.arange(JUDGES), judges.labels])
    # How the meta loss changes with the weight of each example.
    of_weights = -RATE * np.tensordot(of_examples, slopes(moved, 0.0).mean(0), 2)
    gradient = np.zeros(CLASSES)
    for draw in range(BATCH):
        passed = drawn[draw] if hard else np.ones(BATCH)
        for one in range(BATCH):
            for other in range(BATCH):
                of_softmax = soft[draw, one] * ((one == other) - soft[draw, other])
                label = candidates.labels[other]
                gradient[label] += passed[one] * of_weights[one] / BATCH * of_softmax * (1 - rates[label])
    return value, gradient


@pytest.mark.parametrize("hard", [True, False])
def test_the_meta_gradient_is_that_of_numpy(numbers, dtype, hard, variant):
    psi, *others = (jax.tree.map(lambda a: a.astype(dtype) if a.dtype == float else a, part) for part in numbers)
    loss = losses.create("balanced_softmax", counts=COUNTS)

    def function(psi, noise, candidates, judges):
        return meta_loss(psi, noise, candidates, judges, loss=loss, learning_rate=RATE, hard=hard)

    (value, drawn), gradient = variant(jax.value_and_grad(function, has_aux=True))(psi, *others)
    wanted, wanted_gradient = by_hand(*numbers, hard=hard)
    tolerance = {np.dtype("float32"): 2e-5, np.dtype("float64"): 1e-12}[dtype]
    np.testing.assert_allclose(value, wanted, rtol=tolerance)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.sum(drawn, axis=1), 1.0, rtol=1e-5)
    if hard:
        assert set(np.unique(drawn)) == {0.0, 1.0}


def test_the_meta_gradient_without_the_hard_draw_is_that_of_finite_differences(numbers):
    psi, *others = numbers
    _, gradient = by_hand(psi, *others, hard=False)
    with jax.enable_x64(True):
        options = {"loss": losses.create("balanced_softmax", counts=COUNTS), "learning_rate": RATE, "hard": False}
        for of_class in range(CLASSES):
            step = 1e-6 * np.eye(CLASSES)[of_class]
            above, below = (meta_loss(jnp.asarray(psi + sign * step), *others, **options)[0] for sign in (1, -1))
            np.testing.assert_allclose((above - below) / 2e-6, gradient[of_class], rtol=1e-5)


def test_examples_are_drawn_as_often_as_their_rates_say():
    labels = np.array([0] * 6 + [2] * 2, np.int32)
    scored = Scored(jnp.zeros((8, 1)), jnp.zeros((8, CLASSES)), jnp.asarray(labels))
    noise = jax.random.gumbel(jax.random.key(0), (20000, 8)).at[:, 7].set(-jnp.inf)  # the last is not to be drawn
    rates = jnp.array([-1.0, 0.0, 2.0])
    _, drawn = meta_loss(rates, noise, scored, scored, loss=losses.create("cross_entropy"), learning_rate=RATE)
    chances = np.append(np.asarray(jax.nn.sigmoid(rates))[labels[:7]], 0.0)
    np.testing.assert_allclose(np.mean(drawn, axis=0), chances / chances.sum(), atol=0.01)


def learn(loss, *, steps):
    """Rates after training a linear classifier on a long-tailed toy."""
    objective = Balms(losses.create(loss, counts=COUNTS), COUNTS, learning_rate=0.1, meta_learning_rate=0.02)
    centers = 0.9 * jax.random.normal(jax.random.key(7), (CLASSES, 8))

    def draw(key, chances):
        of_labels, of_noise = jax.random.split(key)
        labels = jax.random.choice(of_labels, CLASSES, (64,), p=chances).astype(jnp.int32)
        return {"image": centers[labels] + jax.random.normal(of_noise, (64, 8)), "label": labels}

    @jax.jit
    def step(carry, key):
        params, state = carry
        keys = jax.random.split(key, 3)
        batch = draw(keys[0], jnp.asarray(COUNTS / COUNTS.sum())) | {META: draw(keys[1], jnp.ones(CLASSES) / CLASSES)}

        def loss(params):
            def forward(features, *, train=True):
                return models.Outputs(features @ params[0] + params[1][None, :], features, params[0].T)

            result = objective(forward, batch, state, keys[2])
            return total_loss(result.terms, jnp.ones(CLASSES)), result

        (value, result), slope = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, s: p - 0.1 * s, params, slope)
        return (params, result.state), (value, result.metrics["meta_loss"])

    start = (jnp.zeros((8, CLASSES)), jnp.zeros(CLASSES)), objective.init(jax.random.key(0), {}, None)
    (_, state), values = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), steps))
    return jax.nn.sigmoid(state["rates"]), values


@pytest.mark.slow
def test_the_rates_of_rare_classes_rise():
    rates, (_, judged) = learn("cross_entropy", steps=150)
    assert rates[0] < 0.3
    assert rates[2] > 0.7
    assert np.mean(judged[-20:]) < 0.7 * np.mean(judged[:20])
    # Balanced softmax makes up for the counts by itself, and leaves less to the sampler.
    balanced, _ = learn("balanced_softmax", steps=150)
    assert balanced[2] - balanced[0] < rates[2] - rates[0]


def test_each_example_counts_as_often_as_it_was_drawn():
    rng = np.random.default_rng(1)
    logits, labels = jnp.asarray(rng.normal(size=(6, CLASSES)), jnp.float32), jnp.array([0, 0, 0, 1, 1, 2])
    five = jnp.array([True] * 5 + [False])
    objective = Balms(losses.create("balanced_softmax", counts=COUNTS), COUNTS, learning_rate=0.1)
    outputs = models.Outputs(logits, logits[:, :2])
    balanced = {"image": jnp.zeros(1), "label": labels}
    trained = []

    def forward(images, *, train=True):
        trained.append(train)
        return outputs

    state = objective.init(jax.random.key(0), {}, outputs)
    batch = {"image": jnp.zeros(1), "label": labels, META: balanced}
    for mask in (None, five):
        given = batch if mask is None else batch | {"mask": mask}
        (term,) = objective(forward, given, state, jax.random.key(3)).terms
        times = term.losses / objective.loss(logits, labels)
        if mask is None:
            np.testing.assert_allclose(times, np.rint(times), atol=1e-4)
            np.testing.assert_allclose(np.sum(times), 6, rtol=1e-5)
        else:
            assert abs(float(times[5])) < 1e-6
            np.testing.assert_allclose(np.sum(times), 5, rtol=1e-5)
    assert trained == [True, False, True, False]
    assert objective.views == 1


def test_rates_begin_as_officially():
    objective = Balms(losses.create("cross_entropy"), COUNTS, learning_rate=0.1, init_power=0.3)
    rates = jax.nn.sigmoid(objective.init(jax.random.key(0), {}, None)["rates"])
    powers = (COUNTS / COUNTS.sum()) ** -0.3
    np.testing.assert_allclose(rates, powers / (powers.min() + powers.max()), rtol=1e-5)
    np.testing.assert_allclose(rates[0] + rates[2], 1.0, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    for change, answer in (
        ({"loss": "focal"}, "objective 'balms' has a loss of its own"),
        ({"head": "cosine"}, "head must be linear, got cosine"),
        ({"accumulate": 2}, "accumulate must be 1, got 2"),
        ({"mixup": 0.2}, "mixup must be 0, got 0.2"),
        ({"sampler": "class_balanced"}, "sampler must be another than 'class_balanced'"),
        ({"balms": {"meta_learning_rate": 0.0}}, "^balms.meta_learning_rate must be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=answer):
            experiment.build(digits(**{"objective": "balms"} | change))
    built = experiment.build(stages.chain(digits(stages="balms"))[1])
    assert built.objective.learning_rate == 0.025  # half of 0.05
    assert built.objective.samplers == ("plain", "class_balanced")
    assert "balms" in objectives.names()
