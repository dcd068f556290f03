"""The models against the official implementation's numbers, NumPy oracles, and their own contract."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_models import assert_close, assert_trains_alike, flat, run, structure, torch_variables

from dsb_jax import losses, models
from dsb_jax.models import __main__ as table
from dsb_jax.models import heads


def random_variables(model, shape, seed=0):
    """Every leaf drawn anew, so that no bias, scale or statistic is still 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5, jnp.float32)
        return jnp.asarray(rng.uniform(0.5, 1.5, size=leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, structure(model, shape))


# --- Against the official implementation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "gain"),
    [
        ("resnet32_cifar", "linear", 1.0),
        ("resnet32_cifar_gain2", "linear", 2.0),
        ("resnet32_cifar_norm", "cosine", 1.0),
    ],
)
def test_resnet32_equals_the_official_one(name, head, gain, golden):
    file = golden(f"backbones/{name}")
    model = models.create("resnet32", 10, head=head)
    images = file["input"].transpose(0, 2, 3, 1)
    outputs = run(model, torch_variables(model, images.shape, gain), images, train=False)
    assert_close(outputs.features, file["features_f64"], 1e-4)
    assert_close(outputs.logits, file["logits_f64"], 1e-4)


@pytest.mark.slow
def test_resnet32_trains_as_the_official_one(golden):
    file = golden("backbones/resnet32_cifar_trainsteps")
    assert_trains_alike(models.create("resnet32", 10), file, {"bn1": 32, "layer1": 32, "layer2": 16, "layer3": 8})


def test_cosine_head_under_ldam_equals_the_official_one(golden):
    with jax.enable_x64(True):
        file = golden("ldam_normedlinear_drw")
        weights = file["class_weights"][file["labels"]]
        head = heads.CosineHead(10)

        def loss(features, kernel):
            cosines = head.apply({"params": {"kernel": kernel}}, features)
            per_example = losses.ldam(cosines, file["labels"], counts=file["counts"])
            return jnp.sum(weights * per_example) / weights.sum(), cosines

        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, cosines), gradients = both(file["features"], file["weight"])
        np.testing.assert_allclose(value, file["loss"], rtol=1e-10)
        np.testing.assert_allclose(cosines, file["logits"], rtol=1e-10)
        assert_close(gradients[0], file["grad_features"], 1e-10)
        assert_close(gradients[1], file["grad_weight"], 1e-10)


# --- Against NumPy ----------------------------------------------------------------------------------------------------


def conv(x, kernel, stride=1):
    """Convolution with half a kernel of zeros on each side."""
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True)


def relu(x):
    return np.maximum(x, 0.0)


def lenet_features(params, x):
    for name in ("conv1", "conv2"):
        x = relu(conv(x, params[name]["kernel"]) + params[name]["bias"])
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = np.max([x[:, i : 2 * height : 2, j : 2 * width : 2] for i in (0, 1) for j in (0, 1)], axis=0)
    return relu(x.reshape(len(x), -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"])


def resnet8_features(params, statistics, x):
    def norm(x, *path):
        scale, stats = params, statistics
        for name in path:
            scale, stats = scale[name], stats[name]
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale["scale"] + scale["bias"]

    x = relu(norm(conv(x, params["conv1"]["kernel"]), "bn1"))
    for name, stride in (("layer1_0", 1), ("layer2_0", 2), ("layer3_0", 2)):
        y = relu(norm(conv(x, params[name]["conv1"]["kernel"], stride), name, "bn1"))
        y = norm(conv(y, params[name]["conv2"]["kernel"]), name, "bn2")
        shortcut = np.zeros_like(y)
        before = (y.shape[-1] - x.shape[-1]) // 2
        shortcut[..., before : before + x.shape[-1]] = x[:, ::stride, ::stride]
        x = relu(y + shortcut)
    return x.mean(axis=(1, 2))


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 9, 7, 3)])
@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_features_and_logits_equal_a_numpy_model(name, shape):
    model = models.create(name, 10)
    variables = random_variables(model, shape)
    images = np.random.default_rng(1).standard_normal(shape)
    actual = run(model, variables, images, train=False)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    backbone = exact["params"]["backbone"]
    if name == "lenet":
        features = lenet_features(backbone, images)
    else:
        features = resnet8_features(backbone, exact["batch_stats"]["backbone"], images)
    head = exact["params"]["head"]
    assert_close(actual.features, features, 1e-5)
    assert_close(actual.logits, features @ head["kernel"] + head["bias"], 1e-5)


