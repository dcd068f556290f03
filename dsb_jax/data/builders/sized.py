"""Examples whose number is known, so that TFDS's progress bar says how long is left."""

import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sized:
    """What a builder yields for a split, and how much of it there will be.

    Attributes:
      examples: pairs of a key and an example; read once.
      length: their number.

    Example:
      >>> len(Sized(iter([(0, {"label": 3})]), 1))
      1
    """

    examples: Iterator[tuple[Any, dict[str, Any]]]
    length: int

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        return self.examples

    def __len__(self) -> int:
        return self.length
