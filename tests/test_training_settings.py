"""Settings, and what a config becomes."""

import dataclasses
import functools
import importlib.util
import inspect
import math
import operator
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import COUNTS, EXAMPLES, STEPS, digits, flat

from dsb_jax import balancers, data, losses, training
from dsb_jax.data.records import Selection
from dsb_jax.models import heads
from dsb_jax.training import experiment, methods
from dsb_jax.training.config import check_setting, with_arguments

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ("loss=focal", "loss", "focal"),
        ("epochs=7", "epochs", 7),
        ("imbalance=50", "imbalance", 50.0),
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("dsb.interclass=False", "dsb.interclass", False),
        ("dsb.alpha=1", "dsb.alpha", 1.0),
        ("dsb.alpha=None", "dsb.alpha", None),
        ("start_epoch=0", "start_epoch", 0),
        ("head=cosine", "head", "cosine"),
        ("data_dir=/some/folder", "data_dir", "/some/folder"),
        ("stem=cifar,stem=None", "stem", None),
        ("dataset=None", "dataset", "None"),
        ("mean=(0.1,)", "mean", (0.1,)),
        ("std=(0.1, 0.2, 0.3),epochs=3", "std", (0.1, 0.2, 0.3)),
        (" loss = ldam , epochs = 2 ", "loss", "ldam"),
        ("epochs=2,epochs=3", "epochs", 3),
    ],
)
def test_arguments_set_what_they_name(arguments, key, value):
    config = training.base_config()
    assert with_arguments(config, arguments) is config
    got = dict(flat(config.to_dict()))[key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("arguments", [None, ""])
def test_no_arguments_change_nothing(arguments):
    assert with_arguments(training.base_config(), arguments).to_dict() == training.base_config().to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("focal", "config arguments must be key=value, got 'focal'"),
        (",loss=focal", "config arguments must be key=value, got ''"),
        ("los=focal", "unknown setting 'los'; did you mean 'loss'"),
        ("dsb.alfa=2", "unknown setting 'dsb.alfa'; did you mean 'dsb.alpha'"),
        ("dsb=2", "unknown setting 'dsb'; did you mean 'dsb"),
        ("loss.name=2", "unknown setting 'loss.name'"),
        ("=2", "unknown setting ''"),
        ("epochs=many", "epochs must be of type int, got 'many'"),
        ("epochs=2.5", "epochs must be of type int, got '2.5'"),
        ("epochs={[]: 1}", "epochs must be of type int"),
        ("dsb.alpha=two", "dsb.alpha must be of type float, got 'two'"),
        ("dsb.interclass=maybe", "dsb.interclass must be of type bool, got 'maybe'"),
        ("mean=0.5", "mean must be of type tuple, got '0.5'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    config = training.base_config()
    with pytest.raises(ValueError, match=message):
        with_arguments(config, arguments)
    assert config.to_dict() == training.base_config().to_dict()


def load_config(path, *arguments):
    spec = importlib.util.spec_from_file_location(f"a_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__
    return module.get_config(*arguments)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_keep_every_override(path):
    default = dict(flat(load_config(path).to_dict()))
    assert default["balancer"] == "dsb"
    assert default["loss"] == "cross_entropy"
    assert default.keys() == dict(flat(training.base_config().to_dict())).keys()
    changed = dict(flat(load_config(path, "loss=focal,balancer=uniform").to_dict()))
    assert changed == default | {"loss": "focal", "balancer": "uniform"}
    of_type = {str: "else", int: 3, float: 1.5, tuple: (0.1, 0.2)}
    others, config = {}, load_config(path)
    for key, value in default.items():
        check_setting(config, key)
        match value:
            case None:
                *sections, name = key.split(".")
                others[key] = of_type[
                    functools.reduce(operator.getitem, sections, training.base_config()).get_type(name)
                ]
            case bool():
                others[key] = not value
            case int() | float():
                others[key] = value + 1
            case str():
                others[key] = value + "_other"
            case tuple():
                others[key] = (*value, 0.5)
    groups = 12  # of settings that are far from each other in the file
    for changed in (dict(list(others.items())[start::groups]) for start in range(groups)):
        config = load_config(path, ",".join(f"{key}={other}" for key, other in changed.items()))
        assert dict(flat(config.to_dict())) == default | changed


# What a config becomes.


PREFIXES = {
    "dsb": "DSB-",
    "uniform": "",
    "inverse_frequency": "IF-",
    "inverse_sqrt_frequency": "ISF-",
    "class_balanced": "CB-",
    "class_difficulty": "CDB-",
    "effective_number": "CB-",
    "loce": "LOCE-",
    "domain_frequency": "DF-",
}


@pytest.mark.parametrize("balancer", PREFIXES)
@pytest.mark.parametrize("loss", losses.names())
def test_every_loss_goes_with_every_balancer(loss, balancer):
    built = experiment.build(digits(loss=loss, balancer=balancer))
    held_out = balancer == "class_difficulty"
    assert bool(len(built.held_out)) == held_out
    np.testing.assert_array_equal(built.counts, COUNTS - np.rint(COUNTS / 10).clip(1) if held_out else COUNTS)
    assert held_out or built.steps == STEPS
    assert isinstance(built.model.head, heads.CosineHead if losses.head(loss) == "cosine" else heads.LinearHead)
    suffix = {
        "arcface": "ArcFace",
        "balanced_softmax": "BS",
        "cross_entropy": "CE",
        "distribution_balanced": "DB",
        "focal": "Focal",
        "lade": "LADE",
        "ldam": "LDAM",
        "logit_adjusted": "LA",
        "seesaw": "Seesaw",
        "sigmoid_focal": "SigmoidFocal",
    }[loss]
    assert methods.name(digits(loss=loss, balancer=balancer)) == PREFIXES[balancer] + suffix


@pytest.mark.parametrize("loss", losses.names())
def test_settings_of_losses_are_their_own_defaults(loss):
    parameters = inspect.signature(getattr(losses, loss)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert training.base_config()[loss].to_dict() == defaults


def test_losses_are_told_the_counts_and_their_own_settings():
    logits, labels = jnp.zeros((10, 10)), jnp.arange(10)
    balanced = experiment.build(digits(loss="balanced_softmax")).objective.loss(logits, labels)
    np.testing.assert_allclose(balanced, -np.log(COUNTS / EXAMPLES), rtol=1e-5)
    focal = experiment.build(digits("loss=focal,focal.gamma=3")).objective.loss(logits, labels)
    np.testing.assert_allclose(focal, 0.9**3 * np.log(10), rtol=1e-5)
    adjusted = experiment.build(digits("loss=logit_adjusted,logit_adjusted.tau=0")).objective.loss(logits, labels)
    np.testing.assert_allclose(adjusted, np.log(10), rtol=1e-5)
    ldam = experiment.build(digits("loss=ldam,ldam.max_margin=0.4,ldam.scale=10")).objective.loss(logits, labels)
    own = 10 * -0.4 * (COUNTS / COUNTS.min()) ** -0.25
    np.testing.assert_allclose(ldam, np.log(9 + np.exp(own)) - own, rtol=1e-5)


def test_lade_in_parts_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="loss 'lade' is of a whole batch: accumulate must be 1, got 8"):
        experiment.build(digits(loss="lade", accumulate=8))


def test_heads_follow_the_loss_unless_given():
    cosine = experiment.build(digits(head="cosine", head_scale=16.0)).model.head
    assert cosine == heads.CosineHead(10, 16.0)
    assert experiment.build(digits(loss="ldam")).model.head == heads.CosineHead(10, 1.0)
    with pytest.raises(ValueError, match="loss 'ldam' needs cosines: head must be 'cosine', got 'linear'"):
        experiment.build(digits(loss="ldam", head="linear"))


@pytest.mark.parametrize(
    ("arguments", "alpha"),
    [
        ("", 2.0),
        ("long_tail=none", 1.0),
        ("dsb.alpha=1.5", 1.5),
        ("long_tail=none,dsb.alpha=3", 3.0),
        ("dsb.alpha=1", 1.0),
    ],
)
def test_alpha_is_2_for_a_long_tail_and_1_otherwise_unless_given(arguments, alpha, monkeypatch):
    taken = []
    semantic_scale = balancers.semantic_scale
    monkeypatch.setattr(
        balancers,
        "semantic_scale",
        lambda *args, alpha, **kwargs: taken.append(alpha) or semantic_scale(*args, alpha=alpha, **kwargs),
    )
    assert experiment.build(digits(arguments)).alpha == alpha
    assert taken == [alpha]


@pytest.mark.parametrize(
    ("arguments", "first_weighted"),
    [
        ("balancer=class_balanced", 0),
        ("balancer=inverse_frequency", 0),
        ("balancer=inverse_frequency,start_epoch=0", 0),
        ("balancer=class_balanced,start_epoch=1", math.ceil(EXAMPLES / 64)),
        ("balancer=class_balanced,start_epoch=2,batch_size=8", math.ceil(2 * EXAMPLES / 8)),
        (f"balancer=class_balanced,start_epoch=2,batch_size={EXAMPLES}", 2),
    ],
)
def test_weights_start_with_the_first_step_of_the_epoch_after_start_epoch(arguments, first_weighted):
    config = digits(arguments)
    built = experiment.build(config)
    update, summary = jax.jit(built.balancer.update), jax.jit(built.balancer.summary)
    rng, state = np.random.default_rng(0), built.balancer.init()
    labels = np.arange(config.batch_size) % 10
    features = rng.normal(size=(config.batch_size, 64)).astype(np.float32) * (1 + labels[:, None]).astype(np.float32)
    for number in range(first_weighted + 2):
        np.testing.assert_array_equal(summary(state)["weights"] == 1, [number <= first_weighted] * 10)
        weights, state = update(state, features, labels)
        np.testing.assert_array_equal(weights == 1, [number < first_weighted] * 10)
    # The examples of that step, and of no earlier one, all lie beyond ``start_epoch`` passes.
    start_epoch = config.start_epoch or 0
    assert first_weighted * config.batch_size >= start_epoch * EXAMPLES
    assert first_weighted == 0 or (first_weighted - 1) * config.batch_size < start_epoch * EXAMPLES


@pytest.mark.parametrize(
    ("arguments", "step_of_start"),
    [
        ("", math.ceil(5 * EXAMPLES / 64)),
        ("start_epoch=0", 0),
        ("start_epoch=2,batch_size=8", math.ceil(2 * EXAMPLES / 8)),
        ("balancer=uniform", 0),
    ],
)
def test_semantic_scale_balancing_waits_for_5_epochs_unless_told(arguments, step_of_start, monkeypatch):
    taken = []
    monkeypatch.setattr(balancers, "start_at", lambda step, balancer: taken.append(step) or balancer)
    experiment.build(digits(arguments))
    assert taken == [step_of_start]


@pytest.mark.parametrize("batch_size", [1, 50, 64, 170, 400, EXAMPLES])
def test_the_pool_holds_the_training_set_to_the_nearest_batch(batch_size):
    pool = jax.eval_shape(experiment.build(digits(batch_size=batch_size)).balancer.init).state.pool
    assert pool.capacity % batch_size == 0
    assert abs(pool.capacity - EXAMPLES) <= batch_size / 2


@pytest.mark.parametrize("history", [0.25, 0.5, 2, 3.3])
def test_the_pool_holds_as_many_epochs_as_its_history_says(history):
    pool = jax.eval_shape(experiment.build(digits(f"dsb.history={history}")).balancer.init).state.pool
    assert pool.capacity % 64 == 0
    assert abs(pool.capacity - history * EXAMPLES) <= 32
    least = jax.eval_shape(experiment.build(digits("dsb.history=1e-6")).balancer.init).state.pool
    assert least.capacity == 64  # never less than a batch


@pytest.mark.parametrize(("arguments", "start"), [("", 1), ("dsb.history=0.5", 0.5), ("dsb.history=9,epochs=4", 2)])
def test_features_that_are_not_random_only_have_to_fill_the_pool(arguments, start):
    assert experiment.start_epoch(digits(arguments), inherits=True) == start


def test_training_rows_are_drawn_with_the_seed():
    rows = [experiment.build(digits(seed=seed)).indices for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    everything = experiment.build(digits("long_tail=none"))
    np.testing.assert_array_equal(everything.indices, np.arange(len(everything.train)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("loss=focl", "unknown loss 'focl'; did you mean 'focal'"),
        ("balancer=unifrom", "unknown balancer 'unifrom'; did you mean 'uniform'"),
        ("dataset=digit", "unknown dataset 'digit'; did you mean 'digits'"),
        ("model=lenett", "unknown model 'lenett'; did you mean 'lenet'"),
        ("head=cos", "unknown head 'cos'; did you mean 'cosine'"),
        ("schedule=cosin", "unknown schedule 'cosin'; did you mean 'cosine'"),
        ("long_tail=mnist_lt_3", "unknown long_tail 'mnist_lt_3'; did you mean 'mnist_lt_"),
        ("devices=8,model_devices=4", "model_devices must divide the 10 classes, got 4"),
        ("dsb.dtype=float8", "unknown dsb.dtype 'float8'; did you mean 'float16'"),
        ("dsb.normalize=men", "unknown dsb.normalize 'men'; did you mean 'mean'"),
        ("long_tail=mnist_lt_1", "class 0 has .* samples, but 5923 are wanted of it"),
        ("imbalance=0.5", "imbalance .* must be >= 1, got 0.5"),
        ("batch_size=0", "batch_size must be an integer >= 1, got 0"),
        (f"batch_size={EXAMPLES + 1}", f"batch_size must be at most the {EXAMPLES} training examples"),
        ("eval_batch_size=0", "eval_batch_size must be an integer >= 1"),
        ("log_every=0", "log_every must be an integer >= 1"),
        ("eval_every=-1", "eval_every must be an integer >= 1"),
        ("epochs=0", "epochs must be an integer >= 1, got 0"),
        ("seed=-1", r"seed must lie in \[0, 2\*\*32\), got -1"),
        (f"seed={2**32}", r"seed must lie in \[0, 2\*\*32\), got 4294967296"),
        ("start_epoch=-1", "start_epoch must be >= 0, got -1"),
        ("dsb.alpha=0.5", "alpha must be .* >= 1, got 0.5"),
        ("dsb.epsilon=0", "epsilon must be a finite number > 0"),
        ("dsb.history=0", "dsb.history must be a finite number > 0, got 0.0"),
        ("balancer=class_balanced,class_balanced.beta=1", r"beta must lie in \[0, 1\)"),
        ("loss=focal,focal.gamma=-1", "gamma must be .* >= 0, got -1"),
        ("momentum=1", r"momentum must lie in \[0, 1\), got 1"),
        ("dtype=float64", "dtype must be bfloat16, float16 or float32, got float64"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(arguments))


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        ("imbalance=50,long_tail=none", "imbalance=50.0 has no effect with long_tail=none"),
        ("schedule=step", "schedule=step never decays: none of the milestones (160, 180) lies before the end, epoch 3"),
        ("", "balancer=dsb never acts: start_epoch=5 is not before the end, epoch 3; all weights are 1"),
        ("start_epoch=2,schedule=step,milestones=(2,180)", None),
        ("balancer=uniform", None),
    ],
)
def test_settings_without_effect_are_said(arguments, warning, caplog):
    experiment.build(digits(arguments))
    said = [record.message for record in caplog.records if record.name.startswith("dsb_jax")]
    assert warning in said if warning else not said


@pytest.mark.parametrize(
    ("arguments", "alpha"),
    [
        ("dataset=digits", 1.0),
        ("dataset=digits,long_tail=exponential,imbalance=20", 2.0),
        ("dataset=digits,long_tail=exponential", 1.0),  # which leaves all classes alike
        ("dataset=digits,long_tail=balanced,images_per_class=50", 1.0),
        ("dataset=mnist_lt_2,data=synthetic", 2.0),
        ("dataset=cifar10_lt,protocol=50,data=synthetic", 2.0),
        ("dataset=coco_glt,protocol=glt,data=synthetic,image_size=8", 2.0),
        ("dataset=coco_glt,protocol=alt,data=synthetic,image_size=8", 1.0),
    ],
)
def test_alpha_follows_what_is_trained_on(arguments, alpha):
    config = training.config.with_arguments(training.base_config(), f"{arguments},model=lenet,devices=1")
    assert experiment.build(config).alpha == alpha


def test_a_subset_is_not_thinned_again():
    config = training.config.with_arguments(
        training.base_config(), "dataset=cifar10_lt,data=synthetic,long_tail=exponential,imbalance=10,devices=1"
    )
    with pytest.raises(ValueError, match="long_tail must be 'none', got 'exponential': cifar10_lt is a subset already"):
        experiment.build(config)


def test_statistics_are_the_datasets_unless_they_are_set():
    arguments = "dataset=cifar10,data=synthetic,model=lenet,devices=1"
    config = training.config.with_arguments(training.base_config(), arguments)
    assert experiment.build(config).preprocessing.mean == (0.4914, 0.4822, 0.4465)
    config = training.config.with_arguments(training.base_config(), f"{arguments},mean=(0.1,0.2,0.3)")
    assert experiment.build(config).preprocessing.mean == (0.1, 0.2, 0.3)
    config = training.config.with_arguments(training.base_config(), f"{arguments},std=(0.1,)")
    with pytest.raises(ValueError, match=r"std must be one number per channel \(3\), got \[0.1\]"):
        experiment.build(config)


def without(split, rows):
    """A split that was prepared without some of its images."""
    kept = np.setdiff1d(np.arange(len(split)), rows)
    return dataclasses.replace(split, source=Selection([split.source], kept))


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({}, ""),
        ({"train": range(397)}, "1,000 of 1,397 training images"),
        ({"test": [5]}, "399 of 400 test images"),
        ({"train": [0], "test": [1, 2]}, "1,396 of 1,397 training images and 398 of 400 test images"),
    ],
)
def test_a_part_of_a_dataset_is_said(lacking, said, monkeypatch, caplog):
    load = data.load
    monkeypatch.setattr(
        experiment.data,
        "load",
        lambda name, split, **options: without(load(name, split, **options), lacking.get(split, [])),
    )
    built = experiment.build(digits("long_tail=none,imbalance=1.0,start_epoch=0"))
    assert built.numbers == (f"a part: {said}" if said else "true")
    assert caplog.messages == ([f"digits is prepared in part only: {said}"] if said else [])


def test_numbers_of_a_rehearsal_and_of_a_profile():
    assert experiment.build(digits("data=synthetic")).numbers == "true"
    counts = data.spec("digits").train_counts()
    labels = np.repeat(np.arange(10), counts)
    assert data.spec("digits").otherwise("train", labels) == ""
    labels[0] = 9
    assert data.spec("digits").otherwise("train", labels) == "137 of 138 training images of class 0"
    assert data.spec("inat2018").otherwise("train", labels) == ""
