"""Subsets that keep a class's volume: against brute force, against each other, and what is said of them."""

import gzip
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dsb_jax import semantic_scale
from dsb_jax.data import long_tail
from dsb_jax.toolkit import findings, points, selection

FEW = settings(max_examples=40, deadline=None)
# With many equal rows, and rows that are far out on one side.
ROWS = arrays.arrays(
    np.float64,
    st.tuples(st.integers(3, 9), st.integers(1, 4)),
    elements=st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0, 30.0]),
)


def about(center, rows, m):
    """½·log2 det(I + d/m·Σ (z − center)(z − center)ᵀ)."""
    x = rows - center
    return np.linalg.slogdet(np.eye(x.shape[1]) + x.shape[1] / m * x.T @ x)[1] / (2 * np.log(2))


def volume(rows):
    return about(rows.mean(axis=0), rows, len(rows))


def naive_greedy(rows, m):
    chosen = []
    for _ in range(m):
        gains = [-np.inf if i in chosen else about(rows.mean(axis=0), rows[[*chosen, i]], m) for i in range(len(rows))]
        chosen.append(int(np.argmax(gains)))
    return chosen


@pytest.mark.parametrize(("n", "d", "m"), [(40, 3, 7), (40, 3, 40), (12, 30, 5), (25, 1, 6), (1, 4, 1), (60, 20, 30)])
@pytest.mark.parametrize("offset", [0, 1e7])
def test_lazy_greedy_chooses_what_greedy_chooses(n, d, m, offset):
    rng = np.random.default_rng(n + d)
    rows = rng.normal(size=(n, d)) * rng.uniform(0.1, 5, d) + rng.normal(size=(n, 1))
    assert selection.greedy(rows + offset, m).tolist() == naive_greedy(rows, m)


def test_greedy_knows_the_error_of_the_volume():
    """ε divides lengths: rows of a tenth at ε = 0.1 are rows at 1."""
    rows = np.random.default_rng(0).normal(size=(30, 4)) * [5, 1, 0.2, 0.1]
    wanted = naive_greedy(rows, 9)
    assert selection.greedy(0.1 * rows, 9, epsilon=0.1).tolist() == wanted
    assert selection.greedy(rows, 9, epsilon=100.0).tolist() != wanted


@FEW
@given(rows=ROWS, data=st.data())
def test_greedy_is_within_its_bound_of_the_best(rows, data):
    m = data.draw(st.integers(1, len(rows)))
    chosen = selection.greedy(rows, m)
    assert len(set(chosen.tolist())) == m
    center = rows.mean(axis=0)
    best = max(about(center, rows[list(subset)], m) for subset in itertools.combinations(range(len(rows)), m))
    assert about(center, rows[chosen], m) >= (1 - 1 / np.e) * best - 1e-9


@FEW
@given(rows=ROWS, keep=st.floats(0.1, 1.0), subsets=st.integers(1, 5), seed=st.integers(0, 3))
def test_no_selection_is_smaller_than_the_papers(rows, keep, subsets, seed):
    labels = np.zeros(len(rows), int)
    found = selection.select(points.of(rows, labels), keep=keep, subsets=subsets, seed=seed)
    (m,) = found.kept
    if m == len(rows):
        assert found.indices.tolist() == list(range(m))
        return
    rng = np.random.default_rng([seed, 0])
    drawn = max(volume(rows[rng.permutation(len(rows))[:m]]) for _ in range(subsets))
    assert volume(rows[found.indices]) >= drawn - 1e-9
    if found.volumes[0]:
        np.testing.assert_allclose(found.volume_kept["pizza"][0] * found.volumes[0], drawn, atol=1e-9)
        np.testing.assert_allclose(found.fractions[0] * volume(rows), volume(rows[found.indices]), atol=1e-9)


def test_random_rows_are_taken_where_they_have_more_volume():
    """Both of the rows that are farthest out are the same, and have no volume together."""
    rows = np.array([[0.0], [0.1], [0.2], [0.3], [9.0], [9.0]])
    found = selection.select(points.of(rows), keep=2)
    assert selection.greedy(rows, 2).tolist() == [4, 5]
    assert found.taken == ("pizza",)
    assert (found.volume_kept["pizza"] > found.volume_kept["greedy"]).all()
    assert "best of 100 random subsets was larger" in found.reading()


