"""What a finished run found, from made-up features and predictions."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small_run import COUNTS, digits

from dsb_jax.training import experiment, results, tasks

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def found():
    """Results of a run whose pool lacks class 9, and what they were made of."""
    config = digits("model=lenet")
    built = experiment.build(config)
    labels = built.train.labels[built.indices]
    features = RNG.normal(size=(len(labels), 64)) * (1 + labels[:, None] / 5) + RNG.normal(size=(10, 64))[labels]
    pixels = RNG.normal(size=(len(labels), 12)) * (1 + labels[:, None])
    pool = {
        "weights": jnp.ones(10),
        "counts": jnp.asarray(COUNTS).at[9].set(0),
        "volumes": jnp.arange(10.0).at[9].set(0.0),
        "centers": jnp.asarray(RNG.normal(size=(10, 64)).astype(np.float32)),
    }
    program = types.SimpleNamespace(
        summary=lambda balancing: pool,
        training_features=lambda state, check: features.astype(np.float32),
        training_pixels=lambda check: pixels.astype(np.float32),
    )
    predictions = np.where(RNG.random(400) < 0.3, (built.test.labels + 1) % 10, built.test.labels)
    predictions[:20] = 3
    state = types.SimpleNamespace(balancing=None, skipped=jnp.int32(2))
    outputs = {"prediction": predictions}
    content = results.results(config, built, program, state, tasks.create(config, built), outputs, lambda: None)
    accuracy = np.array([np.mean(predictions[built.test.labels == label] == label) for label in range(10)])
    return types.SimpleNamespace(
        results=content, built=built, labels=labels, features=features, pixels=pixels, pool=jax.device_get(pool),
        accuracy=accuracy, predictions=predictions, files=tasks.create(config, built).files(outputs),
    )  # fmt: skip


@pytest.mark.parametrize(("space", "epsilon"), [("features", 1.0), ("pixels", 1.0)])
def test_every_space_has_its_volumes_and_scales(found, space, epsilon):
    points = getattr(found, space)
    volumes = reference.class_volumes(points, found.labels, 10)
    centers = reference.class_centers(points, found.labels, 10)
    measured = found.results["correlations_by_space"][{"features": "feature", "pixels": "sample"}[space]]
    np.testing.assert_allclose(measured["volume"], np.corrcoef(found.accuracy, volumes)[0, 1], atol=1e-5)
    for alpha in (1, 1.5, 2, 2.5, 3):
        scales = reference.semantic_scales(volumes, centers, alpha)
        expected = np.corrcoef(found.accuracy, scales)[0, 1]
        np.testing.assert_allclose(measured["scale"][f"{alpha:g}"], expected, atol=1e-5)


def test_a_class_that_the_pool_lacks_is_left_out_there(found):
    measured = found.results["correlations_by_space"]["pool"]
    expected = np.corrcoef(found.accuracy[:9], found.pool["volumes"][:9])[0, 1]
    np.testing.assert_allclose(measured["volume"], expected, atol=1e-6)
    scales = reference.semantic_scales(found.pool["volumes"][:9], found.pool["centers"][:9], 2)
    np.testing.assert_allclose(measured["scale"]["2"], np.corrcoef(found.accuracy[:9], scales)[0, 1], atol=1e-5)


def test_accuracies_and_counts(found):
    labels = found.built.test.labels
    np.testing.assert_allclose(found.results["top1"], np.mean(found.predictions == labels))
    assert found.results["skipped_steps"] == 2
    rows = found.results["per_class"].values()
    np.testing.assert_allclose([row["accuracy"] for row in rows], found.accuracy)
    np.testing.assert_array_equal([row["samples"] for row in rows], COUNTS)


def test_confusions_show_images_of_the_pair_they_are_of(found):
    content = found.files["confusions.npz"]
    labels = found.built.test.labels
    np.testing.assert_array_equal(content["labels"], labels)
    np.testing.assert_array_equal(content["predictions"], found.predictions)
    assert len(content["pairs"]) == 6
    for (true, predicted), images, shown in zip(content["pairs"], content["images"], content["shown"], strict=True):
        rows = np.flatnonzero((labels == true) & (found.predictions == predicted))
        assert shown == min(len(rows), len(images)) > 0
        for row, image in zip(rows, images[:shown], strict=False):
            np.testing.assert_array_equal(image, found.built.test.source[row]["image"])
        assert not images[shown:].any()
