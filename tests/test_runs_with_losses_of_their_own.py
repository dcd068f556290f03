"""Objectives that bring a loss, a head or a memory of their own, and balancers that ask for more: in the real step."""

import itertools

import chex
import jax
import numpy as np
import pytest
from small_run import COUNTS, EXAMPLES, digits

from dsb_jax.models import heads
from dsb_jax.training import experiment, methods
from dsb_jax.training.program import Program

OBJECTIVES = ("deconfound_tde", "domain_balancing", "loce", "mbj", "norm_softmax", "soft_triple")
FIRST_WEIGHTED = -(-EXAMPLES // 64)  # with start_epoch=1


def program(arguments):
    config = digits(arguments, epochs=4, learning_rate=0.03)
    config.mbj.update({"start_epoch": 1.0, "interval": 0.25})
    return Program(config, experiment.build(config))


def run(of, state, first, last):
    """The state after the steps from ``first`` to before ``last``, and their losses."""
    values = []
    for batch in itertools.islice(of.batches(first), last - first):
        state, metrics = of.train_step(state, batch)
        values.append(float(metrics["loss"]))
    return state, values


@pytest.mark.parametrize("balancer", ["loce", "domain_frequency"])
def test_balancers_are_told_what_they_ask_for(balancer):
    of = program(f"balancer={balancer},start_epoch=1,accumulate=2")
    state, _ = run(of, of.initial, 0, FIRST_WEIGHTED)
    np.testing.assert_array_equal(of.summary(state.balancing)["weights"], np.ones(10))
    state, _ = run(of, state, FIRST_WEIGHTED, FIRST_WEIGHTED + 3)
    weights = of.summary(state.balancing)["weights"]
    np.testing.assert_allclose(np.sum(weights), 10, rtol=1e-5)
    assert np.ptp(weights) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["deconfound_tde", "loce", "mbj"])
def test_eight_devices_train_as_one(objective):
    """A batch that is spread over them has the means and memories of the whole."""
    states = []
    for devices in (1, 8):
        of = program(f"objective={objective},balancer=uniform,devices={devices}")
        states.append(run(of, of.initial, 0, 3)[0])
    one, eight = (jax.device_get((s.params, s.batch_stats, s.objective)) for s in states)
    chex.assert_trees_all_close(eight, one, rtol=1e-3, atol=1e-4)


def test_the_memories_of_mbj_follow_the_settings():
    of = experiment.build(digits("objective=mbj,mbj.start_epoch=2,mbj.interval=0.5,mbj.history=3")).objective
    assert (of.start, of.interval) == (-(-2 * EXAMPLES // 64), -(-EXAMPLES // 128))
    assert of.capacity == 3 * 10 * COUNTS.min()  # as many of each class as of the rarest
    assert of.loss is of.inner.loss


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("objective=deconfound_tde", "DSB-TDE"),
        ("objective=deconfound_tde,loss=balanced_softmax,balancer=uniform", "TDE+BS"),
        ("objective=domain_balancing", "DSB-DomB"),
        ("objective=loce", "DSB-LOCE"),
        ("objective=loce,balancer=loce", "LOCE-LOCE"),
        ("objective=mbj,balancer=uniform", "MBJ"),
        ("objective=mbj,loss=ldam", "DSB-MBJ+LDAM"),
        ("objective=mbj+deconfound_tde", "DSB-MBJ+TDE"),
        ("objective=norm_softmax", "DSB-NSM"),
        ("loss=arcface,balancer=uniform", "ArcFace"),
        ("objective=proxy_anchor", "DSB-PA"),
        ("task=retrieval,objective=circle,balancer=uniform", "Circle"),
        ("objective=circle+supervised", "DSB-CE+Circle"),
        ("objective=circle+supervised,loss=focal", "DSB-Focal+Circle"),
        ("objective=circle+norm_softmax", "DSB-NSM+Circle"),
        ("objective=circle+mbj", "DSB-MBJ+Circle"),
        ("objective=soft_triple,balancer=class_balanced", "CB-ST"),
        ("dsb.interclass=False", "DSB-CE-1"),  # as the paper has it in App. H.1
        ("loss=focal,dsb.interclass=False", "DSB-Focal-1"),
        ("dsb.interclass=False,balancer=uniform", "CE"),
    ],
)
def test_names(arguments, name):
    assert methods.name(digits(arguments)) == name


