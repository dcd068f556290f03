"""Optimizers and learning-rate schedules, all Optax's: what is decided here is their order, and what an epoch is."""

import fractions
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsb_jax import validation
from dsb_jax.training.sharding import HEAD

_SCHEDULES = ("constant", "cosine", "exponential", "linear", "step")
_OPTIMIZERS = ("adam", "sgd")
_DECAYS = ("decoupled", "l2")
_DECAYED = ("all", "kernels")
_LARGEST_DENOMINATOR = 2**16  # of a number of epochs or of steps per epoch: batches up to this size


def schedule(
    name: str,
    learning_rate: float,
    steps: int,
    *,
    steps_per_epoch: float,
    decay_rate: float = 0.98,
    milestones: Sequence[float] = (),
    decay_factor: float = 0.1,
    warmup_epochs: float = 0.0,
) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    ``linear`` and ``cosine`` come down to 0 at the end, ``exponential`` and ``step`` change between epochs, and
    ``constant`` does not. The first step of epoch ``e`` is the first whose number is at least ``e·steps_per_epoch``,
    whether that is a whole number or not.

    Warm-up is ``learning_rate·(step + 1)/w`` over its ``w`` steps, so that no step has rate 0 and the last one the
    full rate (Goyal et al., 2017). Then ``linear``, ``cosine`` and ``exponential`` begin, over the steps that are left.
    Milestones are epochs of the run, warm-up included.

    Args:
      name: one of the five.
      learning_rate: the highest rate.
      steps: updates in all.
      steps_per_epoch: training examples divided by the batch size.
      decay_rate: of ``exponential``: the factor of every epoch, in (0, 1].
      milestones: of ``step``: epochs after which the rate falls, increasing.
      decay_factor: of ``step``: by how much, in (0, 1].
      warmup_epochs: length of the warm-up; less than the run's.

    Raises:
      ValueError: on an unknown name or a number that makes no sense.

    Example:
      >>> rate = schedule("linear", 0.1, 100, steps_per_epoch=10)
      >>> print(f"{rate(0):.3f} {rate(50):.3f} {rate(100):.3f}")
      0.100 0.050 0.000
      >>> rate = schedule("exponential", 0.1, 100, steps_per_epoch=2.5, decay_rate=0.5, warmup_epochs=1)
      >>> print(*(f"{rate(step):.3f}" for step in range(9)))
      0.033 0.067 0.100 0.100 0.100 0.050 0.050 0.050 0.025
    """
    if name not in _SCHEDULES:
        raise validation.unknown_name("schedule", name, _SCHEDULES)
    learning_rate = validation.positive("learning_rate", learning_rate)
    steps = validation.positive_int("steps", steps)
    steps_per_epoch = validation.positive("steps_per_epoch", steps_per_epoch)
    warmup_epochs = validation.at_least("warmup_epochs", warmup_epochs, 0)
    warmup = first_step(warmup_epochs, steps_per_epoch)
    if warmup >= steps:
        raise ValueError(
            f"warmup_epochs must leave some of the run's {steps} steps, got {warmup_epochs:g}, which is {warmup} steps"
        )
    match name:
        case "constant":
            after = optax.constant_schedule(learning_rate)
        case "linear":
            after = optax.linear_schedule(learning_rate, 0.0, steps - warmup)
        case "cosine":
            after = optax.cosine_decay_schedule(learning_rate, steps - warmup)
        case "exponential":
            by_epoch = optax.exponential_decay(learning_rate, 1, _factor("decay_rate", decay_rate))
            last = math.ceil(steps / steps_per_epoch)
            ends = [first_step(warmup_epochs + epoch, steps_per_epoch) - warmup for epoch in range(1, last + 1)]
            after = _after_each(ends, by_epoch)
        case "step":
            by_milestone = optax.exponential_decay(learning_rate, 1, _factor("decay_factor", decay_factor))
            _check_milestones(milestones, warmup_epochs)
            ends = [first_step(milestone, steps_per_epoch) - warmup for milestone in milestones]
            after = _after_each(ends, by_milestone)
    if not warmup:
        return after
    before = optax.linear_schedule(0.0, learning_rate, warmup)
    return optax.join_schedules([lambda step: before(step + 1), after], [warmup])


def optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    head_schedule: optax.Schedule | None = None,
    momentum: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decay: str = "l2",
    decay_on: str = "all",
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum, or Adam, as PyTorch writes them.

    With ``∇`` the gradient of the loss, clipped, ``θ`` the parameters, ``λ`` the weight decay and ``η`` the rate::

        l2         g = ∇ + λθ    θ ← θ − η·direction(g)           torch.optim.SGD, torch.optim.Adam
        decoupled  g = ∇         θ ← θ − η·(direction(g) + λθ)    torch.optim.AdamW; SGDW

    where ``direction`` of SGD is ``v ← μv + g``, without the rate, so that a change of it acts at once, and that of
    Adam ``m̂/(√v̂ + ε)``. Only the loss's gradient is clipped; what decay adds is not.

    Args:
      name: ``"sgd"`` or ``"adam"``.
      schedule: the rate by step.
      head_schedule: that of the parameters under ``head``, such as proxies and centres; the same by default.
      momentum: ``μ`` of SGD, ``β₁`` of Adam, in [0, 1).
      adam_beta2: ``β₂``, in [0, 1).
      adam_epsilon: ``ε``.
      weight_decay: ``λ``.
      decay: ``"l2"`` or ``"decoupled"``.
      decay_on: ``"all"`` parameters, or ``"kernels"``: those with two or more axes. Biases, and what a normalisation
        learns, have one.
      clip_norm: largest norm of the gradient of all parameters together; 0 clips nothing.

    Raises:
      ValueError: on an unknown name or a number that makes no sense.

    Example:
      >>> sgd = optimizer("sgd", lambda step: 0.5, momentum=0.0, weight_decay=0.1)
      >>> updates, _ = sgd.update(jnp.array([1.0]), sgd.init(jnp.array([2.0])), jnp.array([2.0]))
      >>> print(updates)
      [-0.6]

    Source: Kingma and Ba, 2015; Loshchilov and Hutter, 2019 (decoupled decay).
    """
    for kind, value, valid in (
        ("optimizer", name, _OPTIMIZERS),
        ("decay", decay, _DECAYS),
        ("decay_on", decay_on, _DECAYED),
    ):
        if value not in valid:
            raise validation.unknown_name(kind, value, valid)
    momentum = validation.below_one("momentum", momentum)
    adam_beta2 = validation.below_one("adam_beta2", adam_beta2)
    weight_decay = validation.at_least("weight_decay", weight_decay, 0)
    clip_norm = validation.at_least("clip_norm", clip_norm, 0)
    clipped = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decayed = optax.add_decayed_weights(weight_decay, _kernels if decay_on == "kernels" else None)
    if name == "adam":
        direction = optax.scale_by_adam(momentum, adam_beta2, validation.positive("adam_epsilon", adam_epsilon))
    else:
        direction = optax.trace(momentum) if momentum else optax.identity()
    steered = (decayed, direction) if decay == "l2" else (direction, decayed)
    scaled = optax.scale_by_learning_rate(schedule)
    if head_schedule is not None:
        scaled = optax.partition({"head": optax.scale_by_learning_rate(head_schedule), "others": scaled}, _parts)
    return optax.chain(clipped, *steered, scaled)


