"""The geometry of classes: each measure against its definition and other people's numbers, and what is made of them."""

import dataclasses
import io
import itertools
import json
import math
import tarfile

import hypothesis
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import strategies
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dsb_jax.toolkit import class_geometry, manifolds, moments, neighbourhoods
from dsb_jax.toolkit.findings import to_json
from dsb_jax.toolkit.points import of

RNG = np.random.default_rng(0)
NAMES = ("cat", "dog", "ship", "one", "none", "same")


def animals(number=60, dim=6):
    """Cat and dog lie together, ship apart; then a class of one point, one of none, and one of equal points."""
    cat, dog, ship = RNG.normal(size=(3, number, dim)) * np.linspace(2, 1, dim)
    ship = ship[: number // 2] + 12.0
    parts = cat, dog + 0.1, ship, RNG.normal(size=(1, dim)), np.zeros((0, dim)), np.full((30, dim), 3.0)
    labels = np.repeat(np.arange(6), [len(part) for part in parts])
    order = RNG.permutation(len(labels))
    return of(np.concatenate(parts)[order], labels[order], NAMES, name="animals")


@pytest.fixture(scope="module")
def found():
    return class_geometry.geometry(animals(), neighbours=8)


def defined_separation(points, labels, num_classes):
    degrees = []
    for label in range(num_classes):
        own, others = points[labels == label], points[labels != label]
        volume = moments.volume(own)
        added = moments.volume(points) - moments.volume(others)
        degrees.append(added / volume if volume > 0 and len(others) else np.nan)
    return np.array(degrees)


@hypothesis.given(
    counts=strategies.lists(strategies.integers(0, 9), min_size=1, max_size=10).filter(any),
    dim=strategies.integers(1, 5),
    seed=strategies.integers(0, 99),
)
@hypothesis.settings(deadline=None, max_examples=20)
def test_separation_is_that_of_all_points_without_each_class(counts, dim, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    points = (rng.normal(size=(len(counts), dim))[labels] + rng.normal(size=(len(labels), dim))).astype(np.float32)
    found = manifolds.separation_degrees(points, labels, len(counts))
    np.testing.assert_allclose(found, defined_separation(points, labels, len(counts)), rtol=1e-8, atol=1e-10)


def test_separation_has_a_direction_and_a_sign():
    points = animals()
    found = manifolds.separation_degrees(points.points, points.labels, 6)
    assert np.isnan(found[3:]).all()
    assert found[2] > 3 * found[:2].max() > 0
    narrow = np.concatenate([RNG.normal(size=(50, 3)), 0.01 * RNG.normal(size=(500, 3))])
    assert manifolds.separation_degrees(narrow, np.repeat([0, 1], [50, 500]), 2)[1] < 0
    assert np.isnan(manifolds.separation_degrees(RNG.normal(size=(5, 2)), np.zeros(5, int), 1)).all()
    halved = manifolds.separation_degrees(points.points, points.labels, 6, epsilon=2.0)
    np.testing.assert_allclose(halved, manifolds.separation_degrees(points.points / 2, points.labels, 6), rtol=1e-9)


def test_separation_keeps_its_digits_beside_a_wide_class():
    points = np.concatenate([RNG.normal(size=(40, 3)), 1e9 * RNG.normal(size=(50, 3)), RNG.normal(size=(30, 3))])
    labels = np.repeat([0, 1, 2], [40, 50, 30])
    found = manifolds.separation_degrees(points, labels, 3)
    np.testing.assert_allclose(found, defined_separation(points, labels, 3), rtol=1e-9, atol=1e-9)


def test_volumes_of_the_authors_package(golden):
    """Theirs has a factor of its own, d over the dimension p of ours; where it overflows ours is finite."""
    file = golden("geometry_volume")
    for case in range(int(file["n_cases"])):
        rows, factor, official = (file[f"{name}{case}"] for name in ("Z", "d", "volume"))
        epsilon = math.sqrt(rows.shape[1] / factor)
        volume = moments.volume(rows, epsilon=epsilon)
        if np.isfinite(official):
            np.testing.assert_allclose(volume, official, rtol=1e-9)
            np.testing.assert_allclose(manifolds.density(rows, epsilon=epsilon), file[f"density{case}"], rtol=1e-9)
        else:
            centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
            gram = np.eye(rows.shape[1]) + factor / len(rows) * centred.T @ centred
            np.testing.assert_allclose(volume, np.linalg.slogdet(gram)[1] / 2 / math.log(2), rtol=1e-12)
    rows = np.random.default_rng(int(file["overflow_seed"])).normal(
        size=(int(file["overflow_m"]), int(file["overflow_p"]))
    )
    assert np.isinf(file["overflow_volume_official"])
    epsilon = math.sqrt(file["overflow_p"] / file["overflow_d"])
    np.testing.assert_allclose(
        moments.volume(rows, epsilon=epsilon), file["overflow_volume_slogdet_reference"], rtol=1e-12
    )


def test_participation_ratio_squares_the_matrix(golden):
    """The authors' package squares its elements, and does not centre."""
    file = golden("geometry_participation_ratio")
    for case in range(3):
        points = file[f"X{case}"]
        found = manifolds.participation_ratio(points)
        np.testing.assert_allclose(found, file[f"matrix_square_centred_reference{case}"], rtol=1e-10)
        official = np.trace(points.T @ points) ** 2 / np.trace((points.T @ points) ** 2)
        np.testing.assert_allclose(official, file[f"official{case}"], rtol=1e-10)


@pytest.mark.parametrize(("count", "dim"), [(50, 4), (5, 30), (2, 3)])
def test_participation_ratio_is_that_of_eigenvalues(count, dim):
    points = RNG.normal(size=(count, dim)) * np.arange(1, dim + 1)
    values = np.linalg.eigvalsh(np.cov(points.T))
    expected = values.sum() ** 2 / np.square(values).sum()
    for scale, offset in ((1, 0), (1e-120, 0), (1e120, 0), (1, 1e6)):
        assert manifolds.participation_ratio(scale * points + offset) == pytest.approx(expected, rel=1e-7)
    assert math.isnan(manifolds.participation_ratio(np.ones((4, 3))))
    assert math.isnan(manifolds.participation_ratio(np.ones((1, 3))))


def test_shapes_compared_as_published(golden):
    """The published measure is a sum over all dimensions."""
    file = golden("geometry_eigenvector_similarity")
    for case in range(2):
        a, b = file[f"X{case}"], file[f"Y{case}"]
        expected = file[f"similarity{case}"]
        np.testing.assert_allclose(a.shape[1] * manifolds.shape_similarity(a, b), expected, rtol=1e-9)
        np.testing.assert_allclose(a.shape[1] * manifolds.shape_similarity(3 * b + 7, a), expected, rtol=1e-9)
        assert manifolds.shape_similarity(a, a) == pytest.approx(1)
        u, v = (np.linalg.eigh(np.cov(each.T))[1][:, ::-1] for each in (a, b))
        first = np.abs(np.einsum("di,di->i", u, v))[:3].mean()
        assert manifolds.shape_similarity(a, b, directions=3) == pytest.approx(first)


def test_equal_eigenvalues_make_shapes_arbitrary():
    """Two draws of one round cloud are as if they had nothing to do with each other."""
    dim = 40
    similarity = [manifolds.shape_similarity(*RNG.normal(size=(2, 400, dim))) for _ in range(8)]
    chance = manifolds.chance_similarity(dim)
    assert np.mean(similarity) == pytest.approx(chance, rel=0.1)
    directions = RNG.normal(size=(2, 20_000, dim))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    assert np.abs(np.sum(directions[0] * directions[1], axis=1)).mean() == pytest.approx(chance, rel=0.03)
    assert [manifolds.chance_similarity(d) for d in (1, 2, 3)] == pytest.approx([1, 2 / np.pi, 1 / 2])


@pytest.mark.parametrize(("count", "dim"), [(1, 4), (3, 5), (4, 4), (6, 3), (5, 1)])
def test_parallelotopes(count, dim):
    """√det of the products of vectors; of too many vectors, the root of all squared volumes that fit (Cauchy–Binet)."""
    points = RNG.normal(size=(count, dim)) + 1
    if count <= dim:
        squared = np.linalg.det(points @ points.T)
    else:
        squared = sum(np.linalg.det(points[list(some)]) ** 2 for some in itertools.combinations(range(count), dim))
    assert 2 ** manifolds.parallelotope_volume(points) == pytest.approx(math.sqrt(squared))
    twice = manifolds.parallelotope_volume(2 * points) - manifolds.parallelotope_volume(points)
    assert twice == pytest.approx(min(count, dim))
    turned = points @ np.linalg.qr(RNG.normal(size=(dim, dim)))[0]
    assert manifolds.parallelotope_volume(turned) == pytest.approx(manifolds.parallelotope_volume(points))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_parallelotopes_of_vectors_that_depend_on_each_other_have_no_volume(scale):
    for count, dim in ((4, 9), (9, 4), (60, 50)):
        flat = scale * RNG.normal(size=(count, 3)) @ RNG.normal(size=(3, dim))
        assert manifolds.parallelotope_volume(flat) == -math.inf
    assert manifolds.parallelotope_volume(np.zeros((2, 3))) == -math.inf
    assert manifolds.parallelotope_volume(np.diag([scale, 1.0])) == pytest.approx(math.log2(scale))


def test_parallelotopes_of_float32_are_as_flat_as_its_rounding_lets_them_be():
    flat = (RNG.normal(size=(60, 20)) @ RNG.normal(size=(20, 50))).astype(np.float32)
    assert manifolds.parallelotope_volume(flat) == -math.inf
    assert class_geometry.geometry(of(flat), neighbours=5).parallelotope.tolist() == [-math.inf]
    whole = RNG.normal(size=(60, 50)).astype(np.float32)
    bits = np.linalg.slogdet(whole.T.astype(np.float64) @ whole)[1] / math.log(4)
    assert manifolds.parallelotope_volume(whole) == pytest.approx(bits)


def test_flat_references_have_the_covariance_and_no_more():
    points = np.abs(RNG.normal(size=(3000, 3))) @ RNG.normal(size=(3, 5))
    flat = manifolds.flat_reference(points, seed=1)
    np.testing.assert_array_equal(flat, manifolds.flat_reference(points, seed=1))
    assert flat.shape == points.shape
    assert np.linalg.matrix_rank(flat, tol=1e-8) == 3
    np.testing.assert_allclose(np.cov(flat.T), np.cov(points.T), atol=0.1 * np.trace(np.cov(points.T)))
    few = RNG.normal(size=(4, 50))
    assert manifolds.flat_reference(few).shape == (4, 50)


def point_cloud(name):
    """Vertices of one of the Stanford models, or skips."""
    path = SHARED / "data" / "pointclouds_core.tar.xz"
    if not path.is_file():
        pytest.skip(f"point clouds are not at {path}")
    with tarfile.open(path) as archive:
        text = archive.extractfile(f"pointclouds/{name}").read().decode()
    if name.endswith(".obj"):
        return np.loadtxt(line[2:] for line in text.splitlines() if line.startswith("v "))
    head, _, body = text.partition("end_header\n")
    number = int(head.partition("element vertex ")[2].split()[0])
    return np.loadtxt(io.StringIO(body), max_rows=number, usecols=(0, 1, 2))


@pytest.mark.parametrize(
    "name",
    [
        "bunny/bun_zipper_res3.ply",
        pytest.param("bunny/bun_zipper.ply", marks=pytest.mark.slow),
        pytest.param("dragon/dragon_23k_vcglib_ascii_stanford_coords.ply", marks=pytest.mark.slow),
        pytest.param("armadillo/armadillo_43k.obj", marks=pytest.mark.slow),
    ],
)
def test_volumes_of_stanford_models_grow_with_their_size(name):
    """Figure 6 of the paper; and they are curved surfaces."""
    cloud = point_cloud(name)
    found = class_geometry.geometry(of(cloud, space="cloud", name="model"))
    assert (np.diff(found.scaled[0]) > 0).all()
    centre = cloud.mean(axis=0)
    for factor, volume in zip(class_geometry.FACTORS[::10], found.scaled[0, ::10], strict=True):
        assert moments.volume(factor * (cloud - centre)) == pytest.approx(volume, rel=1e-8)
    assert found.tangent_dimension == 2
    assert found.dimension[0] == pytest.approx(2.3, abs=0.3)
    assert 0.05 < found.curvature[0] < 0.7 * found.flat_curvature[0]
    assert "volume grows with every step" in found.reading()
    assert set(found.figures()) == {"cloud_1", "scaling"}


def test_measures_are_those_of_the_functions(found):
    points = animals()
    assert found.class_names == NAMES
    np.testing.assert_array_equal(found.counts, [60, 60, 30, 1, 0, 30])
    again = class_geometry.geometry(points, neighbours=8)
    for label in range(3):
        own = points.rows_of(label)
        near = neighbourhoods.nearest(own, 8)
        expected = {
            "volumes": moments.volume(own),
            "densities": manifolds.density(own),
            "participation": manifolds.participation_ratio(own),
            "parallelotope": manifolds.parallelotope_volume(own),
            "dimension": neighbourhoods.tight_local_estimate(own, near).mean(),
            "curvature": neighbourhoods.curvature(own, near, again.tangent_dimension).mean(),
        }
        for name, value in expected.items():
            assert getattr(again, name)[label] == pytest.approx(value), name
    for a, b in itertools.combinations(range(3), 2):
        expected = manifolds.shape_similarity(points.rows_of(a), points.rows_of(b))  # of 6 dimensions, fewer than 8
        assert again.similarity[a, b] == again.similarity[b, a] == pytest.approx(expected)
    np.testing.assert_array_equal(again.separation, manifolds.separation_degrees(points.points, points.labels, 6))
    assert again.clouds == {}
    assert again.scaled is None


@pytest.mark.parametrize("space", ["cloud", "feature"])
def test_point_clouds_do_not_stand_apart(space):
    """Their coordinates have nothing to do with each other's."""
    points = of(RNG.normal(size=(60, 3)), np.repeat([0, 1], 30), space=space, name="models")
    assert ("stands apart" in class_geometry.geometry(points).reading()) == (space == "feature")


def test_classes_without_a_measure_are_nan_and_named(found):
    for name in ("dimension", "curvature", "flat_curvature"):
        values = getattr(found, name)
        assert np.isfinite(values[:3]).all()
        assert np.isnan(values[3:]).all(), name
    np.testing.assert_array_equal(found.measured, [60, 60, 30, 0, 0, 0])
    assert np.isnan(found.participation[3:]).all()
    np.testing.assert_array_equal(found.volumes[3:], 0)
    reading = found.reading()
    assert "one, none have no dimension or curvature, which take more than 8 points" in reading
    said = "same has no separation, dimension or curvature, as its points hardly differ beside epsilon."
    assert said in reading
    assert "ship stands apart most" in reading
    assert "\n" not in reading


def test_a_table_a_file_and_figures(found):
    headings, rows = found.table()
    assert {len(row) for row in rows} == {len(headings)}
    assert rows[4] == ("none", "0", "0", "–", "–", "–", "–", "–", "–", "–")
    written = json.loads(to_json(found.as_dict()))
    measures = list(written["classes"].values())
    assert measures[3]["separation"] is None
    assert [of_class["dimension"] for of_class in measures[:3]] == pytest.approx(found.dimension[:3].tolist())
    figures = found.figures()
    assert set(figures) == {"measures", "shapes"}
    for caption, figure in figures.values():
        assert caption.startswith("animals: ")
        figure.draw_without_rendering()
    _, figure = figures["shapes"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "dog", "ship"]


def test_one_class_that_is_no_cloud_has_its_measures_drawn():
    found = class_geometry.geometry(of(RNG.normal(size=(60, 4)), name="embeddings of cats"), neighbours=8)
    assert set(found.figures()) == {"measures"}
    _, figure = found.figures()["measures"]
    figure.draw_without_rendering()
    dimension, curvature = figure.axes  # one alone stands apart from nothing
    assert (dimension.get_title(loc="left"), curvature.get_title(loc="left")) == ("dimension", "curvature (rad)")
    np.testing.assert_array_equal(dimension.lines[0].get_xdata(), found.dimension)
    assert dimension.get_yticklabels()[0].get_text() == "embeddings of cats (60)"


def test_numbers_and_names_of_the_measures_can_be_told_apart():
    names = ["a_very_long_name_of_the_first", "a_very_long_name_of_the_second", "bun_zipper_res3"]
    found = class_geometry.geometry(animals(), neighbours=8)
    few = {"counts": found.counts[:3], "separation": np.array([0.012, 0.05, 0.087])}
    few |= {name: getattr(found, name)[:3] for name in ("dimension", "curvature", "flat_curvature")}
    found = dataclasses.replace(found, class_names=tuple(names), similarity=None, **few)
    _, figure = found.figures()["measures"]
    figure.draw_without_rendering()
    labels = {label.get_text().rpartition(" ")[0] for label in figure.axes[0].get_yticklabels()}
    assert labels == {"a_very_lon…the_first", "a_very_lon…he_second", "bun_zipper_res3"}
    renderer = FigureCanvasAgg(figure).get_renderer()
    numbers = [
        label.get_window_extent(renderer)
        for axes in figure.axes
        for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if axes.get_xlim()[0] <= place <= axes.get_xlim()[1]
    ]
    assert len(numbers) > 3
    assert not any(one.overlaps(other) for one, other in itertools.combinations(numbers, 2))


def test_points_that_differ_by_less_than_epsilon_are_not_called_equal():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(30, 3)), 1e-12 * rng.normal(size=(60, 3))])
    reading = class_geometry.geometry(of(rows, np.repeat([0, 1, 2], 30)), neighbours=8).reading()
    said = "1, 2 have no separation, dimension or curvature, as their points hardly differ beside epsilon."
    assert said in reading
    assert "equal" not in reading


