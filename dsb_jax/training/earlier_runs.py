"""What an earlier run left, for one that begins with its parameters or learns from its model."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dsb_jax.training import checkpoints, parameters, processes
from dsb_jax.training.config import base_config, put

_logger = logging.getLogger(__name__)

_COLLECTIONS = ("params", "batch_stats")
_SHOWN = 3


class EarlierRun(NamedTuple):
    """Where a run is, or is going to be by the time that its parameters are asked for, and what its settings are."""

    workdir: pathlib.Path
    config: ConfigDict


def at(workdir: str | os.PathLike[str], *, setting: str) -> EarlierRun:
    """The run in a workdir.

    Args:
      workdir: of a run that is finished, or has a checkpoint.
      setting: which names the workdir, for the error.

    Raises:
      ValueError: if there is no ``config.json``, or none of a run's.

    Example:
      >>> at("runs/none", setting="teacher")
      Traceback (most recent call last):
      ValueError: teacher must be the workdir of a run, got 'runs/none': there is no config.json
    """
    workdir = pathlib.Path(workdir)
    try:
        settings = json.loads((workdir / "config.json").read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"its config.json holds a {type(settings).__name__}")
        config = base_config()
        for key, value in parameters.flat(settings).items():
            put(config, key.replace("/", "."), value)
    except (OSError, ValueError, TypeError) as error:
        reason = f"its config.json is no JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = "it is a file" if workdir.is_file() else "there is no config.json"
        raise ValueError(f"{setting} must be the workdir of a run, got {str(workdir)!r}: {reason}") from None
    return EarlierRun(workdir, config)


def require_fit(earlier: Mapping[str, str], wanted: Mapping[str, str], *, source: str, setting: str) -> None:
    """Raises ValueError unless an earlier run has all that is wanted, in the same shapes.

    Args:
      earlier: shapes by path, as :func:`dsb_jax.training.parameters.shapes_of` has them.
      wanted: likewise.
      source: the earlier run, in words.
      setting: what says that they are to be taken.
    """
    wrong = [path for path, shape in wanted.items() if earlier.get(path) != shape]
    if not wrong:
        return
    shown = [f"{path}: {earlier.get(path, 'none')} there, {wanted[path]} here" for path in wrong[:_SHOWN]]
    more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    advice = ""
    if setting == "initial" and all(path.startswith("head/") for path in wrong):
        advice = "; reinitialize=head/* leaves out its last layer"
    elif setting == "initial":
        advice = "; model, head and objective must be as there, or reinitialize name what is not to be taken"
    raise ValueError(f"the parameters of {source} do not fit this model ({', '.join(shown + more)}){advice}")


def variables(
    workdir: pathlib.Path,
    wanted: Mapping[str, Any],
    *,
    setting: str,
    step: int | None = None,
    reinitialize: str = "",
    sharding: jax.sharding.Sharding | None = None,
) -> dict[str, Any]:
    """The variables that an earlier run was evaluated with when it was saved: averaged ones where it has them.

    Args:
      workdir: the run's, which is only read.
      wanted: shapes of ``params`` and ``batch_stats`` of the model that they are for; what else there is, is left.
      setting: which names the workdir, for the error.
      step: of the checkpoint that they are from; of the latest if it is None.
      reinitialize: globs of the paths that are not wanted.
      sharding: where they are to lie; on the default device if it is None.

    Returns:
      ``params`` and ``batch_stats``, less those that are not wanted.

    Raises:
      ValueError: if there is no checkpoint, a damaged one, or one that lacks an array or has it in another shape.
    """
    saved = processes.of_first(lambda: checkpoints.find(workdir / "checkpoints", step, setting=setting))
    root = "average/" if any(path.startswith("average/") for path in saved.arrays) else ""
    found: dict[str, Any] = {}
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    for name in _COLLECTIONS:
        leaves, prefix = parameters.flat(wanted.get(name, {})), f"{root}{name}/"
        there = {path.removeprefix(prefix): text for path, text in saved.arrays.items() if path.startswith(prefix)}
        left = parameters.chosen(reinitialize, leaves)
        leaves = {path: leaf for path, leaf in leaves.items() if path not in left}
        require_fit(there, parameters.shapes_of(leaves), source=str(workdir), setting=setting)
        shapes |= {prefix + path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
        if unused := [path for path in there if path not in leaves and path not in left]:
            _logger.info("%s of %s not taken, which this model lacks: %s", name, workdir, ", ".join(unused))
    read = checkpoints.read(saved, shapes, sharding)
    for name in _COLLECTIONS:
        prefix = f"{root}{name}/"
        of_collection = {path.removeprefix(prefix): leaf for path, leaf in read.items() if path.startswith(prefix)}
        found[name] = parameters.nested(of_collection)
    _logger.info("%s: parameters of %s at step %d", setting, workdir, saved.step)
    return found
