"""What a finished run found: accuracies, and the final model's view of every class."""

import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax import data
from dsb_jax.evaluation import metrics
from dsb_jax.training import methods, stages
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.program import Program
from dsb_jax.training.step import TrainState

_IMAGES_PER_PAIR = 6


def results(
    config: ConfigDict,
    experiment: Experiment,
    program: Program,
    state: TrainState,
    predictions: np.ndarray,
    check: Callable[[], None],
) -> dict[str, Any]:
    """The content of ``results.json``: the same measurements whatever the method.

    Args:
      config: the run's settings.
      experiment: its parts.
      program: its compiled steps.
      state: the final one.
      predictions: the class predicted for every test example.
      check: called before every batch of the passes over the training set.
    """
    counts, labels = experiment.counts, experiment.test.labels
    confusion = metrics.confusion_matrix(labels, predictions, len(counts))
    accuracy = metrics.class_accuracy(confusion)
    summary = jax.device_get(program.summary(state.balancing))
    features = program.training_features(state, check)
    spaces = {"feature": _space(experiment, features, config.dsb.epsilon)}
    if "volumes" in summary:  # a rare class may be missing there: the pool holds about an epoch, not just one
        pooled = {name: summary[name] for name in ("volumes", "centers")}
        spaces["pool"] = pooled | {"present": summary["counts"] > 0}
    if config.sample_space:
        spaces["sample"] = _space(experiment, program.training_pixels(check), 1.0)
    measured = _scales(spaces["feature"], experiment.alpha)
    columns = {
        "accuracy": accuracy,
        "samples": counts,
        "test_samples": confusion.sum(axis=1),
        "volume": measured["volume"],
        "scale": measured["scale"],
        "weight": summary["weights"],
    }
    return {
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
        "top1": np.trace(confusion) / confusion.sum(),
        **metrics.shot_accuracy(accuracy, counts),
        "per_class": {
            name: dict(zip(columns, row, strict=True))
            for name, *row in zip(experiment.class_names, *columns.values(), strict=True)
        },
        "correlations": metrics.correlations(
            accuracy, samples=counts, effective_number=np.asarray(dsb_jax.effective_number(counts)), **measured
        ),
        "correlations_by_space": {
            name: metrics.correlations_by_alpha(accuracy, **space) for name, space in sorted(spaces.items())
        },
    }


def _protocol(config: ConfigDict) -> str | None:
    """How the dataset is divided; own images are in one way only."""
    spec = data.spec(config.dataset)
    if spec is None or config.protocol is not None:
        return config.protocol
    return next(iter(spec.protocols))


def confusions(experiment: Experiment, predictions: np.ndarray) -> dict[str, np.ndarray]:
    """The content of ``confusions.npz``: predictions, and images of the classes that are taken for another most often.

    Returns:
      ``labels`` and ``predictions``, int32 ``[n]``; ``pairs``, int32 ``[P, 2]``, true and predicted class; ``images``,
      uint8 ``[P, K, height, width, channels]``, test images of each pair; ``shown``, int32 ``[P]``, how many there are.
    """
    labels = experiment.test.labels
    pairs = metrics.hardest_pairs(metrics.confusion_matrix(labels, predictions, len(experiment.counts)))
    images = np.zeros((len(pairs), _IMAGES_PER_PAIR, *experiment.test.image_shape), np.uint8)
    shown = np.zeros(len(pairs), np.int32)
    for place, (true, predicted) in enumerate(pairs):
        rows = np.flatnonzero((labels == true) & (predictions == predicted))[:_IMAGES_PER_PAIR]
        shown[place] = len(rows)
        images[place, : len(rows)] = [example["image"] for example in experiment.test.source.__getitems__(rows)]
    return {
        "labels": labels,
        "predictions": predictions.astype(np.int32),
        "pairs": np.asarray(pairs, np.int32).reshape(-1, 2),
        "images": images,
        "shown": shown,
    }


def _space(experiment, points, epsilon):
    """Volumes and centres of the training examples, which are ``points`` ``[n, d]``."""
    labels, num_classes = experiment.train.labels[experiment.indices], len(experiment.counts)
    return {
        "volumes": np.asarray(dsb_jax.class_volumes(points, labels, num_classes, epsilon=epsilon)),
        "centers": np.asarray(dsb_jax.class_centers(points, labels, num_classes)),
        "present": experiment.counts > 0,
    }


def _scales(space, alpha):
    volumes, centers, present = space["volumes"], space["centers"], space["present"]
    return {
        "volume": volumes,
        "interclass": np.asarray(dsb_jax.interclass_weights(centers, alpha, present=present)),
        "scale": np.asarray(dsb_jax.semantic_scales(volumes, centers, alpha, present=present)),
    }
