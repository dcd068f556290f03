"""That what a command line asks for arrives where it is computed, and likewise what a report is made with."""

import inspect
import pathlib
import sys

import numpy as np
import pytest

from dsb_jax.toolkit import __main__, feature_drift, points, summary
from dsb_jax.toolkit.points import Points

pytestmark = pytest.mark.usefixtures("logging_as_before")

NAMES = ("ant", "bee", "cow")


class Arrived(Exception):
    """A function was called, with these arguments by name."""

    def __init__(self, arguments):
        super().__init__()
        self.arguments = arguments


def catch(monkeypatch, function):
    """Instead of running, the function says what it was called with."""
    module, name = f"dsb_jax.toolkit.{function}".rsplit(".", 1)
    signature = inspect.signature(getattr(sys.modules[module], name))

    def caught(*given, **named):
        arguments = dict(signature.bind(*given, **named).arguments)
        raise Arrived(arguments | arguments.pop("options", {}))

    monkeypatch.setattr(sys.modules[module], name, caught)


def plain(value):
    """Points by their name and vectors as lists; numbers with their type, as 1 sample is not 1.0 of all."""
    if isinstance(value, np.ndarray | list | tuple):
        return np.asarray(value).tolist()
    value = value.name if isinstance(value, Points) else value
    return type(value), value


def arrives(call, expected):
    """The call reaches the function that is caught, with all that is expected."""
    with pytest.raises(Arrived) as arrived:
        call()
    found = arrived.value.arguments
    assert {key: plain(found[key]) for key in expected} == {key: plain(value) for key, value in expected.items()}


