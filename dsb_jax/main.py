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
from dsb_jax.training.config import base_config, check_setting
from dsb_jax.training.experiment import method
from dsb_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Path of a config file, with settings behind a colon: configs/x.py:key=value,…"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to write; runs/<config>/<method>-seed<k> by default.")


def main(arguments: Sequence[str]) -> None:
    """Runs one config; what a user did wrong becomes one line and exit status 1, not a traceback."""
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stdout, force=True
    )
    logging.getLogger("dsb_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)  # of what TFDS and Grain report, the warnings
    try:
        if len(arguments) > 1:
            raise ValueError(f"unexpected argument {arguments[1]!r}; settings are --config.key=value")
        if _CONFIG.value is None:
            raise ValueError("--config is missing; for example --config=configs/digits_lt.py")
        config = _CONFIG.value
        workdir = _WORKDIR.value or _default_workdir(config)
        print(f"workdir: {workdir}", flush=True)
        train(config, workdir)
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {_one_line(error)}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _default_workdir(config) -> pathlib.Path:
    file, _, _ = flags.FLAGS["config"].config_filename.partition(":")
    return pathlib.Path("runs") / pathlib.Path(file).stem / f"{method(config).lower()}-seed{config.seed}"


def _parse(arguments: Sequence[str]) -> Sequence[str]:
    """Flags, with a bad config or override as one line."""
    try:
        for argument in arguments:
            if override := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                check_setting(base_config(), override[1])
        return flags.FLAGS(arguments)
    except Exception as error:  # a config file is a program, and may raise anything
        sys.exit(f"error: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    """What is wrong: config_flags puts a traceback, or an error as text, in front of it."""
    text = str(error) or type(error).__name__
    missing = re.search(r"Failed loading config file.*No such file or directory: '(.+)'", text, re.DOTALL)
    if missing:
        path = pathlib.Path(missing[1])
        others = [*path.parent.glob("*.py")] or [*pathlib.Path("configs").glob("*.py")]
        if not others:
            return f"there is no config file {str(path)!r} in {pathlib.Path.cwd()}"
        return str(validation.unknown_name("config file", str(path), map(str, others)))
    if not isinstance(error, ValueError | OSError | ArithmeticError | flags.Error):  # a mistake in the config file
        text = f"config file: {type(error).__name__}: {text}"
    return re.sub(r"^\w+Error: ", "", text.strip().splitlines()[-1].strip())


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
