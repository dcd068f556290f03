"""What a run is judged by: whether it names an image's class, or finds the images of it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from dsb_jax.training.classification import Classification
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.program import Program
from dsb_jax.training.retrieval import Retrieval
from dsb_jax.training.step import TrainState


class Task(Protocol):
    """What of a model's outputs on the test images is measured, kept and told."""

    def outputs(self, program: Program, state: TrainState, check: Callable[[], None]) -> Mapping[str, Any]:
        """Of every test example; ``check`` is called before every batch."""

    def measured(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a line of ``metrics.jsonl`` has of them."""

    def score(self, measured: Mapping[str, Any]) -> float:
        """What the best checkpoint has most of."""

    def text(self, measured: Mapping[str, Any]) -> str:
        """A line of the log."""

    def results(
        self,
        outputs: Mapping[str, Any],
        trained: Mapping[str, np.ndarray],
        training_spaces: Callable[[], Mapping[str, Mapping[str, Any]]],
    ) -> dict[str, Any]:
        """What ``results.json`` has of them.

        Args:
          outputs: of the final model.
          trained: of every training class ``samples``, ``weight``, ``volume``, ``interclass`` and ``scale``.
          training_spaces: all in which the training classes can be measured, which may take a pass over the images.
        """

    def headline(self, results: Mapping[str, Any]) -> str:
        """What ``results.json`` comes down to."""

    def files(self, outputs: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        """Arrays that the report shows, by file."""


_TASKS: dict[str, Callable[[ConfigDict, Experiment], Task]] = {"classification": Classification, "retrieval": Retrieval}


def create(config: ConfigDict, experiment: Experiment) -> Task:
    """The one that the settings name; an experiment is made of none other."""
    return _TASKS[config.task](config, experiment)
