"""The report and its plots, for runs of every size and with everything that may be absent."""

import functools
import html.parser
import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.text import Text

from dsb_jax.evaluation import plots, report

VOID = {"meta", "br", "hr", "img", "link", "input"}
AWKWARD = [
    "<b>&",
    'quo"te\' onload="x"',
    "$x_1$ <!-- -->",
    "猫 𝔘",
    "_private",
    "a name so long that no plot could ever hold it",
]


class Page(html.parser.HTMLParser):
    """Checks that tags balance, and keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"repeated attribute in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def class_names(num_classes):
    return [*AWKWARD, *(f"class {i}" for i in range(num_classes))][:num_classes]


def a_run(num_classes=10, epochs=4, seed=0):
    """The three files of a made-up run as Python objects: results, metrics, config."""
    rng = np.random.default_rng(seed)
    names = class_names(num_classes)
    samples = np.maximum(1, np.round(500 * 0.01 ** np.linspace(0, 1, num_classes))).tolist()
    accuracy, scale, weight = rng.uniform(0.1, 1, (3, num_classes)).tolist()
    per_class = {
        name: {"accuracy": a, "samples": n, "test_samples": 20, "volume": 9 * s, "scale": s, "weight": w}
        for name, a, n, s, w in zip(names, accuracy, samples, scale, weight, strict=True)
    }
    results = {
        "dataset": "digits",
        "model": "resnet8",
        "loss": "cross_entropy",
        "balancer": "dsb",
        "method": "DSB-CE",
        "seed": 0,
        "steps": 1234,
        "epochs": epochs,
        "command": "python -m dsb_jax.main --config=configs/digits_lt.py:loss='a&b' <x>",
        "top1": 0.9312,
        "head": 0.97,
        "middle": 0.91,
        "tail": 0.412,
        "per_class": per_class,
        "correlations": {"samples": 0.1, "effective_number": 0.12, "interclass": -0.3, "volume": 0.5, "scale": 0.95},
    }
    metrics = []
    for epoch in range(1, epochs + 1):
        training = {"loss": 2 / epoch, "accuracy": 0.5, "learning_rate": 0.1}
        timing = {"images_per_second": 812.0, "train_seconds": 61.2}
        metrics.append({"step": 10 * epoch - 5, "epoch": epoch - 0.5, **training, **timing})
        test = {"test_accuracy": 0.2 * epoch, "test_loss": 1.1, "class_accuracy": accuracy, "weights": weight}
        metrics.append({"step": 10 * epoch, "epoch": float(epoch), **test})
    return results, metrics, {"seed": 0, "optimizer": {"name": "sgd", "milestones": [1, 2], "note": "<i>"}}


def write_report(workdir, results, metrics, config):
    """Writes the files and the report; returns the report's text and its parse."""
    (workdir / "results.json").write_text(json.dumps(results))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (workdir / "config.json").write_text(json.dumps(config))
    path = report.write(workdir)
    assert path == workdir / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def render(tmp_path):
    return functools.partial(write_report, tmp_path)


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory):
    """The report of `a_run()`, drawn once."""
    return write_report(tmp_path_factory.mktemp("run"), *a_run())


@pytest.fixture
def without_plots(monkeypatch):
    """Drawing is most of a report's time: tests of its words and of its input do without."""
    monkeypatch.setattr(report, "_plots", lambda run: "")


def reading(text):
    return html.unescape(re.search(r'<p class="reading">(.*?)</p>', text).group(1))


def table(page_text):
    """The class table as rows of texts."""
    body = page_text.split('<table class="sortable">')[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_everything_is_in_the_page_and_escaped(ten_classes):
    results, _, _ = a_run()
    text, page = ten_classes
    assert page.all("title") == [{}]
    assert "DSB-CE on digits" in page.text
    for value in ("93.1%", "97.0%", "41.2%", "1,234", "1 min 1 s", results["command"]):
        assert value in page.text
    for key in ("seed", "optimizer.name", "optimizer.milestones", "[1, 2]", '"<i>"'):
        assert key in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i", "x"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    rows = table(text)
    assert [row[0] for row in rows] == class_names(10)
    first = results["per_class"]["<b>&"]
    assert rows[0][1:4] == [f"{first['accuracy']:.1%}", "500", "20"]
    assert float(rows[0][5]) == pytest.approx(first["scale"], abs=6e-4)


def test_the_page_needs_nothing_else(ten_classes):
    text, page = ten_classes
    assert "http:" not in text
    assert "https:" not in text
    for tag in ("link", "iframe", "object", "embed"):
        assert page.all(tag) == []
    references = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert references
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in references)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_plots_are_embedded_with_alternatives_and_follow_the_page_colours(ten_classes):
    text, page = ten_classes
    pictures = page.all("svg")
    assert len(pictures) == 5
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 20 for picture in pictures)
    assert "prefers-color-scheme: dark" in text
    assert plots.INK not in text.split("</style>")[1], "text of plots would vanish on a dark page"
    assert "currentColor" in text
    assert any("viewport" in meta.get("name", "") for meta in page.all("meta"))


