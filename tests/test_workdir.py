"""A workdir is one run's: what another start finds in it, who may write, and what is left after trouble."""

import errno
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from small_run import digits, strict_json

from dsb_jax import data
from dsb_jax.training import experiment, loop
from dsb_jax.training import workdir as workdir_module
from dsb_jax.training.workdir import Workdir, read_mark, require_seen

TESTS = pathlib.Path(__file__).parent
NEUTRAL = {"keep_checkpoints", "watchdog_minutes"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def finish(folder, config=None, *, top1=0.5, **options):
    """A run that ended."""
    with Workdir(folder, config or digits(), **options) as files:
        files.begin()
        files.log(step=1)
        (files.path / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
        files.write_json("results.json", {"top1": top1})


# What a second start finds.


def test_the_same_config_goes_on(tmp_path):
    finish(tmp_path)
    files = Workdir(tmp_path, digits())
    assert files.results == {"top1": 0.5}
    with files:
        files.begin()
        assert files.results == {"top1": 0.5}
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_another_config_is_refused_with_what_differs(tmp_path):
    finish(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run of another config") as raised:
        Workdir(tmp_path, digits("loss=focal,dsb.alpha=1.5,keep_checkpoints=7"), neutral=NEUTRAL)
    assert str(raised.value) == (
        f"{tmp_path} holds a run of another config (dsb.alpha: None -> 1.5, loss: 'cross_entropy' -> 'focal'); choose "
        "another --workdir, or --resume=force to go on with these settings, or --resume=never to start anew"
    )
    assert (tmp_path / "config.json").read_bytes() == before


def test_settings_that_change_no_result_may_differ(tmp_path):
    finish(tmp_path)
    config = digits("keep_checkpoints=7,watchdog_minutes=1.0")
    with pytest.raises(ValueError, match=r"\(keep_checkpoints: 2 -> 7, watchdog_minutes: 10.0 -> 1.0\)"):
        Workdir(tmp_path, config)
    with Workdir(tmp_path, config, neutral=NEUTRAL) as files:
        files.begin()
        assert files.results == {"top1": 0.5}
    assert json.loads((tmp_path / "config.json").read_text())["keep_checkpoints"] == 7


def test_force_goes_on_with_another_config_and_keeps_the_one_before(tmp_path, caplog):
    finish(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    files = Workdir(tmp_path, digits("epochs=5"), resume="force")
    assert files.results is None  # they are those of the config before
    assert names(tmp_path) == {".lock", "config.json", "metrics.jsonl", "results.json", "checkpoints"}
    with files:
        files.begin()
        assert files.results is None
        files.write_json("results.json", {"top1": 0.75})
    assert [record.message for record in caplog.records] == [f"{tmp_path} goes on with another config (epochs: 3 -> 5)"]
    assert (tmp_path / "config.1.json").read_bytes() == before
    assert json.loads((tmp_path / "results.1.json").read_text()) == {"top1": 0.5}
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert Workdir(tmp_path, digits("epochs=5")).results == {"top1": 0.75}
    with Workdir(tmp_path, digits("epochs=7"), resume="force") as files:
        files.begin()
    assert {"config.2.json", "results.2.json"} <= names(tmp_path)


def test_force_with_the_same_config_goes_on(tmp_path):
    finish(tmp_path)
    with Workdir(tmp_path, digits(), resume="force") as files:
        files.begin()
        assert files.results == {"top1": 0.5}
    assert names(tmp_path) == {".lock", "config.json", "metrics.jsonl", "results.json", "checkpoints"}


def dataset(digest="0a", images=18):
    train = {"digest": digest, "is": f"{images} images of 2 classes"}
    return {"name": "folder/insects", "splits": {"train": train, "test": {"digest": "1b", "is": "some images"}}}


def begun(folder, found, **options):
    """A run on this dataset, that has ended."""
    files = Workdir(folder, digits(), **options)
    files.require_dataset(found)
    with files:
        files.begin()
        files.write_json("results.json", {"top1": 0.5})
    return files


def test_the_same_dataset_goes_on(tmp_path):
    begun(tmp_path, dataset())
    assert begun(tmp_path, dataset()).results == {"top1": 0.5}
    assert names(tmp_path) == {".lock", "config.json", "dataset.json", "metrics.jsonl", "results.json"}


def test_another_dataset_of_the_same_name_is_refused_in_words(tmp_path):
    begun(tmp_path, dataset())
    with pytest.raises(ValueError, match="holds a run on another folder/insects than is here now") as raised:
        begun(tmp_path, dataset("2c", 15))
    assert str(raised.value) == (
        f"{tmp_path} holds a run on another folder/insects than is here now (train: 18 images of 2 classes, digest 0a "
        "-> 15 images of 2 classes, digest 2c; a digest is of the record files, the images of each class and those "
        "left out); choose another --workdir, or prepare the dataset as it was, or --resume=force to go on with this "
        "one, or --resume=never to start anew"
    )
    assert json.loads((tmp_path / "dataset.json").read_text()) == dataset()


def test_force_goes_on_with_another_dataset_and_keeps_what_was_said_of_the_one_before(tmp_path, caplog):
    begun(tmp_path, dataset())
    begun(tmp_path, dataset("2c", 15), resume="force")
    assert caplog.messages == [
        f"{tmp_path} goes on with another dataset (train: 18 images of 2 classes, digest 0a -> 15 images of 2 classes, "
        "digest 2c)"
    ]
    assert json.loads((tmp_path / "dataset.1.json").read_text()) == dataset()
    assert json.loads((tmp_path / "dataset.json").read_text()) == dataset("2c", 15)
    assert {"config.1.json", "results.1.json"} <= names(tmp_path)


def test_never_takes_any_dataset(tmp_path):
    begun(tmp_path, dataset())
    begun(tmp_path, dataset("2c", 15), resume="never")
    assert json.loads((tmp_path / "previous-1" / "dataset.json").read_text()) == dataset()


def test_a_run_that_says_nothing_of_its_dataset_goes_on(tmp_path, caplog):
    finish(tmp_path)
    assert begun(tmp_path, dataset()).results == {"top1": 0.5}
    assert caplog.messages == []
    with pytest.raises(ValueError, match="another folder/insects"):
        begun(tmp_path, dataset("2c", 15))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": {"train": 3}}'])
def test_a_damaged_dataset_file_is_another_dataset(tmp_path, content):
    begun(tmp_path, dataset())
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"than is here now \(its dataset.json cannot be read"):
        begun(tmp_path, dataset())
    begun(tmp_path, dataset(), resume="force")


def test_a_run_is_refused_where_its_dataset_became_another_one(tmp_path):
    here = experiment.build(digits()).dataset
    begun(tmp_path / "run", here)
    shutil.copytree(data.datasets.prepare("digits")[0], tmp_path / "data" / "digits" / "1.0.0")
    moved = digits(data_dir=str(tmp_path / "data"))
    assert experiment.build(moved).dataset == here
    labels = np.array(data.load("digits", "train").labels)
    np.save(tmp_path / "data" / "digits" / "1.0.0" / "labels-train.npy", (labels + (np.arange(len(labels)) == 3)) % 10)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    with pytest.raises(ValueError, match="holds a run on another digits than is here now"):
        loop.train(moved, tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize("config", ["", "loss=focal"])
def test_never_moves_everything_aside(tmp_path, config):
    finish(tmp_path)
    (tmp_path / ".hidden").write_text("")
    before = names(tmp_path) - {".lock"}
    for number in (1, 2):
        files = Workdir(tmp_path, digits(config), resume="never")
        assert files.results is None
        with files:
            files.begin()
            assert files.results is None
            previous = {f"previous-{other}" for other in range(1, number + 1)}
            assert names(tmp_path) == {".lock", "config.json", "metrics.jsonl", *previous}
            assert (tmp_path / "metrics.jsonl").read_text() == ""
            files.write_json("results.json", {"top1": 0.75})
    assert names(tmp_path / "previous-1") == before
    assert json.loads((tmp_path / "previous-1" / "results.json").read_text()) == {"top1": 0.5}
    assert json.loads((tmp_path / "previous-2" / "results.json").read_text()) == {"top1": 0.75}


def test_never_in_an_empty_folder_moves_nothing(tmp_path):
    with Workdir(tmp_path / "run", digits(), resume="never") as files:
        files.begin()
    assert names(tmp_path / "run") == {".lock", "config.json", "metrics.jsonl"}


@pytest.mark.parametrize("resume", ["force", "never"])
def test_until_it_begins_the_folder_stays_as_it_was(tmp_path, resume):
    finish(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.name != ".lock"}
    with Workdir(tmp_path, digits("loss=focal"), resume=resume) as files:
        assert files.results is None
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.name != ".lock"} == before
    assert Workdir(tmp_path, digits()).results == {"top1": 0.5}


def test_an_unknown_resume_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown resume 'nevr'; did you mean 'never'\?"):
        Workdir(tmp_path, digits(), resume="nevr")


@pytest.mark.parametrize("left", ["results.json", "checkpoints"])
def test_a_run_without_a_config_is_no_run_of_this_one(tmp_path, left):
    finish(tmp_path)
    for name in {"config.json", "results.json", "checkpoints"} - {left}:
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=rf"another config \({left} without a config.json\)"):
        Workdir(tmp_path, digits())
    with Workdir(tmp_path, digits(), resume="force") as files:
        files.begin()
        assert files.results is None


@pytest.mark.parametrize("content", [b"", b'{"loss": "cross', b"[1, 2]", b"\xff\xfe"])
def test_a_config_that_cannot_be_read_is_no_run_of_this_one(tmp_path, content):
    finish(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"another config \(its config.json cannot be read\)"):
        Workdir(tmp_path, digits())
    with Workdir(tmp_path, digits(), resume="force") as files:
        files.begin()
        assert files.results is None
    assert (tmp_path / "config.1.json").read_bytes() == content


def test_results_that_cannot_be_read_are_named(tmp_path):
    finish(tmp_path)
    (tmp_path / "results.json").write_text('{"top1"')
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/results.json is no JSON: .*$"):
        _ = Workdir(tmp_path, digits()).results


def test_a_run_that_began_in_between_is_noticed(tmp_path):
    files = Workdir(tmp_path, digits())
    finish(tmp_path, digits("loss=focal"))
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="loss: 'focal' -> 'cross_entropy'"):
        files.__enter__()
    assert (tmp_path / "config.json").read_bytes() == before
    finish(tmp_path, digits("loss=focal"))  # and the lock is free again


# The lock.


def test_a_workdir_is_of_one_process_at_a_time(tmp_path):
    command = [sys.executable, str(TESTS / "held_workdir.py"), str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"entered\n"
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        for resume in ("auto", "force", "never"):
            with pytest.raises(ValueError, match="is in use by another run") as raised:
                Workdir(tmp_path, digits(), resume=resume)
            assert str(raised.value) == (
                f"{tmp_path} is in use by another run (process {process.pid} on {socket.gethostname()}); wait for it "
                "or choose another --workdir"
            )
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        process.kill()
    finish(tmp_path)  # the system has let go


def test_a_workdir_is_entered_once_in_a_process(tmp_path):
    with Workdir(tmp_path, digits()), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        Workdir(tmp_path, digits()).__enter__()
    finish(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_there_is_one_line(tmp_path, monkeypatch, caplog, number):
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    finish(tmp_path)
    (record,) = caplog.records
    assert record.message == f"{tmp_path} cannot be locked ({os.strerror(number)}): start no second run in it"


def test_other_errors_of_the_lock_are_errors(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match=r"Input/output error: '.*/\.lock'"):
        Workdir(tmp_path, digits()).__enter__()


def open_files():
    """What this process has open."""
    paths = pathlib.Path("/proc/self/fd")
    if not paths.is_dir():
        pytest.skip("open files cannot be listed here")
    return sorted(os.readlink(path) for path in paths.iterdir() if path.exists())


@pytest.mark.parametrize("step", ["write_json", "_open_metrics", "_supersede"])
def test_an_error_at_the_beginning_leaves_nothing_open(tmp_path, monkeypatch, step):
    before = open_files()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, step, fail)
        with pytest.raises(OSError, match="No space left"), Workdir(tmp_path, digits()) as files:
            files.begin()
    assert open_files() == before
    finish(tmp_path)
    assert open_files() == before


def test_a_read_only_folder_is_named(tmp_path):
    finish(tmp_path)
    mount = ["mount", "--bind", "-o", "ro", str(tmp_path), str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a folder read-only")
    try:
        with pytest.raises(OSError, match=rf"workdir cannot be written to: '{re.escape(str(tmp_path))}'"):
            Workdir(tmp_path, digits()).__enter__()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# metrics.jsonl.


LINES = [{"step": 1, "loss": 1.5}, {"step": 2}, {"step": 2, "test_accuracy": 0.5}, {"step": 3}, {"step": 10}]


@pytest.mark.parametrize("torn", [b"", b'{"step": 1, "lo', b'{"step": 1}', b"\xff\x00"])
@pytest.mark.parametrize("lines", [0, 1, 3, 4, 5])
def test_metrics_are_cut_back(tmp_path, lines, torn):
    with Workdir(tmp_path, digits()) as files:
        files.begin()
        for number, line in enumerate(LINES):
            assert files.lines == number
            files.log(**line)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with Workdir(tmp_path, digits()) as files:
        files.begin()
        files.cut_back(lines)
        assert files.lines == min(lines, len(LINES))
        files.log(step=100)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        *LINES[:lines],
        {"step": 100},
    ]
    assert names(tmp_path) == {".lock", "config.json", "metrics.jsonl"}


def test_a_cut_that_fails_leaves_the_lines(tmp_path, monkeypatch):
    with Workdir(tmp_path, digits()) as files:
        files.begin()
        for line in LINES:
            files.log(**line)
        before = (tmp_path / "metrics.jsonl").read_bytes()

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(workdir_module.os, "fsync", fail)
        with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl.partial'"):
            files.cut_back(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module.os, "access", lambda path, mode: pathlib.Path(path) != tmp_path)
    with pytest.raises(PermissionError, match=r"workdir cannot be written to: '.*/not/yet'"):
        Workdir(tmp_path / "not" / "yet", digits())


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_error_with_the_name_of_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    def run():
        with Workdir(tmp_path, digits()) as files:
            files.begin()
            files.cut_back(0)
            files.log(step=1)

    before = open_files()
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '.*metrics.jsonl'$"):
        run()
    assert open_files() == before
    (tmp_path / "metrics.jsonl").unlink()
    finish(tmp_path)


# The other files.


def test_arrays_are_written_the_same_way_every_time(tmp_path, monkeypatch):
    arrays = {"counts": np.arange(12).reshape(3, 4), "name": np.array(["a", "ä"]), "none": np.zeros((0, 2))}
    with Workdir(tmp_path, digits()) as files:
        files.begin()
        files.write_arrays("a.npz", **arrays)
        later = time.localtime(time.time() + 1e6)
        monkeypatch.setattr(time, "localtime", lambda *_: later)
        files.write_arrays("b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array, strict=True)


def test_what_is_replaced_is_whole_at_any_time(tmp_path, monkeypatch):
    """The file that is written is not the one that is read, until it is on the disk."""
    seen = []
    with Workdir(tmp_path, digits()) as files:
        files.begin()
        files.write_json("results.json", {"top1": 0.5})
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: seen.append((fsync(fd), files.results)))
        files.write_json("results.json", {"top1": 0.75})
        assert seen == [(None, {"top1": 0.5})]
        assert files.results == {"top1": 0.75}


def test_every_start_is_in_the_environment(tmp_path):
    for step in (0, 20):
        with Workdir(tmp_path, digits()) as files:
            files.begin()
            files.record_environment(step=step)
    first, second = json.loads((tmp_path / "environment.json").read_text())
    assert (first["step"], second["step"]) == (0, 20)
    assert first["jax"] == jax.__version__
    assert first["numpy"] == np.__version__
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (first["device"], first["devices"]) == (jax.devices()[0].device_kind, 8)
    assert first["command"].startswith("python ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["started_at"])
    assert {"jaxlib", "flax", "optax", "orbax-checkpoint", "dsb_jax", "platform", "host"} <= first.keys()


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    package = tmp_path / "checkout" / "dsb_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    found = package.parent / "launch" / "results" / "table.csv"
    found.parent.mkdir(parents=True)
    found.write_text("")
    monkeypatch.setattr(workdir_module.dsb_jax, "__file__", str(package / "__init__.py"))
    assert workdir_module._commit() is None  # no checkout, whatever folder it lies in
    git = ["git", "-C", str(package.parent), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    found.write_text("a row\n")
    assert workdir_module._commit() == head
    (package / "__init__.py").write_text("changed = True\n")
    assert workdir_module._commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert workdir_module._commit() is None


def test_what_json_has_not_becomes_null(tmp_path):
    with Workdir(tmp_path, digits()) as files:
        files.begin()
        files.log(loss=np.float32("nan"), values=np.array([1, np.inf]), pair=(-math.inf, 2), name="nan", n=np.int64(3))
        files.write_json("results.json", {"a": {"b": [math.nan, np.array(0.5, np.float32), None, True]}})
        logged = strict_json((tmp_path / "metrics.jsonl").read_text())
        assert logged == {"loss": None, "values": [1.0, None], "pair": [None, 2], "name": "nan", "n": 3}
        assert strict_json((tmp_path / "results.json").read_text()) == {"a": {"b": [None, 0.5, None, True]}}


def test_a_workdir_is_made_when_it_is_written_to(tmp_path):
    files = Workdir(tmp_path / "run", digits())
    assert not files.path.exists()
    with files:
        files.begin()
        assert {path.name for path in files.path.iterdir()} == {".lock", "config.json", "metrics.jsonl"}


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"workdir '.*run' is not a folder"):
        Workdir(tmp_path / "run", digits())


def test_a_config_with_more_settings_differs_by_those_that_are_set(tmp_path):
    config = digits()
    with Workdir(tmp_path, config) as files:
        files.begin()
    config.new_and_unset, config.new_and_set = config_dict.placeholder(int), 3
    with pytest.raises(ValueError, match=r"another config \(new_and_set: None -> 3\)"):
        Workdir(tmp_path, config)


def test_a_workdir_is_seen_by_all_or_refused(tmp_path):
    with Workdir(tmp_path / "run", digits()):
        mark = read_mark(tmp_path / "run")
        assert f"process {os.getpid()} on " in mark
        require_seen(tmp_path / "run", mark)
        for other in ("none", "other"):
            if other == "other":  # the same path on a disk of one's own
                (tmp_path / other).mkdir()
                (tmp_path / other / ".lock").write_text("process 1 on another host\n")
            with pytest.raises(ValueError, match=f"process 0 does not see the workdir {tmp_path / other} of process 0"):
                require_seen(tmp_path / other, mark, seconds=0.2)


def test_a_setting_that_an_earlier_version_did_not_know_had_its_default(tmp_path):
    with Workdir(tmp_path, digits()) as workdir:
        workdir.begin()
    file = tmp_path / "config.json"
    known = json.loads(file.read_text())
    del known["dsb"]["dtype"]
    file.write_text(json.dumps(known))
    Workdir(tmp_path, digits(), defaults=digits())
    with pytest.raises(ValueError, match=r"dsb.dtype: 'float32' -> 'bfloat16'"):
        Workdir(tmp_path, digits("dsb.dtype=bfloat16"), defaults=digits())
