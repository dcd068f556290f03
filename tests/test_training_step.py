"""One training step and its optimizer, against the same done by hand."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from small_run import cross_entropies, to_numpy

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.training import optimizers, step

# One step. A small network with batch normalisation, so that the by-hand computation is all there is to see.

BATCH, CLASSES, DIM = 12, 3, 8
MEAN, STD = 0.4, 0.3
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.2, 0.9, 0.01


class Net(nn.Module):
    """Images to 8 features and 3 logits."""

    normalised: bool = True

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(DIM, name="hidden")(images.reshape(images.shape[0], -1))
        if self.normalised:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        features = jnp.tanh(x)
        return models.Outputs(nn.Dense(CLASSES, name="head")(features), features)


def to_float(images):
    return (images.astype(jnp.float32) / 255 - MEAN) / STD


DEFAULT_PARTS = {
    "model": Net(),
    "objective": objectives.Supervised(losses.create("cross_entropy")),
    "balancer": balancers.semantic_scale(CLASSES, 3 * BATCH, dim=DIM, batch_size=BATCH),
    "optimizer": optimizers.sgd(
        optimizers.schedule("linear", LEARNING_RATE, 4), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    ),
}


def start(seed=0, **parts):
    images = to_float(np.zeros((1, 4, 4, 1), np.uint8))
    return step.init_state(**DEFAULT_PARTS | parts, images=images, seed=seed)


def make_step(preprocess=to_float, **parts):
    return step.make_train_step(**DEFAULT_PARTS | parts, preprocess=preprocess)


@functools.cache
def default_step():
    """Compiled for all tests that need no other; a second trace raises."""
    return make_step(chex.assert_max_traces(to_float, n=1))


def batches(samples, seed=0):
    """Class 0 is the most diverse, and class 2 the least."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        labels = rng.permutation(np.arange(BATCH) % CLASSES)
        spread = 127 / 4.0 ** labels[:, None, None, None]
        images = 128 + spread * rng.uniform(-1, 1, (BATCH, 4, 4, 1))
        yield {"image": images.astype(np.uint8), "label": labels.astype(np.int32)}


def semantic_weights(features, labels, alpha=2.0):
    """Weights ∝ 1/S that sum to the number of classes, in float64."""
    volumes = reference.class_volumes(features, labels, CLASSES)
    centers = reference.class_centers(features, labels, CLASSES)
    inverse = 1 / reference.semantic_scales(volumes, centers, alpha)
    return CLASSES * inverse / inverse.sum()


def forward(params, batch_stats, images):
    variables = {"params": params, "batch_stats": batch_stats}
    return Net().apply(variables, images, train=True, mutable=["batch_stats"])


@jax.jit
def gradient_by_hand(params, batch_stats, images, labels, weight):
    def loss(params):
        outputs, _ = forward(params, batch_stats, images)
        return jnp.sum(weight * cross_entropies(outputs.logits, labels)) / BATCH

    return jax.value_and_grad(loss)(params)


def test_steps_equal_those_by_hand():
    """Enqueue, then weigh; weights are constants of the gradient; SGD as PyTorch writes it; running statistics."""
    state = start()
    params, stats = to_numpy(state.params), to_numpy(state.batch_stats)
    velocity = jax.tree.map(np.zeros_like, params)
    pooled, pooled_labels = [], []
    for number, batch in enumerate(batches(3)):
        images, labels = (batch["image"] / 255.0 - MEAN).astype(np.float32) / np.float32(STD), batch["label"]
        outputs, _ = forward(params, stats, images)
        pooled.append(outputs.features)
        pooled_labels.append(labels)
        weights = semantic_weights(np.concatenate(pooled), np.concatenate(pooled_labels))
        assert np.ptp(weights) > 0.3  # else weighted or not would be hard to tell
        loss, gradient = gradient_by_hand(params, stats, images, labels, weights[labels].astype(np.float32))
        rate = LEARNING_RATE * (1 - number / 4)
        decayed = jax.tree.map(lambda g, p: np.array(g) + WEIGHT_DECAY * p, gradient, params)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, decayed)
        hidden = images.reshape(BATCH, -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
        stats = {
            "bn": {
                "mean": 0.9 * stats["bn"]["mean"] + 0.1 * hidden.mean(axis=0),
                "var": 0.9 * stats["bn"]["var"] + 0.1 * hidden.var(axis=0),
            }
        }
        before = params
        params = jax.tree.map(lambda p, v, rate=rate: p - rate * v, params, velocity)

        state, metrics = default_step()(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=2e-5)
        chex.assert_trees_all_close(to_numpy(state.params), params, rtol=2e-5, atol=2e-6)
        chex.assert_trees_all_close(to_numpy(state.batch_stats), stats, rtol=1e-5, atol=1e-6)
        assert state.step == number + 1
        moved = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True))
        assert moved > 1e-2  # far above what is tolerated
    np.testing.assert_allclose(DEFAULT_PARTS["balancer"].summary(state.balancing)["weights"], weights, rtol=1e-4)


