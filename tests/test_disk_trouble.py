"""A full disk or a read-only one ends a run with one error; mended, the run goes on as if it never had been so."""

import contextlib
import errno
import json
import shutil
import subprocess

import pytest
import small_run

from dsb_jax import training
from dsb_jax.evaluation import report
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.workdir import Workdir

SETTINGS = {"tensorboard": False, "sample_space": False, "start_epoch": 1}


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    def without_end(file):
        while True:
            file.write(bytes(4096))

    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        without_end(file)


@contextlib.contextmanager
def read_only(disk):
    """While no file in it is open for writing."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return training.train(small_run.digits(**SETTINGS), tmp_path_factory.mktemp("undisturbed") / "run")


MOMENTS = {
    "save": (Checkpoints, "save", 2, "checkpoints"),
    "log": (Workdir, "log", 3, ""),  # a few lines still fit into its last page
    "report": (report, "write", 1, "report.html"),
}


@pytest.mark.parametrize("moment", ["save", "report", pytest.param("log", marks=pytest.mark.slow)])
def test_a_full_disk_and_a_read_only_one_cost_nothing(disk, monkeypatch, undisturbed, moment):
    owner, name, call, file = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def filling(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            fill(disk)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, filling)
    with pytest.raises(OSError, match="No space left") as raised:
        training.train(small_run.digits(**SETTINGS), disk / "run")
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename.startswith(str(disk / "run" / file))
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    (disk / "filler").unlink()
    with read_only(disk), pytest.raises(OSError, match=str(disk / "run")):
        training.train(small_run.digits(**SETTINGS), disk / "run")
    results = training.train(small_run.digits(**SETTINGS), disk / "run")
    assert (disk / "run" / "report.html").exists()
    same = [json.dumps(found | {"command": ""}, default=float) for found in (results, undisturbed)]
    assert same[0] == same[1]
