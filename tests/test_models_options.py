"""Options that every family of backbones has: a stem for small images, frozen normalisation, less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from official_models import run, structure
from small_run import slow_but

from dsb_jax import losses, models, objectives
from dsb_jax.models import zoo
from dsb_jax.models.layers import BasicBlock, max_pool
from dsb_jax.models.resnet import ResNet
from dsb_jax.models.vgg import adaptive_mean

FAMILIES = ("bn_inception", "densenet121", "googlenet", "resnet18", "resnet50", "seresnet50", "vgg16_bn", "vit_small")
# Compiled in seconds, so that what they compute can be compared.
SMALL = (
    "resnet8",
    pytest.param("resnet18", marks=pytest.mark.slow),
    pytest.param("bn_inception", marks=pytest.mark.slow),
)
QUICK = ("bn_inception", "googlenet", "lenet", "resnet8", "resnet18", "vgg16_bn")


FEATURES = {"bn_inception": 1024, "densenet121": 1024, "googlenet": 1024, "resnet18": 512, "resnet50": 2048}
FEATURES |= {"seresnet50": 2048, "vgg16_bn": 512, "vit_small": 384}


def shapes_of_outputs(model, shape):
    """Of every submodule, without computing anything."""
    forward = functools.partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    return jax.eval_shape(forward, structure(model, shape), jnp.zeros(shape))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_the_stem_for_small_images_the_last_map_is_not_tiny(name):
    """Of 32x32 pixels the last feature map has 4x4 or more; the features are its mean."""
    model = models.create(name, 100, stem="cifar")
    outputs, found = shapes_of_outputs(model, (2, 32, 32, 3))
    assert outputs.logits.shape == (2, 100)
    assert outputs.features.shape == (2, FEATURES[name])
    maps = [leaf.shape for leaf in jax.tree.leaves(found["intermediates"]["backbone"]) if len(leaf.shape) == 4]
    sides = {shape[1] for shape in maps if shape[1] > 1}  # but for those of squeeze and excitation
    assert min(sides) >= 4
    if name != "vit_small":
        assert max(sides) == 32


@pytest.mark.parametrize("name", slow_but(QUICK, models.names()))
def test_any_image_from_the_smallest_on_passes_and_smaller_ones_are_refused(name):
    backbone = zoo.entry(name).make.func
    for stem in models.STEMS if models.takes(name, "stem") else (None,):
        least = backbone.least_sides[stem]
        model = models.create(name, 5, stem=stem)
        for size in ((least, least), (least + 16, least + 32)):
            assert shapes_of_outputs(model, (1, *size, 1))[0].logits.shape == (1, 5)
        with pytest.raises(ValueError, match=rf"needs images of at least {least}x{least} pixels.*, got "):
            structure(model, (1, least - 1, least, 3))


@pytest.mark.parametrize("name", SMALL)
def test_blocks_that_are_computed_again_change_nothing(name):
    shape, labels = (4, 32, 32, 3), np.arange(4)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    kept, again = (models.create(name, 4, remat=remat) for remat in (False, True))
    chex.assert_trees_all_equal_shapes_and_dtypes(structure(kept, shape), structure(again, shape))
    variables = jax.jit(functools.partial(kept.init, train=False))(jax.random.key(0), images)

    def gradient(model):
        def loss(params):
            outputs, stats = model.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
            return jnp.mean(losses.cross_entropy(outputs.logits, labels)), stats

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    chex.assert_trees_all_close(gradient(again), gradient(kept), rtol=1e-3, atol=1e-5)
    text = [str(jax.make_jaxpr(lambda v, m=m: m.apply(v, images, train=False))(variables)) for m in (kept, again)]
    assert ["checkpoint" in each or "remat" in each for each in text] == [False, True]


@pytest.mark.parametrize("name", SMALL)
def test_frozen_normalisation_goes_by_running_statistics_and_leaves_them(name):
    shape = (4, 32, 32, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    frozen = models.create(name, 4, frozen_norm=True)
    variables = jax.jit(functools.partial(frozen.init, train=False))(jax.random.key(0), images)
    outputs, changed = run(frozen, variables, images, train=True, mutable="batch_stats")
    evaluated = run(models.create(name, 4), variables, images, train=False)
    np.testing.assert_allclose(outputs.features, evaluated.features, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(changed.get("batch_stats", variables["batch_stats"]), variables["batch_stats"])
    _, changed = run(models.create(name, 4), variables, images, train=True, mutable="batch_stats")
    assert all(np.any(leaf) for leaf in jax.tree.leaves(changed["batch_stats"]))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet8", "bn2"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("resnet18", "bn2"), ("resnet50", "bn3"))),
    ],
)
def test_blocks_may_begin_as_their_shortcuts(name, last):
    model = models.create(name, 4, zero_init=True)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for path, leaf in traverse_util.flatten_dict(variables["params"]["backbone"]).items():
        if path[-1] == "scale":
            np.testing.assert_array_equal(leaf, 0.0 if path[-2] == last else 1.0)


@pytest.mark.slow
def test_dropout_is_drawn_anew_for_every_pass():
    model = models.create("googlenet", 4, stem="cifar")
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def features(key):
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0].features

    one, same, other = (features(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    dropped = np.asarray(one) == 0
    assert 0.1 < np.mean(dropped) < 0.3
    assert np.any(dropped != (np.asarray(other) == 0))


@pytest.mark.slow
def test_classifiers_halfway_add_their_loss():
    model = models.create("googlenet", 4, stem="cifar", auxiliary=True)
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    assert run(model, variables, images, train=False).auxiliary is None
    rngs = {"dropout": jax.random.key(0)}
    outputs, _ = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
        variables, images, rngs=rngs
    )
    assert outputs.auxiliary.shape == (2, 2, 4)
    batch = {"image": images, "label": jnp.array([0, 3])}
    objective = objectives.Supervised(losses.create("cross_entropy"))
    terms = objective(lambda images: outputs, batch, (), jax.random.key(0)).terms
    assert [term.scale for term in terms] == [1.0, 0.3, 0.3]
    for term, logits in zip(terms, [outputs.logits, *outputs.auxiliary], strict=True):
        np.testing.assert_allclose(term.losses, losses.cross_entropy(logits, batch["label"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet", {"remat": True}, "remat belongs to .*resnet18.*, got remat=True with lenet"),
        ("vit_small", {"frozen_norm": True}, "frozen_norm belongs to .*, got frozen_norm=True with vit_small"),
        ("vgg16", {"zero_init": True}, "zero_init belongs to resnet101, .*, got zero_init=True with vgg16"),
        ("resnet50", {"auxiliary": True}, "auxiliary belongs to googlenet, got auxiliary=True with resnet50"),
        ("resnet8", {"stem": "cifar"}, "stem belongs to .*, got stem='cifar' with resnet8"),
        ("resnet18", {"stem": "cifra"}, "unknown stem 'cifra'; did you mean 'cifar'"),
        ("resnet18", {"remat": "no"}, "remat must be True or False, got 'no'"),
        ("resnet18", {"in_channels": 0}, "in_channels must be an integer >= 1, got 0"),
        ("resnet18", {"num_classes": 1}, "num_classes must be an integer >= 2, got 1"),
        ("vgg16", {"experts": 3}, "experts belong to .*resnet50.*, got experts=3 with vgg16"),
    ],
)
def test_options_that_a_model_has_not_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **{"num_classes": 10} | options)


@pytest.mark.parametrize("name", slow_but(QUICK, models.names("*res*")))
def test_the_whole_family_has_experts_and_branches(name):
    for options in ({"experts": 2, "in_channels": 3}, {"branches": 2}):
        model = models.create(name, 4, **options)
        assert shapes_of_outputs(model, (1, 64, 64, 3))[0].logits.shape == (1, 4)


# --- Pooling, against brute force -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [5, 6, 7, 8])
@pytest.mark.parametrize(
    ("size", "stride", "pad", "ceil"), [(3, 2, 0, True), (2, 2, 0, True), (3, 1, 1, True), (3, 2, 1, False)]
)
def test_max_pooling_counts_windows_as_pytorch_does(size, stride, pad, ceil, side):
    x = np.random.default_rng(0).standard_normal((1, side, side, 1), np.float32)
    steps = (side + 2 * pad - size) / stride
    windows = int(np.ceil(steps) if ceil else np.floor(steps)) + 1
    if ceil and (windows - 1) * stride >= side + pad:
        windows -= 1
    expected = np.empty((windows, windows))
    for i in range(windows):
        for j in range(windows):
            top, left = i * stride - pad, j * stride - pad
            expected[i, j] = x[0, max(top, 0) : top + size, max(left, 0) : left + size, 0].max()
    np.testing.assert_array_equal(max_pool(x, size, stride, pad=pad, ceil=ceil)[0, :, :, 0], expected)


@pytest.mark.parametrize("shape", [(7, 7), (2, 3), (14, 10), (9, 23)])
def test_adaptive_means_cover_the_map(shape):
    x = np.random.default_rng(0).standard_normal((1, *shape, 2))
    expected = np.empty((7, 7, 2))
    for i in range(7):
        for j in range(7):
            rows = slice(i * shape[0] // 7, -(-(i + 1) * shape[0] // 7))
            columns = slice(j * shape[1] // 7, -(-(j + 1) * shape[1] // 7))
            expected[i, j] = x[0, rows, columns].mean((0, 1))
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x, jnp.float32), 7)[0], expected, rtol=1e-5, atol=1e-6)


def test_statistics_and_parameters_stay_float32_under_bfloat16():
    block = functools.partial(ResNet, block=BasicBlock, blocks=(1, 1, 1, 1), stem="cifar", remat=True)
    model = models.Classifier(block(dtype=jnp.dtype("bfloat16")), models.heads.LinearHead(4))
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    outputs, changed = run(model, variables, images, train=True, mutable="batch_stats")
    chex.assert_type(jax.tree.leaves((variables, changed, outputs)), jnp.float32)
