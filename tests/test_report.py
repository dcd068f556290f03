"""The report of runs of every size, with everything that may be there and everything that may be absent."""

import base64
import functools
import html
import itertools
import json
import re

import cv2
import numpy as np
import pytest
from pages import (
    ALPHAS,
    a_retrieval_run,
    a_run,
    class_names,
    confusions,
    number,
    queries,
    read_page,
    spaces,
    training_images,
    write_run,
)

from dsb_jax.evaluation import report

FIRST, SECOND = class_names(2)


def write_report(workdir, results, metrics, config):
    """Writes the files and the report; returns the report's text and its parse."""
    path = report.write(write_run(workdir, results, metrics, config))
    assert path == workdir / "report.html"
    return read_page(path)


def write_everything(workdir, num_classes, **options):
    """The report of a run that leaves all there is."""
    results, metrics, config = a_run(num_classes)
    start = {"python": "3.11.9", "versions": {"jax": "0.10.2"}, "devices": ["cpu:0", "cpu:1"], "command": "run <1>"}
    (workdir / "environment.json").write_text(json.dumps([{**start, "step": 0}, {**start, "step": 120}]))
    np.savez(workdir / "confusions.npz", **confusions(num_classes, **options))
    return write_report(workdir, {**results, "correlations_by_space": spaces()}, metrics, config)


@pytest.fixture
def render(tmp_path):
    return functools.partial(write_report, tmp_path)


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory):
    """The report of a run that leaves all there is, drawn once."""
    return write_everything(tmp_path_factory.mktemp("run"), 10)


@pytest.fixture
def without_plots(monkeypatch):
    """Drawing is most of a report's time: tests of its words and of its input do without."""
    for part in ("_over_time", "_by_class", "_confusion"):
        monkeypatch.setattr(report, part, lambda run: {})


def reading(text):
    return html.unescape(re.search(r'<p class="reading">(.*?)</p>', text).group(1))


def headings(text):
    return re.findall("<h2>(.*?)</h2>", text)


def classes(page):
    """The rows of the class table."""
    return page.table("class")[1:]


def test_everything_is_in_the_page_and_escaped(ten_classes):
    results, _, _ = a_run()
    text, page = ten_classes
    assert page.all("title") == [{}]
    assert "DSB-CE on digits" in page.text
    for value in ("93.1%", "97.0%", "41.2%", "1,234", "1 min 1 s", results["command"]):
        assert value in page.text
    settings = dict(page.table("setting")[1:])
    assert settings["optimizer.milestones"] == "[1, 2]"
    assert settings["optimizer.note"] == '"<i>"'
    assert {tag for tag, _ in page.tags}.isdisjoint({"i", "x"})
    assert [row[0] for row in classes(page)] == class_names(10)
    for name, row in zip(class_names(10), classes(page), strict=True):
        entry = results["per_class"][name]
        assert number(row[1]) == pytest.approx(100 * entry["accuracy"], abs=0.051)
        assert [number(cell) for cell in row[2:4]] == [entry["samples"], 20]
        assert [number(cell) for cell in row[4:]] == pytest.approx(
            [entry["volume"], entry["scale"], entry["weight"]], abs=6e-3
        )
    assert len(page.all("svg")) == 10
    assert headings(text) == [
        "Training", "What accuracy goes with", "What is taken for what", "Classes", "How it was made",
    ]  # fmt: skip


def test_plots_follow_the_page_colours(ten_classes):
    text, page = ten_classes
    assert "prefers-color-scheme: dark" in text
    assert report.page.drawing.INK not in text.split("</style>")[1], "text of plots would vanish on a dark page"
    assert "currentColor" in text
    assert any("viewport" in meta.get("name", "") for meta in page.all("meta"))


