"""Networks in two parts: several experts or two branches on what they share."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_models import assert_close, flat, run, structure
from test_models import random_variables

from dsb_jax import models
from dsb_jax.models.experts import early_exit

IMAGES = (4, 32, 32, 3)


def images_of(shape=IMAGES, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shapes_under(variables, *module):
    """Of parameters and statistics, by the path within a module."""
    depth = 1 + len(module)
    return {(path[0], *path[depth:]): leaf.shape for path, leaf in flat(variables) if path[1:depth] == module}


# --- Parts of the existing networks -----------------------------------------------------------------------------------


QUICK = ("lenet", "resnet8", "resnet18", "resnet50", "resnext50_32x4d", "seresnet50")
WITH_PARTS = ["lenet", *models.names("*res*")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in WITH_PARTS])
def test_the_variables_of_both_parts_are_those_of_the_whole(name):
    whole = shapes_under(structure(models.create(name, 10), IMAGES), "backbone")
    branches = structure(models.create(name, 10, branches=2), IMAGES)
    experts = structure(models.create(name, 10, experts=3), IMAGES)
    for number in range(2):
        shared, own = (shapes_under(branches, part) for part in ("backbone", f"branches_{number}"))
        assert not shared.keys() & own.keys()
        assert shared | own == whole
    for number in range(3):
        shared, own = (shapes_under(experts, *part) for part in (["backbone"], [f"experts_{number}", "backbone"]))
        assert not shared.keys() & own.keys()
        assert (shared | own).keys() == whole.keys()
        assert shared == {path: whole[path] for path in shared}


@pytest.mark.parametrize(
    ("name", "shared", "channels", "dim"),
    [
        ("resnet32", {"conv1", "bn1", *(f"layer1_{n}" for n in range(5))}, {"layer2_0": 24, "layer3_4": 48}, 48),
        ("resnet18", {"conv1", "bn1", "layer1_0", "layer1_1", "layer2_0", "layer2_1"}, {"layer3_0": 192}, 384),
        ("resnext50_32x4d", None, {"layer3_0": 384, "layer4_2": 768}, 1536),  # twice as wide in its 3x3
        ("lenet", {"conv1"}, {}, 128),
    ],
)
def test_experts_share_the_first_stages_and_are_narrower(name, shared, channels, dim):
    params = structure(models.create(name, 10, experts=2), IMAGES)["params"]
    assert shared is None or params["backbone"].keys() == shared
    for expert in ("experts_0", "experts_1"):
        own = params[expert]["backbone"]
        assert {block: own[block]["conv2"]["kernel"].shape[-1] for block in channels} == channels
        assert params[expert]["head"]["kernel"].shape == (dim, 10)


@pytest.mark.parametrize(
    ("name", "last"),
    [("lenet", "hidden"), ("resnet8", "layer3_0"), pytest.param("resnet18", "layer4_1", marks=pytest.mark.slow)],
)
def test_a_branch_is_the_whole_network(name, last):
    """Features of each branch with the parameters of a network are those of that network, and so are statistics."""
    options = {"stem": "cifar"} if name == "resnet18" else {}
    plain, images = models.create(name, 10, **options), images_of((4, 8, 8, 1))
    both = models.create(name, 10, branches=2, **options)
    first, second = (random_variables(plain, images.shape, seed) for seed in (0, 1))

    def arranged(kind):
        trunk = first.get(kind, {}).get("backbone", {})
        own = {f"branches_{n}": {last: each[kind]["backbone"][last]} for n, each in enumerate((first, second))}
        return {"backbone": {key: value for key, value in trunk.items() if key != last}, **own}

    variables = {kind: arranged(kind) for kind in first}
    head = random_variables(both, images.shape)["params"]["head"]
    variables["params"]["head"] = head
    swapped = jax.tree.map(lambda leaf: leaf, first)
    for kind in first:
        swapped[kind]["backbone"] = {**first[kind]["backbone"], last: second[kind]["backbone"][last]}
    features = []
    for number, alone in enumerate((first, swapped)):
        expected, updated = run(plain, alone, images, train=True, mutable="batch_stats")
        options = {"train": True, "mutable": "batch_stats", "method": "branch", "number": number}
        actual, changed = run(both, variables, images, **options)
        assert_close(actual, expected.features, 1e-5)
        if name == "lenet":
            assert not changed
        else:
            own, other = f"branches_{number}", f"branches_{1 - number}"
            statistics = changed["batch_stats"]
            of_alone = updated["batch_stats"]["backbone"]
            chex.assert_trees_all_close(statistics["backbone"] | statistics[own], of_alone, rtol=1e-5, atol=1e-6)
            chex.assert_trees_all_equal(statistics[other], variables["batch_stats"][other])
        features.append(run(plain, alone, images, train=False).features)
    outputs = run(both, variables, images, train=False)
    features = np.concatenate(features, axis=1)
    assert_close(outputs.features, features, 1e-5)
    assert_close(outputs.logits, features @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), 1e-5)
    np.testing.assert_array_equal(outputs.classifier, head["kernel"].T)
    logits = both.apply(variables, outputs.features, train=False, method="classify")
    assert_close(logits, outputs.logits, 1e-6)


def test_an_expert_is_the_whole_network():
    """A LeNet's experts are as wide as it is: with its parameters each gives its logits."""
    plain, model, images = models.create("lenet", 10), models.create("lenet", 10, experts=3), images_of((4, 8, 8, 1))
    each = [random_variables(plain, images.shape, seed)["params"] for seed in range(3)]
    params = {"backbone": {"conv1": each[0]["backbone"]["conv1"]}}
    for number, own in enumerate(each):
        own["backbone"]["conv1"] = each[0]["backbone"]["conv1"]
        later = {name: own["backbone"][name] for name in ("conv2", "hidden")}
        params[f"experts_{number}"] = {"backbone": later, "head": own["head"]}
    outputs = run(model, {"params": params}, images, train=False)
    alone = [run(plain, {"params": own}, images, train=False) for own in each]
    for name in ("logits", "features", "classifier"):
        stacked = np.stack([getattr(one, name) for one in alone])
        assert_close(getattr(outputs.experts, name), stacked, 1e-5)
        assert_close(getattr(outputs, name), stacked.mean(axis=0), 1e-5)
    assert outputs.routers is None
    logits = model.apply({"params": params}, outputs.experts.features, train=False, method="classify")
    assert_close(logits, outputs.experts.logits, 1e-6)


