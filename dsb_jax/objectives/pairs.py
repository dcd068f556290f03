"""Circle loss of the pairs of a batch, alone and beside another objective."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dsb_jax import losses, validation
from dsb_jax.losses.embeddings import normalized
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.metric import require_one_class
from dsb_jax.objectives.terms import Result, Term, Unmoved, result_of


@dataclasses.dataclass(frozen=True)
class Circle(Unmoved):
    """Circle loss alone: features of one class come together and others part, and there is no classifier.

    An anchor's loss has the weight of its class. The batch should hold several examples of several classes: ``pk`` and
    ``class_aware`` draw such. The features that enter the pool are at length 1, as the loss sees them.

    The model's last layer is not trained. A balancer that asks for logits or class weights gets none; what evaluation
    predicts, and its cross-entropy, mean nothing.

    Attributes:
      margin: m, in [0, 1].
      scale: γ, > 0.
      samplers: of the batches.

    Raises:
      ValueError: on a number out of range; from a call, on mixed images.

    Example:
      >>> Circle().margin, Circle().scale
      (0.4, 80.0)

    Source: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020, in the form of
    :func:`dsb_jax.losses.circle`; the mean is over all anchors, also those that have nothing to pull or push.
    """

    margin: float = 0.4
    scale: float = 80.0
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy

    def __post_init__(self) -> None:
        validation.in_range("margin", self.margin, 0, 1)
        validation.positive("scale", self.scale)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """One term."""
        del rng
        require_one_class("circle", batch)
        outputs = forward(batch["image"])
        result = result_of([], outputs._replace(features=normalized(outputs.features)), batch, state)
        return result._replace(terms=[self.term(result)], metrics={}, logits=None, classifier=None)

    def term(self, result: Result, scale: float = 1.0) -> Term:
        """The loss of every anchor among the features of a result, with a factor."""
        hyper = {"margin": self.margin, "scale": self.scale}
        return Term(losses.circle(result.features, result.labels, mask=result.mask, **hyper), result.labels, scale)


@dataclasses.dataclass(frozen=True)
class CircleExtension(Extension):
    """The terms of ``inner``, and circle loss of the features that it puts into the pool.

    So features of one class come together and others part, whatever the classifier makes of them. An anchor's loss has
    the weight of its class.

    Attributes:
      inner: the other objective, with whose samplers this goes; as for circle loss alone, they should draw several
        examples of a class.
      circle: whose term it is.
      weight: factor of the circle loss, >= 0. As an anchor's loss is up to about γ, it is ``1/γ`` by default.

    Raises:
      ValueError: on a number out of range; from a call, on mixed images.

    Example:
      >>> from dsb_jax import objectives
      >>> objective = CircleExtension(objectives.Supervised(losses.create("cross_entropy")), Circle(margin=0.25))
      >>> objective.weight, objective.samplers
      (0.0125, ('plain',))

    Source: that it stands beside a classification loss, and its factor, are ours.
    """

    circle: Circle = dataclasses.field(default_factory=Circle)
    weight: float = 1 / 80

    def __post_init__(self) -> None:
        validation.at_least("weight", self.weight, 0)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """One term more than ``inner`` has."""
        require_one_class("circle", batch)
        result = self.inner(forward, batch, state, rng)
        return result._replace(terms=[*result.terms, self.circle.term(result, self.weight)])
