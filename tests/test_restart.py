"""A run that is ended anywhere and started again ends as if it never had been."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

ENDED_RUN = pathlib.Path(__file__).parent / "ended_run.py"
TIMING = {"images_per_second", "train_seconds"}

# One after the other in one workdir: each start goes on from where the one before was killed.
KILLED = ("mid-save", "results")
KILLED_EVERYWHERE = (
    "compile",
    "first step",
    "line",
    "mid-epoch",
    "evaluation",
    "before save",
    "evaluation",
    "mid-epoch",
    "mid-save",
    "results",
    "results file",
    "report",
)


def start(workdir, *moment):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # the first start compiles for all
    command = [sys.executable, ENDED_RUN, workdir, *moment]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def records(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def checkpoint_scores(workdir):
    files = (workdir / "checkpoints").glob("*/checkpoint.json")
    return {file.parent.name: json.loads(file.read_text())["score"] for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing ends."""
    workdir = tmp_path_factory.mktemp("restart") / "whole"
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    lines = records(workdir)
    assert 0 < json.loads((workdir / "results.json").read_text())["skipped_steps"] < 22
    scores = {line["step"]: line["test_accuracy"] for line in lines if "test_accuracy" in line}
    kept = {15, 22} | {max(scores, key=lambda step: (scores[step], step))}
    assert checkpoint_scores(workdir) == {str(step): scores[step] for step in kept}
    assert list((workdir.parent / "cache").iterdir())
    return workdir


def assert_as_whole(workdir, whole):
    """Bit by bit, but for timings."""
    for name in ("results.json", "config.json", "train_indices.npy"):
        mine, wanted = (folder / name for folder in (workdir, whole))
        if name == "results.json":
            mine, wanted = (json.loads(path.read_text()) | {"command": ""} for path in (mine, wanted))
            assert mine == wanted
        else:
            assert mine.read_bytes() == wanted.read_bytes()
    assert records(workdir) == records(whole)
    assert checkpoint_scores(workdir) == checkpoint_scores(whole)
    files = sorted(path.name for path in whole.glob("*.npz"))
    assert len(files) == 2
    for file in files:
        with np.load(workdir / file) as mine, np.load(whole / file) as wanted:
            for name in wanted:
                np.testing.assert_array_equal(mine[name], wanted[name])
    assert (workdir / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moments", [KILLED, KILLED_EVERYWHERE], ids=["often", "everywhere"])
def test_killed_again_and_again_a_run_ends_with_the_same_results(whole, moments):
    workdir = whole.parent / f"killed {len(moments)} times"
    for moment in moments:
        killed = start(workdir, moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stdout, killed.stderr)
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    # The last save may not have been on the disk yet.
    assert re.search(r"going on from step (15|22)/22 \(epoch (2.12|3.11)\), after \d+s of training", done.stdout)
    assert_as_whole(workdir, whole)


@pytest.mark.parametrize(
    "moment",
    ["evaluation", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("mid-epoch", "results"))],
)
def test_sigterm_saves_and_exits_with_143(whole, moment):
    workdir = whole.parent / f"terminated {moment}"
    ended = start(workdir, moment, "SIGTERM")
    assert ended.returncode == 143, ended.stderr
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(steps) == {"mid-epoch": 5, "evaluation": 8, "results": 22}[moment]
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    assert_as_whole(workdir, whole)


@pytest.mark.slow
def test_sigterm_while_compiling_ends_the_process_by_itself(tmp_path):
    ended = start(tmp_path / "run", "compile", "SIGTERM")
    assert ended.returncode == -signal.SIGTERM  # 143 to a shell
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock"}
