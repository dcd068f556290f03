"""Scales of classes, and how their volume grows, against recomputation in float64 and the core's float32."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsb_jax
from dsb_jax.toolkit import class_scales, findings, growth, points
from dsb_jax.toolkit.moments import Moments

NAMES = ("ant", "bee", "cow", "dog")


def clusters(counts, dim=6, seed=0, spread=1.0):
    """Gaussian classes of different spreads about different centres, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centers = 5.0 * rng.normal(size=(len(counts), dim))
    spreads = spread * rng.uniform(0.3, 2.0, (len(counts), dim))
    return points.of(centers[labels] + spreads[labels] * rng.normal(size=(len(labels), dim)), labels)


def volume(rows):
    """Eq. 3, as it is written."""
    centred = rows - rows.mean(axis=0)
    return (
        0.5 * np.linalg.slogdet(np.eye(rows.shape[1]) + rows.shape[1] / len(rows) * centred.T @ centred)[1] / np.log(2)
    )


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_scales_are_the_core_functions_of_volumes_and_centres(alpha):
    cloud = clusters([40, 7, 3, 90])
    found = class_scales.scales(cloud, alpha=alpha)
    single = cloud.points.astype(np.float32)
    np.testing.assert_allclose(found.volume, [volume(cloud.rows_of(i)) for i in range(4)], rtol=1e-12)
    np.testing.assert_allclose(found.volume, dsb_jax.class_volumes(single, cloud.labels, 4), rtol=1e-5)
    centers = dsb_jax.class_centers(single, cloud.labels, 4)
    np.testing.assert_allclose(found.interclass, dsb_jax.interclass_weights(centers, alpha), rtol=1e-5)
    expected = dsb_jax.semantic_scales(found.volume.astype(np.float32), centers, alpha)
    np.testing.assert_allclose(found.scale, expected, rtol=1e-5)
    np.testing.assert_allclose(found.effective_number, (1 - 0.9999**cloud.counts) / (1 - 0.9999), rtol=1e-5)


def test_moments_of_parts_have_the_scales_of_the_whole():
    cloud = clusters([40, 7, 3, 90])
    parts = []
    for label in range(4):
        rows = cloud.rows_of(label)
        parts.append(Moments.of(rows[:2]) + Moments.of(rows[2:]))
    found, whole = class_scales.of_moments(parts, cloud.class_names), class_scales.scales(cloud)
    assert found.alpha == whole.alpha == 2.0  # 90 samples are more than twice 3
    for measure in ("samples", "effective_number", "volume", "interclass", "scale"):
        np.testing.assert_allclose(getattr(found, measure), getattr(whole, measure), rtol=1e-6)


@pytest.mark.parametrize(("counts", "alpha"), [([50, 26], 1.0), ([50, 25], 2.0), ([9, 9], 1.0), ([9, 0], 2.0)])
def test_alpha_is_2_for_a_long_tail(counts, alpha):
    labels = np.repeat([0, 1], counts)
    cloud = points.of(np.random.default_rng(0).normal(size=(len(labels), 3)), labels, ["a", "b"])
    assert class_scales.scales(cloud).alpha == alpha


def test_a_far_origin_costs_no_digits():
    near = clusters([30, 20, 10])
    far = points.of(near.points + 1e7, near.labels)
    found, expected = class_scales.scales(far), class_scales.scales(near)
    np.testing.assert_allclose(found.volume, expected.volume, rtol=1e-6)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-5)


def test_classes_that_cannot_be_measured_are_wanted_first():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    cloud = np.random.default_rng(0).normal(size=(7, 3))
    cloud[5:] = 4.0  # two equal samples
    found = class_scales.scales(points.of(cloud, labels, NAMES))
    assert np.isnan(found.scale).tolist() == [False, True, False, True]
    assert np.isnan(found.interclass).tolist() == [False, False, False, True]
    assert found.volume[1:].tolist() == [0, 0, 0]
    assert [NAMES[i] for i in found.poorest_first] == ["bee", "dog", "cow", "ant"]
    assert "Augment or collect first: bee, dog, cow." in found.reading()
    assert "2 of 4 classes have fewer than two samples" in found.reading()
    assert found.imbalance()["scale"] == np.inf
    assert json.loads(findings.to_json(found.as_dict()))["classes"]["dog"]["scale"] is None


def test_the_reading_of_balanced_data_says_so():
    found = class_scales.scales(clusters([30, 30, 30]))
    ratio = found.scale.max() / found.scale.min()
    assert found.reading().startswith(
        f"All classes have the same number of samples, yet the largest scale is {ratio:.3g} times the smallest."
    )