def test_each_correlation_is_in_the_tables(ten_classes):
    results, _, _ = a_run()
    _, page = ten_classes
    measured = [number(row[1]) for row in page.table("measure")[1:]]
    assert measured == pytest.approx(list(results["correlations"].values()), abs=6e-4)
    head, *rows = page.table("r with")
    assert head[1:] == [f"α = {alpha}" for alpha in ALPHAS]
    assert [row[0] for row in rows[:2]] == ["N", "E_n"]
    assert [number(row[1]) for row in rows[:2]] == [0.1, 0.12]
    wanted = spaces()
    for i, (space, words) in enumerate({"pool": "pool", "feature": "features of", "sample": "images"}.items()):
        name, w, volume, s = rows[2 + 4 * i : 6 + 4 * i]
        assert words in name[0]
        assert (w[0], volume[0], s[0]) == ("W(α)", "S′", "S(α)")
        assert [number(cell) for cell in w[1:]] == pytest.approx([wanted[space]["interclass"][a] for a in ALPHAS])
        assert [number(cell) for cell in s[1:]] == pytest.approx([wanted[space]["scale"][a] for a in ALPHAS])
        assert number(volume[1]) == pytest.approx(wanted[space]["volume"], abs=6e-4)


def decoded(picture):
    content = base64.b64decode(picture["src"].partition(",")[2])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_hardest_pairs_are_counted_and_shown(ten_classes):
    text, page = ten_classes
    arrays = confusions()
    pictures = page.all("img")
    assert len(pictures) == 4
    wanted = [*arrays["images"][0], arrays["images"][1][0]]
    for picture, image in zip(pictures, wanted, strict=True):
        np.testing.assert_array_equal(decoded(picture), image[..., 0])
        assert picture["class"] == "pixelated"
    assert [picture["alt"] for picture in pictures] == [
        *(f"{SECOND}, taken for {FIRST}: example {i}" for i in (1, 2, 3)),
        f"{FIRST}, taken for class 3: example 1",
    ]
    for true, predicted in arrays["pairs"]:
        errors = sum((arrays["labels"] == true) & (arrays["predictions"] == predicted))
        assert f": {errors} of 20 ({errors / 20:.1%})" in text


@pytest.mark.usefixtures("without_plots")
def test_training_images_are_shown_with_their_classes(tmp_path):
    arrays = training_images()
    np.savez(tmp_path / "examples.npz", **arrays)
    text, page = write_report(tmp_path, *a_run())
    pictures = page.all("img")
    names = class_names(10)
    wanted = [names[label] for label in arrays["labels"]]
    for row, (own, other) in ((3, (75, 25)), (4, (25, 75))):
        wanted[row] = f"{own}% {wanted[row]}, {other}% {names[arrays['other_labels'][row]]}"
    assert [picture["alt"] for picture in pictures] == [f"training image: {name}" for name in wanted]
    for picture, image in zip(pictures, arrays["images"], strict=True):
        np.testing.assert_array_equal(decoded(picture), image[..., 0])
    assert "<h2>Training images</h2>" in text