def test_batch_normalisation_keeps_a_tenth_of_each_batch():
    model = models.create("resnet8", 10)
    shape = (4, 8, 8, 3)
    variables = random_variables(model, shape)
    images = np.random.default_rng(1).standard_normal(shape)
    _, updated = run(model, variables, images, train=True, mutable="batch_stats")
    first = conv(images, np.asarray(variables["params"]["backbone"]["conv1"]["kernel"], np.float64))
    old, new = (v["batch_stats"]["backbone"]["bn1"] for v in (variables, updated))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * first.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * first.var((0, 1, 2)), rtol=1e-5)


# --- Heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_cosine_logits_are_scaled_cosines(scale):
    rng = np.random.default_rng(0)
    features, kernel = rng.standard_normal((6, 64)), rng.standard_normal((64, 10))
    logits = heads.CosineHead(10, scale).apply({"params": {"kernel": kernel}}, features.astype(np.float32))
    lengths = np.linalg.norm(features, axis=1, keepdims=True) * np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(logits, scale * (features @ kernel) / lengths, rtol=1e-5, atol=1e-6 * scale)


def test_cosine_logits_ignore_lengths():
    rng = np.random.default_rng(0)
    features, kernel = rng.standard_normal((6, 64), np.float32), rng.standard_normal((64, 10), np.float32)
    head = heads.CosineHead(10)
    logits = head.apply({"params": {"kernel": kernel}}, features)
    lengths = np.array([1e-3, 0.1, 1.0, 10.0, 1e3, 1e6], np.float32)[:, None]
    np.testing.assert_allclose(head.apply({"params": {"kernel": 7 * kernel}}, lengths * features), logits, atol=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 1e-6])
def test_cosine_gradients_are_finite_down_to_zero_length(length):
    features, kernel = jnp.full((2, 64), length / 8.0), jnp.full((64, 10), length / 8.0)

    def total(features, kernel):
        return jnp.sum(heads.CosineHead(10).apply({"params": {"kernel": kernel}}, features))

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(features, kernel)
    chex.assert_tree_all_finite((value, gradients))
    assert abs(float(value)) <= 20.0 + 1e-4


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_features_are_what_the_last_layer_sees(name, head):
    model = models.create(name, 10, head=head)
    variables = random_variables(model, (1, 8, 8, 1))
    images = np.random.default_rng(1).standard_normal((5, 8, 8, 1))
    outputs = run(model, variables, images, train=False)
    recomputed = model.head.apply({"params": variables["params"]["head"]}, outputs.features)
    np.testing.assert_allclose(outputs.logits, recomputed, rtol=1e-5, atol=1e-6)
    assert np.std(outputs.logits) > 0.01


# --- Contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (3, 28, 28, 1), (3, 32, 32, 3)])
@pytest.mark.parametrize(("name", "dim"), [("lenet", 128), ("resnet8", 64), ("resnet20", 64)])
def test_output_shapes(name, dim, shape):
    model = models.create(name, 7)
    outputs = jax.eval_shape(functools.partial(model.apply, train=False), structure(model, shape), jnp.zeros(shape))
    assert isinstance(outputs, models.Outputs)
    chex.assert_shape((outputs.logits, outputs.features), ((3, 7), (3, dim)))
    chex.assert_type((outputs.logits, outputs.features), jnp.float32)