@pytest.mark.parametrize("options", [{"experts": 3, "routers": True}, {"branches": 2}])
@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_bfloat16_is_for_computing_only(name, options):
    shape = (4, 8, 8, 1)
    exact, narrow = (models.create(name, 10, dtype=dtype, **options) for dtype in ("float32", "bfloat16"))
    chex.assert_trees_all_equal_shapes_and_dtypes(structure(narrow, shape), structure(exact, shape))
    variables = random_variables(exact, shape)
    expected, outputs = (run(model, variables, images_of(shape), train=False) for model in (exact, narrow))
    chex.assert_type(jax.tree.leaves(outputs), jnp.float32)
    error = np.abs(outputs.features - expected.features).max() / np.abs(expected.features).max()
    assert 1e-4 < error < 5e-2


# --- Routers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed():
    """A model whose routers disagree about some images, its variables, images and outputs."""
    model, images = models.create("lenet", 10, experts=3, routers=True, head="cosine"), images_of((32, 8, 8, 1))
    variables = random_variables(model, images.shape)
    for number in range(2):
        layer = variables["params"][f"routers_{number}"]["output"]
        layer["kernel"] = jnp.asarray(np.random.default_rng(number).normal(size=layer["kernel"].shape), jnp.float32)
        layer["bias"] = jnp.zeros(1)
    for number in range(2):  # in the middle of what it says, so that images part
        median = np.median(run(model, variables, images, train=False).routers[number])
        variables["params"][f"routers_{number}"]["output"]["bias"] = jnp.full(1, -median, jnp.float32)
    return model, variables, images, run(model, variables, images, train=False)


