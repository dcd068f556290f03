"""The configs: what they build of their datasets' numbers, the paper's recipes, and a few steps of each."""

import dataclasses
import functools
import math
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import COUNTS

from dsb_jax import data, models
from dsb_jax.data import synthetic
from dsb_jax.training import experiment
from dsb_jax.training.program import Program

# Nothing is known of own images before they are there, so there is nothing to rehearse with.
_OWN_IMAGES = ("folder", "listing")
CONFIGS = {
    path.stem: path
    for path in sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
    if path.stem not in _OWN_IMAGES
}


@pytest.fixture(autouse=True)
def few_files(monkeypatch):
    """Made-up images are made in less time: 64 of the fundus, which have 4.5 million pixels, take half a minute."""
    monkeypatch.setattr(synthetic, "_FILES", 2)


def load(name, *arguments):
    """A config for one device and for images that are made up."""
    return runpy.run_path(str(CONFIGS[name]))["get_config"](",".join(("data=synthetic,devices=1", *arguments)))


@functools.cache
def built(name, *arguments):
    config = load(name, *arguments)
    return config, experiment.build(config)


# What they build.

# The configs that thin out a dataset themselves -> the numbers that come of it.
THINNED = {
    "cifar10_lt": data.spec("cifar10_lt").train_counts("100"),
    "cifar100_lt": data.spec("cifar100_lt").train_counts("100"),
    "mnist_lt": data.spec("mnist_lt_2").train_counts(),
    "digits_lt": COUNTS,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_fit_the_dataset(name):
    """Every setting is checked when the experiment is built, and the model's first layers see the images."""
    config, made = built(name)
    spec = data.spec(config.dataset)
    expected = THINNED[name] if name in THINNED else spec.train_counts(config.protocol)
    np.testing.assert_array_equal(made.counts, expected)
    evaluation = spec.protocol(config.protocol).evaluation
    assert len(made.test) == spec.part(evaluation, config.protocol).counts.sum()
    assert made.steps == math.ceil(config.epochs * expected.sum() / config.batch_size)
    size = config.image_size
    assert made.train.image_shape[:2] == made.test.image_shape[:2] == ((size, size) if size else spec.image_shape[:2])
    assert made.preprocessing.mean == spec.mean
    assert made.preprocessing.std == spec.std
    images = jnp.zeros((2, *made.train.image_shape))
    outputs, _ = jax.eval_shape(functools.partial(made.model.init_with_output, train=False), jax.random.key(0), images)
    assert outputs.logits.shape == (2, len(expected))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_commands_of_a_docstring_can_be_run(name):
    text = runpy.run_path(str(CONFIGS[name]))["__doc__"]
    prepared = re.findall(r"python -m dsb_jax\.data\.prepare (\S+) --archive DIR", text)
    assert all(data.spec(dataset) for dataset in prepared)
    trained = re.findall(r"--config='?configs/(\w+)\.py:?([^\s']*)", text)
    assert trained
    for config, arguments in trained:
        assert built(config, *filter(None, [arguments]))[1].steps


RETRIEVALS = [name for name in CONFIGS if load(name).task == "retrieval"]


def test_retrieval_is_of_classes_that_are_not_trained():
    """Table 4 and Appendix D.5: classes and images that train and that are searched; SOP as Song et al., 2016."""
    sizes = {name: built(name)[1] for name in RETRIEVALS}
    assert {name: (made.train.num_classes, made.test.num_classes, len(made.test)) for name, made in sizes.items()} == {
        "cars196": (98, 98, 8131),
        "cars196_lt": (98, 98, 8131),
        "cifar100_retrieval": (60, 40, 24_000),
        "cifar100_retrieval_lt": (60, 40, 24_000),
        "cub2011": (100, 100, 5924),
        "mini_imagenet_retrieval": (64, 36, 21_600),
        "sop": (11_318, 11_316, 60_502),
    }
    for name in RETRIEVALS:
        config = load(name)
        assert (config.embedding, config.objective) == (512 if name == "sop" else 64, "norm_softmax")
        assert config.start_epoch == (None if name == "sop" else 5)  # n of the paper, with trained features too
    for name in ("cars196", "cifar100_retrieval", "cub2011"):  # whose class names are known before images are here
        assert not {*sizes[name].train.class_names} & {*sizes[name].test.class_names}


def test_numbers_are_those_of_the_literature():
    counts = {name: built(name)[1].counts for name in ("inat2018", "imagenet_lt", "imagenet2012", "places_lt")}
    assert {name: (len(each), each.sum(), each.max()) for name, each in counts.items()} == {
        "inat2018": (8142, 437_513, 1000),
        "imagenet_lt": (1000, 115_846, 1280),
        "imagenet2012": (1000, 1_281_167, 1300),
        "places_lt": (365, 62_500, 4980),
    }


# The paper's recipes, as read there; None is what it does not state.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of a table of experiments: ``augmentation`` is what must be on, and nothing else where it is empty."""

    model: str
    optimizer: str
    rate: float
    schedule: str | None
    batch_size: int | None
    weight_decay: float
    momentum: float = 0.9
    alpha: float | None = None
    epochs: int | None = None
    adam_epsilon: float = 1e-8
    head_rate_factor: float = 1.0
    augmentation: frozenset[str] | None = None


NONE = frozenset()
MIXED = frozenset({"crop", "mixup", "cutmix"})
# Measured in plain cross-entropy (Sec. 3.3, Appendix D.2): "no other additional tricks".
MEASURED = Recipe("resnet18", "adam", 0.01, "exponential", 64, 0.0, augmentation=NONE)
# "Adam, default parameters" (Appendix D.7).
SCENES = Recipe("resnet34", "adam", 0.001, "step", 100, 0.0, alpha=1.0, augmentation=NONE)
# Sec. 5.3, Appendix D.5, and the published code of SoftTriple.
RETRIEVAL = Recipe(
    "bn_inception",
    "adam",
    1e-4,
    "twenties",
    32,
    1e-4,
    alpha=1.0,
    epochs=50,
    adam_epsilon=0.01,
    head_rate_factor=100.0,
    augmentation=frozenset({"crop", "flip"}),
)
RETRIEVAL_LT = dataclasses.replace(RETRIEVAL, alpha=2.0)

RECIPES = {
    "cifar10": MEASURED,
    "cifar100": MEASURED,
    "mini_imagenet": MEASURED,
    "inat2018": Recipe("resnet50", "sgd", 0.1, "linear", 512, 5e-4, alpha=2.0),
    "imagenet_lt": Recipe("resnext50_32x4d", "sgd", 0.1, "linear", 256, 5e-4, alpha=2.0),
    "imagenet2012": Recipe("resnet18", "adam", 0.05, None, 512, 5e-4, alpha=1.0, augmentation=MIXED),
    "cifar100_table3": Recipe("resnet18", "adam", 0.1, "linear", 64, 5e-3, alpha=1.0, augmentation=MIXED),
    "cub2011": RETRIEVAL,
    "cars196": RETRIEVAL,
    "cars196_lt": RETRIEVAL_LT,
    "cifar100_retrieval": RETRIEVAL,
    "cifar100_retrieval_lt": RETRIEVAL_LT,
    "mini_imagenet_retrieval": RETRIEVAL,
    # Of IFL's code and remarks; there is no momentum in its numbers.
    "coco_glt": Recipe("resnext50_32x4d", "sgd", 0.1, "cosine", 256, 5e-4, momentum=0.0, alpha=2.0, epochs=100),
    "odir": Recipe("resnet50", "adam", 0.1, "linear", None, 5e-3, alpha=2.0),
    "rsscn7": SCENES,
    "resisc45": SCENES,
    "imagenet_hierarchy": Recipe("resnet18", "adam", 0.01, "linear", 64, 5e-3),
}
# Configs of which the paper states nothing, or that are of no experiment of it.
WITHOUT_RECIPE = {
    "cifar10_lt",
    "cifar100_lt",
    "digits_lt",
    "eurosat",
    "mnist",
    "mnist_lt",
    "places_lt",
    "sop",
    "tiny_imagenet",
}


def test_every_config_is_checked_or_has_nothing_to_check():
    assert sorted([*RECIPES, *WITHOUT_RECIPE]) == sorted(CONFIGS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_those_of_the_paper(name):
    recipe, (config, made) = RECIPES[name], built(name)
    options = {"stem": config.stem} if models.takes(config.model, "stem") else {}
    options["frozen_norm"] = config.task == "retrieval"
    assert made.model.backbone == models.create(recipe.model, len(made.counts), **options).backbone
    assert recipe.batch_size in (None, config.batch_size)
    assert recipe.epochs in (None, config.epochs)
    assert recipe.alpha in (None, made.alpha)
    if recipe.augmentation is not None:
        on = {
            "crop": config.random_crop != "none" or made.preprocessing.crop_padding > 0,
            "flip": made.preprocessing.flip,
            "jitter": any(made.preprocessing.color_jitter),
            "randaugment": made.preprocessing.randaugment_layers > 0,
            "mixup": made.preprocessing.mixup > 0,
            "cutmix": made.preprocessing.cutmix > 0,
        }
        chosen = {kind for kind, is_on in on.items() if is_on}
        assert recipe.augmentation <= chosen
        assert recipe.augmentation or not chosen


@pytest.mark.parametrize("name", RECIPES)
def test_rates_fall_as_in_the_paper(name):
    recipe, (config, made) = RECIPES[name], built(name)
    per_epoch = len(made.indices) / config.batch_size
    # Just after so many epochs, as a share of the first rate.
    expected = {
        "linear": {config.epochs / 2: 0.5, config.epochs / 4: 0.75, config.epochs: 0.0},
        "cosine": {config.epochs / 2: 0.5, config.epochs / 4: (1 + math.sqrt(0.5)) / 2, config.epochs: 0.0},
        "exponential": {1: 0.98, 2: 0.98**2, 10: 0.98**10},
        "step": {49: 1.0, 50: 0.1, 99: 0.1, 100: 0.01},
        "twenties": {19: 1.0, 20: 0.1, 39: 0.1, 40: 0.01},
        None: {},
    }[recipe.schedule]
    np.testing.assert_allclose(made.schedule(0), recipe.rate, rtol=1e-6)
    for epoch, share in expected.items():
        step = min(math.ceil(epoch * per_epoch), made.steps)
        np.testing.assert_allclose(made.schedule(step), share * recipe.rate, rtol=1e-5, atol=recipe.rate / made.steps)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("part", ["backbone", "head"])
def test_updates_are_those_of_the_papers_optimizer(name, part):
    """Of one parameter, twice, in float64."""
    recipe, (_, made) = RECIPES[name], built(name)
    theta, gradients = 2.0, (1.0, -3.0)
    params = {part: jnp.array([theta], jnp.float32)}
    state = made.optimizer.init(params)
    first = second = 0.0
    for number, gradient in enumerate(gradients, start=1):
        updates, state = made.optimizer.update({part: jnp.array([gradient], jnp.float32)}, state, params)
        g, rate = gradient + recipe.weight_decay * theta, float(made.schedule(number - 1))
        rate *= recipe.head_rate_factor if part == "head" else 1.0
        if recipe.optimizer == "sgd":
            first = recipe.momentum * first + g
            update = -rate * first
        else:
            first = recipe.momentum * first + (1 - recipe.momentum) * g
            second = 0.999 * second + 0.001 * g**2
            corrected = first / (1 - recipe.momentum**number), second / (1 - 0.999**number)
            update = -rate * corrected[0] / (math.sqrt(corrected[1]) + recipe.adam_epsilon)
        np.testing.assert_allclose(updates[part], update, rtol=1e-4)
        theta, params = theta + update, {part: params[part] + updates[part]}


@pytest.mark.parametrize(
    ("name", "arguments", "alpha"),
    [
        ("odir", "protocol=balanced", 1.0),
        ("coco_glt", "protocol=glt", 2.0),
        ("coco_glt", "protocol=alt", 1.0),
        ("cifar10", "long_tail=exponential,imbalance=200", 2.0),
        ("mini_imagenet", "long_tail=balanced,images_per_class=50", 1.0),
    ],
)
def test_alpha_follows_what_is_chosen_of_a_dataset(name, arguments, alpha):
    assert built(name, arguments)[1].alpha == alpha


def test_imagenet_lt_is_tested_on_either_split():
    assert len(built("imagenet_lt")[1].test) == 50_000
    assert len(built("imagenet_lt", "eval_split=val")[1].test) == 20_000


# A few steps. To compile them is what costs time: three configs have what differs most in what is done with images and
# with classes, and the true models of all of them are for patient people.


def take_steps(name, *arguments, size, steps=3):
    config = load(name, "batch_size=16,eval_batch_size=16,resident_megabytes=0", *arguments)
    if config.image_size is not None:
        config.image_size = size
    if config.shorter_side is not None:
        config.shorter_side = size + size // 8
    made = experiment.build(config)
    program = Program(config, made)
    batches, state, fed = program.batches(0), program.initial, np.zeros(len(made.counts), np.int64)
    for _ in range(steps):
        batch = next(batches)
        fed += np.bincount(batch["label"], minlength=len(fed))
        state, outputs = program.train_step(state, batch)
        assert np.isfinite(outputs["loss"])
    assert state.step == steps
    assert state.skipped == 0
    assert fed.sum() == 16 * steps
    summary = program.summary(state.balancing)
    np.testing.assert_array_equal(summary["counts"], fed)
    np.testing.assert_array_equal(summary["weights"], 1.0)
    assert np.all(np.isfinite(summary["volumes"]))


@pytest.mark.parametrize(
    "name",
    [
        "inat2018",  # the most classes, a part of random size and shape
        pytest.param("cifar100_table3", marks=pytest.mark.slow),  # mixup and CutMix
        pytest.param("cub2011", marks=pytest.mark.slow),  # retrieval, a part at a random place
    ],
)
def test_rehearsals_run(name):
    take_steps(name, "model=lenet,dsb.dim=8,frozen_norm=False", size=16)


@pytest.mark.slow  # a network like a ResNet-50 takes a minute to compile
@pytest.mark.parametrize("name", CONFIGS)
def test_rehearsals_run_with_the_true_models(name):
    take_steps(name, size=32)
