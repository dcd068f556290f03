"""The toolkit as people start it: every command on real and made-up inputs, what it prints and what it leaves."""

import io
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dsb_jax.data import images
from dsb_jax.toolkit import __main__, beam, class_scales, points, summary
from dsb_jax.toolkit.inputs import Options, held, paths, rows
from dsb_jax.toolkit.moments import Moments

pytestmark = pytest.mark.usefixtures("logging_as_before")

NAMES = ("ant", "bee", "cow")


@pytest.fixture
def embeddings(tmp_path, monkeypatch):
    """Three classes of embeddings in a file, where the command is started."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 40])
    features = 4 * np.eye(3, 8)[labels] + rng.normal(size=(130, 8)) * np.array([2.0, 1.0, 0.3])[labels, None]
    np.savez("bugs.npz", features=features, labels=np.array(NAMES)[labels])
    return points.of(features, labels, NAMES, name="bugs.npz")


def run(capsys, *arguments):
    """The exit code and what was printed."""
    code = __main__.main(arguments)
    return code, *capsys.readouterr()


def found(capsys, *arguments):
    """The JSON of a command that succeeds."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_scales_are_printed_plotted_and_kept(embeddings, capsys):
    code, out, err = run(capsys, "scales", "bugs.npz")
    assert (code, err) == (0, "")
    expected = class_scales.scales(embeddings)
    assert out.splitlines()[0].split()[0] == "class"
    assert expected.reading() in out
    folder = pathlib.Path("toolkit/bugs.npz")
    assert sorted(path.name for path in folder.iterdir()) == [
        "scales-radar.png",
        "scales.json",
        "scales.png",
    ]
    assert cv2.imread(str(folder / "scales.png")) is not None
    kept = json.loads((folder / "scales.json").read_text())
    assert [kept["classes"][name]["volume"] for name in NAMES] == pytest.approx(expected.volume.tolist())
    assert found(capsys, "scales", "bugs.npz") == kept


def test_a_stream_has_the_scales_of_the_whole(embeddings, capsys):
    whole = found(capsys, "scales", "bugs.npz")
    streamed = found(capsys, "scales", "bugs.npz", "--stream")
    assert whole["classes"].keys() == streamed["classes"].keys()
    for name, measures in whole["classes"].items():
        assert streamed["classes"][name] == pytest.approx(measures, rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        ("marginal", "bugs.npz", "--draws", "2", "--counts", "5", "20"),
        ("select", "bugs.npz", "--keep", "7"),
        ("select", "bugs.npz", "--keep", "0.5", "--method", "pizza", "--subsets", "5"),
        ("hierarchy", "bugs.npz"),
        ("hierarchy", "bugs.npz", "--parents", "bugs.npz"),
        ("geometry", "bugs.npz", "--neighbours", "5"),
        ("drift", "bugs.npz", "bugs.npz", "bugs.npz", "--epochs", "1", "2", "4"),
        ("report", "bugs.npz"),
    ],
)
def test_a_command_prints_a_reading_and_leaves_plots_and_json(embeddings, capsys, arguments):
    code, out, err = run(capsys, *arguments, "--out", "results")
    assert (code, err) == (0, "")
    assert out.count("\n") > 3
    left = {path.suffix for path in pathlib.Path("results").iterdir()}
    assert ".json" in left
    assert left & {".png", ".html"}
    json.loads(pathlib.Path("results", f"{arguments[0]}.json").read_text())


def test_what_is_selected_is_listed(embeddings, capsys):
    kept = found(capsys, "select", "bugs.npz", "--keep", "7", "--out", "results")
    chosen = np.loadtxt("results/select.txt", dtype=int)
    assert chosen.tolist() == kept["indices"]
    assert np.bincount(embeddings.labels[chosen]).tolist() == [7, 7, 7]


def test_children_are_matched_to_their_parents(embeddings, capsys):
    pathlib.Path("map.csv").write_text("child,parent\nant,insect\nbee,insect\ncow,mammal\n")
    kept = found(capsys, "hierarchy", "bugs.npz", "--map", "map.csv")
    assert [child["predicted"] for child in kept["children"].values()] == ["insect", "insect", "mammal"]


