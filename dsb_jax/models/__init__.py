"""Image classifiers in Flax linen: ``apply(variables, images, train=...) -> Outputs(logits, features)``."""

import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.models import heads
from dsb_jax.models.branches import Branches
from dsb_jax.models.classifier import Classifier, Outputs
from dsb_jax.models.experts import Experts, Router
from dsb_jax.models.layers import BasicBlock
from dsb_jax.models.lenet import LeNet
from dsb_jax.models.resnet import STEMS, Bottleneck, ResNet
from dsb_jax.models.resnet_cifar import ResNetCifar

__all__ = ["BACKBONE", "STEMS", "WITH_STEMS", "Branches", "Classifier", "Experts", "Outputs", "create", "names"]

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

_OPTIONS = (
    "branches",
    "dtype",
    "experts",
    "head",
    "head_options",
    "head_scale",
    "projection",
    "projection_layers",
    "routers",
    "stem",
)

BACKBONE = "backbone"  # what the parameters that make features lie under

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
    experts: int | None = None,
    routers: bool = False,
    branches: int | None = None,
    projection: int | None = None,
    projection_layers: int = 2,
    **unknown: Any,
) -> Classifier | Experts | Branches:
    """An image classifier.

    Args:
      name: One of `names()`.
      num_classes: Width of the logits.
      head: ``"linear"``; ``"cosine"``: features and class weights of length 1, no bias; ``"soft_triple"``: cosines
        with several centres per class; ``"causal"``, of Deconfound-TDE: other logits in evaluation than in training;
        ``"scaled"``: linear, with a factor for each class; or ``"tau_normalized"``: class weights divided by a power of
        their length, no bias.
      head_scale: Factor on the cosines; for losses that bring their own scale leave it at 1.
      head_options: Further options of the head: attributes of :class:`dsb_jax.models.heads.CausalHead`,
        :class:`dsb_jax.models.heads.SoftTripleHead` or :class:`dsb_jax.models.heads.TauNormalizedHead`.
      dtype: What the backbone computes in: bfloat16, float16 or float32, or one of these names. Parameters, batch
        statistics, features and logits are float32 always.
      stem: How the models in ``WITH_STEMS`` begin: ``"imagenet"``, the default, a 7x7 convolution and max-pooling that
        quarter the resolution; or ``"cifar"``, a 3x3 convolution that keeps it, for small images.
      experts: How many experts of their own last stages and heads share the first ones; see `Experts`. In a ResNet
        they are narrower: 192 and 384 channels in the last two stages, or 24 and 48 in those for small images.
      routers: Whether experts have routers, by which an image is evaluated with no more of them than it needs.
      branches: 2 for two branches of their own last block under one head; see `Branches`.
      projection: Width of embeddings that the model gives besides, of length 1, made of the features for losses that
        compare examples; none by default.
      projection_layers: Dense layers of that, with ReLU between them.
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
        raise validation.unknown_name("model option", option, _OPTIONS)
    options = {"dtype": _compute_dtype(dtype)}
    if stem is not None:
        options["stem"] = _stem(stem, name)
    backbone = _BACKBONES[name](**options)
    new_head = functools.partial(heads.create, head, num_classes, scale=head_scale, **(head_options or {}))
    extras = {"experts": experts, "branches": branches, "projection": projection}
    if len(given := [f"{key}={value}" for key, value in extras.items() if value is not None]) > 1:
        raise ValueError(f"a model has experts, branches or a projection, got {' and '.join(given)}")
    if routers and experts is None:
        raise ValueError("routers choose among experts: experts must be an integer >= 2, got routers=True without")
    if experts is not None:
        validation.integer("experts", experts, lowest=2)
        trunk, tail = _parts(backbone, "parts_of_experts", f"experts={experts}", name)
        each = tuple(Classifier(backbone=tail.clone(), head=new_head()) for _ in range(experts))
        return Experts(trunk, each, tuple(Router() for _ in each[1:]) if routers else ())
    if branches is not None:
        if branches != 2:
            raise ValueError(f"branches must be 2, got {branches!r}")
        trunk, tail = _parts(backbone, "parts_of_branches", f"branches={branches}", name)
        return Branches(trunk, (tail.clone(), tail.clone()), new_head())
    made = None if projection is None else _projection(projection, projection_layers)
    return Classifier(backbone=backbone, head=new_head(), projection=made)


def _projection(dim: int, layers: int) -> heads.Projection:
    validation.positive_int("projection", dim)
    validation.positive_int("projection_layers", layers)
    return heads.Projection(dim, layers)


def _parts(backbone: nn.Module, of: str, option: str, name: str) -> tuple[nn.Module, nn.Module]:
    """What is shared, and what each has of its own."""
    if not hasattr(backbone, of):
        able = (other for other, make in sorted(_BACKBONES.items()) if hasattr(make(), of))
        raise ValueError(f"{option.partition('=')[0]} belong to {', '.join(able)}, got {option} with {name}")
    return getattr(backbone, of)()


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