@pytest.mark.usefixtures("without_plots")
def test_a_rehearsal_says_that_it_is_one(tmp_path):
    results, metrics, config = a_run()
    text, _ = write_report(
        tmp_path, results | {"data": "synthetic", "eval_split": "val", "numbers": "made up <here>"}, metrics, config
    )
    assert "<b>A rehearsal:</b> the images are made up" in text
    assert "Numbers of images: made up &lt;here&gt;." in text
    assert "top-1 accuracy (val split)" in text
    text, _ = write_report(tmp_path, results | {"data": "prepared"}, metrics, config)
    assert "rehearsal" not in text
    assert "Numbers of images" not in text
    text, _ = write_report(tmp_path, results | {"numbers": "a part: 3 of 4 training images"}, metrics, config)
    assert '<p class="reading">Numbers of images: a part: 3 of 4 training images.</p>' in text


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": None}, "shares is not a file in the archive"),
        ({"images": np.zeros((5, 8, 8, 1), np.float32)}, "does not hold images with their labels and shares"),
        ({"labels": np.zeros(4, np.int32)}, "does not hold images with their labels and shares"),
        ({"other_labels": np.full(5, 10, np.int32)}, "classes must lie in [0, 10), got"),
    ],
)
def test_training_images_of_the_wrong_form(render, tmp_path, change, message):
    arrays = {name: array for name, array in (training_images() | change).items() if array is not None}
    np.savez(tmp_path / "examples.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        render(*a_run())
    assert "examples.npz" in str(raised.value)


@pytest.mark.usefixtures("without_plots")
def test_large_images_become_coloured_thumbnails(tmp_path):
    image = np.zeros((300, 150, 3), np.uint8)
    image[..., 0], image[:150, :, 1] = 200, 90  # red, with some green above
    arrays = confusions(2, size=(300, 150, 3)) | {"images": np.broadcast_to(image, (2, 3, 300, 150, 3))}
    results, metrics, config = a_run(2)
    np.savez(tmp_path / "confusions.npz", **arrays)
    _, page = write_report(tmp_path, results, metrics, config)
    thumbnail = decoded(page.all("img")[0])[..., ::-1].astype(int)
    assert thumbnail.shape == (96, 48, 3)
    assert "class" not in page.all("img")[0]
    np.testing.assert_allclose(thumbnail[20, 20], [200, 90, 0], atol=6)
    np.testing.assert_allclose(thumbnail[80, 20], [200, 0, 0], atol=6)


def test_the_environment_of_each_start_is_a_column(ten_classes):
    _, page = ten_classes
    assert page.table("")[0] == ["", "start 1", "start 2"]
    assert {key: cells for key, *cells in page.table("")[1:]} == {
        "python": ["3.11.9", "3.11.9"],
        "versions.jax": ["0.10.2", "0.10.2"],
        "devices": ["cpu:0, cpu:1"] * 2,
        "command": ["run <1>"] * 2,
        "step": ["0", "120"],
    }


@pytest.mark.usefixtures("without_plots")
def test_of_many_starts_the_last_ones_are_shown(render, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps([{"step": i} for i in range(9)]))
    text, page = render(*a_run(2))
    assert page.table("")[0] == ["", *(f"start {i}" for i in range(5, 10))]
    assert page.table("")[1] == ["step", *"45678"]
    assert "first 4 starts are left out" in text


@pytest.mark.parametrize("num_classes", [1, 2, 30, 31, 2000])
def test_any_number_of_classes(tmp_path, num_classes):
    text, page = (
        write_everything(tmp_path, max(num_classes, 2)) if num_classes > 1 else write_report(tmp_path, *a_run(1))
    )
    assert len(classes(page)) == num_classes
    assert len(page.all("svg")) == {1: 8, 2: 9}.get(num_classes, 10)
    assert len(text) < 4_000_000
    if num_classes == 2000:
        assert "24 of the 2,000 classes" in text
        assert "10 by 10 neighbouring classes" in text


def test_the_same_run_gives_the_same_page(tmp_path):
    assert write_everything(tmp_path, 2)[0] == write_everything(tmp_path, 2)[0]


def test_absent_groups_measures_and_measurements(render):
    results, _, config = a_run()
    for key in ("head", "middle", "tail"):
        del results[key]
    for entry in results["per_class"].values():
        del entry["volume"]
        entry["scale"] = None
    results["per_class"][FIRST].update(accuracy=None, test_samples=0)
    results["correlations"] = dict.fromkeys(results["correlations"])
    text, page = render(results, [], config)
    assert not any("tail" in part for part in page.text)
    assert page.text.count("undefined") == 5
    assert len(page.all("svg")) == 3, "neither scales, volumes, weights nor curves"
    assert headings(text) == ["What accuracy goes with", "Classes", "How it was made"]
    assert {row[4] for row in classes(page)} == {row[5] for row in classes(page)} == {"–"}
    assert classes(page)[0][1] == "–"
    assert "neither correlation is defined" in reading(text)
    assert "nan" not in "".join(page.text).lower()


@pytest.mark.usefixtures("without_plots")
def test_spaces_with_parts_missing(render):
    results, metrics, config = a_run()
    results["correlations_by_space"] = {
        "sample": {"volume": None, "interclass": {"2": 0.5}, "scale": {"1": -0.25}},
        "elsewhere": {"volume": 0.125},
    }
    _, page = render(results, metrics, config)
    assert page.table("r with") == [
        ["r with", "α = 1", "α = 2"],
        ["N", "0.100"],
        ["E_n", "0.120"],
        ["in the training images themselves"],
        ["W(α)", "undefined", "0.500"],
        ["S′", "undefined"],
        ["S(α)", "−0.250", "undefined"],
        ["elsewhere"],
        ["W(α)", "undefined", "undefined"],
        ["S′", "0.125"],
        ["S(α)", "undefined", "undefined"],
    ]


@pytest.mark.usefixtures("without_plots")
def test_no_pair_was_confused(render, tmp_path):
    arrays = confusions()
    none = {"pairs": arrays["pairs"][:0], "images": arrays["images"][:0], "shown": arrays["shown"][:0]}
    np.savez(tmp_path / "confusions.npz", **arrays | none)
    text, page = render(*a_run())
    assert "confused most often" not in text
    assert page.all("img") == []


@pytest.mark.usefixtures("without_plots")
def test_stages_and_what_a_method_is_made_of_are_told(render):
    results, metrics, config = a_run()
    text, page = render(results, metrics, config)
    assert "<dt>objective</dt>" not in text
    assert all(table[0][0] != "stage" for table in page.tables)
    stages = [{"method": "CE<1>", "epochs": 20}, {"method": "DSB-cRT-CE", "epochs": 0.5}]
    text, page = render({**results, "objective": "ifl+ride", "stages": stages}, metrics, config)
    assert "<dt>objective</dt><dd>ifl+ride</dd>" in text
    assert "<dt>epochs</dt><dd>20 + 0.5</dd>" in text
    assert page.table("stage")[1:] == [["1", "CE<1>", "20", "stages/1"], ["2", "DSB-cRT-CE", "0.5", "this one"]]


@pytest.mark.usefixtures("without_plots")
def test_steps_left_out_are_told(render):
    results, metrics, config = a_run()
    assert "skipped steps" not in render(results, metrics, config)[0]
    metrics[0]["skipped"], metrics[2]["skipped"] = 0, 3
    assert "<dt>skipped steps</dt><dd>3</dd>" in render(results, metrics, config)[0]


def test_no_class_has_an_accuracy(render):
    results, metrics, config = a_run()
    for entry in results["per_class"].values():
        entry["accuracy"] = None
    for line in metrics:
        line |= {"class_accuracy": [None] * 10} if "test_accuracy" in line else {}
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
        ("metrics.jsonl", '{"epoch": 1, "loss": 1}\n', "line 1 lacks 'train_seconds'"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "loss": "x", "accuracy": 0}\n',
            "line 1: loss must be a number or null, got 'x'",
        ),
        (
            "metrics.jsonl",
            '{"epoch": 1, "test_accuracy": 1, "weights": [1]}\n',
            "line 1: 'weights' must be a list of 10 numbers",
        ),
        (
            "metrics.jsonl",
            json.dumps({"epoch": 1, "test_accuracy": 1, "weights": [1] * 10, "scales": ["x"] * 10}),
            "line 1: 'scales' must be a list of 10 numbers",
        ),
        ("environment.json", "{}", "environment.json must hold a list with an object for each start"),
        ("environment.json", "[3]", "environment.json: an entry must hold a JSON object"),
        ("confusions.npz", "PK\x03\x04", "confusions.npz cannot be read"),
        ("confusions.npz", "", "confusions.npz cannot be read"),
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
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels is not a file in the archive"),
        ({"predictions": np.zeros(3, np.int32)}, "does not hold a test pass and images of pairs"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "does not hold a test pass and images of pairs"),
        ({"images": np.zeros((2, 3, 8, 8, 1), np.float32)}, "does not hold a test pass and images of pairs"),
        ({"shown": np.zeros(1, np.int32)}, "does not hold a test pass and images of pairs"),
        ({"pairs": np.array([[0, 10], [1, 2]], np.int32)}, "classes must lie in [0, 10), got 0 to 10"),
    ],
)
def test_confusions_of_the_wrong_form(render, tmp_path, change, message):
    arrays = {name: array for name, array in (confusions() | change).items() if array is not None}
    np.savez(tmp_path / "confusions.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        render(*a_run())
    assert "confusions.npz" in str(raised.value)


@pytest.mark.usefixtures("without_plots")
def test_a_damaged_archive_of_confusions(render, tmp_path):
    path = tmp_path / "confusions.npz"
    np.savez_compressed(path, **confusions())
    content = bytearray(path.read_bytes())
    content[120:160] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"confusions.npz cannot be read"):
        render(*a_run())


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
        ("stages", {"method": "CE"}, "'stages' must be a list of objects with 'method' and 'epochs'"),
        ("stages", [{"method": "CE", "epochs": "ten"}], "'stages' must be a list of objects with 'method' and"),
        ("correlations_by_space", [1], "'correlations_by_space' must hold a JSON object"),
        ("correlations_by_space", {"pool": 1}, "'pool' of 'correlations_by_space' must hold a JSON object"),
        ("correlations_by_space", {"pool": {"scale": {"1": "r"}}}, "'scale' at 1 must be a number or null, got 'r'"),
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


