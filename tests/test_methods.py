"""Every method, plain and with semantic-scale balancing, for a few steps of the real program."""

import dataclasses
import itertools
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import digits, slow_but

from dsb_jax import losses, models, objectives, training
from dsb_jax.data import samplers
from dsb_jax.training import building, experiment, loop, methods, stages
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.config import with_arguments
from dsb_jax.training.program import Program

README = (pathlib.Path(__file__).resolve().parents[1] / "README.md").read_text()
TABLE = README.partition("### Methods")[2].partition("###")[0]

# What the field calls a method -> the settings that choose it.
METHODS = {
    "CE": "",
    "Focal": "loss=focal",
    "LDAM": "loss=ldam",
    "ArcFace": "loss=arcface",
    "BS": "loss=balanced_softmax",
    "LA": "loss=logit_adjusted",
    "LADE": "loss=lade",
    "Seesaw": "loss=seesaw",
    "SigmoidFocal": "loss=sigmoid_focal",
    "DB": "loss=distribution_balanced",
    "TDE": "objective=deconfound_tde,deconfound_tde.alpha=0.0",  # early on, evaluation takes away too much
    "LOCE": "objective=loce",
    "DomB": "objective=domain_balancing",
    "NSM": "objective=norm_softmax",
    "ST": "objective=soft_triple",
    "PA": "objective=proxy_anchor",
    "BBN": "objective=bbn",
    "RIDE": "objective=ride,loss=ldam",
    "PaCo": "objective=paco,paco.queue_size=256",
    "GPaCo": "objective=gpaco,gpaco.queue_size=256",
    "MBJ": "objective=mbj,mbj.start_epoch=0",
    "MBJ+RIDE": "objective=mbj+ride,loss=ldam,mbj.start_epoch=0",
    "CE+IFL": "objective=ifl,ifl.milestones=(0.5,),ifl.center_weights=(0.0,0.01)",
    "BS+IFL": "objective=ifl,loss=balanced_softmax",
    "CE+Circle": "objective=circle+supervised",
    "NSM+Circle": "objective=circle+norm_softmax",
    # Of those in stages the last one, after the plain run as the first.
    "DIVE-BS": "stages=dive",
    "BALMS": "stages=balms",
    "decoupled-BS": "stages=decoupled_bs",
    "cRT-CE": "stages=crt",
    "LWS-CE": "stages=lws",
    "cRT+IFL-CE": "stages=cRT+IFL:crt;objective=ifl",
    "LWS+IFL-CE": "stages=LWS+IFL:lws;objective=ifl",
    "CE-DRW": "stages=drw",
}
# Methods whose balancer is another one.
WITH_OTHER_BALANCERS = {
    "CB-CE": ("", "class_balanced"),
    "CB-Focal": ("loss=focal", "class_balanced"),
    "CB-SigmoidFocal": ("loss=sigmoid_focal", "class_balanced"),
    "CB-LDAM": ("loss=ldam", "class_balanced"),
    "CB-NSM": ("objective=norm_softmax", "class_balanced"),
    "CB-ST": ("objective=soft_triple", "class_balanced"),
    "CDB-CE": ("", "class_difficulty"),
    "LOCE-CE": ("", "loce"),
    "DF-CE": ("", "domain_frequency"),
    "DSB-CE-1": ("dsb.interclass=False", "dsb"),
}
# Of 453 examples in batches of 64: the weights of the second epoch begin with step 8.
STEPS, START, SAVED = 14, 8, 11


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The workdir of a plain run."""
    workdir = tmp_path_factory.mktemp("earlier") / "run"
    training.train(digits(balancer="uniform", epochs=1, sample_space=False, tensorboard=False), workdir)
    return workdir


def made(arguments, balancer, earlier):
    """A compiled program, and how often its step was traced."""
    config = stages.chain(digits(f"balancer={balancer},{arguments}".rstrip(","), sample_space=False))[-1]
    rate = 0.3 if config.head == "scaled" else 0.05 if "paco" in config.objective else 0.01
    config.update({"epochs": 2, "start_epoch": 1, "learning_rate": rate})
    if config.stages:
        config.initial = str(earlier)
    if config.teacher is not None:
        config.teacher = str(earlier)
    built, traces = experiment.build(config), []
    optimizer = built.optimizer

    def update(*args):
        traces.append(1)
        return optimizer.update(*args)

    built = dataclasses.replace(built, optimizer=optax.GradientTransformation(optimizer.init, update))
    given = loop._given(config, built, pathlib.Path("nowhere"), "never")
    return config, Program(config, built, given), traces


def run(program, state, steps):
    """The state after the steps of a range, the loss of each, and the balancer's weights after it."""
    losses, weights = [], []
    for batch in itertools.islice(program.batches(steps.start), len(steps)):
        state, metrics = program.train_step(state, batch)
        losses.append(float(metrics["loss"]))
        weights.append(np.asarray(program.summary(state.balancing)["weights"]))
    return state, losses, weights


