"""Parameters that are not trained: neither changed nor differentiated, on one device and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.training import diagnosis, optimizers, parameters
from dsb_jax.training.sharding import Placement, make_mesh
from dsb_jax.training.step import init_state, make_train_step

LABELS = np.arange(16, dtype=np.int32) % 4
IMAGES = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)


def parts(model="lenet", optimizer=None):
    made = optimizer or optimizers.optimizer("sgd", lambda step: 0.1, momentum=0.9, weight_decay=0.01)
    objective = objectives.Supervised(losses.create("cross_entropy"))
    return models.create(model, 4), objective, balancers.uniform(4), made


def copied(state):
    return jax.tree.map(np.array, dataclasses.replace(state, key=()))


def run(of, *, steps=2, placement=None, **options):
    state = init_state(*of, jnp.zeros((1, 8, 8, 1)), seed=0, placement=placement, **options)
    before = copied(state)
    options = {key: value for key, value in options.items() if key != "given"}
    step = make_train_step(*of, lambda images, rng: images, placement=placement, **options)
    batch = {"image": IMAGES, "label": LABELS}
    if placement is not None:
        batch = jax.device_put(batch, NamedSharding(placement.mesh, P("data")))
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, batch)
    return before, copied(state), metrics


def of_params(state, globs):
    return parameters.flat(parameters.split(state.params, globs)[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_is_not_trained_stays_to_the_bit(optimizer):
    made = optimizers.optimizer(optimizer, lambda step: 0.1, weight_decay=0.01, decay="decoupled", clip_norm=1.0)
    # Adding an update of zero would turn -0 into 0.
    given = {"params": {"backbone": {"conv1": {"bias": np.full(20, -0.0, np.float32)}}}}
    before, after, metrics = run(parts(optimizer=made), trainable="head/*", given=given, ema_decay=0.9)
    for path, value in of_params(after, "backbone/*").items():
        assert value.tobytes() == of_params(before, "*")[path].tobytes(), path
    for path, value in of_params(after, "head/*").items():
        assert np.abs(value - of_params(before, "*")[path]).max() > 1e-3, path
    for path, value in parameters.flat(after.average["params"]).items():
        if path.startswith("backbone"):
            assert value.tobytes() == of_params(before, "*")[path].tobytes(), path
    assert len(jax.tree.leaves(after.opt_state)) < len(jax.tree.leaves(optax.adam(0.1).init(after.params)))
    assert metrics["gradient_norm"] > 0


def test_the_head_is_trained_as_if_features_were_the_images():
    """The same update as of softmax regression on the features, by hand in float64."""
    of = parts()
    before, after, _ = run(of, trainable="head/*", steps=1)
    variables = {"params": before.params}
    features = np.array(of[0].apply(variables, IMAGES, train=False).features, np.float64)
    kernel, bias = (np.array(before.params["head"][name], np.float64) for name in ("kernel", "bias"))
    logits = features @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - np.eye(4)[LABELS]) / 16
    np.testing.assert_allclose(
        after.params["head"]["kernel"], kernel - 0.1 * (features.T @ error + 0.01 * kernel), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(after.params["head"]["bias"], bias - 0.1 * (error.sum(0) + 0.01 * bias), atol=1e-6)


def flops(trainable):
    of = parts()
    state = jax.eval_shape(lambda: init_state(*of, jnp.zeros((1, 8, 8, 1)), seed=0, trainable=trainable))
    step = make_train_step(*of, lambda images, rng: images, trainable=trainable)
    shapes = {"image": jax.ShapeDtypeStruct(IMAGES.shape, IMAGES.dtype), "label": jax.ShapeDtypeStruct((16,), np.int32)}
    return step.lower(state, shapes).compile().cost_analysis()["flops"]


def test_the_backward_pass_of_what_is_not_trained_is_not_computed():
    everything, hidden, head = flops("*"), flops("backbone/hidden/* head/*"), flops("head/*")
    assert head < hidden < everything
    assert head < 0.5 * everything  # a backward pass costs twice a forward pass


@pytest.mark.slow
def test_batch_statistics_stay_where_no_feature_is_trained():
    of = parts("resnet8")
    before, after, _ = run(of, trainable="head/*", steps=1, ema_decay=0.5)
    for old, new, average in zip(
        *(jax.tree.leaves(tree) for tree in (before.batch_stats, after.batch_stats, after.average["batch_stats"])),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
        np.testing.assert_array_equal(old, average)
    _, after, _ = run(of, trainable="backbone/layer3_0/*", steps=1)
    assert np.abs(after.batch_stats["backbone"]["bn1"]["mean"]).max() > 1e-4
    assert of_params(after, "head/*").keys() == {"head/kernel", "head/bias"}


def test_parts_of_a_batch_give_the_same_update():
    _, whole, _ = run(parts(), trainable="head/*")
    of = parts()
    state = init_state(*of, jnp.zeros((1, 8, 8, 1)), seed=0, trainable="head/*")
    step = make_train_step(*of, lambda images, rng: images, trainable="head/*", accumulate=4)
    for _ in range(2):
        state, _ = step(state, {"image": IMAGES, "label": LABELS})
    for path, value in of_params(whole, "*").items():
        np.testing.assert_allclose(of_params(state, "*")[path], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fsdp_elements", [None, 64])
def test_several_devices_give_the_same_update(fsdp_elements):
    _, alone, _ = run(parts(), trainable="head/* backbone/hidden/*")
    placement = Placement(make_mesh(8), fsdp_elements)
    _, together, _ = run(parts(), trainable="head/* backbone/hidden/*", placement=placement)
    for path, value in of_params(alone, "*").items():
        np.testing.assert_allclose(of_params(together, "*")[path], value, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(alone.opt_state) == jax.tree.structure(together.opt_state)


def test_a_gradient_that_is_not_finite_is_named_by_its_own_parameter():
    of = parts()
    state = init_state(*of, jnp.zeros((1, 8, 8, 1)), seed=0, trainable="head/kernel")
    step = make_train_step(*of, lambda images, rng: images * 1e20, trainable="head/kernel", skip_nonfinite=True)
    state, metrics = step(state, {"image": IMAGES, "label": LABELS})
    text = diagnosis.describe(metrics, "abcd", state.params)
    assert text.startswith("the gradient of head/kernel is not finite"), text


def test_variables_that_are_given_take_the_place_of_random_ones():
    kernel = np.full((128, 4), 0.5, np.float32)
    before, _, _ = run(parts(), steps=0, given={"params": {"head": {"kernel": kernel}}}, ema_decay=0.9)
    np.testing.assert_array_equal(before.params["head"]["kernel"], kernel)
    np.testing.assert_array_equal(before.average["params"]["head"]["kernel"], kernel)
    assert np.abs(before.params["backbone"]["conv1"]["kernel"]).max() > 0


def test_globs():
    paths = ["backbone/conv1/kernel", "backbone/conv1/bias", "head/kernel"]
    assert parameters.chosen("", paths) == set()
    assert parameters.chosen("*", paths) == set(paths)
    assert parameters.chosen("head/* */bias", paths) == {"head/kernel", "backbone/conv1/bias"}
    assert parameters.chosen("head", paths) == set()
    parameters.check("trainable", "head/* */bias", paths)
    with pytest.raises(ValueError, match="unknown trainable parameter 'head'; did you mean 'head/kernel'"):
        parameters.check("trainable", "backbone/* head", paths)
