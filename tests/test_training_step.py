"""One training step, against the same done by hand."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_run import cross_entropies, to_numpy

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.data import mixing
from dsb_jax.training import diagnosis, optimizers, step
from dsb_jax.training.sharding import Placement, make_mesh

# One step. A small network with batch normalisation, so that the by-hand computation is all there is to see.

BATCH, CLASSES, DIM = 12, 3, 8
MEAN, STD = 0.4, 0.3
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.2, 0.9, 0.01


class Net(nn.Module):
    """Images to 8 features and 3 logits."""

    normalised: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(DIM, dtype=self.dtype, name="hidden")(images.reshape(images.shape[0], -1))
        if self.normalised:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name="bn")(x)
        features = jnp.tanh(x).astype(jnp.float32)
        return models.Outputs(nn.Dense(CLASSES, name="head")(features), features)


def to_float(images):
    return (images.astype(jnp.float32) / 255 - MEAN) / STD


def plain(images, rng):
    """Of training images: no augmentation."""
    del rng
    return to_float(images)


DEFAULT_PARTS = {
    "model": Net(),
    "objective": objectives.Supervised(losses.create("cross_entropy")),
    "balancer": balancers.semantic_scale(CLASSES, 3 * BATCH, dim=DIM, batch_size=BATCH),
    "optimizer": optimizers.optimizer(
        "sgd",
        optimizers.schedule("linear", LEARNING_RATE, 4, steps_per_epoch=1),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    ),
}


class Traced:
    """A preprocessing that counts how often the step around it is traced."""

    def __init__(self):
        self.count = 0

    def __call__(self, images, rng):
        self.count += 1
        return plain(images, rng)


def fresh(seed=0, **options):
    images = to_float(np.zeros((1, 4, 4, 1), np.uint8))
    return step.init_state(**DEFAULT_PARTS | options, images=images, seed=seed)


initial = functools.cache(fresh)


def start(seed=0, **options):
    """A copy, for a step to take."""
    return jax.tree.map(jnp.copy, initial(seed, **options))


def make_step(preprocess=plain, **options):
    return step.make_train_step(**DEFAULT_PARTS | options, preprocess=preprocess)


@functools.cache
def default_step():
    """Compiled for all tests that need no other; a second trace raises."""
    return make_step(chex.assert_max_traces(plain, n=1))


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

    def update(state, features, labels, **extra):
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


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_offsets_raise_the_logits_of_losses_and_of_no_evaluation(accumulate):
    """By those of the batch before, as constants: as if they belonged to the loss."""
    tau = 0.8
    balancer = balancers.semantic_scale(CLASSES, 3 * BATCH, dim=DIM, batch_size=BATCH, power=0.0, logit_adjustment=tau)
    first, second = batches(2)
    state, metrics = make_step(balancer=balancer, accumulate=accumulate)(start(balancer=balancer), first)
    images = to_float(jnp.asarray(first["image"]))
    outputs, _ = forward(initial(balancer=balancer).params, initial(balancer=balancer).batch_stats, images)
    unraised = cross_entropies(outputs.logits, first["label"]).mean()
    if accumulate == 1:  # else batches are normalised in parts
        np.testing.assert_allclose(metrics["loss"], unraised, rtol=1e-5)

    offsets = balancer.summary(state.balancing)["offsets"]
    assert np.ptp(offsets) > 0.3
    plain_loss = losses.create("cross_entropy")
    raised = objectives.Supervised(lambda logits, labels: plain_loss(logits + offsets[None, :], labels))
    weightless = balancers.uniform(CLASSES)
    same = dataclasses.replace(jax.tree.map(jnp.copy, state), balancing=weightless.init())
    expected, expected_metrics = make_step(balancer=weightless, objective=raised, accumulate=accumulate)(same, second)
    evaluate = step.make_eval_step(DEFAULT_PARTS["model"], plain_loss, to_float)
    logits = Net().apply(state.evaluated, to_float(jnp.asarray(second["image"])), train=False).logits
    found, unraised = evaluate(state, second)["loss"], cross_entropies(logits, second["label"])
    np.testing.assert_allclose(found, unraised, rtol=1e-5)
    state, metrics = make_step(balancer=balancer, accumulate=accumulate)(state, second)
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-6)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-6, atol=1e-7)


def test_padding_does_not_train():
    """The mask reaches the loss and the balancer: what it leaves out changes nothing."""

    def update(state, features, labels, mask, **extra):
        of_class = labels[None, :] == jnp.arange(CLASSES)[:, None]
        return 1 + jnp.sum(jnp.abs(jnp.where(of_class & mask[None, :], features[:, 0][None, :], 0.0)), axis=1), state

    parts = {"model": Net(normalised=False), "balancer": balancers.Balancer(tuple, update, lambda state: {})}
    train_step = make_step(lambda images, rng: images, **parts)
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
    of_objective = [jax.random.split(jax.random.fold_in(key, number))[1] for number in range(2)]
    assert drawn == [float(jax.random.uniform(rng)) for rng in of_objective]


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


# Random numbers.


class Watching(objectives.Supervised):
    """Reports the images it gets, and what it draws."""

    def __call__(self, forward, batch, state, rng):
        result = super().__call__(forward, batch, state, rng)
        return result._replace(metrics={"pixel": batch["image"][0, 0, 0, 0], "drawn": jax.random.uniform(rng)})


SIMPLE_PARTS = {
    "objective": Watching(losses.create("cross_entropy")),
    "balancer": balancers.inverse_frequency(jnp.array([1, 2, 4])),
    "optimizer": optax.sgd(0.1),
}


def test_every_step_augments_with_a_key_of_its_own():
    def noise(images, rng):
        return to_float(images) * 0 + jax.random.uniform(rng)

    train_step, state = make_step(noise, **SIMPLE_PARTS), start(**SIMPLE_PARTS)
    key, seen = jax.random.clone(state.key), []
    for batch in batches(3):
        state, metrics = train_step(state, batch)
        seen.append((float(metrics["pixel"]), float(metrics["drawn"])))
    keys = [jax.random.split(jax.random.fold_in(key, number)) for number in range(3)]
    np.testing.assert_allclose(seen, [[jax.random.uniform(rng) for rng in pair] for pair in keys], rtol=1e-6)
    assert len(set(np.ravel(seen))) == 6


# Accumulation.


def recorded(features, labels, mask):
    """Weights that follow the features; the state is what came."""
    mask = jnp.ones(BATCH, bool) if mask is None else mask
    of_class = (labels[None, :] == jnp.arange(CLASSES)[:, None]) & mask[None, :]
    return 1 + jnp.sum(jnp.where(of_class, jnp.sum(features, axis=1)[None, :], 0.0), axis=1), (features, labels, mask)


def test_accumulation_changes_neither_the_update_nor_what_the_balancer_gets():
    """Parts of 3 with masks that leave 3, 1, 2 and 0 of them."""
    recorder = balancers.Balancer(
        lambda: (jnp.zeros((BATCH, 128)), jnp.zeros(BATCH, jnp.int32), jnp.zeros(BATCH, bool)),
        lambda state, features, labels, mask=None, **extra: recorded(features, labels, mask),
        lambda state: {},
    )
    parts = {
        "model": models.create("lenet", CLASSES),
        "objective": objectives.Supervised(losses.create("focal", gamma=1.0)),
        "balancer": recorder,
        "optimizer": optimizers.optimizer("adam", optax.constant_schedule(1e-3), weight_decay=0.1, clip_norm=0.5),
    }
    states = [start(**parts), start(**parts)]
    steps = [make_step(accumulate=accumulate, **parts) for accumulate in (1, 4)]
    mask = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0], bool)
    for number, batch in enumerate(batches(3)):
        batch |= {"mask": mask if number == 1 else np.ones(BATCH, bool)}
        (states[0], whole), (states[1], in_parts) = (
            train_step(state, batch) for train_step, state in zip(steps, states, strict=True)
        )
        chex.assert_trees_all_close(whole, in_parts, rtol=1e-4)
        for name in ("params", "opt_state", "balancing"):
            chex.assert_trees_all_close(getattr(states[0], name), getattr(states[1], name), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(states[1].balancing[1], batch["label"])
        np.testing.assert_array_equal(states[1].balancing[2], batch["mask"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0].params, initial(0, **parts).params)
    assert min(jax.tree.leaves(moved)) > 1e-3  # far above what is tolerated


@jax.jit
def loss_and_statistics(params, stats, images, labels, weights):
    outputs, changed = forward(params, stats, images)
    return jnp.mean(weights[labels] * cross_entropies(outputs.logits, labels)), changed["batch_stats"]


def test_parts_are_consecutive_and_normalised_one_by_one():
    """By hand, with batch statistics: the mean of the parts' gradients, and running ones updated part by part."""
    parts = SIMPLE_PARTS | {"optimizer": optax.sgd(1.0)}
    state = start(**parts)
    params, stats = to_numpy(state.params), state.batch_stats
    weights = np.float32(3 / 1.75) / np.array([1, 2, 4], np.float32)
    (batch,) = batches(1)
    images = to_float(batch["image"])
    gradients, differentiate = [], jax.jit(jax.grad(loss_and_statistics, has_aux=True))
    for part in (slice(0, 6), slice(6, 12)):
        of_part, stats = differentiate(state.params, stats, images[part], batch["label"][part], weights)
        gradients.append(to_numpy(of_part))
    gradient = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    state, metrics = make_step(accumulate=2, **parts)(state, batch)
    expected = jax.tree.map(lambda p, g: p - g, params, gradient)
    chex.assert_trees_all_close(to_numpy(state.params), expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


def test_a_balancer_that_ignores_features_costs_no_second_forward_pass():
    def looking(state, features, labels, mask=None, **extra):
        return 1 + 0 * jnp.sum(features) + jnp.zeros(CLASSES), state

    def products(balancer):
        parts = SIMPLE_PARTS | {"balancer": balancer}
        abstract = jax.eval_shape(lambda: fresh(**parts))
        lowered = make_step(accumulate=2, **parts).lower(abstract, next(batches(1)))
        return lowered.compile().as_text().count(" dot(")

    looks = products(balancers.Balancer(tuple, looking, lambda state: {}))
    assert 0 < products(balancers.uniform(CLASSES)) < looks


def test_a_batch_must_divide_into_its_parts():
    with pytest.raises(ValueError, match="a batch of 12 examples does not divide into accumulate = 5 parts"):
        jax.eval_shape(make_step(accumulate=5, **SIMPLE_PARTS), start(**SIMPLE_PARTS), next(batches(1)))
    with pytest.raises(ValueError, match="accumulate must be an integer >= 1, got 0"):
        make_step(accumulate=0)


# Averaging.


def test_averages_are_those_by_hand_and_what_is_evaluated():
    options = SIMPLE_PARTS | {"ema_decay": 0.22}
    train_step, state = make_step(**options), start(**options)
    average = {"params": to_numpy(state.params), "batch_stats": to_numpy(state.batch_stats)}
    chex.assert_trees_all_equal(to_numpy(state.average), average)
    for decay, batch in zip((1 / 10, 2 / 11, 0.22), batches(3), strict=True):
        state, _ = train_step(state, batch)
        new = {"params": to_numpy(state.params), "batch_stats": to_numpy(state.batch_stats)}
        average = jax.tree.map(lambda old, now, d=decay: d * old + (1 - d) * now, average, new)
        chex.assert_trees_all_close(to_numpy(state.average), average, rtol=1e-5, atol=1e-7)
    eval_step = step.make_eval_step(Net(), losses.create("cross_entropy"), to_float)
    averaged = dataclasses.replace(state, params=average["params"], batch_stats=average["batch_stats"], average=())
    chex.assert_trees_all_close(eval_step(state, batch), eval_step(averaged, batch), atol=1e-5)
    assert (
        np.abs(eval_step(state, batch)["loss"] - eval_step(dataclasses.replace(state, average=()), batch)["loss"]).max()
        > 1e-3
    )
    assert start().average == ()


@pytest.mark.parametrize("value", [1.0, -0.1, np.nan])
def test_averages_need_a_decay_below_one(value):
    for make in (start, make_step):
        with pytest.raises(ValueError, match=r"ema_decay must lie in \[0, 1\), got"):
            make(ema_decay=value)


# Steps left out.


class Fragile(objectives.Supervised):
    """The loss of class 1 is NaN where the batch says so; its state counts."""

    def init(self, rng, variables, outputs):
        return jnp.zeros((), jnp.int32)

    def __call__(self, forward, batch, state, rng):
        result = super().__call__(forward, batch, state, rng)
        (term,) = result.terms
        broken = jnp.where(batch["break"] & (term.labels == 1), jnp.nan, 1.0)
        return result._replace(terms=[term._replace(losses=term.losses * broken)], state=state + 1)


def test_a_step_that_is_not_finite_is_left_out_and_counted():
    """But the pool goes on; and the run after it is the one that never met it."""
    options = {"objective": Fragile(losses.create("cross_entropy")), "skip_nonfinite": True, "ema_decay": 0.9}
    init = {name: value for name, value in options.items() if name != "skip_nonfinite"}
    traced = Traced()
    train_step, state = make_step(traced, **options), start(**init)
    whole = [batch | {"break": np.zeros((), bool)} for batch in batches(3)]
    state, metrics = train_step(state, whole[0])
    assert (metrics["nonfinite_place"], state.skipped) == (-1, 0)
    before = jax.device_get(dataclasses.replace(state, key=()))
    state, metrics = train_step(state, whole[1] | {"break": np.ones((), bool)})
    after = jax.device_get(dataclasses.replace(state, key=()))
    assert np.isnan(metrics["loss"])
    assert "class 'one'" in diagnosis.describe(metrics, ["zero", "one", "two"], state.params)
    for name in ("params", "batch_stats", "opt_state", "objective", "average"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(before, name))
    assert (after.step, after.skipped) == (2, 1)
    assert np.sum(after.balancing.pool.labels >= 0) == 2 * BATCH
    state, _ = train_step(state, whole[2])
    assert (state.step, state.skipped, state.objective) == (3, 1, 2)
    assert traced.count == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.average, state.batch_stats)))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, before.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_without_skipping_nothing_is_hidden():
    parts = SIMPLE_PARTS | {"objective": Fragile(losses.create("cross_entropy"))}
    state, metrics = make_step(**parts)(start(**parts), next(batches(1)) | {"break": np.ones((), bool)})
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(state.params))
    assert np.isnan(metrics["gradient_norm"])
    assert (state.step, state.skipped) == (1, 0)


