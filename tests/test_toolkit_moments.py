"""Volumes and moments of classes against definitions in float64, whatever parts they are added up from."""

import itertools
import math
import operator

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

import dsb_jax
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.moments import Moments

RNG = np.random.default_rng(0)


def defined_volume(rows, epsilon=1.0):
    """½·log2 det(I + d/(m·ε²)·Σ (z − μ)(z − μ)ᵀ)."""
    rows = np.asarray(rows, np.float64)
    if len(rows) < 2:
        return 0.0
    centred = rows - rows.mean(axis=0)
    dim = rows.shape[1]
    sign, logarithm = np.linalg.slogdet(np.eye(dim) + dim / (len(rows) * epsilon**2) * centred.T @ centred)
    assert sign == 1
    return 0.5 * logarithm / np.log(2)


def of_counts(counts, dim, dtype=np.float64):
    """Points of classes of these sizes, and labels, in no order; classes differ in where and how wide they are."""
    labels = RNG.permutation(np.repeat(np.arange(len(counts)), counts))
    middles, widths = RNG.normal(size=(len(counts), dim)), RNG.gamma(2, 1, size=(len(counts), dim))
    return (middles[labels] + widths[labels] * RNG.normal(size=(len(labels), dim))).astype(dtype), labels


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("dim", [1, 3, 40])
@pytest.mark.parametrize(("block", "large"), [(1, 2**15), (60, 60), (2**18, 2**15), (2**18, 0)])
def test_volumes_are_those_of_the_definition(dim, dtype, block, large, monkeypatch):
    """Of classes without points, with one, two, fewer and more than dimensions, however many are taken together."""
    monkeypatch.setattr(moments, "_BLOCK", block)
    monkeypatch.setattr(moments, "_LARGE", large)
    points, labels = of_counts([5, 0, 1, 2, 30, 90, 3, 30], dim, dtype)
    points[labels == 6] = points[labels == 6][0]
    for epsilon in (1.0, 0.3):
        found = moments.volumes(points, labels, 9, epsilon=epsilon)
        expected = [defined_volume(points[labels == label], epsilon) for label in range(9)]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        alone = [moments.volume(points[labels == label], epsilon=epsilon) for label in range(9)]
        np.testing.assert_allclose(found, alone, rtol=1e-11)
        added = moments.of_classes(points, labels, 9, Moments.of)
        np.testing.assert_allclose(found, [each.volume(epsilon=epsilon) for each in added], rtol=1e-10, atol=1e-12)
    assert found[[1, 2, 6, 8]].tolist() == [0.0] * 4  # none, one, all equal, none


@pytest.mark.parametrize("large", [0, 2**15])
def test_equal_points_are_no_volume_however_large(large, monkeypatch):
    """Their squares are more than float64 holds."""
    monkeypatch.setattr(moments, "_LARGE", large)
    assert moments.volumes(np.full((9, 3), 1e200), np.repeat([0, 1], [2, 7]), 2).tolist() == [0.0, 0.0]


def test_volumes_are_those_of_the_core():
    points, labels = of_counts([20, 1, 0, 7, 100], 12, np.float32)
    core = jax.jit(dsb_jax.class_volumes, static_argnums=2)(points, labels, 5)
    np.testing.assert_allclose(moments.volumes(points, labels, 5), core, rtol=1e-5)


@pytest.mark.parametrize("large", [0, 2**15])
@pytest.mark.parametrize("dim", [2, 30])
def test_where_points_lie_costs_no_digit(dim, large, monkeypatch):
    """Whole numbers are moved without rounding."""
    monkeypatch.setattr(moments, "_LARGE", large)
    points, labels = of_counts([10, 25, 2], dim)
    points = np.round(100 * points)
    for offset in (300.0, 1e6, 2.0**40):
        moved = moments.volumes(points + offset, labels, 3)
        np.testing.assert_allclose(moved, moments.volumes(points, labels, 3), rtol=1e-11)
    apart = Moments.of(points[:15]) + Moments.of(points[15:])
    moved = Moments.of(points[:15] + 1e6) + Moments.of(points[15:] + 1e6)
    np.testing.assert_allclose(moved.scatter, apart.scatter, rtol=1e-10, atol=1e-12 * apart.scatter.max())


