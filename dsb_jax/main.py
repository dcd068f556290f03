"""Trains what a config file says, or compares what was trained::

    python -m dsb_jax.main --config=configs/digits_lt.py:loss=focal --config.seed=1
    python -m dsb_jax.main --compare runs/digits_lt/ce-seed0 runs/digits_lt/dsb-ce-seed0

In any folder --config=digits_lt is the package's config of that name; what ends in .py or has a folder is a file.

Several processes train one model where a cluster, the environment or flags say which there are: each is started with
the same command, see ``--cluster``. The workdir must be where all of them see it; the first one writes.

Exit codes: 0 finished; 1 an error, in one line on stderr; 143 ended by SIGTERM and 130 by Ctrl-C, with a checkpoint
saved: the same command goes on from it. A signal that comes before the first step, where nothing is to be saved, ends
the process by itself, which shells report by the same numbers. Of several processes all end so when one is told to by
SIGTERM, before the first step too, once they have got to it: a compilation_cache makes that soon. Ctrl-C or an error in
one of them ends it at once; JAX then ends the others, at once if it was the first, or when a heartbeat is missed.
"""

import difflib
import errno
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from dsb_jax import command_line, validation
from dsb_jax.evaluation import compare
from dsb_jax.training import config_names, methods, processes
from dsb_jax.training.config import NEUTRAL, base_config, check_setting
from dsb_jax.training.loop import train
from dsb_jax.training.termination import Terminated

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Path of a config file or name of a config of the package, with settings behind a colon: configs/x.py:key=value,… "
    "or digits_lt:key=value,…",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to write; runs/<config>/<method>-seed<k> by default.")
_RESUME = flags.DEFINE_string(
    "resume",
    "auto",
    "What to do with a run in the workdir: auto goes on with it if its config is this one, force goes on whatever its "
    "config was, never moves it aside and begins anew.",
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    "auto",
    processes.CLUSTERS,
    "Who says which processes train together: auto looks for JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
    "JAX_PROCESS_ID, for a Slurm step of several tasks and for a TPU slice of several hosts on GKE; tpu is for pods of "
    "Cloud TPU VMs; none is for one process.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where no cluster says it.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, where no cluster says it.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0, where no cluster says it.")
_COMPARE = flags.DEFINE_bool(
    "compare", False, "Train nothing; write comparison.html, here or in --workdir, about the workdirs that follow."
)


class _FileOrName(flags.ArgumentParser[ConfigDict]):
    """Gives a parser of files the file of a config that is named."""

    def __init__(self, files):
        self._files = files

    def parse(self, argument):
        try:
            file = config_names.located(argument)
        except ValueError as error:  # in front of which absl would put the flag
            raise flags.Error(str(error)) from error
        return self._files.parse(file)

    def flag_type(self):
        return self._files.flag_type()


flags.FLAGS["config"].parser = _FileOrName(flags.FLAGS["config"].parser)


