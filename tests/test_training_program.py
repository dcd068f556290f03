"""What an objective asks of the pipeline reaches it: views and samplers, through the compiled step."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, training
from dsb_jax.objectives import Result, Supervised, Term
from dsb_jax.training import experiment as experiments
from dsb_jax.training.config import with_arguments
from dsb_jax.training.program import Program

SMALL = "dataset=digits,long_tail=exponential,imbalance=20,model=lenet,batch_size=64,eval_batch_size=200,devices=1"


def config(arguments=""):
    return with_arguments(training.base_config(), f"{SMALL},{arguments}".rstrip(","))


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """The losses of two views of a plain batch, and of one that is drawn backwards; it reports how they differ."""

    loss: object = losses.create("cross_entropy")
    views: int = 2
    samplers: tuple[str, ...] = ("plain", "reversed")

    def init(self, rng, variables, outputs):
        return ()

    def __call__(self, forward, batch, state, rng):
        other = batch["reversed"]
        parts = [(batch["image"], batch["label"]), (batch["view_1"], batch["label"]), (other["view_1"], other["label"])]
        outputs = [forward(images) for images, _ in parts]
        terms = [Term(self.loss(out.logits, labels), labels) for out, (_, labels) in zip(outputs, parts, strict=True)]
        metrics = {
            "accuracy": jnp.mean(jnp.argmax(outputs[0].logits, axis=1) == batch["label"], dtype=jnp.float32),
            "views_differ": jnp.mean(batch["image"] != batch["view_1"], dtype=jnp.float32),
            "rare": jnp.mean(batch["label"] >= 8, dtype=jnp.float32),
            "rare_reversed": jnp.mean(other["label"] >= 8, dtype=jnp.float32),
        }
        return Result(terms, outputs[0].features, batch["label"], batch.get("mask"), state, metrics)

    def after_update(self, state, params):
        return state


@pytest.mark.parametrize("arguments", ["crop_padding=2", "image_size=8,shorter_side=10,random_crop=shift"])
def test_views_and_samplers_reach_an_objective(arguments):
    settings = config(arguments)
    experiment = dataclasses.replace(experiments.build(settings), objective=TwoViews())
    program = Program(settings, experiment)
    batches, state = program.batches(0), program.initial
    for _ in range(3):
        state, metrics = program.train_step(state, next(batches))
    assert np.isfinite(metrics["loss"])
    assert metrics["views_differ"] > 0.1  # of pixels, many of which are black in either
    assert metrics["rare"] < 0.2  # of 64 images about two are of the rarest two classes …
    assert metrics["rare_reversed"] > 0.3  # … which a reversed sampler prefers
    assert program.test(state, ("prediction",), lambda: None)["prediction"].shape == (400,)


def test_the_sampler_is_a_setting():
    settings = config("sampler=class_balanced")
    experiment = experiments.build(settings)
    assert isinstance(experiment.objective, Supervised)
    program = Program(settings, experiment)
    batches = program.batches(0)
    labels = np.concatenate([np.asarray(next(batches)["label"]) for _ in range(30)])
    np.testing.assert_allclose(np.bincount(labels, minlength=10) / len(labels), 0.1, atol=0.04)


@pytest.mark.parametrize("mixing", ["", pytest.param("cutmix=1.0", marks=pytest.mark.slow)])
def test_the_first_images_are_those_of_the_first_step(mixing):
    settings = config(f"flip=True,{mixing}")
    program = Program(settings, experiments.build(settings))
    seen, again = (program.first_images(program.initial, 12) for _ in range(2))
    for name, value in seen.items():
        np.testing.assert_array_equal(value, again[name])
    labels = np.asarray(next(program.batches(0))["label"])
    np.testing.assert_array_equal(seen["labels"], labels[:12])
    assert seen["images"].dtype == np.uint8
    if mixing:
        np.testing.assert_array_equal(seen["other_labels"], np.roll(labels, 1)[:12])
        assert (seen["shares"] < 1).all()
    else:
        pixels = np.asarray(next(program.batches(0))["image"])[:12]
        flipped = [
            (image == other).all() or (image == other[:, ::-1]).all()
            for image, other in zip(seen["images"], pixels, strict=True)
        ]
        assert all(flipped)
        np.testing.assert_array_equal(seen["other_labels"], seen["labels"])


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1, 8), (1, 2, 4)])
def test_any_number_of_devices_computes_the_same(numbers):
    """Labels and their order to the bit; what is computed, up to the order in which float32 is summed."""
    seen = {}
    for devices in numbers:
        settings = config(f"crop_padding=1,mixup=0.2,start_epoch=0,devices={devices}")
        program = Program(settings, experiments.build(settings))
        batches, state = program.batches(3), program.initial
        labels, metrics = [], []
        for _ in range(8):
            batch = next(batches)
            labels.append(np.asarray(batch["label"]))
            state, outputs = program.train_step(state, batch)
            metrics.append([float(outputs[name]) for name in ("loss", "gradient_norm")])
        pool = state.balancing.state.pool
        exact = [np.concatenate(labels), *(np.asarray(getattr(pool, name)) for name in ("labels", "count", "cursor"))]
        seen[devices] = exact, np.array(metrics), np.asarray(pool.rows), np.asarray(pool.volume)
    exact, *computed = seen.pop(1)
    for others_exact, *others in seen.values():
        for mine, wanted in zip(others_exact, exact, strict=True):
            np.testing.assert_array_equal(mine, wanted)
        for mine, wanted in zip(others, computed, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=2e-3, atol=2e-4)
