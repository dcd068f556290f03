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
    """

    logits: jax.Array
    features: jax.Array
    classifier: jax.Array | None = None


class Classifier(nn.Module):
    """``head(backbone(images))``; the parameters lie under the same two names.

    Whatever the backbone computes in, the head computes in float32.
    """

    backbone: nn.Module
    head: nn.Module

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
        if images.ndim != 4:
            raise ValueError(f"images must have shape [batch, height, width, channels], got {images.shape}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floating point, got {images.dtype}: scale and normalise them first")
        features = self.backbone(images, train=train).astype(jnp.float32)
        return Outputs(self.classify(features, train=train), features, self._weights())

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """The logits ``[batch, classes]`` of features ``[batch, dim]``."""
        return self.head(features, train=train)

    def _weights(self) -> jax.Array:
        # The classes are the last axis of every head's kernel.
        return self.head.get_variable("params", "kernel").T
