"""Classification: test images are of the classes that were trained, and the model says of which."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax.evaluation import metrics
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.program import Program
from dsb_jax.training.step import TrainState

_IMAGES_PER_PAIR = 6


class Classification:
    """What of a model's outputs on the test images is measured, kept and told.

    Args:
      config: the run's settings.
      experiment: its parts.
    """

    def __init__(self, config: ConfigDict, experiment: Experiment) -> None:
        self._names = ("prediction", "loss", *(("probabilities",) if config.average_precision else ()))
        self._experiment = experiment
        self._labels, self._num_classes = experiment.test.labels, len(experiment.counts)

    def outputs(self, program: Program, state: TrainState, check: Callable[[], None]) -> Mapping[str, np.ndarray]:
        """``prediction`` and ``loss`` of every test example, and ``probabilities`` for average precision; ``check`` is
        called before every batch.
        """
        return program.test(state, self._names, check)

    def measured(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What a line of ``metrics.jsonl`` has of them."""
        confusion = self._confusion(outputs)
        return {
            "test_accuracy": float(np.trace(confusion) / confusion.sum()),
            "test_loss": float(np.mean(outputs["loss"])),
            "class_accuracy": metrics.class_accuracy(confusion),
        }

    def score(self, measured: Mapping[str, Any]) -> float:
        """What the best checkpoint has most of."""
        return measured["test_accuracy"]

    def text(self, measured: Mapping[str, Any]) -> str:
        """A line of the log."""
        return f"test accuracy {measured['test_accuracy']:.4f}, loss {measured['test_loss']:.4f}"

    def headline(self, results: Mapping[str, Any]) -> str:
        """What ``results.json`` comes down to."""
        return f"top-1 {100 * results['top1']:.2f} %"

    def results(
        self,
        outputs: Mapping[str, np.ndarray],
        trained: Mapping[str, np.ndarray],
        training_spaces: Callable[[], Mapping[str, Mapping[str, Any]]],
    ) -> dict[str, Any]:
        """What ``results.json`` has of them: accuracy, and what that of a class goes with, in all the spaces."""
        confusion = self._confusion(outputs)
        accuracy, counts = metrics.class_accuracy(confusion), trained["samples"]
        columns = {
            "accuracy": accuracy,
            "samples": counts,
            "test_samples": confusion.sum(axis=1),
            **{name: trained[name] for name in ("volume", "scale", "weight")},
        }
        if "probabilities" in outputs:
            columns["average_precision"] = metrics.average_precision(self._labels, outputs["probabilities"])
        measures = {name: trained[name] for name in ("samples", "interclass", "volume", "scale")}
        return {
            "top1": np.trace(confusion) / confusion.sum(),
            "precision": float(np.nanmean(metrics.class_precision(confusion))),
            **metrics.shot_accuracy(accuracy, counts),
            "by_scale": metrics.accuracy_by_scale(accuracy, trained["scale"]),
            **_mean_average_precision(columns),
            "per_class": by_name(self._experiment.class_names, columns),
            "correlations": metrics.correlations(
                accuracy, effective_number=np.asarray(dsb_jax.effective_number(counts)), **measures
            ),
            "correlations_by_space": {
                name: metrics.correlations_by_alpha(accuracy, **space)
                for name, space in sorted(training_spaces().items())
            },
        }

    def files(self, outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Arrays by file: in ``confusions.npz`` predictions, and images of the classes that are confused most often.

        ``labels`` and ``predictions``, int32 ``[n]``; ``pairs``, int32 ``[P, 2]``, true and predicted class;
        ``images``, uint8 ``[P, K, height, width, channels]``, test images of each pair; ``shown``, int32 ``[P]``, how
        many there are.
        """
        labels, predictions, test = self._labels, outputs["prediction"], self._experiment.test
        pairs = metrics.hardest_pairs(self._confusion(outputs))
        images = np.zeros((len(pairs), _IMAGES_PER_PAIR, *test.image_shape), np.uint8)
        shown = np.zeros(len(pairs), np.int32)
        for place, (true, predicted) in enumerate(pairs):
            rows = np.flatnonzero((labels == true) & (predictions == predicted))[:_IMAGES_PER_PAIR]
            shown[place] = len(rows)
            images[place, : len(rows)] = [example["image"] for example in test.source.__getitems__(rows)]
        arrays = {
            "labels": labels,
            "predictions": predictions.astype(np.int32),
            "pairs": np.asarray(pairs, np.int32).reshape(-1, 2),
            "images": images,
            "shown": shown,
        }
        return {"confusions.npz": arrays}

    def _confusion(self, outputs):
        return metrics.confusion_matrix(self._labels, outputs["prediction"], self._num_classes)


def _mean_average_precision(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    if "average_precision" not in columns:
        return {}
    return {"mean_average_precision": float(np.nanmean(columns["average_precision"]))}


def by_name(class_names: tuple[str, ...], columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Columns ``[C]`` as an object for each class."""
    rows = zip(class_names, *columns.values(), strict=True)
    return {name: dict(zip(columns, row, strict=True)) for name, *row in rows}
