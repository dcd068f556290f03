"""How each objective follows from the settings: what it is built of, what it needs of the model, and its name."""

import dataclasses
import fractions
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import losses, objectives, validation
from dsb_jax.data.environments import check_environments
from dsb_jax.losses.inputs import prior_of
from dsb_jax.objectives import Objective
from dsb_jax.objectives.balms import META
from dsb_jax.training import optimizers, parameters
from dsb_jax.training.config import base_config


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


class Method(NamedTuple):
    """How an objective follows from the settings.

    Attributes:
      build: ``(config, context) -> Objective``; of one that extends another, with that one as a third argument.
      label: in the name of a run, with ``{loss}`` for the loss's or, of one that extends, ``{inner}`` for the other's.
      has_loss: whether it brings a loss of its own.
      usual: the loss that goes without saying where the label ends with it behind a plus.
      model: ``config -> `` what it needs of the model, options of :func:`dsb_jax.models.create`.
    """

    build: Callable[..., Objective]
    label: str
    has_loss: bool = False
    usual: str = "CE"
    model: Callable[[ConfigDict], Mapping[str, Any]] = lambda config: {}


# Heads with settings, in the section of the method that they are of.
HEAD_SECTIONS = {"causal": "deconfound_tde", "soft_triple": "soft_triple"}


def head_options(config: ConfigDict, head: str) -> dict[str, Any]:
    """The settings of a head that has any."""
    match head:
        case "causal":
            return config.deconfound_tde.to_dict()
        case "soft_triple":
            return {name: config.soft_triple[name] for name in ("centers", "gamma")}
        case "tau_normalized":
            return {"tau": validation.at_least("head_tau", config.head_tau, 0)}
    return {}


def logit_scale(config: ConfigDict) -> float:
    """What the loss multiplies a model's logits by before its softmax."""
    match config.objective.split("+")[-1]:
        case "norm_softmax":
            return 1 / config.norm_softmax.temperature
        case "domain_balancing" | "proxy_anchor" | "soft_triple" as section:
            return config[section].scale
    return config[config.loss].scale if losses.head(config.loss) == "cosine" else 1.0


def _supervised(config, context):
    """The loss; of LADE, whose regularizer is of a batch and takes no class weights, in its two parts."""
    if config.loss != "lade":
        return objectives.Supervised(context.loss, samplers=context.samplers)
    _refuse_parts("loss 'lade'", config)
    adjusted = objectives.Supervised(losses.create("logit_adjusted", counts=context.counts), samplers=context.samplers)
    prior = prior_of(context.counts)
    regularizer = functools.partial(losses.lade_regularizer, prior=prior, penalty=config.lade.penalty)
    return objectives.Regularized(adjusted, regularizer, scale=config.lade.weight)


def _bbn(config, context):
    divisor = config.bbn.divisor
    if divisor is None:
        divisor = objectives.bbn.published_divisor(max(config.epochs, 1))  # of none where it is evaluated only
    starts = [context.first_step(epoch) for epoch in range(1, config.epochs)]
    return objectives.BBN(_supervised(config, context), objectives.bbn.parabolic(divisor, starts))


def _ride(config, context):
    reweight_epoch = config.ride.reweight_epoch
    if reweight_epoch is None:
        reweight_epoch = 0.8 * config.epochs
    validation.at_least("reweight_epoch", reweight_epoch, 0)
    return objectives.Ride(
        _supervised(config, context),
        diversity=config.ride.diversity,
        temperature=config.ride.temperature,
        class_temperatures=objectives.ride.class_temperatures(context.counts, config.ride.reweight_factor),
        start=context.first_step(reweight_epoch),
        scale=logit_scale(config),
        teacher=context.teacher,
        distillation=config.ride.distillation,
        distillation_temperature=config.ride.distillation_temperature,
    )


def _ride_routing(config, context):
    """The routers alone: what else decays would no longer be the experts that they were trained for."""
    if not config.trainable.split() or not all(glob.startswith("routers") for glob in config.trainable.split()):
        raise ValueError(
            "objective 'ride_routing' leaves the experts as they are: trainable must be 'routers*', "
            f"got {config.trainable!r}"
        )
    return objectives.RideRouting(_supervised(config, context), positive_weight=config.ride_routing.positive_weight)


