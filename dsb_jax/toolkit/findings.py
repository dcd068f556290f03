"""What every command of the toolkit gives back, so that a terminal, a JSON file and a page can show any of it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure


class Finding(Protocol):
    """The result of a command."""

    def reading(self) -> str:
        """What it says, in plain words, in one line."""

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Headings, and rows of as many texts; the first column is words, the others numbers."""

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """Plots by a name that can be a file's, each with a caption."""

    def as_dict(self) -> dict[str, Any]:
        """All of it, of what :func:`to_json` takes."""


def to_json(found: Any) -> str:
    """JSON of dictionaries, sequences, NumPy arrays and numbers; what is not finite becomes null.

    Example:
      >>> print(to_json({"volume": np.array([1.5, np.nan]), "samples": np.int64(3)}))
      {
        "volume": [
          1.5,
          null
        ],
        "samples": 3
      }
    """
    return json.dumps(_plain(found), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