def evaluated(program, state):
    """The mean loss of the test images, which no class weight and no state of an objective changes."""
    return float(np.mean(program.test(state, ("loss",), lambda: None)["loss"]))


def assert_plain_until_weights_are_in_force(weights, values, unweighted):
    """Of a balanced run the weights and losses of every step, beside the losses of the plain one."""
    np.testing.assert_array_equal(weights[:START], 1.0)
    np.testing.assert_allclose(values[:START], unweighted[:START], rtol=1e-4)
    assert np.ptp(weights[START]) > 0.1
    assert abs(values[START] - unweighted[START]) > 1e-4 * unweighted[START]


# All others compute as one of these does, but for parts that have tests of their own.
TRAINED_ALWAYS = ("CE",)


@pytest.mark.parametrize("method", slow_but(TRAINED_ALWAYS, METHODS))
def test_a_method_trains_plain_and_balanced_and_goes_on_where_it_was(method, earlier, tmp_path):
    config, plain, _ = made(METHODS[method], "uniform", earlier)
    assert methods.name(config) == method
    untrained = evaluated(plain, plain.initial)
    trained, unweighted, _ = run(plain, plain.initial, range(STEPS))
    assert evaluated(plain, trained) < untrained

    config, balanced, traces = made(METHODS[method], "dsb", earlier)
    assert methods.name(config) == f"DSB-{method}"
    values, weights, state = restored_on_the_way(balanced, tmp_path)
    assert len(traces) == 1

    assert_plain_until_weights_are_in_force(weights, values, unweighted)
    assert evaluated(balanced, state) < untrained


@pytest.mark.slow
def test_circle_alone_trains_plain_and_balanced_and_goes_on_where_it_was(earlier, tmp_path):
    """Without a classifier that could be evaluated, the loss of the batches says whether it does."""
    arguments = "task=retrieval,objective=circle,sampler=pk,examples_per_class=8"
    config, plain, _ = made(arguments, "uniform", earlier)
    assert methods.name(config) == "Circle"
    head = jax.device_get(plain.initial.params["head"])
    trained, unweighted, _ = run(plain, plain.initial, range(STEPS))
    assert np.mean(unweighted[-4:]) < np.mean(unweighted[:4])
    kernels = [jax.tree.leaves(params["head"])[-1] for params in ({"head": head}, trained.params)]
    cosine = np.vdot(*kernels) / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)  # it has but decayed

    config, balanced, traces = made(arguments, "dsb", earlier)
    assert methods.name(config) == "DSB-Circle"
    values, weights, _ = restored_on_the_way(balanced, tmp_path)
    assert len(traces) == 1
    assert_plain_until_weights_are_in_force(weights, values, unweighted)


@pytest.mark.parametrize("method", slow_but(("CDB-CE",), WITH_OTHER_BALANCERS))
def test_a_method_trains_with_another_balancer(method, earlier, tmp_path):
    config, program, traces = made(*WITH_OTHER_BALANCERS[method], earlier)
    assert methods.name(config) == method
    untrained = evaluated(program, program.initial)
    _, weights, state = restored_on_the_way(program, tmp_path)
    assert len(traces) == 1
    np.testing.assert_array_equal(weights[:START], 1.0)
    assert np.ptp(weights[START]) > 0.01
    assert evaluated(program, state) < untrained


def restored_on_the_way(program, folder):
    """The losses of a run, its weights after every step until it was saved, and its last state.

    What it computes after it was saved, it computes again from what was saved.
    """
    like = jax.tree.map(jnp.copy, program.initial)  # a step takes the buffers of the state before it
    state, values, weights = run(program, program.initial, range(START))
    state, more, later = run(program, program.followed(state, 1, lambda: None), range(START, SAVED))
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(SAVED, state, {})
        checkpoints.wait()
        whole, after, _ = run(program, state, range(SAVED, STEPS))
        restored = checkpoints.restore(like).state
    again, repeated, _ = run(program, restored, range(SAVED, STEPS))
    assert repeated == after
    chex.assert_trees_all_equal(again, whole)
    return values + more + after, weights + later, whole


def test_the_readme_names_all_there_is():
    for known in (losses.names(), objectives.names(), stages.names(), methods._BALANCER_NAMES, samplers.names()):
        missing = [name for name in known if f"`{name}`" not in README and name != "environments"]
        assert missing == []  # environments are what ifl draws by itself


@pytest.mark.parametrize("arguments", re.findall(r"`([^`]+)`", "".join(re.findall(r"\|([^|]*=[^|]*)\|\n", TABLE))))
def test_the_settings_that_the_readme_tells_are_some(arguments):
    config = with_arguments(training.base_config(), arguments)
    assert methods.name(config)
    for stage in stages.chain(config):
        assert methods.name(stage)


def test_all_objectives_are_built_by_name():
    assert sorted(building.OBJECTIVES | building.EXTENSIONS) == objectives.names()


