"""RIDE: several experts on shared first stages, pushed apart, and routers that say how many an image needs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsb_jax import validation
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.terms import Result, Term


class RideState(NamedTuple):
    """Steps so far, int32, and the variables of the teacher, ``()`` without one."""

    step: jax.Array
    teacher: Any


@dataclasses.dataclass(frozen=True)
class Ride(Extension):
    """Each expert's classification term, and a term that rewards it for differing from the experts' mean.

    ``Σ_e [loss(z_e) + λ T̄² KL(softmax(z̄/T) ‖ softmax(z_e/T))]`` with λ < 0, where the mean logits z̄ are constants of
    the gradient. Temperatures T are one for each class from the step ``start`` on, and T̄ is their mean. Class weights
    multiply the classification terms alone; the features in the pool are the experts' means. The published
    deferred re-weighting is a balancer's business: ``class_balanced`` with ``start_epoch``.

    The official code, given λ = 0, has in place of each expert's loss that of the mean logits; here, 0 leaves out the
    second term. With a teacher a further term is ``κ τ² KL(softmax(t/τ) ‖ softmax(z̄/τ))``. The official code multiplies
    all of it by the number of experts if there is a teacher, and only then; here it is never, as that is but a
    larger learning rate.

    Attributes:
      inner: what is made of each expert's outputs, and whose loss evaluation reports.
      diversity: λ.
      temperature: T before ``start``, and a factor of it after.
      class_temperatures: ``[C]``, T from ``start`` on; see :func:`class_temperatures`. None keeps ``temperature``.
      start: the first step with them.
      scale: by which logits are multiplied where they are compared, for a loss that brings a scale of its own.
      teacher: ``(variables, images) -> Outputs``, whose logits have that scale already; None for no distillation.
      distillation: κ.
      distillation_temperature: τ.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> objective = Ride(objectives.Supervised(losses.create("cross_entropy")), diversity=-0.45)
      >>> objective.views, objective.samplers
      (1, ('plain',))

    Source: Wang et al., Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, 2021.
    """

    diversity: float = -0.2
    temperature: float = 1.0
    class_temperatures: np.ndarray | None = None
    start: int = 0
    scale: float = 1.0
    teacher: Callable[[Any, jax.Array], Any] | None = None
    distillation: float = 1.0
    distillation_temperature: float = 1.0

    def __post_init__(self):
        for name in ("temperature", "scale", "distillation_temperature"):
            validation.positive(name, getattr(self, name))
        validation.at_least("distillation", self.distillation, 0)
        if not math.isfinite(self.diversity):
            raise ValueError(f"diversity must be a finite number, got {self.diversity!r}")
        values = np.asarray(1.0 if self.class_temperatures is None else self.class_temperatures)
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(f"class_temperatures must be finite and above 0, got {values.tolist()}")

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> RideState:
        """No step so far, and the teacher's variables.

        Raises:
          ValueError: if the model has no experts.
        """
        del rng
        _require_experts("ride", outputs)
        return RideState(jnp.zeros((), jnp.int32), () if self.teacher is None else variables["teacher"])

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: RideState, rng: jax.Array) -> Result:
        """For each expert the terms of ``inner`` and, but for λ = 0, one more; then that of the teacher.

        Raises:
          ValueError: if the model has no experts.
        """
        outputs = forward(batch["image"])
        experts = _require_experts("ride", outputs)
        result = _supervise(self.inner, outputs, batch, rng)
        terms, distances = [], []
        temperatures = self._temperatures(state.step, outputs.logits)
        target = jax.nn.log_softmax(jax.lax.stop_gradient(self.scale * outputs.logits) / temperatures)
        for number in range(len(experts.logits)):
            expert = jax.tree.map(lambda array, number=number: array[number], experts)
            terms += _supervise(self.inner, expert, batch, rng).terms
            mine = jax.nn.log_softmax(self.scale * expert.logits / temperatures)
            distances.append(optax.losses.kl_divergence_with_log_targets(mine, target))
            if self.diversity:
                terms.append(Term(distances[-1], None, self.diversity * jnp.mean(temperatures) ** 2))
        if self.teacher is not None:
            terms.append(self._distilled(outputs.logits, self.teacher(state.teacher, batch["image"]).logits))
        distance = jnp.mean(sum(distances) / len(distances), where=result.mask, dtype=jnp.float32)
        return result._replace(terms=terms, state=state, metrics=result.metrics | {"diversity": distance})

    def after_update(self, state: RideState, params: Any) -> RideState:
        """One step more."""
        del params
        return state._replace(step=state.step + 1)

    def _temperatures(self, step, logits):
        """T ``[1, C]``."""
        of_class = jnp.ones(logits.shape[1], logits.dtype)
        if self.class_temperatures is not None:
            of_class = jnp.where(step >= self.start, jnp.asarray(self.class_temperatures, logits.dtype), of_class)
        return self.temperature * of_class[None, :]

    def _distilled(self, logits, teacher):
        heat = self.distillation_temperature
        target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / heat)
        mine = jax.nn.log_softmax(self.scale * logits / heat)
        distance = optax.losses.kl_divergence_with_log_targets(mine, target)
        return Term(distance, None, self.distillation * heat**2)


def class_temperatures(counts: np.ndarray, factor: float) -> np.ndarray:
    """``T_c = C π_c r + 1 − r`` over the largest of them: the rarer a class, the lower its temperature.

    Args:
      counts: training samples per class ``[C]``, from which the shares π.
      factor: r, in [0, 1); 0 makes all of them 1.

    Returns:
      Floats ``[C]``.

    Raises:
      ValueError: if ``factor`` is out of range.

    Example:
      >>> print(class_temperatures(np.array([90, 10]), 0.5))  # 1.4 and 0.6
      [1.     0.4286]

    Source: the official code of Wang et al., 2021.
    """
    validation.below_one("reweight_factor", factor)
    counts = np.asarray(counts, np.float64)
    temperatures = len(counts) * counts / counts.sum() * factor + 1 - factor
    return temperatures / temperatures.max()


@dataclasses.dataclass(frozen=True)
class RideRouting(Extension):
    """RIDE's second stage: routers learn which images the experts so far get wrong and more of them right.

    For each router, ``w t log σ(r) + (1 − t) log σ(−r)``, negated, and the mean over the routers; t is 1 where the
    mean of the experts so far is wrong and that of some larger number of them is right. The experts pass forward as
    in evaluation, and no gradient reaches them; what else moves parameters, a decay of weights, must be
    kept from them by the stage. No class weights: how much a wrong exit costs is what w says.

    In evaluation, the model takes the mean logits of the first experts whose router wants no further one.

    Attributes:
      inner: whose loss evaluation reports.
      positive_weight: w.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> RideRouting(objectives.Supervised(losses.create("cross_entropy"))).positive_weight
      100.0

    Source: Wang et al., 2021, Sec. 3.4, and their code.
    """

    positive_weight: float = 100.0

    def __post_init__(self):
        validation.positive("positive_weight", self.positive_weight)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state.

        Raises:
          ValueError: if the model has no routers.
        """
        del rng, variables
        _require_routers(outputs)
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """One term without class weights.

        Raises:
          ValueError: if the model has no routers.
        """
        outputs = forward(batch["image"], train=False)
        routers = _require_routers(outputs)
        result = _supervise(self.inner, outputs, batch, rng)
        experts = outputs.experts.logits
        # Sums have the order of means.
        correct = jnp.argmax(jnp.cumsum(experts, axis=0), axis=2) == result.labels[None, :]
        later = jnp.stack([jnp.any(correct[number:], axis=0) for number in range(1, len(experts))])
        wanted = ~correct[:-1] & later
        losses = jnp.where(wanted, self.positive_weight * jax.nn.softplus(-routers), jax.nn.softplus(routers))
        # How many experts an image takes: all of whose routers before want a further one.
        number = 1 + jnp.sum(jnp.cumprod((routers > 0).astype(jnp.int32), axis=0), axis=0)
        taken = jnp.mean(number, where=result.mask, dtype=jnp.float32)
        terms = [Term(jnp.mean(losses, axis=0), None)]
        return result._replace(terms=terms, state=state, metrics=result.metrics | {"experts": taken})

    def after_update(self, state: Any, params: Any) -> Any:
        """Nothing follows the parameters."""
        del params
        return state


def _supervise(inner, outputs, batch, rng):
    """What the inner objective makes of outputs that are there already."""
    return inner(lambda images: outputs, batch, (), rng)


def _require_experts(name, outputs):
    if getattr(outputs, "experts", None) is None:
        raise ValueError(
            f"objective {name!r} needs a model with experts, got one without: models.create(…, experts=n) makes one, "
            "and in a run the setting ride.experts"
        )
    return outputs.experts


def _require_routers(outputs):
    _require_experts("ride_routing", outputs)
    if outputs.routers is None:
        raise ValueError(
            "objective 'ride_routing' needs a model with routers, got experts without: models.create(…, experts=n, "
            "routers=True) makes one"
        )
    return outputs.routers
