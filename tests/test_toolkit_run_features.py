"""Features of runs against the model applied by hand, from workdirs that stay as they are; and of PyTorch's weights."""

import dataclasses
import functools
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from safetensors.numpy import save_file

from dsb_jax import models, training
from dsb_jax.models import zoo
from dsb_jax.toolkit import feature_drift, moments
from dsb_jax.toolkit.inputs import run_features
from dsb_jax.training import experiment as experiments
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.step import init_state
from dsb_jax.training.workdir import Workdir

STEPS = (8, 15, 22)
DIM = 32  # of LeNet's 128


def moved(tree, seed, scale=0.02):
    """A tree with a little noise on all that it holds."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    noise = [scale * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, [leaf + each for leaf, each in zip(leaves, noise, strict=True)])


def saved(workdir, **settings):
    """A workdir as a run leaves it that was saved at `STEPS`, its experiment, and its states there."""
    config = small_run.digits(**settings)
    experiment = experiments.build(config)
    parts = (experiment.model, experiment.objective, experiment.balancer, experiment.optimizer)
    state, states = init_state(*parts, jnp.zeros((1, *experiment.train.image_shape)), seed=0), []
    with Workdir(workdir, config) as files:
        files.require_dataset(experiment.dataset)
        files.begin()
        files.write_indices(experiment.indices)
    with Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
        for step in STEPS:
            state = dataclasses.replace(state, params=moved(state.params, step))
            checkpoints.save(step, state, {})
            states.append(state)
    return workdir, experiment, states


def features_of(experiment, variables, rows, split):
    """The model on images as they are stored, one batch, averaged over neighbouring channels."""
    images = np.stack([split.source[int(row)]["image"] for row in rows]).astype(np.float32)
    pixels = (images / 255 - 0.305) / 0.376
    features = experiment.model.apply(variables, jnp.asarray(pixels, jnp.float32), train=False).features
    return np.asarray(features).reshape(len(rows), DIM, -1).mean(axis=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with three checkpoints, its experiment and its states."""
    return saved(tmp_path_factory.mktemp("runs") / "digits", dsb={"dim": DIM})


def entries(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_features_are_those_of_the_saved_model_in_the_order_of_its_rows(run):
    workdir, experiment, kept = run
    before = entries(workdir)
    loaded = run_features.load(workdir)
    assert loaded.steps == STEPS
    assert loaded.epoch(22) == pytest.approx(22 * 64 / small_run.EXAMPLES)
    assert loaded.learning_rate(8, 15) == pytest.approx(
        np.mean([float(experiment.schedule(step)) for step in range(8, 15)])
    )
    seen = []
    for step, state in ((8, kept[0]), (22, kept[2]), (None, kept[2])):
        found = loaded.points(step, progress=lambda batches, total: seen.append(total) or batches)
        wanted = features_of(experiment, state.evaluated, experiment.indices, experiment.train)
        np.testing.assert_allclose(found.points, wanted, atol=1e-5)
    assert seen == [-(-small_run.EXAMPLES // 200)] * 3
    np.testing.assert_array_equal(found.labels, experiment.train.labels[experiment.indices])
    assert found.counts.tolist() == small_run.COUNTS.tolist()
    assert (found.class_names, found.name, found.space) == (experiment.class_names, "digits/train", "feature")
    assert entries(workdir) == before


def test_test_images_are_all_there(run):
    workdir, experiment, kept = run
    found = run_features.load(workdir, split="test").points(15)
    wanted = features_of(experiment, kept[1].evaluated, range(400), experiment.test)
    np.testing.assert_allclose(found.points, wanted, atol=1e-5)
    np.testing.assert_array_equal(found.labels, experiment.test.labels)


def test_a_run_that_is_still_at_it_can_be_read(run):
    workdir, experiment, _ = run
    with Workdir(workdir, small_run.digits(dsb={"dim": DIM})):
        assert len(run_features.load(workdir).points().points) == len(experiment.indices)


def test_averaged_parameters_are_those_that_count(run, tmp_path):
    workdir, experiment, kept = run
    copied(workdir, tmp_path, {"checkpoints": None})
    average = {"params": moved(kept[0].params, 0, 0.05), "batch_stats": {}}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, dataclasses.replace(kept[0], average=average), {})
    found = run_features.load(tmp_path).points()
    wanted = features_of(experiment, average, experiment.indices, experiment.train)
    np.testing.assert_allclose(found.points, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"initial": "gone"},
        {"initial": "gone", "reinitialize": "head/*", "trainable": "head/*"},
        {"teacher": "gone", "objective": "dive", "loss": "balanced_softmax"},
        {"devices": 8, "data_dir": "/gone"},
    ],
)
def test_what_a_run_began_with_may_be_gone(run, tmp_path, settings, tfds_data_dir):
    workdir, experiment, kept = run
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    config = json.loads((workdir / "config.json").read_text()) | settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = run_features.load(tmp_path, data_dir=tfds_data_dir).points()
    wanted = features_of(experiment, kept[2].evaluated, experiment.indices, experiment.train)
    np.testing.assert_allclose(found.points, wanted, atol=1e-5)


