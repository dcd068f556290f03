"""Trains what a config file says.

python -m dsb_jax.main --config=configs/digits_lt.py:loss=focal --config.seed=1
"""

import logging
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from dsb_jax import validation
from dsb_jax.training.experiment import method
from dsb_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Path of a config file, with settings behind a colon: configs/x.py:key=value,…"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to write; runs/<config>/<method>-seed<k> by default.")
flags.mark_flag_as_required("config")


def main(arguments: Sequence[str]) -> None:
    """Runs one config; what a user did wrong becomes one line and exit status 1, not a traceback."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout, force=True)
    logging.getLogger("dsb_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)  # of what TFDS and Grain report, the warnings
    try:
        if len(arguments) > 1:
            raise ValueError(f"unexpected argument {arguments[1]!r}; settings are --config.key=value")
        config = _CONFIG.value
        workdir = _WORKDIR.value or _default_workdir(config)
        print(f"workdir: {workdir}", flush=True)
        train(config, workdir)
    except (ValueError, FloatingPointError, OSError) as error:
        logging.getLogger("dsb_jax").debug("what led to it", exc_info=True)
        sys.exit(f"error: {_one_line(error)}")


def _default_workdir(config) -> pathlib.Path:
    name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
    return pathlib.Path("runs") / name / f"{method(config).lower()}-seed{config.seed}"


def _parse(arguments: Sequence[str]) -> Sequence[str]:
    """Flags, with a bad config or override as one line."""
    try:
        return flags.FLAGS(arguments)
    except Exception as error:  # a config file is a program, and may raise anything
        sys.exit(f"error: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    """The last line of an error: config_flags puts a traceback, or an error as text, in front of what is wrong."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    message = re.sub(r"^\w+Error: ", "", lines[-1].strip()) if lines else type(error).__name__
    missing = re.search(r"No such file or directory: '(.+\.py)'", message)
    if missing:
        path = pathlib.Path(missing[1])
        return str(validation.unknown_name("config file", str(path), map(str, path.parent.glob("*.py"))))
    return message


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
