"""What a run leaves behind: a folder that one run at a time writes to, and the files in it.

``config.json``, ``dataset.json``, ``environment.json``, ``train_indices.npy``, ``metrics.jsonl`` and, of a run that is
finished, ``results.json``. Every file but ``metrics.jsonl`` is replaced at once or not at all.
"""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import io
import itertools
import json
import logging
import math
import os
import pathlib
import platform
import re
import reprlib
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax import validation

_logger = logging.getLogger(__name__)

_RESUME = ("auto", "force", "never")
_shown = reprlib.Repr()  # the settings of stages, in words, are long
_shown.maxstring = 100
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Workdir:
    """The folder of one run; entered as a context, it is locked, and from ``begin`` on it is written to.

    Args:
      path: made if it is not there.
      config: what the run is.
      resume: what becomes of a run that the folder holds. ``"auto"`` goes on with one of the same config on the same
        dataset and refuses another, ``"force"`` goes on with either, and ``"never"`` moves all that is there to
        ``previous-<n>``.
      neutral: names of settings that change no result; they may differ.
      defaults: settings and their defaults, which those have that a run of an earlier version did not know.

    Raises:
      ValueError: if ``path`` cannot be a folder, ``resume`` is unknown, or the folder holds another run; the message
        has the settings that differ. Entering it raises the same, and also if another process is at it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: ConfigDict,
        *,
        resume: str = "auto",
        neutral: Collection[str] = (),
        defaults: ConfigDict | None = None,
    ) -> None:
        if resume not in _RESUME:
            raise validation.unknown_name("resume", resume, _RESUME)
        self.path = pathlib.Path(path)
        self._settings = _finite(config.to_dict())
        self._resume, self._neutral = resume, frozenset(neutral)
        self._defaults = flatten_dict(_finite(defaults.to_dict()), sep=".") if defaults is not None else {}
        self._dataset: dict[str, Any] | None = None  # not known yet
        self.lines = 0  # of metrics.jsonl since it was cut back
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"workdir {str(path)!r} is not a folder")
        # All of this now, before anything slow is done; and again when entered, for another run may begin in between.
        self._require_access()
        self._superseded = resume == "never" or bool(self._changes())

    def __enter__(self) -> "Workdir":
        with contextlib.ExitStack() as stack:
            with _naming(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(self.path))
            self._changes()
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._opened.close()

    def require_dataset(self, dataset: dict[str, Any]) -> None:
        """Has the run go on with this dataset alone; a run that says nothing of its dataset, as older ones, goes on.

        Args:
          dataset: its ``name``, and of its ``splits`` by name the ``digest`` and what it ``is`` in words.

        Raises:
          ValueError: with ``resume="auto"`` if the folder's run is on another one, and so from now on do entering and
            beginning.
        """
        self._dataset = dataset
        self._changes()

    def begin(self) -> None:
        """Makes the folder this run's, as ``resume`` says: until now it can still be left as it was."""
        with _naming(self.path):
            self._supersede()
        self.write_json("config.json", self._settings)
        if self._dataset is not None:
            self.write_json("dataset.json", self._dataset)
        self._open_metrics()
        self._opened.callback(self._close_metrics)

    @property
    def results(self) -> dict[str, Any] | None:
        """What a finished run left, or None; what ``resume`` leaves behind is not this run's."""
        return None if self._superseded else self._read_json("results.json")

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file at once or not at all. NaN and infinity, which JSON has not, become null."""
        self._replace(name, (json.dumps(_finite(content), indent=2) + "\n").encode())

    def write_indices(self, indices: np.ndarray) -> None:
        """The rows of the training split that the run trains on."""
        content = io.BytesIO()
        np.save(content, indices)
        self._replace("train_indices.npy", content.getvalue())

    def write_arrays(self, name: str, /, **arrays: np.ndarray) -> None:
        """Arrays by name as a compressed ``.npz``; the same arrays make the same bytes."""
        content = io.BytesIO()
        named: dict[str, Any] = arrays
        np.savez_compressed(content, **named)
        self._replace(name, content.getvalue())

    def log(self, **metrics: Any) -> None:
        """Appends a line to metrics.jsonl."""
        with _naming(self._metrics.name):
            self._metrics.write(json.dumps(_finite(metrics)) + "\n")
            self._metrics.flush()
        self.lines += 1

    def cut_back(self, lines: int) -> None:
        """Leaves in metrics.jsonl its first ``lines`` lines, those that were there when a checkpoint was saved.

        A line that a killed process did not finish goes, too.
        """
        file = self.path / "metrics.jsonl"
        with _naming(file):
            before = file.read_bytes() if file.stat().st_size else b""
        whole = [line for line in io.BytesIO(before) if line.endswith(b"\n")]
        kept = b"".join(whole[:lines])
        self.lines = len(whole[:lines])
        if kept != before:
            self._close_metrics()
            self._replace(file.name, kept)
            self._open_metrics()

    def record_environment(self, **facts: Any) -> None:
        """Appends to environment.json what this start of the run runs on, with ``facts`` of the caller's."""
        environment = facts | {
            "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "dsb_jax": dsb_jax.__version__,
            "commit": _commit(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        }
        self.write_json("environment.json", [*(self._read_json("environment.json") or []), environment])

    def _require_access(self):
        """Raises if the folder cannot be written to, or another run is at it."""
        nearest = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not os.access(nearest, os.W_OK):
            raise PermissionError(errno.EACCES, "workdir cannot be written to", str(self.path))
        if (self.path / ".lock").exists():
            with _locked(self.path):
                pass

    def _changes(self):
        """What the folder's run has otherwise, its config or its dataset, as text; "auto" refuses it."""
        config, dataset = self._compare(), self._compare_datasets()
        if config and self._resume == "auto":
            raise ValueError(
                f"{self.path} holds a run of another config ({config}); choose another --workdir, or --resume=force "
                "to go on with these settings, or --resume=never to start anew"
            )
        if self._dataset and dataset and self._resume == "auto":
            raise ValueError(
                f"{self.path} holds a run on another {self._dataset['name']} than is here now ({dataset}; a digest is "
                "of the record files, the images of each class and those left out); choose another --workdir, or "
                "prepare the dataset as it was, or --resume=force to go on with this one, or --resume=never to start "
                "anew"
            )
        return "; ".join(
            f"another {what} ({text})" for what, text in (("config", config), ("dataset", dataset)) if text
        )

    def _compare_datasets(self):
        """Empty where that of either run is not known."""
        if self._dataset is None or not (self.path / "dataset.json").exists():
            return ""
        try:
            before = self._read_json("dataset.json")["splits"]
            differing = [
                f"{split}: {_told(before[split])} -> {_told(now)}"
                for split, now in self._dataset["splits"].items()
                if split in before and before[split]["digest"] != now["digest"]
            ]
        except (ValueError, AttributeError, KeyError, TypeError):  # no JSON, or of another form
            return "its dataset.json cannot be read"
        return ", ".join(differing)

    def _compare(self):
        if not (self.path / "config.json").exists():
            left = [name for name in ("results.json", "checkpoints") if (self.path / name).exists()]
            return f"{left[0]} without a config.json" if left else ""
        try:
            written = self._read_json("config.json")
            if not isinstance(written, dict):
                raise ValueError("no object")
        except ValueError:
            return "its config.json cannot be read"
        before, now = self._defaults | flatten_dict(written, sep="."), flatten_dict(self._settings, sep=".")
        keys = sorted((before | now).keys() - self._neutral)
        differing = [key for key in keys if before.get(key) != now.get(key)]
        return ", ".join(f"{key}: {_shown.repr(before.get(key))} -> {_shown.repr(now.get(key))}" for key in differing)

    def _supersede(self):
        """Makes room for this run as ``resume`` says; nothing is deleted."""
        if self._resume == "never":
            self._move_all_aside()
        elif changes := self._changes():
            names = ("results", "config", "dataset")
            number = _unused(lambda n: any((self.path / f"{name}.{n}.json").exists() for name in names))
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / f"{name}.json").rename(self.path / f"{name}.{number}.json")
            _logger.warning("%s goes on with %s", self.path, changes)
        self._superseded = False

    def _move_all_aside(self):
        entries = [path for path in self.path.iterdir() if not re.fullmatch(r"\.lock|previous-\d+", path.name)]
        if not entries:
            return
        number = _unused(lambda n: (self.path / f"previous-{n}").exists())
        aside = self.path / f"previous-{number}"
        aside.mkdir()
        # The config first: if this is interrupted, what is left cannot be mistaken for a run.
        for path in sorted(entries, key=lambda path: path.name != "config.json"):
            path.rename(aside / path.name)
        _logger.info("what %s held is now in %s", self.path, aside.name)

    def _read_json(self, name):
        file = self.path / name
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from None

    def _open_metrics(self):
        file = self.path / "metrics.jsonl"
        with _naming(file):
            self._metrics = file.open("a")

    def _close_metrics(self):
        with _naming(self._metrics.name):
            self._metrics.close()

    def _replace(self, name, content):
        partial = self.path / f"{name}.partial"
        with _naming(partial), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / name)