@FEW
@given(rows=ROWS, data=st.data())
def test_centres_are_within_twice_the_best_radius(rows, data):
    m = data.draw(st.integers(1, len(rows)))
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    chosen = selection.k_center(rows, m)
    assert len(set(chosen.tolist())) == m
    best = min(distances[list(subset)].min(axis=0).max() for subset in itertools.combinations(range(len(rows)), m))
    assert distances[chosen].min(axis=0).max() <= 2 * best + 1e-9


def classes_of(counts, d=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    rows = rng.standard_t(4, size=(len(labels), d)).astype(np.float32) * rng.uniform(0.5, 2, (len(counts), d))[labels]
    return points.of(rows.astype(np.float32), labels, [f"class {i}" for i in range(len(counts))], name="made up")


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (10, [10, 10, 0, 1, 7]),
        (1, [1, 1, 0, 1, 1]),
        (0.1, [5, 2, 0, 1, 1]),
        (1.0, [50, 20, 0, 1, 7]),
        (99, [50, 20, 0, 1, 7]),
    ],
)
@pytest.mark.parametrize("method", list(selection.METHODS))
def test_each_class_keeps_its_number(method, keep, kept):
    given_points = classes_of([50, 20, 0, 1, 7])
    found = selection.select(given_points, keep=keep, method=method, subsets=3)
    assert found.kept.tolist() == kept
    assert np.bincount(given_points.labels[found.indices], minlength=5).tolist() == kept
    assert (np.diff(found.indices) > 0).all()
    assert found.indices.dtype == np.int64
    assert [name == "all" for name in found.taken] == (found.kept == found.counts).tolist()
    np.testing.assert_array_equal(np.isnan(found.fractions), [False, False, True, True, False])


CHOOSE = {
    "greedy": lambda rows, m, rng: selection.greedy(rows, m),
    "pizza": lambda rows, m, rng: selection.pizza(rows, m, rng, subsets=4)[0],
    "random": lambda rows, m, rng: rng.permutation(len(rows))[:m],
    "k_center": lambda rows, m, rng: selection.k_center(rows, m),
}


@pytest.mark.parametrize("method", list(selection.METHODS))
def test_what_is_returned_is_what_the_method_chooses(method):
    given_points = classes_of([40, 30])
    found = selection.select(given_points, keep=8, method=method, against=(), subsets=4, seed=3)
    wanted = []
    for label in range(2):
        rows = given_points.rows_of(label)
        chosen = CHOOSE[method](rows, 8, np.random.default_rng([3, label]))
        wanted += np.flatnonzero(given_points.labels == label)[chosen].tolist()
        np.testing.assert_allclose(found.volumes[label], volume(rows), rtol=1e-10)
        if method != "random":  # of which the mean over draws is told
            np.testing.assert_allclose(found.fractions[label], volume(rows[chosen]) / volume(rows), rtol=1e-10)
    assert found.indices.tolist() == sorted(wanted)
    again = selection.select(given_points, keep=8, method=method, subsets=4, seed=3)
    assert again.indices.tolist() == found.indices.tolist()


def test_random_rows_are_those_of_a_balanced_subset():
    given_points = classes_of([40, 30, 5])
    found = selection.select(given_points, keep=8, method="random", seed=7)
    assert found.indices.tolist() == long_tail.subset(given_points.labels, found.kept, seed=7).tolist()


def test_mean_and_spread_of_random_rows():
    given_points = classes_of([30])
    found = selection.select(given_points, keep=6, method="pizza", subsets=20, seed=1)
    rows, rng = given_points.rows_of(0), np.random.default_rng([1, 0])
    drawn = [volume(rows[rng.permutation(30)[:6]]) / volume(rows) for _ in range(20)]
    np.testing.assert_allclose(found.volume_kept["random"][0], np.mean(drawn), rtol=1e-10)
    np.testing.assert_allclose(found.random_spread[0], np.std(drawn), rtol=1e-8)
    np.testing.assert_allclose(found.volume_kept["pizza"][0], np.max(drawn), rtol=1e-10)
    assert "greedy" not in found.volume_kept


def test_equal_rows_are_kept_from_the_first_on():
    found = selection.select(points.of(np.full((6, 3), 1e9 + 0.1)), keep=2)
    assert found.indices.tolist() == [0, 1]
    assert found.volumes.tolist() == [0.0]
    assert np.isnan(found.fractions).all()
    assert "nothing to compare" in found.reading()
    json.loads(findings.to_json(found.as_dict()))


def test_classes_pass_through_the_progress():
    seen = []
    selection.select(classes_of([9, 8, 7]), keep=3, progress=lambda labels, total: seen.append(total) or labels)
    assert seen == [3]


