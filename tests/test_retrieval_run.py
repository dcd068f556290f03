"""Runs that are judged by what they find: results against NumPy and scikit-learn, pages, and bad settings."""

import dataclasses
import json
import types

import flax
import jax
import numpy as np
import pytest
import reference
from pages import read_page
from scipy.stats import pearsonr
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import normalize
from small_run import digits, saved_arrays

from dsb_jax import models, training
from dsb_jax.evaluation import compare
from dsb_jax.toolkit import __main__ as toolkit
from dsb_jax.training import experiment, tasks

FAST = {"task": "retrieval", "objective": "norm_softmax", "embedding": 8, "optimizer": "adam", "learning_rate": 0.003}
FAST |= {"protocol": "retrieval", "tensorboard": False, "sample_space": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on six digits that looked for the other four, and what its task was given in the end."""
    workdir, seen = tmp_path_factory.mktemp("run"), []
    with pytest.MonkeyPatch.context() as patch:
        outputs = tasks.Retrieval.outputs

        def kept(self, *arguments):
            seen.append(outputs(self, *arguments))
            return seen[-1]

        patch.setattr(tasks.Retrieval, "outputs", kept)
        config = digits("head_rate_factor=3", **FAST | {"start_epoch": 1})
        results = training.train(config, workdir)
    built = experiment.build(config)
    return types.SimpleNamespace(workdir=workdir, results=results, built=built, features=seen[-1]["features"])


def similarities(features):
    """Of all pairs in float64, less than any other with itself."""
    directions = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    similarity = directions @ directions.T
    np.fill_diagonal(similarity, -2.0)
    return similarity


def test_its_results_are_those_of_every_pair(run):
    labels = run.built.test.labels
    order = np.argsort(-similarities(run.features), axis=1, kind="stable")[:, :-1]
    right = labels[order] == labels[:, None]
    for k in (1, 2, 4, 8):
        np.testing.assert_allclose(run.results[f"recall_at_{k}"], right[:, :k].any(axis=1).mean(), atol=3e-3)
    relevant = (np.bincount(labels) - 1)[labels]
    rank = np.arange(1, len(labels))
    within = right & (rank[None] <= relevant[:, None])
    average = (np.cumsum(within, axis=1) / rank[None] * within).sum(axis=1) / relevant
    np.testing.assert_allclose(run.results["map_at_r"], average.mean(), atol=1e-3)
    np.testing.assert_allclose(run.results["r_precision"], (within.sum(axis=1) / relevant).mean(), atol=1e-3)
    recall = [entry["recall"] for entry in run.results["per_class"].values()]
    expected = [right[labels == label, 0].mean() for label in range(4)]
    np.testing.assert_allclose(recall, expected, atol=0.03)
    clusters = KMeans(4, n_init=10, random_state=1).fit_predict(normalize(run.features))
    np.testing.assert_allclose(run.results["nmi"], normalized_mutual_info_score(labels, clusters), atol=0.02)
    assert run.results["recall_at_1"] > 0.6  # it has learnt what it has never seen; by chance a quarter
    assert "top1" not in run.results


def test_classes_are_measured_where_they_are_searched_and_where_they_were_trained(run):
    labels, rows = run.built.test.labels, run.results["per_class"].values()
    volumes = reference.class_volumes(run.features, labels, 4)
    np.testing.assert_allclose([row["volume"] for row in rows], volumes, rtol=1e-4)
    centers = reference.class_centers(run.features, labels, 4)
    np.testing.assert_allclose(
        [row["scale"] for row in rows], reference.semantic_scales(volumes, centers, 2.0), rtol=1e-4
    )
    assert [row["test_samples"] for row in rows] == [181, 179, 174, 180]
    assert list(run.results["per_class"]) == ["6", "7", "8", "9"]
    assert list(run.results["training_classes"]) == ["0", "1", "2", "3", "4", "5"]
    trained = run.results["training_classes"].values()
    np.testing.assert_array_equal([row["samples"] for row in trained], [int(177 / 20 ** (i / 5)) for i in range(6)])
    np.testing.assert_allclose(np.sum([row["weight"] for row in trained]), 6, rtol=1e-5)
    recall, scale = ([row[key] for row in rows] for key in ("recall", "scale"))
    np.testing.assert_allclose(run.results["correlations"]["scale"], pearsonr(recall, scale).statistic, atol=1e-5)


def test_the_toolkit_knows_accuracies_of_the_classes_that_were_searched(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert toolkit.main(["correlate", str(run.workdir)]) == 2
    assert "--split names what is measured, such as test" in capsys.readouterr().err
    assert toolkit.main(["correlate", str(run.workdir), "--split", "test", "--json"]) == 0
    accuracies = [row["accuracy"] for row in json.loads(capsys.readouterr().out)["classes"].values()]
    assert accuracies == pytest.approx([row["recall"] for row in run.results["per_class"].values()])
    assert toolkit.main(["report", str(run.workdir)]) == 0


def test_every_evaluation_has_a_line(run):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "recall_at_1" in line]
    assert [int(line["epoch"]) for line in evaluations] == [1, 2, 3]
    for name in ("recall_at_1", "recall_at_8", "map_at_r", "r_precision"):
        assert evaluations[-1][name] == run.results[name]
    assert len(evaluations[-1]["weights"]) == 6


def test_the_page_shows_queries_with_their_nearest(run):
    with np.load(run.workdir / "retrieval.npz") as arrays:
        labels, images, points = (arrays[name] for name in ("labels", "images", "map"))
    test, similarity = run.built.test, similarities(run.features)
    everything = np.stack([test.source[row]["image"] for row in range(len(test))])
    for row_labels, row_images in zip(labels, images, strict=True):
        # Among equal images any may be the query.
        (query, *_) = np.flatnonzero((everything == row_images[0]).all(axis=(1, 2, 3)))
        assert test.labels[query] == row_labels[0]
        # Those that are as near but for float32's rounding may come in any order.
        shown = [(everything == image).all(axis=(1, 2, 3)) for image in row_images[1:]]
        near = [similarity[query, rows].max() for rows in shown]
        np.testing.assert_allclose(near, np.sort(similarity[query])[:-6:-1], atol=1e-6)
        assert [set(test.labels[rows]) for rows in shown] == [{label} for label in row_labels[1:]]
    right = labels[:, 1] == labels[:, 0]
    assert len(labels) == 12
    assert right.sum() == 6
    assert points.shape == (714, 2)
    assert np.isfinite(points).all()
    text, page = read_page(run.workdir / "report.html")
    assert "DSB-NSM on digits" in page.text
    assert text.count('<figure class="right">') == (labels[:, 1:] == labels[:, :1]).sum()
    assert text.count('<figure class="wrong">') == (labels[:, 1:] != labels[:, :1]).sum()
    assert f"{run.results['nmi']:.1%}" in page.text
    assert (len(page.table("class")), len(page.table("training class"))) == (5, 7)
    assert "for 6 of these 12 the nearest is right" in text


@pytest.mark.slow
def test_runs_are_compared_by_what_they_find(run, tmp_path):
    config = digits("head_rate_factor=3,balancer=uniform", **FAST | {"epochs": 1})
    other = training.train(config, tmp_path / "other")
    text, page = read_page(compare.write([tmp_path / "other", run.workdir], tmp_path / "compare.html"))
    difference = 100 * (run.results["recall_at_1"] - other["recall_at_1"])
    assert f"DSB-NSM against NSM: R@1 {difference:+.1f} points".replace("-", "−", 2).replace("−NSM", "-NSM") in text
    (row,) = [row for table in page.tables for row in table if row[-1] == run.workdir.name and len(row) > 5]
    assert row[0] == "DSB-NSM"
    assert f"{100 * run.results['nmi']:.1f}" in row


def test_classes_that_were_never_trained_are_searched():
    """Of another number than the trained ones, and some of them with no image."""
    built = experiment.build(digits(**FAST))
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3], [3, 4, 5]).astype(np.int32)
    test = dataclasses.replace(built.test, class_names=("ant", "bee", "cow", "doe"))
    vars(test)["labels"] = labels
    built = dataclasses.replace(built, test=test)
    task = tasks.create(digits(**FAST), built)
    features = rng.normal(size=(12, 8)).astype(np.float32)
    program = types.SimpleNamespace(test=lambda state, names, check: {"features": features})
    outputs = task.outputs(program, None, lambda: None)
    trained = {name: np.ones(6) for name in ("samples", "weight", "volume", "interclass", "scale")}
    results = task.results(outputs, trained, dict)
    assert list(results["per_class"]) == ["ant", "bee", "cow", "doe"]
    assert np.isnan(results["per_class"]["bee"]["recall"])
    assert results["per_class"]["bee"]["scale"] == 0
    assert [entry["test_samples"] for entry in results["per_class"].values()] == [3, 0, 4, 5]
    assert len(results["training_classes"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("task=retreival", "unknown task 'retreival'; did you mean 'retrieval'"),
        ("retrieval.ks=()", "retrieval.ks must hold an integer >= 1 or several, got none"),
        ("retrieval.ks=(0,)", "retrieval.ks must be an integer >= 1, got 0"),
        ("retrieval.ks=(1,800)", "retrieval.ks must be below the 714 images that are searched, got 800"),
        ("embedding=0", "embedding must be an integer >= 1, got 0"),
        ("embedding=None,embedding_norm=True", "embedding must be its width"),
        ("embedding=8,objective=paco", r"an embedding or a projection, got embedding=8 and projection"),
        ("init_bgr=True", "init_from is not set"),
        ("head_rate_factor=0", "head_rate_factor must be a finite number > 0, got 0"),
        (
            "task=classification,protocol=classification,objective=circle",
            "task must be 'retrieval', or objective 'circle\\+supervised'",
        ),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.build(digits(arguments, **FAST))


@pytest.mark.parametrize(
    ("arguments", "dim"), [("embedding=8", 8), ("embedding=100", 64), ("embedding=100,dsb.dim=100", 100)]
)
def test_the_pool_holds_embeddings_as_they_are_or_as_many_channels_as_it_is_told(arguments, dim):
    balancer = experiment.build(digits(arguments, **FAST | {"embedding": None})).balancer
    assert jax.eval_shape(balancer.init).state.pool.rows.shape[-1] == dim


@pytest.mark.slow
def test_new_layers_are_trained_first(tmp_path):
    """An epoch in which the backbone keeps its weights and statistics, then all, from where that left them."""
    config = digits("stages=new_layers,model=resnet8", **FAST | {"epochs": 1})
    training.train(config, tmp_path)
    first, last = (saved_arrays(folder) for folder in (tmp_path / "stages" / "1", tmp_path))
    built = experiment.build(digits("model=resnet8", **FAST))
    images = np.zeros((1, *built.train.image_shape), np.float32)
    start = built.model.init(jax.random.split(jax.random.key(0), 3)[1], images, train=False)
    start = {"/".join(path): leaf for path, leaf in flax.traverse_util.flatten_dict(dict(start)).items()}
    for path, leaf in start.items():
        moved = not np.allclose(first[path], leaf, atol=1e-6)  # but for the rounding of what is not compiled
        assert moved == path.startswith(("params/embedding", "params/head")), path
    assert not np.array_equal(last["params/backbone/conv1/kernel"], first["params/backbone/conv1/kernel"])


def test_a_class_of_which_one_image_is_searched_is_refused(monkeypatch):
    train, test = experiment._splits(digits(**FAST))
    alone = dataclasses.replace(test)
    vars(alone)["labels"] = np.where(np.arange(714) == 7, 3, 1).astype(np.int32)
    monkeypatch.setattr(experiment, "_splits", lambda config: (train, alone))
    with pytest.raises(ValueError, match="got a single one of '9' in test of digits"):
        experiment.build(digits(**FAST))


# The model.


@pytest.mark.parametrize("layer_norm", [False, True])
def test_embeddings_are_a_dense_layer_at_length_1(layer_norm):
    plain = models.create("lenet", 5)
    model = models.create("lenet", 5, head="cosine", embedding=6, embedding_norm=layer_norm)
    images = jax.random.normal(jax.random.key(1), (3, 12, 12, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    of_embedding = variables["params"]["embedding"]["output"]
    assert sorted(of_embedding) == (["kernel"] if layer_norm else ["bias", "kernel"])
    shifted = jax.tree.map(lambda leaf: leaf + 0.3, of_embedding)
    params = variables["params"] | {"embedding": {"output": shifted}}
    outputs = model.apply({"params": params}, images, train=False)
    backbone = {
        "backbone": params["backbone"],
        "head": plain.init(jax.random.key(0), images, train=False)["params"]["head"],
    }
    pooled = np.asarray(plain.apply({"params": backbone}, images, train=False).features, np.float64)
    if layer_norm:
        pooled = (pooled - pooled.mean(axis=1, keepdims=True)) / np.sqrt(pooled.var(axis=1, keepdims=True) + 1e-5)
    dense = pooled @ np.asarray(shifted["kernel"], np.float64) + np.asarray(shifted.get("bias", 0.0), np.float64)
    directions = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs.features, directions, rtol=1e-4, atol=1e-5)
    proxies = np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(
        outputs.logits, directions @ (proxies / np.linalg.norm(proxies, axis=0)), rtol=1e-4, atol=1e-5
    )
