"""What happens to a batch of images on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsb_jax.data import preprocess

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_normalize_equals_float64(transform):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    normalized = transform(lambda x: preprocess.normalize(x, MEAN, STD))(jnp.asarray(images))
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, (images / 255.0 - np.array(MEAN)) / np.array(STD), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "mean", "std", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), MEAN, STD, "images must be uint8 .*, got float32"),
        (np.zeros((4, 4, 3), np.uint8), MEAN, STD, r"images must be uint8 .*, got uint8 \[4, 4, 3\]"),
        (np.zeros((1, 4, 4, 1), np.uint8), MEAN, STD, r"mean must be one number per channel \(1\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), MEAN, 0.25, r"std must be one number per channel \(3\), got 0.25"),
        (np.zeros((1, 4, 4, 3), np.uint8), MEAN, (0.2, 0.0, 0.2), "std must be above zero"),
    ],
)
def test_normalize_refuses(images, mean, std, message):
    with pytest.raises(ValueError, match=message):
        preprocess.normalize(jnp.asarray(images), mean, std)


# Every pixel of every image has a value of its own, and none is zero.
TELLTALE = np.arange(1, 1 + 6 * 7 * 3, dtype=np.uint8).reshape(1, 6, 7, 3)


def crops(image, flip, padding):
    """All that may become of an image, by (flipped, top, left)."""
    height, width, _ = image.shape
    outcomes = {}
    for flipped in (False, True) if flip else (False,):
        padded = np.pad(image[:, ::-1] if flipped else image, [(padding, padding), (padding, padding), (0, 0)])
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                outcomes[flipped, top, left] = padded[top : top + height, left : left + width].tobytes()
    assert len(set(outcomes.values())) == len(outcomes)
    return {content: choice for choice, content in outcomes.items()}


@pytest.mark.parametrize(("flip", "padding"), [(True, 0), (False, 2), (True, 2), (True, 9)])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_augmented_images_are_flipped_padded_crops(flip, padding, transform):
    images = np.concatenate([TELLTALE, TELLTALE[:, ::-1], TELLTALE + np.uint8(100)])
    function = transform(lambda x, rng: preprocess.augment(x, rng, flip=flip, crop_padding=padding))
    for seed in range(4):
        augmented = np.asarray(function(jnp.asarray(images), jax.random.key(seed)))
        assert (augmented.shape, augmented.dtype) == (images.shape, np.uint8)
        for image, original in zip(augmented, images, strict=True):
            if padding < 6:
                assert image.tobytes() in crops(original, flip, padding)
            else:  # shifted out of sight, some are the same: all zero
                assert set(image.ravel()) <= {0, *original.ravel()}


def test_flips_and_places_are_uniform_and_independent():
    samples, choices = 36_000, crops(TELLTALE[0], flip=True, padding=1)
    images = np.repeat(TELLTALE, samples, axis=0)
    augmented = np.asarray(preprocess.augment(jnp.asarray(images), jax.random.key(7), flip=True, crop_padding=1))
    drawn = [choices[image.tobytes()] for image in augmented]
    counts = np.array([drawn.count(choice) for choice in choices.values()])
    assert len(counts) == 18
    expected = samples / 18
    # Chi-square with 17 degrees of freedom: 40.8 is exceeded by one seed in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 40.8
    # Neighbours in the batch draw independently of each other.
    flipped = np.array([choice[0] for choice in drawn])
    assert abs(np.corrcoef(flipped[:-1], flipped[1:])[0, 1]) < 4 / np.sqrt(samples)


def test_nothing_asked_is_the_identity():
    images = jnp.asarray(TELLTALE)
    assert preprocess.augment(images, jax.random.key(0), flip=False, crop_padding=0) is images


def test_augmentation_does_not_depend_on_the_devices():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    function = jax.jit(lambda x, rng: preprocess.augment(x, rng, flip=True, crop_padding=4))
    key = jax.random.key(5)
    alone = function(jnp.asarray(images), key)
    np.testing.assert_array_equal(function(spread, key), alone)
    np.testing.assert_array_equal(preprocess.augment(images, key, flip=True, crop_padding=4), alone)
    # No device asks another for images.
    compiled = function.lower(spread, key).compile().as_text()
    assert not any(word in compiled for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(
    ("images", "padding", "message"),
    [
        (TELLTALE.astype(np.float32), 1, "images must be uint8 .*, got float32"),
        (TELLTALE[0], 1, r"images must be uint8 .*, got uint8 \[6, 7, 3\]"),
        (TELLTALE, -1, "crop_padding must be an integer >= 0, got -1"),
        (TELLTALE, 1.5, "crop_padding must be an integer >= 0, got 1.5"),
    ],
)
def test_augment_refuses(images, padding, message):
    with pytest.raises(ValueError, match=message):
        preprocess.augment(jnp.asarray(images), jax.random.key(0), flip=True, crop_padding=padding)
