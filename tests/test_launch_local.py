"""Several processes of one machine: what each is told, what comes of their output, and how they end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[1] / "launch" / "local.py"

# Says that it is there, then waits; SIGTERM makes it end with 143.
WAITS = """
import os, signal, sys, time
def end(*_):
    print("told to end")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


def command(*options, code):
    return [sys.executable, LAUNCHER, *options, "--", sys.executable, "-c", code]


def launch(*options, code, **environment):
    return subprocess.run(
        command(*options, code=code), env=os.environ | environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def by_process(text, processes=2):
    """Lines of each process, without the prefix."""
    lines = {index: [] for index in range(processes)}
    for line in text.splitlines():
        index = next((index for index in range(1, processes) if line.startswith(f"[{index}] ")), 0)
        lines[index].append(line.removeprefix(f"[{index}] "))
    return lines


def test_every_process_is_told_who_it_is(monkeypatch):
    for name in ("NPROC", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    code = "import json, os; print(json.dumps(dict(os.environ, session=os.getsid(0), process=os.getpid())))"
    done = launch("--processes=3", "--devices=4", code=code, SOME_VARIABLE="kept")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for [line] in by_process(done.stdout, 3).values()]
    assert [environment["JAX_PROCESS_ID"] for environment in told] == ["0", "1", "2"]
    [address] = {environment["JAX_COORDINATOR_ADDRESS"] for environment in told}
    host, port = address.split(":")
    assert host == "localhost"
    assert 1024 <= int(port) < 65536
    for environment in told:
        assert environment["JAX_NUM_PROCESSES"] == "3"
        assert environment["JAX_NUM_CPU_DEVICES"] == "4"
        assert environment["NPROC"] == "16"
        assert environment["SOME_VARIABLE"] == "kept"
        assert environment["session"] == environment["process"]


def test_what_is_set_stays_and_what_is_not_asked_for_is_not_set(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    code = "import os; print(os.environ['NPROC'], os.environ.get('JAX_NUM_CPU_DEVICES'))"
    assert launch("--processes=1", code=code, NPROC="3").stdout == "3 None\n"


def test_lines_of_all_but_the_first_process_have_a_prefix():
    code = """
import os, sys
index = os.environ["JAX_PROCESS_ID"]
print(f"out of {index}\\n\\nä", end="")
print(f"err of {index}", file=sys.stderr)
"""
    done = launch("--processes=2", code=code, PYTHONIOENCODING="utf-8")
    assert by_process(done.stdout) == {0: ["out of 0", "", "ä"], 1: ["out of 1", "", "ä"]}
    assert sorted(done.stderr.splitlines()) == ["[1] err of 1", "err of 0"]


def test_lines_come_when_they_are_written():
    code = "import time; print('early', flush=True); time.sleep(60)"
    with subprocess.Popen(command("--processes=2", code=code), stdout=subprocess.PIPE, text=True) as launcher:
        lines = {launcher.stdout.readline() for _ in range(2)}
        assert launcher.poll() is None
        launcher.terminate()
        assert launcher.wait(timeout=30) == 143
    assert lines == {"early\n", "[1] early\n"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os, sys; sys.exit(3 * (os.environ['JAX_PROCESS_ID'] == '1'))", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
        # The second is the first to fail.
        (
            "import os, sys, time; first = os.environ['JAX_PROCESS_ID'] == '0'; time.sleep(first); sys.exit(5 - first)",
            5,
        ),
    ],
)
def test_the_exit_code_is_that_of_the_first_to_fail(code, expected):
    assert launch("--processes=2", code=code).returncode == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_processes_as_sigterm(number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as under nohup")
    with subprocess.Popen(command("--processes=3", code=WAITS), stdout=subprocess.PIPE, text=True) as launcher:
        ready = [launcher.stdout.readline() for _ in range(3)]
        launcher.send_signal(number)
        rest = launcher.stdout.read()
    assert sorted(ready) == ["[1] ready\n", "[2] ready\n", "ready\n"]
    assert by_process(rest, 3) == {index: ["told to end"] for index in range(3)}
    assert launcher.returncode == 143


def kills_itself(others):
    """Process 1 is killed when process 0 does ``others``."""
    return f"""
import os, pathlib, signal, sys, time
there = pathlib.Path(os.environ["THERE"])
if os.environ["JAX_PROCESS_ID"] == "1":
    while not there.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, lambda *_: print("told to end", flush=True))
there.touch()
{others}
"""


def test_when_one_is_killed_the_others_may_end_by_themselves(tmp_path):
    code = kills_itself("time.sleep(0.5); print('ended by itself')")
    done = launch("--processes=2", code=code, THERE=str(tmp_path / "there"))
    assert done.returncode == 128 + 9
    assert done.stdout == "ended by itself\n"
    assert done.stderr == "process 1 ended with 137; 1 more have 30 s to end\n"


def test_who_stays_too_long_is_told_to_end_and_then_killed(tmp_path):
    code = kills_itself("while True: time.sleep(0.1)")
    begin = time.monotonic()
    done = launch("--processes=2", "--grace=0.3", code=code, THERE=str(tmp_path / "there"))
    assert time.monotonic() - begin < 30
    assert done.returncode == 128 + 9
    assert done.stdout == "told to end\n"


def test_what_a_process_leaves_behind_ends_with_it():
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('done')"
    begin = time.monotonic()
    assert launch("--processes=1", code=code).stdout == "done\n"
    assert time.monotonic() - begin < 30


def test_when_nobody_reads_the_processes_are_told_to_end():
    code = "import time\nwhile True: print('line', flush=True); time.sleep(0.01)"
    with subprocess.Popen(command("--processes=2", code=code), stdout=subprocess.PIPE) as launcher:
        launcher.stdout.readline()
        launcher.stdout.close()
        assert launcher.wait(timeout=30) == 128 + signal.SIGTERM