def test_large_classes_are_centred_only_where_digits_ask_for_it(monkeypatch):
    def refuse(rows):
        raise AssertionError(f"centred {rows.shape}")

    labels = RNG.permutation(np.repeat([0, 1], [600, 900]))
    points = 1 + RNG.normal(size=(1500, 64))
    expected = [defined_volume(points[labels == label], 1.0) for label in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(moments, "centred", refuse)
        np.testing.assert_allclose(moments.volumes(points, labels, 2), expected, rtol=1e-12)
        for lost in (points + 1e3, points * [1e-3, *[0.0] * 63] + 1, points * 1e9 @ np.ones((64, 64))):
            with pytest.raises(AssertionError, match="centred"):
                moments.volumes(lost, labels, 2)


@pytest.mark.parametrize(("count", "dim"), [(1200, 1024), (2000, 256), (8000, 128)])
@pytest.mark.parametrize("share", [0.9, 0.935])
def test_what_is_off_centre_and_of_one_direction_keeps_its_digits(count, dim, share):
    """As far off and as narrow as is just not centred."""
    present = np.arange(count) < share * count
    across = np.linspace(0.9, 1, dim)
    across *= math.sqrt(9.5e5 / dim / np.var(present))
    expected = 0.5 * math.log1p(dim * np.var(present) * np.sum(across**2)) / math.log(2)
    found = moments.volumes(present[:, None] * across, np.zeros(count, int), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_squares_beyond_float64_are_centred():
    """The widest direction, and what the others have beside it."""
    points = np.random.default_rng(0).normal(size=(20000, 4)) + np.array([3.0, 0, 0, 0])
    wide, others = np.split(points - points.mean(axis=0), [1], axis=1)
    beside = others - wide @ np.linalg.lstsq(wide, others)[0]
    _, rest = np.linalg.slogdet(np.eye(3) + 4 / 20000 * beside.T @ beside)
    expected = 0.5 * (np.log(4 / 20000 * np.sum(wide**2)) + rest) / math.log(2) + math.log2(3e151)
    with pytest.warns(RuntimeWarning, match="overflow"):
        found = moments.volumes(points * [3e151, 1, 1, 1], np.zeros(20000, int), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e4, 1e9, 1e30])
def test_features_that_depend_on_each_other(scale):
    """They have a volume, which is that of what they span, however large they are."""
    once = RNG.normal(size=50)
    points = scale * once[:, None] * np.array([1.0, 3.0, 1.0, 2.0, 0.0])
    expected = 0.5 * np.log1p(5 * 15 * scale**2 * np.var(once)) / np.log(2)
    exact = {"rel": 1e-6, "abs": 1e-12}
    assert moments.volume(points) == pytest.approx(expected, **exact)
    assert Moments.of(points).volume() == pytest.approx(expected, **exact)
    assert moments.volumes(points, np.zeros(50, int), 1) == pytest.approx(expected, **exact)


def volume_by_svd(rows):
    """By singular values of the rows, of which nothing is squared before the logarithm."""
    centred = rows - rows.mean(axis=0)
    widths = np.linalg.svd(centred, compute_uv=False)
    widths[widths < max(rows.shape) * np.finfo(float).eps * widths[0]] = 0
    return np.log2(np.hypot(1, math.sqrt(rows.shape[1] / len(rows)) * widths)).sum()


@pytest.mark.parametrize("large", [0, 2**15])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5, 1e7, 1e9, 1e20])
@pytest.mark.parametrize(
    ("count", "rank", "dim"),
    [
        (500, 4, 64),
        (2, 1, 64),
        (5, 3, 64),
        (40, 40, 64),
        (64, 64, 64),
        (500, 64, 64),
        (3, 2, 2),
        (9000, 1, 3),
        (9000, 3, 6),
    ],
)
def test_volumes_of_low_rank_at_any_scale(count, rank, dim, scale, large, monkeypatch):
    """And away from 0, where squares less those of the mean would leave rounding in more directions."""
    monkeypatch.setattr(moments, "_LARGE", large)
    rng = np.random.default_rng(count)
    points = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, dim))
    points = scale * (points + 3 * points.std(axis=0))
    expected = pytest.approx(volume_by_svd(points), rel=1e-6)
    assert moments.volume(points) == expected
    assert Moments.of(points).volume() == expected
    assert moments.volumes(points, np.zeros(count, int), 1) == expected
    assert (Moments.of(points[: count // 2]) + Moments.of(points[count // 2 :])).volume() == expected


def test_classes_beside_one_whose_factorization_fails_are_measured_all_the_same():
    rng = np.random.default_rng(0)
    rows = [1e9 * rng.normal(size=(50, 1)) * np.ones(5), np.full((50, 5), 7.0), rng.normal(size=(50, 5))]
    found = moments.volumes(np.concatenate(rows), np.repeat([0, 1, 2], 50), 3)
    assert found == pytest.approx([volume_by_svd(rows[0]), 0, defined_volume(rows[2])], rel=1e-9)


@pytest.mark.parametrize("wide", [1e3, 1e9, 1e14])
def test_one_wide_coordinate_leaves_the_others_what_they_are(wide):
    """Alone and beside coordinates that depend on each other."""
    rng = np.random.default_rng(0)
    once = rng.normal(size=(400, 3))
    once -= once.mean(axis=0)
    once = np.linalg.qr(once)[0] * math.sqrt(400)  # of covariance I
    for points, variances in (
        (once * [1, wide, 2], [1, wide**2, 4]),
        (once[:, [0, 1, 2, 2]] * [1, wide, 2, 3], [1, wide**2, 13]),
    ):
        expected = 0.5 * np.log2(1 + points.shape[1] * np.array(variances)).sum()
        assert Moments.of(points).volume() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e10])
def test_the_upper_triangle_is_enough(scale):
    """In rows or in columns; also where no Cholesky factorization is possible."""
    points = scale * RNG.normal(size=(30, 2)) @ RNG.normal(size=(2, 5))
    scatter = Moments.of(points).scatter
    expected = moments.volume_of_scatter(scatter, 30, 5)
    upper = np.where(np.tri(5, k=-1, dtype=bool), np.nan, scatter)
    for order in "CF":
        assert moments.volume_of_scatter(np.array(upper, order=order), 30, 5) == expected


rows = strategies.lists(
    strategies.lists(strategies.integers(-50, 50), min_size=3, max_size=3), min_size=0, max_size=12
).map(lambda values: np.array(values, np.float64).reshape(-1, 3))


def assert_same(found, expected):
    assert found.count == expected.count
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-12, atol=1e-9)


