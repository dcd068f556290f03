"""Several experts on shared first stages, and routers that say how many of them an image needs (RIDE)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models.classifier import Outputs, check_images

_HIDDEN, _TOP = 16, 5  # of a router, as in the official code


class Router(nn.Module):
    """Whether an image needs a further expert: a number that is above 0 where it does.

    It sees the features of the latest expert, at length 1 and through a hidden layer of 16 units, and besides the five
    largest mean logits of the experts so far. Its gradient ends there: no expert is trained for it. Ours is that
    routers share no layer, that cosines come without their loss's scale, and that one untrained wants every expert.
    """

    @nn.compact
    def __call__(self, features: jax.Array, logits: jax.Array) -> jax.Array:
        features, logits = jax.lax.stop_gradient((features, logits))
        length = jnp.linalg.norm(features, axis=1, keepdims=True)
        hidden = nn.relu(nn.Dense(_HIDDEN, name="hidden")(features / jnp.maximum(length, 1e-6)))
        largest, _ = jax.lax.top_k(logits, min(_TOP, logits.shape[1]))
        output = nn.Dense(1, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.ones, name="output")
        return output(jnp.concatenate([largest, hidden], axis=1))[:, 0]


class Experts(nn.Module):
    """``mean_e head_e(tail_e(backbone(images)))``: each expert is a classifier of the feature maps of ``backbone``.

    Its parameters lie under ``backbone`` and ``experts_0``, ``experts_1`` …, within them under ``backbone`` and
    ``head``; those of the routers under ``routers_0`` ….

    Attributes:
      backbone: the part that they share.
      experts: a :class:`dsb_jax.models.Classifier` each.
      routers: a `Router` for each but the last; none by default.
    """

    backbone: nn.Module
    experts: tuple[nn.Module, ...]
    routers: tuple[nn.Module, ...] = ()

    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Classifies ``images [batch, height, width, channels]``, floating; see `Classifier`.

        Returns:
          `Outputs`. Logits, features and classifier are the means of the experts', which are in ``experts``. With
          routers, logits in evaluation are the mean of as many experts as an image needs: the first alone, unless its
          router wants the second besides, and so on. All are computed, so that every batch takes the same program.

        Raises:
          ValueError: if ``images`` are not four-dimensional and floating.
        """
        check_images(images, self.backbone)
        shared = self.backbone(images, train=train)
        each = [expert(shared, train=train) for expert in self.experts]
        experts = jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)
        logits, features, classifier = (jnp.mean(array, axis=0) for array in experts[:3])
        outputs = Outputs(logits, features, classifier, experts=experts)
        if not self.routers:
            return outputs
        so_far = _means_so_far(experts.logits)
        routers = jnp.stack(
            [router(experts.features[number], so_far[number]) for number, router in enumerate(self.routers)]
        )
        return outputs._replace(logits=logits if train else early_exit(so_far, routers), routers=routers)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """The experts' logits ``[experts, batch, classes]`` of features of each, ``[experts, batch, dim]``."""
        each = zip(self.experts, features, strict=True)
        return jnp.stack([expert.classify(of_expert, train=train) for expert, of_expert in each])


def early_exit(logits: jax.Array, routers: jax.Array) -> jax.Array:
    """The logits of the first experts whose router wants no further one.

    Args:
      logits: ``[experts, batch, classes]``, of the first expert, the first two, the first three …
      routers: ``[experts - 1, batch]``, above 0 where a further expert is wanted.

    Returns:
      ``[batch, classes]``.

    Example:
      >>> logits = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
      >>> print(early_exit(logits, jnp.array([[-1.0, 1.0]])))
      [[1. 0.]
       [0. 1.]]
    """
    chosen = logits[-1]
    for so_far, router in zip(logits[-2::-1], routers[::-1], strict=True):
        chosen = jnp.where(router[:, None] > 0, chosen, so_far)
    return chosen


def _means_so_far(logits):
    """``[experts, batch, classes]``: of the first, of the first two …"""
    numbers = jnp.arange(1, len(logits) + 1, dtype=logits.dtype)
    return jnp.cumsum(logits, axis=0) / numbers[:, None, None]
