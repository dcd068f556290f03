"""Parents by volume against rows that are really put together, and the tree of classes whose parents nobody knows."""

import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

import dsb_jax
from dsb_jax.data.builders.cifar_files import CIFAR10, CIFAR100
from dsb_jax.evaluation import drawing
from dsb_jax.toolkit import agglomeration, class_tables, findings, matching, points, streaming
from dsb_jax.toolkit.matching import NONE, Hierarchy
from dsb_jax.toolkit.moments import Moments

# Table 12 of the paper: ratios of dogs, cats and monkeys with each child.
CHILDREN = ("Poodles", "Samoyeds", "Labradors", "Persian", "Siamese", "Chimpanzee", "Gorilla")
PARENTS = ("Dogs", "Cats", "Monkeys")
TABLE_12 = np.array(
    [
        [1.06, 1.72, 1.94],
        [1.03, 1.68, 1.89],
        [1.05, 1.64, 1.83],
        [1.75, 1.08, 1.87],
        [1.69, 1.02, 1.84],
        [1.87, 1.83, 1.06],
        [1.82, 1.89, 1.02],
    ]
)
REAL = np.array([0, 0, 0, 1, 1, 2, 2])


def a_hierarchy(ratios=TABLE_12, real=REAL, children=CHILDREN, parents=PARENTS, sizes=1000):
    counts = np.full(len(children), 1000), np.broadcast_to(sizes, len(parents))
    return Hierarchy(np.asarray(ratios), tuple(children), tuple(parents), *counts, np.asarray(real), "ImageNet")


def log_volume(rows, epsilon=1.0):
    """½·log2 det(I + d/(m·ε²)·ZᵀZ) as it is written."""
    rows = np.asarray(rows, np.float64)
    centred = rows - rows.mean(axis=0)
    dim = rows.shape[1]
    matrix = np.eye(dim) + dim / (len(rows) * epsilon**2) * centred.T @ centred
    return 0.5 * np.linalg.slogdet(matrix)[1] / math.log(2)


def some_points(rng, sizes, dim=5, offset=0.0, names=None):
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    spread = rng.uniform(0.3, 3, (len(sizes), dim))
    rows = offset + rng.normal(size=(len(labels), dim)) * spread[labels] + 2 * labels[:, None]
    return points.of(rows, labels, names or [f"class {i}" for i in range(len(sizes))])


@pytest.mark.parametrize(("dim", "offset", "epsilon"), [(5, 0.0, 1.0), (5, 1e6, 1.0), (40, 0.0, 0.3)])
def test_ratios_are_those_of_rows_put_together(dim, offset, epsilon):
    rng = np.random.default_rng(0)
    children, parents = some_points(rng, [30, 1, 9], dim, offset), some_points(rng, [50, 20], dim, offset)
    found = matching.match(children, parents, epsilon=epsilon)
    for child in range(3):
        for parent in range(2):
            without = parents.rows_of(parent)
            mixed = np.concatenate([without, children.rows_of(child)])
            wanted = log_volume(mixed, epsilon) / log_volume(without, epsilon)
            assert found.ratios[child, parent] == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_array_equal(found.predicted, np.abs(found.ratios - 1).argmin(axis=1))
    assert np.isnan(found.accuracy)
    assert np.isnan(found.by_chance)


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 30))
@hypothesis.settings(deadline=None, max_examples=30)
def test_a_parent_mixed_into_itself_changes_nothing(seed, dim, size):
    parents = some_points(np.random.default_rng(seed), [size, 20, 3], dim)
    found = matching.match(parents, parents, parent_of={name: name for name in parents.class_names})
    np.testing.assert_allclose(found.ratios.diagonal(), 1, rtol=1e-10)
    assert found.accuracy == 1


def test_moments_that_were_added_match_as_their_points_do():
    rng = np.random.default_rng(1)
    children, parents = some_points(rng, [30, 20]), some_points(rng, [40, 25], names=["x", "y"])
    halves = [
        {name: Moments.of(each.rows_of(label)[part]) for label, name in enumerate(each.class_names)}
        for each in (children, parents)
        for part in (slice(7), slice(7, None))
    ]
    added = [{name: one[name] + two[name] for name in one} for one, two in (halves[:2], halves[2:])]
    seen = []
    found = matching.match(*added, progress=lambda rows, total: seen.append(total) or rows)
    np.testing.assert_allclose(found.ratios, matching.match(children, parents).ratios, rtol=1e-12)
    assert seen == [2]