def test_accuracy_is_read_from_a_table(embeddings, capsys):
    pathlib.Path("accuracy.csv").write_text("class,accuracy\nant,0.9\nbee,0.8\ncow,40%\n")
    kept = found(capsys, "correlate", "bugs.npz", "--accuracy", "accuracy.csv", "--alphas", "1", "2")
    accuracies = {name: of_class["accuracy"] for name, of_class in kept["classes"].items()}
    assert accuracies == pytest.approx({"ant": 0.9, "bee": 0.8, "cow": 0.4})


def test_batches_are_collected_over_calls(embeddings, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [json.dumps({"class": "ant", "features": rng.normal(size=4).tolist()}) for _ in range(40)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines[:30]).encode())))
    code, out, err = run(capsys, "collect", "-", "--state", "ants.npz", "--batch-size", "10", "--tolerance", "0.5")
    assert (code, err) == (0, "")
    assert "ant" in out
    pathlib.Path("more.jsonl").write_text("\n".join(lines[30:]))
    kept = found(capsys, "collect", "more.jsonl", "--state", "ants.npz")
    assert kept["classes"]["ant"]["samples"] == 40
    assert kept["classes"]["ant"]["batches"] == 4
    assert kept["classes"]["ant"]["verdict"] == "enough"
    code, _, err = run(capsys, "collect", "bugs.npz", "--state", "ants.npz")
    assert code == 2
    assert "4" in err
    assert "8" in err


