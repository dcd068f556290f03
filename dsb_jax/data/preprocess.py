"""What happens to a batch of images on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Images as floats of zero mean and unit spread: (images / 255 − mean) / std.

    Args:
      images: uint8 ``[batch, height, width, channels]``.
      mean: the mean of every channel, of images scaled to [0, 1].
      std: the standard deviation of every channel, of the same.

    Returns:
      float32, of the shape of ``images``.

    Raises:
      ValueError: images of another rank or dtype, or statistics that are not one per channel, or an std not above 0.

    Example:
      >>> images = jnp.full((1, 2, 2, 1), 255, jnp.uint8)
      >>> float(normalize(images, mean=[0.5], std=[0.25])[0, 0, 0, 0])
      2.0
    """
    check_images(images)
    given = {name: np.asarray(value, np.float64) for name, value in (("mean", mean), ("std", std))}
    statistics = {name: value.astype(np.float32) for name, value in given.items()}
    for name, value in given.items():
        if value.shape != images.shape[-1:]:
            raise ValueError(f"{name} must be one number per channel ({images.shape[-1]}), got {value.tolist()}")
        if not np.isfinite(statistics[name]).all():
            raise ValueError(f"{name} must be finite, got {value.tolist()}")
    if not (statistics["std"] > 0).all():
        raise ValueError(f"std must be above zero, got {given['std'].tolist()}")
    center, scale = (value.reshape(1, 1, 1, -1) for value in statistics.values())
    return (images.astype(jnp.float32) / 255 - center) / scale


def augment(images: jax.Array, rng: jax.Array, *, flip: bool, crop_padding: int) -> jax.Array:
    """Every image by itself flipped left to right with probability ½, and shifted by a padded crop.

    A crop pads with ``crop_padding`` zeros on each of the four sides and cuts the original size out again, at one of
    (2·crop_padding + 1)² equally likely places. Both take one gather; zeros are those of the uint8 image, black.

    Args:
      images: uint8 ``[batch, height, width, channels]``.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      flip: whether images are flipped.
      crop_padding: not negative; 0 does not crop.

    Returns:
      uint8, of the shape of ``images``.

    Raises:
      ValueError: images of another rank or dtype, or a negative padding.

    Example:
      >>> images = jnp.full((2, 4, 4, 1), 255, jnp.uint8)
      >>> augment(images, jax.random.key(0), flip=True, crop_padding=1).shape
      (2, 4, 4, 1)

    Lee et al., Deeply-Supervised Nets, 2015; He et al., Deep Residual Learning for Image Recognition, 2016.
    """
    check_images(images)
    validation.integer("crop_padding", crop_padding, lowest=0)
    if not flip and not crop_padding:
        return images
    batch, height, width, _ = images.shape
    flip_rng, crop_rng = jax.random.split(rng)
    first = jax.random.randint(crop_rng, (batch, 2), 0, 2 * crop_padding + 1)
    rows = first[:, :1] + jnp.arange(height)[None, :]
    columns = first[:, 1:] + jnp.arange(width)[None, :]
    if flip:
        flipped = jax.random.bernoulli(flip_rng, shape=(batch, 1))
        columns = jnp.where(flipped, width + 2 * crop_padding - 1 - columns, columns)
    padded = jnp.pad(images, [(0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0)])
    return jax.vmap(lambda image, row, column: image[row[:, None], column[None, :]])(padded, rows, columns)


def check_images(images: jax.Array | np.ndarray) -> None:
    """Raises ValueError unless ``images`` are uint8 ``[batch, height, width, channels]``."""
    if jnp.ndim(images) != 4 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 [batch, height, width, channels], got {images.dtype} {list(jnp.shape(images))}"
        )
