"""Learning from the virtual examples that a teacher sees in an image (DiVE)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dsb_jax import validation
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.terms import Result, Term


@dataclasses.dataclass(frozen=True)
class Dive(Extension):
    """``(1 − α)·loss(s, y) + α·T²·KL(q ‖ softmax(s/T))`` with ``q ∝ softmax(t/T)^p``, for the logits t of a teacher.

    The teacher is another run's model, as it was evaluated, and sees the same augmented (and mixed) images. Its
    variables ride in the objective's state: they are neither trained nor averaged, and are saved with each checkpoint.
    The class weights multiply the loss of the label alone: the divergence has a distribution over classes for a target
    and no class of its own, and the teacher has been balanced already.

    Attributes:
      inner: whose loss it is, also in evaluation; balanced softmax in the paper, for the teacher too.
      teacher: ``(variables, images) -> Outputs``, whose logits have the ``scale`` already.
      alpha: α, share of the divergence, in [0, 1].
      temperature: T. The re-implementation whose figures these are has 3 in its code and 2 in its CIFAR configs.
      scale: by which logits are multiplied where they are compared, for a loss that brings a scale of its own.
      power: p, in (0, 1] as a rule: below 1 the teacher's distribution is flatter. There it is off (1) by default.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> objective = Dive(objectives.Supervised(losses.create("focal")), teacher=lambda variables, images: None)
      >>> objective.alpha, objective.temperature, objective.power
      (0.5, 3.0, 0.5)

    Source: He et al., Distilling Virtual Examples for Long-tailed Recognition, 2021.
    """

    teacher: Callable[[Any, jax.Array], Any]
    alpha: float = 0.5
    temperature: float = 3.0
    power: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError on a number that makes no sense."""
        validation.in_range("alpha", self.alpha, 0, 1)
        for name in ("temperature", "power", "scale"):
            validation.positive(name, getattr(self, name))

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """The teacher's variables."""
        del rng, outputs
        return {"teacher": variables["teacher"]}

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """The terms of ``inner``, less of them, and the divergence."""
        outputs = forward(batch["image"])
        taught = jax.lax.stop_gradient(self.teacher(state["teacher"], batch["image"]).logits)
        result = self.inner(lambda images: outputs, batch, (), rng)
        terms = [term._replace(scale=(1 - self.alpha) * term.scale) for term in result.terms]
        divergence = virtual_examples(
            self.scale * outputs.logits, taught, temperature=self.temperature, power=self.power
        )
        agrees = jnp.argmax(taught, axis=1) == jnp.argmax(outputs.logits, axis=1)
        metrics = {"agreement": jnp.mean(agrees, where=result.mask, dtype=jnp.float32)}
        terms.append(Term(divergence, None, self.alpha))
        return result._replace(terms=terms, state=state, metrics=result.metrics | metrics)

    def after_update(self, state: Any, params: Any) -> Any:
        """The teacher stays as it is."""
        del params
        return state


def virtual_examples(logits: jax.Array, taught: jax.Array, *, temperature: float, power: float) -> jax.Array:
    """``T²·KL(q ‖ softmax(logits/T))`` of each example, with ``q ∝ softmax(taught/T)^power``.

    Args:
      logits: floating ``[batch, classes]``.
      taught: likewise, of the teacher.
      temperature: T.
      power: of the teacher's distribution, which is normalised again.

    Returns:
      ``[batch]``, not negative.

    Example:
      >>> logits = jnp.array([[2.0, 0.0]])
      >>> print(virtual_examples(logits, logits, temperature=3.0, power=1.0))
      [0.]
    """
    # softmax(t/T)^p normalised is softmax(p·t/T): no power of a number that may have become 0.
    target = jax.nn.log_softmax(power * taught.astype(jnp.promote_types(taught.dtype, jnp.float32)) / temperature)
    mine = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(mine, target)
