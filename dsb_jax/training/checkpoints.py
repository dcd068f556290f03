"""What a stopped run goes on from: its state and its clock on disk, whole or not there at all.

A checkpoint is a folder. It is written under another name and renamed when all of it is on the disk, so that a run
killed at any moment leaves the checkpoints that were finished before, and no half of one::

    checkpoints/
      120/state/…           the arrays, as Orbax writes them
      120/checkpoint.json   step, clock, score; path, shape and dtype of every array
      120/SHA256SUMS        of the files above, as ``sha256sum -c`` reads it
      corrupt-90-1/         one that failed its check: set aside, never deleted

Orbax neither notices a flipped bit nor falls back to an older checkpoint: both are done here, as is what to keep.

Of several processes each writes and reads its own part of the arrays, and all see the same folder. The first one does
everything else, and what it finds decides for all.
"""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from dsb_jax import validation
from dsb_jax.training import processes

_logger = logging.getLogger(__name__)

_STATE, _RECORD, _SUMS = "state", "checkpoint.json", "SHA256SUMS"
_NAME = re.compile(r"\d+(\.\d+)?")  # a step; a number behind the dot: saved again
_PARTIAL = "partial"  # what is being written, or deleted
# What says nothing about a checkpoint: a server that is away, a right that is lacking, a limit that is reached.
_NOT_THE_FILES = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT),
)


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` found.

    Attributes:
      step: updates before it was saved.
      state: a pytree like the one that was asked for.
      clock: as it was saved.
    """

    step: int
    state: Any
    clock: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, which nobody else writes meanwhile. Closed when left as a context.

    All processes of a run call the same methods in the same order.

    Args:
      folder: made at the first save.
      keep: how many of the latest stay; the one with the best score stays besides.

    Raises:
      ValueError: if ``keep`` is not a positive integer.

    Example:
      >>> state = {"params": jnp.arange(3.0), "key": jax.random.key(0)}
      >>> with Checkpoints("checkpoints", keep=1) as checkpoints:
      ...     checkpoints.save(10, state, {"evaluated": 1}, score=0.75)
      ...     checkpoints.save(20, state, {"evaluated": 2}, score=0.5)
      >>> with Checkpoints("checkpoints") as checkpoints:
      ...     checkpoints.steps(), checkpoints.restore(state).clock
      ([10, 20], {'evaluated': 2})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        self.folder = pathlib.Path(folder).absolute()
        self._keep = validation.positive_int("keep", keep)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            _logger.warning("%s", failure)  # the error that ends the run is the one to show

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in order."""
        return sorted({_step(path) for path in self._saved()})

    def save(self, step: int, state: Any, clock: dict[str, Any], *, score: float | None = None) -> None:
        """Saves in the background, in place of what is there of this step; ``state`` may be donated at once.

        Args:
          step: updates so far.
          state: a pytree of arrays, on one device or several.
          clock: what else the run needs to go on; JSON.
          score: higher is better, of equal ones the later. NaN is never the best; None leaves the step the score that
            it has, if any.

        Raises:
          OSError: if the save before could not be written; the checkpoints before it are whole.
        """
        self.wait()
        if score is None:
            score = {_step(path): score for path, score in self._scores().items()}.get(step)
        named = _by_path(state)
        record = {
            "step": step,
            "score": float(score) if score is not None and math.isfinite(score) else None,
            "clock": clock,
            "arrays": _describe(named),
        }
        arrays = {path: _plain(leaf) for path, leaf in named.items()}
        # A copy on the devices: the step that comes next may write over the state before it is on the disk.
        copies = jax.device_put(arrays, jax.tree.map(_sharding, arrays), may_alias=False)
        self._writing = self._writer.submit(self._write, step, copies, json.dumps(record, indent=2))

    def restore(self, like: Any) -> Restored | None:
        """The latest checkpoint that is whole, or None where none was ever saved.

        One that is damaged is set aside and named in a warning, and the one before is taken.

        Args:
          like: a state of the same kind, or its shapes and dtypes; arrays come back with its shardings, ready to be
            donated.

        Raises:
          ValueError: if a checkpoint is whole but its arrays are not those of ``like``, or if all are damaged.
          OSError: if the save before could not be written, or what is there cannot be read now for a reason that is not
            the files'.
        """
        self.wait()
        while (path := processes.of_first(self._latest)) is not None:
            try:
                return _load(path, like)
            except (_OtherState, _NotShared, MemoryError, jax.errors.JaxRuntimeError):
                raise  # not the fault of the files
            except Exception as error:  # there is no saying what Orbax raises
                if isinstance(error, OSError) and error.errno in _NOT_THE_FILES:
                    raise OSError(error.errno, f"cannot be read now: {error.strerror}", str(path)) from error
                processes.of_first(functools.partial(self._set_aside, path, error))
        damaged = processes.of_first(lambda: sorted(path.name for path in self.folder.glob("corrupt-*")))
        if damaged:
            raise ValueError(
                f"{self.folder} has no checkpoint that is whole, only {', '.join(damaged)}; put a good copy of one "
                "there, named by its step, or begin anew with --resume=never"
            )
        return None

    def wait(self) -> None:
        """Returns when what was saved is on the disk; raises what went wrong, as ``save`` does."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raises what went wrong with a save, if that is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          OSError: if it could not be written.
        """
        self._writer.shutdown()
        self.wait()

    def _write(self, step, arrays, record):
        partial = self.folder / _PARTIAL
        # Orbax refuses arrays without elements; their shape says all.
        full = {path: array for path, array in arrays.items() if array.size}
        try:
            if processes.is_first():
                _remove(partial)  # a run may have been killed here
                partial.mkdir(parents=True)
                _require_room(partial, full)
            with _orbax() as checkpointer:  # which waits for all processes before it writes, and when all have
                checkpointer.save(partial / _STATE, args=ocp.args.StandardSave(full))
            if processes.is_first():
                (partial / _RECORD).write_text(record + "\n")
                (partial / _SUMS).write_text(_sums(partial))
                _sync(partial, *partial.rglob("*"))
                partial.rename(self._unused(step))
                _sync(self.folder)
        except Exception as error:
            with contextlib.suppress(OSError):
                _remove(partial)
            raise _save_error(error, step, self.folder) from error
        if processes.is_first():
            self._remove_old()

    def _latest(self):
        saved = self._saved()
        return saved[-1] if saved else None

    def _saved(self):
        """Folders of checkpoints in order; ``120.1`` takes the place of ``120``."""
        if not self.folder.exists():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_order)

    def _unused(self, step):
        before = [path for path in self._saved() if _step(path) == step]
        return self.folder / (f"{step}.{_order(before[-1])[1] + 1}" if before else str(step))

    def _scores(self):
        """Of the checkpoints whose record can be read."""
        scores = {}
        for path in self._saved():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                scores[path] = json.loads((path / _RECORD).read_text())["score"]
        return scores

    def _remove_old(self):
        """Leaves the latest, the best, and any whose record cannot be read."""
        scores = self._scores()
        last = {_step(path): path for path in self._saved()}  # of each step
        scored = [(scores[path], step) for step, path in last.items() if scores.get(path) is not None]
        _, best = max(scored, default=(None, None))
        kept = {last[step] for step in last if step == best or step in self.steps()[-self._keep :]}
        for path in scores.keys() - kept:
            # Renamed first: what has a step's name is whole.
            _remove(path.rename(self.folder / _PARTIAL))

    def _set_aside(self, path, error):
        number = 1
        while (aside := self.folder / f"corrupt-{_step(path)}-{number}").exists():
            number += 1
        path.rename(aside)
        before = self.steps()
        then = f"step {before[-1]} is taken" if before else "there is none before it"
        reason = _first_line(error)
        _logger.warning("checkpoint %s is damaged (%s): set aside as %s, %s", path, reason, aside.name, then)


class Saved(NamedTuple):
    """A checkpoint of a folder, as :func:`find` finds it.

    Attributes:
      folder: its own.
      step: updates before it was saved.
      arrays: dtype and shape of each array as text, by path.
    """

    folder: pathlib.Path
    step: int
    arrays: dict[str, str]


def find(folder: str | os.PathLike[str], step: int | None = None, *, setting: str) -> Saved:
    """A checkpoint of another run, of which nothing is changed and which must be whole.

    Args:
      folder: the run's ``checkpoints``.
      step: updates before it was saved; None for the latest.
      setting: which names the run, for the error.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    folder = pathlib.Path(folder).absolute()
    with Checkpoints(folder) as checkpoints:
        paths = {_step(path): path for path in checkpoints._saved()}  # of each step the last
    if step is None and not paths:
        raise ValueError(f"{setting} must be the workdir of a run with a checkpoint: there is none in {folder}")
    step = max(paths) if step is None else step
    if step not in paths:
        kept = ", ".join(map(str, paths)) or "none"
        raise ValueError(f"{setting} has no checkpoint of step {step} in {folder}, of steps there are {kept}")
    path = paths[step]
    try:
        record = _checked_record(path)
    except ValueError as error:
        raise ValueError(f"{setting}: the checkpoint {path} is damaged ({error})") from error
    shapes = {name: f"{array['dtype']}{array['shape']}" for name, array in record["arrays"].items()}
    return Saved(path, record["step"], shapes)


def read(
    saved: Saved, wanted: dict[str, jax.ShapeDtypeStruct], sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.Array]:
    """Some arrays of a checkpoint, by path.

    Args:
      saved: as :func:`find` finds it.
      wanted: shapes by path, which are those that were saved.
      sharding: of all of them; one device by default.
    """
    if not wanted:
        return {}
    sharding = sharding or _one_device()
    wanted = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for path, leaf in wanted.items()}
    processes.everywhere(lambda: _require_shared(saved.folder))
    return processes.everywhere(lambda: _read(saved.folder, wanted, partial=True))


class _OtherState(ValueError):
    """The checkpoint is whole, but of a state with other arrays."""


class _NotShared(ValueError):
    """The checkpoint is there for some processes only."""


@contextlib.contextmanager
def _orbax(kind=ocp.StandardCheckpointHandler):
    """Orbax without its log: what goes wrong comes as an exception, and once."""

    def of_others(record):
        return "orbax" not in record.pathname

    log = logging.getLogger("absl")
    log.addFilter(of_others)
    # Told which processes there are, Orbax lets them meet without their devices, which are busy with training.
    together = ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())), barrier_sync_key_prefix="dsb_jax"
    )
    handler = kind(multiprocessing_options=together)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=together) as checkpointer:
            yield checkpointer
    finally:
        log.removeFilter(of_others)


def _by_path(tree):
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two arrays of the state have the same path"
    return named


def _order(path):
    step, _, again = path.name.partition(".")
    return int(step), int(again or 0)


def _step(path):
    return _order(path)[0]


def _load(folder, like):
    named = _by_path(like)
    record = processes.of_first(lambda: _checked_record(folder))
    _refuse_others(folder, record["arrays"], _describe(named))
    wanted = {path: _plain_shape(leaf) for path, leaf in named.items()}
    processes.everywhere(lambda: _require_shared(folder))  # in Orbax the others would wait for one that gives up
    arrays = processes.everywhere(lambda: _read(folder, {path: leaf for path, leaf in wanted.items() if leaf.size}))
    for path in wanted.keys() - arrays.keys():
        arrays[path] = jnp.zeros(wanted[path].shape, wanted[path].dtype)
    # Memory that Orbax got from elsewhere is copied whenever it is donated; memory of JAX's own is used again. One by
    # one: two states may not fit.
    leaves = []
    for path, leaf in named.items():
        read = arrays.pop(path)
        copy = jax.block_until_ready(jax.device_put(read, wanted[path].sharding, may_alias=False))
        read.delete()
        leaves.append(_like(copy, leaf))
    return Restored(record["step"], jax.tree.unflatten(jax.tree.structure(like), leaves), record["clock"])


def _checked_record(folder):
    _verify(folder)
    record = json.loads((folder / _RECORD).read_text())
    if record["step"] != _step(folder):
        raise ValueError(f"it is of step {record['step']}")
    return record


def _require_shared(folder):
    if not folder.exists():
        raise _NotShared(f"process {jax.process_index()} does not see {folder}: a workdir must be where all see it")


def _read(folder, wanted, *, partial=False):
    if not partial:
        with _orbax() as checkpointer:
            return checkpointer.restore(folder / _STATE, args=ocp.args.StandardRestore(wanted))
    with _orbax(ocp.PyTreeCheckpointHandler) as checkpointer:
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        arguments = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
        return checkpointer.restore(folder / _STATE, args=arguments)


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    """An array as it is stored: random keys are numbers there, which Orbax writes from several processes too."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _plain_shape(leaf):
    plain = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=_sharding(leaf))


def _like(array, leaf):
    return (
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.zeros(0, leaf.dtype))) if _is_key(leaf) else array
    )


def _describe(arrays):
    return {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in arrays.items()}


def _one_device():
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _sharding(leaf):
    return getattr(leaf, "sharding", None) or _one_device()


def _refuse_others(folder, saved, wanted, *, shown=3):
    def text(array):
        return f"{array['dtype']}{array['shape']}" if array else "none"

    paths = [path for path in sorted(saved | wanted) if saved.get(path) != wanted.get(path)]
    if paths:
        changes = [f"{path}: {text(saved.get(path))} -> {text(wanted.get(path))}" for path in paths[:shown]]
        more = [f"and {len(paths) - shown} more"] if len(paths) > shown else []
        raise _OtherState(f"{folder} is of another model or optimizer ({', '.join(changes + more)})")


def _sums(folder):
    """A line ``<digest>  <path>`` for every file but the one that holds these lines."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SUMS):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _verify(folder):
    """Raises ValueError or OSError unless the files are, to the bit, those that were saved."""
    recorded, found = (folder / _SUMS).read_bytes().decode(errors="replace"), _sums(folder)
    if recorded == found:
        return
    if not re.fullmatch(r"([0-9a-f]{64}  [^\n]+\n)+", recorded):
        raise ValueError(f"{_SUMS} is not a list of sums")
    recorded, found = ({line[66:]: line[:64] for line in sums.splitlines()} for sums in (recorded, found))
    for path in sorted(recorded | found):
        if path not in found:
            raise ValueError(f"{path!r} is missing")
        if path not in recorded:
            raise ValueError(f"{path!r} is not in {_SUMS}")
        if recorded[path] != found[path]:
            raise ValueError(f"{path!r} has the SHA-256 {found[path]}, not {recorded[path]}")
    raise ValueError(f"{_SUMS} is not as it was written")


def _remove(folder):
    if folder.exists():
        shutil.rmtree(folder)


def _require_room(folder, arrays, *, margin=2**20):
    """Asks before writing: TensorStore meets a full disk with a page of tracebacks from its own threads."""
    if shutil.disk_usage(folder).free < sum(array.nbytes for array in arrays.values()) + margin:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync(*paths):
    """Returns when the files and the entries of the folders are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _save_error(error, step, folder):
    """One line that names the folder; TensorStore has the errno in its text, and no OSError."""
    number, found = getattr(error, "errno", None), re.search(r"os_error_code='(\d+)'", str(error))
    number = int(found[1]) if found else number
    reason = os.strerror(number) if number else _first_line(error)
    return OSError(number or errno.EIO, f"the checkpoint of step {step} was not saved: {reason}", str(folder))


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
