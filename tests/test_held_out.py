"""Training images that are held out tell a balancer each class's accuracy, once an epoch."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from small_run import COUNTS, digits

from dsb_jax import balancers, data, training
from dsb_jax.training import experiment, loop
from dsb_jax.training.program import Program
from dsb_jax.training.termination import Terminated

SETTINGS = {"balancer": "class_difficulty", "tensorboard": False, "sample_space": False, "log_every": 4}
TIMING = {"images_per_second", "train_seconds"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_share_of_every_class_is_held_out(share):
    whole = experiment.build(digits())
    built = experiment.build(digits(f"balancer=class_difficulty,class_difficulty.held_out={share}"))
    np.testing.assert_array_equal(np.sort(np.concatenate([built.indices, built.held_out])), whole.indices)
    labels = data.load("digits", "train").labels
    held_out = np.bincount(labels[built.held_out], minlength=10)
    np.testing.assert_array_equal(held_out, np.clip(np.rint(share * COUNTS), 1, COUNTS - 1))
    np.testing.assert_array_equal(built.counts, COUNTS - held_out)
    other = experiment.build(digits("balancer=class_difficulty,seed=1,subset_seed=0"))
    again = experiment.build(digits("balancer=class_difficulty,subset_seed=0"))
    np.testing.assert_array_equal(other.held_out, again.held_out)


def test_a_class_of_one_image_is_trained_on():
    built = experiment.build(digits("balancer=class_difficulty", imbalance=134.0))
    assert built.counts[-1] == 1
    assert 9 not in data.load("digits", "train").labels[built.held_out]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_is_none_is_refused(share):
    message = rf"class_difficulty.held_out must lie in \(0, 1\), got {share}"
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(f"balancer=class_difficulty,class_difficulty.held_out={share}"))


def test_without_two_images_of_any_class_none_is_held_out():
    settings = {"balancer": "class_difficulty", "long_tail": "balanced", "images_per_class": 1, "batch_size": 5}
    message = r"holds out training images of classes that have two or more, got \[1, 1, 1, 1, 1, 1, 1, 1, 1, 1\]"
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(imbalance=1.0, **settings))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and the state before every measurement with the accuracy that was found."""
    workdir, measured = tmp_path_factory.mktemp("held_out") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        original = Program.with_accuracy

        def with_accuracy(self, state, check):
            told = original(self, state, check)
            measured.append(jax.device_get((state.evaluated, told.accuracy)))
            return told

        patch.setattr(Program, "with_accuracy", with_accuracy)
        training.train(digits(**SETTINGS), workdir)
    return workdir, measured


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in found]


@pytest.mark.slow
def test_weights_are_those_of_the_accuracies_after_the_epoch_before(finished):
    workdir, measured = finished
    built = experiment.build(digits(**SETTINGS))
    split = data.load("digits", "train")
    images = np.stack([example["image"] for example in split.source.__getitems__(built.held_out)])
    images = (images / np.float32(255) - 0.305) / 0.376
    labels = split.labels[built.held_out]
    expected = [np.full(10, np.nan)]  # none is known in the first epoch
    for variables, accuracy in measured:
        logits = built.model.apply(variables, images.astype(np.float32), train=False).logits
        right = np.argmax(logits, axis=1) == labels
        own = np.array([right[labels == c].mean() if (labels == c).any() else np.nan for c in range(10)])
        np.testing.assert_allclose(accuracy, own, rtol=1e-6)
        expected.append(own)
    evaluations = [line for line in lines(workdir) if "test_accuracy" in line]
    assert len(evaluations) == len(measured) == 3
    balancer = balancers.class_difficulty(10)
    for line, accuracy in zip(evaluations, expected, strict=False):
        np.testing.assert_allclose(line["weights"], balancer.summary(accuracy)["weights"], rtol=1e-5)
    assert np.ptp(evaluations[-1]["weights"]) > 0.1


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_with_the_accuracies_that_it_had(finished, tmp_path, monkeypatch):
    calls, record = [], loop._Run._record

    def ending(self, outputs):
        record(self, outputs)
        calls.append(1)
        if len(calls) == 10:  # amid the second epoch, of which the state is saved
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "_record", ending)
    with pytest.raises(Terminated):
        training.train(digits(**SETTINGS), tmp_path / "run")
    monkeypatch.undo()
    training.train(digits(**SETTINGS), tmp_path / "run")
    whole, _ = finished
    assert lines(tmp_path / "run") == lines(whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", whole)]
    assert results[0] | {"command": ""} == results[1] | {"command": ""}


def test_other_balancers_are_told_nothing():
    built = experiment.build(digits())
    assert not len(built.held_out)
    assert Program(digits(), built).initial.accuracy == ()
