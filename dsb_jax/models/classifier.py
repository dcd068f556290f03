"""A classifier is a backbone, images to features, under a head, features to logits."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

BACKBONE = "backbone"  # what the parameters that make features lie under
HEAD = "head"


class Outputs(NamedTuple):
    """What every model returns.

    Attributes:
      logits: ``[batch, classes]``, float32.
      features: ``[batch, dim]``, float32: what the last layer saw; of a model with an embedding, that, of length 1.
      classifier: ``[classes, dim]``, float32: the last layer's weights, a row for each class; of a head with several
        centres per class ``[classes, centers, dim]``.
      experts: of a model with several experts, these three of each, with a leading axis for the experts.
      routers: of one with routers, ``[experts - 1, batch]``, float32: above 0 where a further expert is wanted.
      projected: ``[batch, projection]``, float32, of length 1, of a model with a projection; else None.
      auxiliary: ``[classifiers, batch, classes]``, float32, logits of maps halfway, of a model with such classifiers in
        training; else None.
    """

    logits: jax.Array
    features: jax.Array
    classifier: jax.Array | None = None
    experts: "Outputs | None" = None
    routers: jax.Array | None = None
    projected: jax.Array | None = None
    auxiliary: jax.Array | None = None


class Classifier(nn.Module):
    """``head(embedding(backbone(images)))``, and a ``projection`` of the same features, where there are such.

    The parameters lie under these names. Whatever the backbone computes in, the others compute in float32.
    """

    backbone: nn.Module
    head: nn.Module
    embedding: nn.Module | None = None
    projection: nn.Module | None = None

    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Classifies ``images [batch, height, width, channels]``, floating.

        Args:
          images: Normalised images.
          train: Whether batch normalisation takes the batch's own statistics, and updates the running ones
            (collection ``batch_stats``, which the caller makes mutable).

        Returns:
          `Outputs`.

        Raises:
          ValueError: if ``images`` are not four-dimensional and floating.
        """
        check_images(images, self.backbone)
        features, auxiliary = self.backbone(images, train=train), None
        if isinstance(features, tuple):
            features, auxiliary = features
        features = features.astype(jnp.float32)
        if self.embedding is not None:
            features = self.embedding(features)
        projected = None if self.projection is None else self.projection(features)
        logits = self.classify(features, train=train)
        return Outputs(logits, features, weights_of(self.head), projected=projected, auxiliary=auxiliary)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """The logits ``[batch, classes]`` of features ``[batch, dim]``."""
        return self.head(features, train=train)


def check_images(images: jax.Array, backbone: nn.Module) -> None:
    """Raises ValueError unless ``images`` are four-dimensional, floating, and have the channels that there must be."""
    if images.ndim != 4:
        raise ValueError(f"images must have shape [batch, height, width, channels], got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point, got {images.dtype}: scale and normalise them first")
    channels = getattr(backbone, "in_channels", None)
    if channels not in (None, images.shape[3]):
        raise ValueError(f"images must have in_channels = {channels} channels, got {images.shape}")


def weights_of(head: nn.Module) -> jax.Array:
    """``[classes, dim]`` of a head that has been called."""
    # The classes are the last axis of every head's kernel.
    return head.get_variable("params", "kernel").T