def assert_references_resolve(text, page):
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = set(re.findall(r"url\(#([^)]*)\)", text)) | {
        value[1:] for _, attributes in page.tags for value in [attributes.get("href", "")] if value.startswith("#")
    }
    assert targets
    assert targets <= set(identifiers)


@pytest.mark.parametrize("num_classes", [1, 30, 31, 1000])
def test_any_number_of_classes(render, num_classes):
    text, page = render(*a_run(num_classes=num_classes))
    assert len(table(text)) == num_classes
    assert len(page.all("svg")) == 5
    assert_references_resolve(text, page)
    assert len(text) < 3_000_000


def test_the_same_run_gives_the_same_page(render):
    assert render(*a_run(2))[0] == render(*a_run(2))[0]


def test_absent_groups_measures_and_measurements(render):
    results, _, config = a_run()
    for key in ("head", "middle", "tail"):
        del results[key]
    for entry in results["per_class"].values():
        del entry["volume"]
        entry["scale"] = None
    results["per_class"]["<b>&"].update(accuracy=None, test_samples=0)
    results["correlations"] = dict.fromkeys(results["correlations"])
    text, page = render(results, [], config)
    assert not any("tail" in part for part in page.text)
    assert page.text.count("undefined") == 5
    assert len(page.all("svg")) == 2, "neither scales, weights nor curves"
    assert {row[4] for row in table(text)} == {row[5] for row in table(text)} == {"–"}
    assert table(text)[0][1] == "–"
    assert "neither correlation is defined" in reading(text)
    assert "nan" not in "".join(page.text).lower()


def test_no_class_has_an_accuracy(render):
    results, metrics, config = a_run()
    for entry in results["per_class"].values():
        entry["accuracy"] = None
    text, _ = render(results, metrics, config)
    assert "weakest" not in reading(text)


@pytest.mark.usefixtures("without_plots")
def test_nan_counts_as_null(render):
    results, metrics, config = a_run()
    results["correlations"]["scale"] = float("nan")
    metrics[0]["loss"] = float("nan")
    text, _ = render(results, metrics, config)
    assert "Semantic scale is the same for all classes or was not measured" in reading(text)


def correlated(samples, scale, num_classes=10):
    results, metrics, config = a_run(num_classes)
    results["correlations"].update(samples=samples, scale=scale)
    return results, metrics, config


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    ("samples", "scale", "num_classes", "said", "unsaid"),
    [
        (0.1, 0.99, 10, "rises with semantic scale (r = 0.99)", "falls"),
        (0.1, 0.99, 10, "more closely than with the number of training samples", "too few"),
        (0.99, 0.1, 10, "It goes with the number of training samples more closely than with semantic scale", "too few"),
        (0.1, 0.99, 10, "shows no clear relation to the number of training samples (r = 0.10)", "too few"),
        (0.80, 0.85, 10, "10 classes are too few to say", "more closely than"),
        (0.60, 0.85, 200, "It goes with semantic scale more closely", "too few"),  # z: 0.69, 1.26; bound 0.20
        (0.20, -0.90, 200, "falls with semantic scale", "too few"),
        (0.20, -0.90, 200, "rises slightly with the number", "too few"),
        (0.62, 0.1, 10, "no clear relation to the number", "rises"),  # artanh 0.62 = 0.725 < 1.96/√7 = 0.741
        (0.64, 0.1, 10, "rises with the number", "falls"),  # artanh 0.64 = 0.758
        (None, 0.9, 10, "The number of training samples is the same for all classes", "more closely"),
        (0.9, None, 10, "Semantic scale is the same for all classes or was not measured", "more closely"),
        (None, None, 10, "cannot be said: neither correlation is defined", "rises"),
        (0.99, 0.99, 3, "cannot be said: there are fewer than four classes", "rises"),
        (1.0, 1.0, 10, "rises with semantic scale (r = 1.00)", "more closely than"),
    ],
)
def test_the_reading_claims_what_the_correlations_bear(render, samples, scale, num_classes, said, unsaid):
    text = reading(render(*correlated(samples, scale, num_classes))[0])
    assert said in text
    assert unsaid not in text