def test_routers_see_normalized_features_and_the_largest_logits(routed):
    _, variables, _, outputs = routed
    for number in range(2):
        layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"][f"routers_{number}"])
        features = np.asarray(outputs.experts.features[number], np.float64)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        hidden = np.maximum(features @ layers["hidden"]["kernel"] + layers["hidden"]["bias"], 0)
        mean = np.asarray(outputs.experts.logits[: number + 1], np.float64).mean(axis=0)
        seen = np.concatenate([-np.sort(-mean, axis=1)[:, :5], hidden], axis=1)
        expected = seen @ layers["output"]["kernel"] + layers["output"]["bias"]
        np.testing.assert_allclose(outputs.routers[number], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_in_evaluation_an_image_takes_the_experts_that_its_routers_want(routed):
    model, variables, images, outputs = routed
    logits, wants = np.asarray(outputs.experts.logits), np.asarray(outputs.routers) > 0
    taken = np.where(~wants[0], 1, np.where(~wants[1], 2, 3))
    assert set(taken) == {1, 2, 3}
    expected = np.stack([logits[:number, row].mean(axis=0) for row, number in enumerate(taken)])
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-5, atol=1e-6)
    assert_close(outputs.features, np.mean(outputs.experts.features, axis=0), 1e-6)
    in_training = run(model, variables, images, train=True)
    assert_close(in_training.logits, logits.mean(axis=0), 1e-6)


@pytest.mark.slow
def test_untrained_routers_want_every_expert():
    model, images = models.create("lenet", 10, experts=3, routers=True), images_of((8, 8, 8, 1))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    outputs = run(model, variables, images, train=False)
    assert (outputs.routers > 0).all()
    assert_close(outputs.logits, np.mean(outputs.experts.logits, axis=0), 1e-6)


def test_no_expert_is_trained_for_a_router(routed):
    model, variables, images, _ = routed

    def total(params):
        return jnp.sum(model.apply({"params": params}, images, train=False).routers)

    gradient = jax.jit(jax.grad(total))(variables["params"])
    moved = {path[0] for path, leaf in flat(gradient) if np.any(leaf)}
    assert moved == {"routers_0", "routers_1"}


def test_routers_of_few_classes_and_of_no_features_are_finite():
    model = models.create("lenet", 2, experts=2, routers=True)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), structure(model, (3, 8, 8, 1)))

    def total(params):
        return jnp.sum(model.apply({"params": params}, jnp.zeros((3, 8, 8, 1)), train=False).routers)

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(total))(variables["params"]))


def test_early_exit_of_all_wishes():
    logits = np.arange(4.0)[:, None, None] * np.ones((4, 8, 2))
    wishes = np.array(list(np.ndindex(2, 2, 2))).T * 2.0 - 1.0  # [3 routers, 8 images]
    expected = [next((n for n in range(3) if wishes[n, image] < 0), 3) for image in range(8)]
    np.testing.assert_array_equal(early_exit(jnp.asarray(logits), jnp.asarray(wishes))[:, 0], expected)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": 1}, "experts must be an integer >= 2, got 1"),
        ({"experts": 2.0}, "experts must be an integer >= 2, got 2.0"),
        ({"branches": 3}, "branches must be 2, got 3"),
        (
            {"experts": 2, "branches": 2},
            "a model has experts, branches, an embedding or a projection, got experts=2 and",
        ),
        ({"routers": True}, "routers choose among experts: experts must be an integer >= 2"),
        ({"expert": 2}, "unknown model option 'expert'; did you mean 'experts'"),
    ],
)
def test_create_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create("lenet", 10, **arguments)


@pytest.mark.parametrize("option", ["experts", "branches"])
def test_a_backbone_that_has_no_parts_is_refused_and_others_are_named(option):
    with pytest.raises(ValueError, match=f"{option} belong to lenet, resnet101, .*, got {option}=2 with vgg16"):
        models.create("vgg16", 10, **{option: 2})


@pytest.mark.parametrize("options", [{"experts": 2}, {"branches": 2}])
def test_bad_images_raise(options):
    model = models.create("lenet", 10, **options)
    for images in (jnp.zeros((2, 64)), jnp.zeros((2, 8, 8, 1), jnp.uint8)):
        with pytest.raises(ValueError, match="images must"):
            model.init(jax.random.key(0), images, train=False)
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \(3, 8\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 3, 8, 1)), train=False)
