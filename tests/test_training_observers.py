"""What watches a run from the side: signals, the watchdog, traces, TensorBoard, and ways to run that change nothing."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import digits, flat

from dsb_jax import training
from dsb_jax.training import loop
from dsb_jax.training.events import Events
from dsb_jax.training.profile import Profile
from dsb_jax.training.termination import Terminated, Termination
from dsb_jax.training.watchdog import Watchdog

# Signals.


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_a_fit_place(number, exit_code):
    before = signal.getsignal(number)
    with Termination() as termination:
        termination.check()
        signal.raise_signal(number)
        with pytest.raises(Terminated) as raised:
            termination.check()
        assert raised.value.exit_code == exit_code
        assert signal.getsignal(number) == before  # the second time it does what it did
    assert signal.getsignal(number) == before


def test_outside_of_the_main_thread_signals_stay_as_they_are():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with Termination() as termination:
            termination.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


# The watchdog.


def test_a_hang_shows_where_every_thread_stands():
    code = (
        "import time\nfrom dsb_jax.training.watchdog import Watchdog\n"
        "def stuck():\n    time.sleep(1.5)\n"
        "with Watchdog(0.5):\n    stuck()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "nothing has happened for 0.5 s" in done.stderr
    assert "in stuck" in done.stderr


def test_a_run_that_moves_is_left_in_peace(caplog, capfd):
    with Watchdog(0.5) as watchdog:
        for _ in range(10):
            time.sleep(0.1)
            watchdog.beat()
    with Watchdog(float("inf")):
        time.sleep(0.1)
    assert caplog.messages == []
    assert capfd.readouterr().err == ""


# TensorBoard.


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_without_tensorflow_one_line_says_so(tmp_path, caplog):
    with caplog.at_level("INFO", logger="dsb_jax"), Events(tmp_path / "events") as writer:
        writer.write(1, {"loss": 0.5})
    assert len(caplog.messages) == 1
    assert "TensorFlow is not installed (pip install 'dsb-jax[tensorboard]')" in caplog.messages[0]
    assert not (tmp_path / "events").exists()


def test_switched_off_it_says_nothing(tmp_path, caplog):
    with caplog.at_level("INFO", logger="dsb_jax"), Events(None) as writer:
        writer.write(1, {"loss": 0.5})
    assert caplog.messages == []


def test_with_tensorflow_scalars_are_events(tmp_path):
    pytest.importorskip("tensorflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Events(tmp_path) as writer:
        writer.write(3, {"step": 3, "loss": 0.5, "weights": np.ones(10), "accuracy": np.float32(0.25)})
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "accuracy"}
    assert [event.step for event in events.Tensors("loss")] == [3]


def test_only_scalars_go_to_the_writer(monkeypatch):
    written = []

    class Writer:
        def write_scalars(self, step, scalars):
            written.append((step, scalars))

        def close(self):
            written.append("closed")

    writer = Events(None)
    monkeypatch.setattr(writer, "_writer", Writer())
    with writer:
        writer.write(3, {"step": 3, "loss": 0.5, "weights": np.ones(10)})
    assert written == [(3, {"loss": 0.5}), "closed"]


# Traces.


@pytest.mark.parametrize("text", ["10", "0:5", "5:0", "a:b", "5:5:5", "-1:2"])
def test_a_profile_that_makes_no_sense_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="profile must be"):
        Profile(text, tmp_path)


def test_the_trace_is_of_the_steps_asked_for(tmp_path, monkeypatch):
    recorded, calls = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", len(recorded) + 1)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop", len(recorded))))
    with Profile("3:2", tmp_path) as profile:
        for step in range(1, 7):
            profile.before(step)
            recorded.append(step)
            profile.after(step, jnp.zeros(()))
    assert calls == [("start", 3), ("stop", 4)]


def test_a_run_that_ends_within_the_trace_closes_it(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with Profile("2:100", tmp_path) as profile:
        profile.before(5)  # resumed within the range
        profile.after(5, jnp.zeros(()))
    assert calls == ["start", "stop"]


def test_a_trace_of_steps_that_are_not_made_is_missed(tmp_path, caplog):
    with Profile("5000:2", tmp_path) as profile:
        profile.before(8)
        profile.after(8, jnp.zeros(()))
    assert caplog.messages == ["there is no trace: the run made none of the steps 5000 to 5001"]


# Settings that change no result.


def results_and_lines(workdir):
    timing = {"images_per_second", "train_seconds"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in timing} for line in lines]
    return json.loads((workdir / "results.json").read_text()), lines


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain")
    training.train(digits("start_epoch=1,flip=True,crop_padding=1"), workdir)
    return results_and_lines(workdir)


@pytest.mark.slow
def test_streamed_traced_and_saved_more_often_a_run_gives_the_same_results(plain, tmp_path):
    config = digits("start_epoch=1,flip=True,crop_padding=1,resident_megabytes=0,profile=4:2,save_every=2")
    config.keep_checkpoints, config.tensorboard = 1, False
    training.train(config, tmp_path)
    assert results_and_lines(tmp_path) == plain
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_on_several_devices_a_run_gives_nearly_the_same_results(plain, tmp_path):
    training.train(digits("start_epoch=1,flip=True,crop_padding=1,devices=4"), tmp_path)
    results, lines = results_and_lines(tmp_path)
    assert [line["step"] for line in lines] == [line["step"] for line in plain[1]]
    for line, alone in zip(lines[:8], plain[1][:8], strict=True):  # differences grow with the steps
        for (name, value), (_, other) in zip(flat(line), flat(alone), strict=True):
            np.testing.assert_allclose(value, other, rtol=0.02, atol=5e-3, err_msg=name)
    assert abs(results["top1"] - plain[0]["top1"]) < 0.05


@pytest.mark.slow
def test_forced_a_finished_run_goes_on_for_more_epochs(tmp_path):
    training.train(digits("epochs=1,schedule=constant,sample_space=False"), tmp_path)
    first = results_and_lines(tmp_path)[1]
    longer = digits("epochs=2,schedule=constant,sample_space=False")
    with pytest.raises(ValueError, match=r"another config \(epochs: 1 -> 2\)"):
        training.train(longer, tmp_path)
    results = training.train(longer, tmp_path, resume="force")
    assert results["epochs"] == 2
    assert results_and_lines(tmp_path)[1][: len(first)] == first
    assert json.loads((tmp_path / "config.1.json").read_text())["epochs"] == 1
    anew = training.train(longer, tmp_path, resume="never")
    assert (tmp_path / "previous-1" / "results.json").exists()
    assert anew["steps"] == results["steps"]


@pytest.mark.slow
def test_forced_to_longer_epochs_the_run_evaluates_and_saves_at_their_ends(tmp_path):
    training.train(digits("epochs=2,sample_space=False,batch_size=32,balancer=uniform"), tmp_path)
    more = digits("epochs=3,sample_space=False,batch_size=64,balancer=uniform")  # 29 steps were 2 epochs, and are 4
    with pytest.raises(ValueError, match=r"step 29 .* lies beyond the run's 22 steps; choose more epochs or another"):
        training.train(more, tmp_path, resume="force")
    before = len(results_and_lines(tmp_path)[1])  # nothing was lost
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 2
    # 29 steps of 16 are the first epoch again, which was evaluated and saved as the second.
    smaller = digits("epochs=3,sample_space=False,batch_size=16,balancer=uniform")
    training.train(smaller, tmp_path, resume="force")
    evaluated = [line["step"] for line in results_and_lines(tmp_path)[1][before:] if "test_accuracy" in line]
    assert evaluated == [57, 85]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"57", "85"}


@pytest.mark.slow
def test_a_resumed_run_holds_one_state(tmp_path, monkeypatch):
    training.train(digits("epochs=1,sample_space=False"), tmp_path)
    (tmp_path / "results.json").unlink()
    programs = []
    original = loop.Program
    monkeypatch.setattr(loop, "Program", lambda *parts: programs.append(original(*parts)) or programs[0])
    training.train(digits("epochs=1,sample_space=False"), tmp_path)
    assert all(array.is_deleted() for array in jax.tree.leaves(programs[0].initial))


def test_deterministic_needs_its_flag_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")
    with pytest.raises(ValueError, match="deterministic needs --xla_gpu_deterministic_ops=true in XLA_FLAGS"):
        training.train(digits("deterministic=True"), tmp_path / "run")