def test_nothing_is_said_of_learning_point_clouds():
    rows, labels = np.random.default_rng(0).normal(size=(120, 3)), np.repeat([0, 1], 60)
    learnt, clouds = (
        class_geometry.geometry(of(rows, labels, space=space), neighbours=8).reading() for space in ("feature", "cloud")
    )
    assert "harder to learn" in learnt
    assert "harder to learn" not in clouds
    assert "has most dimensions about a point" in clouds


def test_point_clouds_do_not_stand_apart_from_each_other():
    rows, labels = np.random.default_rng(0).normal(size=(120, 3)), np.repeat([0, 1], 60)
    found = class_geometry.geometry(of(rows, labels, space="cloud"), neighbours=8)
    assert np.isnan(found.separation).all()
    assert "stands apart" not in found.reading()
    caption, figure = found.figures()["measures"]
    assert "stands apart" not in caption
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["dimension", "curvature (rad)"]


def test_classes_of_unequal_sizes_are_not_compared():
    reading = class_geometry.geometry(animals(), neighbours=8).reading()
    assert "which says little" not in reading
    points = of(RNG.normal(size=(120, 3)), np.repeat([0, 1], [20, 100]))
    found = class_geometry.geometry(points, neighbours=8)
    assert "here from 20 to 100; rows=20 measures all alike" in found.reading()
    alike = class_geometry.geometry(points, neighbours=8, rows=20)
    np.testing.assert_array_equal(alike.measured, 20)
    assert "which says little" not in alike.reading()
    np.testing.assert_array_equal(alike.counts, [20, 100])
    np.testing.assert_array_equal(class_geometry.geometry(points, neighbours=8, rows=20).dimension, alike.dimension)
    assert class_geometry.geometry(points, neighbours=8, rows=20, seed=1).dimension[1] != alike.dimension[1]


