"""Every file in ``errors``: what a user types, and the one line that answers it.

A file may begin with a line ``# ...``: names of situations in :mod:`error_situations`, or of files that there are
besides those that the command names. Files of ``dsb_jax.main`` lie in the folder itself, those of other programs in one
of their own.
"""

import contextlib
import importlib
import logging
import os
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest
from error_situations import ROOT, SITUATIONS, write

from dsb_jax import data, main

# config_flags loads a config file by a deprecated method of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

FOLDER = pathlib.Path(__file__).parent / "errors"
ERRORS = sorted(FOLDER.rglob("*.txt"))
MAIN = "dsb_jax.main"
MODULES = (MAIN, "dsb_jax.toolkit", "dsb_jax.data", "dsb_jax.data.prepare", "dsb_jax.models")
SCRIPTS = ("plan", "local", "reproduce", "post_hoc", "benchmark")


class Typed(NamedTuple):
    """A file: ``output`` is where stdout goes, None if the command does not say."""

    situations: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]
    output: str | None
    answer: str


def parsed(path):
    *comment, typed, answer = path.read_text().splitlines()
    python, *words = shlex.split(typed.removeprefix("$ "))
    assert python == "python"
    output = None
    if words[-2:-1] == [">"]:
        *words, _, output = words
    program, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    situations = tuple(comment[0].removeprefix("# ").split()) if comment else ()
    return Typed(situations, program, tuple(arguments), output, answer)


def main_of(program):
    """The function that the program consists of."""
    if program in MODULES:
        name = program if program == "dsb_jax.data.prepare" else f"{program}.__main__"
        return importlib.import_module(name).main
    script = pathlib.PurePath(program)
    assert script.parent.name == "launch"
    assert script.stem in SCRIPTS
    return importlib.import_module(script.stem).main


def answered(typed, folder, trains, monkeypatch, capsys):
    """The exit code and what there is on stdout and stderr."""
    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    for word in (*typed.situations, *typed.arguments):
        write(word.removeprefix("./"), folder)
    if typed.program == MAIN or "digits" in typed.arguments:
        data.load("digits", "test")  # prepared, so that nothing but the line is to be seen
    with contextlib.ExitStack() as stack:
        for name in typed.situations:
            if name in SITUATIONS:
                SITUATIONS[name](folder, monkeypatch, stack)
        if typed.output is not None:
            monkeypatch.setattr(sys, "stdout", stack.enter_context(open(typed.output, "w")))
        capsys.readouterr()
        before = {file: file.read_bytes() for file in folder.glob("run/**/*") if file.is_file()}
        try:
            code = trains(*typed.arguments) if typed.program == MAIN else main_of(typed.program)(typed.arguments)
        except SystemExit as end:
            code = end.code
        lost = [file for file, content in before.items() if not kept(folder / "run", file, content)]
        assert lost == []
        out, err = capsys.readouterr()
    if isinstance(code, str):  # which Python prints on stderr before it exits with status 1
        code, err = 1, f"{err}{code}\n"
    return code, out, err.replace(f"{folder}/", "")


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_the_answer_is_one_line(path, trains, tmp_path, monkeypatch, capsys):
    typed = parsed(path)
    line = next(line for line in path.read_text().splitlines() if line.startswith("$ "))
    subprocess.run(["bash", "-nc", line.removeprefix("$ ")], check=True)  # as a shell reads it, too
    code, out, err = answered(typed, tmp_path, trains, monkeypatch, capsys)
    if typed.program in (MAIN, "dsb_jax.data.prepare"):  # which may have begun, and show how far they are
        out, err = "", f"{err.splitlines()[-1]}\n"
    expected = 1 if typed.program == MAIN else 130 if "ctrl_c" in typed.situations else 2
    assert (code, out, err) == (expected, "", f"{typed.answer}\n")


def kept(folder, file, content):
    """Nothing that was written is lost: it may be renamed, and a lock may get another owner."""
    if file.name in (".lock", "metrics.jsonl"):
        return file.exists()
    return any(other.read_bytes() == content for other in folder.rglob(file.name))


def test_every_program_has_errors():
    programs = {parsed(path).program for path in ERRORS}
    assert programs == {*MODULES, *(f"launch/{script}.py" for script in SCRIPTS)}


def test_every_command_of_the_toolkit_has_errors():
    typed = [parsed(path).arguments[:1] for path in FOLDER.glob("toolkit/*.txt")]
    for command in ("scales", "marginal", "collect", "select", "hierarchy", "correlate", "drift", "geometry", "report"):
        assert (command,) in typed


@contextlib.contextmanager
def nobody_reads(monkeypatch):
    """Stdout is a pipe whose other end is closed, as that to ``head`` when it has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as shut:
        monkeypatch.setattr(sys, "stdout", shut)
        yield


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("dsb_jax.toolkit", ["scales", "bugs.npz"]),
        ("dsb_jax.models", ["lenet"]),
        ("launch/plan.py", ["toolkit", "1000", "10", "64"]),
    ],
)
def test_a_reader_that_has_seen_enough_ends_a_program_quietly(
    program, arguments, tmp_path, monkeypatch, capsys, logging_as_before
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    write("bugs.npz", tmp_path)
    with nobody_reads(monkeypatch):
        assert main_of(program)(arguments) == 0
    assert capsys.readouterr().err == ""


def test_a_run_goes_on_when_nobody_reads_what_it_says(trains, tmp_path, monkeypatch, capsys):
    steps = []

    def train(config, workdir, resume):
        for step in range(3):
            logging.getLogger("dsb_jax").info("step %d", step)
            steps.append(step)
        raise ValueError("the end")

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr(main, "train", train)
    with nobody_reads(monkeypatch), pytest.raises(SystemExit):
        trains("--config=configs/digits_lt.py")
    assert steps == [0, 1, 2]
    assert capsys.readouterr().err == "stdout: Broken pipe; the run goes on without it\nerror: the end\n"
