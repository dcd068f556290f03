"""PyTorch's weights as variables and back: every backbone against the numbers of torchvision, timm and others."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import SHARED
from flax import traverse_util
from official_models import assert_close
from safetensors.numpy import save_file

from dsb_jax import models
from dsb_jax.models import pytorch, zoo

FOLDER = SHARED / "golden" / "public" / "backbones"
# A file of golden numbers -> the model, and options of it.
OFFICIAL = {
    "bninception": ("bn_inception", {}),
    "bninception_softtriple": ("bn_inception", {}),
    "densenet201": ("densenet201", {}),
    "googlenet": ("googlenet", {}),
    "googlenet_aux": ("googlenet", {"auxiliary": True}),
    "resnet18": ("resnet18", {}),
    "resnet32_cifar": ("resnet32", {}),
    "resnet32_cifar_norm": ("resnet32", {"head": "cosine"}),
    "resnet34": ("resnet34", {}),
    "resnet50": ("resnet50", {}),
    "resnext50_32x4d": ("resnext50_32x4d", {}),
    "resnext101_32x4d": ("resnext101_32x4d", {}),
    "seresnet50": ("seresnet50", {}),
    "vgg16": ("vgg16", {}),
    "vgg16_bn": ("vgg16_bn", {}),
}
# Weights of a gain of 2, and larger differences between the images, which tell errors that depend on them.
SENSITIVE = ("bninception", "bninception_softtriple", "densenet201", "googlenet", "resnet18", "resnet32_cifar")
SENSITIVE += ("vgg16", "vgg16_bn")
LARGE = ("resnext101_32x4d", "vgg16", "vgg16_bn", "densenet201", "seresnet50", "bninception_softtriple")


def state_dict(name, gain=1.0):
    """By the golden files' rule: each tensor from a seed made of its name."""
    weights = {}
    for entry in json.loads((FOLDER / f"{name}.json").read_text())["state_dict"]:
        key, shape = entry["key"], tuple(entry["shape"])
        normal = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
        if key.endswith("num_batches_tracked"):
            weights[key] = np.int64(0)
        elif key.endswith("running_var"):
            weights[key] = np.float32(1 + 0.1 * np.abs(normal))
        elif len(shape) >= 2:
            weights[key] = np.float32(normal * np.sqrt(gain / np.prod(shape[1:])))
        else:
            weights[key] = np.float32(0.1 * normal + (key.endswith("weight")))
    return weights


def cases():
    for name in OFFICIAL:
        for gain in (1.0, 2.0) if name in SENSITIVE else (1.0,):
            marks = [pytest.mark.slow] * (name in LARGE or gain == 2.0)
            yield pytest.param(name, gain, marks=marks, id=f"{name}-{gain:g}")


@pytest.mark.parametrize(("name", "gain"), list(cases()))
def test_outputs_and_parameters_are_the_official_ones(name, gain, golden):
    file, official = (
        golden(f"backbones/{name}{'_gain2' * (gain == 2)}"),
        json.loads((FOLDER / f"{name}.json").read_text()),
    )
    model_name, options = OFFICIAL[name]
    weights = state_dict(name, gain)
    variables = models.from_torch(model_name, weights, **options)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == official["n_parameters"]

    model = models.create(model_name, variables["params"]["head"]["kernel"].shape[-1], **options)
    forward = jax.jit(functools.partial(model.apply, train=False))
    outputs = forward(variables, file["input"].transpose(0, 2, 3, 1))
    logits = outputs.logits
    if name == "bninception_softtriple":  # which gives embeddings of length 1
        logits = logits / jnp.linalg.norm(logits, axis=1, keepdims=True)
    assert_close(outputs.features, file["features_f64"], 1e-5)
    assert_close(logits, file["logits_f64"], 1e-5)

    back = models.to_torch(model_name, variables)
    assert back.keys() == {pytorch.torchvision_name(key) for key in weights}
    for key, weight in weights.items():
        np.testing.assert_array_equal(back[pytorch.torchvision_name(key)], weight)


