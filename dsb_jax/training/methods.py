"""The method that a config names: its objective, what that needs of the model, and what the field calls it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import losses, objectives, validation
from dsb_jax.losses.inputs import prior_of
from dsb_jax.objectives import Balms, Dive, Objective, Regularized, Supervised
from dsb_jax.objectives.balms import META
from dsb_jax.training import optimizers, stages

_LOSS_NAMES = {
    "balanced_softmax": "BS",
    "cross_entropy": "CE",
    "distribution_balanced": "DB",
    "focal": "Focal",
    "lade": "LADE",
    "ldam": "LDAM",
    "logit_adjusted": "LA",
    "seesaw": "Seesaw",
    "sigmoid_focal": "SigmoidFocal",
}
_BALANCER_NAMES = {
    "dsb": "DSB-",
    "uniform": "",
    "inverse_frequency": "IF-",
    "inverse_sqrt_frequency": "ISF-",
    "class_balanced": "CB-",
    "class_difficulty": "CDB-",
}


@dataclasses.dataclass(frozen=True)
class Context:
    """What the objective of a run may be made of.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, as the settings name it.
      counts: int ``[C]``, training samples per class.
      samplers: of the batches, the first one the run's.
      steps_per_epoch: training examples divided by the batch size.
      teacher: ``(variables, images) -> Outputs`` of another run's model, or None; what an objective's ``init`` gets has
        its variables as ``variables["teacher"]``, which an objective keeps in its state.
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    counts: np.ndarray
    samplers: tuple[str, ...]
    steps_per_epoch: float
    teacher: Callable[[Any, jax.Array], Any] | None = None

    def first_step(self, epoch: float) -> int:
        """The first step after so many epochs."""
        return optimizers.first_step(epoch, self.steps_per_epoch)


class _Method(NamedTuple):
    """How an objective follows from the settings.

    Attributes:
      build: ``(config, context) -> Objective``; of one that extends another, with that one as a third argument.
      label: in the name of a run, with ``{loss}`` for the loss's or, of one that extends, ``{inner}`` for the other's.
      has_loss: whether it brings a loss of its own.
      model: ``config -> `` what it needs of the model, options of :func:`dsb_jax.models.create`.
    """

    build: Callable[..., Objective]
    label: str
    has_loss: bool = False
    model: Callable[[ConfigDict], Mapping[str, Any]] = lambda config: {}


def name(config: ConfigDict) -> str:
    """The name that the field uses: ``DSB-CE``, ``CB-Focal``, ``LDAM``, ``DSB-cRT-CE``.

    Raises:
      ValueError: on an unknown loss, objective or balancer, or a loss that the objective has no use for.

    Example:
      >>> from dsb_jax.training import base_config
      >>> name(base_config())
      'DSB-CE'
    """
    of_stages, config = stages.label(config), stages.chain(config)[-1]
    losses.head(config.loss)  # raises for an unknown name
    if config.balancer not in _BALANCER_NAMES:
        raise validation.unknown_name("balancer", config.balancer, _BALANCER_NAMES)
    base, extensions = _methods(config)
    label = base.label.format(loss=_LOSS_NAMES[config.loss])
    for extension in extensions:
        label = extension.label.format(inner=label)
    return _BALANCER_NAMES[config.balancer] + of_stages.format(label)


def objective(
    config: ConfigDict, counts: np.ndarray, steps_per_epoch: float, *, teacher: nn.Module | None = None
) -> Objective:
    """What a batch is trained on.

    Args:
      config: the run's settings.
      counts: int ``[C]``, training samples per class.
      steps_per_epoch: training examples divided by the batch size.
      teacher: another run's model.

    Raises:
      ValueError: on an unknown name, or a setting that it refuses.
    """
    base, extensions = _methods(config)
    loss = losses.create(config.loss, counts=counts, **config[config.loss])
    taught = None if teacher is None else functools.partial(teacher.apply, train=False)
    context = Context(loss, counts, (config.sampler,), steps_per_epoch, taught)
    made = base.build(config, context)
    for extension in extensions:
        made = extension.build(config, context, made)
    return made


def model_options(config: ConfigDict) -> dict[str, Any]:
    """What the objective needs of the model: options of :func:`dsb_jax.models.create`."""
    base, extensions = _methods(config)
    return {key: value for part in (base, *extensions) for key, value in part.model(config).items()}


def _methods(config):
    """The objective, and those that extend it from the inside out: ``"a+b+c"`` is a around b around c."""
    *outer, last = config.objective.split("+")
    if last in _EXTENSIONS:
        outer, last = [*outer, last], "supervised"
    if last not in _OBJECTIVES:
        raise validation.unknown_name("objective", last, objectives.names())
    for extension in outer:
        if extension not in _EXTENSIONS:
            raise validation.unknown_name("objective that extends another", extension, _EXTENSIONS)
    base = _OBJECTIVES[last]
    if base.has_loss and config.loss != "cross_entropy":
        raise ValueError(
            f"objective {last!r} has a loss of its own: loss must be left at 'cross_entropy', got {config.loss!r}"
        )
    return base, [_EXTENSIONS[extension] for extension in reversed(outer)]


def _supervised(config, context):
    """The loss; of LADE, whose regularizer is of a batch and takes no class weights, in its two parts."""
    if config.loss != "lade":
        return Supervised(context.loss, samplers=context.samplers)
    if config.accumulate > 1:
        raise ValueError(f"loss 'lade' is of a whole batch: accumulate must be 1, got {config.accumulate}")
    adjusted = Supervised(losses.create("logit_adjusted", counts=context.counts), samplers=context.samplers)
    prior = prior_of(context.counts)
    regularizer = functools.partial(losses.lade_regularizer, prior=prior, penalty=config.lade.penalty)
    return Regularized(adjusted, regularizer, scale=config.lade.weight)


def _balms(config, context):
    """Of a whole batch, and of the linear classifier alone."""
    for name, wanted in (("head", (None, "linear")), ("accumulate", (1,)), ("mixup", (0,)), ("cutmix", (0,))):
        if config[name] not in wanted:
            raise ValueError(
                f"objective 'balms' draws whole images of a whole batch for a linear classifier: "
                f"{name} must be {wanted[-1]}, got {config[name]}"
            )
    settings = dict(config.balms) | {"samplers": (*context.samplers, META)}
    if settings["learning_rate"] is None:
        settings["learning_rate"] = config.learning_rate
    loss = losses.create("balanced_softmax", counts=context.counts)
    return Balms(loss, context.counts, **settings)


def _dive(config, context):
    if context.teacher is None:
        raise ValueError(
            "objective 'dive' learns from a teacher: teacher must be the workdir of a run; stages=dive trains one first"
        )
    return Dive(Supervised(context.loss, samplers=context.samplers), context.teacher, **config.dive)


_OBJECTIVES = {
    "balms": _Method(_balms, "BALMS", has_loss=True),
    "dive": _Method(_dive, "DIVE-{loss}"),
    "supervised": _Method(_supervised, "{loss}"),
}
# What extends another objective: "ifl+ride" is invariant feature learning around RIDE.
_EXTENSIONS: dict[str, _Method] = {}
