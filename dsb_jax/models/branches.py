"""Two branches on a shared trunk, whose features one head classifies together (BBN)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models.classifier import Outputs, check_images, weights_of


class Branches(nn.Module):
    """``head([branch_0(backbone(images)); branch_1(backbone(images))])``.

    Its parameters lie under ``backbone``, ``branches_0``, ``branches_1`` and ``head``.

    Attributes:
      backbone: the part that they share.
      branches: a module ``(feature maps, *, train) -> [batch, dim]`` each.
      head: of features as long as those of all branches together.
    """

    backbone: nn.Module
    branches: tuple[nn.Module, ...]
    head: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Classifies ``images [batch, height, width, channels]``, floating, by all branches; see `Classifier`.

        Raises:
          ValueError: if ``images`` are not four-dimensional and floating.
        """
        check_images(images, self.backbone)
        shared = self.backbone(images, train=train)
        features = [branch(shared, train=train).astype(jnp.float32) for branch in self.branches]
        return self.outputs(jnp.concatenate(features, axis=1), train=train)

    def branch(self, images: jax.Array, *, train: bool, number: int) -> jax.Array:
        """Features ``[batch, dim]`` of one branch; the others do not see the images, nor do their statistics."""
        check_images(images, self.backbone)
        return self.branches[number](self.backbone(images, train=train), train=train).astype(jnp.float32)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """The logits ``[batch, classes]`` of features of all branches, one after the other."""
        return self.head(features, train=train)

    def outputs(self, features: jax.Array, *, train: bool) -> Outputs:
        """What the model returns of features of all branches, one after the other."""
        return Outputs(self.classify(features, train=train), features, weights_of(self.head))
