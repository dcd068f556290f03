"""SIGTERM and Ctrl-C: a run that is told to end saves a checkpoint first."""

import contextlib
import logging
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(Exception):
    """A run was told to end, and has saved where it was.

    Attributes:
      signal: which signal told it.
      exit_code: what a process ends with: 143 for SIGTERM and 130 for Ctrl-C, as shells count.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        super().__init__(f"told to end by {self.signal.name}")


class Termination:
    """While entered, SIGTERM and Ctrl-C only leave a note, which ``check`` reads at places fit to stop at.

    The same signal a second time does what it would have done without. So does the first outside of Python's main
    thread, where handlers cannot be set.

    Example:
      >>> with Termination() as termination:
      ...     termination.check()
      ...     signal.raise_signal(signal.SIGTERM)
      ...     termination.check()
      Traceback (most recent call last):
      dsb_jax.training.termination.Terminated: told to end by SIGTERM
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises `Terminated` if a signal has come."""
        if self._received is not None:
            raise Terminated(self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = number
        signal.signal(number, self._before[number])
        _logger.info("%s: stopping at the next fit place; the same again ends at once", signal.Signals(number).name)


class SharedTermination:
    """The same for several processes: SIGTERM to any of them ends all, at the same place.

    JAX takes the signal, and finds a place that none of them has passed. So all must come to the same places in the
    same order. Ctrl-C, which terminals send to all at once, is left as it is: nothing could be agreed on any more.
    """

    def __init__(self) -> None:
        self._places = 0

    def __enter__(self) -> "SharedTermination":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def check(self) -> None:
        """Raises `Terminated` if a signal has come to one of the processes, in all of them."""
        self._places += 1
        if multihost_utils.reached_preemption_sync_point(self._places):
            raise Terminated(signal.SIGTERM)


def termination() -> contextlib.AbstractContextManager[Termination | SharedTermination]:
    """What fits this process: alone, or one of several."""
    return Termination() if jax.process_count() == 1 else SharedTermination()
