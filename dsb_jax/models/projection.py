"""Features to embeddings, beside the head, for losses that compare examples."""

import functools

import flax.linen as nn
import jax

from dsb_jax.models.heads import normalize


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
        dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
        x = features
        for number in range(1, self.layers):
            x = nn.relu(dense(features.shape[-1], kernel_init=nn.initializers.he_normal(), name=f"hidden{number}")(x))
        return normalize(dense(self.dim, name="output")(x), axis=1)
