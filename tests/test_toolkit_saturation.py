"""How volumes saturate: the expected volume against formulas and simulation, forecasts against known populations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from dsb_jax.toolkit import moments, saturation


def volumes_of(rows, counts):
    return np.array([moments.volume(rows[:count]) for count in counts])


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("dim", [12, 48])
def test_the_expected_volume_is_the_mean_over_draws(dim, power):
    eigenvalues, counts = 20 * np.arange(1, dim + 1.0) ** -power, np.array([4, 12, 40, 200])
    rng = np.random.default_rng(0)
    drawn = [volumes_of(rng.normal(size=(200, dim)) * np.sqrt(eigenvalues / dim), counts) for _ in range(100)]
    expected = saturation.expected_volume(counts, eigenvalues, np.ones(dim))
    error = np.std(drawn, axis=0) / 10
    np.testing.assert_allclose(np.mean(drawn, axis=0), expected, atol=0.05, rtol=0.01 + 3 * (error / expected).max())


def test_of_many_samples_it_is_the_volume_of_the_population():
    eigenvalues, times = np.array([30.0, 2.0, 0.1]), np.array([1.0, 4.0, 3.0])
    (limit,) = saturation.expected_volume(np.array([10**9]), eigenvalues, times)
    np.testing.assert_allclose(limit, (times * np.log2(1 + eigenvalues)).sum() / 2, rtol=1e-7)


def test_of_large_eigenvalues_it_is_the_determinant_of_a_wishart_matrix():
    """``E ln det`` of m degrees of freedom is ``Σ_j ψ((m + 1 − j)/2) + d·ln 2``.

    Of real numbers it differs from the limit by ``½·ln(1 − d/m)``, whatever d is (Bai and Silverstein, 2004).
    """
    dim, level, m = 20, 1e12, np.array([60, 200, 1000])
    exact = digamma((m[:, None] + 1 - np.arange(1, dim + 1)) / 2).sum(axis=1) + dim * np.log(2 * level / (m + 1))
    found = saturation.expected_volume(m + 1, np.array([level]), np.array([dim]))
    np.testing.assert_allclose(2 * math.log(2) * found + np.log(1 - dim / m) / 2, exact, atol=2e-3)


@given(
    dim=st.sampled_from([1, 2, 64, 768, 4096]),
    level=st.floats(-40, 90),
    power=st.floats(0, 9),
    counts=st.lists(st.integers(2, 10**7), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_derivatives_are_those_of_the_volume(dim, level, power, counts):
    at, counts, step = np.array([level, power]), np.array(counts), 1e-4
    volumes, slopes = saturation._of_power_law(at, counts, dim)
    assert (volumes >= 0).all()
    for which, delta in enumerate(step * np.eye(2)):
        above, below = (saturation._of_power_law(at + sign * delta, counts, dim)[0] for sign in (1, -1))
        np.testing.assert_allclose(
            slopes[:, which], (above - below) / (2 * step), rtol=1e-4, atol=1e-9 * volumes.max() / step
        )


COUNTS = np.array([2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 48, 58, 70, 84, 100, 120])


def population(dim, power=1.0):
    return dim * 2.0 * np.arange(1, dim + 1.0) ** -power


def batches_needed(eigenvalues, first, batch, tolerance):
    counts = first + batch * np.arange(5000)
    volumes = saturation.expected_volume(counts, eigenvalues, np.ones(len(eigenvalues)))
    return 1 + int((np.diff(volumes) < tolerance * volumes[1:]).argmax())


@pytest.mark.parametrize("tolerance", [0.05, 0.01, 0.002])
@pytest.mark.parametrize(("dim", "power"), [(8, 0.0), (64, 1.2), (400, 1.0)])
def test_a_forecast_without_chance_is_exact(dim, power, tolerance):
    eigenvalues = population(dim, power)
    volumes = saturation.expected_volume(COUNTS, eigenvalues, np.ones(dim))
    found = saturation.forecast(COUNTS, volumes, dim, batch=50, tolerance=tolerance)
    wanted = 50 * batches_needed(eigenvalues, 120, 50, tolerance)
    assert abs(found.samples - wanted) <= (0 if dim < 100 else 50)  # eigenvalues in blocks
    assert found.low <= found.samples <= found.high <= 1.2 * found.low + 50
    assert found.counts.tolist() == list(range(120, 120 + int(found.samples) + 1, 50))
    np.testing.assert_allclose(found.volumes[0], volumes[-1])
    assert (np.diff(found.volumes) > 0).all()


def test_intervals_hold_what_comes_about_as_often_as_they_say():
    dim, batch, tolerance = 24, 60, 0.01
    held, ratios = 0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(1500, dim)) * np.sqrt(population(dim) / dim)
        found = saturation.forecast(COUNTS, volumes_of(rows, COUNTS), dim, batch=batch, tolerance=tolerance)
        volumes = volumes_of(rows, range(120, 1501, batch))
        truth = batch * (1 + (np.diff(volumes) < tolerance * volumes[1:]).argmax())
        held += found.low <= truth <= found.high
        ratios.append((120 + found.samples) / (120 + truth))
    assert 26 <= held <= 40  # 80% meant
    assert 0.8 < np.median(ratios) < 1.25


def test_what_cannot_be_forecast():
    volumes = saturation.expected_volume(COUNTS, population(16), np.ones(16))
    few = {"batch": 10, "tolerance": 0.01}
    assert saturation.forecast(COUNTS[:7], volumes[:7], 16, **few) is None
    assert saturation.forecast(COUNTS[:8], volumes[:8], 16, **few) is not None
    assert saturation.forecast(COUNTS, np.zeros(20), 16, **few) is None
    never = saturation.forecast(COUNTS, volumes, 16, batch=100, tolerance=1e-9)
    assert never.samples == never.high == math.inf
    assert len(never.counts) == saturation._BATCHES + 1


def test_counts_long_past_say_nothing():
    volumes = saturation.expected_volume(COUNTS, population(16), np.ones(16))
    wild = np.where(COUNTS * 16 < 120, 99.0, volumes)
    pair = [saturation.forecast(COUNTS, each, 16, batch=30, tolerance=0.005).samples for each in (volumes, wild)]
    assert pair[0] == pair[1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_any_scale_of_the_data(scale):
    rows = scale * np.random.default_rng(0).normal(size=(120, 10))
    found = saturation.forecast(COUNTS, volumes_of(rows, COUNTS), 10, batch=20, tolerance=0.01)
    assert found.low <= found.samples <= found.high
