"""Losses of metric learning: embeddings near what stands for their class, and far from what stands for others.

All are functions ``(embeddings [batch, dim], labels [batch], ...) -> [batch]``. Embeddings are taken as they come, of
length 1 where the method has them so; the centres that compete for an embedding are brought to length 1 here. What is
narrower than float32 is upcast to it; float64, of either argument, is kept. A label outside ``[0, classes)`` raises
where its value can be read; under ``jit`` its loss is NaN, and its gradient zero.
"""

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.losses.classification import cross_entropy
from dsb_jax.losses.embeddings import checked, comparable, normalized
from dsb_jax.losses.inputs import LARGEST_MARGIN

_NEAREST, _FARTHEST = 1e-12, 1e12  # what center_loss clamps to
_INSIDE_ROOT = 1e-5  # where two centres meet, the slope of the root of nothing would be infinite


def soft_triple(
    embeddings: jax.Array,
    labels: jax.typing.ArrayLike,
    *,
    centers: jax.Array,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
) -> jax.Array:
    """SoftTriple: cross-entropy of the similarities to classes that have several centres each.

    With the centres w_ck at length 1, the similarity of an embedding x to a class is that to its centres, to the
    nearest before all, ``s_c = Σ_k softmax_k(x·w_ck / γ) x·w_ck``, and the loss is
    ``-log softmax(scale · (s - margin e_y))_y``. It goes with :func:`soft_triple_regularizer`.

    Args:
      embeddings: ``[batch, dim]``, floating, of length 1 in the method.
      labels: Class indices ``[batch]``, integers.
      centers: ``[classes, centers, dim]``, floating, of any length.
      scale: Inverse temperature over classes, > 0.
      gamma: Temperature γ over a class's centres, > 0.
      margin: By how much the true class must be the most similar, in [0, 2].

    Returns:
      The loss of every example in nats, ``[batch]``.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> centers = jnp.array([[[2.0, 0.0], [0.0, 3.0]], [[-1.0, 0.0], [0.0, -1.0]]])
      >>> loss = soft_triple(jnp.array([[1.0, 0.0]]), jnp.array([0]), centers=centers, scale=1.0, margin=0.0)
      >>> [f"{value:.3f}" for value in loss]  # the nearest centres are at 1 and at 0: log(1 + 1/e)
      ['0.313']

    Source: Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019; Eq. 6 of the paper.
    """
    embeddings, centers = comparable(
        embeddings=checked("embeddings", embeddings, "batch, dim"),
        centers=checked("centers", centers, "classes, centers, dim", filled=True),
    )
    validation.positive("scale", scale)
    validation.positive("gamma", gamma)
    validation.in_range("margin", margin, 0, LARGEST_MARGIN)
    classes = centers.shape[0]
    labels = validation.labels(labels, classes, samples=embeddings.shape[0])
    # Full float32 also where matrix products default to less: the scale multiplies errors.
    to_centers = jnp.einsum("bd,ckd->bck", embeddings, normalized(centers), precision=jax.lax.Precision.HIGHEST)
    to_classes = jnp.sum(jax.nn.softmax(to_centers / gamma, axis=2) * to_centers, axis=2)
    true_class = jax.nn.one_hot(labels, classes, dtype=to_classes.dtype)
    return cross_entropy(scale * (to_classes - margin * true_class), labels)


def soft_triple_regularizer(centers: jax.Array) -> jax.Array:
    """How far apart SoftTriple's centres of one class are: minimized, it merges those that a class does not need.

    ``Σ_c Σ_{j<k} √(2 + 1e-5 - 2 w_cj·w_ck) / (C K (K - 1))`` with the centres w at length 1: half of the mean distance.
    The method adds 0.2 of it to the mean loss of a batch.

    Args:
      centers: ``[classes, centers, dim]``, floating, of any length.

    Returns:
      A scalar, 0 where classes have one centre.

    Raises:
      ValueError: on a wrong shape or dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> print(f"{soft_triple_regularizer(jnp.array([[[2.0, 0.0], [0.0, 3.0]]])):.4f}")  # half of √2
      0.7071

    Source: Qian et al., 2019, with the 1e-5 of their code; the paper's Eq. 6 is without this term.
    """
    centers = normalized(checked("centers", centers, "classes, centers, dim", filled=True))
    classes, per_class, _ = centers.shape
    if per_class == 1:
        return jnp.zeros((), centers.dtype)
    cosine = jnp.einsum("cjd,ckd->cjk", centers, centers, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.sqrt(2.0 + _INSIDE_ROOT - 2.0 * jnp.minimum(cosine, 1.0))  # rounding may leave more than 1
    return jnp.sum(jnp.triu(distance, 1)) / (classes * per_class * (per_class - 1))


def center_loss(features: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, centers: jax.Array) -> jax.Array:
    """Center loss: the squared distance to the centre of the class.

    ``Σ_d (x_d - w_yd)²``, clamped to [1e-12, 1e12]. It is added, with a small weight, to a classification loss; in IFL
    both see examples of two environments. The centres have an optimizer of their own, which that weight must not slow.

    Args:
      features: ``[batch, dim]``, floating, of any length.
      labels: Class indices ``[batch]``, integers.
      centers: ``[classes, dim]``, floating, of any length.

    Returns:
      The loss of every example, ``[batch]``.

    Raises:
      ValueError: on a wrong shape or dtype, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> centers = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> [f"{value:.1f}" for value in center_loss(jnp.array([[1.0, 1.0]]), jnp.array([1]), centers=centers)]
      ['2.0']

    Source: Wen et al., 2016, Eq. 2, without its ½, as in the code of Tang et al., Invariant Feature Learning for
    Generalized Long-Tailed Classification, 2022.
    """
    features, own, is_class = _with_own_centers(features, labels, centers)
    distance = jnp.sum(jnp.square(features - own), axis=1)
    return jnp.where(is_class, jnp.clip(distance, _NEAREST, _FARTHEST), jnp.nan)


def center_cosine_loss(
    features: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, *, centers: jax.Array
) -> jax.Array:
    """Center loss on directions: 1 minus the cosine with the centre of the class.

    Args:
      features: ``[batch, dim]``, floating, of any length.
      labels: Class indices ``[batch]``, integers.
      centers: ``[classes, dim]``, floating, of any length.

    Returns:
      The loss of every example, ``[batch]``, in [0, 2]; 1 for features or a centre that are zero.

    Raises:
      ValueError: on a wrong shape or dtype, or a label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> centers = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> [f"{value:.3f}" for value in center_cosine_loss(jnp.array([[1.0, 1.0]]), jnp.array([1]), centers=centers)]
      ['0.293']

    Source: the code of Tang et al., 2022, beside their center loss.
    """
    features, own, is_class = _with_own_centers(features, labels, centers)
    cosine = jnp.sum(normalized(features) * normalized(own), axis=1)
    return jnp.where(is_class, 1.0 - cosine, jnp.nan)


def _with_own_centers(
    features: jax.typing.ArrayLike, labels: jax.typing.ArrayLike, centers: jax.Array
) -> tuple[jax.Array, ...]:
    """Features, the centre of each one's class, and whether its label is a class."""
    features, centers = comparable(
        features=checked("features", features, "batch, dim"),
        centers=checked("centers", centers, "classes, dim", filled=True),
    )
    labels = validation.labels(labels, centers.shape[0], samples=features.shape[0])
    # What is no class borrows the first centre and is masked later: a NaN here would be one in the gradient too.
    return features, centers[jnp.maximum(labels, 0)], labels >= 0
