"""What an objective around another one has of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from dsb_jax.objectives.terms import Objective, state_shardings


@dataclasses.dataclass(frozen=True)
class Extension:
    """An objective around another: what it does not say otherwise is as the other has it.

    Attributes:
      inner: the other objective.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> class Doubled(Extension):
      ...     def __call__(self, forward, batch, state, rng):
      ...         result = self.inner(forward, batch, state, rng)
      ...         return result._replace(terms=[term._replace(scale=2.0 * term.scale) for term in result.terms])
      >>> Doubled(objectives.Supervised(losses.create("cross_entropy"))).samplers
      ('plain',)
    """

    inner: Objective

    @property
    def loss(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """``(logits, labels) -> [batch]``, what evaluation reports."""
        return self.inner.loss

    @property
    def views(self) -> int:
        """How many of each image it asks for."""
        return self.inner.views

    @property
    def samplers(self) -> tuple[str, ...]:
        """Whose batches it asks for."""
        return self.inner.samplers

    @property
    def rows_per_example(self) -> int:
        """How many rows of a result an example of the batch has."""
        return getattr(self.inner, "rows_per_example", 1)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """The state of ``inner``."""
        return self.inner.init(rng, variables, outputs)

    def after_update(self, state: Any, params: Any) -> Any:
        """The state of ``inner`` after the parameters have changed."""
        return self.inner.after_update(state, params)

    def state_shardings(self, mesh: Mesh) -> Any:
        """How the state of ``inner`` lies on the devices."""
        return state_shardings(self.inner, mesh)
