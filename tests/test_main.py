"""The command line: a run where it should be, and one line for everything that a user can get wrong."""

import json
import logging
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from dsb_jax import data, main

# config_flags loads a config file by a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

SETTINGS = (
    "balancer, batch_size, class_balanced.beta, cross_entropy.label_smoothing, data_dir, dataset, dsb.alpha, dsb.dim, "
)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """``command(arguments)`` runs main in an empty folder in this process, and gives what it raised."""
    root, package, absl = (logging.getLogger(name) for name in (None, "dsb_jax", "absl"))
    before = list(root.handlers), [logger.level for logger in (root, package, absl)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "train", lambda config, workdir: seen.append((config, workdir)))
    seen = []

    def run(*arguments):
        arguments = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", arguments)  # where config_flags looks for overrides
        seen.clear()
        with flagsaver.flagsaver():
            main.main(main._parse(arguments))
        return seen[0]

    yield run
    root.handlers[:] = before[0]
    for logger, level in zip((root, package, absl), before[1], strict=True):
        logger.setLevel(level)


@pytest.fixture
def trains(monkeypatch, command):
    """``command``, but with the real training."""
    from dsb_jax.training.loop import train

    monkeypatch.setattr(main, "train", train)
    return command


DIGITS = f"--config={CONFIGS}/digits_lt.py"

