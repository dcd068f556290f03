"""What the residual networks are made of (He et al., 2016)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Layer = Callable[..., Any]


def conv(channels: int, size: int = 3, stride: int = 1, *, groups: int = 1, fan: str, dtype: Any, name: str) -> nn.Conv:
    """A convolution without bias, centred on every ``stride``-th pixel; normal weights of variance 2/``fan``.

    ``fan`` is ``"fan_in"`` or ``"fan_out"`` (He et al., 2015). Channels are in ``groups``, each made of its own alone.
    """
    # "SAME" at stride 2 pads an even side at its end only, and so would centre on other pixels than the shortcut.
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, fan, "normal"),
        dtype=dtype,
        name=name,
    )


def batch_norm(train: bool, *, dtype: Any, name: str) -> nn.BatchNorm:
    """Normalisation by the batch's statistics when training, else by the running ones."""
    # Running variances are of the biased kind, as Flax keeps them; PyTorch's are n/(n-1) larger.
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)


def mean_over_positions(x: jax.Array) -> jax.Array:
    """Global average pooling, ``[batch, height, width, channels]`` to ``[batch, channels]``, in float32 at least."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Attributes:
      channels: of the output.
      stride: of the first convolution, and of the shortcut.
      conv: `conv`, without ``channels``, ``size``, ``stride`` and ``name``.
      norm: `batch_norm`, without ``name``.
      shortcut: ``(x, channels, stride) -> `` what is added.
    """

    channels: int
    stride: int
    conv: Layer
    norm: Layer
    shortcut: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.channels, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.norm(name="bn2")(self.conv(self.channels, 3, name="conv2")(y))
        return nn.relu(y + self.shortcut(x, self.channels, self.stride).astype(y.dtype))
