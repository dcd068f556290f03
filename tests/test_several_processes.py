"""Two processes of four devices train as one process of eight, and lose nothing where one of them is told to end or
dies; a run goes on with as many devices and processes as there are."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
import small_run
from ended_run import SETTINGS
from test_restart import ENDED_RUN, assert_as_whole, records

from dsb_jax.training import experiment as experiments
from dsb_jax.training import processes
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.program import Program

LAUNCHER = pathlib.Path(__file__).parents[1] / "launch" / "local.py"
OF_ALL = ("first step", "mid-epoch", "evaluation", "before save", "writing")
OF_THE_FIRST = ("written", "mid-save", "results", "report")
TWO_MINDS = pathlib.Path(__file__).parent / "two_minds.py"


def start(workdir, *moment, processes, devices, **environment):
    """The run of ended_run.py in so many processes of so many devices each."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | environment
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    launcher = [LAUNCHER, f"--processes={processes}", f"--devices={devices}", "--grace=2", "--"]
    command = [sys.executable, *launcher, sys.executable, ENDED_RUN, workdir, *moment]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs are, so that one compiles for all of its kind."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def single(folder):
    """A run of one process with eight devices that nothing ends."""
    done = start(folder / "single", processes=1, devices=8)
    assert done.returncode == 0, done.stderr
    return folder / "single"


@pytest.fixture(scope="module")
def double(folder):
    """A run of two processes with four devices each that nothing ends."""
    done = start(folder / "double", processes=2, devices=4)
    assert done.returncode == 0, done.stderr
    return folder / "double"


def final_state(workdir):
    """What the last checkpoint holds, on one device whatever it was saved on."""
    config = small_run.digits(**SETTINGS, devices=1)
    program = Program(config, experiments.build(config))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        restored = checkpoints.restore(program.initial)
    assert restored.step == 22
    return restored.state


def assert_alike(workdir, other):
    """Labels and their order to the bit, and what is computed up to the order in which float32 is summed."""
    assert (workdir / "train_indices.npy").read_bytes() == (other / "train_indices.npy").read_bytes()
    mine, wanted = records(workdir), records(other)
    assert [line["step"] for line in mine] == [line["step"] for line in wanted]
    for line, expected in zip(mine, wanted, strict=True):
        assert line.keys() == expected.keys()
        for key in line.keys() & {"loss", "gradient_norm", "weights", "volumes", "scales"}:
            np.testing.assert_allclose(np.array(line[key], float), np.array(expected[key], float), rtol=2e-2)
    mine, wanted = final_state(workdir), final_state(other)
    pool, expected = mine.balancing.state.pool, wanted.balancing.state.pool
    for name in ("labels", "next_labels", "cursor", "entered", "passes", "count"):
        np.testing.assert_array_equal(getattr(pool, name), getattr(expected, name))
    assert (mine.step, mine.skipped) == (wanted.step, wanted.skipped)
    chex.assert_trees_all_close(mine.params, wanted.params, rtol=1e-2, atol=1e-3)
    chex.assert_trees_all_close(pool.rows, expected.rows, rtol=1e-2, atol=1e-2)


def test_two_processes_train_as_one(single, double):
    assert_alike(double, single)
    results = [json.loads((workdir / "results.json").read_text()) for workdir in (single, double)]
    assert abs(results[0]["top1"] - results[1]["top1"]) <= 0.01
    environment = json.loads((double / "environment.json").read_text())
    assert len(environment) == 1  # one of them writes
    assert (environment[0]["devices"], environment[0]["processes"]) == (8, 2)


@pytest.mark.slow
def test_parameters_that_two_processes_divide_come_back_whole(single, folder):
    done = start(folder / "divided", processes=2, devices=2, SETTINGS=json.dumps({"fsdp_elements": 1000}))
    assert done.returncode == 0, done.stderr
    assert "('data', None)" in done.stdout  # the table of parameters says how they are divided
    assert_alike(folder / "divided", single)  # read on one device


@pytest.mark.slow
def test_two_processes_are_told_the_accuracy_of_held_out_images_and_that_some_classes_have_none(folder):
    settings = json.dumps({"balancer": "class_difficulty", "imbalance": 134.0, "start_epoch": 0})
    done = start(folder / "held out", processes=2, devices=2, SETTINGS=settings)
    assert done.returncode == 0, done.stderr
    evaluations = [line for line in records(folder / "held out") if "weights" in line]
    assert np.ptp(evaluations[-1]["weights"]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{"objective": "ifl"}, {"sampler": "semantic_scale"}])
