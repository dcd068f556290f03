"""The first Inception network, with batch normalisation as torchvision has it (Szegedy et al., 2015)."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers
from dsb_jax.models.vgg import adaptive_mean

# 1x1; 1x1 and 3x3 after it; 1x1 and what the paper has as 5x5, torchvision as 3x3; 1x1 after max-pooling.
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_POOLS = {"4a": 3, "5a": 2}  # size of the max-pooling before a module
_AUXILIARY = {"4a": "aux1", "4d": "aux2"}  # after which module there is which
_EPSILON = 1e-3


class GoogLeNet(layers.NormalizedBackbone):
    """GoogLeNet to 1024 features.

    Submodules are ``conv1, conv2, conv3, inception3a, …, inception5b``, and in an inception module ``branch1,
    branch2_0, branch2_1, branch3_0, branch3_1, branch4_1``, each with ``conv`` and ``bn``.

    Attributes:
      stem: ``"imagenet"``, which takes an eighth of the resolution; or ``"cifar"``, a 3x3 convolution in place of the
        7x7, and no pooling before the first inception module.
      auxiliary: classes of two further classifiers, ``aux1`` and ``aux2``, of maps halfway; 0 for none. With them it
        returns, besides the features, their logits in training ``[2, batch, classes]``, else None.
    """

    stem: str = "imagenet"
    auxiliary: int = 0

    least_sides: ClassVar[dict[str, int]] = {"imagenet": 15, "cifar": 8}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array | tuple[jax.Array, jax.Array | None]:
        layers.check_side(images, self.least_sides, self.stem, "a GoogLeNet")
        conv = functools.partial(layers.conv, dtype=self.dtype)
        basic = functools.partial(BasicConv, conv=conv, norm=functools.partial(self.norm(train), epsilon=_EPSILON))
        make, whole = self.kept(Inception), self.stem == "imagenet"
        x = basic(64, *((7, 2) if whole else (3, 1)), name="conv1")(images)
        x = layers.max_pool(x, 3, 2, ceil=True) if whole else x
        x = basic(192, 3, name="conv3")(basic(64, 1, name="conv2")(x))
        x = layers.max_pool(x, 3, 2, ceil=True) if whole else x
        logits = []
        for name, channels in _INCEPTIONS.items():
            if name in _POOLS:
                x = layers.max_pool(x, _POOLS[name], 2, ceil=True)
            x = make(channels, basic, name=f"inception{name}")(x)
            # Made in evaluation too while variables are initialised, so that these do not depend on the mode.
            if self.auxiliary and name in _AUXILIARY and (train or self.is_initializing()):
                logits.append(Auxiliary(self.auxiliary, basic, name=_AUXILIARY[name])(x, train=train))
        features = nn.Dropout(0.2, deterministic=not train)(layers.mean_over_positions(x))
        if not self.auxiliary:
            return features
        return features, jnp.stack(logits).astype(jnp.float32) if logits else None


class BasicConv(nn.Module):
    """A convolution, normalised, with ReLU."""

    channels: int
    size: int = 1
    stride: int = 1
    conv: layers.Layer = layers.conv
    norm: layers.Layer = layers.batch_norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(self.norm(name="bn")(self.conv(self.channels, self.size, self.stride, name="conv")(x)))


class Inception(nn.Module):
    """Four branches side by side."""

    channels: tuple[int, ...]
    basic: layers.Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, three_in, three, five_in, five, pooled = self.channels
        branches = [
            self.basic(one, 1, name="branch1")(x),
            self.basic(three, 3, name="branch2_1")(self.basic(three_in, 1, name="branch2_0")(x)),
            self.basic(five, 3, name="branch3_1")(self.basic(five_in, 1, name="branch3_0")(x)),
            self.basic(pooled, 1, name="branch4_1")(layers.max_pool(x, 3, 1, pad=1)),
        ]
        return jnp.concatenate(branches, axis=-1)


class Auxiliary(nn.Module):
    """A classifier of a map halfway, which brings its gradient nearer to the first layers."""

    classes: int
    basic: layers.Layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.basic(128, 1, name="conv")(adaptive_mean(x, 4))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        x = nn.Dropout(0.7, deterministic=not train)(nn.relu(nn.Dense(1024, name="fc1")(x)))
        return nn.Dense(self.classes, name="fc2")(x)
