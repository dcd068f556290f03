"""ResNet-18, 34, 50 and ResNeXt-50 against torchvision's numbers, NumPy oracles, and their own contract."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from official_models import assert_close, assert_trains_alike, flat, run, structure, torch_shapes, torch_variables

from dsb_jax import models
from dsb_jax.models import Classifier, heads
from dsb_jax.models.layers import BasicBlock
from dsb_jax.models.resnet import Bottleneck, ResNet

IMAGES = (2, 64, 64, 3)


def small(block, *, stem="cifar", dtype=jnp.float32):
    """One block in every stage."""
    backbone = ResNet(block=block, blocks=(1, 1, 1, 1), stem=stem, dtype=jnp.dtype(dtype))
    return Classifier(backbone=backbone, head=heads.LinearHead(10))


def convolve(x, kernel):
    """A 3x3 convolution, padded, in float64."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows, np.asarray(kernel, np.float64), optimize=True)


# --- Against torchvision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"])
def test_variables_are_those_of_torchvision(name, golden):
    del golden  # which skips where there are no files
    official = json.loads((SHARED / "golden" / "public" / "backbones" / f"{name}.json").read_text())
    expected = {entry["key"]: tuple(entry["shape"]) for entry in official["state_dict"]}
    expected = {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}
    model = models.create(name, 1000)
    assert torch_shapes(model, IMAGES) == expected
    assert sum(leaf.size for _, leaf in flat(structure(model, IMAGES)["params"])) == official["n_parameters"]


@pytest.mark.parametrize(
    ("name", "gain"),
    [("resnet18", 1.0), ("resnet18_gain2", 2.0), ("resnet34", 1.0), ("resnet50", 1.0), ("resnext50_32x4d", 1.0)],
)
def test_outputs_equal_those_of_torchvision(name, gain, golden):
    file = golden(f"backbones/{name}")
    model = models.create(name.removesuffix("_gain2"), 1000)
    outputs = run(model, torch_variables(model, IMAGES, gain), file["input"].transpose(0, 2, 3, 1), train=False)
    assert_close(outputs.features, file["features_f64"], 1e-4)
    assert_close(outputs.logits, file["logits_f64"], 1e-4)


def test_resnet18_forms_the_first_training_batch_as_that_of_torchvision(golden):
    file = golden("backbones/resnet18_trainsteps")
    images = file["input"].transpose(0, 2, 3, 1)
    model = models.create("resnet18", 10)
    outputs, _ = run(model, torch_variables(model, images.shape), images, train=True, mutable="batch_stats")
    assert_close(outputs.logits, file["logits_step0"], 1e-4)


@pytest.mark.slow  # convolutions in float64
def test_resnet18_trains_as_that_of_torchvision(golden):
    sides = {"bn1": 32, "layer1": 16, "layer2": 8, "layer3": 4, "layer4": 2}
    assert_trains_alike(models.create("resnet18", 10), golden("backbones/resnet18_trainsteps"), sides)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnext50_32x4d", 25_028_904),
    ],
)
def test_parameter_counts_are_those_of_torchvision(name, expected):
    variables = structure(models.create(name, 1000), IMAGES)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


# --- The groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "group_width"), [(1, 64), (8, 16)])
def test_every_group_of_channels_is_convolved_by_itself(groups, group_width):
    """The first 3x3 of a stage against as many dense convolutions as there are groups."""
    width, images = groups * group_width, np.random.default_rng(0).standard_normal((2, 7, 6, 3))
    block = functools.partial(Bottleneck, groups=groups, group_width=group_width)
    model = small(block)
    variables = torch_variables(model, images.shape)
    _, found = run(model, variables, images, train=False, capture_intermediates=True)
    outputs = found["intermediates"]["backbone"]["layer1_0"]
    x = np.maximum(outputs["bn1"]["__call__"][0], 0.0)
    kernel = variables["params"]["backbone"]["layer1_0"]["conv2"]["kernel"]
    assert x.shape[-1] == width
    assert kernel.shape == (3, 3, group_width, width)
    expected = [
        convolve(part, filters)
        for part, filters in zip(np.split(x, groups, axis=-1), np.split(kernel, groups, axis=-1), strict=True)
    ]
    assert_close(outputs["conv2"]["__call__"][0], np.concatenate(expected, axis=-1), 1e-5)


