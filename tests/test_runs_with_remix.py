"""Remix in the real step: images as of mixup, labels in favour of the rarer class, each with its own class weight."""

import functools
import itertools

import jax
import numpy as np
import pytest
from small_run import COUNTS, digits

from dsb_jax.training import experiment, step
from dsb_jax.training.program import Program


@pytest.mark.parametrize("kind", [pytest.param("mixup=1.0", marks=pytest.mark.slow), "cutmix=1.0"])
def test_labels_are_in_favour_of_the_rarer_class_and_images_as_before(kind):
    settings = {name: digits(f"{kind},balancer=class_balanced,remix={name == 'remix'}") for name in ("plain", "remix")}
    built = {name: experiment.build(config) for name, config in settings.items()}
    program, ready = Program(settings["remix"], built["remix"]), {}
    for name, preprocessing in ((name, each.preprocessing) for name, each in built.items()):
        options = {"mix": preprocessing.mix, "label_share": preprocessing.label_share}
        ready[name] = jax.jit(functools.partial(step.augmented, preprocess=preprocessing.train, **options))
    batch, decided = next(program.batches(0)), set()
    for seed in range(24):
        before, after = (ready[name](batch, jax.random.key(seed)) for name in ("plain", "remix"))
        np.testing.assert_array_equal(after["image"], before["image"])
        share, own, other = np.asarray(before["share"]), COUNTS[before["label"]], COUNTS[before["other_label"]]
        expected = np.where((own >= 3 * other) & (share < 0.5), 0, share)
        expected = np.where((other >= 3 * own) & (1 - share < 0.5), 1, expected)
        np.testing.assert_allclose(after["share"], expected, rtol=1e-6)
        decided |= set(np.unique(expected[expected != share]).tolist())
    assert decided == {0.0, 1.0}
    state = program.initial
    for batch in itertools.islice(program.batches(0), 2):
        state, metrics = program.train_step(state, batch)
    assert np.isfinite(metrics["loss"])
    shares = program.first_images(state, 64)["shares"]
    assert len(np.unique(shares)) > 1  # which of mixup and CutMix are one for the batch