def first_step(epoch: float, steps_per_epoch: float) -> int:
    """The first step at or after the end of ``epoch`` epochs, in exact arithmetic: floats can end a step late.

    Example:
      >>> first_step(2, 2.5), first_step(0.3, 10)
      (5, 3)
    """
    exact = [fractions.Fraction(value).limit_denominator(_LARGEST_DENOMINATOR) for value in (epoch, steps_per_epoch)]
    return math.ceil(math.prod(exact))


def _after_each(ends, schedule):
    """``schedule`` of how many of ``ends`` have been reached."""
    ends = np.asarray(ends, np.int32)
    return lambda step: schedule(jnp.sum(step >= ends, dtype=jnp.int32))


def _check_milestones(milestones, warmup_epochs):
    for earlier, milestone in zip((warmup_epochs, *milestones), milestones, strict=False):
        validation.positive("milestones", milestone)
        if milestone <= earlier:
            raise ValueError(
                f"milestones must increase and lie beyond the {warmup_epochs:g} epochs of warm-up, got {milestones}"
            )


def _kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _parts(params):
    """Of every parameter, whether it is of a head: there are several where a model has several experts."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "head" if any(getattr(key, "key", None) == HEAD for key in path) else "others", params
    )


def _factor(name, value):
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
    return float(value)