def read_mark(path: pathlib.Path) -> str:
    """What the process that has entered a workdir has left in it."""
    return (path / ".lock").read_text()


def require_seen(path: pathlib.Path, mark: str, *, seconds: float = 30.0) -> None:
    """Raises ValueError unless this process, too, sees the mark: each writes its part of a checkpoint to the folder.

    Args:
      path: the workdir.
      mark: as :func:`read_mark` gives it to the first process.
      seconds: how long a network's file system has to show it.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if read_mark(path) == mark:
                return
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see the workdir {path} of process 0: it must be on a file "
                "system that all processes share"
            )
        time.sleep(0.1)


class Elsewhere:
    """The workdir as the other processes of a run have it: the first one alone writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.lines = 0
        self.results = None

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def _nothing(self, *arguments: Any, **named: Any) -> None:
        pass

    require_dataset = begin = write_json = write_indices = write_arrays = log = cut_back = record_environment = _nothing


@contextlib.contextmanager
def _locked(folder):
    """Holds the folder for this process; the system lets go of it when the process ends, however it does."""
    file = folder / ".lock"
    with contextlib.ExitStack() as stack:
        with _naming(file):
            lock = stack.enter_context(file.open("a+"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise ValueError(
                    f"{folder} is in use by another run ({holder}); wait for it or choose another --workdir"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                _logger.warning("%s cannot be locked (%s): start no second run in it", folder, error.strerror)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
        yield


@contextlib.contextmanager
def _naming(path):
    """An error while writing, a full disk's for one, does not say by itself which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _told(split):
    return f"{split['is']}, digest {split['digest']}"


def _unused(taken):
    return next(number for number in itertools.count(1) if not taken(number))


def _commit():
    """Of the checkout that the package runs from, if it is one."""
    root = pathlib.Path(dsb_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    code = ["--untracked-files=no", "--", ".", ":(exclude)launch/results"]  # where runs write what they found

    def git(*arguments):
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", *code) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _finite(value):
    """Arrays become lists, and what JSON cannot write becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