def test_one_class_and_constant_points_are_told_as_they_are():
    assert "no imbalance" in class_scales.scales(points.of(np.random.default_rng(0).normal(size=(9, 2)))).reading()
    constant = points.of(np.ones((6, 2)), np.repeat([0, 1], 3))
    assert class_scales.scales(constant).reading() == "No class has samples that differ, so none has a volume."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.5}, "alpha must be a finite number >= 1, got 0.5"),
        ({"epsilon": 0.0}, "epsilon must be a finite number > 0, got 0.0"),
        ({"epsilon": 1e-200}, "epsilon must be at least 1e-100, or volumes overflow, got 1e-200"),
        ({"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        class_scales.scales(clusters([3, 3]), **options)


@pytest.mark.parametrize("classes", [1, 3, 30, 31, 1000])
def test_tables_and_plots_are_of_any_number_of_classes(classes):
    cloud = clusters(np.random.default_rng(1).integers(2, 9, classes), dim=3)
    found = class_scales.scales(cloud)
    headings, rows = found.table()
    assert len(rows) == classes
    assert {len(row) for row in rows} == {len(headings)}
    figures = found.figures()
    assert set(figures) == ({"scales", "radar"} if classes >= 3 else {"scales"})
    shown = {text.get_text() for text in figures["scales"][1].axes[0].get_yticklabels()}
    assert (set(cloud.class_names) <= shown) == (classes <= 30)


@given(seed=st.integers(0, 2**31), dim=st.integers(1, 6), samples=st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_growth_is_the_volume_of_the_first_samples_in_each_order(seed, dim, samples):
    rows = np.random.default_rng(seed).normal(size=(samples, dim)) + 100.0
    found = growth.marginal(points.of(rows), counts=range(1, 16), draws=2, seed=seed)
    assert found.counts[0].tolist() == list(range(1, samples + 1))
    for draw in range(2):
        order = np.random.default_rng([seed, 0, draw]).permutation(samples)
        expected = [volume(rows[order[:count]]) for count in found.counts[0]]
        np.testing.assert_allclose(found.volumes[0][draw], expected, rtol=1e-7, atol=1e-7)


def test_growth_ends_with_all_samples_of_every_class():
    cloud = clusters([40, 7, 0, 1], dim=12)
    cloud = points.of(cloud.points, cloud.labels, NAMES)
    found = growth.marginal(cloud, counts=[2, 5, 10], draws=3)
    assert [counts.tolist() for counts in found.counts] == [[2, 5, 10, 20, 40], [2, 3, 4, 5, 7], [], [1]]
    np.testing.assert_allclose(found.final[:2], class_scales.scales(cloud).volume[:2], rtol=1e-9)
    assert np.ptp(found.volumes[0][:, -1]) < 1e-9  # whatever the order
    assert np.isnan(found.final[2])
    assert found.final[3] == 0
    assert found.samples.tolist() == [40, 7, 0, 1]


def test_growth_that_saturates_is_told_from_growth_that_goes_on():
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.normal(size=(2, 1)), 40, axis=1)[:, :1] * np.ones((2, 40))  # two points ...
    saturated = np.tile(flat, (100, 1)) + 0.001 * rng.normal(size=(200, 40))  # ... again and again
    growing = 10.0 * rng.normal(size=(20, 40))
    cloud = points.of(np.concatenate([saturated, growing]), np.repeat([0, 1], [200, 20]), ["old", "new"])
    found = growth.marginal(cloud)
    assert found.last_doubling[0] < 0.05 < found.last_doubling[1]
    assert "In 1 it adds less than 5%" in found.reading()
    assert "More samples are worth most for new." in found.reading()


def test_the_first_samples_add_more_than_in_proportion():
    # In many dimensions each further sample is a new direction: S' ~ (m - 1)/2·log2(1 + d/m·σ²·d/d).
    cloud = points.of(np.random.default_rng(0).normal(size=(64, 512)))
    found = growth.marginal(cloud, counts=[1, 2, 3, 4, 8, 16, 32], draws=3)
    slopes = found.exponents(0)
    assert np.isnan(slopes[0])  # from a volume of 0 on
    assert (slopes[1:3] > 1).all()
    assert found.linear_until[0] >= 4
    line = growth.marginal(points.of(np.random.default_rng(0).normal(size=(64, 1))), counts=[4, 8, 16, 32])
    assert np.isnan(line.linear_until[0])
    assert "How it begins cannot be said of counts from 4 on." in line.reading()
    wide = points.of(1e6 * np.random.default_rng(0).normal(size=(64, 1)))  # of which two samples have nearly all
    assert "nowhere faster than in proportion" in growth.marginal(wide, counts=[2, 4, 8, 16, 32]).reading()


@pytest.mark.parametrize("options", [{"counts": [0]}, {"counts": [1.5]}, {"draws": 0}, {"seed": -1}, {"epsilon": -1.0}])
def test_wrong_settings_of_growth_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        growth.marginal(clusters([3]), **options)


@pytest.mark.parametrize("classes", [1, 12, 200])
def test_growth_is_drawn_of_at_most_ten_classes(classes):
    found = growth.marginal(clusters(np.full(classes, 6), dim=3), counts=[2, 4], draws=2)
    figures = found.figures()
    assert len(found.drawn_classes) == min(classes, 10)
    assert len(figures["growth"][1].axes[0].lines) == min(classes, 10)
    headings, rows = found.table()
    assert {len(row) for row in rows} == {len(headings)}
    assert json.loads(findings.to_json(found.as_dict()))["draws"] == 2


def test_progress_passes_every_class_and_draw():
    seen = []

    def progress(items, total):
        seen.append(total)
        return items

    cloud = clusters([5, 5, 5])
    class_scales.scales(cloud, progress=progress)
    growth.marginal(cloud, draws=2, progress=progress)
    assert seen == [1, 6]  # small classes make a block
