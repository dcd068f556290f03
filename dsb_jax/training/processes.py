"""Several processes that train one model: how they find each other, and how they stay of one mind.

All of them run the same program on the same numbers, so nearly everything is decided alike without a word. What only
the first one sees, the files of a run, is decided by it and told to the others; and what may fail in one of them alone
fails in all, so that none waits for ever for another that has left.
"""

import os
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsb_jax import validation

T = TypeVar("T")

CLUSTERS = ("auto", "none", "slurm", "tpu", "k8s", "ompi")

_GIVEN = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"


def join(
    cluster: str = "auto", *, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of several, before JAX is used for anything else; does nothing where it is alone.

    Args:
      cluster: who says which processes there are. ``"auto"``: the environment variables ``JAX_COORDINATOR_ADDRESS``,
        ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; or Slurm, in a step of several tasks; or a TPU slice of several
        hosts on GKE. A name asks that cluster, ``"tpu"`` also on Cloud TPU VMs; ``"none"`` asks nobody.
      coordinator: ``HOST:PORT`` of the first process; with ``processes`` and ``process`` it needs no cluster.
      processes: how many there are.
      process: number of this one, from 0.

    Raises:
      ValueError: an unknown cluster, one that this process is not in, some but not all of the three numbers, or one
        out of range.
      ConnectionError: there is no first process. For any other that does not come JAX waits five minutes, and then
        aborts.
    """
    if cluster not in CLUSTERS:
        raise validation.unknown_name("cluster", cluster, CLUSTERS)
    numbers = {"coordinator": coordinator, "processes": processes, "process": process}
    if cluster == "auto" and all(value is None for value in numbers.values()):
        numbers = {name: os.environ.get(variable) for name, variable in _GIVEN.items()}
    if any(value is not None for value in numbers.values()):
        _join_given(**numbers)
    elif cluster != "none" and (cluster != "auto" or _in_cluster()):
        method = None if cluster in ("auto", "tpu") else cluster
        try:
            jax.distributed.initialize(cluster_detection_method=method)
        except (KeyError, ValueError, TypeError, RuntimeError, ImportError) as error:  # as each cluster has it
            raise ValueError(f"cluster={cluster} does not say which processes there are ({error!r})") from error


def _join_given(**numbers):
    if lacking := [name for name, value in numbers.items() if value is None]:
        raise ValueError(f"coordinator, processes and process belong together: {lacking[0]} is missing")
    coordinator, processes, process = numbers.values()
    processes, process = int(processes), int(process)
    if processes < 1:
        raise ValueError(f"processes must be an integer >= 1, got {processes}")
    if not 0 <= process < processes:
        raise ValueError(f"process must lie in [0, {processes}), the number of processes, got {process}")
    if not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator must be HOST:PORT, got {coordinator!r}")
    if processes == 1:
        return
    if process > 0:
        _require_first(coordinator)
    try:
        jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")
    except jax.errors.JaxRuntimeError as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"the processes cannot meet at coordinator={coordinator}: {first_line}") from error


def _require_first(coordinator: str, *, seconds: float = 300.0) -> None:
    """Returns when somebody listens where the first process should: JAX would abort if nobody ever did."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"nobody listens at coordinator={coordinator}: {error}") from error
        time.sleep(0.2)


def _in_cluster() -> bool:
    in_step = "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ
    return (in_step and int(os.environ.get("SLURM_NTASKS", 1)) > 1) or "," in os.environ.get(_TPU_HOSTS, "")


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0


def of_first(decide: Callable[[], T]) -> T:
    """What ``decide()`` gives in the first process, in all of them; what it raises there is raised in all.

    Example:
      >>> of_first(lambda: 2)
      2
    """
    if jax.process_count() == 1:
        return decide()
    outcome = _outcome(decide) if is_first() else None
    result, error = _gathered(outcome)[0]
    if error is not None:
        raise error
    return result


def everywhere(do: Callable[[], T]) -> T:
    """``do()`` in every process; what it raises in one of them, the first of those, is raised in all.

    Example:
      >>> everywhere(lambda: 2)
      2
    """
    if jax.process_count() == 1:
        return do()
    result, error = _outcome(do)
    for process, failure in enumerate(_gathered(error)):
        if failure is not None:
            raise error if process == jax.process_index() else failure  # its own has a traceback
    return result


def require_same(what: str, value: str) -> None:
    """Raises ValueError in all processes unless they have the same value: a run of two minds would train on nonsense.

    Example:
      >>> require_same("seed", "0")
    """
    if jax.process_count() == 1:
        return
    values = _gathered(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"processes must have the same {what}: process 0 has {values[0]}, process {process} {other}"
            )


def _outcome(function):
    try:
        return function(), None
    except Exception as error:
        return None, error


def _gathered(item: Any) -> list[Any]:
    """What each process has, in their order."""
    content = np.frombuffer(_pickled(item), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([content.size], np.int32)).ravel()
    padded = np.pad(content, (0, int(sizes.max()) - content.size))
    rows = multihost_utils.process_allgather(padded[None]).reshape(len(sizes), -1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _pickled(item):
    try:
        content = pickle.dumps(item)
        pickle.loads(content)  # some exceptions can be written, but not read
        return content
    except Exception:
        error = item[1] if isinstance(item, tuple) else item
        assert isinstance(error, Exception), "what processes tell each other can be pickled"
        told = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps((None, told) if isinstance(item, tuple) else told)
