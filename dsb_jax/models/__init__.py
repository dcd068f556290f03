"""Image classifiers in Flax linen: ``apply(variables, images, train=...) -> Outputs(logits, features)``."""

import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.models import heads
from dsb_jax.models.classifier import Classifier, Outputs
from dsb_jax.models.layers import BasicBlock
from dsb_jax.models.lenet import LeNet
from dsb_jax.models.resnet import STEMS, Bottleneck, ResNet
from dsb_jax.models.resnet_cifar import ResNetCifar

__all__ = ["STEMS", "WITH_STEMS", "Classifier", "Outputs", "create", "names"]

# Name -> backbone, called with ``dtype=``. A backbone is a module ``(images, *, train) -> features``.
_BACKBONES = {
    "lenet": LeNet,
    "resnet8": functools.partial(ResNetCifar, blocks_per_stage=1),
    "resnet20": functools.partial(ResNetCifar, blocks_per_stage=3),
    "resnet32": functools.partial(ResNetCifar, blocks_per_stage=5),
    "resnet18": functools.partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, block=BasicBlock, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, block=Bottleneck, blocks=(3, 4, 6, 3)),
    "resnext50_32x4d": functools.partial(
        ResNet, block=functools.partial(Bottleneck, groups=32, group_width=4), blocks=(3, 4, 6, 3)
    ),
}

# The models that `create` takes ``stem=`` for.
WITH_STEMS = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d")


def names(pattern: str = "*") -> list[str]:
    """The names that `create` knows and that match a shell-style ``pattern``, sorted.

    Example:
      >>> names("resnet?")
      ['resnet8']
    """
    return fnmatch.filter(sorted(_BACKBONES), pattern)


def create(
    name: str,
    num_classes: int,
    *,
    head: str = "linear",
    head_scale: float = 1.0,
    head_options: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    stem: str | None = None,
    **unknown: Any,
) -> Classifier:
    """An image classifier.

    Args:
      name: One of `names()`.
      num_classes: Width of the logits.
      head: ``"linear"``; ``"cosine"``: features and class weights of length 1, no bias; ``"soft_triple"``: cosines
        with several centres per class; or ``"causal"``, of Deconfound-TDE: other logits in evaluation than in training.
      head_scale: Factor on the cosines; for losses that bring their own scale leave it at 1.
      head_options: Further options of the head: attributes of :class:`dsb_jax.models.heads.CausalHead` or
        :class:`dsb_jax.models.heads.SoftTripleHead`.
      dtype: What the backbone computes in: bfloat16, float16 or float32, or one of these names. Parameters, batch
        statistics, features and logits are float32 always.
      stem: How the models in ``WITH_STEMS`` begin: ``"imagenet"``, the default, a 7x7 convolution and max-pooling that
        quarter the resolution; or ``"cifar"``, a 3x3 convolution that keeps it, for small images.
      **unknown: Anything else raises.

    Returns:
      A module whose ``apply(variables, images, train=...)`` takes floats ``[batch, height, width, channels]``
      and returns `Outputs`.

    Raises:
      ValueError: on an unknown name, head or option (naming the nearest), or a value that makes no sense.

    Example:
      >>> import jax
      >>> model = create("lenet", 10)
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> variables = model.init(jax.random.key(0), images, train=False)
      >>> model.apply(variables, images, train=False).logits.shape
      (2, 10)
    """
    if name not in _BACKBONES:
        raise validation.unknown_name("model", name, _BACKBONES)
    for option in unknown:
        raise validation.unknown_name("model option", option, ("dtype", "head", "head_options", "head_scale", "stem"))
    options = {"dtype": _compute_dtype(dtype)}
    if stem is not None:
        options["stem"] = _stem(stem, name)
    backbone = _BACKBONES[name](**options)
    made = heads.create(head, num_classes, scale=head_scale, **(head_options or {}))
    return Classifier(backbone=backbone, head=made)


def _stem(stem: str, name: str) -> str:
    if name not in WITH_STEMS:
        raise ValueError(f"stem belongs to {', '.join(WITH_STEMS)}, got stem={stem!r} with {name}")
    if stem not in STEMS:
        raise validation.unknown_name("stem", stem, STEMS)
    return stem


def _compute_dtype(dtype: Any) -> jnp.dtype:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in ("bfloat16", "float16", "float32"):
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {name}")
    return jnp.dtype(name)
