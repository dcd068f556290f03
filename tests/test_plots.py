"""Plots of runs of every size: what they show, that text overlaps nowhere, and that they leave no state behind."""

import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from dsb_jax.evaluation import curves, drawing, page, plots


def shown_labels(figure):
    """The extents of all labels of a figure as drawn, without their leader lines, in pixels."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    return [
        Text.get_window_extent(text, renderer).padded(-1)
        for axes in figure.axes
        for text in axes.texts
        if text.get_text() and text.get_visible()
    ]


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("num_classes", [10, 30])
def test_labels_of_points_do_not_overlap(num_classes, equal):
    rng = np.random.default_rng(1)
    samples = rng.integers(5, 500, num_classes)
    accuracy = np.full(num_classes, 0.9) if equal else rng.uniform(0.5, 1, num_classes)
    names = [f"a class named {i}" for i in range(num_classes)]
    figure = plots.accuracy_against(samples, accuracy, measure_name="samples", class_names=names)
    boxes = shown_labels(figure)
    assert len(boxes) >= 0.8 * num_classes
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("equal", [False, True])
def test_labels_of_lines_do_not_overlap_and_keep_their_order(equal):
    rng = np.random.default_rng(2)
    weights = np.ones((5, 30)) if equal else rng.uniform(0.2, 3, (5, 30))
    names = [f"a class named {i}" for i in range(30)]
    figure = curves.by_class(range(5), weights, measure_name="weight", counts=range(1, 31), class_names=names)
    boxes = shown_labels(figure)
    assert len(boxes) == 30
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    labels = sorted(figure.axes[0].texts[-30:], key=lambda text: text.xyann[1])
    ends = [text.xy[1] for text in labels]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("samples", "scale"),
    [
        ([5, 20, 49], "linear"),
        ([5, 20, 50], "log"),
        ([0, 20, 50], "linear"),
        ([0, 2, 50], "symlog"),
        ([0, 0, 0], "linear"),
    ],
)
def test_a_wide_range_gets_a_logarithmic_axis(samples, scale):
    figure = plots.accuracy_against(samples, [0.1, 0.5, 0.9], measure_name="samples", class_names="abc")
    assert figure.axes[0].get_xscale() == scale
    low, high = figure.axes[0].get_xlim()
    assert low <= min(samples) <= max(samples) <= high


def test_r_is_in_the_title():
    x, y = [1, 2, 3, 4], [0.1, 0.3, 0.2, 0.5]
    figure = plots.accuracy_against(x, y, measure_name="scale", class_names="abcd")
    assert figure.axes[0].get_title(loc="left") == f"Accuracy against scale: r = {np.corrcoef(x, y)[0, 1]:.2f}"
    figure = plots.accuracy_against([1, 1, 1], [0.1, 0.2, 0.3], measure_name="scale", class_names="abc")
    assert figure.axes[0].get_title(loc="left").endswith("undefined")
    figure = plots.accuracy_against([1, 2], [0.1, 0.2], measure_name="scale", class_names="ab")  # any two are in line
    assert figure.axes[0].get_title(loc="left").endswith("undefined")


def test_bars_are_sorted_by_samples_and_markers_are_relative_scales():
    figure = plots.accuracy_by_class(
        [0.2, np.nan, 0.6], [7, 300, 40], scales=[0.5, 1.0, np.nan], class_names=["few", "many", "some"]
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["many (300)", "some (40)", "few (7)"]
    assert [bar.get_width() for bar in axes.patches] == [0, 0.6, 0.2]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1.0, np.nan, 0.5])


def test_the_mean_over_neighbours_skips_classes_without_accuracy():
    accuracy = np.tile([0.2, np.nan, 0.6, 0.4], 10)
    figure = plots.accuracy_by_class(accuracy, np.arange(40, 0, -1), class_names=[str(i) for i in range(40)])
    line = figure.axes[0].lines[0].get_ydata()
    wanted = [np.nanmean(accuracy[max(i - 2, 0) : i + 3]) for i in range(40)]
    np.testing.assert_allclose(line, wanted, rtol=1e-12)


def counted(labels, predictions, order):
    """Fractions of rows of the confusion matrix, in this order of classes."""
    matrix = np.zeros((len(order), len(order)))
    for label, guess in zip(labels, predictions, strict=True):
        matrix[order.index(label), order.index(guess)] += 1
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def test_a_small_confusion_matrix_has_its_numbers():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, (2, 300))  # class 4 has no samples
    counts = [10, 500, 40, 90, 7]
    figure = plots.confusion_matrix(labels, predictions, counts, class_names=["a", "b", "$c$", "d", "e"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "b (500)",
        "d (90)",
        "$c$ (40)",
        "a (10)",
        "e (7)",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "d", "$c$", "a", "e"]
    wanted = counted(labels, predictions, [1, 3, 2, 0, 4])
    shown = {tuple(map(int, text.get_position()[::-1])): text.get_text() for text in axes.texts}
    assert shown == {cell: f"{100 * rate:.0f}" for cell, rate in np.ndenumerate(wanted) if rate}
    wrong, right = (image.get_array()[..., 3] for image in axes.images)
    assert ((wrong > 0) == ((wanted > 0) & ~np.eye(5, dtype=bool))).all()
    assert (np.argsort(right.diagonal()) == np.argsort(wanted.diagonal())).all()
    largest = (wanted * (1 - np.eye(5))).max()
    assert f"at most {largest:.1%}" in figure.get_suptitle()


@pytest.mark.parametrize("num_classes", [1, 2, 20, 21, 30, 31, 200, 201, 1000])
def test_confusion_matrices_of_every_size_keep_all_samples(num_classes):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, num_classes, (2, 3000))
    order = rng.permutation(num_classes)
    block = plots.classes_per_cell(num_classes)
    right, wrong = plots._rates(labels, predictions, order, block)
    cells = -(-num_classes // block)
    assert wrong.shape == (cells, cells)
    assert cells <= 200
    place = {label: rank // block for rank, label in enumerate(order)}
    samples = np.bincount([place[label] for label in labels], minlength=cells)
    tested = samples > 0
    np.testing.assert_allclose((right + wrong.sum(axis=1))[tested], 1, rtol=1e-12)
    np.testing.assert_allclose((right * samples).sum(), (labels == predictions).sum(), rtol=1e-12)
    figure = plots.confusion_matrix(
        labels, predictions, rng.integers(1, 9, num_classes), class_names=["c"] * num_classes
    )
    assert bool(figure.axes[0].texts) == (num_classes <= 20)


def test_the_radar_shows_relative_values_from_the_largest_class_on():
    figure = plots.scales_and_samples([0.5, 2.0, np.nan, 1.0], [7, 300, 40, 3], class_names=["a", "b", "_c", "$d"])
    samples, scales = figure.axes[0].lines
    np.testing.assert_allclose(samples.get_ydata(), np.array([300, 40, 7, 3, 300]) / 300)
    np.testing.assert_allclose(scales.get_ydata(), [1, np.nan, 0.25, 0.5, 1])
    assert [text.get_text() for text in figure.axes[0].texts] == ["b", "_c", "a", "$d"]


def test_a_radar_of_many_classes_shows_the_first_the_last_and_some_between():
    counts = np.random.default_rng(0).permutation(500) + 1
    names = [str(count) for count in counts]
    figure = plots.scales_and_samples(np.ones(500), counts, class_names=names)
    shown = [int(text.get_text()) for text in figure.axes[0].texts]
    assert len(shown) == len(set(shown)) == plots.RADAR_CLASSES
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (500, 1)


def test_difference_bars_are_sorted_by_samples_and_have_their_spread():
    figure = plots.accuracy_differences(
        [0.2, np.nan, -0.1], [7, 300, 40], spread=[0.05, 0.1, np.nan], title="b less a", class_names=["x", "y", "z"]
    )
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["y (300)", "z (40)", "x (7)"]
    assert [bar.get_width() for bar in axes.patches] == [0, -0.1, 0.2]
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours[1:] == [drawing.SCALE, drawing.ACCURACY]
    (spread,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(spread[:, 0], [0.15, 0.25])


def test_differences_of_many_classes_get_a_mean_over_neighbours():
    differences = np.tile([0.2, np.nan, -0.2, 0.0], 10)
    figure = plots.accuracy_differences(differences, np.arange(40, 0, -1), title="x", class_names=["c"] * 40)
    mean = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(mean, [np.nanmean(differences[max(i - 2, 0) : i + 3]) for i in range(40)], atol=1e-12)


@pytest.mark.parametrize("num_classes", [3, 31])
def test_each_class_has_its_line_and_gaps_where_it_was_not_measured(num_classes):
    counts = np.arange(num_classes, 0, -1)
    values = np.random.default_rng(0).uniform(0.5, 1, (4, num_classes))
    values[0] = np.nan
    values[:, 1] = np.nan
    names = [str(i) for i in range(num_classes)]
    figure = curves.by_class(range(4), values, measure_name="semantic scale", counts=counts, class_names=names)
    axes = figure.axes[0]
    np.testing.assert_array_equal(np.column_stack([line.get_ydata() for line in axes.lines]), values)
    assert axes.get_ylabel() == "semantic scale"
    if num_classes == 3:
        assert [text.get_text() for text in axes.texts if text.get_text()] == [
            names[i] for i in sorted((0, 2), key=lambda i: values[-1, i])
        ]
        assert to_hex(axes.lines[0].get_color()) == drawing.ACCURACY
        assert to_hex(axes.lines[-1].get_color()) == drawing.SCALE


@pytest.mark.parametrize("num_classes", [3, 31])
def test_classes_of_one_size_have_one_colour(num_classes):
    names = [str(i) for i in range(num_classes)]
    values, counts = np.ones((2, num_classes)), np.full(num_classes, 500)
    figure = curves.by_class([0, 1], values, measure_name="class weight", counts=counts, class_names=names)
    (axes,) = figure.axes  # no bar of colours
    assert {to_hex(line.get_color()) for line in axes.lines} == {drawing.GREY}


def test_curves_show_what_was_logged():
    figure = curves.training_curves(
        epochs=[1, 2],
        loss=[2.0, np.nan],
        accuracy=[0.3, 0.5],
        learning_rate=[np.nan, np.nan],
        test_epochs=[2],
        test_loss=[1.0],
        test_accuracy=[0.4],
    )
    above, below = figure.axes
    assert [line.get_ydata().tolist() for line in below.lines] == [[0.3, 0.5], [0.4]]
    np.testing.assert_array_equal(above.lines[0].get_ydata(), [2.0, np.nan])


def test_runs_of_one_name_share_a_colour_and_a_place_in_the_legend():
    names = ["CE", "DSB-CE, power=6", "CE", *(f"method {i}" for i in range(7))]
    figure = curves.runs([(name, [1, 2], [0.1, 0.2]) for name in names], measure_name="test accuracy")
    (axes,) = figure.axes
    styles = [(line.get_color(), str(line.get_linestyle())) for line in axes.lines]
    assert styles[0] == styles[2]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in axes.lines}) == 9
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(dict.fromkeys(names))


def test_ink_is_never_pixels():
    """A page's colour reaches lines, and no image."""
    many = np.linspace(0, 1, 6000)
    figure = curves.training_curves(
        epochs=many, loss=many, accuracy=many, learning_rate=many, test_epochs=[1], test_loss=[1], test_accuracy=[1]
    )
    pixels = {to_hex(line.get_color()) for axes in figure.axes for line in axes.lines if line.get_rasterized()}
    assert pixels == {drawing.SCALE}


