"""Logits of trained runs less a prior, against the run's own results and small numbers by hand."""

import json
import pathlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import digits

from dsb_jax import training

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))

import post_hoc


def test_the_mean_is_over_classes_however_many_examples_they_have():
    scores = np.array([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.2, 1.0]])
    labels = np.array([0, 0, 0, 1])
    assert post_hoc.class_mean(scores, labels) == 0.5
    assert post_hoc.class_mean(scores - np.array([0.5, 0.0]), labels) == 1.0


def test_priors_are_logarithms_of_volumes_of_coding_lengths_and_of_counts():
    found = post_hoc.priors(np.array([3.0, 2.0, 0.0, 0.0]), np.array([20, 6, 1, 0]), dim=4)
    expected = np.log([[8, 4, 4, 4], [24 * 3, 10 * 2, 10 * 2, 10 * 2], [20, 6, 1, 1]])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_without_a_prior_it_is_the_accuracy_of_the_run(tmp_path, capsys):
    training.train(digits("epochs=2"), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    own = np.mean([each["accuracy"] for each in results["per_class"].values()])
    by_volumes, by_lengths, by_counts = post_hoc.accuracies(tmp_path, [0.0, 50.0])
    assert by_volumes[0] == by_lengths[0] == by_counts[0] == pytest.approx(own)
    # What is left of a large τ is the class of the smallest prior, for every image.
    for each in (by_volumes, by_lengths):
        assert each[1] == pytest.approx(1 / len(results["per_class"]))
    assert post_hoc.main([str(tmp_path), "--taus", "0"]) == 0
    assert "    0" + 3 * f" {100 * own:14.2f}" in capsys.readouterr().out


def test_rows_are_of_a_run_and_a_tau():
    found = np.array([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]])
    rows = post_hoc.rows([pathlib.Path("/a/b/gpu/data/ce/seed0")], [0.0, 1.5], found)
    assert [tuple(row[name] for name in post_hoc.COLUMNS) for row in rows] == [
        ("gpu/data/ce/seed0", "0", "0.1000", "0.3000", "0.5000"),
        ("gpu/data/ce/seed0", "1.5", "0.2000", "0.4000", "0.6000"),
    ]


def test_features_that_are_constant_are_one_error(monkeypatch, capsys):
    run = SimpleNamespace(
        config=SimpleNamespace(dsb=SimpleNamespace(epsilon=1.0)),
        experiment=SimpleNamespace(counts=np.array([2, 2])),
        labels=np.array([0, 0, 1, 1]),
        points=lambda: SimpleNamespace(points=np.ones((4, 3), np.float32)),
    )
    monkeypatch.setattr(post_hoc.run_features, "load", lambda *_, **__: run)
    assert post_hoc.main(["dead"]) == 2
    assert capsys.readouterr().err == "error: no class of dead has a volume: features must not be constant\n"


def test_what_is_no_run_is_one_error(tmp_path, capsys):
    assert post_hoc.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: input must be the workdir of a run")