@pytest.mark.parametrize(
    ("name", "head", "shape", "expected"),
    [
        ("resnet32", "linear", (1, 32, 32, 3), 464_154),
        ("resnet32", "cosine", (1, 32, 32, 3), 464_144),
        ("resnet20", "linear", (1, 32, 32, 3), 269_722),
        ("resnet8", "linear", (1, 32, 32, 3), 75_290),
        ("lenet", "linear", (1, 28, 28, 1), 25 * 20 + 20 + 500 * 50 + 50 + 2450 * 128 + 128 + 1290),
    ],
)
def test_parameter_counts(name, head, shape, expected):
    params = structure(models.create(name, 10, head=head), shape)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_bfloat16_is_for_computing_only(name):
    shape = (4, 8, 8, 1)
    exact, narrow = models.create(name, 10), models.create(name, 10, dtype="bfloat16")
    variables = random_variables(exact, shape)
    images = np.random.default_rng(1).standard_normal(shape)
    chex.assert_trees_all_equal_shapes_and_dtypes(structure(narrow, shape), structure(exact, shape))
    (expected, _), (outputs, updated) = (
        run(model, variables, images, train=True, mutable="batch_stats") for model in (exact, narrow)
    )
    chex.assert_type(jax.tree.leaves((variables, outputs, updated)), jnp.float32)
    error = np.abs(outputs.features - expected.features).max() / np.abs(expected.features).max()
    assert 1e-4 < error < 5e-2


@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_gradients_are_finite_and_reach_every_parameter(name):
    shape = (8, 8, 8, 1)
    model = models.create(name, 10, head="cosine")
    variables = random_variables(model, shape)
    images, labels = np.random.default_rng(1).standard_normal(shape, np.float32), np.arange(8)

    def loss(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
        return jnp.mean(losses.ldam(outputs.logits, labels, counts=np.arange(1, 11)))

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    chex.assert_tree_all_finite(gradient)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_initial_values():
    """Variances 2/fan_in before a ReLU and 1/fan_in before the logits; normalisation and biases as if absent."""
    model = models.create("resnet8", 10)
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0, impl="rbg"), jnp.zeros((1, 8, 8, 3))
    )
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
    for path, leaf in flat(variables):
        if path[-1] == "kernel":
            gain = 1.0 if path[1] == "head" else 2.0
            assert np.std(leaf) == pytest.approx((gain / np.prod(leaf.shape[:-1])) ** 0.5, rel=0.1)
        else:
            np.testing.assert_array_equal(leaf, 1.0 if path[-1] in ("scale", "var") else 0.0)


