"""The method that a config names: its objective, what that needs of the model, and what the field calls it."""

from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import losses, objectives, validation
from dsb_jax.objectives import Objective
from dsb_jax.training import building, stages
from dsb_jax.training.config import section

_LOSS_NAMES = {
    "arcface": "ArcFace",
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


def name(config: ConfigDict) -> str:
    """The name that the field uses: ``DSB-CE``, ``CB-Focal``, ``LDAM``, ``DSB-cRT-CE``.

    As in the paper, ``DSB-CE-1`` is the one without interference (App. H.1).

    Raises:
      ValueError: on an unknown loss, objective or balancer, or a loss that the objective has no use for.

    Example:
      >>> from dsb_jax.training import base_config
      >>> name(base_config())
      'DSB-CE'
    """
    of_stages, config = stages.label(config), stages.chain(config)[-1]
    if config.loss not in losses.names() and config.loss in objectives.names():
        raise ValueError(f"{config.loss!r} is more than a loss: objective={config.loss}, got loss={config.loss!r}")
    losses.head(config.loss)  # raises for an unknown name
    if config.balancer not in _BALANCER_NAMES:
        raise validation.unknown_name("balancer", config.balancer, _BALANCER_NAMES)
    base, *extensions = _parts(config)
    method = building.OBJECTIVES[base]
    label = method.label.format(loss=_LOSS_NAMES[config.loss]).removesuffix(f"+{method.usual}")
    for extension in extensions:
        extended = building.EXTENSIONS[extension].label.format(inner=label)
        label = extended.removesuffix("+CE") if label == "CE" else extended
    without_interference = config.balancer == "dsb" and not config.dsb.interclass
    return _BALANCER_NAMES[config.balancer] + of_stages.format(label) + ("-1" if without_interference else "")


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
    base, *extensions = _parts(config)
    with section(config, config.loss):
        loss = losses.create(config.loss, counts=counts, **config[config.loss])
    if teacher is not None and base not in ("dive", "ride"):
        raise ValueError(
            f"objective {config.objective!r} learns from no teacher, as dive and ride do: "
            f"teacher must be left out, got {config.teacher!r}"
        )
    taught = None if teacher is None else _taught(*teacher)
    context = building.Context(loss, counts, (config.sampler,), steps_per_epoch, taught)
    with section(config, base):
        made = building.OBJECTIVES[base].build(config, context)
    for extension in extensions:
        with section(config, extension):
            made = building.EXTENSIONS[extension].build(config, context, made)
    return made


def model_options(config: ConfigDict) -> dict[str, Any]:
    """What the objective needs of the model: options of :func:`dsb_jax.models.create`."""
    base, *_ = _parts(config)
    with section(config, base):
        return dict(building.OBJECTIVES[base].model(config))


def _taught(config, model):
    """``(variables, images) -> Outputs``, with logits as a softmax takes them."""

    def taught(variables, images):
        outputs = model.apply(variables, images, train=False)
        return outputs._replace(logits=building.logit_scale(config) * outputs.logits)

    return taught


def _parts(config):
    """The names of the objective and of those that extend it, from the inside out: ``"a+b+c"`` is a around b around c.

    What can but extend another one is around the plain objective where none follows.

    Raises:
      ValueError: on a name that is none or stands in the wrong place, or a loss that the objective has no use for.
    """
    *outer, last = config.objective.split("+")
    if last in building.EXTENSIONS and last not in building.OBJECTIVES:
        outer, last = [*outer, last], "supervised"
    if last not in building.OBJECTIVES:
        raise validation.unknown_name("objective", last, objectives.names())
    for extension in outer:
        if extension in building.OBJECTIVES and extension not in building.EXTENSIONS:
            raise ValueError(
                f"objective {extension!r} extends no other; what does comes first, as in 'ifl+ride', "
                f"got {config.objective!r}"
            )
        if extension not in building.EXTENSIONS:
            raise validation.unknown_name("objective that extends another", extension, building.EXTENSIONS)
        if [*outer, last].count(extension) > 1:
            raise ValueError(f"objective {extension!r} extends another once, got {config.objective!r}")
    if building.OBJECTIVES[last].has_loss and config.loss != "cross_entropy":
        raise ValueError(
            f"objective {last!r} has a loss of its own: loss must be left at 'cross_entropy', or objective be "
            f"'supervised', got {config.loss!r}"
        )
    return [last, *reversed(outer)]
