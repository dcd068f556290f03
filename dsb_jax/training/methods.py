"""The method that a config names: its objective, what that needs of the model, and what the field calls it."""

import dataclasses
import fractions
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import losses, objectives, validation
from dsb_jax.data.environments import check_environments
from dsb_jax.losses.inputs import prior_of
from dsb_jax.objectives import (
    BBN,
    Balms,
    Dive,
    GPaco,
    InvariantFeatures,
    Objective,
    Paco,
    Regularized,
    Ride,
    RideRouting,
    Supervised,
    bbn,
    ride,
)
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
    config: ConfigDict,
    counts: np.ndarray,
    steps_per_epoch: float,
    *,
    teacher: tuple[ConfigDict, nn.Module] | None = None,
) -> Objective:
    """What a batch is trained on.

    Args:
      config: the run's settings.
      counts: int ``[C]``, training samples per class.
      steps_per_epoch: training examples divided by the batch size.
      teacher: another run's settings and model.

    Raises:
      ValueError: on an unknown name, or a setting that it refuses.
    """
    base, extensions = _methods(config)
    loss = losses.create(config.loss, counts=counts, **config[config.loss])
    taught = None if teacher is None else _taught(*teacher)
    context = Context(loss, counts, (config.sampler,), steps_per_epoch, taught)
    made = base.build(config, context)
    for extension in extensions:
        made = extension.build(config, context, made)
    return made


def model_options(config: ConfigDict) -> dict[str, Any]:
    """What the objective needs of the model: options of :func:`dsb_jax.models.create`."""
    base, extensions = _methods(config)
    return {key: value for part in (base, *extensions) for key, value in part.model(config).items()}


def _taught(config, model):
    """``(variables, images) -> Outputs``, with logits as a softmax takes them."""

    def taught(variables, images):
        outputs = model.apply(variables, images, train=False)
        return outputs._replace(logits=_logit_scale(config) * outputs.logits)

    return taught


def _logit_scale(config):
    """What the loss multiplies a model's logits by before its softmax."""
    return config.ldam.scale if config.loss == "ldam" else 1.0


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
    _refuse_parts("loss 'lade'", config)
    adjusted = Supervised(losses.create("logit_adjusted", counts=context.counts), samplers=context.samplers)
    prior = prior_of(context.counts)
    regularizer = functools.partial(losses.lade_regularizer, prior=prior, penalty=config.lade.penalty)
    return Regularized(adjusted, regularizer, scale=config.lade.weight)


def _bbn(config, context):
    divisor = config.bbn.divisor if config.bbn.divisor is not None else bbn.published_divisor(config.epochs)
    starts = [context.first_step(epoch) for epoch in range(1, config.epochs)]
    return BBN(_supervised(config, context), bbn.parabolic(divisor, starts))


def _ride(config, context):
    reweight_epoch = config.ride.reweight_epoch
    if reweight_epoch is None:
        reweight_epoch = 0.8 * config.epochs
    return Ride(
        _supervised(config, context),
        diversity=config.ride.diversity,
        temperature=config.ride.temperature,
        class_temperatures=ride.class_temperatures(context.counts, config.ride.reweight_factor),
        start=context.first_step(reweight_epoch),
        scale=_logit_scale(config),
        teacher=context.teacher,
        distillation=config.ride.distillation,
        distillation_temperature=config.ride.distillation_temperature,
    )


def _ride_routing(config, context):
    return RideRouting(_supervised(config, context), positive_weight=config.ride_routing.positive_weight)


_DISTANCES = {"squared": losses.center_loss, "cosine": losses.center_cosine_loss}


def environment_epochs(config: ConfigDict) -> tuple[int, ...]:
    """After how many epochs invariant feature learning draws its environments anew.

    Raises:
      ValueError: unless they are shares of the run in ascending order.

    Example:
      >>> from dsb_jax.training.config import base_config, with_arguments
      >>> environment_epochs(with_arguments(base_config(), "epochs=100"))
      (60, 80)
    """
    shares = [validation.at_least("ifl.milestones", share, 0) for share in config.ifl.milestones]
    if shares != sorted(shares) or any(share >= 1 for share in shares):
        raise ValueError(f"ifl.milestones must be shares of the run in [0, 1) that ascend, got {tuple(shares)}")
    # Exactly: as floats 0.29 of 100 epochs are fewer than 29.
    return tuple(math.floor(fractions.Fraction(str(share)) * config.epochs) for share in shares)


