"""Inputs by name: each becomes the rows that its reader, or the images themselves, would give."""

import pathlib
import re

import numpy as np
import pytest
import small_run

import dsb_jax
from dsb_jax import data, training
from dsb_jax.data import images
from dsb_jax.toolkit import inputs
from dsb_jax.toolkit.inputs import Options, run_features


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of PyTorch's weights of a small network."""
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    small_run.made_up_weights("resnet8", path)
    return str(path)


def test_a_dataset_is_its_pixels():
    split = data.load("digits", "test")
    pixels = np.stack([example["image"] for example in split.source.__getitems__(range(len(split)))])
    found = inputs.rows("digits", Options(split="test", image_size=4))
    points = found.load()
    np.testing.assert_allclose(points.points, dsb_jax.pixel_features(pixels, image_size=4), atol=1e-6)
    np.testing.assert_array_equal(points.labels, split.labels)
    assert points.class_names == tuple(split.class_names)
    assert (points.space, found.samples, found.dim) == ("sample", 400, 48)
    assert [len(labels) for _, labels in found.blocks(150)] == [150, 150, 100]


def test_a_dataset_is_features_by_a_network(weights):
    points = inputs.rows("digits", Options(split="test", model="resnet8", weights=weights)).load()
    split = data.load("digits", "test", image_size=32, shorter_side=37)
    pixels = np.stack([example["image"] for example in split.source.__getitems__(range(40))])
    np.testing.assert_allclose(points.points[:40], run_features.Network("resnet8", weights)(pixels), rtol=1e-4)
    assert (points.space, points.points.shape) == ("feature", (400, 64))


def test_a_folder_is_features_by_a_network(weights, tmp_path):
    rng = np.random.default_rng(0)
    for name, side in (("a", 40), ("b", 64)):
        (tmp_path / name).mkdir()
        encoded = images.encode_png(rng.integers(0, 256, (side, 50, 3), dtype=np.uint8))
        (tmp_path / name / "1.png").write_bytes(encoded)
    options = Options(model="resnet8", weights=weights)
    points = inputs.rows(tmp_path, options).load()
    pixels = [images.decode_square((tmp_path / name / "1.png").read_bytes(), 32, 3, shorter_side=37) for name in "ab"]
    np.testing.assert_allclose(points.points, run_features.Network("resnet8", weights)(np.stack(pixels)), rtol=1e-4)
    assert points.class_names == ("a", "b")
    (tmp_path / "b" / "2.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"b/2\.png: "):
        inputs.rows(tmp_path, options).load()


@pytest.mark.slow
def test_a_run_is_features_by_its_model_or_its_images(tmp_path):
    training.train(small_run.digits(epochs=1), tmp_path / "run")
    features = inputs.rows(tmp_path / "run").load()
    np.testing.assert_array_equal(features.points, run_features.load(tmp_path / "run").points().points)
    pixels = inputs.rows(tmp_path / "run", Options(space="sample")).load()
    assert (features.space, pixels.space) == ("feature", "sample")
    np.testing.assert_array_equal(features.labels, pixels.labels)
    assert pixels.points.shape == (len(features.labels), 768)


def test_rows_are_pooled(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(3, 8)
    np.save(tmp_path / "a.npy", rows)
    points = inputs.rows(tmp_path / "a.npy", Options(dim=2)).load()
    np.testing.assert_allclose(points.points, rows.reshape(3, 2, 4).mean(axis=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "smaple"}, "unknown space 'smaple'; did you mean 'sample'"),
        ({"weights": "x.safetensors"}, "weights='x.safetensors' needs model too"),
        ({"space": "sample", "model": "resnet8", "weights": "x"}, "space='sample' is of images themselves"),
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
    ],
)
def test_options_that_contradict(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Options(**options)


def test_what_is_there_comes_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        pathlib.Path("digits", name).mkdir(parents=True)
        pathlib.Path("digits", name, "1.png").write_bytes(images.encode_png(np.zeros((4, 4, 3), np.uint8)))
    assert inputs.rows("digits").samples == 2
    with pytest.raises(ValueError, match=r"there is no file or folder 'didgits'.*did you mean 'digits'"):
        inputs.rows("didgits")
    with pytest.raises(FileNotFoundError, match="prepare it with"):
        inputs.rows("mnist", Options(data_dir=str(tmp_path)))
