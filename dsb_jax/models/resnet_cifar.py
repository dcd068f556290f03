"""Residual networks for small images, with shortcuts that have no parameters (He et al., 2016, Sec. 4.2)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers


class ResNetCifar(nn.Module):
    """ResNet-(6n+2) with n = ``blocks_per_stage``: images to 64 features.

    Stages of 16, 32 and 64 channels at full, half and quarter resolution, then the mean over positions.
    Submodules are named ``conv1, bn1, layer1_0, …, layer3_{n-1}``.
    """

    blocks_per_stage: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(layers.conv, fan="fan_in", dtype=self.dtype)
        norm = functools.partial(layers.batch_norm, train, dtype=self.dtype)
        x = nn.relu(norm(name="bn1")(conv(16, name="conv1")(images)))
        for stage, channels in enumerate((16, 32, 64), start=1):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 1 and block == 0 else 1
                x = layers.BasicBlock(channels, stride, conv, norm, _subsample, name=f"layer{stage}_{block}")(x)
        return layers.mean_over_positions(x)


def _subsample(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option A: every ``stride``-th pixel, and zero channels in equal parts before and behind."""
    added = (channels - x.shape[-1]) // 2
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (added, added)))
