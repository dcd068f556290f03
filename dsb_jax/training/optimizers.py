"""Optimizers and learning-rate schedules, all Optax's."""

import optax

from dsb_jax import validation

_SCHEDULES = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
}


def schedule(name: str, learning_rate: float, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: ``linear`` or ``cosine`` down to 0 at the end, or ``constant``.

    Raises:
      ValueError: on an unknown name or a learning rate that is not positive.

    Example:
      >>> print(schedule("linear", 0.1, 100)(50))
      0.05
    """
    if name not in _SCHEDULES:
        raise validation.unknown_name("schedule", name, _SCHEDULES)
    validation.positive("learning_rate", learning_rate)
    return _SCHEDULES[name](learning_rate, steps)


def sgd(learning_rate: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum and weight decay added to the gradient, as in ``torch.optim.SGD``.

    Raises:
      ValueError: if ``momentum`` is outside [0, 1) or ``weight_decay`` negative.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay!r}")
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum))
