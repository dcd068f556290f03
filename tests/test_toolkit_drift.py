"""Drift of features that are moved by known amounts, and what is said of runs whose drift is made up."""

import dataclasses
import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from dsb_jax.toolkit import feature_drift, findings, points
from dsb_jax.toolkit.feature_drift import FAILS, HOLDS, UNKNOWN, Drift

LABELS = np.repeat([0, 1, 2], [40, 9, 21])


def some_features(seed=0, dim=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(70, dim)) * (1 + LABELS[:, None]) + 2 * rng.normal(size=(3, dim))[LABELS]


def spread(features):
    return math.sqrt(features.var(axis=0).sum())


def rotation(rng, dim):
    return scipy.stats.special_ortho_group.rvs(dim, random_state=rng)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_features_that_all_move_alike_drift_by_as_much(offset):
    before, step = some_features() + offset, np.array([3.0, 0, 4, 0, 0, 0])
    found = feature_drift.drift([before, before + step, before], LABELS, [1, 2, 3])
    np.testing.assert_allclose(found.drifts, 5 / spread(before), rtol=1e-7)
    np.testing.assert_allclose(found.aligned, 0, atol=1e-7)
    np.testing.assert_allclose(found.spreads, spread(before), rtol=1e-7)
    np.testing.assert_allclose(found.old_errors, 0, atol=1e-6)
    assert (found.pool_errors > 0.01).all()  # half of a class lies elsewhere


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5]))
@hypothesis.settings(deadline=None, max_examples=20)
def test_a_rotation_is_drift_that_alignment_takes_away(seed, dim):
    before = some_features(seed, dim)
    after = before @ rotation(np.random.default_rng(seed), dim) + 1
    found = feature_drift.drift([before, after], LABELS, [1, 2])
    wanted = np.linalg.norm(after - before, axis=1).mean() / spread(after)
    np.testing.assert_allclose(found.drifts, wanted, rtol=1e-9)
    np.testing.assert_allclose(found.aligned, 0, atol=1e-9)
    np.testing.assert_allclose(found.old_errors, 0, atol=1e-4)


def test_unrelated_features_drift_by_about_the_root_of_two():
    rng = np.random.default_rng(1)
    found = feature_drift.drift(rng.normal(size=(2, 5000, 64)), np.arange(5000) % 3, [0, 1])
    assert found.drifts[0] == pytest.approx(math.sqrt(2), rel=0.01)


def weights(features, alpha):
    """1/S at a mean of 1, as the paper has it, class by class."""
    classes = [features[np.equal(LABELS, label)] for label in range(3)]
    dim = features.shape[1]
    volumes = [0.5 * np.linalg.slogdet(np.eye(dim) + dim * np.cov(rows.T, bias=True))[1] for rows in classes]
    centers = [rows.mean(axis=0) for rows in classes]
    apart = np.array([np.mean([np.linalg.norm(a - b) for b in centers if b is not a]) for a in centers])
    scales = volumes / max(volumes) * np.log2(alpha + apart / apart.max())
    return 1 / scales / np.mean(1 / scales)


def test_errors_are_those_of_weights_from_old_and_from_mixed_features():
    before, after = some_features(0), some_features(1)
    found = feature_drift.drift([before, after], LABELS, [4, 5], alpha=1.5, seed=7)
    now = weights(after, 1.5)
    np.testing.assert_allclose(found.old_errors, np.abs(weights(before, 1.5) / now - 1).max(), rtol=1e-4)
    old = feature_drift._half_of_each_class(points.of(after, LABELS), 7)
    assert [int(old[np.equal(LABELS, label)].sum()) for label in range(3)] == [20, 4, 10]
    mixed = weights(np.where(old[:, None], before, after), 1.5)
    wrong = np.abs(mixed / now - 1)
    np.testing.assert_allclose(found.pool_errors, wrong.max(), rtol=1e-4)
    assert found.worst[0] == wrong.argmax()
    assert found.rank_correlations[0] == pytest.approx(scipy.stats.spearmanr(mixed, now).statistic)


def test_classes_that_span_nothing_and_features_that_are_alike():
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    rows = np.random.default_rng(0).normal(size=(7, 2))
    found = feature_drift.drift(
        [rows, rows + 1, np.ones((7, 2)), rows], labels, [1, 2, 3, 4], class_names=["a", "b", "c", "d"]
    )
    assert np.isfinite(found.drifts).tolist() == [True, False, True]
    assert np.isfinite(found.pool_errors).tolist() == [True, False, False]
    assert [each.verdict for each in found.statements] == [UNKNOWN] * 3
    found.figures()
    assert found.table()[1][1] == ["2 to 3", *[""] * 6]
    findings.to_json(found.as_dict())


def test_snapshots_are_asked_for_one_by_one():
    asked, told = [], []

    def features():
        for number in range(3):
            asked.append(number)
            yield some_features(number)

    def progress(items, total):
        told.append(total)
        return items

    found = feature_drift.drift(features(), LABELS, [1, 2, 3], progress=progress)
    assert asked == [0, 1, 2]
    assert told == [3]
    again = feature_drift.of_points([points.of(some_features(number), LABELS) for number in range(3)], [1, 2, 3])
    np.testing.assert_array_equal(found.drifts, again.drifts)


