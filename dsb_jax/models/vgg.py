"""Plain stacks of 3x3 convolutions with max-pooling between (Simonyan & Zisserman, 2015)."""

import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax.models import layers

_CHANNELS = (64, 128, 256, 512, 512)  # of the stages
_SIDE = 7  # of the map that the fully connected layers see
_WIDE = 4096


class VGG(layers.NormalizedBackbone):
    """VGG-16 and its like, as torchvision has them: to the 4096 outputs of the second fully connected layer.

    Five stages, each ending in max-pooling. With ``stem="cifar"`` the first and the last one do not, so that images of
    32x32 end as maps of 4x4, and their mean over positions is the features: 512. Submodules are ``features_0,
    features_1, …``, counted as in PyTorch with activations and pooling, and ``classifier_0, classifier_3``.

    Attributes:
      convolutions: how many there are in every stage.
      batch_norm: whether each is normalised.
      stem: ``"imagenet"`` or ``"cifar"``.
    """

    convolutions: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False
    stem: str = "imagenet"

    torch_head: ClassVar[str] = "classifier.6"
    least_sides: ClassVar[dict[str, int]] = {"imagenet": 32, "cifar": 8}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        layers.check_side(images, self.least_sides, self.stem, "a VGG")
        x, number = images, 0
        for stage, count in enumerate(self.convolutions):
            names = [number + step * (2 + self.batch_norm) for step in range(count)]
            x = self.kept(functools.partial(self._stage, channels=_CHANNELS[stage], names=names, train=train))(self, x)
            if self.stem == "imagenet" or 0 < stage < len(self.convolutions) - 1:
                x = layers.max_pool(x, 2, 2)
            number = names[-1] + 2 + self.batch_norm + 1
        return layers.mean_over_positions(x) if self.stem == "cifar" else self._fully_connected(x, train)

    @staticmethod
    def _stage(module, x, channels, names, train):
        for number in names:
            x = layers.conv(channels, bias=True, dtype=module.dtype, name=f"features_{number}")(x)
            x = module.norm(train)(name=f"features_{number + 1}")(x) if module.batch_norm else x
            x = nn.relu(x)
        return x

    def _fully_connected(self, x, train):
        x = adaptive_mean(x, _SIDE)
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # in PyTorch's order, so that its weights are ours
        dense = functools.partial(nn.Dense, _WIDE, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype)
        drop = nn.Dropout(0.5, deterministic=not train)
        x = drop(nn.relu(dense(name="classifier_0")(x)))
        return drop(nn.relu(dense(name="classifier_3")(x)))


def adaptive_mean(x: jax.Array, side: int) -> jax.Array:
    """Means over ``side`` by ``side`` windows that cover a map ``[batch, height, width, channels]`` of any size.

    Window i goes from ``⌊i·n/side⌋`` to ``⌈(i+1)·n/side⌉``, PyTorch's ``AdaptiveAvgPool2d``.

    Example:
      >>> print(adaptive_mean(jnp.arange(3.0).reshape(1, 1, 3, 1), 2)[0, 0, :, 0])
      [0.5 1.5]
    """
    rows, columns = (jnp.asarray(_windows(length, side), x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def _windows(length: int, side: int) -> Any:
    """``[side, length]``: of each window a row of what it takes of every pixel."""
    weights = np.zeros((side, length))
    for window in range(side):
        first, end = window * length // side, math.ceil((window + 1) * length / side)
        weights[window, first:end] = 1 / (end - first)
    return weights
