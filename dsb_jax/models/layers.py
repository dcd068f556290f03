"""What the backbones have in common: their options, convolutions, normalisation, pooling, the basic residual block."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Layer = Callable[..., Any]
Pads = tuple[tuple[int, int], tuple[int, int]]


class Backbone(nn.Module, kw_only=True):
    """A network from images to features, ``(images, *, train) -> [batch, dim]``.

    Its submodules have the names of PyTorch's, with an underscore for every dot.

    Attributes:
      dtype: what it computes in.
      in_channels: of the images; as they come by default.
    """

    dtype: Any = jnp.float32
    in_channels: int | None = None

    torch_head: ClassVar[str | None] = "fc"  # the last layer's name in PyTorch; None where there is no such network

    @staticmethod
    def torch_name(path: tuple[str, ...]) -> str:
        """PyTorch's name of a submodule."""
        return ".".join(path).replace("_", ".")


class DeepBackbone(Backbone, kw_only=True):
    """One of many blocks.

    Attributes:
      remat: whether the backward pass computes the inside of blocks again, for memory.
    """

    remat: bool = False

    def kept(self, block: Layer) -> Layer:
        """A block, or function ``(module, x) -> x``, with or without what is inside kept for the backward pass."""
        if not self.remat:
            return block
        if isinstance(block, functools.partial) and isinstance(block.func, type):
            return functools.partial(nn.remat(block.func), *block.args, **block.keywords)
        return nn.remat(block)


class NormalizedBackbone(DeepBackbone, kw_only=True):
    """One with batch normalisation.

    Attributes:
      frozen_norm: whether it goes by its running statistics in training as well, and leaves them as they are.
    """

    frozen_norm: bool = False

    def norm(self, train: bool) -> Layer:
        """`batch_norm` for training or evaluation."""
        return functools.partial(batch_norm, train and not self.frozen_norm, dtype=self.dtype)


def conv(
    channels: int,
    size: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    bias: bool = False,
    fan: Literal["fan_in", "fan_out"] = "fan_out",
    dtype: Any,
    name: str,
) -> nn.Conv:
    """A convolution centred on every ``stride``-th pixel; normal weights of variance 2/``fan``.

    ``fan`` is ``"fan_in"`` or ``"fan_out"`` (He et al., 2015). Channels are in ``groups``, each made of its own alone.
    """
    # "SAME" at stride 2 pads an even side at its end only, and so would centre on other pixels than the shortcut.
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=nn.initializers.variance_scaling(2.0, fan, "normal"),
        dtype=dtype,
        name=name,
    )


def batch_norm(train: bool, *, dtype: Any, name: str, epsilon: float = 1e-5, zero: bool = False) -> nn.BatchNorm:
    """Normalisation by the batch's statistics when training, else by the running ones; ``zero`` begins at nothing."""
    # Running variances are of the biased kind, as Flax keeps them; PyTorch's are n/(n-1) larger.
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        name=name,
    )


def check_side(images: jax.Array, least: Mapping[Any, int], stem: str | None, what: str) -> None:
    """Raises ValueError if an image is smaller than what a network with this ``stem`` is for."""
    height, width = images.shape[1:3]
    if min(height, width) < least[stem]:
        what += f' with stem="{stem}"' if stem is not None else ""
        hint = f', or {least["cifar"]}x{least["cifar"]} with stem="cifar"' if stem == "imagenet" else ""
        raise ValueError(
            f"{what} needs images of at least {least[stem]}x{least[stem]} pixels{hint}, got {(height, width)}"
        )


def mean_over_positions(x: jax.Array) -> jax.Array:
    """Global average pooling, ``[batch, height, width, channels]`` to ``[batch, channels]``, in float32 at least."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def max_pool(x: jax.Array, size: int, stride: int, *, pad: int = 0, ceil: bool = False) -> jax.Array:
    """Max-pooling; with ``ceil``, windows that are only partly on the map count, as PyTorch's ``ceil_mode`` has it."""
    return nn.max_pool(x, (size, size), (stride, stride), padding=_pads(x, size, stride, pad, ceil))


def _pads(x: jax.Array, size: int, stride: int, pad: int, ceil: bool) -> Pads:
    def of_side(length: int) -> tuple[int, int]:
        if not ceil:
            return pad, pad
        windows = math.ceil((length + 2 * pad - size) / stride) + 1
        if (windows - 1) * stride >= length + pad:  # the last one would begin beyond the map
            windows -= 1
        return pad, max((windows - 1) * stride + size - length - pad, 0)

    return of_side(x.shape[1]), of_side(x.shape[2])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2016).

    Attributes:
      channels: of the output.
      stride: of the first convolution, and of the shortcut.
      conv: `conv`, without ``channels``, ``size``, ``stride`` and ``name``.
      norm: `batch_norm`, without ``name``.
      shortcut: ``(x, channels, stride) -> `` what is added.
      zero_init: whether it begins as the shortcut alone: the scale of the last normalisation at 0.
    """

    channels: int
    stride: int
    conv: Layer
    norm: Layer
    shortcut: Layer
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.channels, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.norm(name="bn2", zero=self.zero_init)(self.conv(self.channels, 3, name="conv2")(y))
        return nn.relu(y + self.shortcut(x, self.channels, self.stride).astype(y.dtype))
