"""Every file in ``errors``: what a user types, and the one line that answers it.

A file may begin with a line ``# setup``, the name of a function below that makes the situation.
"""

import contextlib
import fcntl
import os
import pathlib
import runpy
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax import data
from dsb_jax.training import checkpoints, workdir

# config_flags loads a config file by a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
ERRORS = sorted((pathlib.Path(__file__).parent / "errors").glob("*.txt"))
SMALL = "model=lenet,epochs=1,sample_space=False,devices=1"


def parsed(path):
    """Name of the set-up or None, arguments, and the answer."""
    *comment, typed, answer = path.read_text().splitlines()
    program, *arguments = shlex.split(typed.removeprefix("$ "))[:1] + shlex.split(typed.removeprefix("$ "))[3:]
    assert program == "python"
    subprocess.run(["bash", "-nc", typed.removeprefix("$ ")], check=True)  # as a shell reads it, too
    return comment[0].removeprefix("# ") if comment else None, arguments, answer


def broken_configs(folder, monkeypatch, stack):
    (folder / "wrong.py").write_text("def get_config(:\n")
    (folder / "fails.py").write_text("def get_config():\n    return {}['dataset']\n")


def a_file_in_the_way(folder, monkeypatch, stack):
    (folder / "run").write_text("mine")


def another_run(folder, monkeypatch, stack):
    with workdir.Workdir(folder / "run", config_of(f"{SMALL},seed=3,loss=focal")) as files:
        files.begin()


def config_of(arguments):
    return runpy.run_path(str(CONFIGS / "digits_lt.py"))["get_config"](arguments)


def a_run_at_work(folder, monkeypatch, stack):
    (folder / "run").mkdir()
    lock = stack.enter_context((folder / "run" / ".lock").open("w"))
    lock.write("process 4711 on somewhere\n")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)


def a_full_disk(folder, monkeypatch, stack):
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").symlink_to("/dev/full")


def a_read_only_disk(folder, monkeypatch, stack):
    monkeypatch.setattr(os, "access", lambda path, mode: False)


def a_corrupt_image(folder, monkeypatch, stack):
    """The first training image ends after a few bytes."""
    prepared = pathlib.Path(data.datasets.prepare("digits")[0])
    copy = folder / "data" / "digits" / prepared.name
    shutil.copytree(prepared, copy)
    (file,) = copy.glob("*-train.array_record*")
    reader = array_record_module.ArrayRecordReader(str(file))
    records = [tf_example_pb2.Example.FromString(record) for record in reader.read_all()]
    reader.close()
    image = records[0].features.feature["image"].bytes_list
    image.value[0] = image.value[0][:20]
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record.SerializeToString())
    writer.close()


def damaged_checkpoints(folder, monkeypatch, stack):
    with workdir.Workdir(folder / "run", config_of(SMALL)) as files:
        files.begin()
    with checkpoints.Checkpoints(folder / "run" / "checkpoints") as saved:
        saved.save(8, {"params": np.zeros(3, np.float32)}, {})
    with (folder / "run" / "checkpoints" / "8" / "checkpoint.json").open("r+b") as file:
        file.write(b"?")


SETUPS = {
    setup.__name__: setup
    for setup in (
        broken_configs,
        a_file_in_the_way,
        another_run,
        a_run_at_work,
        a_full_disk,
        a_read_only_disk,
        a_corrupt_image,
        damaged_checkpoints,
    )
}


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_the_answer_is_one_line(path, trains, tmp_path, monkeypatch, capsys):
    setup, arguments, answer = parsed(path)
    data.load("digits", "test")  # prepared, so that nothing but the line is to be seen
    (tmp_path / "configs").symlink_to(CONFIGS)
    with contextlib.ExitStack() as stack:
        if setup:
            SETUPS[setup](tmp_path, monkeypatch, stack)
        capsys.readouterr()
        before = {file: file.read_bytes() for file in tmp_path.glob("run/**/*") if file.is_file()}
        with pytest.raises(SystemExit) as raised:
            trains(*arguments)
    message = raised.value.code  # 1; or a text, which Python prints on stderr before it exits with status 1
    if message == 1:
        message = capsys.readouterr().err.splitlines()[-1]
    assert message.replace(f"{tmp_path}/", "") == answer
    lost = [file for file, content in before.items() if not kept(tmp_path / "run", file, content)]
    assert lost == []


def kept(folder, file, content):
    """Nothing that was written is lost: it may be renamed, and a lock may get another owner."""
    if file.name in (".lock", "metrics.jsonl"):
        return file.exists()
    return any(other.read_bytes() == content for other in folder.rglob(file.name))


def test_there_are_the_likeliest_twenty():
    assert len(ERRORS) >= 20
