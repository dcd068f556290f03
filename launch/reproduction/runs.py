"""Runs cells, and keeps what they found as rows of CSV: a run's numbers, and those of its classes.

A cell's run is ``python -m dsb_jax.main`` in a folder of its own; what was stopped goes on, and what is finished is not
run again. A run is judged by its last epoch, and nothing is chosen by what the test split says.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dsb_jax.evaluation import page
from reproduction.targets import ROOT, Cell, configured, join

# What a row of results has besides the measures.
FACTS = (
    *("target", "scale", "on", "method", "seed", "config", "settings", "commit", "hardware", "versions", "numbers"),
    *("subset", "seconds"),
)
MEASURES = (
    *("top1", "precision", "mean_average_precision", "head", "middle", "tail"),
    *("low_third", "middle_third", "high_third"),
    *("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r", "r_precision", "nmi"),
    *("r_N", "r_En", "r_W", "r_Sprime", *(f"r_S_alpha{alpha}" for alpha in ("1", "1.5", "2", "2.5", "3"))),
    "sum_of_volumes",
)
KEY = ("target", "scale", "on", "method", "seed")  # what sets a run's row apart from others
CLASSES = (*KEY, "class", "samples", "score", "volume", "scale_of_class", "average_precision")


class FailedError(Exception):
    """A run that ended with an error, whose last line this is."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a cell.

    Attributes:
      target: name of the table or figure.
      scale: at which it is studied.
      cell: what is run.
      seed: of the subset, the order of examples, the first weights and all else that is drawn.
      more: further settings, behind those of the cell.
    """

    target: str
    scale: str
    cell: Cell
    seed: int
    more: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """Under ``KEY``."""
        return (self.target, self.scale, self.cell.on, self.cell.method, str(self.seed))

    def folder(self, out: pathlib.Path) -> pathlib.Path:
        """Where it writes: tables that have the same cell share its runs."""
        return out / self.scale / self.cell.name / f"seed{self.seed}"

    @property
    def config(self) -> str:
        """File and settings, as they stand behind ``--config=``."""
        return f"configs/{self.cell.config}.py:{join(self.cell.settings, self.more, f'seed={self.seed}')}"

    def command(self, out: pathlib.Path) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "dsb_jax.main", f"--config={ROOT / self.config}", f"--workdir={self.folder(out)}"]

    def finished(self, out: pathlib.Path) -> bool:
        """Whether it is, with these settings, in whatever words.

        Raises:
          ValueError: it is with others.
        """
        folder = self.folder(out)
        if not (folder / "results.json").exists():
            return False
        had = _settings_file(folder).read_text() if _settings_file(folder).exists() else "other settings"
        if had != self.config and not self._is(had):
            raise ValueError(f"{folder} was run with {had}, not with {self.config}: give another --out")
        return True

    def _is(self, text):
        """Whether that means this run's config, as a default that is named and one that is not."""
        name, _, settings = text.removeprefix("configs/").partition(".py:")
        try:
            wanted = self.cell.configured(self.more, f"seed={self.seed}")
            return name == self.cell.config and configured(name, settings).to_dict() == wanted.to_dict()
        except ValueError:  # settings that there are no more
            return False


def _settings_file(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f"{folder.name}.settings")


def run(job: Job, out: pathlib.Path, cores: Iterable[int] | None = None) -> None:
    """Trains, or goes on with what was stopped; the log is ``seed<k>.log`` beside its folder.

    Args:
      job: the run.
      out: the folder of all runs.
      cores: of the CPU, on which it is to stay; by default all.

    Raises:
      FailedError: with the last line that the run wrote.
    """
    folder = job.folder(out)
    begun = folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _settings_file(folder).write_text(job.config)
    start = time.monotonic()
    with open(folder.parent / f"{folder.name}.log", "ab") as log:
        # What interrupts this process in a terminal interrupts that one too, which saves a checkpoint.
        process = subprocess.Popen(job.command(out), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)
        code = process.wait()
    if code:
        lines = pathlib.Path(log.name).read_text(errors="replace").strip().splitlines()
        raise FailedError(lines[-1] if lines else f"exit status {code}")
    if not begun:
        (folder / "seconds.txt").write_text(f"{time.monotonic() - start:.0f}\n")


