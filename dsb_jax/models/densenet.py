"""Networks in which every layer sees all the layers before it in its block (Huang et al., 2017)."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers

_GROWTH = 32  # channels that every layer adds
_FIRST = 64


class DenseNet(layers.NormalizedBackbone):
    """DenseNet-121, 169, 201, as torchvision has them: to as many features as channels have come together.

    Four blocks of layers that each add 32 channels to what they see; between blocks, half of the channels at half the
    resolution. Submodules are ``features_conv0, features_norm0, features_denseblock1_denselayer1, …,
    features_transition1, …, features_norm5``.

    Attributes:
      blocks: how many layers each has.
      stem: ``"imagenet"``, a 7x7 convolution and max-pooling, each halving the resolution; or ``"cifar"``, a 3x3
        convolution that keeps it.
    """

    blocks: tuple[int, ...]
    stem: str = "imagenet"

    torch_head: ClassVar[str] = "classifier"
    least_sides: ClassVar[dict[str, int]] = {"imagenet": 29, "cifar": 8}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        layers.check_side(images, self.least_sides, self.stem, "a DenseNet")
        conv = functools.partial(layers.conv, fan="fan_in", dtype=self.dtype)
        norm, make = self.norm(train), self.kept(DenseLayer)
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = nn.relu(norm(name="features_norm0")(conv(_FIRST, size, stride, name="features_conv0")(images)))
        if self.stem == "imagenet":
            x = layers.max_pool(x, 3, 2, pad=1)
        for number, count in enumerate(self.blocks, start=1):
            for layer in range(1, count + 1):
                added = make(conv, norm, name=f"features_denseblock{number}_denselayer{layer}")(x)
                x = jnp.concatenate([x, added], axis=-1)
            if number < len(self.blocks):
                x = Transition(conv, norm, name=f"features_transition{number}")(x)
        return layers.mean_over_positions(nn.relu(norm(name="features_norm5")(x)))


class DenseLayer(nn.Module):
    """The channels that a layer adds: a 3x3 convolution after a 1x1 one, each after normalisation and ReLU."""

    conv: layers.Layer
    norm: layers.Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(4 * _GROWTH, 1, name="conv1")(nn.relu(self.norm(name="norm1")(x)))
        return self.conv(_GROWTH, 3, name="conv2")(nn.relu(self.norm(name="norm2")(y)))


class Transition(nn.Module):
    """Half the channels at half the resolution."""

    conv: layers.Layer
    norm: layers.Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x.shape[-1] // 2, 1, name="conv")(nn.relu(self.norm(name="norm")(x)))
        return nn.avg_pool(y, (2, 2), (2, 2))
