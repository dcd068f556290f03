"""Training in stages, as data: a chain of runs, each of which begins with the parameters of the one before.

``config.stages`` is the name of a list below, or a text: stages separated by ``;``, of each the settings that it has
otherwise than the config, as behind the colon of ``--config=configs/x.py:``. Values with ``%`` are parts of the
config's; ``teacher=previous`` is the run of the stage before. What comes behind a name changes the named list::

    stages=crt                              classifier re-training as published
    stages=crt;balancer=dsb                 … with DSB in stage 1 too
    stages=crt;;epochs=20,sampler=plain     … and with a longer stage 2 on the plain order
    stages=(epochs=90%;epochs=10%,learning_rate=1%,trainable=head/*)
    stages=mine:;epochs=10,trainable=head/* a list with a label of its own, whose stage 1 is the config as it is

(Parentheses keep commas together behind the colon of a config file; ``--config.stages=`` needs none.)

The last stage is the run in the workdir, the others are runs in ``stages/1``, ``stages/2`` … beneath it, with all that
a run has: results, report, checkpoints. Only parameters and batch statistics go from one to the next; the optimizer,
its schedule and the feature pool begin anew. A class-balanced sampler shows the rare classes' images many times, to the
pool as well: copies leave a class's volume as it is.

In the named lists the balancer acts in the last stage, on the classifier that is trained there. The first one has
``balancer=uniform``, as the methods that are compared have it, but where no loss of classes comes after it
(``tau_norm``, ``ride``).
"""

import copy
import functools
import operator
import re
from typing import NamedTuple

from ml_collections import ConfigDict

from dsb_jax import validation
from dsb_jax.training.config import base_config, check_setting, split, with_arguments

PREVIOUS = "previous"  # as a teacher: the run of the stage before

# What one stage alone cannot have: where it begins is the chain's business.
_OF_THE_CHAIN = ("init_from", "initial", "stages")


class _List(NamedTuple):
    """Stages, and what the field calls them, with ``{}`` for the method of the last one."""

    label: str
    stages: tuple[str, ...]


# The classifier alone, at the learning rate and decay of the config and with a cosine, whatever the schedule before.
_CLASSIFIER = "trainable=head/*,reinitialize=head/*,schedule=cosine,warmup_epochs=0"

# Rate and its decays of Cao et al. (200 epochs of CIFAR: ×0.01 at 160, ×0.0001 at 180).
_DEFERRED = (
    "epochs=80%,schedule=constant,balancer=uniform",
    "epochs=10%,schedule=constant,warmup_epochs=0,learning_rate=1%",
    "epochs=10%,schedule=constant,warmup_epochs=0,learning_rate=0.01%",
)

_LISTS = {
    # Kang et al., Decoupling Representation and Classifier, 2020. Stage 2 of cRT: 10 epochs at the rate of stage 1,
    # four images of a class at a time. LWS: 5 epochs. τ-normalization trains nothing: `head_tau` is chosen by hand.
    "crt": _List("cRT-{}", ("balancer=uniform", f"epochs=10,sampler=class_aware,{_CLASSIFIER}")),
    "lws": _List(
        "LWS-{}",
        (
            "balancer=uniform",
            "epochs=5,sampler=class_aware,head=scaled,trainable=head/scales,reinitialize=head/scales,"
            "schedule=cosine,warmup_epochs=0",
        ),
    ),
    "tau_norm": _List("tau-norm-{}", ("", "epochs=0,head=tau_normalized,warmup_epochs=0")),
    # He et al., DiVE, 2021: a student of the same size that begins anew, and both with balanced softmax.
    "dive": _List(
        "{}",
        (
            "balancer=uniform,loss=balanced_softmax,objective=supervised",
            f"loss=balanced_softmax,objective=dive,teacher={PREVIOUS},reinitialize=*",
        ),
    ),
    # Wang et al., RIDE, 2021: routers for experts that are trained and stay as they are.
    "ride": _List(
        "{}",
        (
            "objective=ride,ride.routers=True",
            # Anew: without a gradient in stage 1, they have only decayed there.
            "epochs=5,objective=ride_routing,sampler=class_balanced,trainable=routers*,reinitialize=routers*,"
            "schedule=cosine,warmup_epochs=0,learning_rate=10%,teacher=None",
        ),
    ),
    # Ren et al., Balanced Meta-Softmax, 2020: the classifier with balanced softmax, without and with its sampler, at
    # half the rate of stage 1 for 2,000 steps of 512 images of ImageNet-LT's 115,846.
    "decoupled_bs": _List(
        "decoupled-{}",
        ("balancer=uniform", f"epochs=9,loss=balanced_softmax,{_CLASSIFIER},learning_rate=50%"),
    ),
    "balms": _List(
        "{}",
        (
            "balancer=uniform",
            f"epochs=9,loss=cross_entropy,objective=balms,sampler=plain,{_CLASSIFIER},learning_rate=50%",
        ),
    ),
    # Zhai & Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019: an epoch for what is new above a
    # backbone that has weights.
    "new_layers": _List("{}", ("epochs=1,warmup_epochs=0,balancer=uniform,trainable=embedding/* head/*", "")),
    # Deferred re-sampling and re-weighting (Cao et al., LDAM, 2019), as the stages that they are. Within one run, whose
    # optimizer goes on, re-weighting from an epoch on is `start_epoch` (`dsb_jax.start_at`): milestones=(160,180),
    # start_epoch=160 is the published LDAM-DRW with balancer=class_balanced. A sampler cannot change within a run.
    "drs": _List("{}-DRS", (_DEFERRED[0], *(f"{stage},sampler=class_balanced" for stage in _DEFERRED[1:]))),
    "drw": _List("{}-DRW", _DEFERRED),
}


