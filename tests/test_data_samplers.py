"""Draws are pure functions of the seed and the step, with the frequencies that they promise."""

import concurrent.futures

import numpy as np
import pytest
import scipy.stats

from dsb_jax.data import samplers

COUNTS = np.array([400, 120, 40, 8, 2])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


def drawn(name, batches=400, batch_size=50, seed=3):
    draw = samplers.create(name, LABELS, batch_size, seed=seed)
    return np.concatenate([draw(step) for step in range(batches)])


@pytest.mark.parametrize(
    ("name", "frequencies"),
    [
        ("class_balanced", np.ones(5)),
        ("square_root", COUNTS**0.5),
        ("reversed", COUNTS.max() / COUNTS),  # w_i of BBN's equation 5
    ],
)
def test_classes_have_their_frequencies_and_their_images_are_alike(name, frequencies):
    rows = drawn(name)
    assert rows.dtype == np.int32
    found = np.bincount(LABELS[rows], minlength=5)
    wanted = len(rows) * frequencies / frequencies.sum()
    assert scipy.stats.chisquare(found, wanted).pvalue > 1e-4
    for label in range(5):
        of_class = np.bincount(rows, minlength=len(LABELS))[label == LABELS]
        assert scipy.stats.chisquare(of_class).pvalue > 1e-4


def test_plain_is_the_order():
    plain, order = samplers.create("plain", LABELS, 32, seed=5), samplers.order(len(LABELS), 32, seed=5)
    for step in (0, 3, 40):
        np.testing.assert_array_equal(plain(step), order(step))


@pytest.mark.parametrize("name", samplers.names())
def test_a_step_needs_no_other_step(name):
    forwards = samplers.create(name, LABELS, 32, seed=5)
    batches = [forwards(step) for step in range(20)]
    for step in np.random.default_rng(1).permutation(20).tolist():
        np.testing.assert_array_equal(samplers.create(name, LABELS, 32, seed=5)(step), batches[step])
    assert len({tuple(batch) for batch in batches}) == 20
    assert (samplers.create(name, LABELS, 32, seed=6)(0) != batches[0]).any()


def test_weights_decide():
    weights = np.array([0.0, 3.0, 0.0, 1.0, 0.0])
    rows = np.concatenate([samplers.weighted(weights, 100, seed=0)(step) for step in range(100)])
    assert set(rows.tolist()) == {1, 3}
    assert scipy.stats.binomtest(int((rows == 1).sum()), len(rows), 0.75).pvalue > 1e-4
    # The largest number below 1 is at the top of the heights.
    assert samplers.weighted(np.array([1.0, 0.0]), 1000, seed=0)(0).max() == 0


def test_seeds_and_steps_are_told_apart():
    seeds = (0, 1, 7, 7 + 2**32, 7 + 2**33)
    batches = {tuple(samplers.create("reversed", LABELS, 20, seed=seed)(step)) for seed in seeds for step in range(4)}
    assert len(batches) == 4 * len(seeds)


def test_threads_make_an_epoch_once(monkeypatch):
    made = []
    permutation = samplers.permutation
    monkeypatch.setattr(samplers, "permutation", lambda *arguments: made.append(arguments) or permutation(*arguments))
    batch = samplers.order(10_000, 500, seed=0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(batch, range(40)))  # two epochs
    assert sorted(int(epoch[1]) for _, epoch, _ in made) == [0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.create("balanced", LABELS, 8, seed=0), "unknown sampler 'balanced'; did you mean 'class_bal"),
        (lambda: samplers.create("plain", LABELS, 571, seed=0), "batch_size must be at most the 570"),
        (lambda: samplers.create("reversed", LABELS, 0, seed=0), "batch_size must be an integer >= 1, got 0"),
        (lambda: samplers.weighted(np.zeros(3), 8, seed=0), "weights must be finite numbers >= 0"),
        (lambda: samplers.weighted(np.array([1.0, -1.0]), 8, seed=0), "weights must be finite numbers >= 0"),
        (lambda: samplers.weighted(np.array([1.0, np.nan]), 8, seed=0), "weights must be finite numbers >= 0"),
        (lambda: samplers.weighted(np.ones(3), 8, seed=-1), "seed must be an integer >= 0, got -1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