@pytest.fixture
def embeddings(tmp_path, monkeypatch):
    """Three classes of embeddings in files, and tables of them, where the command is started."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [12, 8, 10])
    features = rng.normal(size=(30, 4)) + labels[:, None]
    for name in ("bugs.npz", "later.npz"):
        np.savez(name, features=features, labels=np.array(NAMES)[labels])
    pathlib.Path("map.csv").write_text("child,parent\nant,insect\nbee,insect\ncow,mammal\n")
    pathlib.Path("accuracy.csv").write_text("class,accuracy\nant,0.9\nbee,0.8\ncow,0.4\n")
    return points.of(features, labels, NAMES, name="bugs.npz")


PARENTS = {"ant": "insect", "bee": "insect", "cow": "mammal"}
ASKED = [
    ("scales bugs.npz --alpha 3 --epsilon 0.5", "class_scales.scales", {"alpha": 3.0, "epsilon": 0.5}),
    ("scales bugs.npz --alpha 3 --epsilon 0.5 --stream", "class_scales.of_moments", {"alpha": 3.0, "epsilon": 0.5}),
    (
        "marginal bugs.npz --counts 3 9 --draws 2 --epsilon 0.5 --seed 7",
        "growth.marginal",
        {"points": "bugs.npz", "counts": [3, 9], "draws": 2, "epsilon": 0.5, "seed": 7},
    ),
    (
        "collect bugs.npz --state bugs_state.npz --tolerance 0.2 --epsilon 0.5",
        "collection.start",
        {"tolerance": 0.2, "epsilon": 0.5},
    ),
    (
        "select bugs.npz --keep 7 --method pizza --subsets 11 --epsilon 0.5 --seed 7",
        "selection.select",
        {"keep": 7, "method": "pizza", "subsets": 11, "epsilon": 0.5, "seed": 7},
    ),
    ("select bugs.npz --keep 0.5", "selection.select", {"keep": 0.5}),
    ("select bugs.npz --keep 1", "selection.select", {"keep": 1}),
    ("select bugs.npz --keep 1.0", "selection.select", {"keep": 1.0}),
    (
        "hierarchy bugs.npz --map map.csv --epsilon 0.5 --seed 7",
        "matching.match_halves",
        {"parent_of": PARENTS, "epsilon": 0.5, "seed": 7},
    ),
    (
        "hierarchy bugs.npz --map map.csv --siblings --epsilon 0.5",
        "matching.match_siblings",
        {"parent_of": PARENTS, "epsilon": 0.5},
    ),
    (
        "hierarchy bugs.npz --parents later.npz --epsilon 0.5",
        "matching.match",
        {"children": "bugs.npz", "parents": "later.npz", "parent_of": None, "epsilon": 0.5},
    ),
    (
        "hierarchy bugs.npz --parents later.npz --map map.csv",
        "matching.match",
        {"children": "bugs.npz", "parents": "later.npz", "parent_of": PARENTS},
    ),
    ("hierarchy bugs.npz --epsilon 0.5", "agglomeration.of", {"classes": "bugs.npz", "epsilon": 0.5}),
    (
        "correlate bugs.npz --accuracy accuracy.csv --alphas 1 4 --epsilon 0.5 --resamples 99 --seed 7",
        "correlation.correlate",
        {"accuracy": [0.9, 0.8, 0.4], "alphas": [1, 4], "epsilon": 0.5, "resamples": 99, "seed": 7},
    ),
    (
        "drift bugs.npz later.npz --epochs 2 6 --start-epoch 3 --epsilon 0.5 --seed 7",
        "feature_drift.of_points",
        {"epochs": [2, 6], "start_epoch": 3.0, "epsilon": 0.5, "seed": 7},
    ),
    ("drift bugs.npz later.npz", "feature_drift.of_points", {"epochs": [1, 2]}),
    (
        "drift workdir --split test --data-dir data --start-epoch 3",
        "feature_drift.of_run",
        {"split": "test", "data_dir": "data", "start_epoch": 3.0},
    ),
    (
        "geometry bugs.npz --neighbours 6 --dimension 2 --rows 9 --epsilon 0.5 --seed 7",
        "class_geometry.geometry",
        {"neighbours": 6, "dimension": 2, "rows": 9, "epsilon": 0.5, "seed": 7},
    ),
    (
        "report bugs.npz --keep 7 --alpha 3 --epsilon 0.5 --seed 7 --accuracy accuracy.csv",
        "summary.report",
        {"keep": 7, "alpha": 3.0, "epsilon": 0.5, "seed": 7, "accuracy": [0.9, 0.8, 0.4], "drift": None},
    ),
]


@pytest.mark.parametrize(("line", "function", "expected"), ASKED, ids=[line for line, *_ in ASKED])
def test_every_option_arrives(embeddings, monkeypatch, line, function, expected):
    catch(monkeypatch, function)
    arrives(lambda: __main__.main(line.split()), expected)


@pytest.mark.parametrize(
    ("line", "function"),
    [
        ("scales bugs.npz", "class_scales.scales"),
        ("scales bugs.npz --stream", "class_scales.of_moments"),
        ("marginal bugs.npz", "growth.marginal"),
        ("select bugs.npz", "selection.select"),
        ("hierarchy bugs.npz", "agglomeration.of"),
        ("hierarchy bugs.npz --map map.csv", "matching.match_halves"),
        ("correlate bugs.npz --accuracy accuracy.csv", "correlation.correlate"),
        ("geometry bugs.npz", "class_geometry.geometry"),
        ("report bugs.npz", "summary.report"),
    ],
)
def test_what_is_not_asked_for_is_as_in_python(embeddings, monkeypatch, line, function):
    module, name = f"dsb_jax.toolkit.{function}".rsplit(".", 1)
    of_python = inspect.signature(getattr(sys.modules[module], name)).parameters
    own = ("progress", "space", "name")  # of the command or of its input
    defaults = {
        key: each.default for key, each in of_python.items() if each.default is not each.empty and key not in own
    }
    catch(monkeypatch, function)
    with pytest.raises(Arrived) as arrived:
        __main__.main(line.split())
    left = {key: plain(arrived.value.arguments.get(key, default)) for key, default in defaults.items()}
    assert left == {key: plain(default) for key, default in defaults.items()}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("class_scales.scales", {"alpha": 3.0, "epsilon": 0.5}),
        ("growth.marginal", {"epsilon": 0.5, "seed": 7}),
        ("correlation.correlate", {"accuracy": [0.9, 0.8, 0.4], "epsilon": 0.5, "seed": 7}),
        ("selection.select", {"keep": 3, "epsilon": 0.5, "seed": 7}),
        ("agglomeration.of", {"epsilon": 0.5}),
        ("class_geometry.geometry", {"epsilon": 0.5, "seed": 7}),
    ],
)
def test_a_report_passes_on_what_it_is_made_with(embeddings, monkeypatch, function, expected):
    catch(monkeypatch, function)
    made_with = {"accuracy": np.array([0.9, 0.8, 0.4]), "keep": 3, "alpha": 3.0, "epsilon": 0.5, "seed": 7}
    arrives(lambda: summary.report(embeddings, **made_with), expected)


def test_a_drift_has_a_section_of_the_report(embeddings):
    moved = feature_drift.of_points([embeddings, embeddings], [1, 2])
    page = summary.report(embeddings, drift=moved)
    heading, finding = page.found["drift"]
    assert finding is moved
    assert moved.reading() in page.reading()
    assert page.as_dict()["findings"]["drift"] == moved.as_dict()
    one = summary.Report("bugs", 3, {"drift": page.found["drift"]})  # to draw the others takes seconds
    assert f">{heading}<" in one.write("report.html").read_text()
    assert "drift" not in summary.report(embeddings).found
