"""Starts one run as several processes of this machine, as a cluster does on many.

  python launch/local.py --processes=2 --devices=4 -- python -m dsb_jax.main --config=configs/digits_lt.py

Every process is told by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID who it is, and by
JAX_NUM_CPU_DEVICES how many devices its CPU is to have; set JAX_PLATFORMS=cpu where there are GPUs that should be left
alone. Lines of the first process are passed on as they are, those of process i behind ``[i]``.

SIGTERM and Ctrl-C go on to all processes as SIGTERM. When one fails, the others have ``--grace`` seconds to end by
themselves, then as many after SIGTERM, then they are killed. Exit codes: 0 if all ended with 0, else that of the
process that failed first, 128 + n if signal n ended it; 2 for arguments that do not fit.
"""

import argparse
import contextlib
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

_EXAMPLE = "python launch/local.py --processes=2 -- python -m dsb_jax.main --config=configs/digits_lt.py"
_TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Ended(NamedTuple):
    """Process ``index`` is over; ``code`` is as shells count."""

    index: int
    code: int


class _Told:
    """The launcher got a signal, or nobody reads what it passes on."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command behind ``--`` so many times, and gives the exit code."""
    options, command = _parse(arguments)
    events: queue.SimpleQueue[_Ended | _Told] = queue.SimpleQueue()  # fit for signal handlers
    for number in _TOLD_TO_END:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: events.put(_Told()))
    children, threads = [], []
    try:
        for environment in _environments(options.processes, options.devices):
            children.append(_start(command, environment))
            threads += _threads(len(children) - 1, children[-1], events)
        return _supervise(children, events, options.grace)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        _kill_sessions(children)
        for thread in threads:
            thread.join()


def _parse(arguments):
    arguments = list(arguments)
    divide = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:divide], arguments[divide + 1 :]
    parser = _parser(argparse.ArgumentParser)
    if not command and not {"-h", "--help"} & set(own):  # what stands before it may be the command
        _refuse(f"COMMAND is missing behind --, as in {_EXAMPLE}")
    parser.error = lambda _: _explain(own)
    options = parser.parse_args(own)
    for name in ("processes", "devices"):
        if (value := getattr(options, name)) is not None and value < 1:
            _refuse(f"--{name} must be an integer >= 1, got {value}")
    if not 0 <= options.grace < math.inf:
        _refuse(f"--grace must be a finite number >= 0, got {options.grace:g}")
    return options, command


def _parser(kind):
    usage = "python launch/local.py --processes=N [--devices=N] [--grace=SECONDS] -- COMMAND …"
    parser = kind(prog="python launch/local.py", usage=usage, allow_abbrev=False)
    parser.add_argument("--processes", type=int, metavar="N", required=True, help="how many")
    parser.add_argument("--devices", type=int, metavar="N", help="CPU devices of each process; JAX's default is 1")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that the others have when one fails")
    return parser


def _explain(own):
    """Says what is wrong with the arguments as the other commands do: with JAX, which the launcher does without."""
    from dsb_jax import command_line

    _parser(command_line.Parser).parse_args(own)


def _refuse(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _environments(processes, devices):
    """What each process is to find."""
    with socket.socket() as probe:  # free now; nothing reserves it until the first process listens
        probe.bind(("", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    # XLA takes a thread for each device, and waits for ever for those that the machine has no core for.
    shared = {"NPROC": "16"} | os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    if devices is not None:
        shared["JAX_NUM_CPU_DEVICES"] = str(devices)
    for index in range(processes):
        yield shared | {"JAX_PROCESS_ID": str(index)}


def _start(command, environment):
    """In a session of its own, so that a terminal's Ctrl-C comes through the launcher alone."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _threads(index, child, events):
    """They pass on what the process writes, and say when it ends."""
    prefix = f"[{index}] ".encode() if index else b""
    streams = ((child.stdout, sys.stdout.buffer), (child.stderr, sys.stderr.buffer))
    threads = [threading.Thread(target=_pass_on, args=(source, sink, prefix, events)) for source, sink in streams]
    threads.append(threading.Thread(target=_announce_end, args=(index, child, events)))
    for thread in threads:
        thread.start()
    return threads


def _pass_on(source: IO[bytes], sink: IO[bytes], prefix: bytes, events: queue.SimpleQueue) -> None:
    with source:
        try:
            for line in source:
                sink.write(prefix + line.removesuffix(b"\n") + b"\n")  # in one piece, between those of others
                sink.flush()
        except OSError as error:  # of ``… | head``, or a full disk: a run that nobody can follow ends as if told to
            events.put(_Told())
            if not isinstance(error, BrokenPipeError) and sink is sys.stdout.buffer:
                print(f"error: stdout: {error.strerror}", file=sys.stderr, flush=True)
            source.read()  # it may write while it saves


def _announce_end(index, child, events):
    code = child.wait()
    events.put(_Ended(index, code if code >= 0 else 128 - code))


def _supervise(children, events, grace):
    """Waits for all; whoever is still there too long after a failure is told to end, and then made to."""
    running, failure, deadline = dict(enumerate(children)), 0, None
    harder = iter((signal.SIGTERM, signal.SIGKILL))
    while running:
        if deadline is not None and time.monotonic() >= deadline:
            number = next(harder)
            deadline = time.monotonic() + grace if number == signal.SIGTERM else None
            _send(number, running.values())
        event = _next(events)
        if isinstance(event, _Told):
            _send(signal.SIGTERM, running.values())
        if isinstance(event, _Ended):
            del running[event.index]
            if event.code and not failure:
                failure, deadline = event.code, time.monotonic() + grace
                _report(event, len(running), grace)
    return failure


def _next(events):
    """Python runs no signal handler during a wait that the signal has just come before: no wait is long."""
    try:
        return events.get(timeout=0.1)
    except queue.Empty:
        return None


def _report(ended, others, grace):
    rest = f"; {others} more have {grace:g} s to end" if others else ""
    print(f"process {ended.index} ended with {ended.code}{rest}", file=sys.stderr, flush=True)


def _send(number, children):
    """To the processes alone: a compiler that one of them has started is not to fail before its parent can save."""
    for child in children:
        child.send_signal(number)


def _kill_sessions(children):
    """What processes have left behind would hold the pipes open."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
