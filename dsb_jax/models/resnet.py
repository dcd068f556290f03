"""Residual networks for large images, with projections where the shape changes (He et al., 2016, Sec. 4.1)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers

# How a network begins -> the smallest side of an image: below it a stage would halve what is one pixel, and its kernels
# would see padding on all sides.
STEMS = {"imagenet": 17, "cifar": 5}


class ResNet(nn.Module):
    """ResNet-18, 34, 50, ResNeXt-50 and their like, as torchvision has them: to 512 features, 2048 with `Bottleneck`.

    Four stages of 64, 128, 256 and 512 channels (four times as many with `Bottleneck`), each but the first at half the
    resolution of the one before, then the mean over positions. Submodules are named ``conv1, bn1, layer1_0, …`` and
    within them ``conv1, bn1, …, downsample_0, downsample_1``.

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      blocks: how many there are in every stage.
      stem: ``"imagenet"``, a 7x7 convolution and max-pooling, each halving the resolution; or ``"cifar"``, a 3x3
        convolution that keeps it.
      dtype: what it computes in.
      channels: of the stages, as given to ``block``.
      start: blocks that are left out at the beginning, with the stem, and
      stop: at which it ends, without the mean, of a part of the network: from feature maps, or to them.
    """

    block: Callable[..., nn.Module]
    blocks: tuple[int, ...]
    stem: str = "imagenet"
    dtype: Any = jnp.float32
    channels: tuple[int, ...] = (64, 128, 256, 512)
    start: int = 0
    stop: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(layers.conv, fan="fan_out", dtype=self.dtype)
        norm = functools.partial(layers.batch_norm, train, dtype=self.dtype)
        x = images
        if self.start == 0:
            self._check_size(images.shape[1:3])
            size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
            x = nn.relu(norm(name="bn1")(conv(64, size, stride, name="conv1")(x)))
        if self.start == 0 and self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        shortcut = functools.partial(_project, conv, norm)
        blocks = [(stage, block) for stage, count in enumerate(self.blocks, start=1) for block in range(count)]
        for stage, block in blocks[self.start : self.stop]:
            stride = 2 if stage > 1 and block == 0 else 1
            channels, name = self.channels[stage - 1], f"layer{stage}_{block}"
            x = self.block(channels, stride, conv, norm, shortcut, name=name)(x)
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

    def _check_size(self, size):
        least = STEMS[self.stem]
        if min(size) < least:
            hint = f', or {STEMS["cifar"]}x{STEMS["cifar"]} with stem="cifar"' if self.stem == "imagenet" else ""
            raise ValueError(
                f'a ResNet with stem="{self.stem}" needs images of at least {least}x{least} pixels{hint}, got {size}'
            )


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, around a shortcut; the stride is in the 3x3 (Goyal et al., 2017).

    The first five arguments are those of `layers.BasicBlock`; the output has four times as many channels. With several
    ``groups``, the 3x3 is as many convolutions side by side: the block of ResNeXt (Xie et al., 2017).

    Attributes:
      groups: of channels that the 3x3 keeps apart.
      group_width: channels of each in the first stage, where there are 64 of ``channels``.
    """

    channels: int
    stride: int
    conv: layers.Layer
    norm: layers.Layer
    shortcut: layers.Layer
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.channels * self.groups * self.group_width // 64
        y = nn.relu(self.norm(name="bn1")(self.conv(width, 1, name="conv1")(x)))
        y = nn.relu(self.norm(name="bn2")(self.conv(width, 3, self.stride, groups=self.groups, name="conv2")(y)))
        y = self.norm(name="bn3")(self.conv(4 * self.channels, 1, name="conv3")(y))
        return nn.relu(y + self.shortcut(x, 4 * self.channels, self.stride))


def _project(conv, norm, x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option B: ``x`` itself, or its 1x1 convolution where the shape changes."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    return norm(name="downsample_1")(conv(channels, 1, stride, name="downsample_0")(x))
