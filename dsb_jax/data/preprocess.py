"""What happens to a batch of images on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


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
    if jnp.ndim(images) != 4 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 [batch, height, width, channels], got {images.dtype} {list(jnp.shape(images))}"
        )
    statistics = {name: np.asarray(value, np.float32) for name, value in (("mean", mean), ("std", std))}
    for name, value in statistics.items():
        if value.shape != images.shape[-1:]:
            raise ValueError(f"{name} must be one number per channel ({images.shape[-1]}), got {value.tolist()}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got {value.tolist()}")
    if not (statistics["std"] > 0).all():
        raise ValueError(f"std must be above zero, got {statistics['std'].tolist()}")
    mean, std = (value.reshape(1, 1, 1, -1) for value in statistics.values())
    return (images.astype(jnp.float32) / 255 - mean) / std