def test_drift_is_that_of_the_features(run):
    workdir, experiment, kept = run
    told = []
    found = feature_drift.of_run(workdir, progress=lambda steps, total: told.append(total) or steps)
    features = [features_of(experiment, state.evaluated, experiment.indices, experiment.train) for state in kept]
    np.testing.assert_allclose(found.epochs, [64 * step / small_run.EXAMPLES for step in STEPS])
    for place, (before, after) in enumerate(itertools.pairwise(features)):
        wanted = np.linalg.norm(after - before, axis=1).mean() / np.sqrt(after.var(axis=0).sum())
        assert found.drifts[place] == pytest.approx(wanted, rel=1e-3)
    rates = [np.mean([float(experiment.schedule(step)) for step in range(*of)]) for of in ((8, 15), (15, 22))]
    np.testing.assert_allclose(found.learning_rates, rates, rtol=1e-5)
    assert told == [3]
    assert found.start_epoch == 5.0


def test_one_checkpoint_does_not_drift(run, tmp_path):
    workdir = copied(run[0], tmp_path, {"checkpoints": None})
    (workdir / "checkpoints").mkdir()
    (workdir / "checkpoints" / "15").symlink_to(run[0] / "checkpoints" / "15")
    with pytest.raises(ValueError, match=r"drift needs two checkpoints or more, got 1 in .* keep_checkpoints=1000"):
        feature_drift.of_run(workdir)


def copied(workdir, folder, changes):
    """A workdir of the same checkpoints in which some files are others."""
    (folder / "checkpoints").symlink_to(workdir / "checkpoints")
    for name in ("config.json", "dataset.json", "train_indices.npy"):
        (folder / name).write_bytes((workdir / name).read_bytes())
    for name, content in changes.items():
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, np.ndarray):
            np.save(folder / name, content)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


OTHER_IMAGES = {"splits": {"train": {"digest": "0", "is": "9 images"}, "test": {"digest": "0", "is": "9 images"}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config.json": None}, "there is no config.json"),
        ({"config.json": "[]"}, "its config.json holds a list"),
        ({"checkpoints": None}, "input must be the workdir of a run with a checkpoint: there is none in"),
        ({"dataset.json": OTHER_IMAGES}, "is on another digits than is here: train was 9 images, and is 1,397 images"),
        ({"dataset.json": "{}"}, "does not tell its images: 'splits'"),
        ({"train_indices.npy": np.arange(3)}, "was trained on other rows of digits than its settings choose"),
    ],
)
def test_what_is_no_run_is_one_error(run, tmp_path, changes, message):
    workdir = copied(run[0], tmp_path, changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        run_features.load(workdir)


def test_other_errors_name_what_is_wanted(run, tmp_path):
    workdir = run[0]
    with pytest.raises(ValueError, match="unknown split 'val'"):
        run_features.load(workdir, split="val")
    with pytest.raises(ValueError, match=r"input has no checkpoint of step 9 in .*, of steps there are 8, 15, 22"):
        run_features.load(workdir).points(9)
    config = json.loads((workdir / "config.json").read_text()) | {"dataset": "cifar10", "mean": None, "std": None}
    other = copied(workdir, tmp_path, {"config.json": config})
    with pytest.raises(FileNotFoundError, match=r"prepare it with: python -m dsb_jax\.data\.prepare cifar10"):
        run_features.load(other, data_dir=tmp_path)


def test_a_damaged_checkpoint_is_named_and_left_where_it_is(run, tmp_path):
    workdir = copied(run[0], tmp_path, {"checkpoints": None})
    folder = workdir / "checkpoints"
    shutil.copytree(run[0] / "checkpoints", folder)
    (folder / "22" / "checkpoint.json").write_text("{}")
    loaded = run_features.load(workdir)
    for step in (22, None):
        with pytest.raises(ValueError, match=r"input: the checkpoint .*22 is damaged"):
            loaded.points(step)
    assert sorted(path.name for path in folder.iterdir()) == ["15", "22", "8"]
    assert len(loaded.points(8).points) == small_run.EXAMPLES


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of PyTorch's weights of resnet8, and the variables that they are."""
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    return path, *small_run.made_up_weights("resnet8", path)


def some_images(number, channels=3, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, side, side, channels), np.uint8)