# What is told of them elsewhere: He et al. and torchvision, timm.
PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext101_32x8d": 88_791_336,
    "vit_small": 22_050_664,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert models.size(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_small_resnets_have_as_many_parameters_as_the_paper_says(depth, millions):
    assert round(models.size(f"resnet{depth}", 10).parameters / 1e6, 2 if millions < 1 else 1) == millions


@pytest.mark.slow
def test_a_vision_transformer_equals_a_numpy_model():
    """Its tokens, one after the other, in float64."""
    model = models.create("vit_small", 5, stem="cifar")
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(
        lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables
    )
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])["backbone"]

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def gelu(x):
        return 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))

    patches = images.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48)
    x = patches @ params["patch_embed_proj"]["kernel"].reshape(48, -1) + params["patch_embed_proj"]["bias"]
    x = np.concatenate([np.broadcast_to(params["cls_token"], (2, 1, 384)), x], axis=1) + params["pos_embed"]
    for number in range(12):
        p = params[f"blocks_{number}"]
        qkv = dense(norm(x, p["norm1"]), p["attn_qkv"]).reshape(2, 5, 3, 6, 64)
        scores = np.einsum("bqhd,bkhd->bhqk", qkv[:, :, 0], qkv[:, :, 1]) / 8
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, qkv[:, :, 2]).reshape(2, 5, 384)
        x = x + dense(mixed, p["attn_proj"])
        x = x + dense(gelu(dense(norm(x, p["norm2"]), p["mlp_fc1"])), p["mlp_fc2"])
    features = norm(x, params["norm"])[:, 0]
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    assert_close(outputs.features, features, 1e-5)


# --- Names and files --------------------------------------------------------------------------------------------------


def resnet8(num_classes=10, **options):
    model = models.create("resnet8", num_classes, **options)
    return model.init(jax.random.key(3), jnp.zeros((1, 8, 8, 3)), train=False)


def test_a_file_of_safetensors_is_read(tmp_path):
    variables = resnet8()
    save_file({k: np.asarray(v) for k, v in models.to_torch("resnet8", variables).items()}, tmp_path / "w.safetensors")
    again = models.from_torch("resnet8", tmp_path / "w.safetensors")
    for mine, other in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_names_of_timm_and_convolutions_for_dense_layers_are_understood():
    weights = {
        "pre_logits.fc1.weight": np.random.default_rng(0).standard_normal((4096, 512, 7, 7), np.float32),
        "pre_logits.fc2.weight": np.ones((4096, 4096, 1, 1), np.float32),
        "head.fc.weight": np.ones((3, 4096), np.float32),
    }
    shapes = {"kernel": jax.ShapeDtypeStruct((25088, 4096), jnp.float32)}
    wanted = {"params": {"backbone": {"classifier_0": shapes}}}
    found, missing, left = pytorch.matched("vgg16", wanted, weights)
    assert not missing
    assert left == ["pre_logits.fc2.weight", "head.fc.weight"]
    kernel = found["params", "backbone", "classifier_0", "kernel"]
    assert kernel.shape == (25088, 4096)  # the channels first, as PyTorch flattens maps
    np.testing.assert_array_equal(kernel[49 * 3 + 7 * 2 + 5], weights["pre_logits.fc1.weight"][:, 3, 2, 5])