def test_plots_leave_no_global_state():
    import matplotlib
    import matplotlib._pylab_helpers

    before = dict(matplotlib.rcParams)
    plots.accuracy_against([1, 2], [0.5, 1], measure_name="samples", class_names="ab")
    curves.by_class([0], np.ones((1, 40)), measure_name="weight", counts=np.ones(40), class_names=["x"] * 40)
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.get_all_fig_managers()


def contrast(first, second):
    """WCAG 2's contrast ratio."""
    luminances = []
    for colour in (first, second):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminances.append(np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05)
    return max(luminances) / min(luminances)


@pytest.mark.parametrize("background", re.findall(r"--page: (#\w{6})", page.STYLE))
def test_colours_stand_out_from_light_and_dark_pages(background):
    shades = [to_hex(drawing.FEW_TO_MANY(x)) for x in np.linspace(0, 1, 9)]
    for colour in [drawing.ACCURACY, drawing.SCALE, *curves.RUNS, *shades]:
        assert contrast(colour, background) >= 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plots.accuracy_against([1, 2], [1], measure_name="x", class_names="a"),
            "class_accuracy must be as long",
        ),
        (
            lambda: plots.accuracy_against([1], [1], measure_name="x", class_names="ab"),
            "class_names must name 1 classes",
        ),
        (lambda: plots.accuracy_by_class([1], [1, 2], class_names="a"), "counts must be as long as class_accuracy"),
        (
            lambda: curves.by_class([0], [[1, 2]], measure_name="w", counts=[1], class_names="a"),
            "values must have shape (1, 1)",
        ),
        (
            lambda: curves.by_class([], [], measure_name="w", counts=[1], class_names="a"),
            "values must have shape (1, 1)",
        ),
        (
            lambda: curves.by_class([0], [[-1]], measure_name="w", counts=[1], class_names="a"),
            "values must be finite numbers >= 0, or NaN",
        ),
        (
            lambda: curves.training_curves(
                epochs=[1], loss=[], accuracy=[1], learning_rate=[1], test_epochs=[], test_loss=[], test_accuracy=[]
            ),
            "loss must be as long as epochs",
        ),
        (lambda: curves.runs([], measure_name="accuracy"), "curves must hold one run or more"),
        (lambda: curves.runs([("CE", [1], [])], measure_name="loss"), "values must be as long as epochs"),
        (lambda: plots.confusion_matrix([0], [2], [1, 1], class_names="ab"), "predictions must lie in [0, 2), got 2"),
        (lambda: plots.confusion_matrix([0], [], [1, 1], class_names="ab"), "must have one length, got 1 and 0"),
        (lambda: plots.confusion_matrix([0], [0], [1, 1], class_names="a"), "class_names must name 2 classes"),
        (lambda: plots.scales_and_samples([1], [1, 2], class_names="ab"), "counts must be as long as scales"),
        (
            lambda: plots.accuracy_differences([1], [1, 2], title="a", class_names="ab"),
            "counts must be as long as differences",
        ),
    ],
)
def test_plots_of_unequal_columns(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