@functools.cache
def compiled(network):
    return jax.jit(lambda variables, pixels: network.apply(variables, pixels, train=False).features)


def by_hand(network, variables, images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    """Of four images at a time, so that it compiles once."""
    filled = np.resize(images, (4, *images.shape[1:])).astype(np.float32)
    pixels = (filled / 255 - np.float32(mean)) / np.float32(std)
    return np.asarray(compiled(network)(variables, pixels))[: len(images)]


def test_images_are_normalised_as_for_imagenet(weights):
    path, network, variables = weights
    batches = [some_images(4), some_images(1, seed=1), some_images(3, seed=2)]  # the last ones are filled up
    features_of = run_features.Network("resnet8", path)
    assert features_of.dim == 64
    for images in batches:
        np.testing.assert_allclose(features_of(images), by_hand(network, variables, images), rtol=1e-4)


def test_grey_images_have_three_equal_channels(weights):
    path, network, variables = weights
    features = run_features.Network("resnet8", path)(some_images(4, channels=1))
    wanted = by_hand(network, variables, np.repeat(some_images(4, channels=1), 3, axis=3))
    np.testing.assert_allclose(features, wanted, rtol=1e-4)


def test_networks_with_settings_of_their_own_see_images_as_they_were_trained(weights, monkeypatch):
    path, network, variables = weights
    settings = zoo.entry("bn_inception").settings
    monkeypatch.setitem(zoo._ENTRIES, "resnet8", zoo.entry("resnet8")._replace(settings=settings))
    features = run_features.Network("resnet8", path)(some_images(4))
    wanted = by_hand(network, variables, some_images(4)[..., ::-1], (0.502, 0.459, 0.408), (0.00392,) * 3)
    np.testing.assert_allclose(features, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([some_images(2), some_images(2, side=8)], "images must be of one size, got [8, 8, 3] after [16, 16, 3]"),
        ([some_images(2) / 255], "images must be uint8 [batch, height, width, channels], got float64"),
        ([some_images(2)[0]], "images must be uint8 [batch, height, width, channels], got uint8 [16, 16, 3]"),
    ],
)
def test_images_that_do_not_fit(weights, batches, message):
    network = run_features.Network("resnet8", weights[0])
    with pytest.raises(ValueError, match=re.escape(message)):
        list(map(network, batches))


def test_weights_that_do_not_fit(weights, tmp_path):
    with pytest.raises(ValueError, match="these are no weights of a resnet18"):
        run_features.Network("resnet18", weights[0])
    with pytest.raises(ValueError, match="unknown model 'resnet9'; did you mean"):
        run_features.Network("resnet9", weights[0])
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(ValueError, match=r"empty.safetensors' is no file of safetensors that can be read"):
        run_features.Network("resnet8", tmp_path / "empty.safetensors")


@pytest.mark.slow
def test_positions_are_of_one_size_of_images(tmp_path):
    network = models.create("vit_small", 2)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    save_file(models.to_torch("vit_small", variables), tmp_path / "vit.safetensors")
    features = run_features.Network("vit_small", tmp_path / "vit.safetensors")(some_images(1, side=64))
    assert features.shape == (1, 384)
    with pytest.raises(ValueError, match=r"vit.safetensors for images \[32, 32, 3\] do not fit .*pos_embed"):
        run_features.Network("vit_small", tmp_path / "vit.safetensors")(some_images(1, side=32))


@pytest.mark.slow
@pytest.mark.parametrize("stages", ["", "crt;;epochs=1", "dive"])
def test_volumes_are_those_of_a_finished_runs_results(tmp_path, stages):
    """Of stages the last, whose model was taught by or began with the one before."""
    workdir = tmp_path / "run"
    loss = {"loss": "balanced_softmax"} if stages == "dive" else {}
    results = training.train(small_run.digits(epochs=2, keep_checkpoints=9, stages=stages, **loss), workdir)
    loaded = run_features.load(workdir)
    found = loaded.points()
    wanted = [entry["volume"] for entry in results["per_class"].values()]
    np.testing.assert_allclose(moments.volumes(found.points, found.labels, 10), wanted, rtol=1e-4)
    assert loaded.steps[-1] == results["steps"]
    found = feature_drift.of_run(workdir / "stages" / "1" if stages else workdir)
    assert np.isfinite(found.drifts).all()
    assert found.drifts.shape == (1,)
