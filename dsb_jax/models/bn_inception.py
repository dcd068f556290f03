"""Inception with batch normalisation, the backbone of metric learning (Ioffe & Szegedy, 2015)."""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers


class Widths(NamedTuple):
    """Channels of a module: of its 1x1, its 3x3 and its two 3x3, the latter after 1x1 ones, and after pooling.

    Without a 1x1 and with 0 after pooling it halves the resolution. ``pool`` is ``"mean"`` or ``"max"``.
    """

    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int
    pooled: int
    pool: str = "mean"


_MODULES = {
    "3a": Widths(64, 64, 64, 64, 96, 32),
    "3b": Widths(64, 64, 96, 64, 96, 64),
    "3c": Widths(0, 128, 160, 64, 96, 0, "max"),
    "4a": Widths(224, 64, 96, 96, 128, 128),
    "4b": Widths(192, 96, 128, 96, 128, 128),
    "4c": Widths(160, 128, 160, 128, 160, 128),
    "4d": Widths(96, 128, 192, 160, 192, 128),
    "4e": Widths(0, 128, 192, 192, 256, 0, "max"),
    "5a": Widths(352, 192, 320, 160, 224, 128),
    "5b": Widths(352, 192, 320, 192, 224, 128, "max"),
}


class BNInception(layers.NormalizedBackbone):
    """BN-Inception to 1024 features, as in Cadene's pretrained models and the code of SoftTriple.

    Submodules have PyTorch's flat names: ``conv1_7x7_s2, conv1_7x7_s2_bn, …, inception_3a_1x1,
    inception_3a_1x1_bn, …``.

    Attributes:
      stem: ``"imagenet"``, which takes an eighth of the resolution; or ``"cifar"``, a 3x3 convolution in place of the
        7x7, and no pooling before the first inception module.
    """

    stem: str = "imagenet"

    torch_head: ClassVar[str] = "last_linear"
    least_sides: ClassVar[dict[str, int]] = {"imagenet": 15, "cifar": 8}

    @staticmethod
    def torch_name(path: tuple[str, ...]) -> str:
        """The same."""
        return ".".join(path)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        layers.check_side(images, self.least_sides, self.stem, "a BN-Inception")
        whole = self.stem == "imagenet"
        conv = functools.partial(_conv, self.norm(train), self.dtype)
        x = conv(images, 64, *((7, 2) if whole else (3, 1)), "conv1_7x7_s2")
        x = layers.max_pool(x, 3, 2, ceil=True) if whole else x
        x = conv(conv(x, 64, 1, 1, "conv2_3x3_reduce"), 192, 3, 1, "conv2_3x3")
        x = layers.max_pool(x, 3, 2, ceil=True) if whole else x
        for name, widths in _MODULES.items():
            module = functools.partial(_inception, widths=widths, conv=conv, prefix=f"inception_{name}_")
            x = self.kept(lambda _, x, module=module: module(x))(self, x)
        return layers.mean_over_positions(x)


def _conv(norm: Any, dtype: Any, x: jax.Array, channels: int, size: int, stride: int, name: str) -> jax.Array:
    x = layers.conv(channels, size, stride, bias=True, dtype=dtype, name=name)(x)
    return nn.relu(norm(name=f"{name}_bn")(x))


def _inception(x: jax.Array, widths: Widths, conv: layers.Layer, prefix: str) -> jax.Array:
    """The branches of a module side by side; ``conv`` is ``(x, channels, size, stride, name) -> x``."""
    stride = 1 if widths.one else 2
    branches = [conv(x, widths.one, 1, 1, f"{prefix}1x1")] if widths.one else []
    three = conv(x, widths.three_reduce, 1, 1, f"{prefix}3x3_reduce")
    branches.append(conv(three, widths.three, 3, stride, f"{prefix}3x3"))
    double = conv(x, widths.double_reduce, 1, 1, f"{prefix}double_3x3_reduce")
    double = conv(double, widths.double, 3, 1, f"{prefix}double_3x3_1")
    branches.append(conv(double, widths.double, 3, stride, f"{prefix}double_3x3_2"))
    if stride == 2:  # to the size that the convolutions beside it have, of a map with an odd side too
        pads = [(0, 1 + side % 2) for side in x.shape[1:3]]
        pooled = nn.max_pool(x, (3, 3), (2, 2), padding=pads)
    elif widths.pool == "max":
        pooled = layers.max_pool(x, 3, 1, pad=1)
    else:  # what is beyond the map counts as 0
        pooled = nn.avg_pool(x, (3, 3), (1, 1), padding=((1, 1), (1, 1)))
    branches.append(conv(pooled, widths.pooled, 1, 1, f"{prefix}pool_proj") if widths.pooled else pooled)
    return jnp.concatenate(branches, axis=-1)