def _ifl(config, context, inner):
    """Around what works with cosines, their distance is of directions too, as in the original."""
    on_cosines = losses.head(config.loss) == "cosine" or config.objective.split("+")[-1] == "ride"
    distance = config.ifl.distance if config.ifl.distance is not None else "cosine" if on_cosines else "squared"
    if distance not in _DISTANCES:
        raise validation.unknown_name("ifl.distance", distance, _DISTANCES)
    epochs = environment_epochs(config)
    if len(config.ifl.center_weights) != len(epochs) + 1:
        raise ValueError(
            "ifl.center_weights must be one more than ifl.milestones, "
            f"got {tuple(config.ifl.center_weights)} and {tuple(config.ifl.milestones)}"
        )
    check_environments(config.ifl.environments, config.ifl.scale)
    return InvariantFeatures(
        inner,
        len(context.counts),
        weights=tuple(config.ifl.center_weights),
        starts=tuple(context.first_step(epoch) for epoch in epochs),
        learning_rate=config.ifl.center_learning_rate,
        distance=_DISTANCES[distance],
    )


def _paco(config, context):
    """PaCo, with a key encoder."""
    return Paco(momentum=config.paco.momentum, **_contrastive("paco", config, context))


def _gpaco(config, context):
    """PaCo without one."""
    return GPaco(**_contrastive("gpaco", config, context))


def _contrastive(method, config, context):
    """What both have: the loss of embeddings that a section of the settings describes, and a queue of them."""
    _refuse_parts(f"objective {method!r}", config)
    if config.mixup or config.cutmix:
        raise ValueError(
            f"objective {method!r} compares images by their class, and mixed ones have two: "
            f"mixup and cutmix must be 0, got {config.mixup} and {config.cutmix}"
        )
    others = ("queue_size", "dim", "momentum")
    hyper = {key: value for key, value in config[method].items() if key not in others}
    contrast = functools.partial(losses.paco, prior=prior_of(context.counts), **hyper)
    _trace(contrast, len(context.counts))
    return {
        "loss": context.loss,
        "contrast": contrast,
        "batch_size": config.batch_size,
        "queue_size": config[method].queue_size,
        "samplers": context.samplers,
    }


def _trace(contrast, classes):
    """On shapes alone, so that a bad value fails here and not in the first step."""
    rows, one = jax.ShapeDtypeStruct((1, 1), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
    logits = jax.ShapeDtypeStruct((1, classes), np.float32)
    jax.eval_shape(
        lambda queries, labels, logits: contrast(queries, labels, logits=logits, keys=queries, key_labels=labels),
        rows,
        one,
        logits,
    )


def _refuse_parts(what, config):
    if config.accumulate > 1:
        raise ValueError(f"{what} is of a whole batch: accumulate must be 1, got {config.accumulate}")


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
    "bbn": _Method(_bbn, "BBN", model=lambda config: {"branches": 2}),
    "dive": _Method(_dive, "DIVE-{loss}"),
    "gpaco": _Method(
        _gpaco, "GPaCo", has_loss=True, model=lambda config: {"projection": config.gpaco.dim, "projection_layers": 3}
    ),
    "paco": _Method(
        _paco, "PaCo", has_loss=True, model=lambda config: {"projection": config.paco.dim, "projection_layers": 2}
    ),
    "ride": _Method(_ride, "RIDE", model=lambda config: {"experts": config.ride.experts}),
    "ride_routing": _Method(
        _ride_routing, "RIDE-EA", model=lambda config: {"experts": config.ride.experts, "routers": True}
    ),
    "supervised": _Method(_supervised, "{loss}"),
}
# What extends another objective: "ifl+ride" is invariant feature learning around RIDE.
_EXTENSIONS = {
    "ifl": _Method(_ifl, "{inner}+IFL"),
}
