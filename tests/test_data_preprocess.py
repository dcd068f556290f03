"""What happens to a batch of images on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
