"""An image classifier by name: a backbone, a head, and what else a method needs of it."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from dsb_jax import validation
from dsb_jax.models import heads, zoo
from dsb_jax.models.branches import Branches
from dsb_jax.models.classifier import Classifier
from dsb_jax.models.experts import Experts, Router
from dsb_jax.models.projection import Embedding, Projection


def create(
    name: str,
    num_classes: int,
    *,
    head: str = "linear",
    head_scale: float = 1.0,
    head_options: Mapping[str, Any] | None = None,
    experts: int | None = None,
    routers: bool = False,
    branches: int | None = None,
    embedding: int | None = None,
    embedding_norm: bool = False,
    projection: int | None = None,
    projection_layers: int = 2,
    **options: Any,
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
      experts: How many experts of their own last stages and heads share the first ones; see `Experts`. In a ResNet
        they are narrower: 192 and 384 channels in the last two stages, or 24 and 48 in those for small images.
      routers: Whether experts have routers, by which an image is evaluated with no more of them than it needs.
      branches: 2 for two branches of their own last block under one head; see `Branches`.
      embedding: Width of a dense layer between the backbone and the head, whose outputs, at length 1, are then the
        features: the embeddings of metric learning. None by default.
      embedding_norm: Whether the layer has normalised features before it, and no bias; see
        :class:`dsb_jax.models.projection.Embedding`.
      projection: Width of embeddings that the model gives besides, of length 1, made of the features for losses that
        compare examples; none by default.
      projection_layers: Dense layers of that, with ReLU between them.
      **options: Of the backbone, ``dtype`` and ``stem`` among them; see :func:`dsb_jax.models.zoo.backbone`.

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
    validation.integer("num_classes", num_classes, lowest=2)
    backbone = zoo.backbone(name, num_classes, **options)
    new_head = functools.partial(heads.create, head, num_classes, scale=head_scale, **(head_options or {}))
    extras = {"experts": experts, "branches": branches, "embedding": embedding, "projection": projection}
    if len(given := [f"{key}={value}" for key, value in extras.items() if value is not None]) > 1:
        raise ValueError(f"a model has experts, branches, an embedding or a projection, got {' and '.join(given)}")
    if embedding_norm and embedding is None:
        raise ValueError("embedding_norm is of the features below an embedding: embedding must be its width, got none")
    if routers and experts is None:
        raise ValueError("routers choose among experts: experts must be an integer >= 2, got routers=True without")
    if experts is not None:
        return _experts(backbone, new_head, experts, routers, name)
    if branches is not None:
        return _branches(backbone, new_head, branches, name)
    return Classifier(
        backbone=backbone,
        head=new_head(),
        embedding=None if embedding is None else _embedding(embedding, embedding_norm),
        projection=None if projection is None else _projection(projection, projection_layers),
    )


def _experts(backbone, new_head, number, routers, name):
    validation.integer("experts", number, lowest=2)
    trunk, tail = _parts(backbone, "parts_of_experts", f"experts={number}", name)
    tail = tail.clone(in_channels=None)  # it sees feature maps
    each = tuple(Classifier(backbone=tail.clone(), head=new_head()) for _ in range(number))
    return Experts(trunk, each, tuple(Router() for _ in each[1:]) if routers else ())


def _branches(backbone, new_head, number, name):
    if number != 2:
        raise ValueError(f"branches must be 2, got {number!r}")
    trunk, tail = _parts(backbone, "parts_of_branches", f"branches={number}", name)
    tail = tail.clone(in_channels=None)
    return Branches(trunk, (tail.clone(), tail.clone()), new_head())


def _embedding(dim: int, layer_norm: bool) -> Embedding:
    validation.positive_int("embedding", dim)
    return Embedding(dim, bool(layer_norm))


def _projection(dim: int, layers: int) -> Projection:
    validation.positive_int("projection", dim)
    validation.positive_int("projection_layers", layers)
    return Projection(dim, layers)


def _parts(backbone: nn.Module, of: str, option: str, name: str) -> tuple[nn.Module, nn.Module]:
    """What is shared, and what each has of its own."""
    if not hasattr(backbone, of):
        able = (other for other in zoo.names() if hasattr(zoo.entry(other).backbone, of))
        raise ValueError(f"{option.partition('=')[0]} belong to {', '.join(able)}, got {option} with {name}")
    return getattr(backbone, of)()
