"""Margins that follow how crowded a class's surroundings are: domain balancing.

The domains of the data, as of age or ethnicity among faces, have no labels; but classes of a frequent domain lie close
together, which the classifier's weights show.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.losses.classification import cross_entropy
from dsb_jax.losses.embeddings import checked, in_one_dtype, normalized
from dsb_jax.losses.inputs import LARGEST_MARGIN

_CLASS_BLOCK = 256  # classes whose similarities to all classes are held at once
_LEAST_COMPACTNESS = 1.0  # few classes, well apart, have a compactness around 0 and below, which no margin divides by


def domain_frequency(
    classifier: jax.Array, *, neighbours: int = 10, scale: float = 30.0, epsilon: float | None = None
) -> jax.Array:
    """Domain frequency indicator: the larger, the rarer the domain of a class.

    ``ε / IC_c`` with the inter-class compactness ``IC_c = log Σ_k exp(scale · cos(w_c, w_k))`` over the nearest other
    classes k. There is no public code, and ours are: the defaults, that IC is at least 1, and that ε by default
    makes the mean 1, so that a margin times the indicator keeps its size.

    Args:
      classifier: The classes' weights ``[classes, dim]``, floating, of any length.
      neighbours: How many nearest classes count, >= 1; all others where there are fewer.
      scale: Inverse temperature, > 0, in the method that of the loss.
      epsilon: The numerator ε, > 0; None for a mean of 1.

    Returns:
      The indicator of every class, ``[classes]``, in float32 or, for a classifier in it, float64. A single class is as
      one with an IC of 1.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> classifier = jnp.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> indicator = domain_frequency(classifier, neighbours=2, scale=4.0, epsilon=1.0)
      >>> [f"{value:.3f}" for value in indicator]  # 1 / log(e^4 + 1), and 1 at the floor: log 2 is less
      ['0.249', '0.249', '1.000', '1.000']

    Source: Cao et al., Domain Balancing: Face Recognition on Long-Tailed Domains, 2020, Sec. 3.
    """
    unit = normalized(checked("classifier", classifier, "classes, dim", filled=True))
    validation.positive_int("neighbours", neighbours)
    validation.positive("scale", scale)
    if epsilon is not None:
        validation.positive("epsilon", epsilon)
    classes = unit.shape[0]
    if classes == 1:
        compactness = jnp.full((1,), _LEAST_COMPACTNESS, unit.dtype)
    else:
        compactness = jnp.maximum(_compactness(unit, min(neighbours, classes - 1), scale), _LEAST_COMPACTNESS)
    indicator = 1.0 / compactness
    return indicator / jnp.mean(indicator) if epsilon is None else epsilon * indicator


def domain_balancing(
    cosines: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    frequency: jax.Array,
    margin: float = 0.35,
    scale: float = 30.0,
) -> jax.Array:
    """Domain balancing margin: cross-entropy that asks classes of rare domains for a larger margin.

    ``-log softmax(scale · (cosines - margin f_y e_y))_y``; with an indicator f of 1 for all it is CosFace.

    Args:
      cosines: Cosines of features with class weights ``[batch, classes]``, as of a cosine head with scale 1.
      labels: Class indices ``[batch]``, integers.
      frequency: The classes' `domain_frequency` ``[classes]``, floating, >= 0; a constant in the gradient.
      margin: Margin, in cosine, of a class with an indicator of 1, in [0, 2].
      scale: Inverse temperature, > 0.

    Returns:
      The loss of every example in nats, ``[batch]``. A traced label that is no class has the loss NaN and no gradient.

    Raises:
      ValueError: on a wrong shape, dtype or hyper-parameter, on an indicator that is negative or not finite, or on a
        label outside ``[0, classes)``.

    Example:
      >>> import jax.numpy as jnp
      >>> cosines, labels = jnp.array([[0.5, 0.0], [0.0, 0.5]]), jnp.array([0, 1])
      >>> loss = domain_balancing(cosines, labels, frequency=jnp.array([0.5, 1.0]), margin=0.5, scale=4.0)
      >>> [f"{value:.3f}" for value in loss]  # margins 0.25 and 0.5
      ['0.313', '0.693']

    Source: Cao et al., 2020, Sec. 3, over CosFace: Wang et al., 2018, Eq. 4. That the gradient passes by the indicator
    is ours: through it a loss would be lowered by crowding its class.
    """
    cosines = checked("cosines", cosines, "batch, classes")
    batch, classes = cosines.shape
    frequency = jax.lax.stop_gradient(_checked_frequency(frequency, classes))
    validation.in_range("margin", margin, 0, LARGEST_MARGIN)
    validation.positive("scale", scale)
    labels = validation.labels(labels, classes, samples=batch)
    cosines, frequency = in_one_dtype(cosines, frequency)
    true_class = jax.nn.one_hot(labels, classes, dtype=cosines.dtype)
    return cross_entropy(scale * (cosines - margin * frequency[None, :] * true_class), labels)


def _checked_frequency(frequency: Any, classes: int) -> jax.Array:
    if np.shape(frequency) != (classes,):
        raise ValueError(f"frequency must have shape ({classes},), one per class, got {np.shape(frequency)}")
    if validation.is_concrete(frequency):
        values = np.asarray(frequency)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"frequency must be finite and not negative, got {values.tolist()}")
    return checked("frequency", frequency, "classes")


def _compactness(unit: jax.Array, neighbours: int, scale: float) -> jax.Array:
    """``log Σ exp(scale · cos)`` over the nearest other classes of each, block by block of classes."""
    classes = unit.shape[0]

    @jax.checkpoint  # so that a gradient does not hold every block either
    def of_class(index: jax.Array) -> jax.Array:
        cosine = jnp.einsum("d,cd->c", unit[index], unit, precision=jax.lax.Precision.HIGHEST)
        others = jnp.where(jnp.arange(classes) == index, -jnp.inf, cosine)
        nearest, _ = jax.lax.top_k(others, neighbours)
        return jax.nn.logsumexp(scale * nearest)

    return jax.lax.map(of_class, jnp.arange(classes), batch_size=min(_CLASS_BLOCK, classes))
