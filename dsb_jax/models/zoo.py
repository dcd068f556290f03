"""The backbones by name: what each is made of, from whom, and for images of which size."""

import dataclasses
import fnmatch
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.models.bn_inception import BNInception
from dsb_jax.models.densenet import DenseNet
from dsb_jax.models.googlenet import GoogLeNet
from dsb_jax.models.layers import Backbone, BasicBlock
from dsb_jax.models.lenet import LeNet
from dsb_jax.models.resnet import Bottleneck, ResNet
from dsb_jax.models.resnet_cifar import ResNetCifar
from dsb_jax.models.vgg import VGG
from dsb_jax.models.vit import ViT

STEMS = ("cifar", "imagenet")
_OPTIONS = ("auxiliary", "frozen_norm", "remat", "stem", "zero_init")
# What :func:`dsb_jax.models.create` takes besides.
_OF_CLASSIFIERS = (
    "branches",
    "embedding",
    "embedding_norm",
    "experts",
    "head",
    "head_options",
    "head_scale",
    "projection",
    "projection_layers",
    "routers",
)


class Entry(NamedTuple):
    """A backbone.

    Attributes:
      make: with the options of `backbone` as keywords, the module.
      source: the paper.
      image: height, width and channels of the images that it was published for.
      settings: with which images are as for its published weights, where these were trained on others than ImageNet's
        usual ones.
    """

    make: functools.partial[Any]
    source: str
    image: tuple[int, int, int] = (224, 224, 3)
    settings: str = ""

    @property
    def backbone(self) -> Any:
        """The module's class."""
        return self.make.func


def _resnet(blocks, source="He et al., 2016", **options):
    """Of `BasicBlock`, or of `Bottleneck` with its options."""
    block = functools.partial(Bottleneck, **options) if options else Bottleneck
    return Entry(functools.partial(ResNet, block=block, blocks=blocks), source)


def _basic(blocks):
    return Entry(functools.partial(ResNet, block=BasicBlock, blocks=blocks), "He et al., 2016")


def _small_resnet(depth):
    make = functools.partial(ResNetCifar, blocks_per_stage=(depth - 2) // 6)
    return Entry(make, "He et al., 2016, Sec. 4.2", (32, 32, 3))


def _densenet(*blocks):
    return Entry(functools.partial(DenseNet, blocks=blocks), "Huang et al., 2017")


_XIE = "Xie et al., 2017"
_ENTRIES = {
    "bn_inception": Entry(
        functools.partial(BNInception),
        "Ioffe & Szegedy, 2015",
        settings="init_bgr=True,mean=(0.502,0.459,0.408),std=(0.00392,0.00392,0.00392)",
    ),
    "densenet121": _densenet(6, 12, 24, 16),
    "densenet169": _densenet(6, 12, 32, 32),
    "densenet201": _densenet(6, 12, 48, 32),
    "googlenet": Entry(
        functools.partial(GoogLeNet), "Szegedy et al., 2015", settings="mean=(0.5,0.5,0.5),std=(0.5,0.5,0.5)"
    ),
    "lenet": Entry(functools.partial(LeNet), "LeCun et al., 1998", (28, 28, 1)),
    **{f"resnet{depth}": _small_resnet(depth) for depth in (8, 20, 32, 44, 56, 110)},
    "resnet18": _basic((2, 2, 2, 2)),
    "resnet34": _basic((3, 4, 6, 3)),
    "resnet50": _resnet((3, 4, 6, 3)),
    "resnet101": _resnet((3, 4, 23, 3)),
    "resnet152": _resnet((3, 8, 36, 3)),
    "resnext50_32x4d": _resnet((3, 4, 6, 3), _XIE, groups=32, group_width=4),
    "resnext101_32x4d": _resnet((3, 4, 23, 3), _XIE, groups=32, group_width=4),
    "resnext101_32x8d": _resnet((3, 4, 23, 3), _XIE, groups=32, group_width=8),
    "seresnet50": _resnet((3, 4, 6, 3), "Hu et al., 2018", squeeze=16),
    "vgg16": Entry(functools.partial(VGG), "Simonyan & Zisserman, 2015"),
    "vgg16_bn": Entry(functools.partial(VGG, batch_norm=True), "Simonyan & Zisserman, 2015"),
    "vit_small": Entry(functools.partial(ViT), "Dosovitskiy et al., 2021"),
}


def names(pattern: str = "*") -> list[str]:
    """The names of the models that match a shell-style ``pattern``, sorted.

    Example:
      >>> names("resnext*")
      ['resnext101_32x4d', 'resnext101_32x8d', 'resnext50_32x4d']
    """
    return fnmatch.filter(sorted(_ENTRIES), pattern)


def entry(name: str) -> Entry:
    """What is known of a model; raises ValueError, naming the nearest, if there is none."""
    if name not in _ENTRIES:
        raise validation.unknown_name("model", name, _ENTRIES)
    return _ENTRIES[name]


def backbone(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, in_channels: int | None = None, **options: Any
) -> Backbone:
    """The backbone ``name``.

    Args:
      name: One of `names()`.
      num_classes: Of a classifier halfway, if there are such.
      dtype: What it computes in: bfloat16, float16 or float32, or one of these names. Parameters, batch statistics,
        features and logits are float32 always.
      in_channels: How many channels images must have; as many as they come with by default.
      **options: Those that it has of

        - ``stem``: ``"imagenet"``, the default, or ``"cifar"``, for small images: without strides and pooling at the
          beginning. LeNet and the small ResNets have but one; the others say what it is of each.
        - ``frozen_norm``: Whether batch normalisation goes by its running statistics in training as well, and leaves
          them as they are, as is usual in metric learning. Its scales and biases are trained.
        - ``zero_init``: Whether residual blocks begin as their shortcuts: the scale of their last normalisation at 0.
        - ``remat``: Whether the backward pass computes the inside of blocks again, for memory.
        - ``auxiliary``: Whether GoogLeNet has two further classifiers of maps halfway, in training.

    Raises:
      ValueError: on an unknown name or option, a value that is none, or an option that this backbone has not.
    """
    make = entry(name).make
    for key in options:
        if key not in _OPTIONS:
            raise validation.unknown_name("model option", key, [*_OPTIONS, "dtype", "in_channels", *_OF_CLASSIFIERS])
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    for key, value in given.items():
        if not takes(name, key):
            able = ", ".join(other for other in names() if takes(other, key))
            raise ValueError(f"{key} belongs to {able}, got {key}={value!r} with {name}")
    for key in given.keys() - {"stem"}:
        if given[key] is not True:
            raise ValueError(f"{key} must be True or False, got {given[key]!r}")
    if given.get("stem", "cifar") not in STEMS:
        raise validation.unknown_name("stem", given["stem"], STEMS)
    if in_channels is not None:
        validation.positive_int("in_channels", in_channels)
    if "auxiliary" in given:
        given["auxiliary"] = num_classes
    return make(dtype=_compute_dtype(dtype), in_channels=in_channels, **given)


def takes(name: str, option: str) -> bool:
    """Whether a backbone has an option.

    Example:
      >>> takes("resnet18", "stem"), takes("lenet", "stem")
      (True, False)
    """
    return option in {field.name for field in dataclasses.fields(entry(name).backbone)}


def _compute_dtype(dtype: Any) -> jnp.dtype:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in ("bfloat16", "float16", "float32"):
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {name}")
    return jnp.dtype(name)
