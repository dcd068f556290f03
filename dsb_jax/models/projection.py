"""Features to embeddings of length 1: below the head, as metric learning has them, or beside it."""

import functools

import flax.linen as nn
import jax

from dsb_jax.models.heads import normalize

_EPSILON = 1e-5  # PyTorch's
_dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)


class Embedding(nn.Module):
    """Pooled features to embeddings of length 1, by one dense layer: what the head sees in their place.

    Attributes:
      dim: of the embeddings.
      layer_norm: whether each feature vector is brought to mean 0 and variance 1 before, and the layer has no bias, as
        Zhai & Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019, have it.
    """

    dim: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        if self.layer_norm:
            features = nn.LayerNorm(epsilon=_EPSILON, use_bias=False, use_scale=False)(features)
        return normalize(_dense(self.dim, use_bias=not self.layer_norm, name="output")(features), axis=1)


class Projection(nn.Module):
    """Features to embeddings of length 1, by dense layers with ReLU between; all but the last keep the width.

    Attributes:
      dim: of the embeddings.
      layers: how many there are.
    """

    dim: int
    layers: int = 2

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = features
        for number in range(1, self.layers):
            x = nn.relu(_dense(features.shape[-1], kernel_init=nn.initializers.he_normal(), name=f"hidden{number}")(x))
        return normalize(_dense(self.dim, name="output")(x), axis=1)