def test_skipping_copies_no_pool():
    large = balancers.semantic_scale(CLASSES, 50_000 * BATCH, dim=DIM, batch_size=BATCH)
    abstract = jax.eval_shape(lambda: fresh(balancer=large))
    compiled = make_step(balancer=large, skip_nonfinite=True).lower(abstract, next(batches(1))).compile()
    rows = abstract.balancing.pool.rows
    assert rows.size * 4 > 16e6
    assert compiled.memory_analysis().temp_size_in_bytes < 4e6


# Precision, restores and devices.


def test_half_precision_stays_in_the_network():
    narrow = {"model": Net(dtype=jnp.bfloat16), "ema_decay": 0.9}
    for accumulate in (1, 3):
        before = jax.eval_shape(lambda: fresh(**narrow))
        train_step = make_step(skip_nonfinite=True, accumulate=accumulate, **narrow)
        after, metrics = jax.eval_shape(train_step, before, next(batches(1)))
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, before)
        arrays = jax.tree.leaves((metrics, dataclasses.replace(after, key=())))
        assert {leaf.dtype.name for leaf in arrays} == {"float32", "int32", "bool"}
    states, steps = [start(**SIMPLE_PARTS), start(**SIMPLE_PARTS)], [make_step(**SIMPLE_PARTS)]
    steps.append(make_step(**SIMPLE_PARTS | {"model": Net(dtype=jnp.bfloat16)}))
    for batch in batches(3):
        (states[0], wide), (states[1], narrow) = (
            train_step(state, batch) for train_step, state in zip(steps, states, strict=True)
        )
        np.testing.assert_allclose(narrow["loss"], wide["loss"], rtol=0.02)
        assert narrow["loss"] != wide["loss"]