def made_up(drifts, epochs=None, rates=0.1, errors=0.01, start_epoch=5.0):
    """A run with these drifts, by default from epoch 0 on."""
    number = len(drifts)
    epochs = np.arange(number + 1.0) if epochs is None else np.asarray(epochs, float)
    of_pairs = np.broadcast_to(rates, number), np.broadcast_to(errors, number)
    return Drift(
        epochs=epochs,
        drifts=np.array(drifts),
        aligned=np.array(drifts) / 2,
        spreads=np.ones(number + 1),
        learning_rates=np.array(of_pairs[0], float),
        old_errors=np.array(of_pairs[1], float),
        pool_errors=np.array(of_pairs[1], float),
        rank_correlations=np.ones(number),
        worst=np.ones(number, int),
        start_epoch=start_epoch,
        class_names=("cat", "dog"),
        name="made up",
    )


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (made_up([0.9, 0.8, 0.4, 0.45, 0.1]), HOLDS, "it was up to 0.9 of the spread before, and is 0.1 to 0.45 after"),
        (made_up([0.9, 0.8, 0.5, 0.3, 0.2]), FAILS, "half or less only from epoch 3 on"),
        (made_up([0.9, 0.8, 0.3, 0.6, 0.2]), FAILS, "half or less only from epoch 4 on"),
        (made_up([0.9, 0.8, 0.7]), FAILS, "not half for good before the rate falls or the run ends"),
        (made_up([0.9, 0.8, 0.7, 0.1], rates=[1, 1, 1, 0.1]), FAILS, "is 0.7 to 0.7 after, not half for good"),
        (
            made_up([0.9, 0.1], rates=[1, 0.1]),
            UNKNOWN,
            "no pair of snapshots after the second pass and before the rate",
        ),
        (made_up([0.9, 0.1], epochs=[2, 3, 4]), UNKNOWN, "no pair of snapshots before the second pass ends"),
        (made_up([0.9, 0.1], epochs=[1, 2, 4]), UNKNOWN, "snapshots are 1 to 2 epochs apart"),
        (made_up([0.9, np.nan]), UNKNOWN, "at some snapshot all features are alike"),
        # A batch may straddle two epochs.
        (made_up([0.9, 0.4], epochs=[1.13, 2.12, 3.11]), HOLDS, "0.4 to 0.4 after"),
    ],
)
def test_whether_features_are_stable_after_two_passes(found, verdict, words):
    statement = found.statements[0]
    assert (statement.verdict, words in statement.why) == (verdict, True), statement.why
    assert f"{statement.claim}: {verdict}; {statement.why}." in found.reading()


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (made_up([9, 3, 4, 5, 2, 1, 0.9], rates=[1] * 4 + [0.1] * 3), HOLDS, "it went from 4 to 1.3 at epoch 4 (by"),
        (made_up([4, 4, 3, 3], rates=[1, 1, 0.1, 0.1]), FAILS, "it went from 4 to 3 at epoch 2"),
        (made_up([8, 2, 1.5], rates=[1, 0.5, 0.1]), FAILS, "it went from 8 to 2 at epoch 1, from 2 to 1.5 at epoch 2"),
        (made_up([8, 2, 0.5], rates=[1, 0.5, 0.1]), UNKNOWN, "from 2 to 0.5 at epoch 2; it falls with time as well"),
        (
            made_up([4, 4, 4, 1, 1], rates=[1, 1, 1, 0.1, 0.1]),
            HOLDS,
            "from 4 to 1 at epoch 3 (by the trend before to 4)",
        ),
        (made_up([4, 4, 0, 0], rates=[1, 1, 1, 0.1]), UNKNOWN, "to 0 at epoch 3; it falls with time"),
        (
            made_up([8, 4, 2], rates=[1, 0.9, 0.8]),
            UNKNOWN,
            "never halves from one snapshot to the next; drift goes with it",
        ),
        (made_up([8, 4, 2], rates=[1, 0.9, 0.8]), UNKNOWN, "ρ = 1.00, but may fall with time alone"),
        (made_up([2, 4, 8], rates=[1, 0.9, 0.8]), UNKNOWN, "ρ = −1.00"),
        (made_up([8, 4, 2]), UNKNOWN, "the rate never halves from one snapshot to the next"),
        (made_up([8, 4], rates=[1, np.nan]), UNKNOWN, "the learning rate is not known"),
        (made_up([8, 4], epochs=[0, 1, 9], rates=[1, 0.1]), UNKNOWN, "epochs apart"),
    ],
)
def test_whether_drift_slows_down_when_the_rate_falls(found, verdict, words):
    statement = found.statements[1]
    assert (statement.verdict, words in statement.why) == (verdict, True), statement.why