# Retrieval.


@pytest.mark.parametrize("num_classes", [2, 10, 300])
def test_a_run_of_retrieval_says_what_it_found(tmp_path, num_classes):
    results, metrics, config = a_retrieval_run(num_classes)
    np.savez(tmp_path / "retrieval.npz", **queries(num_classes))
    text, page = write_report(tmp_path, results, metrics, config)
    assert "DSB-NSM on digits" in page.text
    for value in ("61.2%", "80.1%", "30.3%", "40.4%", "55.5%"):
        assert value in page.text
    assert headings(text)[:2] == ["Training", "What recall goes with"]
    assert f"for 61.2% of the {20 * num_classes:,} images searched the image nearest to it is of the same" in reading(
        text
    )
    tested, trained = page.table("class"), page.table("training class")
    assert tested[0] == ["class", "recall@1", "images searched", "volume (bits)", "semantic scale"]
    assert [row[0] for row in tested[1:]] == class_names(num_classes)
    assert trained[0] == ["training class", "training samples", "volume (bits)", "semantic scale", "weight"]
    assert len(trained) == 4
    labels = queries(num_classes)["labels"]
    marks = [attributes["class"] for attributes in page.all("figure") if attributes.get("class") in ("right", "wrong")]
    assert marks == ["right" if near == own else "wrong" for own, *others in labels for near in others]
    assert "by t-SNE" in text
    assert "accuracy" not in reading(text)


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(("images", "possible"), [(20, 3), (3, 2), (1, 0)])
def test_no_more_is_to_be_found_than_a_class_has(tmp_path, images, possible):
    results, metrics, config = a_retrieval_run(10)
    for measures in results["per_class"].values():
        measures["test_samples"] = images
    arrays = queries(10)
    np.savez(tmp_path / "retrieval.npz", **arrays)
    text, _ = write_report(tmp_path, results, metrics, config)
    for own, *near in arrays["labels"]:
        found = f"{near.count(own)} of {possible} found" if possible else "no other of its class"
        assert f"<b>{html.escape(class_names(10)[own])}</b>: {found}" in text


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "retreival"}, "'task' must be classification, or retrieval with recall_at_1 or others"),
        ({"training_classes": []}, "'training_classes' must be an object"),
        ({"training_classes": {}}, "'training_classes' must hold an object for each class"),
        ({"recall_at_1": "high"}, "'recall_at_1' must be a number"),
    ],
)
def test_results_of_retrieval_that_are_none(tmp_path, change, message):
    results, metrics, config = a_retrieval_run()
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, results | change, metrics, config)


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize(
    "change", [{"map": np.zeros(3)}, {"map_labels": np.zeros(2, np.int32)}, {"labels": np.full((4, 4), 10, np.int32)}]
)
def test_queries_that_are_none(tmp_path, change):
    np.savez(tmp_path / "retrieval.npz", **queries() | change)
    with pytest.raises(ValueError, match=r"retrieval\.npz"):
        write_report(tmp_path, *a_retrieval_run())
