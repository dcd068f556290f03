"""A chain of stages that is ended in any of them and started again ends as if it never had been."""

import json
import os
import signal

import numpy as np
import pytest
from small_run import digits, saved_arrays
from test_restart import records

from dsb_jax import training
from dsb_jax.training import checkpoints, loop
from dsb_jax.training.termination import Terminated

SETTINGS = {
    "stages": "crt;epochs=2;epochs=2",  # 15 steps each, with a checkpoint after 8
    "tensorboard": False,
    "sample_space": False,
    "log_every": 3,
    "ema_decay": 0.9,
    "flip": True,
}


class Ended(BaseException):
    """As if the process were gone."""


def run(workdir, monkeypatch, *, call=None, end=None):
    """Trains, and calls ``end`` when a step is recorded for the ``call``-th time."""
    record, calls = loop._Run._record, [0]

    def ending(self, outputs):
        calls[0] += 1
        if calls[0] == call:
            end()
        record(self, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_record", ending)
        return training.train(digits(**SETTINGS), workdir)


def gone():
    raise Ended


@pytest.mark.slow
def test_ended_in_every_stage_it_ends_the_same(tmp_path, monkeypatch):
    run(tmp_path / "whole", monkeypatch)
    workdir = tmp_path / "ended"
    with pytest.raises(Ended):
        run(workdir, monkeypatch, call=11, end=gone)  # step 11 of stage 1
    assert not (workdir / "results.json").exists()
    assert not (workdir / "checkpoints").exists()
    with pytest.raises(Ended):
        run(
            workdir, monkeypatch, call=7 + 3, end=gone
        )  # from step 8 of stage 1 to step 3 of stage 2: nothing saved there
    with pytest.raises(Terminated):
        run(workdir, monkeypatch, call=10, end=lambda: os.kill(os.getpid(), signal.SIGTERM))  # step 10 of stage 2
    assert checkpoints.find(workdir / "checkpoints", setting="initial").step == 10
    run(workdir, monkeypatch)
    for mine, whole in ((workdir, tmp_path / "whole"), (workdir / "stages" / "1", tmp_path / "whole" / "stages" / "1")):
        results = (json.loads((folder / "results.json").read_text()) | {"command": ""} for folder in (mine, whole))
        assert next(results) == next(results)
        assert records(mine) == records(whole)
        assert (mine / "config.json").read_bytes() == (whole / "config.json").read_bytes()
        ours, wanted = saved_arrays(mine), saved_arrays(whole)
        assert ours.keys() == wanted.keys()
        for path, array in wanted.items():
            np.testing.assert_array_equal(ours[path], array, err_msg=path)
