"""The command line: a run where it should be, and one line for everything that a user can get wrong."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import pytest

from dsb_jax import data, main

# config_flags loads a config file by a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

DIGITS = f"--config={CONFIGS}/digits_lt.py"


def test_an_unknown_dataset_as_a_setting_leaves_no_folder_behind(trains, tmp_path):
    with pytest.raises(SystemExit):
        trains(DIGITS, "--config.dataset=digist", "--workdir=run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "workdir"),
    [
        ("", "runs/digits_lt/dsb-ce-seed0"),
        (":loss=focal,balancer=class_balanced", "runs/digits_lt/cb-focal-seed0"),
        (":loss=ldam,balancer=uniform --config.seed=3", "runs/digits_lt/ldam-seed3"),
        (":dsb.alpha=1.5,data_dir=/some/where.else", "runs/digits_lt/dsb-ce-seed0"),
        (":data=synthetic", "runs/digits_lt/dsb-ce-seed0-rehearsal"),
        (" --workdir=some/folder", "some/folder"),
    ],
)
def test_the_workdir_is_named_after_config_method_and_seed(arguments, workdir, command, capsys):
    assert str(command(*(DIGITS + arguments).split())[1]) == workdir
    assert capsys.readouterr().out == f"workdir: {workdir}\n"


@pytest.mark.parametrize("arguments", [["--config=digits_lt:loss=focal"], ["--config", "digits_lt:loss=focal"]])
def test_a_config_of_the_package_is_found_by_its_name(arguments, command, tmp_path):
    (tmp_path / "digits_lt").mkdir()  # is in nobody's way
    config, workdir = command(*arguments, "--config.seed=1")
    assert (config.dataset, config.imbalance, config.loss, config.seed) == ("digits", 20.0, "focal", 1)
    assert str(workdir) == "runs/digits_lt/dsb-focal-seed1"


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("configs/digits_lt.py", "digits_lt"), ("inat2018.py:epochs=1", "inat2018"), ("a/b.py", "digits_lt")],
)
def test_a_file_that_is_not_there_is_not_taken_from_the_package(typed, nearest, command, tmp_path, capsys):
    (tmp_path / "setup.py").touch()
    with pytest.raises(SystemExit):
        command(f"--config={typed}")
    assert capsys.readouterr().err == (
        f"error: there is no config file {typed.partition(':')[0]!r} in {tmp_path}; a config of the package goes by "
        f"its name alone, such as --config={nearest}\n"
    )


def test_settings_override_arguments_which_override_the_config_file(command):
    config, _ = command(
        f"{DIGITS}:epochs=2,imbalance=10,mean=(0.5,)", "--config.epochs=3", "--config.dsb.alpha=1.5",
        "--config.start_epoch=2", "--config.head=cosine", "--config.std=(0.25,)", "--noconfig.dsb.interclass",
    )  # fmt: skip
    assert (config.dataset, config.imbalance, config.epochs) == ("digits", 10.0, 3)
    assert (config.dsb.alpha, config.start_epoch, config.head, config.dsb.interclass) == (1.5, 2, "cosine", False)
    assert (config.mean, config.std) == ((0.5,), (0.25,))


def test_an_interrupt_is_no_traceback(command, monkeypatch, capsys):
    def interrupted(config, workdir, resume):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "train", interrupted)
    with pytest.raises(SystemExit) as raised:
        command(DIGITS)
    assert raised.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1073741824 bytes.", " of 1.1 GB"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.\nlines", " of 68.7 GB"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5.77GiB.", " of 5.77 GiB"),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", ""),
    ],
)
def test_a_run_that_does_not_fit_is_one_line(command, monkeypatch, capsys, text, amount):
    def too_large(config, workdir, resume):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(main, "train", too_large)
    with pytest.raises(SystemExit) as raised:
        command(DIGITS)
    assert raised.value.code == 1
    assert capsys.readouterr().err == (
        f"error: the run does not fit into the device's memory: an allocation{amount} failed; try a smaller "
        "batch_size, or accumulate=2 or more to pass a batch in parts, or devices with more memory or more of them\n"
    )


def test_other_errors_of_the_device_are_not_made_up(command, monkeypatch):
    def broken(config, workdir, resume):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(main, "train", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        command(DIGITS)


def shell(folder, *arguments):
    """The real thing, in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "dsb_jax.main", *arguments],
        cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow  # CI runs the README's command besides
def test_a_run_from_the_shell(tmp_path):
    data.load("digits", "test")
    done = shell(tmp_path, f"{DIGITS}:model=lenet,epochs=2,start_epoch=1", "--config.log_every=5")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    workdir = pathlib.Path("runs/digits_lt/dsb-ce-seed0")
    lines = done.stdout.splitlines()
    assert lines[0] == f"workdir: {workdir}"
    assert any("Total: 52,588" in line for line in lines)  # of the table of parameters
    assert any("step 5/15 (33 %)" in line and "images/s" in line and "ETA" in line for line in lines)
    results = json.loads((tmp_path / workdir / "results.json").read_text())
    assert f"top-1 {100 * results['top1']:.2f} %, report: {workdir}/report.html" in lines[-1]
    command = ["python", "-m", "dsb_jax.main", f"{DIGITS}:model=lenet,epochs=2,start_epoch=1", "--config.log_every=5"]
    assert shlex.split(results["command"]) == command


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([f"{DIGITS}:loss=focl"], "error: unknown loss 'focl'; did you mean 'focal'?"),
        (
            [f"--config={CONFIGS}/mnist_lt.py:data_dir=nowhere"],
            "error: mnist is not in nowhere/mnist/3.0.1; prepare it",
        ),
    ],
)
def test_the_shell_gets_one_line_on_stderr_and_status_1(arguments, answer, tmp_path):
    done = shell(tmp_path, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(answer)
    assert "Traceback" not in done.stdout