@pytest.mark.parametrize("falling", [lambda t: 1 / t, lambda t: t**-1.5, lambda t: 2.0**-t, lambda t: 0.8**t])
@pytest.mark.parametrize("number", [3, 4, 9, 40])
def test_what_falls_with_time_alone_does_not_fall_with_the_rate(falling, number):
    """Whatever the rate does; but a fall beyond that is one."""
    middles = 0.5 + np.arange(number + 3)
    rates = np.where(np.arange(number + 3) < number, 1, 0.1)
    alone = made_up(falling(middles), rates=rates).statements[1]
    assert alone.verdict in (UNKNOWN, FAILS)
    with_rate = made_up(falling(middles) * np.where(rates < 1, 0.02, 1), rates=rates).statements[1]
    assert with_rate.verdict == HOLDS


@pytest.mark.parametrize(
    ("errors", "options", "verdict", "words"),
    [
        (
            [0.5, 0.3, 0.2, 0.11, 0.1],
            {},
            HOLDS,
            "half that is 1 epoch old weights are off by up to 10.0% (dog) at epoch 5",
        ),
        (
            [0.5, 0.3, 0.2, 0.11, 0.12, 0.05],
            {},
            FAILS,
            "up to 12.0% (dog) at epoch 5; they stay within from epoch 6 on",
        ),
        ([0.5, 0.3, 0.2, 0.11, 0.12], {}, FAILS, "up to 12.0% (dog) at epoch 5"),
        ([0.01, 0.01], {}, UNKNOWN, "the nearest pair of snapshots ends at epoch 2"),
        ([0.01, 0.01], {"start_epoch": 2.4}, HOLDS, "at epoch 2"),
        ([0.01, 0.01], {"epochs": [0, 4, 8]}, HOLDS, "with a half that is 4 epochs old"),
        ([0.01, np.nan], {"start_epoch": 2.0}, UNKNOWN, "fewer than two classes have a scale"),
    ],
)
def test_whether_a_pool_is_fresh_enough(errors, options, verdict, words):
    statement = made_up([0.1] * len(errors), errors=errors, **options).statements[2]
    assert (statement.verdict, words in statement.why) == (verdict, True), statement.why


@pytest.mark.parametrize("rates", [0.1, np.nan])
def test_figures_show_the_measurements(rates):
    found = made_up([0.9, 0.3, 0.02, 0.01, 0.01, 0.01], rates=rates, errors=[0.3, 0.2, 0.1, 0.1, 0.1, 0.01])
    above, *below = found.figures()["drift"][1].axes
    assert len(below) == (rates == rates)
    drawn = {line.get_label(): line.get_ydata() for line in above.lines}
    np.testing.assert_array_equal(drawn["as they are"], found.drifts)
    np.testing.assert_array_equal(drawn["rotated"], found.aligned)
    assert above.get_yscale() == "log"
    marks = [line.get_xdata()[0] for line in above.lines if len(line.get_xdata()) == 2]
    assert marks == [2.0, 5.0]
    above, below = found.figures()["weights"][1].axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), 100 * found.pool_errors)
    np.testing.assert_array_equal(below.lines[0].get_ydata(), found.rank_correlations)
    assert len(found.table()[1]) == 6
    assert set(found.as_dict()) == {field.name for field in dataclasses.fields(found)} | {"statements"}
    findings.to_json(found.as_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: feature_drift.drift([f], LABELS, [1]),
            "epochs must be of two snapshots or more and rise, got [1.0]",
        ),
        (
            lambda f: feature_drift.drift([f, f], LABELS, [2, 2]),
            "epochs must be of two snapshots or more and rise, got [2.0, 2.0]",
        ),
        (lambda f: feature_drift.drift([f], LABELS, [1, 2]), "features: epochs are of 2 snapshots, got 1"),
        (lambda f: feature_drift.drift([f, f, f], LABELS, [1, 2]), "features: epochs are of 2 snapshots, got more"),
        (
            lambda f: feature_drift.drift([f, f], LABELS, [1, 2], learning_rates=[1]),
            "learning_rates must be as long as epochs, got 1 and 2",
        ),
        (
            lambda f: feature_drift.drift([f, f[:, :3]], LABELS, [1, 2]),
            "features at epoch 2: snapshots must be of the same samples, got [70, 6], then [70, 3]",
        ),
        (lambda f: feature_drift.drift([f, f[:9]], LABELS, [1, 2]), "features at epoch 2: labels must be integers [9]"),
        (
            lambda f: feature_drift.drift([f, np.where(f == f[3, 2], np.nan, f)], LABELS, [1, 2.5]),
            "features at epoch 2.5: points must be finite, got NaN or infinity in row 3 (class 0)",
        ),
        (lambda f: feature_drift.drift([f, f], LABELS, [1, 2], alpha=0), "alpha must be a finite number >= 1, got 0"),
        (
            lambda f: feature_drift.drift([f, f], LABELS, [1, 2], start_epoch=math.nan),
            "start_epoch must be a finite number >= 0, got nan",
        ),
        (lambda f: feature_drift.of_points([], [1, 2]), "drift needs two snapshots or more, got none"),
        (
            lambda f: feature_drift.of_points(
                [points.of(f, LABELS, name="a"), points.of(f, LABELS[::-1], name="b")], [1, 2]
            ),
            "b must have the labels of a in the same order: got others",
        ),
    ],
)
def test_snapshots_that_do_not_fit_are_one_error(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(some_features())