def execute(command: Sequence[str], out: pathlib.Path, files: str | None) -> int:
    """Runs ``python`` with these arguments, with ``{out}`` and ``{input}`` filled in; the exit code."""
    arguments = [part.format(out=out, input=files) for part in command]
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode


def row(job: Job, out: pathlib.Path) -> dict[str, str]:
    """What a finished run found, under ``FACTS`` and ``MEASURES``; what it has not is empty."""
    folder = job.folder(out)
    results = json.loads((folder / "results.json").read_text())
    starts = json.loads((folder / "environment.json").read_text())
    environment = starts[-1]
    seconds = folder / "seconds.txt"
    facts = {
        **dict(zip(KEY, job.key, strict=True)),
        "config": job.cell.config,
        "settings": join(job.cell.settings, job.more),
        "commit": " ".join(dict.fromkeys(start["commit"] or "unknown" for start in starts)),
        "hardware": f"{environment['devices']} x {_device(environment)}",
        "versions": f"jax {environment['jax']}, flax {environment['flax']}",
        "numbers": results["numbers"],
        "subset": hashlib.sha256(np.load(folder / "train_indices.npy").astype("<i8").tobytes()).hexdigest()[:12],
        "seconds": seconds.read_text().strip() if seconds.exists() else "",
    }
    return facts | {key: f"{value:.6g}" for key, value in measured(results).items()}


def measured(results: Mapping[str, Any]) -> dict[str, float]:
    """The measures of ``results.json``, those that are defined.

    Example:
      >>> measured({"top1": 0.5, "by_scale": {"low": 0.25}, "correlations": {"samples": None}})
      {'top1': 0.5, 'low_third': 0.25}
    """
    found = {key: results[key] for key in MEASURES if key in results}
    found |= {f"{third}_third": value for third, value in results.get("by_scale", {}).items()}
    correlations, space = results.get("correlations", {}), results.get("correlations_by_space", {}).get("feature", {})
    found |= {"r_N": correlations.get("samples"), "r_En": correlations.get("effective_number")}
    found |= {"r_W": correlations.get("interclass"), "r_Sprime": space.get("volume")}
    found |= {f"r_S_alpha{alpha}": value for alpha, value in space.get("scale", {}).items()}
    trained = results.get("training_classes", results.get("per_class", {}))
    if trained:
        found["sum_of_volumes"] = sum(each["volume"] or 0.0 for each in trained.values())
    return {key: value for key, value in found.items() if value is not None}


def class_rows(job: Job, out: pathlib.Path) -> list[dict[str, str]]:
    """A row for every class that is tested, under ``CLASSES``."""
    results = json.loads((job.folder(out) / "results.json").read_text())
    key = dict(zip(KEY, job.key, strict=True))
    return [
        key
        | {
            "class": name,
            "samples": f"{found.get('samples', found['test_samples']):.0f}",
            "score": _text(found.get("accuracy", found.get("recall"))),
            "volume": _text(found["volume"]),
            "scale_of_class": _text(found["scale"]),
            "average_precision": _text(found.get("average_precision")),
        }
        for name, found in results["per_class"].items()
    ]


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def merge(path: pathlib.Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], key: Sequence[str]) -> None:
    """Writes rows into a file, whole or not at all, in the place of those that are alike in ``key``."""

    def of(each: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(each[column] for column in key)

    new = {of(each) for each in rows}
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*(each for each in read(path) if of(each) not in new), *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    page.write(path, text.getvalue())


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _device(environment: Mapping[str, Any]) -> str:
    """The accelerator, or the CPU's architecture, here where rows are written: JAX calls every one ``cpu``."""
    return environment["device"] if environment["device"] != "cpu" else f"cpu ({platform.machine()})"
