"""A network of LeNet's size, for digits of 8x8 or 28x28 pixels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class LeNet(nn.Module):
    """Two 5x5 convolutions with 2x2 max-pooling and a hidden layer: images to 128 features.

    After LeCun et al., 1998, with ReLU, max-pooling, and padding for images as small as 4x4.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train  # No layer here depends on it.
        if min(images.shape[1:3]) < 4:
            raise ValueError(f"lenet needs images of at least 4x4 pixels, got {images.shape[1:3]}")
        he_normal = nn.initializers.he_normal()
        x = images
        for index, channels in enumerate((20, 50), start=1):
            x = nn.Conv(channels, (5, 5), kernel_init=he_normal, dtype=self.dtype, name=f"conv{index}")(x)
            x = nn.relu(nn.max_pool(x, (2, 2), (2, 2)))
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(128, kernel_init=he_normal, dtype=self.dtype, name="hidden")(x))