# --- The stems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("resnet34", 10, 21_282_122),
        ("resnet50", 10, 23_520_842),
        ("resnext50_32x4d", 10, 22_992_714),
    ],
)
def test_parameter_counts_with_the_cifar_stem(name, num_classes, expected):
    variables = structure(models.create(name, num_classes, stem="cifar"), (1, 32, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize(("stem", "sides"), [("cifar", (20, 20, 10, 5, 3)), ("imagenet", (10, 5, 3, 2, 1))])
@pytest.mark.parametrize(("block", "expansion"), [(BasicBlock, 1), (Bottleneck, 4)])
def test_every_stage_halves_the_resolution(block, expansion, stem, sides):
    model = small(block, stem=stem)
    shape = (3, 20, 20, 1)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    _, found = jax.eval_shape(apply, structure(model, shape), jnp.zeros(shape))
    outputs = found["intermediates"]["backbone"]
    stages = ("bn1", "layer1_0", "layer2_0", "layer3_0", "layer4_0")
    channels = (64, *(expansion * width for width in (64, 128, 256, 512)))
    for stage, side, width in zip(stages, sides, channels, strict=True):
        assert outputs[stage]["__call__"][0].shape == (3, side, side, width)


def test_cifar_stem_is_one_convolution_and_what_follows_sees_all_of_it():
    model = small(BasicBlock)
    images = np.random.default_rng(0).standard_normal((2, 9, 7, 3))
    variables = torch_variables(model, images.shape)
    _, found = run(model, variables, images, train=False, capture_intermediates=True)
    outputs = found["intermediates"]["backbone"]
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, statistics = exact["params"]["backbone"], exact["batch_stats"]["backbone"]["bn1"]
    stem = convolve(images, params["conv1"]["kernel"])
    assert_close(outputs["conv1"]["__call__"][0], stem, 1e-5)
    stem = (stem - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    stem = np.maximum(stem * params["bn1"]["scale"] + params["bn1"]["bias"], 0.0)
    expected = convolve(stem, params["layer1_0"]["conv1"]["kernel"])
    assert_close(outputs["layer1_0"]["conv1"]["__call__"][0], expected, 1e-5)


# --- Contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize(
    ("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnext50_32x4d", 2048)]
)
def test_output_shapes(name, dim, stem):
    model = models.create(name, 7, stem=stem)
    shape = (3, 32, 32, 3)
    outputs = jax.eval_shape(functools.partial(model.apply, train=False), structure(model, shape), jnp.zeros(shape))
    chex.assert_shape((outputs.logits, outputs.features), ((3, 7), (3, dim)))
    chex.assert_type((outputs.logits, outputs.features), jnp.float32)


def test_the_stem_is_that_of_imagenet_by_default():
    assert models.create("resnet18", 10) == models.create("resnet18", 10, stem="imagenet")
    assert models.create("resnet18", 10) != models.create("resnet18", 10, stem="cifar")


@pytest.mark.parametrize("block", [BasicBlock, pytest.param(Bottleneck, marks=pytest.mark.slow)])
def test_bfloat16_is_for_computing_only(block):
    exact, narrow = small(block, stem="imagenet"), small(block, stem="imagenet", dtype="bfloat16")
    images = np.random.default_rng(1).standard_normal((4, 32, 32, 3))
    variables = torch_variables(exact, images.shape)
    chex.assert_trees_all_equal_shapes_and_dtypes(structure(narrow, images.shape), structure(exact, images.shape))
    (expected, _), (outputs, updated) = (
        run(model, variables, images, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True)
        for model in (exact, narrow)
    )
    chex.assert_type(jax.tree.leaves((variables, outputs, updated["batch_stats"])), jnp.float32)
    within = [leaf for path, leaf in flat(updated["intermediates"]["backbone"]) if path[0] != "__call__"]
    chex.assert_type(jax.tree.leaves(within), jnp.bfloat16)
    error = np.linalg.norm(outputs.features - expected.features) / np.linalg.norm(expected.features)
    assert 1e-4 < error < 0.1


def test_gradients_are_finite_and_reach_every_parameter():
    model = small(Bottleneck)
    images = np.random.default_rng(1).standard_normal((8, 5, 5, 3), np.float32)
    variables = torch_variables(model, images.shape)

    def loss(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
        return jnp.mean(jax.nn.logsumexp(outputs.logits, axis=1) - outputs.logits[:, 0])

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    chex.assert_tree_all_finite(gradient)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_one_trace_serves_every_batch():
    model = small(BasicBlock)
    images = np.zeros((2, 5, 5, 3), np.float32)
    variables = torch_variables(model, images.shape)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(variables, images):
        return model.apply(variables, images, train=True, mutable="batch_stats")

    _, updated = apply(variables, images)
    apply(variables | updated, images + 1)


def test_initial_values():
    """Variances 2/fan_out, as torchvision's, and 1/fan_in before the logits; normalisation and biases as if absent."""
    model, key = small(Bottleneck, stem="imagenet"), jax.random.key(0, impl="rbg")
    for path, leaf in flat(jax.jit(functools.partial(model.init, train=False))(key, jnp.zeros((1, 32, 32, 3)))):
        if path[-1] == "kernel":
            variance = 1 / leaf.shape[0] if path[1] == "head" else 2 / np.prod([*leaf.shape[:2], leaf.shape[3]])
            assert np.std(leaf) == pytest.approx(variance**0.5, rel=0.1)
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1] in ("scale", "var") else 0.0)


@pytest.mark.parametrize(
    ("stem", "size", "message"),
    [
        ("imagenet", (16, 32), r"least 17x17 pixels, or 5x5 with stem=\"cifar\", got \(16, 32\)"),
        ("cifar", (8, 4), r"stem=\"cifar\" needs images of at least 5x5 pixels, got \(8, 4\)"),
    ],
)
def test_images_that_vanish_on_the_way_raise(stem, size, message):
    model = models.create("resnet18", 10, stem=stem)
    with pytest.raises(ValueError, match=message):
        structure(model, (1, *size, 3))
    least = ResNet.least_sides[stem]
    structure(model, (1, least, least, 3))
