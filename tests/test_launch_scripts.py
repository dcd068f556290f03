"""The scripts for clusters, with stand-ins for the clusters' own commands."""

import os
import pathlib
import subprocess
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
AWKWARD = ["--config=configs/x.py:mean=(0.5,),loss=focal", "--config.std=(0.25, 0.5)", "it's"]
SAYS_ITS_ARGUMENTS = 'for argument in "$@"; do echo "<$argument>"; done'


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """``cluster(name, script)`` makes a command of the cluster; HOME is that of one of its hosts."""
    commands, home = tmp_path / "bin", tmp_path / "home"
    for folder in (commands, home):
        folder.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))

    def make(name, script):
        (commands / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (commands / name).chmod(0o755)

    return make


def call(script, *arguments, **environment):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=os.environ | environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def host(cluster):
    """``gcloud`` runs what is meant for all hosts here, as ssh does."""
    cluster(
        "gcloud", 'for argument in "$@"; do case $argument in --command=*) exec bash -c "${argument#*=}";; esac; done'
    )
    folder = pathlib.Path(os.environ["HOME"]) / "dsb_jax"
    folder.mkdir()
    return folder


# Slurm.


@pytest.mark.parametrize("code", [0, 1, 143])
def test_slurm_a_job_that_saved_goes_back_into_the_queue(cluster, code):
    cluster("srun", f"{SAYS_ITS_ARGUMENTS}\nexit {code}")
    cluster("scontrol", SAYS_ITS_ARGUMENTS)
    done = call("slurm.sbatch", *AWKWARD, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="8")
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    begin = lines.index("<--cluster=slurm>") + 1
    assert lines[begin : begin + 3] == [f"<{argument}>" for argument in AWKWARD]
    assert lines[begin + 3 :] == (["saved; back into the queue", "<requeue>", "<17>"] if code == 143 else [])


def test_slurm_directives_come_before_the_first_command():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert "#SBATCH --signal=TERM@120" in lines
    assert "#SBATCH --requeue" in lines
    assert all(not line or line.startswith("#") for line in lines[: max(directives)])


# TPU pods.


def test_tpu_pod_runs_the_command_and_gives_its_exit_code(host):
    script = host / "says.sh"
    script.write_text(f"{SAYS_ITS_ARGUMENTS}\npwd\nexit 7\n")
    done = call("tpu_pod.sh", "pod", "--zone=z", "--", "bash", script, *AWKWARD)
    assert done.returncode == 7, done.stderr
    name = os.uname().nodename
    assert done.stdout.splitlines() == [*(f"[{name}] <{argument}>" for argument in AWKWARD), f"[{name}] {host}"]


def test_tpu_pod_stop_sends_sigterm_to_the_command(host):
    script = host / "waits.sh"
    script.write_text('trap "echo saved; exit 143" TERM\necho ready\nwhile true; do sleep 0.1; done\n')
    running = subprocess.Popen(
        ["bash", LAUNCH / "tpu_pod.sh", "pod", "--", "bash", script], stdout=subprocess.PIPE, text=True
    )
    with running:
        assert running.stdout.readline().endswith("] ready\n")
        second = call("tpu_pod.sh", "pod", "--", "true")
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr == f"error: a command is running on {os.uname().nodename}; --stop ends it\n"
        assert call("tpu_pod.sh", "pod", "--stop").returncode == 0
        assert running.stdout.read().endswith("] saved\n")
    assert running.returncode == 143


def test_tpu_pod_the_command_goes_on_without_the_connection(host):
    script = host / "waits.sh"
    script.write_text('trap "echo saved; exit 143" TERM\necho ready\nwhile true; do sleep 0.1; done\n')
    with subprocess.Popen(
        ["bash", LAUNCH / "tpu_pod.sh", "pod", "--", "bash", script],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout.readline().endswith("] ready\n")
        os.killpg(running.pid, 9)
    assert call("tpu_pod.sh", "pod", "--stop").returncode == 0
    log, deadline = host / "run.log", time.monotonic() + 30
    while "saved" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text() == "ready\nsaved\n"


def test_tpu_pod_prints_what_it_would_call(cluster):
    done = call("tpu_pod.sh", "pod", "--zone=z", "--project=p", "--install", "--dry-run", "--", "true")
    assert done.returncode == 0, done.stderr
    calls = [line for line in done.stdout.splitlines() if line.startswith("gcloud ")]
    assert [line.split()[:5] for line in calls] == [
        ["gcloud", "compute", "tpus", "tpu-vm", verb] for verb in ("scp", "ssh", "ssh")
    ]
    for line in calls:
        assert " --zone=z --project=p --worker=all" in line


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "error: the name of the pod is missing"),
        (["pod"], "error: nothing to do: --install, --stop or a command behind --"),
        (["pod", "python"], "error: unexpected argument python; the command stands behind --"),
        (["pod", "--zones=z", "--", "true"], "error: unknown option --zones=z"),
    ],
)
def test_tpu_pod_answers_bad_arguments_in_one_line(arguments, answer):
    done = call("tpu_pod.sh", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{answer}\n")


# XPK.


def test_xpk_quotes_what_it_passes_on(cluster):
    cluster("xpk", SAYS_ITS_ARGUMENTS)
    cluster("python", SAYS_ITS_ARGUMENTS)
    done = call("xpk.sh", *AWKWARD, CLUSTER="c", IMAGE="i")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["<workload>", "<create>", "<--cluster=c>", "<--workload=dsb>"]
    [command] = [line[1:-1].removeprefix("--command=") for line in lines if line.startswith("<--command=")]
    seen = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    assert seen == ["<-m>", "<dsb_jax.main>", "<--cluster=tpu>", *(f"<{argument}>" for argument in AWKWARD)]


# GKE.


def test_gke_what_ends_with_143_starts_again_without_being_counted():
    [jobset] = yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    [jobs] = jobset["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # Kubernetes wants it where there is a podFailurePolicy
    [container] = pod["containers"]
    saved, disrupted = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [143]}
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