def test_a_state_that_was_on_the_host_needs_no_new_trace():
    straight, restored = start(), start()
    for batch in batches(4):
        straight, _ = default_step()(straight, batch)
        on_host = jax.device_get(dataclasses.replace(restored, key=jax.random.key_data(restored.key)))
        restored = jax.device_put(dataclasses.replace(on_host, key=jax.random.wrap_key_data(on_host.key)))
        restored, _ = default_step()(restored, batch)
    chex.assert_trees_all_equal(straight, restored)


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("model_devices", "fsdp_elements"),
    [(1, None), (2, 300), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 300), (2, None)))],
)
def test_devices_share_a_batch_and_the_pool(model_devices, fsdp_elements, accumulate):
    mesh = make_mesh(4, model_devices=model_devices)
    shared = {
        "balancer": balancers.semantic_scale(CLASSES, 3 * BATCH, dim=DIM, batch_size=BATCH, mesh=mesh),
        "ema_decay": 0.9,
        "placement": Placement(mesh, fsdp_elements),
    }
    one = default_step() if accumulate == 1 else make_step(accumulate=accumulate)
    traced = Traced()
    many = make_step(traced, accumulate=accumulate, skip_nonfinite=True, **shared)
    alone, together = start(), fresh(**shared)
    placed = [leaf.sharding for leaf in jax.tree.leaves(together)]
    for batch in batches(4):
        alone, expected = one(alone, batch)
        together, metrics = many(together, jax.device_put(batch, NamedSharding(mesh, P("data"))))
        chex.assert_trees_all_close(metrics, expected, rtol=1e-4)
        for leaf, sharding in zip(jax.tree.leaves(together), placed, strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert traced.count == 1
    for name in ("params", "batch_stats"):
        chex.assert_trees_all_close(getattr(together, name), getattr(alone, name), rtol=1e-3, atol=1e-5)
    pool = together.balancing.pool
    np.testing.assert_array_equal(pool.labels, alone.balancing.pool.labels)
    assert pool.rows.sharding.spec == P(None, "data")
    for leaf in jax.tree.leaves((together.params, together.opt_state, together.average)):
        assert leaf.sharding.is_fully_replicated == (fsdp_elements is None or leaf.size < fsdp_elements)


# Mixed images, views and samplers.


def mixed_by_hand(images, rng):
    """Three quarters of each image and a quarter of the one before it."""
    del rng
    partner = jnp.roll(jnp.arange(BATCH, dtype=jnp.int32), 1)
    return mixing.Mixed(0.75 * images + 0.25 * images[partner], partner, jnp.float32(0.75))


def test_a_step_on_mixed_images_equals_one_by_hand():
    """Both labels have their share of the loss and their own weight; the pool gets the label of the larger share."""
    state, batch = start(), next(batches(1))
    params, stats = to_numpy(state.params), to_numpy(state.batch_stats)
    images = (batch["image"] / 255.0 - MEAN).astype(np.float32) / np.float32(STD)
    partner = np.roll(np.arange(BATCH), 1)
    images, labels, others = 0.75 * images + 0.25 * images[partner], batch["label"], batch["label"][partner]
    assert (labels != others).any()
    outputs, _ = forward(params, stats, images)
    weights = semantic_weights(np.asarray(outputs.features), labels).astype(np.float32)

    def loss(params):
        logits = forward(params, stats, images)[0].logits
        own = 0.75 * weights[labels] * cross_entropies(logits, labels)
        return jnp.mean(own + 0.25 * weights[others] * cross_entropies(logits, others))

    wanted, gradient = jax.value_and_grad(loss)(params)
    state, metrics = make_step(mix=mixed_by_hand)(state, batch)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=2e-5)
    moved = jax.tree.map(lambda p, g: p - LEARNING_RATE * (g + WEIGHT_DECAY * p), params, gradient)
    chex.assert_trees_all_close(to_numpy(state.params), to_numpy(moved), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(DEFAULT_PARTS["balancer"].summary(state.balancing)["weights"], weights, rtol=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_pool_gets_the_label_of_the_larger_share(share):
    objective = objectives.Supervised(losses.create("cross_entropy"))
    outputs = models.Outputs(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    batch = {
        "image": jnp.zeros((2, 1, 1, 1)),
        "label": jnp.array([0, 1]),
        "other_label": jnp.array([2, 0]),
        "share": jnp.full(2, share),
    }
    result = objective(lambda images: outputs, batch, (), jax.random.key(0))
    assert result.labels.tolist() == ([2, 0] if share < 0.5 else [0, 1])
    assert [term.labels.tolist() for term in result.terms] == [[0, 1], [2, 0]]
    np.testing.assert_allclose([term.losses[0] for term in result.terms], np.log(3) * np.array([share, 1 - share]))


@pytest.mark.slow
def test_mixing_goes_with_accumulation():
    """Without batch statistics the parts of a mixed batch add up to the whole of it."""
    options = {"model": Net(normalised=False)}
    outcomes = [
        make_step(mix=functools.partial(mixing.mix, mixup_alpha=1.0, cutmix_alpha=1.0), accumulate=parts, **options)(
            start(**options), next(batches(1))
        )
        for parts in (1, 3)
    ]
    (whole, metrics), (parts, of_parts) = outcomes
    np.testing.assert_allclose(of_parts["loss"], metrics["loss"], rtol=1e-5)
    chex.assert_trees_all_close(to_numpy(parts.params), to_numpy(whole.params), rtol=1e-5, atol=1e-6)


def noisy(images, rng):
    return to_float(images) + jax.random.normal(rng, images.shape)


def test_views_and_samplers_have_draws_of_their_own():
    batch = next(batches(1))
    given = batch | {"view_2": batch["image"] // 2, "reversed": dict(batch), "other": dict(batch)}
    ready = step.augmented(given, jax.random.key(0), noisy, views=3)
    assert ready.keys() == {"image", "label", "view_1", "view_2", "reversed", "other"}
    assert ready["reversed"].keys() == {"image", "label", "view_1", "view_2"}
    noise = {"image": ready["image"] - to_float(batch["image"]), "view_1": ready["view_1"] - to_float(batch["image"])}
    noise["view_2"] = ready["view_2"] - to_float(batch["image"] // 2)  # cropped by the host, so not made of "image"
    for name in ("reversed", "other"):
        for view in ("image", "view_1", "view_2"):
            noise[f"{name} {view}"] = ready[name][view] - to_float(batch["image"])
    flat = np.array([np.ravel(value) for value in noise.values()])
    np.testing.assert_allclose(flat.std(axis=1), 1, atol=0.2)
    correlation = np.corrcoef(flat)
    assert np.abs(correlation - np.eye(len(flat))).max() < 0.35  # of 192 draws; the same ones would give 1
    again = step.augmented(given, jax.random.key(0), noisy, views=3)
    chex.assert_trees_all_equal(again, ready)


def test_without_them_the_draws_are_those_of_the_image_alone():
    batch = next(batches(1))
    ready = step.augmented(batch, jax.random.key(5), noisy)
    np.testing.assert_array_equal(ready["image"], noisy(batch["image"], jax.random.key(5)))
