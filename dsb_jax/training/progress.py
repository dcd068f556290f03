"""How far a run is: images per second, time gone, time to go."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0

T = TypeVar("T")


class Progress:
    """Rates and remaining time, with what is not training (compilation, evaluation) left out of the rate.

    Args:
      steps: updates in all.
      batch_size: images per update.
      first: updates already done, by an earlier start of the run.
      seconds: what they took.
    """

    def __init__(self, steps: int, batch_size: int, *, first: int = 0, seconds: float = 0.0) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._first, self._before = first, seconds
        self._begin = time.perf_counter()
        self._paused = 0.0
        self._mark = (first, seconds)

    def pause(self, seconds: float) -> None:
        """Time that did not go into training."""
        self._paused += seconds

    @property
    def seconds(self) -> float:
        """Time spent on training steps, earlier starts included."""
        return self._before + time.perf_counter() - self._begin - self._paused

    def rate(self, step: int) -> float:
        """Images per second since the last call; NaN where there was no step since."""
        before, then = self._mark
        if step == before:
            return math.nan
        now = self.seconds
        self._mark = (step, now)
        return (step - before) * self._batch_size / max(now - then, 1e-9)

    def report(self, step: int, text: str, rate: float) -> None:
        """One line for a person."""
        done = max(step - self._first, 1)
        wall = time.perf_counter() - self._begin  # evaluations to come take their share
        remaining = wall / done * (self._steps - step)
        percent = 100 * step // self._steps
        speed = "" if math.isnan(rate) else f" | {rate:.0f} images/s"
        _logger.info("step %d/%d (%d %%) %s%s | ETA %s", step, self._steps, percent, text, speed, duration(remaining))


def announced(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items as they are, with a line every ten seconds on how many of ``total`` are done.

    Example:
      >>> list(announced("abc", 3, "Testing"))
      ['a', 'b', 'c']
    """
    begin = said = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and now - said > _SECONDS_BETWEEN_LINES:
            said = now
            left = duration((now - begin) / done * (total - done))
            _logger.info("%s: batch %d/%d (%d %%) | ETA %s", what, done, total, 100 * done // total, left)
        yield item


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
      >>> duration(59.7), duration(3725)
      ('1m00s', '1h02m05s')
    """
    seconds = round(seconds)
    hours, minutes, seconds = seconds // 3600, seconds % 3600 // 60, seconds % 60
    if hours:
        return f"{hours}h{minutes:02d}m{seconds:02d}s"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
