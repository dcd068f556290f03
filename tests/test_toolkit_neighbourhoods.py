"""What neighbourhoods tell: against other people's numbers, surfaces of which the answer is known, and brute force."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from dsb_jax.toolkit import neighbourhoods
from dsb_jax.toolkit.neighbourhoods import curvature, nearest, tangent_dimension, tangent_spaces, tight_local_estimate


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def torus(number=400, dim=5):
    """A surface in a turned subspace of more dimensions."""
    around, through = np.random.default_rng(1).uniform(0, 2 * np.pi, (2, number))
    ring = 3 + np.cos(through)
    points = np.stack([ring * np.cos(around), ring * np.sin(around), np.sin(through)], axis=1)
    return points @ rotation(dim)[:3]


def sphere(number, radius=1.0):
    """Evenly spread points (Fibonacci's)."""
    at = np.arange(number) + 0.5
    height, angle = 1 - 2 * at / number, np.pi * (1 + 5**0.5) * at
    across = np.sqrt(1 - height**2)
    return radius * np.stack([across * np.cos(angle), across * np.sin(angle), height], axis=1)


def published_curvature(points, near):
    """The authors' formula, as the notes on the golden files describe it: by left singular vectors of neighbours.

    arccos(Σ σ(U_iᵀ·U_j) / (‖Σ_i‖·‖Σ_j‖)) of the singular value decompositions U·Σ·Vᵀ of neighbours less their mean.
    """
    spaces, widths = [], []
    for own in near:
        u, s, _ = np.linalg.svd(points[own] - points[own].mean(axis=0), full_matrices=False)
        spaces.append(u)
        widths.append(np.linalg.norm(s))
    angles = [
        [
            np.arccos(np.clip(np.linalg.svd(spaces[i].T @ spaces[j])[1].sum() / (widths[i] * widths[j]), -1, 1))
            for j in own
        ]
        for i, own in enumerate(near)
    ]
    return np.mean(angles, axis=1)


def defined_curvature(points, near, dimension):
    """Mean angles of tangent spaces, from their principal angles."""
    spaces = []
    for own in near:
        spread = points[own] - points[own].mean(axis=0)
        spaces.append(np.linalg.svd(spread)[2][:dimension].T)
    return np.array(
        [
            np.mean([np.arccos(np.sqrt(np.mean(np.cos(subspace_angles(spaces[i], spaces[j])) ** 2))) for j in own])
            for i, own in enumerate(near)
        ]
    )


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(("k", "key"), [(20, "pointwise{}"), (10, "pointwise_k10_{}")])
def test_tle_is_that_of_scikit_dimension(golden, case, k, key):
    file = golden("geometry_tle")
    points = file[f"X{case}"]
    found = tight_local_estimate(points, nearest(points, k))
    np.testing.assert_allclose(found, file[key.format(case)], rtol=1e-9)
    np.testing.assert_allclose(found.mean(), file[f"dimension{'' if k == 20 else '_k10_'}{case}"], rtol=1e-9)


def test_tle_of_cubes_is_near_their_dimension():
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 3):
        points = rng.uniform(size=(1500, dimension)) @ rotation(6)[:dimension]
        assert tight_local_estimate(points, nearest(points, 20)).mean() == pytest.approx(dimension, rel=0.15)


def test_points_that_coincide_tell_no_dimension():
    points = np.concatenate([np.ones((6, 2)), np.random.default_rng(0).uniform(2, 3, size=(50, 2))])
    found = tight_local_estimate(points, nearest(points, 5))
    assert np.isnan(found[:6]).all()
    assert np.isfinite(found[6:]).all()
    twice = np.repeat(torus(), 2, axis=0)  # every point has one at distance 0
    np.testing.assert_allclose(
        tight_local_estimate(twice, nearest(twice, 20)).mean(),
        tight_local_estimate(torus(), nearest(torus(), 20)).mean(),
        rtol=0.3,
    )