def test_a_ratio_below_one_is_a_change_too():
    found = a_hierarchy([[0.99, 1.02], [0.9, 1.05]], [0, 0], ["a", "b"], ["x", "y"])
    assert found.predicted.tolist() == [0, 1]
    np.testing.assert_allclose(found.margins, [0.01, 0.05])
    assert found.right.tolist() == [True, False]


def test_the_papers_table_is_read_as_the_paper_reads_it():
    found = a_hierarchy()
    assert found.accuracy == 1
    assert found.by_chance == pytest.approx(3.0**-7)
    headings, rows = found.table()
    assert headings == ["child", *PARENTS, "margin", "predicted", "real", "right"]
    assert rows[3] == ["Persian", "1.750", "1.080", "1.870", "0.670", "Cats", "Cats", "yes"]
    assert found.reading().startswith(
        "7 of 7 children change the volume of their real parent least (chance would match 2"
    )
    assert found.reading().endswith("volumes show the hierarchy.")
    content = found.as_dict()
    assert content["children"]["Gorilla"]["ratios"] == {"Dogs": 1.82, "Cats": 1.89, "Monkeys": 1.02}
    assert content["children"]["Gorilla"]["predicted"] == content["children"]["Gorilla"]["real"] == "Monkeys"
    assert '"accuracy": 1.0' in findings.to_json(content)


@pytest.mark.parametrize(
    ("right", "words"),
    [
        (40, "volumes show the hierarchy."),
        (30, "volumes show most of the hierarchy."),
        (10, "volumes show a part of the hierarchy, and miss the most."),
        (3, "which is too much to say that volumes show the hierarchy."),
    ],
)
def test_a_reading_claims_no_more_than_chance_leaves(right, words):
    ratios, real = np.full((40, 20), 2.0), np.arange(40) % 20
    ratios[np.arange(40), np.where(np.arange(40) < right, real, (real + 1) % 20)] = 1.1
    found = a_hierarchy(ratios, real, [f"c{i}" for i in range(40)], [f"p{i}" for i in range(20)])
    wanted = sum(math.comb(40, k) * 0.05**k * 0.95 ** (40 - k) for k in range(right, 41))
    assert found.by_chance == pytest.approx(wanted)
    assert words in found.reading()
    assert "draws" not in found.reading()
    assert found.table()[0] == ["child", "ratio", "next ratio", "margin", "predicted", "real", "right"]


def test_a_reading_names_the_parent_that_draws_all_and_sizes_that_differ():
    ratios = np.tile([1.01, 1.5, 1.6, 1.7], (12, 1))
    found = a_hierarchy(ratios, np.arange(12) % 4, [f"c{i}" for i in range(12)], ["wide", "b", "c", "d"], [9, 3, 4, 9])
    assert "wide alone draws 9 of others" in found.reading()
    assert "Parents have 3 to 9 samples" in found.reading()
    assert "samples" not in a_hierarchy(ratios, np.arange(12) % 4, [f"c{i}" for i in range(12)], "abcd").reading()


def test_what_cannot_be_measured_is_not_matched():
    rng = np.random.default_rng(2)
    rows = {name: Moments.of(rng.normal(size=(9, 3))) for name in ("a", "x", "y")}
    empty, single, equal = Moments.none(3), Moments.of(np.ones((1, 3))), Moments.of(np.full((5, 3), 7.7))
    found = matching.match(
        {"a": rows["a"], "none": empty, "one": single},
        {"single": single, "equal": equal, "x": rows["x"], "y": rows["y"]},
        parent_of={"a": "x", "none": "y"},
    )
    assert np.isnan(found.ratios[:, :2]).all()
    assert np.isnan(found.ratios[1]).all()
    assert found.predicted[1] == NONE
    assert set(found.predicted[[0, 2]]) <= {2, 3}
    assert found.real.tolist() == [2, 3, NONE]
    assert len(found.right) == 1
    assert "Not matched: none." in found.reading()
    assert found.table()[1][1] == ["none", "", "", "", "", "", "", "y", ""]
    found.figures()
    findings.to_json(found.as_dict())


