"""What two processes agree on and what they refuse, as lines on stdout: see test_several_processes.py."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import pathlib
import sys
import time

import jax
import numpy as np
import small_run

from dsb_jax import training
from dsb_jax.data.records import Selection
from dsb_jax.training import experiment, loop, processes
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.sharding import make_mesh, of_batch
from dsb_jax.training.workdir import Workdir, require_seen

folder = pathlib.Path(sys.argv[1])
told = {}


def says(name, function):
    """The outcome of a call, told by this process."""
    try:
        told[name] = function()
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"


def fails(message):
    raise ValueError(message)


def other_order(config):
    """The same images, as a copy that was made otherwise has them."""
    built = build(config)
    source = Selection([built.train.source], np.arange(len(built.train))[::-1])
    return dataclasses.replace(built, train=dataclasses.replace(built.train, source=source))


processes.join()
number = jax.process_index()
says("first decides", lambda: processes.of_first(lambda: f"decided by {number}"))
says("first fails", lambda: processes.of_first(lambda: fails(f"in {number}")))
says("nobody fails", lambda: processes.everywhere(lambda: number))
says("second fails", lambda: processes.everywhere(lambda: fails("in 1") if number == 1 else "alone"))
says("both fail", lambda: processes.everywhere(lambda: fails(f"in {number}")))
says("full disk", lambda: processes.of_first(lambda: (_ for _ in ()).throw(OSError(28, "No space left", "run/x"))))
says("same", lambda: processes.require_same("answer", "42"))
says("other", lambda: processes.require_same("answer", str(42 + number)))
says("settings", lambda: training.train(small_run.digits(devices=4, seed=number), folder / "other settings"))
says("fewer devices", lambda: training.train(small_run.digits(devices=2), folder / "fewer"))
says("resume", lambda: training.train(small_run.digits(devices=4), folder / "r", resume=("auto", "never")[number]))

# What goes wrong in one of them alone ends training in both, before anything is trained.
config = small_run.digits(devices=4, tensorboard=False)
build = experiment.build
if number == 1:
    experiment.build = lambda config: fails("no dataset here")
says("second has no dataset", lambda: training.train(config, folder / "no dataset"))
experiment.build = build
if number == 1:
    experiment.build = other_order
says("another dataset", lambda: training.train(config, folder / "another dataset"))
experiment.build = build
folder.mkdir(exist_ok=True)
(folder / "file").write_text("")
says("no folder", lambda: training.train(config, folder / "file"))
with Workdir(folder / "finished", config) if number == 0 else contextlib.nullcontext() as finished:
    if number == 0:
        finished.begin()
        finished.write_json("results.json", {"top1": 0.5})
        (folder / "finished" / "report.html").write_text("")
        (folder / "taken").mkdir()
        taken = (folder / "taken" / ".lock").open("w")
        fcntl.flock(taken, fcntl.LOCK_EX)
says("finished", lambda: training.train(config, folder / ("finished" if number == 0 else "not seen")))
says("taken", lambda: training.train(config, folder / "taken"))
loop.require_seen = functools.partial(require_seen, seconds=0.5)
says("not seen", lambda: training.train(config, folder / ("seen" if number == 0 else "not seen")))

# A checkpoint that one process does not see, as on a disk of its own.
sharding = of_batch(make_mesh())
state = {"rows": jax.make_array_from_process_local_data(sharding, np.arange(4.0) + 4 * number)}
with Checkpoints(folder / "shared") as checkpoints:
    checkpoints.save(1, state, {})
with Checkpoints(folder / "shared") as checkpoints:
    says("restored", lambda: checkpoints.restore(state).step)
with Checkpoints(folder / ("shared" if number == 0 else "elsewhere")) as checkpoints:
    checkpoints.folder = pathlib.Path(folder / "shared")
    seen = pathlib.Path.exists
    if number == 1:
        pathlib.Path.exists = lambda self: seen(self) and self.name != "1"
    says("not shared", lambda: checkpoints.restore(state).step)
    pathlib.Path.exists = seen
says("still there", lambda: Checkpoints(folder / "shared").steps())
time.sleep(0.2 * number)  # lines one after the other
print(f"TOLD {number} {json.dumps(told)}", flush=True)
