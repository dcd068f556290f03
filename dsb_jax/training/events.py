"""TensorBoard events beside metrics.jsonl, by clu, where TensorFlow is installed."""

import importlib.util
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_logger = logging.getLogger(__name__)


class Events:
    """Scalars for TensorBoard; left as a context, all of them are on disk.

    Args:
      folder: where event files are written; None for nowhere.
    """

    def __init__(self, folder: pathlib.Path | None) -> None:
        self._writer = None
        if folder is None:
            return
        if importlib.util.find_spec("tensorflow") is None:
            _logger.info("No TensorBoard events: TensorFlow is not installed (pip install 'dsb-jax[tensorboard]')")
            return
        from clu import metric_writers  # imports TensorFlow, which takes seconds

        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the numbers among ``metrics``; vectors stay in metrics.jsonl."""
        if self._writer is not None:
            scalars = {name: value for name, value in metrics.items() if np.ndim(value) == 0 and name != "step"}
            self._writer.write_scalars(step, scalars)