@pytest.mark.parametrize("case", range(4))
def test_the_published_curvature_is_another(golden, case):
    """It is reproduced, and depends on the order of neighbours and on the scale of the data; this one does not."""
    file = golden("geometry_curvature")
    points = file[f"X{case}"]
    near = nearest(points, int(file[f"k{case}"]))
    published = published_curvature(points, near)
    np.testing.assert_allclose(published, file[f"local_angle{case}"], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(published.mean(), file[f"mean_angle{case}"], rtol=1e-8)

    ours = curvature(points, near, 2)
    assert np.abs(ours - published).max() > 0.1
    np.testing.assert_array_equal(published_curvature(points / 1000, near), 0.0)  # clipped
    assert published_curvature(10 * points, near).min() > np.arccos(0.5)  # towards π/2, whatever the points
    np.testing.assert_allclose(curvature(points / 1000, near, 2), ours, rtol=1e-8)
    np.testing.assert_allclose(curvature(10 * points, near, 2), ours, rtol=1e-8)
    shuffled = np.random.default_rng(0).permuted(near, axis=1)
    np.testing.assert_allclose(curvature(points, shuffled, 2), ours, rtol=1e-8)
    other = np.abs(published_curvature(points, shuffled) - published).max()
    if points.shape[1] < near.shape[1]:
        assert other > 0.01
    else:  # U has all k dimensions, and only the widths are left of the formula
        assert other < 1e-8


@pytest.mark.parametrize(("dim", "k", "dimension"), [(3, 8, 2), (3, 8, 1), (10, 6, 3), (10, 6, 5), (2, 5, 2)])
def test_curvature_is_that_of_principal_angles(dim, k, dimension):
    points = np.random.default_rng(0).normal(size=(60, dim)) * np.arange(1, dim + 1)
    near = nearest(points, k)
    expected = defined_curvature(points, near, dimension)
    np.testing.assert_allclose(curvature(points, near, dimension), expected, rtol=1e-7, atol=1e-7)
    if dimension == dim:
        np.testing.assert_allclose(expected, 0, atol=1e-7)


@pytest.mark.parametrize("held", [1, 2**11, 2**20])
def test_blocks_change_nothing(held, monkeypatch):
    points, near = torus(), nearest(torus(), 12)
    expected = [measure(points, near) for measure in (tight_local_estimate, curvature, tangent_dimension)]
    monkeypatch.setattr(neighbourhoods, "_HELD", held)
    for measure, values in zip((tight_local_estimate, curvature, tangent_dimension), expected, strict=True):
        np.testing.assert_allclose(measure(points, near), values, rtol=1e-12)


@pytest.mark.parametrize("measure", [tight_local_estimate, curvature])
def test_only_shape_counts(measure):
    """Turned, moved, scaled, in another order of points or neighbours: the same of every point."""
    points, near = torus(), nearest(torus(), 12)
    expected = measure(points, near)
    assert np.ptp(expected) > 0.1
    moved = 7.0 + points @ rotation(5, seed=2)
    np.testing.assert_array_equal(nearest(moved, 12), near)
    np.testing.assert_allclose(measure(moved, near), expected, rtol=1e-8)
    np.testing.assert_allclose(measure(points + 1e6, near), expected, rtol=1e-5)
    for scale in (1e-200, 1e-3, 1e5, 1e200):
        np.testing.assert_array_equal(nearest(scale * points, 12), near)
        np.testing.assert_allclose(measure(scale * points, near), expected, rtol=1e-8)
    order = np.random.default_rng(3).permutation(len(points))
    np.testing.assert_allclose(measure(points[order], nearest(points[order], 12)), expected[order], rtol=1e-8)
    shuffled = np.random.default_rng(4).permuted(near, axis=1)
    np.testing.assert_allclose(measure(points, shuffled), expected, rtol=1e-8)


@pytest.mark.parametrize("k", [2, 4, 10])
def test_curvature_of_a_circle(k):
    """The tangents of the nearest on either side turn by 1, 2, … k/2 times 2π/n."""
    angles = 2 * np.pi * np.arange(90) / 90
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ rotation(4)[:2]
    expected = 2 * np.pi / 90 * (k / 2 + 1) / 2
    np.testing.assert_allclose(curvature(circle, nearest(circle, k), 1), expected, rtol=1e-6)


def test_curvature_of_a_cylinder():
    """Of the four nearest two are beside it, where one of two directions turns, and two along it, where none does."""
    turn = 2 * np.pi / 40
    around, along = np.meshgrid(np.arange(40) * turn, np.arange(12) * turn)
    points = np.stack([np.cos(around), np.sin(around), along], axis=2).reshape(-1, 3)
    found = curvature(points, nearest(points, 4), 2).reshape(12, 40)[3:-3]  # without those near the edges
    np.testing.assert_allclose(found, np.arccos(np.sqrt((1 + np.cos(turn) ** 2) / 2)) / 2, rtol=1e-6)


def test_a_plane_is_flat():
    plane = np.random.default_rng(0).normal(size=(300, 2)) @ rotation(5)[:2] + 3.0
    near = nearest(plane, 10)
    assert tangent_dimension(plane, near) == 2
    np.testing.assert_allclose(curvature(plane, near), 0, atol=1e-7)
    spaces = tangent_spaces(plane, near, 2)
    np.testing.assert_allclose(spaces @ spaces.swapaxes(1, 2), np.broadcast_to(np.eye(2), (300, 2, 2)), atol=1e-12)


def test_a_larger_sphere_bends_less():
    """Of points as close together, half as much at twice the radius; of as many points, the same."""
    one = sphere(500)
    bends = curvature(one, nearest(one, 12)).mean()
    for radius in (2, 3):
        larger = sphere(500 * radius**2, radius)
        assert curvature(larger, nearest(larger, 12)).mean() == pytest.approx(bends / radius, rel=0.05)
    assert curvature(5 * one, nearest(5 * one, 12)).mean() == pytest.approx(bends)
    assert tangent_dimension(one, nearest(one, 12)) == 2


def test_where_there_is_no_tangent_space_there_is_no_curvature():
    """In a line there is none of two dimensions, nor where all neighbours coincide."""
    line = np.linspace(0, 1, 40)[:, None] ** 2 * [[1.0, 2.0, 3.0]]
    assert np.isnan(curvature(line, nearest(line, 5), 2)).all()
    np.testing.assert_allclose(curvature(line, nearest(line, 5)), 0, atol=1e-7)
    points = np.concatenate([np.zeros((6, 3)), 5 + np.random.default_rng(0).normal(size=(50, 3))])
    found = curvature(points, nearest(points, 5), 2)
    assert np.isnan(found[:6]).all()
    assert np.isfinite(found[6:]).all()
    same = np.ones((30, 3))
    assert np.isnan(curvature(same, nearest(same, 5))).all()
    assert np.isnan(tight_local_estimate(same, nearest(same, 5))).all()


def test_bad_input_is_one_sentence():
    points = torus(30)
    with pytest.raises(ValueError, match="points must be more than neighbours=30, got 30"):
        nearest(points, 30)
    with pytest.raises(ValueError, match="neighbours must be an integer >= 1, got 0"):
        nearest(points, 0)
    with pytest.raises(ValueError, match="points must be finite, got NaN or infinity in row 3"):
        nearest(np.where(np.arange(30)[:, None] == 3, np.nan, points), 4)
    with pytest.raises(ValueError, match=r"points must have shape \[samples, dim\] and not be empty, got \[30\]"):
        tight_local_estimate(points[:, 0], nearest(points, 4))
    with pytest.raises(ValueError, match=r"near must be rows \[29, neighbours\], got int64 \[30, 4\]"):
        curvature(points[1:], nearest(points, 4), 1)
    with pytest.raises(ValueError, match=r"near must hold rows in \[0, 30\), got 1 to 30"):
        curvature(points, nearest(points, 4) + 1, 1)
    with pytest.raises(
        ValueError, match=r"dimension of tangent spaces must be at most 3 with 4 neighbours in 5 dim.*got 4"
    ):
        curvature(points, nearest(points, 4), 4)
    with pytest.raises(ValueError, match="dimension must be an integer >= 1, got 0"):
        tangent_spaces(points, nearest(points, 4), 0)


def test_progress_passes_all_blocks():
    points, seen = torus(), []

    def progress(blocks, total):
        for block in blocks:
            seen.append(total)
            yield block

    near = nearest(points, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbourhoods, "_HELD", 2**14)
        tight_local_estimate(points, near, progress=progress)
    assert len(seen) == seen[0] > 1