def test_what_a_student_has_learned_whole_pulls_no_more():
    """Under a loss of cosines too: logits are compared as its softmax takes them."""
    config = digits("objective=dive,loss=ldam,dive.power=1.0")
    outputs = models.Outputs(jnp.array([[0.9, 0.1], [-0.2, 0.4]]), jnp.ones((2, 3)))

    class Model:
        def apply(self, variables, images, *, train):
            return outputs

    objective = methods.objective(config, np.array([9, 1]), 10.0, teacher=(config, Model()))
    state, batch = objective.init(None, {"teacher": {}}, None), {"image": "images", "label": jnp.array([0, 1])}
    *_, divergence = objective(lambda images: outputs, batch, state, None).terms
    np.testing.assert_allclose(divergence.losses, 0, atol=1e-6)


SETTINGS = {
    "norm_softmax.temperature": ("norm_softmax", "temperature", 0.1),
    "soft_triple.scale": ("soft_triple", "scale", 10.0),
    "soft_triple.gamma": ("soft_triple", "gamma", 0.2),
    "soft_triple.tau": ("soft_triple", "tau", 0.3),
    "soft_triple.margin": ("soft_triple", "margin", 0.02),
    "domain_balancing.margin": ("domain_balancing", "margin", 0.2),
    "domain_balancing.scale": ("domain_balancing", "scale", 20.0),
    "domain_balancing.neighbours": ("domain_balancing", "neighbours", 3),
    "domain_balancing.epsilon": ("domain_balancing", "epsilon", 0.5),
    "loce.decay": ("loce", "decay", 0.8),
    "loce.initial": ("loce", "initial", 0.1),
    "proxy_anchor.margin": ("proxy_anchor", "margin", 0.2),
    "proxy_anchor.scale": ("proxy_anchor", "scale", 16.0),
    "circle.margin": ("circle", "margin", 0.25),
    "circle.scale": ("circle", "scale", 256.0),
    "circle.weight": ("circle+supervised", "weight", 0.1),
    "ride.diversity": ("ride", "diversity", -0.45),
    "ride.temperature": ("ride", "temperature", 2.0),
    "ride.distillation": ("ride", "distillation", 0.5),
    "ride.distillation_temperature": ("ride", "distillation_temperature", 2.0),
    "ride_routing.positive_weight": ("ride_routing,trainable=routers*", "positive_weight", 20.0),
    "ifl.center_learning_rate": ("ifl", "learning_rate", 0.1),
    "paco.momentum": ("paco,paco.queue_size=64", "momentum", 0.9),
    "mbj.weight": ("mbj", "weight", 0.3),
    "mbj.head_weight": ("mbj", "head_weight", 0.3),
    "mbj.power": ("mbj", "power", 0.3),
    "mbj.snapshots": ("mbj", "snapshots", 2),
    "balms.meta_learning_rate": ("balms", "meta_learning_rate", 0.02),
    "balms.init_power": ("balms", "init_power", 0.3),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_reach_the_objective(setting):
    objective, attribute, value = SETTINGS[setting]
    built, default = (
        methods.objective(digits(f"objective={objective}{more}"), np.array([90, 10]), 10.0)
        for more in (f",{setting}={value}", "")
    )
    assert getattr(built, attribute) == value != getattr(default, attribute)


def test_settings_reach_circle_loss_beside_another_one():
    arguments = "objective=circle+norm_softmax,circle.margin=0.25,circle.scale=256,sampler=class_aware"
    built = methods.objective(digits(arguments), np.array([90, 10]), 10.0)
    assert (built.circle.margin, built.circle.scale, built.samplers) == (0.25, 256.0, ("class_aware",))
    assert isinstance(built.inner, objectives.NormSoftmax)


@pytest.mark.parametrize(
    ("arguments", "scale"),
    [
        ("", 1.0),
        ("head=cosine", 1.0),
        ("objective=circle", 1.0),
        ("loss=arcface", 64.0),
        ("loss=arcface,arcface.scale=9,objective=ride", 9.0),
        ("loss=ldam", 30.0),
        ("objective=circle+norm_softmax", 20.0),
        ("objective=proxy_anchor", 32.0),
    ],
)
def test_what_logits_are_multiplied_by(arguments, scale):
    np.testing.assert_allclose(building.logit_scale(digits(arguments)), scale)


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.3), ("temperature", 2.0), ("power", 1.0)])
def test_settings_of_a_student_reach_it(name, value):
    config = digits(f"objective=dive,dive.{name}={value}")
    assert getattr(methods.objective(config, np.array([9, 1]), 10.0, teacher=(config, None)), name) == value


def test_settings_of_lade_reach_its_regularizer():
    built = methods.objective(digits("loss=lade,lade.weight=0.05,lade.penalty=0.5"), np.array([90, 10]), 10.0)
    assert (built.scale, built.regularizer.keywords["penalty"]) == (0.05, 0.5)


def test_an_objective_that_learns_from_no_teacher_refuses_one():
    config = digits("objective=bbn,teacher=runs/ce")
    with pytest.raises(ValueError, match=r"objective 'bbn' learns from no teacher, .* got 'runs/ce'"):
        methods.objective(config, np.array([9, 1]), 10.0, teacher=(config, None))