@pytest.mark.usefixtures("without_plots")
def test_the_reading_names_the_weakest_classes(render):
    results, metrics, config = a_run(num_classes=8)
    for accuracy, entry in zip([0.9, 0.2, 0.9, 0.4, 0.9, 0.3, 0.9, 0.9], results["per_class"].values(), strict=True):
        entry["accuracy"] = accuracy
    names = class_names(8)
    text = reading(render(results, metrics, config)[0])
    assert f"The weakest classes are {names[1]} (20.0%), {names[5]} (30.0%) and {names[3]} (40.0%)." in text
    assert "93.1% of the 160 test samples" in text
    for entry in itertools.islice(results["per_class"].values(), 5):
        entry["accuracy"] = 0.0
    assert "5 of the 8 classes are never recognised." in reading(render(results, metrics, config)[0])


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "config.json"])
def test_missing_file(render, tmp_path, name):
    render(*a_run())
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        report.write(tmp_path)


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"top1": 0.', "results.json is not valid JSON"),
        ("results.json", "[1]", "results.json must hold a JSON object"),
        ("results.json", '{"dataset": "digits"}', "'method' must be a string, got None"),
        ("config.json", "", "config.json is not valid JSON"),
        ("metrics.jsonl", '{"step": 1', "metrics.jsonl, line 1 is not valid JSON"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "loss": 1, "accuracy": 0, "train_seconds": 1}\n{"epoch": 2, "lo',
            "line 2 is not valid JSON",
        ),
        ("metrics.jsonl", '{"epoch": 1, "loss": 1, "accuracy": 0, "train_seconds": 1}\n\n', "line 2 is not valid JSON"),
        ("metrics.jsonl", "7\n", "line 1 must hold a JSON object"),
        ("metrics.jsonl", '{"epoch": 1, "loss": 1}\n', "line 1 lacks 'accuracy'"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "loss": "x", "accuracy": 0}\n',
            "line 1: loss must be a number or null, got 'x'",
        ),
        ("metrics.jsonl", '{"epoch": 1, "test_accuracy": 1, "weights": [1]}\n', "must be a list of 10 numbers"),
    ],
)
def test_corrupt_file(render, tmp_path, name, content, message):
    render(*a_run())
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        report.write(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.usefixtures("without_plots")
def test_bytes_that_are_no_text(render, tmp_path):
    render(*a_run())
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"results.json is not UTF-8"):
        report.write(tmp_path)


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("top1", "high", "'top1' must be a number, got 'high'"),
        ("steps", float("nan"), "'steps' must be a number, got None"),
        ("per_class", {}, "'per_class' must hold an object for each class"),
        ("per_class", {"cat": 1}, "'per_class' must hold an object for each class"),
        ("per_class", {"cat": {"samples": "many"}}, "'samples' of class 'cat' must be a number or null"),
        ("per_class", {"cat": {"accuracy": 1}}, "'samples' must be given for every class"),
        ("correlations", {"scale": "r"}, "'scale' of 'correlations' must be a number or null"),
        ("tail", "low", "'tail' of the run must be a number or null"),
    ],
)
def test_results_of_the_wrong_form(render, key, value, message):
    results, metrics, config = a_run()
    with pytest.raises(ValueError, match=re.escape(message)):
        render({**results, key: value}, metrics, config)


@pytest.mark.usefixtures("without_plots")
def test_the_report_replaces_an_older_one_and_leaves_nothing_beside_it(render, tmp_path):
    (tmp_path / "report.html").write_text("old")
    render(*a_run())
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "metrics.jsonl",
        "config.json",
        "report.html",
    }


# Plots.


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
    figure = plots.weights_over_time(range(5), weights, counts=range(1, 31), class_names=names)
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
    assert figure.axes[0].get_title(loc="left") == f"Accuracy against scale: Pearson r = {np.corrcoef(x, y)[0, 1]:.2f}"
    figure = plots.accuracy_against([1, 1], [0.1, 0.2], measure_name="scale", class_names="ab")
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


def test_plots_leave_no_global_state():
    import matplotlib
    import matplotlib._pylab_helpers

    before = dict(matplotlib.rcParams)
    plots.accuracy_against([1, 2], [0.5, 1], measure_name="samples", class_names="ab")
    plots.weights_over_time([0], np.ones((1, 40)), counts=np.ones(40), class_names=["x"] * 40)
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


@pytest.mark.parametrize("page", re.findall(r"--page: (#\w{6})", report._STYLE))
def test_colours_stand_out_from_light_and_dark_pages(page):
    from matplotlib.colors import to_hex

    shades = [to_hex(plots.FEW_TO_MANY(x)) for x in np.linspace(0, 1, 9)]
    for colour in [plots.ACCURACY, plots.SCALE, *shades]:
        assert contrast(colour, page) >= 3


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
        (lambda: plots.weights_over_time([0], [[1, 2]], counts=[1], class_names="a"), "weights must have shape (1, 1)"),
        (lambda: plots.weights_over_time([], [], counts=[1], class_names="a"), "weights must have shape (1, 1)"),
        (
            lambda: plots.weights_over_time([0], [[-1]], counts=[1], class_names="a"),
            "weights must be finite numbers >= 0",
        ),
        (
            lambda: plots.training_curves(epochs=[1], loss=[], accuracy=[1], test_epochs=[], test_accuracy=[]),
            "loss must be as long as epochs",
        ),
    ],
)
def test_plots_of_unequal_columns(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