def test_grey_images_take_the_sum_of_the_colours():
    weights = models.to_torch("resnet8", resnet8())
    grey = models.from_torch("resnet8", weights, in_channels=1)
    kernel = grey["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernel[:, :, 0], weights["conv1.weight"].sum(1).transpose(1, 2, 0), rtol=1e-6)
    model = models.create("resnet8", 10, in_channels=1)
    model.apply(grey, jnp.zeros((1, 8, 8, 1)), train=False)
    with pytest.raises(ValueError, match=r"images must have in_channels = 1 channels, got \(1, 8, 8, 3\)"):
        model.apply(grey, jnp.zeros((1, 8, 8, 3)), train=False)


def test_what_are_no_weights_of_a_model_is_one_clear_error(tmp_path):
    weights = models.to_torch("resnet8", resnet8())
    with pytest.raises(
        ValueError, match=r"no weights of a resnet20 \(layer1.1.bn1.running_mean: none, .* and \d+ more\)"
    ):
        models.from_torch("resnet20", weights)
    with pytest.raises(ValueError, match=r"no weights of a resnet8 \(.*layer9.0.conv1.weight: no part of the model"):
        models.from_torch("resnet8", weights | {"layer9.0.conv1.weight": np.zeros((1, 1, 3, 3))})
    with pytest.raises(ValueError, match=r"\(conv1.weight: \[16, 3, 5, 5\], wanted for \[3, 3, 3, 16\]\)"):
        models.from_torch("resnet8", weights | {"conv1.weight": np.zeros((16, 3, 5, 5))})
    with pytest.raises(ValueError, match=r"there is no fc.weight among \d+ tensors"):
        models.from_torch("resnet18", weights)
    with pytest.raises(ValueError, match="unknown model 'resnet9'; did you mean 'resnet8'"):
        models.from_torch("resnet9", weights)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for path in (tmp_path / "cut.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match="is no file of safetensors that can be read"):
            models.from_torch("resnet8", path)
    experts = resnet8(experts=2)
    with pytest.raises(ValueError, match="PyTorch's resnet8 has no experts_0"):
        models.to_torch("resnet8", {"params": experts["params"] | {"head": {}}})
    with pytest.raises(ValueError, match="PyTorch's resnet8 has no head/kernel"):
        models.to_torch("resnet8", resnet8(head="soft_triple"))
    with pytest.raises(ValueError, match="PyTorch's resnet8 has a backbone and a head alone, got experts"):
        models.from_torch("resnet8", weights, experts=2)
    with pytest.raises(ValueError, match="there is no lenet of PyTorch's"):
        models.from_torch("lenet", weights)


@pytest.mark.slow
def test_every_variable_has_a_name_of_its_own():
    for name in set(models.names()) - {"lenet"}:
        options = {"stem": "cifar"} if models.takes(name, "stem") else {}
        model = models.create(name, 4, **options)
        images = jax.ShapeDtypeStruct((1, *zoo.entry(name).image), jnp.float32)
        shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
        names = {pytorch.torch_name(name, path) for path in traverse_util.flatten_dict(shapes)}
        assert len(names) == len(jax.tree.leaves(shapes)), name


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "side"),
    [
        ("resnet8", 64, {}, 8),  # as many classes as features, so that no shape tells which axis is which
        ("resnet8", 64, {"head": "cosine"}, 8),
        ("resnet8", 10, {"head": "cosine"}, 8),
        pytest.param("vit_small", 5, {"stem": "cifar"}, 16, marks=pytest.mark.slow),
        pytest.param("vit_small", 5, {}, 48, marks=pytest.mark.slow),
        pytest.param("googlenet", 5, {"auxiliary": True}, 32, marks=pytest.mark.slow),
        pytest.param("densenet121", 5, {"stem": "cifar"}, 32, marks=pytest.mark.slow),
    ],
)
def test_there_and_back_nothing_changes(name, num_classes, options, side, tmp_path):
    model = models.create(name, num_classes, **options)
    images = jnp.zeros((1, side, side, 3))
    variables = dict(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images))
    weights = models.to_torch(name, variables)
    save_file(weights, tmp_path / "weights.safetensors")  # which orders tensors by name
    for source in (weights, tmp_path / "weights.safetensors"):
        again = models.from_torch(name, source, **options)
        jax.tree.map(np.testing.assert_array_equal, again, variables)
    if "head" not in options:
        key = next(key for key in weights if key.startswith(zoo.entry(name).make.func.torch_head) and "weight" in key)
        np.testing.assert_array_equal(weights[key], variables["params"]["head"]["kernel"].T)


def test_positions_are_interpolated_for_images_of_another_size():
    model = models.create("vit_small", 5, stem="cifar")
    shapes = [
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, side, side, 3)))
        for side in (16, 32)
    ]
    rows, columns = np.mgrid[0:4, 0:4]
    grid = (rows + 10.0 * columns).reshape(1, 16, 1) * np.ones(384)
    tensors = {"pos_embed": np.concatenate([np.full((1, 1, 384), 7.0), grid], axis=1).astype(np.float32)}
    found, _, _ = pytorch.matched("vit_small", shapes[1], tensors)
    large = np.asarray(found["params", "backbone", "pos_embed"])
    assert large.shape == (1, 65, 384)
    np.testing.assert_array_equal(large[:, 0], 7.0)
    inner = large[0, 1:, 0].reshape(8, 8)[2:6, 2:6]
    np.testing.assert_allclose(np.diff(inner, axis=0), 0.5, atol=0.1)
    np.testing.assert_allclose(np.diff(inner, axis=1), 5.0, atol=0.6)
    same, _, _ = pytorch.matched("vit_small", shapes[0], tensors)
    np.testing.assert_array_equal(same["params", "backbone", "pos_embed"], tensors["pos_embed"])
