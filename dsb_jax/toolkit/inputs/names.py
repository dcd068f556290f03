"""Names in the order in which a person counts."""

import re
from collections.abc import Iterable


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted naturally: numbers within them by value, and names that are numbers by theirs.

    Example:
      >>> in_order(["class10", "class9", "Class9"]), in_order(["10", "-1", "9"])
      (['Class9', 'class9', 'class10'], ['-1', '9', '10'])
    """
    names = list(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names, key=lambda name: (_parts(name), name))


def _parts(name: str) -> list[str | int]:
    """Text and numbers in turn, which can be compared with those of another name."""
    texts = re.split(r"([0-9]+)", name.casefold())
    return [int(text) if place % 2 else text for place, text in enumerate(texts)]