@hypothesis.given(strategies.lists(rows, min_size=1, max_size=5), strategies.randoms(use_true_random=False))
@hypothesis.settings(deadline=None, max_examples=60)
def test_moments_add_up(parts, random):
    """In any order and grouping, to those of all rows; whole numbers, so that the rest is close to exact."""
    whole = Moments.of(np.concatenate(parts))
    if whole.count:
        centred = np.concatenate(parts) - np.concatenate(parts).mean(axis=0)
        np.testing.assert_allclose(whole.scatter, centred.T @ centred, rtol=1e-12, atol=1e-9)
    each = [Moments.of(part) for part in parts]
    for index, rest in enumerate(moments.all_but_each(each)):
        assert_same(rest, Moments.of(np.concatenate([np.zeros((0, 3)), *parts[:index], *parts[index + 1 :]])))
    random.shuffle(each)
    while len(each) > 1:
        at = random.randrange(len(each) - 1)
        each[at : at + 2] = [each[at] + each[at + 1]]
    assert_same(each[0], whole)
    np.testing.assert_array_equal(each[0].scatter, each[0].scatter.T)


def test_what_is_left_without_a_wide_part_keeps_its_digits():
    """To subtract it from the whole would leave none."""
    parts = [RNG.normal(size=(40, 4)), 1e9 * RNG.normal(size=(500, 4)), RNG.normal(size=(60, 4))]
    each = [Moments.of(part) for part in parts]
    _, without, _ = moments.all_but_each(each)
    expected = Moments.of(np.concatenate([parts[0], parts[2]]))
    np.testing.assert_allclose(without.scatter, expected.scatter, rtol=1e-12, atol=1e-12)
    whole = list(itertools.accumulate(each, operator.add))[-1]
    assert np.abs(whole.scatter - each[1].scatter - expected.scatter).max() > 1


def test_every_class_is_summarised_from_its_own_rows():
    points, labels = of_counts([3, 0, 5], 2, np.float32)
    seen = []

    def progress(classes, total):
        for each in classes:
            seen.append(total)
            yield each

    found = moments.of_classes(points, labels, 4, lambda rows: rows, progress)
    assert seen == [4] * 4
    for label, rows in enumerate(found):
        assert rows.dtype == np.float64
        np.testing.assert_array_equal(rows, points[labels == label])
        rows += 1  # they are copies
    np.testing.assert_array_equal(found[2], points[labels == 2] + np.float64(1))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_rows_are_sorted_by_class(dtype):
    labels = RNG.integers(0, 5, 200).astype(dtype)
    order, counts = moments.sorted_by_class(labels, 7)
    np.testing.assert_array_equal(order, np.argsort(labels, kind="stable"))
    np.testing.assert_array_equal(counts, np.bincount(labels, minlength=7))


def test_epsilon_must_be_positive():
    with pytest.raises(ValueError, match="epsilon must be a finite number > 0, got 0"):
        moments.volumes(np.ones((3, 2)), np.zeros(3, int), 1, epsilon=0)
