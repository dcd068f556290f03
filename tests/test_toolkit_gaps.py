"""Formulas of the toolkit on findings made by hand, where a slip of one step or one name would show."""

import re

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dsb_jax.evaluation import drawing
from dsb_jax.toolkit import class_geometry, class_scales, inputs, manifolds, moments, neighbourhoods, points
from dsb_jax.toolkit.agglomeration import ClassTree
from dsb_jax.toolkit.class_scales import Scales
from dsb_jax.toolkit.growth import Growth


def growth_of(*classes):
    """Each class as ``(name, counts, volumes of each draw)``."""
    names, counts, volumes = zip(*classes, strict=True)
    return Growth(
        "bugs",
        "feature",
        names,
        tuple(np.array(each) for each in counts),
        tuple(np.array(each, np.float64) for each in volumes),
    )


def scales_of(names, samples, volume, scale):
    samples, volume, scale = np.array(samples), np.array(volume, np.float64), np.array(scale, np.float64)
    return Scales("bugs", "feature", tuple(names), samples, samples * 1.0, volume, scale, scale, 1.0, 1.0, 4)


def test_the_last_doubling_is_from_half_of_the_samples_to_all():
    found = growth_of(
        ("at", [1, 2, 4, 8], [[0, 1, 2, 7], [0, 1, 4, 9]]),  # 3 of 8 on average
        ("between", [2, 6, 10], [[2, 4, 10]]),  # at 5, halfway between 2.0 and 4.0 by 3/4
        ("three", [1, 2, 3], [[0, 1, 2]]),
    )
    assert found.last_doubling.tolist() == pytest.approx([5 / 8, 1 - 3.5 / 10, np.nan], nan_ok=True)


def test_growth_is_faster_than_linear_until_the_last_count_of_which_it_is():
    found = growth_of(
        ("slows", [1, 2, 4, 8, 16], [[0, 1, 4, 7, 8]]),  # 4 times from 2 to 4, not twice from 4 to 8
        ("again", [1, 2, 4, 8, 16], [[0, 1, 4, 7, 28]]),
        ("on", [1, 2, 4, 8], [[0, 1, 4, 16]]),
        ("line", [1, 2, 4, 8], [[0, 1, 2, 4]]),
        ("late", [1, 2, 4, 8], [[0, 1, 1.5, 6]]),
    )
    assert found.linear_until.tolist() == pytest.approx([4, 4, 8, np.nan, np.nan], nan_ok=True)


def test_a_class_is_saturated_where_the_second_half_adds_less_than_five_percent():
    below = [(f"full{i}", [1, 8, 16], [[0, 95.1, 100]]) for i in range(7)]
    above = [(f"open{i}", [1, 8, 16], [[0, 94.9, 100]]) for i in range(2)]
    text = growth_of(*below, *above).reading()
    assert re.search(r"\b7\b", text)
    assert "5%" in text
    assert "full" not in text
    assert "open0" in text
    assert "open1" in text


def test_the_poorest_are_those_of_least_scale_not_volume():
    found = scales_of("abcd", [10, 20, 30, 1], [3, 1, 2, 0], [0.2, 0.9, 0.5, np.nan])
    assert found.poorest_first.tolist() == [3, 0, 2, 1]
    assert [row[0] for row in found.table()[1]] == ["d", "a", "c", "b"]