def differentiable_weights(features, labels):
    """∝ 1/volume, in plain JAX: a gradient flows through it unless the step stops it."""
    rows = jnp.stack([features[jnp.nonzero(labels == label, size=BATCH // CLASSES)] for label in range(CLASSES)])
    centred = rows - rows.mean(axis=1, keepdims=True)
    gram = jnp.einsum("cmi,cmj->cij", centred, centred)
    inverse = 1 / jnp.linalg.slogdet(jnp.eye(DIM)[None] + DIM / rows.shape[1] * gram)[1]
    return CLASSES * inverse / inverse.sum()


def test_no_gradient_flows_through_the_weights():
    """Not even where the balancer would let it: the step's gradient is the one with constant weights."""

    def loss(params, constant):
        outputs, _ = forward(params, initial.batch_stats, to_float(batch["image"]))
        weights = differentiable_weights(outputs.features, batch["label"])
        weights = jax.lax.stop_gradient(weights) if constant else weights
        return jnp.mean(weights[batch["label"]] * cross_entropies(outputs.logits, batch["label"]))

    def update(state, features, labels, mask=None):
        return differentiable_weights(features, labels), state

    parts = {"balancer": balancers.Balancer(tuple, update, lambda state: {}), "optimizer": optax.sgd(1.0)}
    (batch,) = batches(1)
    initial = start(**parts)
    state, _ = make_step(**parts)(jax.tree.map(jnp.copy, initial), batch)
    taken = jax.tree.map(lambda p, q: np.array(p) - np.array(q), initial.params, state.params)
    constant, through = (jax.jit(jax.grad(loss), static_argnums=1)(initial.params, flag) for flag in (True, False))
    chex.assert_trees_all_close(taken, jax.tree.map(np.array, constant), atol=2e-6)
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), constant, through)
    assert max(jax.tree.leaves(apart)) > 1e-2


def test_padding_does_not_train():
    """The mask reaches the loss and the balancer: what it leaves out changes nothing."""

    def update(state, features, labels, mask=None):
        of_class = labels[None, :] == jnp.arange(CLASSES)[:, None]
        return 1 + jnp.sum(jnp.abs(jnp.where(of_class & mask[None, :], features[:, 0][None, :], 0.0)), axis=1), state

    parts = {"model": Net(normalised=False), "balancer": balancers.Balancer(tuple, update, lambda state: {})}
    train_step = make_step(lambda images: images, **parts)
    (batch,) = batches(1)
    mask = np.arange(BATCH) < 9
    clean = {"image": np.asarray(to_float(batch["image"])), "label": batch["label"], "mask": mask}
    dirty = clean | {
        "image": np.where(mask[:, None, None, None], clean["image"], np.float32(50)),
        "label": np.where(mask, clean["label"], (clean["label"] + 1) % CLASSES),
    }
    everything = dirty | {"mask": np.ones(BATCH, bool)}
    first = start(**parts)
    states, metrics = zip(
        *(train_step(jax.tree.map(jnp.copy, first), b) for b in (clean, dirty, everything)), strict=True
    )
    chex.assert_trees_all_equal(states[0].params, states[1].params)
    chex.assert_trees_all_equal(metrics[0], metrics[1])
    assert metrics[2]["loss"] != metrics[1]["loss"]
    assert first.batch_stats == {}


def test_a_step_is_traced_once_and_takes_over_the_buffers_of_its_state():
    state = start()
    for batch in batches(4):
        before, (state, _) = state, default_step()(state, batch)
        assert [leaf.is_deleted() for leaf in jax.tree.leaves(before)] == [True] * len(jax.tree.leaves(before))
    assert state.step == 4
    with pytest.raises(AssertionError, match="traced > 1 times"):  # the count does count
        default_step()(state, jax.tree.map(lambda array: array[:6], batch))


def run(seed):
    state = start(seed)
    for batch in batches(3):
        state, _ = default_step()(state, batch)
    return state


def test_a_seed_is_a_run():
    one, again, other = run(seed=5), run(seed=5), run(seed=6)
    chex.assert_trees_all_equal(one, again)
    assert not np.array_equal(one.params["head"]["kernel"], other.params["head"]["kernel"])


class Mixing:
    """Two weighted terms and an unweighted one, state that follows the parameters, and random numbers."""

    views, samplers = 1, ("plain",)

    def init(self, rng, variables, outputs):
        assert outputs.logits.shape == (1, CLASSES)
        return {"average": variables["params"], "calls": jnp.zeros((), jnp.int32)}

    def __call__(self, forward, batch, state, rng):
        outputs, labels = forward(batch["image"]), batch["label"]
        return objectives.Result(
            terms=[
                objectives.Term(cross_entropies(outputs.logits, labels), labels, 0.75),
                objectives.Term(cross_entropies(outputs.logits, labels[::-1]), labels[::-1], 0.25),
                objectives.Term(jnp.sum(outputs.logits**2, axis=1), None, 0.01),
            ],
            features=outputs.features,
            labels=labels,
            mask=None,
            state=state | {"calls": state["calls"] + 1},
            metrics={"uniform": jax.random.uniform(rng)},
        )

    def after_update(self, state, params):
        average = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, state["average"], params)
        return state | {"average": average}


def test_an_objective_with_several_terms_and_state_of_its_own():
    balancer = balancers.inverse_frequency(jnp.array([1, 2, 4]))
    parts = {"objective": Mixing(), "balancer": balancer, "optimizer": optax.sgd(0.1)}
    train_step, state = make_step(**parts), start(**parts)
    average, key = to_numpy(state.params), jax.random.clone(state.key)
    weights = 3 / 1.75 * np.array([1, 1 / 2, 1 / 4])
    drawn = []
    for number, batch in enumerate(batches(2)):
        labels = batch["label"]
        logits = forward(state.params, state.batch_stats, to_float(batch["image"]))[0].logits
        one, other = (np.array(cross_entropies(logits, y), np.float64) * weights[y] for y in (labels, labels[::-1]))
        by_hand = np.mean(0.75 * one + 0.25 * other + 0.01 * np.sum(np.array(logits) ** 2, axis=1))
        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics["loss"], by_hand, rtol=1e-5)
        average = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * np.array(new), average, state.params)
        chex.assert_trees_all_close(to_numpy(state.objective["average"]), average, atol=1e-6)
        assert state.objective["calls"] == number + 1
        drawn.append(float(metrics["uniform"]))
    assert drawn == [float(jax.random.uniform(jax.random.fold_in(key, number))) for number in range(2)]


