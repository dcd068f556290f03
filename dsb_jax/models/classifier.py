"""A classifier is a backbone, images to features, under a head, features to logits."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Outputs(NamedTuple):
    """What every model returns.

    Attributes:
      logits: ``[batch, classes]``, float32.
      features: ``[batch, dim]``, float32: what the last layer saw.
      classifier: ``[classes, dim]``, float32: the last layer's weights, a row for each class; of a head with several
        centres per class ``[classes, centers, dim]``.
      experts: of a model with several experts, these three of each, with a leading axis for the experts.
      routers: of one with routers, ``[experts - 1, batch]``, float32: above 0 where a further expert is wanted.
      embedding: ``[batch, projection]``, float32, of length 1, of a model with a projection; else None.
    """

    logits: jax.Array
    features: jax.Array
    classifier: jax.Array | None = None
    experts: "Outputs | None" = None
    routers: jax.Array | None = None
    embedding: jax.Array | None = None


class Classifier(nn.Module):
    """``head(backbone(images))``, and ``projection(backbone(images))``; the parameters lie under the same names.

    Whatever the backbone computes in, the others compute in float32.
    """

    backbone: nn.Module
    head: nn.Module
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
        check_images(images)
        features = self.backbone(images, train=train).astype(jnp.float32)
        embedding = None if self.projection is None else self.projection(features)
        return Outputs(self.classify(features, train=train), features, weights_of(self.head), embedding=embedding)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """The logits ``[batch, classes]`` of features ``[batch, dim]``."""
        return self.head(features, train=train)


def check_images(images: jax.Array) -> None:
    """Raises ValueError unless ``images`` are four-dimensional and floating."""
    if images.ndim != 4:
        raise ValueError(f"images must have shape [batch, height, width, channels], got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point, got {images.dtype}: scale and normalise them first")


def weights_of(head: nn.Module) -> jax.Array:
    """``[classes, dim]`` of a head that has been called."""
    # The classes are the last axis of every head's kernel.
    return head.get_variable("params", "kernel").T
