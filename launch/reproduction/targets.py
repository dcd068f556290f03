"""What a table or figure consists of: cells, each of which is a run but for its seed, or commands."""

import csv
import dataclasses
import functools
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "launch" / "results"

# Where a study is done: by the paper's recipes; on one GPU; on a CPU, by smaller networks and fewer epochs.
SCALES = ("paper", "gpu", "cpu")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run but for its seed: a method on a dataset.

    Attributes:
      method: as the paper writes it.
      on: dataset and network, what a column or block of the table is about.
      config: name of a file in ``configs/``.
      settings: what is behind the colon.
      base: the method that it is compared with, which differs in the balancer alone; or None.
      printed: the paper's numbers by measure, in its units.
    """

    method: str
    on: str
    config: str
    settings: str = ""
    base: str | None = None
    printed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """A folder's name.

        Example:
          >>> Cell("DSB-CE+IFL", "CIFAR-10-LT, imbalance 50", "cifar10_lt").name
          'cifar-10-lt-imbalance-50/dsb-ce-ifl'
        """
        return "/".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in (self.on, self.method))

    def configured(self, *more: str) -> ConfigDict:
        """Its settings; ``more`` come last.

        Raises:
          ValueError: an unknown setting, or a value that it cannot have.
        """
        return configured(self.config, join(self.settings, *more))


@dataclasses.dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
      title: what it shows.
      lines: of the paper's text.
      cells: by scale; a scale that lacks is not offered.
      measures: of results, that its page has: ``{key: heading}``.
      commands: what makes it, where it is not of runs: arguments of ``python``, ``{out}`` being a folder.
      needs: datasets that the commands read.
      input: files of the user's that the commands read, as ``{input}``, in words; empty where they read none.
      notes: by scale, how it differs from the paper's.
      reason: why there is nothing to run; empty where there is.
      plots: what its page shows besides differences from bases: functions of :mod:`reproduction.plots`.
    """

    title: str
    lines: str
    cells: Mapping[str, tuple[Cell, ...]] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commands: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ()
    input: str = ""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reason: str = ""
    plots: tuple[Callable, ...] = ()


def join(*settings: str) -> str:
    """Settings one after the other.

    Example:
      >>> join("epochs=5", "", "seed=1")
      'epochs=5,seed=1'
    """
    return ",".join(filter(None, settings))


@functools.cache
def load_config(name: str):
    """The module ``configs/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f"configs_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def configured(name: str, settings: str) -> ConfigDict:
    """What ``configs/<name>.py:<settings>`` says."""
    return load_config(name).get_config(settings).lock()


@functools.cache
def printed_rows(table: str) -> tuple[dict[str, str], ...]:
    """The rows of a table of the paper, as ``launch/results/paper`` has it."""
    with open(RESULTS / "paper" / f"{table}.csv", newline="") as file:
        return tuple(csv.DictReader(file))


def printed(table: str, columns: Mapping[str, str], **row: str) -> dict[str, float]:
    """Numbers of one row of the paper's table, by measure; those that it does not give are left out.

    Args:
      table: such as ``"table02"``.
      columns: measure to column.
      **row: what the row has in other columns.

    Raises:
      ValueError: there is no such row, or more than one.

    Example:
      >>> printed("table02", {"top1": "in_overall"}, method="CE")
      {'top1': 44.4}
    """
    found = [each for each in printed_rows(table) if all(each[key] == value for key, value in row.items())]
    if len(found) != 1:
        raise ValueError(f"{table} must have one row with {row}, got {len(found)}")
    return {measure: float(found[0][column]) for measure, column in columns.items() if found[0].get(column)}


def bases(cells: Iterable[Cell]) -> list[tuple[Cell, Cell]]:
    """Each cell with that of its base, on the same dataset."""
    by_name = {(cell.on, cell.method): cell for cell in cells}
    return [(cell, by_name[cell.on, cell.base]) for cell in by_name.values() if cell.base is not None]