# What is typed, and the one line that answers it; … stands for anything.
WRONG = {
    "loss": (f"{DIGITS}:loss=focl", "unknown loss 'focl'; did you mean 'focal'? Valid names: balanced_softmax, …"),
    "balancer": (
        f"{DIGITS}:balancer=dbs",
        "unknown balancer 'dbs'; did you mean 'dsb'? Valid names: class_balanced, …",
    ),
    "dataset": (f"{DIGITS}:dataset=digist", "unknown dataset 'digist'; did you mean 'digits'? Valid names: digits, …"),
    "model": (f"{DIGITS}:model=resnet9", "unknown model 'resnet9'; did you mean 'resnet8'? Valid names: lenet, …"),
    "head": (f"{DIGITS}:head=cosin", "unknown head 'cosin'; did you mean 'cosine'? Valid names: cosine, linear"),
    "schedule": (
        f"{DIGITS}:schedule=cosin",
        "unknown schedule 'cosin'; did you mean 'cosine'? Valid names: constant, cosine, linear",
    ),
    "long_tail": (
        f"{DIGITS}:long_tail=exponental",
        "unknown long_tail 'exponental'; did you mean 'exponential'? Valid names: exponential, mnist_lt_1, …",
    ),
    "normalize": (
        f"{DIGITS}:dsb.normalize=men",
        "unknown normalize 'men'; did you mean 'mean'? Valid names: expected, mean, none, sum",
    ),
    "argument": (f"{DIGITS}:los=focal", f"unknown setting 'los'; did you mean 'loss'? Valid names: {SETTINGS}…"),
    "nested argument": (
        f"{DIGITS}:dsb.alfa=2",
        f"unknown setting 'dsb.alfa'; did you mean 'dsb.alpha'? Valid names: {SETTINGS}…",
    ),
    "no value": (f"{DIGITS}:focal", "config arguments must be key=value, got 'focal'"),
    "type": (f"{DIGITS}:epochs=many", "epochs must be of type int, got 'many'"),
    "value": (f"{DIGITS}:batch_size=0", "batch_size must be an integer >= 1, got 0"),
    "setting": (
        f"{DIGITS} --config.los=focal",
        f"unknown setting 'los'; did you mean 'loss'? Valid names: {SETTINGS}…",
    ),
    "nested setting": (
        f"{DIGITS} --config.dsb.alfa=2",
        f"unknown setting 'dsb.alfa'; did you mean 'dsb.alpha'? Valid names: {SETTINGS}…",
    ),
    "type of setting": (f"{DIGITS} --config.epochs=many", "flag --config.epochs=many: invalid literal for int() …"),
    "late value": (f"{DIGITS} --config.loss=focl", "unknown loss 'focl'; did you mean 'focal'? …"),
    "flag": (f"{DIGITS} --workdri=x", "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
    "position": (f"{DIGITS} loss=focal", "unexpected argument 'loss=focal'; settings are --config.key=value"),
    "no config": ("", "--config is missing; for example --config=configs/digits_lt.py"),
    "config file": (
        f"--config={CONFIGS}/digit_lt.py",
        f"unknown config file '{CONFIGS}/digit_lt.py'; did you mean '{CONFIGS}/digits_lt.py'? Valid names: …",
    ),
    "config file with an argument": (
        f"--config={CONFIGS}/digits_lt:loss=focal",
        f"unknown config file '{CONFIGS}/digits_lt'; did you mean '{CONFIGS}/digits_lt.py'? Valid names: …",
    ),
    "config file with an override": (
        f"--config={CONFIGS}/digit_lt.py --config.seed=1",
        f"unknown config file '{CONFIGS}/digit_lt.py'; did you mean '{CONFIGS}/digits_lt.py'? Valid names: …",
    ),
    "config file without others": ("--config=nowhere/x.py", "there is no config file 'nowhere/x.py' in …"),
    "config file that is none": ("--config=wrong.py", "config file: SyntaxError: … (wrong.py, line 1)"),
    "config file that fails": ("--config=fails.py", "config file: KeyError: 'dataset'"),
    "unprepared dataset": (
        f"--config={CONFIGS}/mnist_lt.py:data_dir=nowhere",
        "mnist is not in nowhere/mnist/3.0.1; prepare it with: python -m dsb_jax.data.prepare mnist --archive DIR …",
    ),
    "data_dir": (f"{DIGITS}:data_dir=wrong.py", "[Errno 20] Not a directory: 'wrong.py/…"),
}


@pytest.mark.parametrize(("typed", "answer"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(typed, answer, trains, tmp_path):
    data.load("digits", "test")  # prepared, so that nothing but the line is to be seen
    (tmp_path / "wrong.py").write_text("def get_config(:\n")
    (tmp_path / "fails.py").write_text("def get_config():\n    return {}['dataset']\n")
    with pytest.raises(SystemExit) as raised:
        trains(*typed.split())
    message = raised.value.code  # a text: Python prints it on stderr and exits with status 1
    assert len(message.splitlines()) == 1
    begin, _, end = f"error: {answer}".partition("…")
    assert message.startswith(begin)
    assert message.endswith(end)
    assert "…" in answer or message == begin


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
        (" --workdir=some/folder", "some/folder"),
    ],
)
def test_the_workdir_is_named_after_config_method_and_seed(arguments, workdir, command, capsys):
    assert str(command(*(DIGITS + arguments).split())[1]) == workdir
    assert capsys.readouterr().out == f"workdir: {workdir}\n"


def test_settings_override_arguments_which_override_the_config_file(command):
    config, _ = command(
        f"{DIGITS}:epochs=2,imbalance=10,mean=(0.5,)", "--config.epochs=3", "--config.dsb.alpha=1.5",
        "--config.start_epoch=2", "--config.head=cosine", "--config.std=(0.25,)", "--noconfig.dsb.interclass",
    )  # fmt: skip
    assert (config.dataset, config.imbalance, config.epochs) == ("digits", 10.0, 3)
    assert (config.dsb.alpha, config.start_epoch, config.head, config.dsb.interclass) == (1.5, 2, "cosine", False)
    assert (config.mean, config.std) == ((0.5,), (0.25,))


def test_an_interrupt_is_no_traceback(command, monkeypatch, capsys):
    def interrupted(config, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "train", interrupted)
    with pytest.raises(SystemExit) as raised:
        command(DIGITS)
    assert raised.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def shell(folder, *arguments):
    """The real thing, in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "dsb_jax.main", *arguments],
        cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


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
