"""Invariant feature learning: the original's centres and schedule, around any objective, whole or in parts."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import digits

from dsb_jax import balancers, losses, models
from dsb_jax.objectives import InvariantFeatures, Result, Supervised, Term, total_loss
from dsb_jax.training import building, experiment, methods
from dsb_jax.training.sharding import Placement, make_mesh
from dsb_jax.training.step import init_state, make_train_step

SUPERVISED = Supervised(losses.create("cross_entropy"))
DISTANCES = {"ifl_center": losses.center_loss, "ifl_center_cos": losses.center_cosine_loss}


def with_centers(objective, centers, dtype):
    """The first state, but with these centres."""
    outputs = types.SimpleNamespace(features=jnp.zeros((1, centers.shape[1]), dtype))
    state = objective.init(jax.random.key(0), {}, outputs)
    return dataclasses.replace(state, centers=jnp.asarray(centers, dtype), pull=jnp.zeros(centers.shape, dtype))


def applied(objective, state, features, labels, logits=None, **batch):
    outputs = models.Outputs(jnp.zeros((len(labels), len(state.centers))) if logits is None else logits, features)
    batch = {"image": "the images", "label": jnp.asarray(labels, jnp.int32)} | batch
    return objective(lambda images: outputs, batch, state, jax.random.key(0))


@pytest.mark.parametrize("name", DISTANCES)
def test_features_and_centres_move_as_in_the_original(golden, name, dtype):
    file = golden(name)
    weight, rtol = float(file["center_weight"]), 1e-5 if dtype == np.float32 else 1e-10
    options = {"weights": (weight,), "starts": (), "learning_rate": float(file["center_lr"])}
    objective = InvariantFeatures(SUPERVISED, 10, distance=DISTANCES[name], **options)
    state = with_centers(objective, file["centers"], dtype)

    def loss(features):
        result = applied(objective, state, features, file["labels"])
        return total_loss(result.terms[1:], jnp.full(10, 7.0, dtype)), result

    features = jnp.asarray(file["features"], dtype)
    (value, result), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(features)
    scale = np.float32(weight)  # λ is one
    np.testing.assert_allclose(value / scale, file["loss"], rtol=rtol)
    np.testing.assert_allclose(gradient / scale, file["grad_features"], rtol=rtol, atol=rtol * 0.1)
    np.testing.assert_allclose(gradient, file["grad_features_weighted"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(result.metrics["center_loss"], file["loss"], rtol=rtol)
    after = objective.after_update(result.state, {})
    # The original divides by λ + 1e-12 what it had multiplied by λ.
    np.testing.assert_allclose(after.centers, file["centers_after_step"], rtol=max(rtol, 1e-8), atol=rtol * 0.1)
    assert after.centers.dtype == dtype
    np.testing.assert_array_equal(after.pull, np.zeros_like(file["centers"]))
    assert (after.step, after.pulling) == (1, 0)


def test_the_schedule_is_the_original_s(golden):
    file = golden("ifl_center_weight_schedule")
    config = digits("epochs=100,objective=ifl")
    objective = methods.objective(config, np.full(10, 20), 10.0)
    state = with_centers(objective, np.zeros((10, 2)), np.float32)

    def weight(step):
        return applied(objective, dataclasses.replace(state, step=step), jnp.ones((1, 2)), [0]).terms[-1].scale

    steps = jnp.array([[10 * epoch, 10 * epoch + 9] for epoch in range(100)], jnp.int32)
    weights = jax.jit(jax.vmap(jax.vmap(weight)))(steps)
    np.testing.assert_allclose(weights, np.stack([file["schedule"]] * 2, axis=1), rtol=1e-7)
    assert building.environment_epochs(config) == tuple(file["milestones"][1:])


@pytest.mark.parametrize(("epochs", "expected"), [(1, (0, 0)), (3, (1, 2)), (5, (3, 4)), (200, (120, 160))])
def test_milestones_are_whole_epochs_of_any_run(epochs, expected):
    assert building.environment_epochs(digits(f"epochs={epochs}")) == expected
    assert building.environment_epochs(digits("epochs=100,ifl.milestones=(0.29,)")) == (29,)


def test_centres_rest_while_their_weight_is_0():
    objective = InvariantFeatures(SUPERVISED, 3, weights=(0.0, 0.1), starts=(2,))
    centers = np.random.default_rng(0).normal(size=(3, 2))
    state = with_centers(objective, centers, np.float32)
    for step in range(4):
        assert state.step == step
        before = np.asarray(state.centers)
        state = objective.after_update(applied(objective, state, jnp.ones((2, 2)), [0, 1]).state, {})
        moved = (np.asarray(state.centers) != before).any(axis=1)
        np.testing.assert_array_equal(moved, [step >= 2, step >= 2, False])


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_mixed_image_is_drawn_to_both_of_its_classes(share):
    rng = np.random.default_rng(0)
    features, centers = rng.normal(size=(6, 4)), rng.normal(size=(3, 4))
    labels, others = np.array([0, 1, 2, 0, 1, 2]), np.array([1, 1, 0, 2, 2, 0])
    objective = InvariantFeatures(SUPERVISED, 3, weights=(0.5,), starts=())
    state = with_centers(objective, centers, np.float32)
    mixed = {"share": jnp.full(6, share, jnp.float32), "other_label": jnp.asarray(others, jnp.int32)}
    result = applied(objective, state, jnp.asarray(features, jnp.float32), labels, **mixed)
    distances = share * ((features - centers[labels]) ** 2).sum(1) + (1 - share) * (
        (features - centers[others]) ** 2
    ).sum(1)
    assert len(result.terms) == 3
    np.testing.assert_allclose(result.terms[-1].losses, distances, rtol=1e-5)
    moved = centers.copy()
    for number, (label, other) in enumerate(zip(labels, others, strict=True)):
        for to, part in ((label, share), (other, 1 - share)):
            moved[to] -= 0.5 * part * 2 * (centers[to] - features[number]) / 6
    np.testing.assert_allclose(objective.after_update(result.state, {}).centers, moved, rtol=1e-5, atol=1e-6)


def test_what_is_masked_may_be_anything():
    objective = InvariantFeatures(SUPERVISED, 3, weights=(0.5,), starts=())
    state = with_centers(objective, np.ones((3, 2)), np.float32)
    features, mask = jnp.array([[1.0, 2.0], [3.0, 1.0], [jnp.nan, jnp.inf]]), jnp.array([True, True, False])

    def outcome(number):
        def total(features):
            result = applied(objective, state, features, [0, 1, 2][:number], mask=mask[:number])
            return total_loss(result.terms[1:], jnp.ones(3), mask=mask[:number]), result

        (loss, result), gradient = jax.value_and_grad(total, has_aux=True)(features[:number])
        return loss, gradient[:2], objective.after_update(result.state, {}), result.metrics["center_loss"]

    jax.tree.map(np.testing.assert_array_equal, outcome(3), outcome(2))


def test_class_weights_multiply_the_terms_inside_alone_and_the_pool_is_theirs():
    objective = InvariantFeatures(SUPERVISED, 3, weights=(0.25,), starts=())
    state = with_centers(objective, np.zeros((3, 2)), np.float32)
    features, labels = jnp.array([[1.0, 1.0], [2.0, 0.0]]), [0, 2]
    result = applied(objective, state, features, labels)
    plain = applied(SUPERVISED, state, features, labels)
    weights = jnp.array([3.0, 1.0, 0.5])
    expected = total_loss(plain.terms, weights) + 0.25 * 3.0
    np.testing.assert_allclose(total_loss(result.terms, weights), expected, rtol=1e-6)
    np.testing.assert_array_equal(result.features, features)
    np.testing.assert_array_equal(result.labels, labels)
    assert result.metrics.keys() == {"accuracy", "center_loss"}


def batches(number, size=16):
    rng = np.random.default_rng(0)
    for _ in range(number):
        labels = rng.integers(0, 4, size)
        images = (labels[:, None, None, None] + rng.normal(size=(size, 4, 4, 1))).astype(np.float32)
        yield {"image": jnp.asarray(images), "label": jnp.asarray(labels, jnp.int32)}


def trained(steps=6, placement=None, **options):
    objective = InvariantFeatures(SUPERVISED, 4, weights=(0.0, 0.01), starts=(2,))
    parts = (models.create("lenet", 4), objective, balancers.uniform(4), optax.sgd(0.05))
    state = init_state(*parts, jnp.zeros((1, 4, 4, 1)), seed=0, placement=placement)
    step = make_train_step(*parts, lambda images, rng: images, placement=placement, **options)
    seen = []
    for batch in batches(steps):
        state, metrics = step(state, batch)
        seen.append(jax.device_get(metrics))
    assert placement is not None or step._cache_size() == 1
    return jax.device_get(state), seen


@pytest.mark.slow
def test_a_batch_in_parts_moves_the_centres_as_a_whole_one():
    whole, parts = trained(), trained(accumulate=4)
    assert np.abs(whole[0].objective.centers - trained(steps=2)[0].objective.centers).max() > 0.1
    np.testing.assert_allclose(parts[0].objective.centers, whole[0].objective.centers, rtol=1e-4, atol=1e-5)
    for name in ("loss", "center_loss"):
        found, wanted = ([metrics[name] for metrics in run[1]] for run in (parts, whole))
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_devices_share_a_batch():
    shared = trained(placement=Placement(make_mesh(8)))
    alone = trained()
    np.testing.assert_allclose(shared[0].objective.centers, alone[0].objective.centers, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        [metrics["loss"] for metrics in shared[1]], [metrics["loss"] for metrics in alone[1]], rtol=1e-4
    )


@dataclasses.dataclass(frozen=True)
class Two(Supervised):
    """Two branches, whose features are twice as many as the images."""

    features: tuple[int, int] = (4, 2)

    def __call__(self, forward, batch, state, rng):
        both = jnp.concatenate([batch["label"], batch["label"]])
        term = Term(jnp.zeros(len(both)), both)
        return Result([term], jnp.ones(self.features), both, None, state, {})


def test_features_may_be_more_than_images_but_must_fit_labels_and_centres():
    fitting = InvariantFeatures(Two(SUPERVISED.loss, samplers=("plain", "reversed")), 3, weights=(1.0,), starts=())
    assert fitting.samplers == ("environments", "reversed")
    state = with_centers(fitting, np.zeros((3, 2)), np.float32)
    result = applied(fitting, state, None, [0, 1])
    np.testing.assert_array_equal(result.terms[-1].losses, np.full(4, 2.0))
    for features in ((4, 3), (2, 2)):
        wrong = InvariantFeatures(Two(SUPERVISED.loss, features=features), 3, weights=(1.0,), starts=())
        message = rf"\[n, 2\] as in the model's outputs.* has \[{features[0]}, {features[1]}\] and \[4\]"
        with pytest.raises(ValueError, match=message):
            applied(wrong, state, None, [0, 1])


@pytest.mark.parametrize(
    ("arguments", "name", "distance"),
    [
        ("objective=ifl,balancer=uniform", "CE+IFL", losses.center_loss),
        ("objective=ifl", "DSB-CE+IFL", losses.center_loss),
        ("objective=ifl+supervised,loss=balanced_softmax", "DSB-BS+IFL", losses.center_loss),
        ("objective=ifl,loss=ldam,balancer=uniform", "LDAM+IFL", losses.center_cosine_loss),
        ("objective=ifl,ifl.distance=cosine", "DSB-CE+IFL", losses.center_cosine_loss),
    ],
)
def test_settings(arguments, name, distance):
    config = digits(arguments)
    assert methods.name(config) == name
    objective = experiment.build(config).objective
    assert objective.distance is distance
    assert objective.loss is objective.inner.loss
    assert (objective.samplers, objective.views) == (("environments",), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sampler=class_balanced", "draws environments of its own: sampler must be 'plain', got 'class_balanced'"),
        ("ifl.distance=cosin", "unknown ifl.distance 'cosin'; did you mean 'cosine'"),
        ("ifl.environments=inside", "unknown kind of environments 'inside'; did you mean 'inter'"),
        ("ifl.scale=0.5", "scale of environments must be a finite number > 1, got 0.5"),
        ("ifl.milestones=(0.8,0.6)", r"ifl.milestones must be shares of the run in \[0, 1\) that ascend, got"),
        ("ifl.milestones=(60,80)", r"ifl.milestones must be shares of the run in \[0, 1\) that ascend, got"),
        ("ifl.center_weights=(0.1,)", "ifl.center_weights must be one more than ifl.milestones, got"),
        ("ifl.center_learning_rate=0.0", "learning_rate must be a finite number > 0, got 0.0"),
        ("ifl.center_weights=(0.0,-1.0,0.0)", "weights must be a finite number >= 0, got -1.0"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(f"objective=ifl,{arguments}"))


def test_starts_must_fit_the_weights():
    with pytest.raises(ValueError, match=r"weights must be one more than starts, which must ascend"):
        InvariantFeatures(SUPERVISED, 3, weights=(0.0, 1.0), starts=(3, 2))
