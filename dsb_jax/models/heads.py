"""The last layer: features to logits, by inner product or by cosine.

Every head has a kernel ``[dim, classes]``, the classes last, so that one may go on with that of another.
"""

import functools
from typing import Any

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
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        del train
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
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        return self.scale * _matmul(normalize(features, axis=1), normalize(kernel, axis=0))


class ScaledHead(nn.Module):
    """A linear head whose logits each class multiplies with a scale of its own: ``s_c·(w_c·f + b_c)``.

    The scales begin at 1. The second stage of LWS trains nothing else; their official code scales the bias too.

    Source: Kang et al., Decoupling Representation and Classifier, 2020.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        del train
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
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.num_classes))
        return _matmul(features, kernel / _length(kernel, axis=0) ** self.tau)


class CausalHead(nn.Module):
    """Cosines of parts of the feature, from which evaluation takes the effect of the training's momentum away.

    The feature x and the class weights w are cut into K parts. In training the logits are
    ``τ/K · Σ_k x̂_k · w_k/(‖w_k‖ + γ)`` with x̂ of length 1; meanwhile ``c ← μ c + mean(x)`` over each batch is the
    direction that features drift to, of which only that counts. In evaluation x̂_k gives way to
    ``x̂_k - α cos(x_k, c_k) ĉ_k``.

    The kernel is ``[dim, num_classes]``; c is ``mean``, ``[dim]``, in the collection ``batch_stats``. The μ of the
    original code approaches 1 as the learning rate falls, here it is constant: the direction is that of the last
    ``1/(1 - μ)`` batches or so.

    Attributes:
      num_classes: Width of the logits.
      heads: K, which divides the dimension of the features.
      tau: τ, the scale.
      alpha: α, how much is taken away; 0 leaves all.
      gamma: γ, by which short class weights stay short.
      mu: μ, in [0, 1).

    Source: Tang et al., Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum Causal Effect,
    2020, and their code.
    """

    num_classes: int
    heads: int = 2
    tau: float = 16.0
    alpha: float = 3.0
    gamma: float = 1 / 32
    mu: float = 0.9

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        dim = features.shape[-1]
        if dim % self.heads:
            raise ValueError(
                f"the causal head cuts features into heads = {self.heads} parts, which must divide their dimension, "
                f"got {dim}"
            )
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (dim, self.num_classes))
        mean = self.variable("batch_stats", "mean", jnp.zeros, dim, features.dtype)
        parts = normalize(features.reshape(-1, self.heads, dim // self.heads), axis=2)
        if train and not self.is_initializing():
            mean.value = self.mu * mean.value + jax.lax.stop_gradient(jnp.mean(features, axis=0))
        elif not train:
            drift = normalize(mean.value.reshape(1, self.heads, -1), axis=2)
            parts -= self.alpha * jnp.sum(parts * drift, axis=2, keepdims=True) * drift
        weights = kernel.reshape(self.heads, -1, self.num_classes)
        weights /= _length(weights, axis=1) + self.gamma
        return self.tau / self.heads * _matmul(parts.reshape(-1, dim), weights.reshape(dim, -1))


class SoftTripleHead(nn.Module):
    """``scale`` times the similarity to classes that have several centres, to the nearest before all.

    With the feature x and the centres w_ck at length 1, ``s_c = Σ_k softmax_k(x·w_ck / γ) x·w_ck``: what
    :func:`dsb_jax.losses.soft_triple` compares. The kernel is ``[dim, centers, num_classes]``.

    Attributes:
      num_classes: Width of the logits.
      scale: Factor on the similarities.
      centers: Of every class.
      gamma: Temperature γ over a class's centres.

    Source: Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019.
    """

    num_classes: int
    scale: float = 1.0
    centers: int = 10
    gamma: float = 0.1

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        dim = features.shape[-1]
        # Every centre is drawn as the class weights of the other heads are.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (dim, self.centers, self.num_classes))
        directions = normalize(kernel, axis=0).reshape(dim, -1)
        to_centers = _matmul(normalize(features, axis=1), directions).reshape(-1, self.centers, self.num_classes)
        return self.scale * jnp.sum(nn.softmax(to_centers / self.gamma, axis=1) * to_centers, axis=1)


def normalize(vectors: jax.Array, axis: int) -> jax.Array:
    """The vectors along an axis at length 1; next to nothing stays next to nothing."""
    return vectors / _length(vectors, axis)


def _length(vectors: jax.Array, axis: int) -> jax.Array:
    squares = jnp.sum(jnp.square(vectors), axis=axis, keepdims=True)
    # The floor goes inside of the root, whose own slope at zero is infinite.
    return jnp.sqrt(jnp.maximum(squares, _MIN_NORM**2))


_WITH_SCALE = ("cosine", "soft_triple")


def create(name: str, num_classes: int, *, scale: float = 1.0, **options: Any) -> nn.Module:
    """The head ``name``, with the options that are its own.

    Args:
      name: ``"linear"``; ``"cosine"`` or ``"soft_triple"``, times ``scale``; ``"causal"``; ``"scaled"``; or
        ``"tau_normalized"``.
      num_classes: width of the logits.
      scale: factor on what is a cosine.
      **options: attributes of `CausalHead`, `SoftTripleHead` or `TauNormalizedHead`.

    Raises:
      ValueError: on an unknown name or option, or a value that makes no sense.
    """
    validation.positive_int("num_classes", num_classes)
    validation.positive("head_scale", scale)
    if name not in _HEADS:
        raise validation.unknown_name("head", name, _HEADS)
    head, checks = _HEADS[name]
    for key, value in options.items():
        if key not in checks:
            if not checks:
                raise ValueError(f"a {name} head has no options, got {key}={value!r}")
            raise validation.unknown_name(f"option of a {name} head", key, checks)
        checks[key](key, value)
    if name in _WITH_SCALE:
        options["scale"] = scale
    elif scale != 1.0:
        raise ValueError(f"head_scale belongs to the cosine head, got head_scale={scale} with a {name} head")
    return head(num_classes, **options)


def _not_negative(name: str, value: float) -> None:
    validation.at_least(name, value, 0)


# Name -> module, and what checks each of its options.
_HEADS: dict[str, Any] = {
    "linear": (LinearHead, {}),
    "cosine": (CosineHead, {}),
    "causal": (
        CausalHead,
        {
            "heads": validation.positive_int,
            "tau": validation.positive,
            "alpha": _not_negative,
            "gamma": _not_negative,
            "mu": validation.below_one,
        },
    ),
    "scaled": (ScaledHead, {}),
    "soft_triple": (SoftTripleHead, {"centers": validation.positive_int, "gamma": validation.positive}),
    "tau_normalized": (TauNormalizedHead, {"tau": _not_negative}),
}

NAMES = tuple(_HEADS)
