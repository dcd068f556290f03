"""The method that a config names: its objective, what that needs of the model, and what the field calls it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import losses, objectives, validation
from dsb_jax.losses.inputs import prior_of
from dsb_jax.objectives import (
    DomainBalancing,
    Loce,
    MemoryJitter,
    NormSoftmax,
    Objective,
    Regularized,
    SoftTriple,
    Supervised,
    memory_capacity,
)
from dsb_jax.training import optimizers

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
    "effective_number": "CB-",  # another name of the same
    "class_difficulty": "CDB-",
    "loce": "LOCE-",
    "domain_frequency": "DF-",
}


@dataclasses.dataclass(frozen=True)
class Context:
    """What the objective of a run may be made of.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, as the settings name it.
      counts: int ``[C]``, training samples per class.
      samplers: of the batches, the first one the run's.
      steps_per_epoch: training examples divided by the batch size.
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    counts: np.ndarray
    samplers: tuple[str, ...]
    steps_per_epoch: float

    def first_step(self, epoch: float) -> int:
        """The first step after so many epochs."""
        return optimizers.first_step(epoch, self.steps_per_epoch)


class _Method(NamedTuple):
    """How an objective follows from the settings.

    Attributes:
      build: ``(config, context) -> Objective``; of one that extends another, with that one as a third argument.
      label: in the name of a run, with ``{loss}`` for the loss's or, of one that extends, ``{inner}`` for the other's;
        a ``"+CE"`` that it comes to end with is left out.
      has_loss: whether it brings a loss of its own.
      model: ``config -> `` what it needs of the model, options of :func:`dsb_jax.models.create`.
    """

    build: Callable[..., Objective]
    label: str
    has_loss: bool = False
    model: Callable[[ConfigDict], Mapping[str, Any]] = lambda config: {}


def name(config: ConfigDict) -> str:
    """The name that the field uses: ``DSB-CE``, ``CB-Focal``, ``LDAM``.

    As in the paper, ``DSB-CE-1`` is the one without interference (App. H.1).

    Raises:
      ValueError: on an unknown loss, objective or balancer, or a loss that the objective has no use for.

    Example:
      >>> from dsb_jax.training import base_config
      >>> name(base_config())
      'DSB-CE'
    """
    losses.head(config.loss)  # raises for an unknown name
    if config.balancer not in _BALANCER_NAMES:
        raise validation.unknown_name("balancer", config.balancer, _BALANCER_NAMES)
    base, extensions = _methods(config)
    label = base.label.format(loss=_LOSS_NAMES[config.loss]).removesuffix("+CE")
    for extension in extensions:
        label = extension.label.format(inner=label).removesuffix("+CE")
    without_interference = config.balancer == "dsb" and not config.dsb.interclass
    return _BALANCER_NAMES[config.balancer] + label + ("-1" if without_interference else "")


def objective(config: ConfigDict, counts: np.ndarray, steps_per_epoch: float) -> Objective:
    """What a batch is trained on.

    Args:
      config: the run's settings.
      counts: int ``[C]``, training samples per class.
      steps_per_epoch: training examples divided by the batch size.

    Raises:
      ValueError: on an unknown name, or a setting that it refuses.
    """
    base, extensions = _methods(config)
    loss = losses.create(config.loss, counts=counts, **config[config.loss])
    context = Context(loss, counts, (config.sampler,), steps_per_epoch)
    made = base.build(config, context)
    for extension in extensions:
        made = extension.build(config, context, made)
    return made


def model_options(config: ConfigDict) -> dict[str, Any]:
    """What the objective needs of the model: options of :func:`dsb_jax.models.create`."""
    base, extensions = _methods(config)
    return {key: value for part in (base, *extensions) for key, value in part.model(config).items()}


def head_options(config: ConfigDict, head: str) -> dict[str, Any]:
    """The settings of a head that has any: they are in the section of the method that it is of."""
    match head:
        case "causal":
            return config.deconfound_tde.to_dict()
        case "soft_triple":
            return {name: config.soft_triple[name] for name in ("centers", "gamma")}
    return {}


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


def _deconfound_tde(config, context):
    """The loss alone: all else is in the head."""
    return Supervised(context.loss, samplers=context.samplers)


def _loce(config, context):
    hyper = config.loce
    if not (0 <= hyper.decay <= 1 and 0 < hyper.initial <= 1):
        text = "loce.decay must lie in [0, 1] and loce.initial in (0, 1]"
        raise ValueError(f"{text}, got {hyper.decay} and {hyper.initial}")
    return Loce(**hyper, samplers=context.samplers)


def _domain_balancing(config, context):
    hyper = config.domain_balancing
    validation.at_least("domain_balancing.margin", hyper.margin, 0)
    validation.positive("domain_balancing.scale", hyper.scale)
    validation.positive_int("domain_balancing.neighbours", hyper.neighbours)
    if hyper.epsilon is not None:
        validation.positive("domain_balancing.epsilon", hyper.epsilon)
    return DomainBalancing(**hyper, samplers=context.samplers)


def _norm_softmax(config, context):
    temperature = validation.positive("norm_softmax.temperature", config.norm_softmax.temperature)
    return NormSoftmax(temperature, samplers=context.samplers)


def _soft_triple(config, context):
    hyper = {name: config.soft_triple[name] for name in ("scale", "gamma", "tau", "margin")}
    for name in ("scale", "gamma"):
        validation.positive(f"soft_triple.{name}", hyper[name])
    for name in ("tau", "margin"):
        validation.at_least(f"soft_triple.{name}", hyper[name], 0)
    return SoftTriple(**hyper, samplers=context.samplers)


def _mbj(config, context, inner):
    hyper = config.mbj
    validation.at_least("mbj.start_epoch", hyper.start_epoch, 0)
    validation.positive("mbj.interval", hyper.interval)
    return MemoryJitter(
        inner,
        counts=context.counts,
        capacity=memory_capacity(context.counts, history=hyper.history, power=hyper.power),
        start=context.first_step(hyper.start_epoch),
        interval=max(context.first_step(hyper.interval), 1),
        **{name: hyper[name] for name in ("weight", "head_weight", "power", "snapshots")},
    )


_COSINES = {"head": "cosine", "head_scale": 1.0}
_OBJECTIVES = {
    "deconfound_tde": _Method(_deconfound_tde, "TDE+{loss}", model=lambda config: {"head": "causal"}),
    "domain_balancing": _Method(_domain_balancing, "DomB", has_loss=True, model=lambda config: _COSINES),
    "loce": _Method(_loce, "LOCE", has_loss=True),
    "norm_softmax": _Method(_norm_softmax, "NSM", has_loss=True, model=lambda config: _COSINES),
    "soft_triple": _Method(
        _soft_triple, "ST", has_loss=True, model=lambda config: {"head": "soft_triple", "head_scale": 1.0}
    ),
    "supervised": _Method(_supervised, "{loss}"),
}
# What extends another objective: "ifl+ride" is invariant feature learning around RIDE.
_EXTENSIONS: dict[str, _Method] = {
    "mbj": _Method(_mbj, "MBJ+{inner}"),
}
