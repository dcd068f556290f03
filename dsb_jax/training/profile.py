"""A profiler's trace of a few steps."""

import logging
import os
import re
from typing import Any

import jax

_logger = logging.getLogger(__name__)


class Profile:
    """While entered, records the steps that ``text`` asks for; TensorBoard, XProf and Perfetto read the trace.

    Args:
      text: ``"step:count"``, the first step (from 1) and how many; ``""`` records nothing.
      folder: where the trace is written.

    Raises:
      ValueError: if ``text`` is neither.

    Example:
      >>> Profile("10", "trace")
      Traceback (most recent call last):
      ValueError: profile must be "step:count" with both at least 1, for example 10:5, got '10'
    """

    def __init__(self, text: str, folder: str | os.PathLike[str]) -> None:
        match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
        if text and not match:
            raise ValueError(f'profile must be "step:count" with both at least 1, for example 10:5, got {text!r}')
        self._folder = os.fspath(folder)
        first, count = map(int, match.groups()) if match else (0, 0)
        self._steps = range(first, first + count)
        self._recording = self._recorded = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop()
        if self._steps and not self._recorded:
            _logger.warning(
                "there is no trace: the run made none of the steps %d to %d", self._steps[0], self._steps[-1]
            )

    def before(self, step: int) -> None:
        """To be called before step ``step`` is dispatched; a run resumed within the range begins there."""
        if step in self._steps and not self._recording:
            jax.profiler.start_trace(self._folder)
            self._recording = self._recorded = True

    def after(self, step: int, outputs: object) -> None:
        """To be called after it, with what the step returns: the trace ends when the last step's is there."""
        if self._recording and step + 1 not in self._steps:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self):
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
            _logger.info("a trace is in %s", self._folder)
