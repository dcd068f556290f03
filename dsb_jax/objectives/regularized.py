"""An objective with a regularizer of its logits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.terms import Result, Term


@dataclasses.dataclass(frozen=True)
class Regularized(Extension):
    """The terms of ``inner``, and ``scale`` times a regularizer of the batch's logits, without class weights.

    So DSB-LADE weighs LADE's adjusted cross-entropy and not its estimate of the label distribution, which is a sum
    over classes already.

    Attributes:
      inner: whose loss it is, also in evaluation.
      regularizer: ``(logits, labels, *, mask) -> scalar``, of a whole batch; mixed images count as of the class of
        their larger share.
      scale: its factor.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> objective = Regularized(objectives.Supervised(losses.create("focal")), lambda z, y, mask: 1.0, scale=0.1)
      >>> objective.views, objective.samplers
      (1, ('plain',))

    Source: Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, 2021 (LADE).
    """

    regularizer: Callable[..., jax.Array]
    scale: float

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """One term more than ``inner`` has."""
        outputs = forward(batch["image"])
        result = self.inner(lambda images: outputs, batch, state, rng)
        value = self.regularizer(outputs.logits, result.labels, mask=result.mask)
        value = jnp.broadcast_to(value, result.labels.shape)
        return result._replace(terms=[*result.terms, Term(value, None, self.scale)])
