"""Objectives whose margins follow what training says of the classes: their mean scores, or how crowded they lie."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import losses, validation
from dsb_jax.losses.inputs import LARGEST_MARGIN
from dsb_jax.objectives.metric import class_weights, require_cosines
from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Result, Unmoved, majority_labels

_LEAST_SCORE = 1e-30  # the logarithm of a class that is never right must stay finite


@dataclasses.dataclass(frozen=True)
class Loce(Unmoved):
    """LOCE as classification: cross-entropy with margins that follow the classes' mean scores.

    The state is the mean score of every class. As in the original code they take in a batch before its loss is
    computed, and carry no gradient; an example of mixed images has the score of the class of its larger share. Parts of
    a batch (``accumulate``) do so one after the other. Evaluation reports the cross-entropy.

    Attributes:
      decay: of the mean scores, for each example of a class, in [0, 1].
      initial: the mean scores to begin with, in (0, 1].
      samplers: of the batches.

    Example:
      >>> Loce().views, Loce().samplers
      (1, ('plain',))

    Raises:
      ValueError: on a number out of range.

    Source: Feng et al., Exploring Classification Equilibrium in Long-Tailed Object Detection, 2021, whose memory of
    features of tail classes (:class:`dsb_jax.objectives.MemoryJitter` is one) and background class are left out.
    """

    decay: float = 0.9
    initial: float = 0.01
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy

    def __post_init__(self) -> None:
        validation.in_range("decay", self.decay, 0, 1)
        validation.in_range("initial", validation.positive("initial", self.initial), 0, 1)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> jax.Array:
        """The mean scores ``[C]``."""
        del rng, variables
        return jnp.full(outputs.logits.shape[-1], self.initial, jnp.float32)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image."""
        outputs, labels = forward(batch["image"]), majority_labels(batch)
        probabilities = jax.nn.softmax(jax.lax.stop_gradient(outputs.logits))
        scores = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
        state = losses.mean_score_update(state, scores, labels, decay=self.decay, mask=batch.get("mask"))
        state = jnp.clip(state, _LEAST_SCORE, 1.0)

        def loss(logits, labels):
            return losses.equilibrium(logits, labels, mean_scores=state)

        return Supervised(loss)(lambda images: outputs, batch, state, rng)


@dataclasses.dataclass(frozen=True)
class DomainBalancing(Unmoved):
    """Domain balancing: CosFace with a larger margin for classes of rare domains.

    How rare they are is read from the class weights of the same step, without gradient. It needs them,
    ``outputs.classifier``, and that the model's logits are cosines. Evaluation reports the cross-entropy of the scaled
    cosines, without margins.

    Attributes:
      margin: in cosine, of a class with an indicator of 1, in [0, 2].
      scale: inverse temperature, > 0.
      neighbours: how many nearest classes count, >= 1.
      epsilon: numerator of the indicator, > 0; None for a mean of 1.
      samplers: of the batches.

    Example:
      >>> objective = DomainBalancing(scale=2.0)
      >>> cosines = jnp.array([[0.5, 0.0]])
      >>> [f"{value:.3f}" for value in objective.loss(cosines, jnp.array([0]))]  # log(1 + 1/e)
      ['0.313']

    Raises:
      ValueError: on a number out of range; from ``init``, if the model's head is another.

    Source: Cao et al., Domain Balancing: Face Recognition on Long-Tailed Domains, 2020, without its residual block; see
    :func:`dsb_jax.losses.domain_frequency` for what is ours.
    """

    margin: float = 0.35
    scale: float = 30.0
    neighbours: int = 10
    epsilon: float | None = None
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1

    def __post_init__(self) -> None:
        validation.in_range("margin", self.margin, 0, LARGEST_MARGIN)
        validation.positive("scale", self.scale)
        validation.positive_int("neighbours", self.neighbours)
        if self.epsilon is not None:
            validation.positive("epsilon", self.epsilon)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """``[batch]``, of cosines ``[batch, classes]``."""
        return losses.cross_entropy(self.scale * logits, labels)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng
        self._frequency(outputs)
        require_cosines("domain_balancing", variables)
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image."""
        outputs = forward(batch["image"])
        frequency = self._frequency(outputs)

        def loss(logits, labels):
            hyper = {"frequency": frequency, "margin": self.margin, "scale": self.scale}
            return losses.domain_balancing(outputs.logits, labels, **hyper)

        # Of the logits a balancer may ask, and softmax makes scores of these.
        seen = outputs._replace(logits=self.scale * outputs.logits)
        return Supervised(loss)(lambda images: seen, batch, state, rng)

    def _frequency(self, outputs):
        return losses.domain_frequency(
            class_weights("domain_balancing", outputs),
            neighbours=self.neighbours,
            scale=self.scale,
            epsilon=self.epsilon,
        )
