"""What a finished run found: the facts of the run, its classes as the final model sees them, and how well it does."""

import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import data
from dsb_jax.training import methods, spaces, stages
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.program import Program
from dsb_jax.training.step import TrainState
from dsb_jax.training.tasks import Task


def results(
    config: ConfigDict,
    experiment: Experiment,
    program: Program,
    state: TrainState,
    task: Task,
    outputs: Mapping[str, np.ndarray],
    check: Callable[[], None],
) -> dict[str, Any]:
    """The content of ``results.json``: the same measurements whatever the method.

    Args:
      config: the run's settings.
      experiment: its parts.
      program: its compiled steps.
      state: the final one.
      task: what counts.
      outputs: the task's, of the final model.
      check: called before every batch of the passes over the training set.
    """
    summary = jax.device_get(program.summary(state.balancing))
    labels, num_classes = experiment.train.labels[experiment.indices], len(experiment.counts)
    features = program.training_features(state, check)
    feature_space = spaces.space(features, labels, num_classes, epsilon=config.dsb.epsilon)
    trained = {"samples": experiment.counts, "weight": summary["weights"]}
    trained |= spaces.measures(feature_space, experiment.alpha)

    def all_spaces():
        """In the features of the final model, in the pool, and in pixels."""
        measured = {"feature": feature_space}
        if "volumes" in summary:  # a rare class may be missing there: the pool holds about an epoch, not just one
            present = {"present": summary["counts"] > 0}
            measured["pool"] = {name: summary[name] for name in ("volumes", "centers")} | present
        if config.sample_space:
            measured["sample"] = spaces.space(program.training_pixels(check), labels, num_classes)
        return measured

    return {
        "task": config.task,
        "dataset": config.dataset,
        "data": config.data,
        "numbers": experiment.numbers,
        "protocol": _protocol(config),
        "eval_split": experiment.test.split,
        "model": config.model,
        "objective": config.objective,
        "loss": config.loss,
        "balancer": config.balancer,
        "method": methods.name(config),
        "alpha": experiment.alpha,
        "seed": config.seed,
        "steps": experiment.steps,
        "epochs": config.epochs,
        "stages": [{"method": methods.name(stage), "epochs": stage.epochs} for stage in stages.chain(config)],
        "skipped_steps": int(state.skipped),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        **task.results(outputs, trained, all_spaces),
    }


def _protocol(config: ConfigDict) -> str | None:
    """How the dataset is divided; own images are in one way only."""
    spec = data.spec(config.dataset)
    if spec is None or config.protocol is not None:
        return config.protocol
    return next(iter(spec.protocols))