def test_without_known_parents_the_clearest_matches_are_told():
    found = a_hierarchy(real=np.full(7, NONE))
    assert found.reading().startswith(
        "By the smallest change of volume, the clearest first: Gorilla in Monkeys (1.02), "
    )
    assert {row[-1] for row in found.table()[1]} == {""}


def test_halves_divide_every_child():
    rng = np.random.default_rng(3)
    whole = some_points(rng, [7, 1, 4, 0, 6])
    parent_of = dict(zip(whole.class_names, "yxyxx", strict=True))
    children, parents = matching.halves(whole, parent_of, seed=5)
    assert children.counts.tolist() == [4, 1, 2, 0, 3]
    assert parents.class_names == ("y", "x")
    assert parents.counts.tolist() == [3 + 2, 0 + 0 + 3]
    together = np.concatenate([children.points, parents.points])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(whole.points, axis=0))
    owner = {row.tobytes(): label for row, label in zip(whole.points, whole.labels, strict=True)}
    assert all(owner[row.tobytes()] == label for row, label in zip(children.points, children.labels, strict=True))
    names = [parent_of[whole.class_names[owner[row.tobytes()]]] for row in parents.points]
    assert names == [parents.class_names[label] for label in parents.labels]
    again, other = matching.halves(whole, parent_of, seed=5)[0], matching.halves(whole, parent_of, seed=6)[0]
    np.testing.assert_array_equal(again.points, children.points)
    assert not np.array_equal(other.points, children.points)


def test_halves_are_matched_to_the_halves_of_all():
    whole = some_points(np.random.default_rng(8), [30, 20, 25, 9])
    parent_of = dict(zip(whole.class_names, "xyxy", strict=True))
    found = matching.match_halves(whole, parent_of, seed=3)
    children, parents = matching.halves(whole, parent_of, seed=3)
    np.testing.assert_array_equal(found.ratios, matching.match(children, parents).ratios)
    assert found.real.tolist() == [0, 1, 0, 1]
    assert "Parents are other halves of the children, each child's own among them." in found.reading()


def test_siblings_are_all_of_a_parent_but_the_child():
    whole = some_points(np.random.default_rng(9), [30, 20, 25, 9, 7])
    parent_of = dict(zip(whole.class_names, "xyxyz", strict=True))
    found = matching.match_siblings(whole, parent_of)
    for child in range(5):
        for parent, members in enumerate(([0, 2], [1, 3], [4])):
            others = [whole.rows_of(label) for label in members if label != child]
            if not others:
                assert np.isnan(found.ratios[child, parent])
                continue
            without = np.concatenate(others)
            mixed = np.concatenate([without, whole.rows_of(child)])
            assert found.ratios[child, parent] == pytest.approx(log_volume(mixed) / log_volume(without), rel=1e-9)
    assert found.real.tolist() == [0, 1, 0, 1, 2]
    assert found.parent_counts.tolist() == [55, 29, 7]
    assert "a child's own is its siblings alone" in found.reading()