def test_what_is_said():
    found = selection.select(classes_of([60, 40, 1]), keep=0.25, subsets=10)
    text = found.reading()
    assert text.startswith("Kept 26 of 101 rows: on average over 2 reduced classes they span ")
    reduced = found.fractions[:2]
    assert f"{reduced.mean():.0%} of the volume of all rows (least: class {reduced.argmin()} with" in text
    headings, rows = found.table()
    assert {len(row) for row in rows} == {len(headings)}
    assert rows[0][:3] == ["class 0", "60", "15"]
    assert rows[0][4].endswith("*")
    assert rows[2][4:] == ["–"] * 4
    told = json.loads(findings.to_json(found.as_dict()))
    assert told["indices"] == found.indices.tolist()
    assert next(iter(told["classes"].values()))["taken"] == "greedy"
    assert list(told["classes"].values())[2]["volume_kept"]["greedy"] is None


@pytest.mark.parametrize("num_classes", [1, 3, 30, 31, 300])
def test_figures_of_every_size(num_classes):
    rng = np.random.default_rng(0)
    found = selection.select(classes_of(rng.integers(1, 30, num_classes), d=2), keep=4, subsets=2)
    figures = found.figures()
    for name, (caption, figure) in figures.items():
        assert name.isidentifier()
        assert caption.endswith(".")
        figure.draw_without_rendering()
    (axes,) = figures["volume_kept"][1].axes
    shown = {text.get_text() for text in axes.get_legend().get_texts()}
    assert shown == {"greedy", "pizza", "random", "k-centre"}
    assert len(axes.get_yticklabels()) == num_classes or num_classes > 30


def test_the_picture_is_of_the_largest_reduced_class():
    given_points = classes_of([9, 50, 80], d=1)
    plane = selection.select(given_points, keep=20, against=["random"]).plane
    assert plane.label == 2
    assert plane.coordinates.shape == (80, 2)
    assert {name: int(chosen.sum()) for name, chosen in plane.chosen.items()} == dict.fromkeys(
        ["greedy", "pizza", "random"], 20
    )
    assert selection.select(given_points, keep=99).plane is None


@pytest.mark.parametrize(("length", "aspect"), [(1.0, 1.0), (100.0, "auto")])
def test_a_class_that_is_far_longer_than_wide_fills_its_picture(length, aspect):
    rows = np.random.default_rng(0).uniform(size=(60, 2)) * [length, 1.0]
    _, figure = selection.select(points.of(rows), keep=20, subsets=2).figures()["chosen"]
    assert {axes.get_aspect() for axes in figure.axes if axes.get_visible()} == {aspect}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0}, "keep must be rows of each class, an integer >= 1, or the fraction of each"),
        ({"keep": 1.5}, "got 1.5"),
        ({"keep": 0.0}, "got 0.0"),
        ({"keep": True}, "got True"),
        ({"keep": float("nan")}, "got nan"),
        ({"keep": "10%"}, "got '10%'"),
        ({"keep": 3, "method": "greedi"}, "unknown method 'greedi'; did you mean 'greedy'?"),
        ({"keep": 3, "against": ["k_centre"]}, "unknown method 'k_centre'; did you mean 'k_center'?"),
        ({"keep": 3, "subsets": 0}, "subsets must be an integer >= 1, got 0"),
        ({"keep": 3, "epsilon": 0}, "epsilon must be a finite number > 0, got 0"),
        ({"keep": 3, "seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        selection.select(classes_of([5, 5]), **arguments)


@pytest.mark.slow
def test_volumes_that_subsets_of_mnist_keep(shared_data):
    folder = shared_data("mnist")
    packed = [(folder / f"train-{name}-ubyte.gz").read_bytes() for name in ("images-idx3", "labels-idx1")]
    images = np.frombuffer(gzip.decompress(packed[0]), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress(packed[1]), np.uint8, offset=8)
    images, labels = images.reshape(-1, 28, 28, 1)[:15_000], labels[:15_000].astype(int)
    given_points = points.of(semantic_scale.pixel_features(images, image_size=8), labels)
    found = selection.select(given_points, keep=0.1)
    kept = found.volume_kept
    assert set(found.taken) == {"greedy"}
    assert (kept["greedy"] > kept["k_center"]).all()
    assert (kept["k_center"] > kept["pizza"]).all()
    assert (kept["pizza"] > kept["random"] + found.random_spread).all()
    assert (kept["greedy"] > 1).all()