def test_a_dataset_and_a_folder_of_images_are_measured_in_sample_space(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, noise in (("calm", 5), ("wild", 250)):
        pathlib.Path("photos", name).mkdir(parents=True)
        for number in range(4):
            image = rng.integers(0, noise, (20 + number, 30, 3), dtype=np.uint8)
            pathlib.Path("photos", name, f"{number}.png").write_bytes(images.encode_png(image))
    kept = found(capsys, "scales", "photos")
    assert kept["space"] == "sample"
    assert kept["classes"]["calm"]["volume"] < kept["classes"]["wild"]["volume"]
    assert found(capsys, "select", "photos", "--keep", "1")["indices"]
    number, path = pathlib.Path("toolkit/photos/select.txt").read_text().splitlines()[0].split("\t")
    assert path.endswith(f"calm/{int(number)}.png")
    digits = found(capsys, "scales", "digits", "--split", "test")
    assert digits["dim"] == 768
    assert sum(of_class["samples"] for of_class in digits["classes"].values()) == 400


def test_the_report_is_one_page_of_all_findings(embeddings):
    page = summary.report(embeddings, accuracy=np.array([0.9, 0.8, 0.4]))
    assert list(page.found) == ["scales", "marginal", "correlate", "select", "hierarchy", "geometry"]
    text = page.write("report.html").read_text()
    for heading, finding in page.found.values():
        assert heading in text
        for caption, _ in finding.figures().values():
            assert caption.split("'")[0][:40] in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script src" not in text


def test_an_unwritable_folder_is_named(embeddings, capsys):
    pathlib.Path("taken").write_text("")
    code, _, err = run(capsys, "scales", "bugs.npz", "--out", "taken/here")
    assert code == 2
    assert "taken" in err


def test_points_in_memory_are_rows(embeddings):
    again = held(embeddings).load()
    np.testing.assert_array_equal(again.points, embeddings.points)
    np.testing.assert_array_equal(again.labels, embeddings.labels)
    assert paths(held(embeddings)) is None
    assert rows("bugs.npz", Options(dim=2)).dim == 2


@pytest.mark.slow
def test_from_a_shell(embeddings):
    command = [sys.executable, "-m", "dsb_jax.toolkit", "scales", "bugs.npz", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "bugs.npz"


def test_a_class_with_one_sample_is_collected(embeddings, capsys):
    pathlib.Path("one.jsonl").write_text('{"class": "ant", "features": [1, 2]}\n')
    kept = found(capsys, "collect", "one.jsonl", "--state", "one.npz")
    assert kept["classes"]["ant"]["samples"] == 1
    assert kept["classes"]["ant"]["worth_taking"] is None


def test_a_bad_line_of_a_file_leaves_the_state_as_it_was(embeddings, capsys):
    line = '{"class": "ant", "features": [1, 2]}\n'
    pathlib.Path("bad.jsonl").write_text(4 * line + "{}\n")
    code, _, err = run(capsys, "collect", "bad.jsonl", "--state", "bad.npz", "--batch-size", "2")
    assert code == 2
    assert "line 5" in err
    assert not pathlib.Path("bad.npz").exists()


def test_plots_of_another_input_are_removed(embeddings, capsys):
    run(capsys, "scales", "bugs.npz", "--out", "results")
    pathlib.Path("results", "scalesman.png").touch()
    two = embeddings.labels < 2
    np.savez("two.npz", features=embeddings.points[two], labels=embeddings.labels[two])
    _, out, _ = run(capsys, "scales", "two.npz", "--out", "results")
    left = sorted(path.name for path in pathlib.Path("results").iterdir())
    assert left == ["scales.json", "scales.png", "scalesman.png"]
    assert "radar" not in out


def test_files_of_ones_own_are_left_alone_and_not_listed(embeddings, capsys):
    own = ("scales-of-my-fish.png", "scales_notes.txt", "scales.backup.png")
    pathlib.Path("results").mkdir()
    for name in own:
        pathlib.Path("results", name).write_text("precious")
    pathlib.Path("results", "other.png").touch()
    plots = ['["../bugs.npz", "other.png", "scales_notes.txt"]', "3", "[3]", "null"]
    for others in plots:  # of whatever it is
        pathlib.Path("results", "scales.json").write_text(f'{{"plots": {others}}}')
        code, out, _ = run(capsys, "scales", "bugs.npz", "--out", "results")
        assert code == 0
        assert out.splitlines()[-1] == "In results: scales.json, scales.png, scales-radar.png"
    assert [pathlib.Path("results", name).read_text() for name in own] == ["precious"] * 3
    assert pathlib.Path("results", "other.png").exists()
    assert pathlib.Path("bugs.npz").exists()
    assert found(capsys, "scales", "bugs.npz")["plots"] == ["scales.png", "scales-radar.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bugs.npz", "--split=test"), "bugs.npz is a file of rows, for which split has no effect, got 'test'"),
        (("bugs.npz", "--protocol=foo"), "for which protocol has no effect"),
        (("bugs.npz", "--min-side=9"), "for which min_side has no effect"),
        (("bugs.npz", "--data-dir=there"), "for which data_dir has no effect"),
        (("bugs.npz", "--model=resnet50"), "model='resnet50' needs weights too"),
        (("bugs.npz", "--images=photos"), "bugs.npz must be files of rows, such as a folder of .parquet files"),
        (("digits",), "digits must be files of rows"),
        (("bugs.npz", "--stream"), "--stream is for --runner=local"),
        (("bugs.npz", "--space=sample"), "bugs.npz has no images that could be measured in sample space"),
    ],
)
def test_what_beam_does_not_do_is_refused(embeddings, capsys, monkeypatch, arguments, message):
    moments = {"ant": Moments.of(embeddings.points)}
    monkeypatch.setattr(beam, "class_moments", lambda *names, **options: ("feature", moments))
    code, _, err = run(capsys, "scales", *arguments, "--runner=beam")
    assert code == 2
    assert message in err
    assert found(capsys, "scales", "bugs.npz", "--runner=beam", "--space=feature")["space"] == "feature"


@pytest.mark.parametrize("command", ["scales", "marginal", "select"])
def test_samples_that_are_all_alike_are_refused(embeddings, capsys, command):
    np.savez("alike.npz", features=np.ones((40, 3)), labels=np.repeat([0, 1], 20))
    code, _, err = run(capsys, command, "alike.npz", "--out", "results")
    assert code == 2
    assert "alike.npz: " in err
    assert "samples that differ" in err
    assert not list(pathlib.Path("results").glob("*"))


