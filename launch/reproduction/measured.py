"""What the runs of a table or figure found."""

import dataclasses
import functools
import math
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from dsb_jax.evaluation import paired
from dsb_jax.training.config import NEUTRAL
from reproduction import runs
from reproduction.targets import Cell, Target, configured

# How names of measures begin that are no fractions.
_NO_FRACTIONS = ("r_N", "r_En", "r_W", "r_S", "sum_of_volumes")

# In what runs may differ that are compared: in how they are done and watched, and in the settings of balancers.
_OF_WATCHING = NEUTRAL | {"log_every", "eval_every", "eval_batch_size"}
_OF_BALANCERS = ("balancer", "start_epoch", "dsb.", "class_balanced.", "class_difficulty.", "domain_frequency.")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What runs of one target at one scale found.

    Attributes:
      target: the table or figure.
      name: its name.
      scale: at which it was studied.
      rows: of results, as :mod:`reproduction.runs` writes them.
      classes: those of classes, likewise.
    """

    target: Target
    name: str
    scale: str
    rows: Sequence[Mapping[str, str]]
    classes: Sequence[Mapping[str, str]] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Those of the scale."""
        return self.target.cells[self.scale]

    @classmethod
    def of(cls, target: Target, name: str, scale: str, results: pathlib.Path) -> "Measured":
        """What the folder of results has of cells that the target has at this scale."""
        cells = {(cell.on, cell.method) for cell in target.cells.get(scale, ())}

        def rows(of: str) -> list[dict[str, str]]:
            return [
                row for row in runs.read(results / f"{name}-{scale}{of}.csv") if (row["on"], row["method"]) in cells
            ]

        return cls(target, name, scale, rows(""), rows("-classes"))

    def values(self, cell: Cell, measure: str) -> dict[str, float]:
        """A measure of a cell's runs by seed, in the paper's units."""
        unit = 100 if in_percent(measure) else 1
        return {
            row["seed"]: unit * float(row[measure])
            for row in self.rows
            if (row["on"], row["method"]) == (cell.on, cell.method) and row.get(measure)
        }

    def has(self, cell: Cell) -> bool:
        """Whether a run of the cell found something."""
        return any(self.values(cell, measure) for measure in self.target.measures)

    def differences(self, cell: Cell, base: Cell, measure: str) -> np.ndarray:
        """Those of runs of the same seed that are comparable."""
        ours, others = self.values(cell, measure), self.values(base, measure)
        seeds = [seed for seed in sorted(ours) if seed in others and self.comparable((cell, base), seed)]
        return np.array([ours[seed] - others[seed] for seed in seeds])

    def changes(self, row: Mapping[str, str]) -> Mapping[str, Any]:
        """What a run was told besides the settings of its cell: ``{name: value}``."""
        (cell,) = [cell for cell in self.cells if (cell.on, cell.method) == (row["on"], row["method"])]
        return _changes(cell.config, cell.settings, row.get("settings", cell.settings))

    def comparable(self, cells: Sequence[Cell], seed: str) -> bool:
        """Whether runs of a seed were told the same besides what their cells say, as a base and what it is a base of.

        How they are watched is no matter, nor is a start that DRW needs where epochs are fewer.
        """
        keys = {(cell.on, cell.method, seed) for cell in cells}
        told = [
            {
                name: value
                for name, value in self.changes(row).items()
                if name not in _OF_WATCHING and not name.startswith(_OF_BALANCERS)
            }
            for row in self.rows
            if (row["on"], row["method"], row["seed"]) in keys
        ]
        return all(each == told[0] for each in told)

    def by_class(self, column: str) -> Mapping[tuple[str, str, str], Mapping[str, float]]:
        """What a column of the classes' rows has: ``{(on, method, seed): {class: value}}``, where it has something."""
        found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
        for row in self.classes:
            if row[column]:
                found[row["on"], row["method"], row["seed"]][row["class"]] = float(row[column])
        return found


@functools.cache
def _changes(config: str, studied: str, had: str) -> dict[str, Any]:
    try:
        one, other = (flatten_dict(configured(config, text).to_dict(), sep=".") for text in (studied, had))
    except ValueError:  # a setting that there is no more
        return {"settings": had}
    return {name: other[name] for name in sorted(one) if one[name] != other[name]}


def in_percent(measure: str) -> bool:
    """Whether it is a fraction, which is told in per cent."""
    return not measure.startswith(_NO_FRACTIONS)


def standard_error(values: Iterable[float]) -> float:
    """Of the mean; NaN for fewer than two.

    Example:
      >>> round(standard_error([1.0, 2.0, 3.0]), 4)
      0.5774
    """
    values = np.asarray(list(values), float)
    return float(paired.deviation(values) / np.sqrt(len(values))) if len(values) > 1 else math.nan