def test_two_processes_draw_by_what_the_model_has_become_and_go_on_so(folder, chosen):
    name, settings = "_".join(chosen.values()), json.dumps(chosen)
    for number in (1, 2):
        done = start(folder / f"{name}{number}", processes=number, devices=4 // number, SETTINGS=settings)
        assert done.returncode == 0, done.stderr
    mine, wanted = records(folder / f"{name}2"), records(folder / f"{name}1")
    for line, expected in zip(mine, wanted, strict=True):
        for key in line.keys() & {"loss", "center_loss", "weights"}:
            np.testing.assert_allclose(np.array(line[key], float), np.array(expected[key], float), rtol=2e-2)
    workdir = folder / f"{name} ended"
    # Amid the second epoch, and then while the third begins.
    for moment, number in (("mid-epoch", "SIGTERM"), ("mid-epoch", "SIGTERM"), ("evaluation", "SIGKILL")):
        ended = start(workdir, moment, number, "1", processes=2, devices=2, SETTINGS=settings)
        assert ended.returncode != 0
    done = start(workdir, processes=2, devices=2, SETTINGS=settings)
    assert done.returncode == 0, done.stderr
    assert_as_whole(workdir, folder / f"{name}2")


@pytest.mark.slow
def test_two_processes_search_as_one_and_find_the_same_when_started_again(folder):
    chosen = {"task": "retrieval", "objective": "norm_softmax", "embedding": 8, "optimizer": "adam"}
    settings = json.dumps(chosen | {"learning_rate": 0.003, "cutmix": 0.0})
    for number in (1, 2):
        done = start(folder / f"searched{number}", processes=number, devices=4 // number, SETTINGS=settings)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((folder / f"searched{number}" / "results.json").read_text()) for number in (1, 2))
    assert abs(one["recall_at_1"] - two["recall_at_1"]) <= 0.03
    assert one["recall_at_1"] > 0.3  # by chance a tenth
    workdir = folder / "searched ended"
    for moment, number in (("evaluation", "SIGTERM"), ("results", "SIGKILL")):
        ended = start(workdir, moment, number, "1", processes=2, devices=2, SETTINGS=settings)
        assert ended.returncode != 0
    done = start(workdir, processes=2, devices=2, SETTINGS=settings)
    assert done.returncode == 0, done.stderr
    assert_as_whole(workdir, folder / "searched2")


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_processes(single, folder):
    workdir = folder / "elastic"
    ended = start(workdir, "mid-epoch", "SIGTERM", processes=1, devices=8)
    assert ended.returncode == 143, ended.stderr
    # Told to end is the second process, which writes nothing.
    ended = start(workdir, "evaluation", "SIGTERM", "1", processes=2, devices=2)
    assert ended.returncode == 143, ended.stderr
    assert "going on from step 5/22" in ended.stdout
    *_, before = damage_last(workdir)
    done = start(workdir, processes=1, devices=1)
    assert done.returncode == 0, done.stderr
    assert f"going on from step {before}/22" in done.stdout
    assert_alike(workdir, single)


def damage_last(workdir):
    """One bit of the largest file of the last checkpoint becomes another; gives the steps of the others."""
    folders = {float(path.name): path for path in (workdir / "checkpoints").iterdir() if path.name[0].isdigit()}
    last = folders.pop(max(folders))
    file = max((path for path in last.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    return sorted({int(number) for number in folders})


@pytest.mark.slow
def test_the_reverse_and_a_damaged_checkpoint_that_two_processes_meet(single, folder):
    workdir = folder / "reverse"
    for moment, shape in (("mid-epoch", (1, 1)), ("evaluation", (1, 4))):
        ended = start(workdir, moment, "SIGTERM", processes=shape[0], devices=shape[1])
        assert ended.returncode == 143, ended.stderr
    *_, before = damage_last(workdir)
    done = start(workdir, processes=2, devices=4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"-1, step {before} is taken") == 1  # the first process decides
    assert done.stdout.count(f"going on from step {before}/22") == 2  # for both
    assert_alike(workdir, single)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_two_processes_end_with_the_same_results(double, folder, seed):
    rng = random.Random(seed)
    workdir = folder / f"killed {seed}"
    kills = 0
    while kills < 5:
        moment = rng.choice((*OF_ALL, *OF_THE_FIRST))
        process = "0" if moment in OF_THE_FIRST else rng.choice(("0", "1", "all"))
        ended = start(workdir, moment, "SIGKILL", process, processes=2, devices=4)
        if ended.returncode == 0:  # the moment does not come any more in a run that is nearly done
            assert_as_whole(workdir, double)
            shutil.rmtree(workdir)
        else:
            assert ended.returncode == 128 + signal.SIGKILL, (moment, ended.stdout, ended.stderr)
            kills += 1
    done = start(workdir, processes=2, devices=4)
    assert done.returncode == 0, done.stderr
    assert_as_whole(workdir, double)
    mine, wanted = (jax.tree.map(plain, final_state(place)) for place in (workdir, double))
    chex.assert_trees_all_equal(mine, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["mid-epoch", "mid-save", "results"])
def test_eight_devices_of_one_process_resume_to_the_bit(single, folder, moment):
    workdir = folder / f"eight {moment}"
    killed = start(workdir, moment, processes=1, devices=8)
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr
    done = start(workdir, processes=1, devices=8)
    assert done.returncode == 0, done.stderr
    assert_as_whole(workdir, single)


@pytest.mark.slow
def test_two_processes_are_of_one_mind(folder):
    command = [sys.executable, LAUNCHER, "--processes=2", "--devices=2", "--grace=2", "--"]
    command += [sys.executable, TWO_MINDS, folder / "minds"]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(text) for text in re.findall(r"TOLD \d (.*)", done.stdout))
    for name in first.keys() - {"nobody fails"}:
        assert first[name] == second[name]
    assert (first["nobody fails"], second["nobody fails"]) == (0, 1)
    minds = folder / "minds"
    shared = minds / "shared" / "1"
    for told in (first, second):
        dataset = told.pop("another dataset")
        assert dataset.startswith("ValueError: processes must have the same dataset: process 0 has {'name': 'digits'")
        assert "process 1 {'name': 'digits'" in dataset
        assert "another run" in told.pop("taken")
    assert first | {"nobody fails": 0} == {
        "first decides": "decided by 0",
        "first fails": "ValueError: in 0",
        "nobody fails": 0,
        "second fails": "ValueError: in 1",
        "both fail": "ValueError: in 0",
        "full disk": "OSError: [Errno 28] No space left: 'run/x'",
        "same": None,
        "other": "ValueError: processes must have the same answer: process 0 has 42, process 1 43",
        "settings": "ValueError: processes must have the same setting seed: process 0 has 0, process 1 1",
        "fewer devices": "ValueError: devices must be all 4 in a run of 2 processes, got 2",
        "resume": "ValueError: processes must have the same resume: process 0 has auto, process 1 never",
        "second has no dataset": "ValueError: no dataset here",
        "no folder": f"ValueError: workdir {str(minds / 'file')!r} is not a folder",
        "finished": {"top1": 0.5},
        "not seen": f"ValueError: process 1 does not see the workdir {minds / 'not seen'} of process 0: "
        "it must be on a file system that all processes share",
        "restored": 1,
        "not shared": f"_NotShared: process 1 does not see {shared}: a workdir must be where all see it",
        "still there": [1],
    }


def plain(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


# Who the others are.


@pytest.fixture
def joined(monkeypatch):
    """What JAX is asked for instead of being asked."""
    calls = []
    monkeypatch.setattr(processes, "_require_first", lambda coordinator: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **named: calls.append((given, named)))
    for name in list(os.environ):
        if name.startswith(("JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS", "SLURM_", "TPU_WORKER")):
            monkeypatch.delenv(name)
    return calls


def test_alone_nobody_is_asked(joined, monkeypatch):
    processes.join()
    processes.join("none")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    processes.join()
    processes.join(coordinator="localhost:1", processes=1, process=0)
    assert joined == []


def test_flags_and_environment_say_it(joined, monkeypatch):
    processes.join(coordinator="node1:1234", processes=4, process=3)
    for name, value in (("COORDINATOR_ADDRESS", "node1:1234"), ("NUM_PROCESSES", "4"), ("PROCESS_ID", "3")):
        monkeypatch.setenv(f"JAX_{name}", value)
    processes.join()
    processes.join("none")
    assert joined == 2 * [(("node1:1234", 4, 3), {"cluster_detection_method": "deactivate"})]


@pytest.mark.parametrize(
    ("variables", "cluster", "method"),
    [
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "auto", None),
        ({"TPU_WORKER_HOSTNAMES": "host1,host2"}, "auto", None),
        ({}, "tpu", None),
        ({}, "slurm", "slurm"),
    ],
)
def test_clusters_say_it(joined, monkeypatch, variables, cluster, method):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    processes.join(cluster)
    assert joined == [((), {"cluster_detection_method": method})]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"processes": 2, "process": 0}, "coordinator, processes and process belong together: coordinator is missing"),
        ({"coordinator": "a:1"}, "coordinator, processes and process belong together: processes is missing"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "process must lie in [0, 2), the number of processes"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "coordinator must be HOST:PORT, got 'a'"),
        ({"cluster": "slrum"}, "unknown cluster 'slrum'; did you mean 'slurm'?"),
    ],
)
def test_numbers_that_do_not_fit(joined, numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processes.join(**numbers)
    assert joined == []


@pytest.mark.parametrize("error", [KeyError("SLURM_JOB_ID"), ValueError("coordinator_address should be defined.")])
def test_a_cluster_that_is_none_is_named(joined, monkeypatch, error):
    def fail(**options):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match="cluster=slurm does not say which processes there are") as raised:
        processes.join("slurm")
    assert str(error) in str(raised.value)


def test_a_first_process_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match="nobody listens at coordinator=localhost:9"):
        processes._require_first("localhost:9", seconds=0)