_DISTANCES = {"squared": losses.center_loss, "cosine": losses.center_cosine_loss}


def environment_epochs(config: ConfigDict) -> tuple[int, ...]:
    """After how many epochs invariant feature learning draws its environments anew.

    From there on the next of ``center_weights`` is in force, too; in the official code, an epoch before they are drawn.

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
    _require_classifier("objective 'ifl'", config)
    last = config.objective.split("+")[-1]
    on_cosines = losses.head(config.loss) == "cosine" or last in ("ride", *_ON_COSINES)
    distance = config.ifl.distance if config.ifl.distance is not None else "cosine" if on_cosines else "squared"
    if distance not in _DISTANCES:
        raise validation.unknown_name("ifl.distance", distance, _DISTANCES)
    epochs = environment_epochs(config)
    validation.positive("center_learning_rate", config.ifl.center_learning_rate)
    for weight in config.ifl.center_weights:
        validation.at_least("center_weights", weight, 0)
    if len(config.ifl.center_weights) != len(epochs) + 1:
        raise ValueError(
            "ifl.center_weights must be one more than ifl.milestones, "
            f"got {tuple(config.ifl.center_weights)} and {tuple(config.ifl.milestones)}"
        )
    check_environments(config.ifl.environments, config.ifl.scale)
    return objectives.InvariantFeatures(
        inner,
        len(context.counts),
        weights=tuple(config.ifl.center_weights),
        starts=tuple(context.first_step(epoch) for epoch in epochs),
        learning_rate=config.ifl.center_learning_rate,
        distance=_DISTANCES[distance],
    )


def _paco(config, context):
    """PaCo, with a key encoder."""
    return objectives.Paco(momentum=config.paco.momentum, **_contrastive("paco", config, context))


def _gpaco(config, context):
    """PaCo without one."""
    return objectives.GPaco(**_contrastive("gpaco", config, context))


def _contrastive(method, config, context):
    """What both have: the loss of embeddings that a section of the settings describes, and a queue of them."""
    _refuse_parts(f"objective {method!r}", config)
    _refuse_mixed(method, config)
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


def _refuse_mixed(method, config):
    if config.mixup or config.cutmix:
        raise ValueError(
            f"objective {method!r} compares images by their class, and mixed ones have two: "
            f"mixup and cutmix must be 0, got {config.mixup} and {config.cutmix}"
        )


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
    return objectives.Balms(loss, context.counts, **settings)


def _dive(config, context):
    if context.teacher is None:
        raise ValueError(
            "objective 'dive' learns from a teacher: teacher must be the workdir of a run; stages=dive trains one first"
        )
    return objectives.Dive(_supervised(config, context), context.teacher, scale=logit_scale(config), **config.dive)


def _deconfound_tde(config, context):
    """The loss alone: all else is in the head."""
    if config.trainable != parameters.ALL:
        raise ValueError(
            "objective 'deconfound_tde' follows the features as they change in training: "
            f"trainable must be {parameters.ALL!r}, got {config.trainable!r}"
        )
    return _supervised(config, context)


def _loce(config, context):
    return objectives.Loce(**config.loce, samplers=context.samplers)


def _domain_balancing(config, context):
    return objectives.DomainBalancing(**config.domain_balancing, samplers=context.samplers)


def _norm_softmax(config, context):
    return objectives.NormSoftmax(**config.norm_softmax, samplers=context.samplers)


def _soft_triple(config, context):
    hyper = {name: config.soft_triple[name] for name in ("scale", "gamma", "tau", "margin")}
    return objectives.SoftTriple(**hyper, samplers=context.samplers)


def _proxy_anchor(config, context):
    _refuse_parts("objective 'proxy_anchor'", config)
    _refuse_mixed("proxy_anchor", config)
    return objectives.ProxyAnchor(**config.proxy_anchor, samplers=context.samplers)


def _circle(config, context):
    """Circle loss alone."""
    if config.balancer in _OF_A_CLASSIFIER:
        _require_classifier(f"balancer {config.balancer!r}", config)
    usual = base_config().circle.weight
    if config.circle.weight != usual:
        raise ValueError(
            f"weight must be left at {usual} where circle loss is alone, got {config.circle.weight}; beside another "
            "one it has that weight, as in objective=circle+supervised"
        )
    return _pairs(config, context.samplers)


def _circle_extension(config, context, inner):
    return objectives.CircleExtension(inner, _pairs(config, context.samplers), config.circle.weight)


def _pairs(config, samplers):
    _refuse_parts("objective 'circle'", config)
    _refuse_mixed("circle", config)
    return objectives.Circle(config.circle.margin, config.circle.scale, samplers)


def _require_classifier(what, config):
    if config.objective.split("+")[-1] == "circle":
        raise ValueError(
            f"{what} goes by what a classifier says, and circle loss alone trains none: the objective must have "
            f"another one last, as in 'circle+supervised', got {config.objective!r}"
        )


def _mbj(config, context, inner):
    _require_classifier("objective 'mbj'", config)
    hyper = config.mbj
    validation.at_least("start_epoch", hyper.start_epoch, 0)
    validation.positive("interval", hyper.interval)
    return objectives.MemoryJitter(
        inner,
        counts=context.counts,
        capacity=objectives.memory_capacity(context.counts, history=hyper.history, power=hyper.power),
        start=context.first_step(hyper.start_epoch),
        interval=max(context.first_step(hyper.interval), 1),
        **{name: hyper[name] for name in ("weight", "head_weight", "power", "snapshots")},
    )


def _projection(config, layers):
    return {"projection": validation.positive_int("dim", config.dim), "projection_layers": layers}


_COSINES = {"head": "cosine", "head_scale": 1.0}
_ON_COSINES = ("domain_balancing", "norm_softmax", "proxy_anchor", "soft_triple")
_OF_A_CLASSIFIER = ("class_difficulty", "domain_frequency", "loce")  # balancers
OBJECTIVES = {
    "balms": Method(_balms, "BALMS", has_loss=True),
    "bbn": Method(_bbn, "BBN+{loss}", model=lambda config: {"branches": 2}),
    "circle": Method(_circle, "Circle", has_loss=True),
    "deconfound_tde": Method(_deconfound_tde, "TDE+{loss}", model=lambda config: {"head": "causal"}),
    "dive": Method(_dive, "DIVE-{loss}"),
    "domain_balancing": Method(_domain_balancing, "DomB", has_loss=True, model=lambda config: _COSINES),
    "gpaco": Method(_gpaco, "GPaCo", has_loss=True, model=lambda config: _projection(config.gpaco, layers=3)),
    "loce": Method(_loce, "LOCE", has_loss=True),
    "norm_softmax": Method(_norm_softmax, "NSM", has_loss=True, model=lambda config: _COSINES),
    "paco": Method(_paco, "PaCo", has_loss=True, model=lambda config: _projection(config.paco, layers=2)),
    "proxy_anchor": Method(_proxy_anchor, "PA", has_loss=True, model=lambda config: _COSINES),
    "ride": Method(
        _ride,
        "RIDE+{loss}",
        usual="LDAM",
        model=lambda config: {"experts": config.ride.experts, "routers": config.ride.routers},
    ),
    "ride_routing": Method(
        _ride_routing,
        "RIDE-EA+{loss}",
        usual="LDAM",
        model=lambda config: {"experts": config.ride.experts, "routers": True},
    ),
    "soft_triple": Method(
        _soft_triple, "ST", has_loss=True, model=lambda config: {"head": "soft_triple", "head_scale": 1.0}
    ),
    "supervised": Method(_supervised, "{loss}"),
}
# What extends another objective: "ifl+ride" is invariant feature learning around RIDE. Circle loss that stands last is
# the objective of that name instead.
EXTENSIONS = {
    "circle": Method(_circle_extension, "{inner}+Circle"),
    "ifl": Method(_ifl, "{inner}+IFL"),
    "mbj": Method(_mbj, "MBJ+{inner}"),
}
