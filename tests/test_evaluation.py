"""Metrics against counting loops, exact rational arithmetic and scikit-learn."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st

from dsb_jax import evaluation

NAN = float("nan")


def exact_pearson(x, y):
    """r in rational arithmetic, but for one square root."""
    x, y = ([Fraction(float(value)) for value in column] for column in (x, y))
    x, y = ([value - sum(column) / len(column) for value in column] for column in (x, y))
    covariance = sum(a * b for a, b in zip(x, y, strict=True))
    square = covariance**2 / (sum(a * a for a in x) * sum(b * b for b in y))
    return math.copysign(math.sqrt(square), covariance)


@st.composite
def predictions(draw):
    num_classes = draw(st.integers(1, 6))
    a_class = st.integers(0, num_classes - 1)
    pairs = draw(st.lists(st.tuples(a_class, a_class), max_size=40))
    return np.array([a for a, _ in pairs], np.int32), np.array([b for _, b in pairs], np.int32), num_classes


@given(predictions())
def test_confusion_matrix_counts(case):
    labels, predicted, num_classes = case
    wanted = np.zeros((num_classes, num_classes), np.int64)
    for label, guess in zip(labels, predicted, strict=True):
        wanted[label, guess] += 1
    confusion = evaluation.confusion_matrix(labels, predicted, num_classes)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, wanted)


def test_confusion_matrix_equals_scikit_learn_and_adds_up():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 90, (2, 5000))  # classes 90..99 never occur
    confusion = evaluation.confusion_matrix(labels, predicted, 100)
    wanted = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(100))
    np.testing.assert_array_equal(confusion, wanted)
    parts = [evaluation.confusion_matrix(labels[i::3], predicted[i::3], 100) for i in range(3)]
    np.testing.assert_array_equal(sum(parts), wanted)


def test_small_integer_labels_do_not_overflow():
    labels = np.array([199, 7], np.uint8)
    confusion = evaluation.confusion_matrix(labels, labels, 200)
    assert confusion[199, 199] == confusion[7, 7] == 1
    assert confusion.sum() == 2


@given(predictions())
def test_class_accuracy_is_the_fraction_of_each_class(case):
    labels, predicted, num_classes = case
    accuracy = evaluation.class_accuracy(evaluation.confusion_matrix(labels, predicted, num_classes))
    wanted = [np.mean(predicted[labels == c] == c) if (labels == c).any() else NAN for c in range(num_classes)]
    np.testing.assert_allclose(accuracy, wanted, rtol=1e-15)
    assert accuracy.dtype == np.float64


@given(predictions())
def test_class_precision_is_scikit_learns(case):
    labels, predicted, num_classes = case
    assume(len(labels))
    precision = evaluation.class_precision(evaluation.confusion_matrix(labels, predicted, num_classes))
    of_all = sklearn.metrics.precision_score(
        labels, predicted, labels=range(num_classes), average=None, zero_division=0
    )
    tested = np.isin(np.arange(num_classes), labels)
    np.testing.assert_allclose(precision, np.where(tested, of_all, NAN), rtol=1e-15)


@given(predictions(), st.integers(0, 2**32 - 1))
def test_average_precision_is_the_mean_precision_where_recall_rises(case, seed):
    labels, _, num_classes = case
    scores = np.random.default_rng(seed).random((len(labels), num_classes))
    found = evaluation.average_precision(labels, scores)
    for label in range(num_classes):
        right = labels[np.argsort(-scores[:, label], kind="stable")] == label
        ranks = np.flatnonzero(right) + 1
        wanted = np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else NAN
        assert found[label] == pytest.approx(wanted, rel=1e-12, nan_ok=True)


def test_average_precision_refuses_scores_of_other_shapes():
    with pytest.raises(ValueError, match=re.escape("scores must be finite floats [samples, C], got int64 [2]")):
        evaluation.average_precision([0, 1], [1, 2])
    with pytest.raises(ValueError, match="got float64"):
        evaluation.average_precision([0], [[NAN, 1.0]])
    with pytest.raises(ValueError, match="labels and scores must have one length, got 1 and 2"):
        evaluation.average_precision([0], np.ones((2, 2)))


@st.composite
def accuracies_and_counts(draw):
    rows = draw(st.lists(st.tuples(st.floats(0, 1) | st.just(NAN), st.integers(0, 130)), min_size=1, max_size=30))
    return [a for a, _ in rows], [n for _, n in rows]


@given(accuracies_and_counts(), st.sampled_from([(100, 20), (20, 20), (50, 0)]))
def test_shot_accuracy_averages_the_groups(case, bounds):
    head, tail = bounds
    groups = {"head": [], "middle": [], "tail": []}
    for accuracy, count in zip(*case, strict=True):
        if not math.isnan(accuracy):
            groups["head" if count > head else "tail" if count < tail else "middle"].append(accuracy)
    wanted = {name: math.fsum(group) / len(group) for name, group in groups.items() if group}
    result = evaluation.shot_accuracy(*case, head=head, tail=tail)
    assert result == pytest.approx(wanted, rel=1e-12)
    assert list(result) == list(wanted)
    assert all(type(value) is float for value in result.values())


def test_shot_accuracy_has_the_papers_bounds():
    counts = [101, 100, 20, 19]
    assert evaluation.shot_accuracy([1, 0.5, 0.25, 0], counts) == {"head": 1, "middle": 0.375, "tail": 0}


@given(st.lists(st.tuples(st.floats(0, 1) | st.just(NAN), st.integers(0, 5) | st.just(NAN)), min_size=1, max_size=20))
def test_accuracy_by_scale_averages_thirds_of_the_classes(rows):
    known = sorted((scale, label) for label, (_, scale) in enumerate(rows) if not math.isnan(scale))
    cuts = [0, len(known) // 3, 2 * len(known) // 3, len(known)]
    wanted = {}
    for name, start, stop in zip(("low", "middle", "high"), cuts, cuts[1:], strict=False):
        third = [rows[label][0] for _, label in known[start:stop] if not math.isnan(rows[label][0])]
        if third:
            wanted[name] = math.fsum(third) / len(third)
    result = evaluation.accuracy_by_scale(*zip(*rows, strict=True))
    assert result == pytest.approx(wanted, rel=1e-12)
    assert list(result) == list(wanted)


def test_accuracy_by_scale_has_the_papers_thirds():
    """333, 333 and 334 of 1,000 classes."""
    accuracy = np.repeat([0.25, 0.5, 1.0], [333, 333, 334])
    assert evaluation.accuracy_by_scale(accuracy, np.arange(1000)) == {"low": 0.25, "middle": 0.5, "high": 1.0}


finite = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
columns = st.integers(2, 30).flatmap(
    lambda n: st.tuples(st.lists(finite, min_size=n, max_size=n), st.lists(finite, min_size=n, max_size=n))
)


def varied(column):
    return len(set(column)) > 1


@given(columns)
def test_pearson_is_exact(case):
    x, y = case
    r = evaluation.pearson(x, y)
    assert type(r) is float
    if varied(x) and varied(y):
        assert -1 <= r <= 1
        assert r == pytest.approx(exact_pearson(x, y), abs=1e-13)
    else:
        assert math.isnan(r)


@given(columns, st.floats(0.01, 100), finite, st.randoms())
def test_pearson_keeps_under_affine_maps_exchange_and_permutation(case, slope, intercept, random):
    x, y = (np.array(column) for column in case)
    assume(varied(x) and varied(y))
    r = evaluation.pearson(x, y)
    mapped = slope * x + intercept
    assume(np.ptp(mapped) > 1e-6 * np.abs(mapped).max())  # rounding in the map itself is not ours
    assert evaluation.pearson(mapped, y) == pytest.approx(r, abs=1e-8)
    assert evaluation.pearson(-x, y) == pytest.approx(-r, abs=1e-13)
    assert evaluation.pearson(y, x) == r
    order = random.sample(range(len(x)), len(x))
    assert evaluation.pearson(x[order], y[order]) == pytest.approx(r, abs=1e-13)


def test_pearson_equals_numpy_where_numpy_is_accurate():
    x, y = np.random.default_rng(0).normal(size=(2, 10_000))
    assert evaluation.pearson(x, 0.3 * x + y) == pytest.approx(np.corrcoef(x, 0.3 * x + y)[0, 1], abs=1e-13)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-160, 1e-30, 1e30, 1e160, 4e307])
def test_pearson_of_tiny_and_huge_numbers(scale):
    x = np.array([1.0, 2.0, 4.0, -3.0]) * scale
    y = np.array([0.5, 0.25, 0.75, 0.0])
    assert evaluation.pearson(x, y) == pytest.approx(exact_pearson([1, 2, 4, -3], y), abs=1e-14)
    assert evaluation.pearson(x, x) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("offset", [1e6, -1e9, 2.0**52])
def test_pearson_far_from_zero(offset):
    x = offset + np.random.default_rng(0).integers(0, 50, 40)
    y = np.random.default_rng(1).random(40) - offset
    assert evaluation.pearson(x, y) == pytest.approx(exact_pearson(x, y), abs=1e-13)


def test_pearson_with_one_value_apart_by_one_digit():
    x = np.full(10, 0.1)
    x[3] = np.nextafter(0.1, 1)
    assert evaluation.pearson(x, np.arange(10) == 3) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1], [2]),
        ([0.1] * 7, range(7)),
        (range(7), [1e300] * 7),
        ([1, NAN, 3], [NAN, 2, 4]),
        ([1, NAN, 1], [3, 2, 4]),
        ([np.inf, -np.inf, 1], [1, 2, 3]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_pearson_is_nan_where_it_is_undefined(x, y):
    assert math.isnan(evaluation.pearson(x, y))


def test_pearson_leaves_out_pairs_that_are_not_finite():
    x, y = [1, NAN, 3, 4, 7, np.inf], [2, 1, NAN, 3, 9, 1]
    assert evaluation.pearson(x, y) == pytest.approx(exact_pearson([1, 4, 7], [2, 3, 9]), abs=1e-15)


def test_correlations_are_those_of_each_column():
    rng = np.random.default_rng(0)
    accuracy = rng.random(20)
    accuracy[4] = NAN
    names = ["samples", "effective_number", "interclass", "volume", "scale"]
    measures = dict(zip(names, rng.normal(size=(5, 20)), strict=True))
    measures["volume"] = np.full(20, NAN)
    measures["interclass"] = np.full(20, 1.58)
    result = evaluation.correlations(accuracy, **measures)
    assert list(result) == names
    tested = np.isfinite(accuracy)
    for name in ("samples", "effective_number", "scale"):
        wanted = np.corrcoef(accuracy[tested], measures[name][tested])[0, 1]
        assert result[name] == pytest.approx(wanted, abs=1e-13)
    assert math.isnan(result["volume"])
    assert math.isnan(result["interclass"])


FIVE = {name: [1, 2] for name in ("samples", "effective_number", "interclass", "volume", "scale")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation.confusion_matrix([0], [0], 0), "num_classes must be an integer >= 1, got 0"),
        (lambda: evaluation.confusion_matrix([[0]], [0], 2), "labels must have shape [samples], got (1, 1)"),
        (lambda: evaluation.confusion_matrix([0], [0.5], 2), "predictions must be integers, got float64"),
        (lambda: evaluation.confusion_matrix([0, 2], [0, 0], 2), "labels must lie in [0, 2), got 2 at position 1"),
        (lambda: evaluation.confusion_matrix([0], [-1], 2), "predictions must lie in [0, 2), got -1 at position 0"),
        (lambda: evaluation.confusion_matrix([0, 1], [0], 2), "must have one length, got 2 and 1"),
        (lambda: evaluation.class_accuracy([1, 2]), "confusion must have shape [num_classes, num_classes], got (2,)"),
        (lambda: evaluation.class_accuracy([[1, 2]]), "confusion must have shape"),
        (lambda: evaluation.class_accuracy([[0.5]]), "confusion must hold counts"),
        (lambda: evaluation.class_accuracy([[-1]]), "confusion must hold counts"),
        (lambda: evaluation.shot_accuracy([0.5], [1, 2]), "counts must be as long as class_accuracy, got 2 and 1"),
        (lambda: evaluation.shot_accuracy([93.0], [1]), "class_accuracy must lie in [0, 1], got 93 at position 0"),
        (lambda: evaluation.shot_accuracy([0.5], [-1]), "counts must be finite numbers >= 0"),
        (lambda: evaluation.shot_accuracy([0.5], [NAN]), "counts must be finite numbers >= 0"),
        (lambda: evaluation.shot_accuracy([0.5], [1], head=5, tail=9), "0 <= tail <= head, got tail=9 and head=5"),
        (lambda: evaluation.pearson([1, 2], [1]), "y must be as long as x, got 1 and 2"),
        (lambda: evaluation.pearson(1, [1]), "x must be a vector, got shape ()"),
        (lambda: evaluation.pearson(["a"], [1]), "x must hold real numbers, got <U1"),
        (lambda: evaluation.pearson([1j], [1]), "x must hold real numbers, got complex128"),
        (lambda: evaluation.correlations([0.5], **FIVE), "samples must be as long as class_accuracy, got 2 and 1"),
        (lambda: evaluation.correlations([0.5, 2], **FIVE), "class_accuracy must lie in [0, 1], got 2 at position 1"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@given(predictions(), st.integers(1, 8))
def test_hardest_pairs_are_those_of_the_highest_error_rates(case, number):
    labels, predicted, num_classes = case
    confusion = evaluation.confusion_matrix(labels, predicted, num_classes)
    rates = {
        (i, j): Fraction(int(confusion[i, j]), int(confusion[i].sum()))
        for i in range(num_classes)
        for j in range(num_classes)
        if i != j and confusion[i, j]
    }
    wanted = sorted(rates, key=lambda pair: (-rates[pair], -confusion[pair], pair))[:number]
    pairs = evaluation.hardest_pairs(confusion, number)
    assert [tuple(pair) for pair in pairs.tolist()] == wanted
    assert pairs.shape == (len(wanted), 2)
    assert np.issubdtype(pairs.dtype, np.integer)


def test_of_equal_rates_the_one_of_more_samples_is_harder():
    assert evaluation.hardest_pairs([[1, 1, 0], [5, 10, 5], [2, 2, 4]]).tolist() == [
        [0, 1],
        [1, 0],
        [1, 2],
        [2, 0],
        [2, 1],
    ]


def scale_by_hand(volumes, centers, alpha, present):
    """W and S of the present classes, straight from Sec. 3.4.1."""
    distance = np.array([np.mean([math.dist(a, b) for b in centers[present] if b is not a]) for a in centers[present]])
    weights = np.log2(alpha + distance / distance.max())
    return weights, volumes[present] / volumes[present].max() * weights


def test_correlations_by_alpha_are_those_of_each_measure():
    rng = np.random.default_rng(0)
    accuracy, volumes, centers = rng.random(12), rng.uniform(1, 9, 12), rng.normal(size=(12, 5))
    accuracy[3], present = NAN, np.ones(12, bool)
    present[[5, 8]] = False
    volumes[5], centers[8] = 1e6, 1e6  # what an absent class holds is no measurement
    result = evaluation.correlations_by_alpha(
        accuracy, volumes.astype(np.float32), centers.astype(np.float32), present=present
    )
    assert list(result) == ["volume", "interclass", "scale"]
    assert list(result["interclass"]) == list(result["scale"]) == ["1", "1.5", "2", "2.5", "3"]
    a, tested = accuracy[present], np.isfinite(accuracy[present])
    assert result["volume"] == pytest.approx(np.corrcoef(a[tested], volumes[present][tested])[0, 1], abs=1e-6)
    for alpha in result["scale"]:
        weights, scales = scale_by_hand(volumes, centers, float(alpha), present)
        for name, measure in (("interclass", weights), ("scale", scales)):
            wanted = np.corrcoef(a[tested], measure[tested])[0, 1]
            assert result[name][alpha] == pytest.approx(wanted, abs=2e-5)
            assert type(result[name][alpha]) is float


def test_correlations_by_alpha_are_nan_where_nothing_varies():
    result = evaluation.correlations_by_alpha(
        [0.1, 0.9], np.ones(2, np.float32), np.zeros((2, 3), np.float32), present=[True, True], alphas=(1, 3)
    )
    assert list(result["scale"]) == ["1", "3"]
    assert all(math.isnan(r) for r in (result["volume"], *result["interclass"].values(), *result["scale"].values()))


CENTERS = np.eye(2, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation.hardest_pairs([[1, 2]]), "confusion must have shape [num_classes, num_classes]"),
        (lambda: evaluation.hardest_pairs([[1]], 0), "number must be an integer >= 1, got 0"),
        (
            lambda: evaluation.correlations_by_alpha([1.5, 0], [1.0, 2.0], CENTERS, present=[True] * 2),
            "class_accuracy must lie in [0, 1], got 1.5",
        ),
        (
            lambda: evaluation.correlations_by_alpha([1, 0], [1.0], CENTERS, present=[True] * 2),
            "volumes must be as long as class_accuracy",
        ),
        (
            lambda: evaluation.correlations_by_alpha([1, 0], [1.0, 2.0], CENTERS, present=[True]),
            "present must be boolean of shape (2,)",
        ),
        (
            lambda: evaluation.correlations_by_alpha([1, 0], [1.0, 2.0], CENTERS, present=[True] * 2, alphas=[0.5]),
            "alpha must be a finite number >= 1, got 0.5",
        ),
    ],
)
def test_bad_input_of_pairs_and_spaces_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
