"""Parts of a model's parameters, chosen by globs of their paths, as ``head/*`` or ``backbone/layer4_*``.

Several globs are separated by spaces; ``*`` matches slashes too, and no glob at all chooses nothing.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

from dsb_jax import validation

ALL = "*"


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested dictionaries by path.

    Example:
      >>> flat({"head": {"kernel": 1, "bias": 2}})
      {'head/kernel': 1, 'head/bias': 2}
    """
    return traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flat`."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def chosen(globs: str, paths: Iterable[str]) -> set[str]:
    """Those of ``paths`` that match one of the globs.

    Example:
      >>> sorted(chosen("head/* */bias", ["head/kernel", "hidden/bias", "hidden/kernel"]))
      ['head/kernel', 'hidden/bias']
    """
    return {path for path in paths if any(fnmatch.fnmatchcase(path, glob) for glob in globs.split())}


def check(setting: str, globs: str, paths: Iterable[str]) -> None:
    """Raises ValueError unless each of the globs matches a path; the message has the nearest.

    Example:
      >>> check("trainable", "heads/*", ["head/kernel", "fc/bias"])
      Traceback (most recent call last):
      ValueError: unknown trainable parameter 'heads/*'; did you mean 'head/kernel'? Valid names: fc/bias, head/kernel
    """
    paths = list(paths)
    for glob in globs.split():
        if not chosen(glob, paths):
            raise validation.unknown_name(f"{setting} parameter", glob, paths)


def split(params: Mapping[str, Any], globs: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that the globs choose, and the others.

    Example:
      >>> split({"head": {"kernel": 1, "bias": 2}}, "*/kernel")
      ({'head': {'kernel': 1}}, {'head': {'bias': 2}})
    """
    if globs == ALL:
        return dict(params), {}
    leaves = flat(params)
    names = chosen(globs, leaves)
    return (
        nested({path: leaf for path, leaf in leaves.items() if path in names}),
        nested({path: leaf for path, leaf in leaves.items() if path not in names}),
    )


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Trees laid over each other: of what is in several the last counts.

    Example:
      >>> merged({"head": {"kernel": 1, "bias": 2}}, {"head": {"bias": 3}})
      {'head': {'kernel': 1, 'bias': 3}}
    """
    return nested({path: leaf for part in parts for path, leaf in flat(part).items()})


def shapes_of(tree: Any) -> dict[str, str]:
    """Shape and dtype of each leaf as text, by path.

    Example:
      >>> shapes_of({"bias": np.zeros(3, np.float32)})
      {'bias': 'float32[3]'}
    """
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flat(tree).items()}