def test_bars_and_dots_belong_to_the_class_they_stand_beside():
    names, samples, scale = ("ant", "bee", "cow", "dog"), [40, 10, 20, 5], [0.6, 0.8, 0.2, 0.4]
    _, figure = scales_of(names, samples, [1, 4, 3, 2], scale).figures()["scales"]
    (axes,) = figure.axes
    beside = dict(zip(axes.get_yticks(), (label.get_text() for label in axes.get_yticklabels()), strict=True))
    bars = {beside[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axes.patches}
    (dots,) = (each.get_offsets() for each in axes.collections)
    assert bars == pytest.approx({"ant": 0.75, "bee": 1.0, "cow": 0.25, "dog": 0.5})
    assert {beside[y]: x for x, y in dots.tolist()} == pytest.approx({"ant": 1, "bee": 0.25, "cow": 0.5, "dog": 0.125})
    from_the_top = sorted(beside, key=lambda y: axes.transData.transform((0, y))[1], reverse=True)
    assert [beside[y] for y in from_the_top] == ["cow", "dog", "ant", "bee"]


def test_dots_of_many_classes_are_below_their_scale():
    number = drawing.NAMED_CLASSES + 1
    order = np.random.default_rng(0).permutation(number)
    scale, samples = (order + 1) / number, order**2
    _, figure = scales_of(map(str, range(number)), samples, scale[::-1], scale).figures()["scales"]
    (axes,) = figure.axes
    line, dots = axes.lines[0].get_xydata(), axes.collections[-1].get_offsets()
    np.testing.assert_allclose(line, np.stack([np.arange(number), np.arange(1, number + 1) / number], 1))
    np.testing.assert_allclose(dots, np.stack([np.arange(number), (np.arange(number) / (number - 1)) ** 2], 1))


def test_the_tree_is_wards_on_the_root_of_the_distances():
    # On the distances themselves, or by another linkage, classes join in another order.
    places = np.array([[3.0, 7.0], [3.0, 0.0], [9.0, 2.0], [2.0, 0.0], [4.0, 2.0], [0.0, 0.0]])
    apart = np.square(places[:, None] - places).sum(axis=2)
    tree = ClassTree(apart, tuple("abcdef"), np.full(6, 9), (), "bugs")
    expected = hierarchy.linkage(squareform(np.sqrt(apart)), "ward")
    np.testing.assert_allclose(tree.joined, expected)
    for distances, method in ((apart, "ward"), *((np.sqrt(apart), each) for each in ("single", "average", "complete"))):
        other = hierarchy.linkage(squareform(distances), method)
        assert not np.array_equal(other[:, :2], expected[:, :2]), method


def test_flat_references_have_the_covariance_of_the_rows_over_their_number():
    rows = np.array([[7.0, -3.0], [9.0, -3.0], [7.0, 1.0], [5.0, 5.0]])  # whose mean is (7, 0)
    covariance = np.array([[2.0, -4.0], [-4.0, 11.0]])
    noise = np.concatenate([manifolds.flat_reference(rows, seed=seed) for seed in range(3000)])
    assert np.abs(noise.mean(axis=0)).max() < 0.1
    np.testing.assert_allclose(noise.T @ noise / len(noise), covariance, rtol=0.05)  # over 3 they are 4/3 of it


def test_every_class_has_a_flat_reference_of_its_own_drawn_rows(monkeypatch):
    rng = np.random.default_rng(0)
    cloud = np.concatenate([rng.normal(size=(40, 3)), rng.normal(size=(30, 3)) * [5, 1, 0.1] + 50])
    labels = np.repeat([0, 1], [40, 30])
    given = []
    reference = manifolds.flat_reference

    def recorded(rows, **options):
        given.append(np.array(rows))
        return reference(rows, **options)

    monkeypatch.setattr(manifolds, "flat_reference", recorded)
    found = class_geometry.geometry(points.of(cloud, labels), neighbours=6, dimension=2, rows=20, seed=3)
    expected = []
    for label, rows in enumerate(given):
        own = cloud[labels == label]
        assert rows.shape == (20, 3)
        assert (rows[:, None] == own).all(axis=2).any(axis=1).all()
        flat = reference(rows, seed=3)
        expected.append(neighbourhoods.curvature(flat, neighbourhoods.nearest(flat, 6), 2).mean())
    assert found.flat_curvature.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("balls", [1, 2])
def test_tangent_spaces_of_all_classes_have_the_median_of_their_dimensions(balls):
    rng = np.random.default_rng(0)
    lines = [rng.uniform(size=(100, 1)) * [[1, 2, 0, 0, 0, 0]] for _ in range(3 - balls)]
    classes = [*lines, *rng.uniform(size=(balls, 100, 6))]
    line, ball = [
        class_geometry.geometry(points.of(each), neighbours=12).tangent_dimension for each in (classes[0], classes[-1])
    ]
    assert line == 1
    assert ball >= 4  # so that the mean is neither
    found = class_geometry.geometry(points.of(np.concatenate(classes), np.repeat([0, 1, 2], 100)), neighbours=12)
    assert found.tangent_dimension == (line if balls == 1 else ball)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_large_integers_of_a_file_keep_their_digits(tmp_path, dtype):
    cloud = 2**30 + np.random.default_rng(0).integers(0, 9, (50, 4))
    np.savez(tmp_path / "bugs.npz", features=cloud.astype(dtype), labels=np.repeat(["ant", "bee"], 25))
    found = class_scales.scales(inputs.rows(str(tmp_path / "bugs.npz")).load())
    expected = [moments.volume(each.astype(np.float64)) for each in (cloud[:25], cloud[25:])]
    assert found.volume.tolist() == pytest.approx(expected, rel=1e-9)
