"""Numbers that are not finite, put in at every place of a step, and what is then said of it."""

import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.training import diagnosis, step

CLASSES, BATCH = ("cat", "dog", "owl"), 6
LABELS = np.array([2, 1, 2, 0, 1, 1], np.int32)


class Net(nn.Module):
    """Two pixels to 4 features and 3 logits, with ReLU, behind which a NaN can hide."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(4, name="hidden")(images.reshape(len(images), -1))
        features = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        return models.Outputs(nn.Dense(len(CLASSES), name="head")(features), features)


class Faulty(objectives.Supervised):
    """Breaks, per example, what the batch asks for."""

    def __call__(self, forward, batch, state, rng):
        faults = batch["faults"]
        logits = forward(batch["image"]).logits

        def nan_where(fault, values):
            bad = (faults == fault).reshape(-1, *[1] * (values.ndim - 1))
            return jnp.where(bad, jnp.nan, values)

        result = super().__call__(forward, batch, state, rng)
        (term,) = result.terms
        flat = jnp.sqrt(jnp.where(faults == 3, 0 * jnp.sum(logits, axis=1), 1.0))  # finite, but steep without bound
        broken = jnp.where(faults == 4, 2e38, nan_where(2, term.losses + flat))  # no two such can be added
        term = term._replace(losses=broken)
        return result._replace(terms=[term], features=nan_where(1, result.features))


def steered(state, features, labels, **known):
    """Class weights are part of the state."""
    del features, labels, known
    return state, state


PARTS = {
    "model": Net(),
    "objective": Faulty(losses.create("cross_entropy")),
    "balancer": balancers.Balancer(lambda: jnp.ones(3), steered, lambda state: {"weights": state}),
    "optimizer": optax.sgd(0.1),
}


@functools.cache
def compiled(accumulate):
    return step.make_train_step(**PARTS, preprocess=lambda images, rng: images, accumulate=accumulate)


def clean():
    images = np.random.default_rng(0).normal(size=(BATCH, 1, 2, 1)).astype(np.float32)
    batch = {"image": images, "label": LABELS, "faults": np.zeros(BATCH, np.int32), "mask": np.ones(BATCH, bool)}
    return step.init_state(**PARTS, images=images, seed=0), batch


def described(state, batch, accumulate=1):
    new, metrics = compiled(accumulate)(state, batch)
    return diagnosis.describe(jax.device_get(metrics), CLASSES, new.params, new.batch_stats), new


def at(values, index, value):
    values = np.array(values)
    values[index] = value
    return values


def with_leaf(tree, *path, value):
    """A copy in which the first number of an array is another."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: at(leaf, (0,) * leaf.ndim, value) if tuple(key.key for key in keys) == path else leaf, tree
    )


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda s, b: (s, b), None),
        (
            lambda s, b: (dataclasses.replace(s, params=with_leaf(s.params, "head", "kernel", value=np.inf)), b),
            "the parameter head/kernel is not finite",
        ),
        (
            lambda s, b: (s, b | {"image": at(b["image"], (4, 0, 1, 0), np.inf)}),
            "an image of class 'dog' is not finite",
        ),
        (lambda s, b: (s, b | {"faults": at(b["faults"], [2, 5], 1)}), "the features of an image of class 'dog' are"),
        (
            lambda s, b: (dataclasses.replace(s, batch_stats=with_leaf(s.batch_stats, "bn", "var", value=np.nan)), b),
            "the batch statistic bn/var is not finite",
        ),
        (
            lambda s, b: (s, b | {"faults": at(b["faults"], 2, 2)}),
            r"the loss of an image of class 'owl' is not finite \(loss nan, gradient norm",
        ),
        (
            lambda s, b: (dataclasses.replace(s, balancing=at(s.balancing, 1, np.nan)), b),
            "the weight of class 'dog' is not finite",
        ),
        (
            lambda s, b: (s, b | {"faults": np.full(BATCH, 4, np.int32)}),
            r"the loss of the batch is not finite \(loss inf",
        ),
        (
            lambda s, b: (s, b | {"faults": at(b["faults"], 2, 3)}),
            r"the gradient of bn/bias is not finite \(loss \d\.\d+, gradient norm nan\)",
        ),
    ],
)
def test_every_place_is_found(broken, message, accumulate):
    said, new = described(*broken(*clean()), accumulate)
    if message is None:
        assert said is None
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))
    else:
        assert re.match(message, said), said


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_an_update_that_overflows_is_found(skip_nonfinite):
    """The gradient is finite, and what the optimizer makes of it is not."""
    parts = PARTS | {"optimizer": optax.sgd(1e38)}
    train_step = step.make_train_step(**parts, preprocess=lambda images, rng: images, skip_nonfinite=skip_nonfinite)
    _, batch = clean()
    state = step.init_state(**parts, images=batch["image"], seed=0)
    state = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf + 1e3, state.params))
    batch |= {"image": batch["image"] * 1e3}
    before = jax.device_get(state.params)
    new, metrics = train_step(state, batch)
    said = diagnosis.describe(jax.device_get(metrics), CLASSES, new.params, new.batch_stats)
    assert re.match(r"the update of \w+/\w+ is not finite \(loss [\d.e+]+, gradient norm [\d.e+]+\)", said)
    finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params)]
    assert all(finite) == skip_nonfinite
    if skip_nonfinite:
        chex.assert_trees_all_equal(new.params, before)
        assert int(new.skipped) == 1


def test_the_earliest_place_is_blamed_whatever_follows_from_it():
    state, batch = clean()
    batch |= {"image": at(batch["image"], 3, np.nan), "faults": np.array([1, 2, 3, 1, 2, 3], np.int32)}
    state = dataclasses.replace(state, balancing=at(state.balancing, 1, np.nan))
    assert described(state, batch)[0].startswith("an image of class 'cat' is not finite")


def test_what_is_masked_is_not_looked_at():
    state, batch = clean()
    batch |= {"faults": at(batch["faults"], [1, 2], [1, 2]), "mask": at(batch["mask"], [1, 2], False)}
    assert described(state, batch)[0] is None


def test_a_norm_that_overflows_is_found():
    finding = diagnosis.arrays({"a": jnp.ones(3), "b": jnp.full(3, 1e30), "c": jnp.full(3, jnp.nan)})
    assert (bool(finding.found), int(finding.index)) == (True, 1)
    assert not diagnosis.arrays({}).found
    together = {"a": jnp.full((), 1.5e19), "b": jnp.full((), 1.5e19)}
    assert not diagnosis.arrays(together).found
    found = diagnosis.first({"gradient": diagnosis.arrays(together), "gradient_norm": diagnosis.scalar(jnp.inf)})
    assert diagnosis.describe(found | {"loss": 1.0, "gradient_norm": np.inf}, CLASSES, together) == (
        "the norm of the gradient is not finite (loss 1, gradient norm inf)"
    )


def test_a_label_without_a_name_is_told_as_it_is():
    metrics = {"nonfinite_place": diagnosis.PLACES.index("losses"), "nonfinite_index": 12, "loss": np.nan}
    assert diagnosis.describe(metrics | {"gradient_norm": np.nan}, CLASSES, {}) == (
        "the loss of an image with label 12 is not finite (loss nan, gradient norm nan)"
    )


def test_findings_are_two_integers():
    _, metrics = compiled(1)(*clean())
    chex.assert_shape([metrics[name] for name in diagnosis.NAMES], ())
    assert {metrics[name].dtype for name in diagnosis.NAMES} == {jnp.dtype("int32")}