class _Lines(logging.StreamHandler[TextIO]):
    """What a run says; who does not read it, as ``head`` after its lines, does not stop it."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(error := sys.exc_info()[1], OSError):
            _go_on_without_stdout(error)
        else:
            super().handleError(record)


def _go_on_without_stdout(error: OSError) -> None:
    command_line.discard_stdout()
    print(f"stdout: {error.strerror}; the run goes on without it", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Runs one config or compares runs; what a user did wrong becomes one line and exit status 1, not a traceback."""
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        handlers=[_Lines(sys.stdout)],
        force=True,
    )
    logging.getLogger("dsb_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)  # of what TFDS and Grain report, the warnings
    try:
        if _COMPARE.value:
            _compare(arguments[1:])
        else:
            _train(arguments[1:])
    except (ValueError, FloatingPointError, OSError) as error:
        _exit(f"error: {_one_line(error)}", 1)
    except Terminated as end:
        print(end, file=sys.stderr)
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except jax.errors.JaxRuntimeError as error:
        if _is_out_of_memory(error):
            _exit(f"error: {_what_did_not_fit(error)}", 1)
        if jax.process_count() == 1:
            raise
        _exit(f"error: process {jax.process_index()} lost the others: {_one_line(error)}", 1)
    except Exception:  # a mistake of ours: the others must not wait for what does not come
        if jax.process_count() == 1:
            raise
        _exit(traceback.format_exc(), 1)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def _what_did_not_fit(error: BaseException) -> str:
    """XLA's report is some hundred lines, of which the first says how much was wanted."""
    wanted = re.search(r"allocat\w+ ([\d.]+)\s?(\w+)", str(error))
    amount = ""
    if wanted:
        number, unit = wanted.groups()
        amount = f" of {float(number) / 1e9:,.1f} GB" if unit == "bytes" else f" of {number} {unit}"
    return (
        f"the run does not fit into the device's memory: an allocation{amount} failed; try a smaller batch_size, or "
        "accumulate=2 or more to pass a batch in parts, or devices with more memory or more of them"
    )


def _exit(message, code):
    """Ends this process; one of several at once, for the others would not come to the meeting at a usual end."""
    print(message, file=sys.stderr, flush=True)
    if jax.process_count() == 1:
        sys.exit(code)
    sys.stdout.flush()
    os._exit(code)


def _train(arguments):
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; settings are --config.key=value")
    if _CONFIG.value is None:
        raise ValueError("--config is missing; for example --config=digits_lt")
    config = _CONFIG.value
    workdir = _WORKDIR.value or _default_workdir(config)
    if config.deterministic:  # read when JAX makes its first computation, which is still to come
        deterministic = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {deterministic}"
    processes.join(_CLUSTER.value, coordinator=_COORDINATOR.value, processes=_PROCESSES.value, process=_PROCESS.value)
    if processes.is_first():
        try:
            print(f"workdir: {workdir}", flush=True)
        except OSError as error:
            _go_on_without_stdout(error)
    else:
        logging.getLogger("dsb_jax").setLevel(logging.WARNING)
    train(config, workdir, resume=_RESUME.value)


def _compare(workdirs):
    given = [name for name in ("config", "resume") if flags.FLAGS[name].present]
    if given:
        raise ValueError(f"--compare takes runs that are finished, and no --{given[0]}")
    if len(workdirs) < 2:
        raise ValueError(f"--compare needs the workdirs of two runs or more, got {len(workdirs)}")
    folder = pathlib.Path(_WORKDIR.value or ".")
    print(f"comparison: {compare.write(workdirs, folder / 'comparison.html', without_effect=NEUTRAL)}")


def _default_workdir(config: ConfigDict) -> pathlib.Path:
    file, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    rehearsal = "-rehearsal" if config.data == "synthetic" else ""
    return (
        pathlib.Path("runs") / pathlib.Path(file).stem / f"{methods.name(config).lower()}-seed{config.seed}{rehearsal}"
    )


def _parse(arguments: Sequence[str]) -> Sequence[str]:
    """Flags, with a bad config or override as one line."""
    try:
        for argument in arguments:
            if override := re.match(r"--?(?:no)?config\.([^=]*)", argument):
                check_setting(base_config(), override[1])
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {_of_flag(error)}")
    except Exception as error:  # a config file is a program, and may raise anything
        sys.exit(f"error: {_one_line(error)}")


_OWN_FLAGS = ("cluster", "compare", "config", "coordinator", "process", "processes", "resume", "workdir")


def _of_flag(error: flags.Error) -> str:
    """What absl says of a flag, as other errors are said."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return str(validation.unknown_name("flag", f"--{error.flagname}", [f"--{name}" for name in _OWN_FLAGS]))
    text = str(error)
    if missing := re.search(r"Missing value for flag (\S+)", text):
        return f"{missing[1]} needs a value, got none"
    if not (illegal := re.search(r"flag --([^=\s]+)=(.*?): (.*)", text, re.DOTALL)):
        return _one_line(error)
    name, value, reason = illegal.groups()
    if name == "config" and isinstance(error.__context__, TypeError):
        return f"{_place(error.__context__)}: TypeError: {_one_line(error)}"
    if name.startswith("config."):
        wanted = base_config()
        for part in name.split(".")[1:]:
            wanted = getattr(wanted, part)
        return f"{name.removeprefix('config.')} must be of type {type(wanted).__name__}, got {value!r}"
    if choices := re.search(r"one of <(.*)>", reason):
        return str(validation.unknown_name(f"--{name}", value, choices[1].split("|")))
    return f"--{name} must be an integer, got {value!r}" if "int()" in reason else _one_line(error)


def _one_line(error: BaseException) -> str:
    """What is wrong: config_flags puts a traceback, or an error as text, in front of it."""
    if isinstance(error, OSError) and error.filename is not None:
        room = "; make room, and the same command goes on" if error.errno == errno.ENOSPC else ""
        return f"{error.filename}: {error.strerror}{room}"
    text = str(error) or type(error).__name__
    missing = re.search(r"Failed loading config file.*No such file or directory: '(.+)'", text, re.DOTALL)
    if missing:
        path = pathlib.Path(missing[1])
        others = [*path.parent.glob("*.py")] or [*pathlib.Path("configs").glob("*.py")]
        names = config_names.names()
        if not others or (path.stem in names and path.stem not in {other.stem for other in others}):
            nearest = [*difflib.get_close_matches(path.stem, names, n=1), "digits_lt"][0]
            return (
                f"there is no config file {str(path)!r} in {pathlib.Path.cwd()}; a config of the package goes by its "
                f"name alone, such as --config={nearest}"
            )
        return str(validation.unknown_name("config file", str(path), map(str, others)))
    if not isinstance(error, ValueError | OSError | ArithmeticError | flags.Error):  # a mistake in the config file
        text = f"{_place(error)}: {type(error).__name__}: {text}"
    return re.sub(r"^\w+Error: ", "", text.strip().splitlines()[-1].strip())


def _place(error: BaseException | None) -> str:
    """The line of the config file that raised it, or that called what did."""
    while error is not None:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen")]
        loaded = [number for number, each in enumerate(frames) if each.filename == config_flags.config_flags.__file__]
        called = frames[loaded[-1] + 1 :] if loaded else []
        lines = [each.lineno for each in called if each.filename == called[0].filename]
        if lines:
            return f"{called[0].filename}, line {lines[-1]}"
        error = error.__context__  # config_flags and absl raise others in its place
    return "config file"  # it cannot be parsed, and the error says where


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