def names() -> list[str]:
    """The lists of stages that a config may name, sorted.

    Example:
      >>> "crt" in names()
      True
    """
    return sorted(_LISTS)


def chain(config: ConfigDict) -> list[ConfigDict]:
    """The settings of every stage, the last of which are those of the run; of a run without stages its own alone.

    The ``stages`` of a stage's own settings say all of it and of those before, with every value that differs between
    them. So that they, too, make this chain, whatever becomes of the named lists.

    Raises:
      ValueError: on an unknown list or setting, a value of the wrong type, or fewer than two stages.

    Example:
      >>> config = with_arguments(base_config(), "epochs=60,stages=crt;;epochs=5%")
      >>> [(stage.epochs, stage.sampler, stage.trainable) for stage in chain(config)]
      [(60, 'plain', '*'), (3, 'class_aware', 'head/*')]
    """
    if not config.stages:
        return [config]
    label, stages = _parsed(config.stages)
    _check_own(config, stages)
    made, keys = [], set()
    for number, arguments in enumerate(stages, start=1):
        stage = copy.deepcopy(config)  # with the types of what is not set
        if config.reinitialize and number > 1:  # it is of what the first stage begins with
            stage.reinitialize = ""
            keys.add("reinitialize")
        try:
            for pair in filter(None, split(arguments, ",")):
                keys.add(_apply(stage, pair, config))
        except ValueError as error:
            raise ValueError(f"stage {number} of stages: {error}") from error
        made.append(stage)
        told = [",".join(f"{key}={_text(each, key)}" for key in sorted(keys)) for each in made]
        stage.stages = f"{label}:{';'.join(told)}" if number > 1 else ""
    return made


def label(config: ConfigDict) -> str:
    """What the field calls a list of stages, with ``{}`` for the method of its last one.

    Example:
      >>> label(with_arguments(base_config(), "stages=lws"))
      'LWS-{}'
    """
    return _parsed(config.stages)[0] if config.stages else "{}"


def _parsed(text):
    """The label of a list and the arguments of each stage."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    found = re.match(r"([^=;:,()]+):", text)
    given, text = (found[1], text[found.end() :]) if found else (None, text)
    first, *others = (part.strip() for part in split(text, ";"))
    if not first or "=" in first:
        stages = [first, *others]
        if len(stages) < 2:
            raise ValueError(f"stages must be two or more, separated by ';', got {text!r}")
        given = given or f"{{}}-{len(stages)}stages"
    else:
        if first not in _LISTS:
            raise validation.unknown_name("list of stages", first, _LISTS)
        known = _LISTS[first]
        if len(others) > len(known.stages):
            raise ValueError(f"stages {first!r} has {len(known.stages)} stages, got settings of {len(others)}")
        others += [""] * (len(known.stages) - len(others))
        stages = [",".join(filter(None, parts)) for parts in zip(known.stages, others, strict=True)]
        given = given or known.label
    return given if "{}" in given else f"{given}-{{}}", stages


def _check_own(config, stages):
    """Raises ValueError for an objective or loss of the config's that no stage would have."""
    defaults = base_config()
    for key in ("objective", "loss"):
        of_stages = [
            pair.partition("=")[2] for stage in stages for pair in split(stage, ",") if pair.startswith(f"{key}=")
        ]
        if len(of_stages) >= len(stages) and config[key] not in (defaults[key], *of_stages):
            raise ValueError(
                f"all stages of stages={config.stages} set {key} themselves, to {' and '.join(of_stages)}: "
                f"{key} must be left out, got {config[key]!r}"
            )


def _apply(stage, pair, config):
    """Sets what ``key=value`` says; a value with % is a part of the config's own."""
    key, _, text = (part.strip() for part in pair.partition("="))
    if text.endswith("%"):
        check_setting(base_config(), key)
        own = functools.reduce(operator.getitem, key.split("."), config)
        if isinstance(own, bool) or not isinstance(own, int | float):
            raise ValueError(f"{key} is no number that {text} could be a part of, but {own!r}")
        try:
            part = own * float(text[:-1]) / 100
        except ValueError:
            raise ValueError(f"{key} must be a number or a part in %, got {text!r}") from None
        text = str(max(round(part), 1)) if isinstance(own, int) else f"{part:.12g}"
        pair = f"{key}={text}"
    if key in _OF_THE_CHAIN:
        raise ValueError(f"{key} cannot be set for one stage: it says where all of them begin")
    with_arguments(stage, pair)
    return key


def _text(stage, key):
    value = functools.reduce(operator.getitem, key.split("."), stage)
    return value if isinstance(value, str) else repr(value)
