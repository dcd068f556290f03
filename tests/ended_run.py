"""A run that is ended at a chosen moment: ``python tests/ended_run.py WORKDIR [MOMENT [SIGNAL [PROCESS]]]``.

It sends the signal to itself when it gets to the moment, for the first time in this process. Where the environment says
that it is one of several processes, they train together, and PROCESS alone sends it, by default the first; ``all`` are
all of them.
"""

import functools
import json
import logging
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import small_run

from dsb_jax import losses, training
from dsb_jax.evaluation import report
from dsb_jax.training import checkpoints, loop, processes, program, results
from dsb_jax.training.termination import Terminated
from dsb_jax.training.workdir import Workdir

SETTINGS = {
    "start_epoch": 1,
    "log_every": 3,  # no divisor of the steps of an epoch: windows are open when a checkpoint is saved
    "eval_batch_size": 100,
    "ema_decay": 0.9,
    "flip": True,
    "crop_padding": 1,
    "image_size": 8,
    "shorter_side": 10,
    "random_crop": "resize",  # by the host, which the checkpoint knows nothing of
    "cutmix": 1.0,
    "tensorboard": False,
    "sample_space": False,
    "skip_nonfinite": True,
}


def some_batches_are_broken():
    """The losses of every batch whose labels add up to a multiple of 5 are not finite."""
    cross_entropy = losses.cross_entropy

    @functools.wraps(cross_entropy)
    def broken(logits, labels, **options):
        return cross_entropy(logits, labels, **options) + jnp.where(jnp.sum(labels) % 5 == 0, jnp.nan, 0.0)

    losses._LOSSES["cross_entropy"] = broken


def at(owner, name, end, *, call=1):
    """Ends the run when ``owner.name`` is called for the ``call``-th time."""
    original, calls = getattr(owner, name), [0]

    def ending(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            end()
        return original(*arguments, **options)

    setattr(owner, name, ending)


def torn_line(end):
    """Half of a line reaches metrics.jsonl."""
    log, calls = Workdir.log, [0]

    def tearing(self, **record):
        calls[0] += 1
        if calls[0] == 3:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 9, "epo')
            end()
        log(self, **record)

    Workdir.log = tearing


def mid_evaluation(end):
    """The first batch of an evaluation is done, the second is not."""
    test = program.Program.test

    def ending(self, state, names, check):
        calls = [0]

        def counted():
            calls[0] += 1
            if calls[0] == 2:
                end()
            check()

        return test(self, state, names, counted)

    program.Program.test = ending


MOMENTS = {
    "compile": lambda end: at(program, "make_eval_step", end),
    "first step": lambda end: at(loop._Run, "_record", end),
    "mid-epoch": lambda end: at(loop._Run, "_record", end, call=5),
    "line": torn_line,
    "evaluation": mid_evaluation,
    "mid-save": lambda end: at(checkpoints, "_sync", end, call=3),
    "writing": lambda end: at(checkpoints.ocp.Checkpointer, "save", end),
    "written": lambda end: at(checkpoints.ocp.StandardCheckpointHandler, "finalize", end),
    "before save": lambda end: at(checkpoints.Checkpoints, "save", end, call=2),
    "results": lambda end: at(results, "results", end),
    "results file": lambda end: at(Workdir, "write_json", end, call=3),
    "report": lambda end: at(report, "write", end),
}

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    some_batches_are_broken()
    processes.join()
    workdir, *rest = sys.argv[1:]
    moment, number, process = (*rest, *(None, None, "0")[len(rest) :])
    if moment is not None and process in ("all", str(jax.process_index())):
        MOMENTS[moment](lambda: os.kill(os.getpid(), signal.Signals[number or "SIGKILL"]))
    try:
        cache = str(pathlib.Path(workdir).parent / "cache")
        settings = SETTINGS | {"compilation_cache": cache, "devices": jax.device_count()}
        settings |= json.loads(os.environ.get("SETTINGS", "{}"))
        training.train(small_run.digits(**settings), workdir)
    except Terminated as ended:
        sys.exit(ended.exit_code)