def test_the_evaluation_step_uses_running_statistics_and_no_weights():
    state = run(seed=0)
    (batch,) = batches(1, seed=9)
    outputs = step.make_eval_step(Net(), losses.create("focal", gamma=1.0), to_float)(state, batch)
    params, stats = to_numpy(state.params), to_numpy(state.batch_stats)["bn"]
    x = (batch["image"] / 255 - MEAN).reshape(BATCH, -1) / STD @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    logits = np.tanh(x) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(outputs["features"], np.tanh(x), atol=1e-5)
    np.testing.assert_array_equal(outputs["prediction"], logits.argmax(axis=1))
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[np.arange(BATCH), batch["label"]]
    np.testing.assert_allclose(outputs["loss"], -(1 - p) * np.log(p), rtol=1e-4)


# Optimizers.


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda t: 0.3),
        ("linear", lambda t: 0.3 * (1 - t / 40)),
        ("cosine", lambda t: 0.3 * (1 + math.cos(math.pi * t / 40)) / 2),
    ],
)
def test_schedules_are_their_formulas(name, formula):
    schedule = optimizers.schedule(name, 0.3, 40)
    values = [float(schedule(t)) for t in range(41)]
    np.testing.assert_allclose(values, [formula(t) for t in range(41)], atol=1e-7)
    assert float(schedule(1000)) == values[-1]


def test_sgd_is_that_of_pytorch():
    """g ← ∇ + λθ; v ← μv + g; θ ← θ − ηv: the momentum has no rate in it, so a change of the rate acts at once."""
    rng = np.random.default_rng(0)
    rates, theta = [0.5, 0.1, 0.1, 0.02], rng.normal(size=6)
    optimizer = optimizers.sgd(lambda count: jnp.asarray(rates)[count], momentum=0.8, weight_decay=0.1)
    params, velocity = jnp.asarray(theta, jnp.float32), np.zeros(6)
    state = optimizer.init(params)
    for rate in rates:
        gradient = rng.normal(size=6)
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.8 * velocity + gradient + 0.1 * theta
        theta = theta - rate * velocity
        np.testing.assert_allclose(params, theta, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimizers.schedule("linaer", 0.1, 10), "unknown schedule 'linaer'; did you mean 'linear'"),
        (lambda: optimizers.schedule("linear", 0.0, 10), "learning_rate must be a finite number > 0, got 0.0"),
        (lambda: optimizers.schedule("linear", math.nan, 10), "learning_rate must be a finite number > 0, got nan"),
        (lambda: optimizers.sgd(None, momentum=1.0, weight_decay=0.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: optimizers.sgd(None, momentum=-0.1, weight_decay=0.0), r"momentum must lie in \[0, 1\), got -0.1"),
        (lambda: optimizers.sgd(None, momentum=0.9, weight_decay=-1.0), "weight_decay must be >= 0, got -1.0"),
        (lambda: optimizers.sgd(None, momentum=0.9, weight_decay=math.nan), "weight_decay must be >= 0, got nan"),
    ],
)
def test_bad_values_of_an_optimizer_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
