"""Samplers that follow the model draw by weights made anew at the start of an epoch, also in a run that was ended."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from small_run import EXAMPLES, digits
from test_held_out import lines

from dsb_jax import data, training
from dsb_jax.data.environments import environment_weights
from dsb_jax.training import experiment, loop
from dsb_jax.training.program import Program
from dsb_jax.training.termination import Terminated

SETTINGS = {"tensorboard": False, "sample_space": False, "log_every": 4}
OF_RUN = {
    "semantic_scale": {"sampler": "semantic_scale", "start_epoch": 1, "epochs": 4},
    # Eight devices, environments from the second epoch on and made anew at the third.
    "ifl": {"objective": "ifl", "epochs": 3, "start_epoch": 2, "devices": 8, "ema_decay": 0.5},
}
STARTS = [0, 8, 15, 22, 29]  # the first steps of epochs of 457 examples


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("ifl", "semantic_scale")]
)
def finished(request, tmp_path_factory):
    """A run that nothing ends; where its batches begin and what they are drawn by, and the variables of every start."""
    workdir, drawn, variables = tmp_path_factory.mktemp("following") / request.param, [], {}
    with pytest.MonkeyPatch.context() as patch:
        original, followed = Program.batches, Program.followed

        def batches(self, start_step, drawn_by=()):
            drawn.append((start_step, np.array(drawn_by)))
            return original(self, start_step, drawn_by)

        def seen(self, state, epoch, check):
            variables[epoch] = jax.device_get(state.evaluated)
            return followed(self, state, epoch, check)

        patch.setattr(Program, "batches", batches)
        patch.setattr(Program, "followed", seen)
        training.train(config(request.param), workdir)
    return request.param, workdir, [pair for pair in drawn if len(pair[1])], variables


def config(name, **others):
    return digits("dsb.dim=16", **SETTINGS, **OF_RUN[name], **others)


def class_rates(weights, labels):
    return np.bincount(labels, weights, minlength=10) / weights.sum()


def test_weights_are_those_of_the_model_at_the_start_of_the_epoch(finished):
    name, workdir, drawn, variables = finished
    built = experiment.build(config(name))
    labels = built.train.labels[built.indices]
    first, *anew = drawn
    assert first[0] == 0
    np.testing.assert_array_equal(first[1], np.ones(EXAMPLES))
    if name == "semantic_scale":
        assert [step for step, _ in anew] == STARTS[1:4]
        evaluations = [line for line in lines(workdir) if "weights" in line]
        assert [line["step"] for line in evaluations] == STARTS[1:]
        # The line after the first epoch has the weights of its last step, which are 1.
        for (_, weights), line in zip(anew[1:], evaluations[1:3], strict=True):
            np.testing.assert_allclose(class_rates(weights, labels), np.array(line["weights"]) / 10, rtol=1e-5)
        for _, weights in anew:
            assert np.ptp(class_rates(weights, labels)) > 0.02
            assert all(np.ptp(weights[labels == label]) == 0 for label in range(10))
        return
    assert [step for step, _ in anew] == STARTS[1:3]
    split = data.load("digits", "train")
    images = np.stack([example["image"] for example in split.source.__getitems__(built.indices)])
    images = ((images / np.float32(255) - 0.305) / 0.376).astype(np.float32)
    assert variables.keys() == {1, 2}
    for (_, weights), of_start in zip(anew, variables.values(), strict=True):
        logits = np.asarray(built.model.apply(of_start, images, train=False).logits, np.float64)
        likelihood = np.exp(logits - logits.max(1, keepdims=True))
        probability = (likelihood / likelihood.sum(1, keepdims=True))[np.arange(EXAMPLES), labels]
        np.testing.assert_allclose(weights, environment_weights(probability, labels), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(
    "calls", [10, pytest.param(17, marks=pytest.mark.slow)]
)  # amid the second epoch, and the third
def test_a_run_that_was_ended_goes_on_with_the_weights_that_it_had(finished, tmp_path, monkeypatch, calls):
    name, whole, *_ = finished
    done, record = [], loop._Run._record

    def ending(self, outputs):
        record(self, outputs)
        done.append(1)
        if len(done) == calls:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "_record", ending)
    with pytest.raises(Terminated):
        training.train(config(name), tmp_path / "run")
    monkeypatch.undo()
    # From disk, where images lived on the device.
    training.train(config(name, resident_megabytes=0), tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", whole)]
    assert results[0] | {"command": ""} == results[1] | {"command": ""}


def test_what_draws_by_the_weights_does_not_multiply_the_loss_by_them_too():
    built = experiment.build(digits("sampler=semantic_scale,balancer=inverse_frequency,start_epoch=0"))
    twice = experiment.build(digits("balancer=inverse_frequency,start_epoch=0"))
    features, labels = np.zeros((4, 3), np.float32), np.arange(4)
    weights, state = built.balancer.update(built.balancer.init(), features, labels)
    np.testing.assert_array_equal(weights, np.ones(10))
    own = built.balancer.summary(state)["weights"]
    weights, state = twice.balancer.update(twice.balancer.init(), features, labels)
    np.testing.assert_array_equal(own, weights)
    assert np.ptp(own) > 1


@pytest.mark.slow
def test_until_the_balancer_starts_the_order_is_the_plain_one():
    program = Program(digits("sampler=semantic_scale"), experiment.build(digits("sampler=semantic_scale")))
    plain = Program(digits(), experiment.build(digits()))
    assert plain.initial.drawn_by == ()
    state = program.initial
    assert program.followed(state, 1, lambda: None) is state  # and batches go on as they do
    mine, wanted = program.batches(0, state.drawn_by), plain.batches(0)
    for _ in range(9):
        np.testing.assert_array_equal(next(mine)["label"], next(wanted)["label"])


@pytest.mark.slow
def test_a_model_that_is_broken_leaves_the_weights_as_they_are():
    program = Program(digits("objective=ifl"), experiment.build(digits("objective=ifl")))
    broken = jax.tree.map(lambda array: array * np.nan, program.initial.params)
    state = dataclasses.replace(program.initial, params=broken)
    assert program.followed(state, 1, lambda: None) is state


def test_what_an_objective_asks_for_comes_beside_what_the_run_draws_by():
    """As one of two branches, of which the second one has a sampler of its own."""
    built = experiment.build(digits("objective=ifl"))
    inner = dataclasses.replace(built.objective.inner, samplers=("plain", "class_aware"))
    built = dataclasses.replace(built, objective=dataclasses.replace(built.objective, inner=inner))
    program = Program(digits("objective=ifl,examples_per_class=8"), built)
    batch = next(program.batches(0))
    assert batch["image"].shape == batch["class_aware"]["image"].shape
    groups = np.asarray(batch["class_aware"]["label"]).reshape(8, 8)
    np.testing.assert_array_equal(groups, np.broadcast_to(groups[:, :1], groups.shape))
    state = program.followed(program.initial, 1, lambda: None)
    assert np.ptp(state.drawn_by) > 0
    state, metrics = program.train_step(state, next(program.batches(0, state.drawn_by)))
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sampler=environments", "'environments' is that of invariant feature learning: choose objective=ifl instead"),
        ("sampler=semantic_scale,balancer=uniform", "balancer must be another one than 'uniform', such as 'dsb'"),
        ("sampler=semantic_scale,objective=ifl", "sampler must be 'plain', got 'semantic_scale'"),
        ("sampler=class_aware,examples_per_class=0", "examples_per_class must be an integer >= 1, got 0"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(arguments))
