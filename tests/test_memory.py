"""A long run needs no more memory at its end than at its beginning."""

import ctypes
import gc
import pathlib
import sys

import jax
import pytest
import small_run

from dsb_jax import training
from dsb_jax.training import loop

FIRST, STEPS = 2500, 5000  # the memory of the allocator's arenas has settled by the first


def megabytes():
    """Of this process, without what the allocator has not given back yet."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc and given back by glibc")
@pytest.mark.parametrize(("devices", "resident_megabytes"), [(1, 1024), (4, 0)], ids=["resident", "streamed"])
def test_memory_is_flat_over_5000_steps(tmp_path, monkeypatch, devices, resident_megabytes):
    measured, record = {}, loop._Run._record

    def measuring(self, outputs):
        record(self, outputs)
        if self.step % 500 == 0:
            jax.block_until_ready(self.state)
            self.checkpoints.wait()  # what is being saved is there twice
            arrays = sum(array.nbytes for array in jax.live_arrays()) / 2**20
            measured[self.step] = megabytes(), arrays

    monkeypatch.setattr(loop._Run, "_record", measuring)
    epochs = (FIRST + STEPS) * 64 // small_run.EXAMPLES + 1
    settings = {"eval_every": 5, "save_every": 50, "log_every": 50, "tensorboard": False, "sample_space": False}
    settings |= {"resident_megabytes": resident_megabytes, "devices": devices}
    training.train(small_run.digits(epochs=epochs, **settings), tmp_path / "run")
    (first, first_arrays), (last, last_arrays) = measured[FIRST], measured[FIRST + STEPS]
    assert last_arrays - first_arrays < 1
    assert last - first < 25, measured  # Orbax keeps 0.1 MB of every save
