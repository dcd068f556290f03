"""A long run needs no more memory at its end than at its beginning. Run as a program, this file is such a run."""

import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
import small_run

from dsb_jax import training
from dsb_jax.training import loop

FIRST, STEPS = 2500, 5000


def megabytes():
    """Of this process, without what the allocator has not given back yet; and of the arrays on its devices."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20, sum(array.nbytes for array in jax.live_arrays()) / 2**20


def measured_run(workdir, settings):
    """Trains so many steps and prints the memory every 500."""
    measured, record = {}, loop._Run._record

    def measuring(self, outputs):
        record(self, outputs)
        if self.step % 500 == 0:
            jax.block_until_ready(self.state)
            self.checkpoints.wait()  # what is being saved is there twice
            measured[self.step] = megabytes()

    loop._Run._record = measuring
    epochs = (FIRST + STEPS) * 64 // small_run.EXAMPLES + 1
    fixed = {
        "epochs": epochs,
        "eval_every": 5,
        "save_every": 50,
        "log_every": 50,
        "tensorboard": False,
        "sample_space": False,
    }
    training.train(small_run.digits(**fixed, **settings), workdir)
    print(json.dumps(measured))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc and given back by glibc")
@pytest.mark.parametrize(("devices", "resident_megabytes"), [(1, 1024), (4, 0)], ids=["resident", "streamed"])
def test_memory_is_flat_over_5000_steps(tmp_path, devices, resident_megabytes):
    settings = {"devices": devices, "resident_megabytes": resident_megabytes}
    command = [sys.executable, __file__, tmp_path / "run", json.dumps(settings)]
    # With an arena for every thread, as glibc has it, what they hold in common grows by some MB before it settles.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    (first, first_arrays), (last, last_arrays) = measured[str(FIRST)], measured[str(FIRST + STEPS)]
    assert last_arrays - first_arrays < 1
    assert last - first < 5, measured  # of 500 and more


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    jax.config.update("jax_num_cpu_devices", options["devices"])
    measured_run(sys.argv[1], options)
