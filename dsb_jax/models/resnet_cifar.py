"""Residual networks for small images, with shortcuts that have no parameters (He et al., 2016, Sec. 4.2)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResNetCifar(nn.Module):
    """ResNet-(6n+2) with n = ``blocks_per_stage``: images to 64 features.

    Stages of 16, 32 and 64 channels at full, half and quarter resolution, then the mean over positions.
    Submodules are named ``conv1, bn1, layer1_0, …, layer3_{n-1}``.
    """

    blocks_per_stage: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = _conv(16, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(_batch_norm(train, dtype=self.dtype, name="bn1")(x))
        for stage, channels in enumerate((16, 32, 64), start=1):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 1 and block == 0 else 1
                x = _BasicBlock(channels, stride, self.dtype, name=f"layer{stage}_{block}")(x, train=train)
        return jnp.mean(x, axis=(1, 2))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = functools.partial(_batch_norm, train, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(_conv(self.channels, self.stride, dtype=self.dtype, name="conv1")(x)))
        y = norm(name="bn2")(_conv(self.channels, dtype=self.dtype, name="conv2")(y))
        return nn.relu(y + _shortcut(x, self.channels, self.stride).astype(y.dtype))


def _shortcut(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option A: every ``stride``-th pixel, and zero channels in equal parts before and behind."""
    added = (channels - x.shape[-1]) // 2
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (added, added)))


def _conv(channels: int, stride: int = 1, *, dtype: Any, name: str) -> nn.Conv:
    # "SAME" at stride 2 pads an even side at its end only, and so would centre on other pixels than the shortcut.
    return nn.Conv(
        channels,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"),  # He et al., 2015
        dtype=dtype,
        name=name,
    )


def _batch_norm(train: bool, *, dtype: Any, name: str) -> nn.BatchNorm:
    # Running variances are of the biased kind, as Flax keeps them; PyTorch's are n/(n-1) larger.
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)
