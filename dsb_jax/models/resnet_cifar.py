"""Residual networks for small images, with shortcuts that have no parameters (He et al., 2016, Sec. 4.2)."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers


class ResNetCifar(layers.NormalizedBackbone):
    """ResNet-(6n+2) with n = ``blocks_per_stage``: images to 64 features.

    Stages of 16, 32 and 64 channels at full, half and quarter resolution, then the mean over positions.
    Submodules are named ``conv1, bn1, layer1_0, …, layer3_{n-1}``.

    Attributes:
      blocks_per_stage: n.
      zero_init: whether blocks begin as their shortcuts.
      channels: of the stages.
      start: blocks that are left out at the beginning, with the first convolution, and
      stop: at which it ends, without the mean, of a part of the network: from feature maps, or to them.
    """

    blocks_per_stage: int
    zero_init: bool = False
    channels: tuple[int, int, int] = (16, 32, 64)
    start: int = 0
    stop: int | None = None

    torch_head: ClassVar[str] = "linear"
    least_sides: ClassVar[dict[None, int]] = {None: 4}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(layers.conv, fan="fan_in", dtype=self.dtype)
        norm, make = self.norm(train), self.kept(layers.BasicBlock)
        x = images
        if self.start == 0:
            layers.check_side(images, self.least_sides, None, "a small ResNet")
            x = nn.relu(norm(name="bn1")(conv(16, name="conv1")(x)))
        blocks = [(stage, block) for stage in (1, 2, 3) for block in range(self.blocks_per_stage)]
        for stage, block in blocks[self.start : self.stop]:
            stride = 2 if stage > 1 and block == 0 else 1
            channels = self.channels[stage - 1]
            x = make(channels, stride, conv, norm, _subsample, self.zero_init, name=f"layer{stage}_{block}")(x)
        return x if self.stop is not None else layers.mean_over_positions(x)

    def parts_of_experts(self) -> tuple[nn.Module, nn.Module]:
        """What experts share, up to the first stage, and what each has of its own: stages of 24 and 48 channels."""
        cut = self.blocks_per_stage
        return self.clone(stop=cut), self.clone(start=cut, channels=(self.channels[0], 24, 48))

    def parts_of_branches(self) -> tuple[nn.Module, nn.Module]:
        """What two branches share, and what each has of its own: the last block."""
        cut = 3 * self.blocks_per_stage - 1
        return self.clone(stop=cut), self.clone(start=cut)


def _subsample(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option A: every ``stride``-th pixel, and zero channels in equal parts before and behind."""
    added = (channels - x.shape[-1]) // 2
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (added, added)))