def test_without_interference_there_is_none_in_the_scales():
    config = digits("dsb.interclass=False,start_epoch=0")
    of = Program(config, experiment.build(config))
    state, _ = run(of, of.initial, 0, 3)
    summary = of.summary(state.balancing)
    np.testing.assert_array_equal(summary["interclass"], np.ones(10))
    np.testing.assert_allclose(summary["scales"], summary["volumes"] / summary["volumes"].max(), rtol=1e-6)
    assert np.ptp(summary["weights"]) > 0.1


@pytest.mark.parametrize(
    ("arguments", "head"),
    [
        ("objective=deconfound_tde", heads.CausalHead(10)),
        ("objective=deconfound_tde,head=causal", heads.CausalHead(10)),
        ("head=causal,deconfound_tde.alpha=1", heads.CausalHead(10, alpha=1.0)),
        ("objective=deconfound_tde,deconfound_tde.heads=4", heads.CausalHead(10, heads=4)),
        ("objective=domain_balancing", heads.CosineHead(10, 1.0)),
        ("objective=norm_softmax,head=cosine,head_scale=9", heads.CosineHead(10, 1.0)),
        ("objective=soft_triple,soft_triple.centers=3,soft_triple.gamma=1", heads.SoftTripleHead(10, 1.0, 3, 1.0)),
        ("head=soft_triple,head_scale=9", heads.SoftTripleHead(10, 9.0)),
        ("objective=proxy_anchor", heads.CosineHead(10, 1.0)),
        ("loss=arcface,head_scale=9", heads.CosineHead(10, 1.0)),
        ("task=retrieval,objective=circle", heads.LinearHead(10)),
        ("objective=loce", heads.LinearHead(10)),
        ("objective=loce,head=cosine,head_scale=9", heads.CosineHead(10, 9.0)),
    ],
)
def test_heads_are_what_the_objective_needs(arguments, head):
    assert experiment.build(digits(arguments)).model.head == head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "objective=deconfound_tde,head=linear",
            "objective 'deconfound_tde' needs a causal head: head must be left out or 'causal', got 'linear'",
        ),
        ("objective=norm_softmax,head=linear", "objective 'norm_softmax' needs a cosine head: .* got 'linear'"),
        ("objective=soft_triple,head=cosine", "objective 'soft_triple' needs a soft_triple head: .* got 'cosine'"),
        (
            "objective=deconfound_tde,loss=ldam",
            "loss 'ldam' needs a cosine head, objective 'deconfound_tde' a causal one",
        ),
        (
            "objective=loce,loss=focal",
            "objective 'loce' has a loss of its own: loss must be left at .* or objective be 'supervised', got 'focal'",
        ),
        ("objective=loce,loce.decay=2", r"loce.decay must be .* in \[0, 1\], got 2.0"),
        ("balancer=loce,loce.initial=0", "loce.initial must be .* > 0, got 0.0"),
        ("dsb.logit_adjustment=-1", "dsb.logit_adjustment must be .* >= 0"),
        (
            "dsb.logit_adjustment=1,loss=ldam",
            "dsb.logit_adjustment .*: loss must be cross_entropy or focal, got",
        ),
        ("dsb.logit_adjustment=1,objective=ride", "dsb.logit_adjustment raises .*: objective must be supervised, got"),
        ("dsb.logit_adjustment=1,sampler=semantic_scale", "dsb.logit_adjustment and sampler 'semantic_scale' would"),
        ("balancer=domain_frequency,domain_frequency.scale=0", "domain_frequency.scale must be .* > 0"),
        ("balancer=class_balanced,class_balanced.beta=2", "class_balanced.beta must "),
        ("balancer=effective_number,class_balanced.beta=2", "class_balanced.beta must "),
        ("balancer=class_difficulty,class_difficulty.dynamic=foo", "unknown class_difficulty.dynamic 'foo'. Valid"),
        ("balancer=class_difficulty,class_difficulty.tau=-1", "class_difficulty.tau must "),
        ("balancer=dsb,dsb.epsilon=-1", "dsb.epsilon must "),
        ("balancer=dsb,dsb.normalize=meen", "unknown dsb.normalize 'meen'; did you mean 'mean'"),
        ("objective=domain_balancing,domain_balancing.margin=-1", r"domain_balancing.margin must be .* in \[0, 2\]"),
        ("objective=domain_balancing,domain_balancing.epsilon=0", "domain_balancing.epsilon must be .* > 0"),
        ("objective=mbj,mbj.history=0", "mbj.history must be a finite number > 0"),
        ("objective=mbj,mbj.start_epoch=-1", "mbj.start_epoch must be .* >= 0"),
        ("objective=mbj,mbj.weight=-1", "^mbj.weight must be .* >= 0"),
        ("objective=norm_softmax,norm_softmax.temperature=0", "norm_softmax.temperature must be .* > 0"),
        ("objective=soft_triple,soft_triple.tau=-1", "soft_triple.tau must be .* >= 0"),
        ("objective=soft_triple,soft_triple.centers=0", "^soft_triple.centers must be an integer >= 1"),
        ("objective=deconfound_tde,deconfound_tde.mu=1", r"^deconfound_tde.mu must lie in \[0, 1\)"),
        ("loss=ldam,ldam.max_margin=7", r"^ldam.max_margin must be .* in \[0, 2\], got 7"),
        ("loss=focal,focal.gamma=-1", "^focal.gamma must be .* >= 0"),
        ("objective=dive,dive.alpha=2", "teacher must be the workdir of a run"),
        ("objective=paco,paco.temperature=0", "^paco.temperature must be .* > 0"),
        ("objective=gpaco,gpaco.label_smoothing=2", r"^gpaco.label_smoothing must be .* in \[0, 1\]"),
        ("objective=paco,paco.dim=0", "^paco.dim must be an integer >= 1"),
        ("objective=paco,paco.queue_size=100", "^paco.queue_size must be a multiple of the batch size, 64, got 100"),
        ("objective=ifl,ifl.center_learning_rate=0", "^ifl.center_learning_rate must be .* > 0"),
        ("objective=ifl,ifl.center_weights=(0.0,-1.0,1.0)", "^ifl.center_weights must be .* >= 0, got -1.0"),
        ("task=retrieval,objective=circle,circle.margin=2", r"^circle.margin must be .* in \[0, 1\]"),
        (
            "task=retrieval,objective=circle,mixup=0.2",
            "'circle' compares images by their class, and mixed ones have two: mixup and",
        ),
        (
            "task=retrieval,objective=circle,accumulate=2",
            "objective 'circle' is of a whole batch: accumulate must be 1, got 2",
        ),
        ("objective=circle+supervised,circle.margin=2", r"^circle.margin must be .* in \[0, 1\]"),
        ("objective=circle+supervised,circle.weight=-1", "^circle.weight must be .* >= 0"),
        ("objective=circle+norm_softmax,accumulate=2", "objective 'circle' is of a whole batch: accumulate must be 1"),
        ("objective=circle+supervised,mixup=0.2", "'circle' compares images by their class, and mixed ones have two"),
        (
            "task=retrieval,objective=circle,circle.weight=1",
            r"^circle.weight must be left at 0.0125 where circle loss is alone, got 1.0; .*=circle\+supervised",
        ),
        (
            "task=retrieval,objective=circle,loss=focal",
            "objective 'circle' has a loss of its own: loss must be left at",
        ),
        (
            "task=retrieval,objective=circle,balancer=loce",
            "balancer 'loce' goes by what a classifier says, and circle loss alone",
        ),
        ("task=retrieval,objective=ifl+circle", r"objective 'ifl' goes by what a classifier says.* got 'ifl\+circle'"),
        ("task=retrieval,objective=mbj+circle", "objective 'mbj' goes by what a classifier says"),
        ("objective=circle+circle", r"objective 'circle' extends another once, got 'circle\+circle'"),
        ("objective=proxy_anchor,mixup=0.2", "'proxy_anchor' compares images by their class, and mixed ones have two"),
        ("objective=proxy_anchor,accumulate=2", "objective 'proxy_anchor' is of a whole batch: accumulate must be 1"),
        ("objective=proxy_anchor,proxy_anchor.margin=2", r"^proxy_anchor.margin must be .* in \[0, 1\]"),
        ("objective=proxy_anchor,proxy_anchor.scale=0", "^proxy_anchor.scale must be .* > 0"),
        ("objective=proxy_anchor,head=linear", "objective 'proxy_anchor' needs a cosine head: .* got 'linear'"),
        ("loss=arcface,arcface.margin=28.6", r"^arcface.margin must be .* in \[0, 1.5708\], got 28.6"),
        ("loss=arcface,head=linear", "loss 'arcface' needs cosines: head must be 'cosine', got 'linear'"),
        (
            "sampler=pk,examples_per_class=3",
            "batch_size must be a multiple of examples_per_class = 3 for sampler 'pk', got 64",
        ),
        (
            "sampler=pk",
            "sampler 'pk' draws batch_size / examples_per_class = 64 / 4 = 16 different classes, got 10 that have",
        ),
        ("objective=ifl+ifl", r"objective 'ifl' extends another once, got 'ifl\+ifl'"),
        ("loss=paco", "'paco' is more than a loss: objective=paco, got loss='paco'"),
        ("objective=ride_routing", "trained already: initial must be .* stages=ride trains both"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(arguments))