def test_only_children_are_neither_right_nor_wrong():
    """They have no ratio with their own parent."""
    rng = np.random.default_rng(9)
    spread = {"a": [9, 1], "b": [8, 1], "c": [1, 9], "d": [1, 8], "lone": [1, 1]}
    classes = {name: Moments.of(rng.normal(size=(60, 2)) * each) for name, each in spread.items()}
    found = matching.match_siblings(classes, dict(zip(spread, ["flat", "flat", "tall", "tall", "round"], strict=True)))
    assert found.predicted[4] != NONE
    assert found.counted.tolist() == [0, 0, 1, 1, NONE]
    assert found.right.tolist() == [True] * 4
    assert found.accuracy == 1
    assert found.by_chance == pytest.approx(3.0**-4)
    assert "4 of 4 children" in found.reading()
    assert "Not counted, without a ratio with their real parent: lone." in found.reading()
    assert found.table()[1][4][-2:] == ["round", ""]
    lines = found.figures()["tree"][1].axes[0].lines
    assert {to_hex(line.get_color()) for line in lines} == {drawing.ACCURACY}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: matching.match(p, p, parent_of={"clas 1": "class 0"}),
            "unknown child in parent_of 'clas 1'; did you mean 'class 1'?",
        ),
        (lambda p: matching.match(p, p, parent_of={"class 1": "c"}), "unknown parent in parent_of 'c'"),
        (lambda p: matching.match(p, {"a": Moments.none(5)}), "a match needs a child and two parents, got 2 and 1"),
        (lambda p: matching.match({}, p), "a match needs a child and two parents, got 0 and 2"),
        (
            lambda p: matching.match({"a": Moments.none(4)}, p),
            "children and parents must be points of one space, got dimensions [4, 5]",
        ),
        (
            lambda p: matching.match(p, {"a": Moments.none(5), "b": Moments.of(np.ones((3, 5)))}),
            "parents must have a volume: none has two samples that differ",
        ),
        (lambda p: matching.match(p, p, epsilon=0), "epsilon must be a finite number > 0, got 0"),
        (
            lambda p: matching.halves(p, {"class 0": "x", "class 1": "x"}),
            "parent_of must have two parents or more, got x",
        ),
        (
            lambda p: matching.halves(
                some_points(np.random.default_rng(0), [2, 2, 2]), {"class 0": "x", "class 1": "y"}
            ),
            "parent_of must have a parent of every class, got none of class 2",
        ),
        (lambda p: matching.match_siblings(p, {"class 0": "x"}), "parent_of must have two parents or more, got x"),
        (lambda p: matching.halves(p, {"class 0": "x", "dog": "y"}), "unknown child in parent_of 'dog'"),
        (
            lambda p: matching.match(points.of(np.eye(2), np.array([0, 1]), ["a", "a"]), p),
            "classes must have different names, got several called a",
        ),
        (lambda p: agglomeration.of({"a": Moments.none(2)}), "a tree needs two classes of two samples or more, got 0"),
        (lambda p: agglomeration.of(p).groups(3), "number of groups must be at most the 2 classes, got 3"),
    ],
)
def test_what_does_not_fit_is_one_error(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(some_points(np.random.default_rng(0), [6, 6]))


@pytest.mark.parametrize(
    ("call", "classes"),
    [
        (agglomeration.of, 3),
        (lambda p: matching.match(p, p), 6),
        (lambda p: matching.match_siblings(p, {"class 0": "x", "class 1": "x", "class 2": "y"}), 5),
        (lambda p: matching.match_halves(p, {"class 0": "x", "class 1": "x", "class 2": "y"}), 5),
    ],
)
def test_matrices_that_do_not_fit_into_memory_are_one_error(call, classes, monkeypatch):
    whole = some_points(np.random.default_rng(0), [6, 6, 6], dim=40)
    needed = 8 * classes * 40 * 41
    monkeypatch.setattr(streaming, "_physical_memory", lambda: 2 * needed)
    with pytest.raises(ValueError, match=rf"moments of {classes} classes in 40 channels need .* GiB, .*\(--dim\)"):
        call(whole)
    monkeypatch.setattr(streaming, "_physical_memory", lambda: 2 * (needed + 18 * 1000))
    call(whole)


def test_parents_are_read_from_a_table(tmp_path):
    path = tmp_path / "parents.csv"
    path.write_text("child,parent\ncat,animals\nbus,vehicles\n")
    assert class_tables.by_class(path, ("child", "parent")) == {"cat": "animals", "bus": "vehicles"}


def test_the_figures_show_what_was_matched():
    wrong = TABLE_12.copy()
    wrong[1] = [1.5, 1.1, 1.3]
    found = a_hierarchy(wrong)
    caption, tree = found.figures()["tree"]
    assert "orange" in caption
    axes, right = tree.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(PARENTS)
    labels = [label.get_text() for label in right.get_yticklabels()]
    assert labels[:2] == ["Poodles  1.060", "Samoyeds  1.100"]
    assert to_hex(right.get_yticklabels()[1].get_color()) == drawing.SCALE
    colours = [to_hex(line.get_color()) for line in axes.lines]
    assert colours.count(drawing.ACCURACY) == 6
    assert colours.count(drawing.SCALE) == colours.count(drawing.GREY) == 1
    ends = [tuple(line.get_ydata()) for line in axes.lines if to_hex(line.get_color()) == drawing.SCALE]
    assert ends == [(axes.get_yticks()[1], right.get_yticks()[1])]
    _, matrix = found.figures()["ratios"]
    shown = {text.get_position(): text.get_text() for text in matrix.axes[0].texts}
    assert shown == {(column, row): f"{ratio:.2f}" for (row, column), ratio in np.ndenumerate(wrong)}
    frames = [to_hex(patch.get_edgecolor()) for patch in matrix.axes[0].patches]
    assert frames == [drawing.INK, drawing.SCALE, *[drawing.INK] * 5]


@pytest.mark.parametrize(("children", "parents"), [(31, 2), (1000, 40)])
def test_figures_of_many_children_have_no_names(children, parents):
    rng = np.random.default_rng(0)
    real = rng.integers(0, parents, children)
    names = [f"c{i}" for i in range(children)], [f"p{i}" for i in range(parents)]
    figures = a_hierarchy(1 + rng.random((children, parents)), real, *names).figures()
    tree, matrix = (figures[name][1] for name in ("tree", "ratios"))
    assert len(tree.axes[0].lines) == children
    assert [label.get_text() for label in tree.axes[1].get_yticklabels()] == []
    assert not matrix.axes[0].texts
    assert matrix.axes[0].images[0].get_array().shape == (children, parents, 4)
    assert max(*tree.get_size_inches(), *matrix.get_size_inches()) < 8


def mixture_distance(first, second):
    """Of rows: half a bit of log det of the mixture of both at equal weights, less the mean of theirs."""
    dim = first.shape[1]

    def rate(covariance):
        return 0.5 * np.linalg.slogdet(np.eye(dim) + dim * covariance)[1] / math.log(2)

    covariances = [np.cov(rows.T, bias=True) for rows in (first, second)]
    apart = first.mean(axis=0) - second.mean(axis=0)
    mixture = (covariances[0] + covariances[1]) / 2 + np.outer(apart, apart) / 4
    return rate(mixture) - (rate(covariances[0]) + rate(covariances[1])) / 2


def test_classes_are_as_far_apart_as_their_mixture_costs_bits():
    whole = some_points(np.random.default_rng(4), [30, 12, 50, 1, 0, 8])
    tree = agglomeration.of(whole)
    assert tree.left_out == ("class 3", "class 4")
    assert tree.counts.tolist() == [30, 12, 50, 8]
    kept = [whole.rows_of(label) for label in (0, 1, 2, 5)]
    wanted = [[mixture_distance(a, b) if a is not b else 0 for b in kept] for a in kept]
    np.testing.assert_allclose(tree.distances, wanted, rtol=1e-9, atol=1e-12)
    assert "Left out, with fewer than two samples: class 3, class 4." in tree.reading()


@hypothesis.given(st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_the_root_of_the_bits_is_a_metric(seed):
    distances = np.sqrt(agglomeration.of(some_points(np.random.default_rng(seed), [5, 9, 3, 6], 3)).distances)
    assert (distances[~np.eye(4, dtype=bool)] > 0).all()
    assert (distances[:, None, :] <= distances[:, :, None] + distances[None] + 1e-9).all()


def test_copies_of_samples_move_no_class():
    whole = some_points(np.random.default_rng(5), [8, 9, 7])
    more = np.concatenate([np.arange(24), np.flatnonzero(whole.labels == 1)])
    copied = points.of(whole.points[more], whole.labels[more], whole.class_names)
    np.testing.assert_allclose(
        agglomeration.of(copied).distances, agglomeration.of(whole).distances, rtol=1e-9, atol=1e-12
    )


def test_equal_classes_join_first():
    rows = np.random.default_rng(6).normal(size=(20, 3))
    tree = agglomeration.of(points.of(np.concatenate([rows + 5, rows, rows + 1e-9, rows * 9]), np.repeat(range(4), 20)))
    assert tree.distances[1, 2] == pytest.approx(0, abs=1e-12)
    assert tree.nearest[1:3].tolist() == [2, 1]
    assert tree.groups(3)[1] == tree.groups(3)[2]
    assert tree.reading().startswith(
        "Most alike, by the bits that a sample costs more if both are one class: 1 and 2 ("
    )


@pytest.mark.parametrize("rows", [np.full((5, 3), 7.7), np.random.default_rng(0).normal(size=(5, 3))])
def test_equal_classes_are_a_tree_that_tells_nothing(rows):
    tree = agglomeration.of({name: Moments.of(rows) for name in ("a", "b", "c")} | {"d": Moments.none(3)})
    assert tree.reading() == (
        "Nothing tells these 3 classes apart: to describe all as one class costs a sample no bits, and the order in "
        "which they join means nothing. Left out, with fewer than two samples: d."
    )
    _, figure = tree.figures()["tree"]
    figure.draw_without_rendering()
    left, right = figure.axes[0].get_xlim()
    assert left > right == 0
    assert len(figure.axes[0].get_yticklabels()) == 3


@pytest.mark.parametrize("number", [2, 3, 30, 31, 300])
def test_dendrograms_of_every_size(number):
    rng = np.random.default_rng(7)
    tree = agglomeration.of(
        {f"a class {i}": Moments.of(rng.normal(size=(4, 2)) + rng.normal(size=2)) for i in range(number)}
    )
    _, figure = tree.figures()["tree"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == min(number, 30)
    assert len(figure.axes[0].lines) == len(labels) - 1
    if number <= 30:
        assert sorted(labels) == sorted(tree.class_names)
    else:
        more = [int(label.rpartition("+")[2]) if "+" in label else 0 for label in labels]
        assert sum(more) + sum(1 + ("," in label) for label in labels) == number
    assert figure.get_size_inches()[1] < 8
    assert len(tree.table()[1]) == number
    findings.to_json(tree.as_dict())


def sample_space(folder, class_names):
    """Images of a folder of strips as points of 16×16×3 coordinates."""
    images, labels = [], []
    for label, name in enumerate(class_names):
        for path in sorted(folder.glob(f"{name}_[0-9][0-9].webp")):
            images.append(np.asarray(Image.open(path)).reshape(-1, 32, 32, 3))
            labels.append(np.full(len(images[-1]), label))
    pixels = np.asarray(dsb_jax.pixel_features(np.concatenate(images)))
    return points.of(pixels, np.concatenate(labels), class_names, space="sample", name=folder.parent.name)


@pytest.mark.slow
def test_the_tree_of_cifar_10_divides_vehicles_from_animals(shared_data):
    tree = agglomeration.of(sample_space(shared_data("cifar10") / "test", CIFAR10.class_names))
    vehicles = [name in ("airplane", "automobile", "ship", "truck") for name in CIFAR10.class_names]
    groups = tree.groups(2)
    assert (groups == groups[0]).tolist() == vehicles
    assert tree.class_names[tree.nearest[CIFAR10.class_names.index("cat")]] == "dog"
    assert tree.class_names[tree.nearest[CIFAR10.class_names.index("automobile")]] == "truck"


@pytest.mark.slow
def test_superclasses_of_cifar_100_show_in_pixels_more_than_by_chance(shared_data):
    """Of 100 classes 20 are matched to the right one of 20 superclasses, and 34 are nearest to one of theirs."""
    whole = sample_space(shared_data("cifar100") / "test", CIFAR100.class_names)
    # 64 principal directions, at the volume's own scale of dimensions, are a hundredth of the work.
    rows = whole.points - whole.points.mean(axis=0)
    directions = np.linalg.eigh(rows.T @ rows)[1][:, -64:]
    whole = points.of(rows @ directions * math.sqrt(768 / 64), whole.labels, whole.class_names)
    superclasses = [CIFAR100.coarse_names[label] for label in CIFAR100.coarse_labels]
    parent_of = dict(zip(CIFAR100.class_names, superclasses, strict=True))
    found = matching.match_halves(whole, parent_of)
    assert found.by_chance < 1e-3
    assert found.accuracy < 0.5  # pixels are no features
    nearest = agglomeration.of(whole).nearest
    coarse = np.array(CIFAR100.coarse_labels)
    assert np.mean(coarse[nearest] == coarse) > 0.25
