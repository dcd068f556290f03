"""Whole steps and runs of the methods with several experts or two branches."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import balancers, losses, models, objectives, training
from dsb_jax.models.experts import Router
from dsb_jax.objectives.bbn import parabolic
from dsb_jax.objectives.ride import class_temperatures
from dsb_jax.training import experiment as experiments
from dsb_jax.training import methods, step
from dsb_jax.training.sharding import Placement, make_mesh

BATCH, CLASSES, DIM = 16, 4, 16


class Layer(nn.Module):
    """One layer, with batch normalisation: a part of a network that is compiled quickly."""

    normalised: bool
    maps: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(DIM, name="dense")(images.reshape(images.shape[0], -1))
        if self.normalised:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        return jnp.tanh(x)[:, None, None, :] if self.maps else jnp.tanh(x)


def small(*, experts=0, routers=False, normalised=True):
    """Experts, or else two branches, that are made of layers."""
    trunk, head = Layer(normalised, maps=True), models.heads.LinearHead
    if not experts:
        return models.Branches(trunk, (Layer(normalised), Layer(normalised)), head(CLASSES))
    each = tuple(models.Classifier(Layer(normalised), head(CLASSES)) for _ in range(experts))
    return models.Experts(trunk, each, tuple(Router() for _ in each[1:]) if routers else ())


def parts_of(name, *, normalised=True, mesh=None):
    """What a step is made of, DSB included."""
    supervised = objectives.Supervised(losses.create("cross_entropy"))
    temperatures = class_temperatures(np.array([8, 4, 2, 1]), 0.5)
    objective, options, rows = {
        "bbn": (objectives.BBN(supervised, parabolic(3, [1, 2])), {}, 2 * BATCH),
        "ride": (objectives.Ride(supervised, class_temperatures=temperatures, start=1), {"experts": 3}, BATCH),
    }[name]
    return {
        "model": small(normalised=normalised, **options),
        "objective": objective,
        "balancer": balancers.semantic_scale(CLASSES, 2 * rows, dim=DIM, batch_size=rows, mesh=mesh),
        "optimizer": optax.sgd(0.05, momentum=0.9),
    }


def to_float(images):
    return images.astype(jnp.float32) / 255


def batches(count, *, masked=False):
    """A plain batch and another one under the name of the reversed sampler."""
    rng = np.random.default_rng(0)

    def draw():
        batch = {
            "image": rng.integers(0, 256, (BATCH, 8, 8, 1)).astype(np.uint8),
            "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        }
        return batch | ({"mask": rng.random(BATCH) < 0.7} if masked else {})

    for _ in range(count):
        yield draw() | {"reversed": draw()}


def start(parts, **options):
    return step.init_state(**parts, images=jnp.zeros((1, 8, 8, 1)), seed=0, **options)


def states_after(parts, given, *, place=lambda batch: batch, placement=None, **options):
    """The state after each batch, with its metrics; the step is traced once."""
    traced = []

    def preprocess(images, rng):
        traced.append(images.shape)
        return to_float(images)

    train_step = step.make_train_step(**parts, preprocess=preprocess, placement=placement, **options)
    state, seen = start(parts, placement=placement), []
    for batch in given:
        state, metrics = train_step(state, place(batch))
        kept = {"params": state.params, "batch_stats": state.batch_stats, "objective": state.objective}
        weights = parts["balancer"].summary(state.balancing)["weights"]
        seen.append(jax.device_get(kept | {"metrics": metrics, "weights": weights}))
    assert len(traced) == len(parts["objective"].samplers)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("model_devices", [1, 2])
@pytest.mark.parametrize("name", ["bbn", "ride"])
def test_eight_devices_do_what_one_does(name, model_devices):
    """With batch statistics, a pool that has gone round, and shares and temperatures that have changed."""
    mesh = make_mesh(8, model_devices=model_devices)
    given = list(batches(4))
    if name == "ride":
        given = [{key: batch[key] for key in ("image", "label")} for batch in given]
    one = states_after(parts_of(name), given)
    many = states_after(
        parts_of(name, mesh=mesh),
        given,
        place=lambda batch: jax.device_put(batch, NamedSharding(mesh, P("data"))),
        placement=Placement(mesh),
    )
    for expected, actual in zip(one, many, strict=True):
        chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=2e-5)
    assert np.ptp(one[-1]["weights"]) > 0.01
    assert one[0]["metrics"]["nonfinite_place"] == -1
    shardings = Placement(mesh).shardings(one[0]["params"])
    kernel = shardings["head" if name == "bbn" else "experts_2"]
    kernel = kernel if name == "bbn" else kernel["head"]
    assert kernel["kernel"].spec == P(None, "model" if model_devices == 2 else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bbn", "ride"])
def test_parts_of_a_batch_add_up_to_the_whole(name):
    parts, given = parts_of(name, normalised=False), list(batches(3, masked=True))
    if name == "ride":
        given = [{key: batch[key] for key in ("image", "label", "mask")} for batch in given]
    whole, in_parts = states_after(parts, given), states_after(parts, given, accumulate=4)
    for expected, actual in zip(whole, in_parts, strict=True):
        accuracies = [seen["metrics"].pop("accuracy") for seen in (expected, actual)]
        if name == "ride":
            np.testing.assert_allclose(*accuracies, rtol=1e-4)
        chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=2e-5)


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_the_pool_of_two_branches_has_both_batches():
    config = small_run.digits("objective=bbn")
    made = experiments.build(config)
    assert made.objective.samplers == ("plain", "reversed")
    pool = jax.eval_shape(made.balancer.init).state.pool
    assert pool.rows.shape == (round(small_run.EXAMPLES / 64), 128, 64)


def test_experts_narrower_than_the_pool_are_taken_as_they_are():
    config = small_run.digits("objective=ride,model=resnet8")
    assert jax.eval_shape(experiments.build(config).balancer.init).state.pool.rows.shape[-1] == 48
    asked = small_run.digits("objective=ride,model=resnet8,dsb.dim=16")
    assert jax.eval_shape(experiments.build(asked).balancer.init).state.pool.rows.shape[-1] == 16


def test_ride_under_ldam_compares_scaled_cosines():
    made = experiments.build(small_run.digits("objective=ride,loss=ldam,ldam.scale=20.0,ride.experts=2"))
    assert made.objective.scale == 20.0
    assert len(made.model.experts) == 2
    assert all(isinstance(expert.head, models.heads.CosineHead) for expert in made.model.experts)
    other = experiments.build(small_run.digits("objective=ride,ride.routers=True"))
    assert other.objective.scale == 1.0
    assert len(other.model.routers) == 2


@pytest.mark.parametrize(
    ("arguments", "start"),
    [("", round(0.8 * 10 * small_run.EXAMPLES / 64)), ("ride.reweight_epoch=2.0", round(2 * small_run.EXAMPLES / 64))],
)
def test_temperatures_go_by_class_for_the_last_fifth_of_a_run(arguments, start):
    config = small_run.digits(",".join(["objective=ride", "epochs=10", *arguments.split(",")]).rstrip(","))
    assert abs(experiments.build(config).objective.start - start) <= 1


def test_shares_of_a_run_fall_from_epoch_to_epoch():
    made = experiments.build(small_run.digits("objective=bbn,epochs=3")).objective
    starts = [0, *(int(np.ceil(epoch * small_run.EXAMPLES / 64)) for epoch in (1, 2))]
    for epoch, first in enumerate(starts):
        np.testing.assert_allclose(made.share(jnp.int32(first)), 1 - (epoch / 3) ** 2, rtol=1e-6)
        if first:
            np.testing.assert_allclose(made.share(jnp.int32(first - 1)), 1 - ((epoch - 1) / 3) ** 2, rtol=1e-6)
    other = experiments.build(small_run.digits("objective=bbn,bbn.divisor=5.0")).objective
    np.testing.assert_allclose(other.share(jnp.int32(starts[1])), 1 - 1 / 25, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("objective=bbn", "DSB-BBN"),
        ("objective=ride,loss=ldam,balancer=class_balanced", "CB-RIDE"),
        ("objective=ride_routing,loss=ldam,balancer=uniform", "RIDE-EA"),
        ("objective=ride", "DSB-RIDE+CE"),
        ("objective=mbj+ride", "DSB-MBJ+RIDE+CE"),
        ("objective=bbn,loss=ldam", "DSB-BBN+LDAM"),
        ("objective=ifl+bbn", "DSB-BBN+IFL"),
    ],
)
def test_names_are_those_of_the_field(arguments, name):
    assert methods.name(small_run.digits(arguments)) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("objective=bbn,sampler=reversed", "objective 'bbn' has the reversed sampler besides another one"),
        ("objective=ride,ride.experts=1", "^ride.experts must be an integer >= 2, got 1"),
        ("objective=ride,ride.reweight_factor=1.5", r"^ride.reweight_factor must lie in \[0, 1\), got 1.5"),
        ("objective=bbn,bbn.divisor=0.0", "^bbn.divisor must be a finite number > 0, got 0.0"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiments.build(small_run.digits(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["bbn", "ride"])
def test_a_short_run_learns(objective, tmp_path):
    settings = {"tensorboard": False, "sample_space": False, "log_every": 1, "start_epoch": 2}
    config = small_run.digits(f"objective={objective}", **settings)
    results = training.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    accuracy = [line["accuracy"] for line in lines if "accuracy" in line]
    assert len(accuracy) == small_run.STEPS
    assert np.mean(accuracy[-5:]) > np.mean(accuracy[:5]) + 0.1
    assert results["top1"] > 0.2


def test_routers_are_trained_on_experts_that_stay_as_they_are():
    objective = objectives.RideRouting(objectives.Supervised(losses.create("cross_entropy")))
    model = small(experts=3, routers=True)
    parts = (model, objective, balancers.uniform(CLASSES), optax.sgd(0.02, momentum=0.9))
    (batch,) = batches(1)
    state = step.init_state(*parts, jnp.zeros((1, 8, 8, 1)), seed=0)
    before = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    train_step = step.make_train_step(*parts, lambda images, rng: to_float(images))
    values = []
    for _ in range(30):
        state, metrics = train_step(state, {"image": batch["image"], "label": batch["label"]})
        values.append(float(metrics["loss"]))
    assert values[-1] < 0.8 * values[0]
    assert 1 <= metrics["experts"] <= 3
    after = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    moved = {
        path[1].key
        for (path, new), old in zip(jax.tree.leaves_with_path(after), jax.tree.leaves(before), strict=True)
        if not np.array_equal(new, old)
    }
    assert moved == {"routers_0", "routers_1"}
