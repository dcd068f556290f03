"""The last layer: features to logits, by inner product or by cosine; and beside it features to embeddings.

Every head has a kernel ``[dim, classes]``, the classes last, so that one may go on with that of another.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax import validation

# Below this length a vector is divided by it instead of by its own: the gradient stays bounded down to zero.
_MIN_NORM = 1e-6

NAMES = ("linear", "cosine", "scaled", "tau_normalized")

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


class ScaledHead(nn.Module):
    """A linear head whose logits each class multiplies with a scale of its own: ``s_c·(w_c·f + b_c)``.

    The scales begin at 1. The second stage of LWS trains nothing else; their official code scales the bias too.

    Source: Kang et al., Decoupling Representation and Classifier, 2020.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,))
        scales = self.param("scales", nn.initializers.ones_init(), (self.num_classes,))
        return scales[None, :] * (_matmul(features, kernel) + bias[None, :])


class TauNormalizedHead(nn.Module):
    """Inner products with ``w_c/‖w_c‖^τ``, without bias; the kernel is kept as it is.

    Source: Kang et al., Decoupling Representation and Classifier, 2020.
    """

    num_classes: int
    tau: float = 1.0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        return _matmul(features, kernel / _length(kernel, axis=0) ** self.tau)


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
    return vectors / _length(vectors, axis)


def _length(vectors: jax.Array, axis: int) -> jax.Array:
    squares = jnp.sum(jnp.square(vectors), axis=axis, keepdims=True)
    # The floor goes inside of the root, whose own slope at zero is infinite.
    return jnp.sqrt(jnp.maximum(squares, _MIN_NORM**2))


def create(name: str, num_classes: int, *, scale: float = 1.0, tau: float = 1.0) -> nn.Module:
    """The head ``name``: ``"linear"``, ``"cosine"`` times ``scale``, ``"scaled"``, or ``"tau_normalized"`` by ``tau``.

    Raises:
      ValueError: on an unknown name, or a number that makes no sense or is of another head.
    """
    validation.positive_int("num_classes", num_classes)
    validation.positive("head_scale", scale)
    validation.at_least("head_tau", tau, 0)
    if name not in NAMES:
        raise validation.unknown_name("head", name, NAMES)
    if name != "cosine" and scale != 1.0:
        raise ValueError(f"head_scale belongs to the cosine head, got head_scale={scale} with a {name} head")
    match name:
        case "cosine":
            return CosineHead(num_classes, scale)
        case "scaled":
            return ScaledHead(num_classes)
        case "tau_normalized":
            return TauNormalizedHead(num_classes, tau)
    return LinearHead(num_classes)
