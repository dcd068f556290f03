"""The plain objective: one loss on one batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dsb_jax.objectives.terms import Result, Term, Unmoved, result_of

AUXILIARY = 0.3  # what the loss of a classifier halfway counts (Szegedy et al., 2015)


@dataclasses.dataclass(frozen=True)
class Supervised(Unmoved):
    """``mean(weights[label]·loss(logits, label))``, and of mixed images the mean over both labels by their shares.

    Classifiers halfway through the model, as GoogLeNet may have, add 0.3 of the same each.

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

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image. Features enter the pool as of the class that has the larger share."""
        del rng
        outputs = forward(batch["image"])
        terms = self._terms(outputs.logits, batch, 1.0)
        auxiliary = getattr(outputs, "auxiliary", None)
        for logits in () if auxiliary is None else auxiliary:
            terms += self._terms(logits, batch, AUXILIARY)
        return result_of(terms, outputs, batch, state)

    def _terms(self, logits, batch, scale):
        labels = batch["label"]
        if "share" not in batch:
            return [Term(self.loss(logits, labels), labels, scale)]
        share, others = batch["share"], batch["other_label"]
        return [
            Term(share * self.loss(logits, labels), labels, scale),
            Term((1 - share) * self.loss(logits, others), others, scale),
        ]