def test_boxes_without_images_ask_for_them(embeddings, capsys):
    pathlib.Path("boxes.json").write_text("{}")
    code, _, err = run(capsys, "scales", "boxes.json")
    assert code == 2
    assert "boxes.json: boxes in COCO's format need images, the folder of the images that they are of" in err


def test_the_size_of_images_is_refused_for_features(embeddings, capsys):
    code, _, err = run(capsys, "scales", "bugs.npz", "--image-size=9")
    assert code == 2
    assert "bugs.npz is measured in feature space, for which image_size has no effect, got 9" in err


def test_what_is_printed_of_a_class_is_one_line(embeddings, capsys):
    names = np.array(["a\nnt", "bee", "c\tow"])[embeddings.labels]
    np.savez("odd.npz", features=embeddings.points, labels=names)
    code, out, _ = run(capsys, "scales", "odd.npz")
    assert code == 0
    assert len(out.splitlines()) == 1 + 3 + 2 + 2
    assert {line.split("  ")[0] for line in out.splitlines()[1:4]} == {"a nt", "bee", "c ow"}


def test_a_class_of_samples_that_are_alike_is_named(embeddings, capsys):
    features = np.concatenate([embeddings.points, np.ones((9, 8))])
    np.savez("some.npz", features=features, labels=[*np.array(NAMES)[embeddings.labels], *["dab"] * 9])
    assert found(capsys, "scales", "some.npz")["reading"].endswith("All samples are alike of dab.")


def test_a_heading_of_other_names_is_told_from_a_row(embeddings, capsys):
    pathlib.Path("map.csv").write_text("child,parents\nant,insect\nbee,insect\ncow,mammal\n")
    code, _, err = run(capsys, "hierarchy", "bugs.npz", "--map", "map.csv")
    assert code == 2
    assert "map.csv must have the columns child and parent, or two columns without a heading" in err
    pathlib.Path("map.csv").write_text("ant,insect\nbea,insect\ncow,mammal\n")
    assert (
        "unknown class in map.csv 'bea'; did you mean 'bee'?"
        in run(capsys, "hierarchy", "bugs.npz", "--map", "map.csv")[2]
    )


def test_integers_keep_their_digits(embeddings, capsys):
    small = np.random.default_rng(0).integers(-50, 50, (40, 3))
    for name, numbers in (("int32", (2**30 + small).astype(np.int32)), ("float64", small.astype(np.float64))):
        np.savez(f"{name}.npz", features=numbers, labels=np.zeros(40, int))
    volumes = [found(capsys, "scales", f"{name}.npz")["classes"]["0"]["volume"] for name in ("int32", "float64")]
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-9)


def test_numbers_without_a_square_are_refused(embeddings, capsys):
    np.savez("huge.npz", features=np.array([[1.0], [1e200]]))
    code, _, err = run(capsys, "scales", "huge.npz")
    assert code == 2
    assert "points must be finite and below 1e+100, got 1e+200 in row 1" in err
    np.savez("large.npz", features=np.float32(3e38) * np.eye(4, dtype=np.float32), labels=[0, 0, 1, 1])
    kept = found(capsys, "scales", "large.npz")
    assert all(of_class["scale"] > 0 for of_class in kept["classes"].values())


def test_files_of_images_are_listed_however_they_are_measured(embeddings, capsys):
    for name in ("a", "b"):
        pathlib.Path("photos", name).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            pathlib.Path("photos", name, f"{number}.png").write_bytes(images.encode_png(pixels))
    files = [f"photos/{name}/{number}.png" for name in "ab" for number in range(3)]
    assert paths(rows("photos")) == files
    assert paths(rows("photos", Options(dim=16))) == files


def test_a_pattern_and_nested_folders_are_one_input(embeddings, capsys):
    pathlib.Path("shards", "deep").mkdir(parents=True)
    pathlib.Path("bugs.npz").rename("shards/deep/part-1.npz")
    assert rows("shards").samples == 130
    assert rows("shards/deep/part-?.npz").samples == 130
