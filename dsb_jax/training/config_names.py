"""Configs by name: ``digits_lt`` is the package's ``configs/digits_lt.py``, whatever folder one is in.

What ends in ``.py`` or has a folder is a file of the user's; any other word is the name of a config of the package.
"""

import pathlib

import dsb_jax
from dsb_jax import validation

_PACKAGE = pathlib.Path(dsb_jax.__file__).parent


def folder() -> pathlib.Path:
    """Where the package's configs are: a wheel has them inside of the package, a repository beside it."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The names of all configs of the package.

    Example:
      >>> "digits_lt" in names()
      True
    """
    return sorted(path.stem for path in folder().glob("*.py"))


def located(config: str) -> str:
    """What stands behind ``--config=``, with the file's path in the place of a name.

    Args:
      config: a file or a name, and settings behind a colon where there are any.

    Raises:
      ValueError: the package has no config of that name.

    Example:
      >>> located("mine/digits.py:seed=1")
      'mine/digits.py:seed=1'
      >>> located("digits_lt:seed=1").endswith("/configs/digits_lt.py:seed=1")
      True
    """
    name, colon, settings = config.partition(":")
    if name.endswith(".py") or pathlib.Path(name).name != name:
        return config
    if name not in names():
        raise validation.unknown_name("config", name, names())
    return f"{folder() / name}.py{colon}{settings}"
