"""PyTorch's weights as the parameters that a run begins with."""

import logging
from typing import Any

import flax
from ml_collections import ConfigDict

from dsb_jax import models
from dsb_jax.models import pytorch, zoo
from dsb_jax.training import parameters

_logger = logging.getLogger(__name__)

_SHOWN = 6
_ANEW = ("embedding", "projection")  # parts that no file has


def variables(config: ConfigDict, shapes: dict[str, Any]) -> dict[str, Any]:
    """What of a model's variables is in the file ``config.init_from``, under the names of torchvision or timm.

    The last layer, and others of classes halfway, begin anew where they have other classes or another form, and so do
    what ``config.reinitialize`` names, an embedding and a projection. What was loaded, begins anew or is left over goes
    to the log.

    Args:
      config: the run's settings.
      shapes: of the model's variables.

    Returns:
      ``params`` and ``batch_stats``, less what begins anew.

    Raises:
      ValueError: if the file cannot be read, lacks a part of the backbone or has one in another shape, has more than
        the model, or the model has experts or branches.
    """
    others = {path[0] for path in flax.traverse_util.flatten_dict(shapes["params"])} - {models.BACKBONE, "head"}
    if others - set(_ANEW):
        raise ValueError(
            f"init_from fills a model of one backbone, and that of objective={config.objective} has besides "
            f"{', '.join(sorted(others))}: init_from must be left out"
        )
    pytorch.require_reference(config.model)
    tensors = pytorch.read(config.init_from)
    wanted = {name: dict(tree) for name, tree in shapes.items() if name in ("params", "batch_stats")}
    for part in _ANEW:
        wanted["params"].pop(part, None)
    found, missing, left = pytorch.matched(config.model, wanted, tensors)
    anew = {path for tree in wanted.values() for path in parameters.chosen(config.reinitialize, parameters.flat(tree))}
    found = {path: value for path, value in found.items() if "/".join(path[1:]) not in anew}
    of_head = zoo.entry(config.model).backbone.torch_head
    wrong = [text for path, text in missing.items() if not _of_classes(path) and "/".join(path[1:]) not in anew]
    strange = [key for key in left if pytorch.torchvision_name(key).rpartition(".")[0] != of_head]
    wrong += pytorch.no_part(strange, missing)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"init_from={config.init_from} holds no weights of model={config.model} "
            f"({'; '.join(wrong[:_SHOWN])}{more}); reinitialize names what is to begin anew, as "
            "reinitialize=backbone/conv1/* under another stem"
        )
    if config.init_bgr:
        found = {path: value[:, :, ::-1] if _of_colours(path, value) else value for path, value in found.items()}
    _report(config.init_from, found, shapes, left)
    if settings := zoo.entry(config.model).settings:
        _logger.info("The published weights of %s are for images as they are with %s", config.model, settings)
    return flax.traverse_util.unflatten_dict(found)


def _of_colours(path, value):
    """Whether a variable is the kernel of a convolution of three channels: of these networks the first one alone."""
    return path[-1] == "kernel" and value.ndim == 4 and value.shape[2] == 3


def _of_classes(path):
    """Whether a variable is of a classifier, of which there may be others halfway."""
    return path[1] != models.BACKBONE or path[2] in ("aux1", "aux2")


def _report(source, found, shapes, left):
    everything = [path for name in ("params", "batch_stats") for path in parameters.flat(shapes.get(name, {}))]
    loaded = {"/".join(path[1:]) for path in found}
    anew = [path for path in everything if path not in loaded]
    text = "init_from=%s: %d tensors loaded; initialised anew: %s; left over: %s"
    _logger.info(text, source, len(found), ", ".join(anew) or "none", ", ".join(left) or "none")
