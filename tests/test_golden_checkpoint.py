"""A checkpoint of an earlier version is read by this one: a run that was stopped then goes on now.

``python tests/test_golden_checkpoint.py`` saves a new one, where a change of the state is wanted; users are to be told.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import small_run

from dsb_jax import training
from dsb_jax.training import experiment as experiments
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.program import Program
from dsb_jax.training.termination import Terminated, Termination

GOLDEN = pathlib.Path(__file__).parent / "golden_checkpoint"
STEP = 10  # within the second of three epochs
SETTINGS = {"ema_decay": 0.9, "start_epoch": 1, "tensorboard": False, "sample_space": False}


def config():
    return small_run.digits("dsb.dim=16", **SETTINGS)


def digests(state):
    """A SHA-256 of the bytes of every array."""
    leaves = jax.tree.leaves_with_path(state)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    plain = {
        name: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for name, leaf in named.items()
    }
    return {name: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for name, leaf in plain.items()}


def test_every_array_is_as_it_was_saved(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    program = Program(config(), experiments.build(config()))
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        restored = checkpoints.restore(program.initial)
    assert restored.step == STEP
    assert digests(restored.state) == json.loads((GOLDEN / "digests.json").read_text())
    moments = restored.state.balancing.state.pool.statistics.moment
    assert np.count_nonzero(moments) > 1000  # of a pool that had been filled


def test_the_run_goes_on(tmp_path, caplog):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    with caplog.at_level("INFO"):
        results = training.train(config(), tmp_path / "run")
    assert f"going on from step {STEP}/{small_run.STEPS}" in caplog.text
    assert results["steps"] == small_run.STEPS
    assert 0.3 < results["top1"] < 0.9


def save():
    """What a run needs that is told to end at a step."""

    class Ending(Termination):
        checks = 0

        def check(self):
            self.checks += 1
            if self.checks == STEP + 3:  # two of them in the evaluation after the first epoch
                raise Terminated(15)

    training.loop.termination = Ending
    shutil.rmtree(GOLDEN, ignore_errors=True)
    workdir = GOLDEN / "run"
    with contextlib.suppress(Terminated):
        training.train(config(), workdir)
    for path in (*workdir.iterdir(), *(workdir / "checkpoints").iterdir()):
        if path.name not in ("config.json", "metrics.jsonl", "checkpoints", str(STEP)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    program = Program(config(), experiments.build(config()))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(program.initial).state
    (GOLDEN / "digests.json").write_text(json.dumps(digests(state), indent=2) + "\n")


if __name__ == "__main__":
    save()
