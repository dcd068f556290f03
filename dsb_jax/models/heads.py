"""The last layer: features to logits, by inner product or by cosine; and beside it features to embeddings."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax import validation

# Below this length a vector is divided by it instead of by its own: the gradient stays bounded down to zero.
_MIN_NORM = 1e-6

# Full float32 also where matrix products default to less: it costs nothing here, and a scale of 30 multiplies errors.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class LinearHead(nn.Module):
    """Inner products with the class weights, plus a bias."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,))
        return _matmul(features, kernel) + bias[None, :]


class CosineHead(nn.Module):
    """``scale · cos(feature, class weight)``, without bias (Wang et al., 2018).

    The kernel ``[dim, num_classes]`` is kept unnormalised.
    """

    num_classes: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        return self.scale * _matmul(_normalize(features, axis=1), _normalize(kernel, axis=0))


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
        return _normalize(dense(self.dim, name="output")(x), axis=1)


def _normalize(vectors: jax.Array, axis: int) -> jax.Array:
    squares = jnp.sum(jnp.square(vectors), axis=axis, keepdims=True)
    # The floor goes inside of the root, whose own slope at zero is infinite.
    return vectors / jnp.sqrt(jnp.maximum(squares, _MIN_NORM**2))


def create(name: str, num_classes: int, *, scale: float) -> nn.Module:
    """The head ``name``: ``"linear"``, or ``"cosine"`` times ``scale``."""
    validation.positive_int("num_classes", num_classes)
    validation.positive("head_scale", scale)
    match name:
        case "linear" if scale == 1.0:
            return LinearHead(num_classes)
        case "linear":
            raise ValueError(f"head_scale belongs to the cosine head, got head_scale={scale} with a linear head")
        case "cosine":
            return CosineHead(num_classes, scale)
    raise validation.unknown_name("head", name, ("linear", "cosine"))
