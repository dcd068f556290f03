"""An objective with a regularizer of its logits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Result, Term


@dataclasses.dataclass(frozen=True)
class Regularized:
    """The terms of ``supervised``, and ``scale`` times a regularizer of the batch's logits, without class weights.

    So DSB-LADE weighs LADE's adjusted cross-entropy and not its estimate of the label distribution, which is a sum
    over classes already.

    Attributes:
      supervised: whose loss it is, also in evaluation.
      regularizer: ``(logits, labels, *, mask) -> scalar``, of a whole batch; mixed images count as of the class of
        their larger share.
      scale: its factor.

    Example:
      >>> from dsb_jax import losses
      >>> objective = Regularized(Supervised(losses.create("cross_entropy")), lambda z, y, mask: 1.0, scale=0.1)
      >>> objective.views, objective.samplers
      (1, ('plain',))

    Source: Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, 2021 (LADE).
    """

    supervised: Supervised
    regularizer: Callable[..., jax.Array]
    scale: float

    @property
    def loss(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """``(logits, labels) -> [batch]``."""
        return self.supervised.loss

    @property
    def views(self) -> int:
        """As ``supervised`` has it."""
        return self.supervised.views

    @property
    def samplers(self) -> tuple[str, ...]:
        """As ``supervised`` has them."""
        return self.supervised.samplers

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """The state of ``supervised``."""
        return self.supervised.init(rng, variables, outputs)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, jax.Array], state: Any, rng: jax.Array) -> Result:
        """One term more than ``supervised`` has."""
        outputs = forward(batch["image"])
        result = self.supervised(lambda images: outputs, batch, state, rng)
        value = self.regularizer(outputs.logits, result.labels, mask=result.mask)
        value = jnp.broadcast_to(value, result.labels.shape)
        return result._replace(terms=[*result.terms, Term(value, None, self.scale)])

    def after_update(self, state: Any, params: Any) -> Any:
        """As ``supervised`` has it."""
        return self.supervised.after_update(state, params)
