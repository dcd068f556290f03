"""What a dataset of image files consists of, before an image is read."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from dsb_jax.data.archive import Archive

_NAMES_SHOWN = 20


class Item(NamedTuple):
    """One image of a split.

    Attributes:
      path: the file's name in the archive; the example's key, so that no two of a split have the same.
      label: its class.
      features: what the example has besides ``image`` and ``label``.
      key: of the example where one file has several; the path by default.
    """

    path: str
    label: int
    features: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Index:
    """What a dataset consists of.

    Attributes:
      class_names: in the order of the labels.
      splits: the images of each.
      archive: what paths are relative to.
    """

    class_names: Sequence[str]
    splits: dict[str, list[Item]]
    archive: Archive


def shown(names: Sequence[str]) -> str:
    """The first names of many, for a message.

    Example:
      >>> shown(["a", "b"])
      'a, b'
    """
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
