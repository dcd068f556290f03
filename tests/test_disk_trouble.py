"""A full disk or a read-only one ends a run with one error; mended, the run goes on as if it never had been so."""

import contextlib
import errno
import json
import os
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


def make_read_only(disk):
    """Under a run that is going: whatever it opens from now on."""
    workdir = str(disk / "run")
    subprocess.run(["mount", "--bind", workdir, workdir], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", workdir], check=True)


def make_writable(disk):
    subprocess.run(["umount", "--lazy", str(disk / "run")], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return training.train(small_run.digits(**SETTINGS), tmp_path_factory.mktemp("undisturbed") / "run")


MOMENTS = {
    "save": (Checkpoints, "save", 2, "checkpoints"),
    "log": (Workdir, "log", 3, ""),  # a few lines still fit into its last page
    "report": (report, "write", 1, "report.html"),
}
TROUBLES = {
    "full": (fill, errno.ENOSPC, lambda disk: (disk / "filler").unlink()),
    "read-only": (make_read_only, errno.EROFS, make_writable),
}


@pytest.mark.parametrize(
    ("moment", "trouble"),
    [
        ("save", "full"),
        pytest.param("save", "read-only", marks=pytest.mark.slow),
        pytest.param("report", "full", marks=pytest.mark.slow),
        pytest.param("report", "read-only", marks=pytest.mark.slow),
        pytest.param("log", "full", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_and_a_read_only_one_cost_nothing(disk, monkeypatch, undisturbed, moment, trouble):
    owner, name, call, file = MOMENTS[moment]
    cause, number, mend = TROUBLES[trouble]
    original, calls = getattr(owner, name), []

    def troubled(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            cause(disk)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, troubled)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        training.train(small_run.digits(**SETTINGS), disk / "run")
    assert raised.value.errno == number
    assert raised.value.filename.startswith(str(disk / "run" / file))
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    mend(disk)
    with read_only(disk), pytest.raises(OSError, match=str(disk / "run")):
        training.train(small_run.digits(**SETTINGS), disk / "run")
    results = training.train(small_run.digits(**SETTINGS), disk / "run")
    assert (disk / "run" / "report.html").exists()
    same = [json.dumps(found | {"command": ""}, default=float) for found in (results, undisturbed)]
    assert same[0] == same[1]
