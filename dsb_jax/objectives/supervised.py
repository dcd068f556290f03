"""The plain objective: one loss on one batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dsb_jax.objectives.terms import Result, Term, result_of


@dataclasses.dataclass(frozen=True)
class Supervised:
    """``mean(weights[label]·loss(logits, label))``, and of mixed images the mean over both labels by their shares.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, as :func:`dsb_jax.losses.create` makes it.

    Example:
      >>> from dsb_jax import losses
      >>> objective = Supervised(losses.create("cross_entropy"))
      >>> objective.views, objective.samplers
      (1, ('plain',))
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    views: int = 1
    samplers: tuple[str, ...] = ("plain",)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng, variables, outputs
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, jax.Array], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image. Features enter the pool as of the class that has the larger share."""
        del rng
        outputs, labels = forward(batch["image"]), batch["label"]
        terms = [Term(self.loss(outputs.logits, labels), labels)]
        if "share" in batch:
            share, others = batch["share"], batch["other_label"]
            terms = [
                Term(share * terms[0].losses, labels),
                Term((1 - share) * self.loss(outputs.logits, others), others),
            ]
        return result_of(terms, outputs, batch, state)

    def after_update(self, state: Any, params: Any) -> Any:
        """Nothing follows the parameters."""
        del params
        return state
