"""Residual networks for large images, with projections where the shape changes (He et al., 2016, Sec. 4.1)."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from dsb_jax.models import layers


class ResNet(layers.NormalizedBackbone):
    """ResNet, ResNeXt and SE-ResNet, as torchvision and timm have them: to 512 features, 2048 with `Bottleneck`.

    Four stages of 64, 128, 256 and 512 channels (four times as many with `Bottleneck`), each but the first at half the
    resolution of the one before, then the mean over positions. Submodules are named ``conv1, bn1, layer1_0, …`` and
    within them ``conv1, bn1, …, downsample_0, downsample_1``.

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      blocks: how many there are in every stage.
      stem: ``"imagenet"``, a 7x7 convolution and max-pooling, each halving the resolution; or ``"cifar"``, a 3x3
        convolution that keeps it.
      zero_init: whether blocks begin as their shortcuts (Goyal et al., 2017).
      channels: of the stages, as given to ``block``.
      start: blocks that are left out at the beginning, with the stem, and
      stop: at which it ends, without the mean, of a part of the network: from feature maps, or to them.
    """

    block: Callable[..., nn.Module]
    blocks: tuple[int, ...]
    stem: str = "imagenet"
    zero_init: bool = False
    channels: tuple[int, ...] = (64, 128, 256, 512)
    start: int = 0
    stop: int | None = None

    # Below this a stage would halve what is one pixel, and its kernels would see padding on all sides.
    least_sides: ClassVar[dict[str, int]] = {"imagenet": 17, "cifar": 5}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(layers.conv, fan="fan_out", dtype=self.dtype)
        norm, make = self.norm(train), self.kept(self.block)
        x = images
        if self.start == 0:
            layers.check_side(images, self.least_sides, self.stem, "a ResNet")
            size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
            x = nn.relu(norm(name="bn1")(conv(64, size, stride, name="conv1")(x)))
        if self.start == 0 and self.stem == "imagenet":
            x = layers.max_pool(x, 3, 2, pad=1)
        shortcut = functools.partial(_project, conv, norm)
        blocks = [(stage, block) for stage, count in enumerate(self.blocks, start=1) for block in range(count)]
        for stage, block in blocks[self.start : self.stop]:
            stride = 2 if stage > 1 and block == 0 else 1
            channels, name = self.channels[stage - 1], f"layer{stage}_{block}"
            x = make(channels, stride, conv, norm, shortcut, self.zero_init, name=name)(x)
        return x if self.stop is not None else layers.mean_over_positions(x)

    def parts_of_experts(self) -> tuple[nn.Module, nn.Module]:
        """What experts share, up to the second stage, and what each has of its own: the others, 3/4 as wide."""
        cut = sum(self.blocks[:2])
        narrow = tuple(3 * channels // 4 for channels in self.channels[2:])
        return self.clone(stop=cut), self.clone(start=cut, channels=(*self.channels[:2], *narrow))

    def parts_of_branches(self) -> tuple[nn.Module, nn.Module]:
        """What two branches share, and what each has of its own: the last block."""
        cut = sum(self.blocks) - 1
        return self.clone(stop=cut), self.clone(start=cut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, around a shortcut; the stride is in the 3x3 (Goyal et al., 2017).

    The first six arguments are those of `layers.BasicBlock`; the output has four times as many channels. With several
    ``groups``, the 3x3 is as many convolutions side by side: the block of ResNeXt (Xie et al., 2017). With ``squeeze``,
    what is added is scaled by channel: that of SE-ResNet (Hu et al., 2018).

    Attributes:
      groups: of channels that the 3x3 keeps apart.
      group_width: channels of each in the first stage, where there are 64 of ``channels``.
      squeeze: how many times fewer units see all channels; 0 for none.
    """

    channels: int
    stride: int
    conv: layers.Layer
    norm: layers.Layer
    shortcut: layers.Layer
    zero_init: bool = False
    groups: int = 1
    group_width: int = 64
    squeeze: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.channels * self.groups * self.group_width // 64
        y = nn.relu(self.norm(name="bn1")(self.conv(width, 1, name="conv1")(x)))
        y = nn.relu(self.norm(name="bn2")(self.conv(width, 3, self.stride, groups=self.groups, name="conv2")(y)))
        y = self.norm(name="bn3", zero=self.zero_init)(self.conv(4 * self.channels, 1, name="conv3")(y))
        if self.squeeze:
            y *= SqueezeExcite(4 * self.channels // self.squeeze, self.conv, name="se")(y)
        return nn.relu(y + self.shortcut(x, 4 * self.channels, self.stride))


class SqueezeExcite(nn.Module):
    """A factor for each channel, from the means of all of them (Hu et al., 2018).

    Attributes:
      units: in the layer between, in multiples of 8 as timm has them.
      conv: `layers.conv`, without ``channels``, ``size``, ``bias`` and ``name``.
    """

    units: int
    conv: layers.Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        units = max(8, (self.units + 4) // 8 * 8)
        y = layers.mean_over_positions(x).astype(x.dtype)[:, None, None, :]
        y = nn.relu(self.conv(units, 1, bias=True, name="fc1")(y))
        return nn.sigmoid(self.conv(x.shape[-1], 1, bias=True, name="fc2")(y))


def _project(conv: Any, norm: Any, x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option B: ``x`` itself, or its 1x1 convolution where the shape changes."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    return norm(name="downsample_1")(conv(channels, 1, stride, name="downsample_0")(x))