def test_noise_is_not_called_curved():
    rng = np.random.default_rng(0)
    flat = of(rng.normal(size=(600, 5)), np.repeat([0, 1], 300))
    assert "No curved surface can be seen" in class_geometry.geometry(flat, dimension=2).reading()
    sphere = rng.normal(size=(600, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert (
        "Points lie near a surface of 2 dimensions"
        in class_geometry.geometry(of(sphere, np.repeat([0, 1], 300)), dimension=2).reading()
    )


def test_a_thousand_classes_are_shown():
    rng = np.random.default_rng(0)
    counts = np.r_[np.full(5, 12), np.full(995, 2)]
    found = class_geometry.geometry(
        of(rng.normal(size=(counts.sum(), 3)), np.repeat(np.arange(1000), counts)), neighbours=8
    )
    assert found.similarity is None
    assert np.isfinite(found.separation).all()
    figures = found.figures()
    assert set(figures) == {"measures"}
    figures["measures"][1].draw_without_rendering()
    assert "5, 6, 7 and 992 more have no dimension" in found.reading()
    assert len(found.reading()) < 800


def test_where_no_class_is_measured_the_rest_is_there():
    found = class_geometry.geometry(of(RNG.normal(size=(20, 3)), np.repeat([0, 1], 10)))
    assert np.isnan(found.curvature).all()
    assert found.tangent_dimension == 0
    assert np.isfinite(found.separation).all()
    assert "0, 1 have no dimension or curvature, which take more than 20 points" in found.reading()
    for _, figure in found.figures().values():
        figure.draw_without_rendering()


def test_progress_passes_every_class_four_times():
    totals = []

    def progress(classes, total):
        totals.append(total)
        return classes

    points = of(RNG.normal(size=(150, 3)), np.repeat([0, 1, 2], [50, 50, 50]))
    class_geometry.geometry(points, neighbours=8, progress=progress)
    assert totals == [3, 2, 3, 3]  # separation in groups of two


def test_progress_of_one_class_passes_its_blocks(monkeypatch):
    monkeypatch.setattr(neighbourhoods, "_HELD", 2**9)
    totals = []

    def progress(items, total):
        totals.append(total)
        return items

    points = of(RNG.normal(size=(150, 3)))
    found = class_geometry.geometry(points, neighbours=8, progress=progress)
    assert totals[:2] == [1, 1]  # the class as a whole
    assert len(totals) == 2 + 1 + 2 * 2  # dimension; tangent spaces and angles, of points and of noise
    assert min(totals[2:]) > 1
    assert found.curvature == class_geometry.geometry(points, neighbours=8).curvature


def test_bad_input_is_one_sentence():
    points = of(RNG.normal(size=(50, 3)))
    with pytest.raises(ValueError, match="neighbours must be an integer >= 2, got 1"):
        class_geometry.geometry(points, neighbours=1)
    with pytest.raises(ValueError, match="rows must be an integer >= 21, got 20"):
        class_geometry.geometry(points, rows=20)
    with pytest.raises(ValueError, match="dimension of tangent spaces must be at most 3 with 20 neighbours in 3 dim"):
        class_geometry.geometry(points, dimension=4)
    with pytest.raises(ValueError, match="a and b must be points of as many dimensions, got 3 and 2"):
        manifolds.shape_similarity(np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="directions must be at most the 3 dimensions of the points, got 4"):
        manifolds.shape_similarity(np.ones((4, 3)), np.ones((4, 3)), directions=4)
    with pytest.raises(ValueError, match="factors must be a vector of finite numbers > 0"):
        manifolds.scaled_volumes(np.ones((4, 3)), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 2 at position 1"):
        manifolds.separation_degrees(np.ones((2, 3)), np.array([0, 2]), 2)
    with pytest.raises(ValueError, match="points must be finite, got NaN or infinity in row 1"):
        manifolds.separation_degrees(np.array([[0.0], [np.nan]]), np.array([0, 1]), 2)