def test_the_table_of_models(capsys):
    assert table.main(["resnet[18]*"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["name", *models.names("resnet[18]*"), "With"]
    (row,) = (row for row in rows if row[0] == "resnet18")
    assert row[1:3] == ["11,689,512", "224x224x3"]
    assert row[4] == "512"


def test_names_match_a_pattern():
    assert models.names("resnet??") == [
        "resnet18",
        "resnet20",
        "resnet32",
        "resnet34",
        "resnet44",
        "resnet50",
        "resnet56",
    ]
    assert models.names("vit*") == ["vit_small"]
    assert models.names("alexnet") == []
    assert set(models.names("*inception") + models.names("googlenet")) == {"bn_inception", "googlenet"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet23"}, "unknown model 'resnet23'; did you mean 'resnet"),
        ({"name": "lenet", "haed": "cosine"}, "unknown model option 'haed'; did you mean 'head'"),
        ({"name": "lenet", "head": "cosin"}, "unknown head 'cosin'; did you mean 'cosine'"),
        ({"name": "lenet", "head_scale": 30.0}, "head_scale belongs to the cosine head"),
        ({"name": "lenet", "head": "cosine", "head_scale": 0.0}, "head_scale must be a finite number > 0, got 0.0"),
        ({"name": "lenet", "num_classes": 0}, "num_classes must be an integer >= 2, got 0"),
        ({"name": "lenet", "dtype": "int32"}, "dtype must be bfloat16, float16 or float32, got int32"),
        (
            {"name": "lenet", "stem": "cifar"},
            "stem belongs to bn_inception, .*resnext50_32x4d, .*, got stem='cifar' with lenet",
        ),
        ({"name": "resnet8", "stem": "imagenet"}, "stem belongs to .*, got stem='imagenet' with resnet8"),
        ({"name": "resnet18", "stem": "cifra"}, "unknown stem 'cifra'; did you mean 'cifar'"),
        ({"name": "resnet18", "setm": "cifar"}, "unknown model option 'setm'; did you mean 'stem'"),
        ({"name": "lenet", "dtype": "bf16"}, "dtype must be bfloat16, float16 or float32, got bf16"),
        ({"name": "lenet", "projection": 0}, "projection must be an integer >= 1, got 0"),
        (
            {"name": "lenet", "projection": 8, "projection_layers": 0},
            "projection_layers must be an integer >= 1, got 0",
        ),
    ],
)
def test_create_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(**{"num_classes": 10, **arguments})


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((8, 8, 1)), r"images must have shape \[batch, height, width, channels\], got \(8, 8, 1\)"),
        (jnp.zeros((2, 64)), r"images must have shape \[batch, height, width, channels\], got \(2, 64\)"),
        (jnp.zeros((2, 8, 8, 1), jnp.uint8), "images must be floating point, got uint8"),
    ],
)
def test_bad_images_raise(name, images, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, 10).init(jax.random.key(0), images, train=False)


def test_lenet_refuses_images_that_vanish_under_its_pooling():
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \(3, 8\)"):
        models.create("lenet", 10).init(jax.random.key(0), jnp.zeros((1, 3, 8, 1)), train=False)


# Projections.


@pytest.mark.parametrize("name", ["lenet", "resnet8", "resnet18", "vgg16", "googlenet", "bn_inception", "vit_small"])
def test_any_model_may_have_a_projection(name):
    images = jnp.zeros((3, 32, 32, 3))
    plain, projecting = (models.create(name, 10, **options) for options in ({}, {"projection": 7}))
    variables = jax.eval_shape(lambda: projecting.init(jax.random.key(0), images, train=False))
    others = dict(variables["params"])
    width = others.pop("projection")["output"]["kernel"].shape
    wanted = jax.eval_shape(lambda: plain.init(jax.random.key(0), images, train=False))
    chex.assert_trees_all_equal(variables | {"params": others}, wanted)
    outputs = jax.eval_shape(lambda v: projecting.apply(v, images, train=False), variables)
    assert width == (outputs.features.shape[1], 7)
    assert outputs.projected.shape == (3, 7)
    assert jax.eval_shape(lambda v: plain.apply(v, images, train=False), wanted).projected is None


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_projection_is_dense_layers_and_a_division_by_the_length(layers):
    model = models.create("lenet", 4, projection=5, projection_layers=layers)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    outputs = model.apply(variables, images, train=False)
    parameters = variables["params"]["projection"]
    names = [*(f"hidden{number}" for number in range(1, layers)), "output"]
    assert sorted(parameters) == sorted(names)
    x = np.asarray(outputs.features, np.float64)
    for name in names:
        x = x @ np.asarray(parameters[name]["kernel"], np.float64) + np.asarray(parameters[name]["bias"], np.float64)
        x = x if name == "output" else np.maximum(x, 0)
    np.testing.assert_allclose(outputs.projected, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
    logits = models.create("lenet", 4).apply(variables, images, train=False).logits
    np.testing.assert_array_equal(outputs.logits, logits)


def test_an_embedding_of_nothing_has_a_finite_gradient():
    model = models.create("lenet", 4, projection=5)
    images = jnp.zeros((2, 8, 8, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    params = jax.tree.map(lambda shape: jnp.zeros(shape.shape), shapes)

    def total(params):
        return jnp.sum(model.apply({"params": params}, images, train=True).projected)

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(total))(params))
