"""A hang that can be seen: where every thread stands when no step was made for too long."""

import faulthandler
import logging
import sys
import threading
import time
from typing import Any

_logger = logging.getLogger(__name__)


class Watchdog:
    """While entered, prints the stacks of all threads to stderr whenever ``beat`` was not called for ``seconds``.

    Args:
      seconds: how long silence may last; the stacks are printed again after as long a time. Infinity is never.

    Raises:
      ValueError: if ``seconds`` is not above 0.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"watchdog_minutes must be above 0, got {seconds / 60:g}")
        self._seconds = min(seconds, threading.TIMEOUT_MAX)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Something has happened."""
        self._last = time.monotonic()

    def _watch(self):
        while not self._over.wait(self._last + self._seconds - time.monotonic()):
            if time.monotonic() - self._last >= self._seconds:
                _logger.warning(
                    "nothing has happened for %g s; where every thread stands goes to stderr", self._seconds
                )
                faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
                self.beat()
