"""What the runs of a table or figure found."""

import dataclasses
import math
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dsb_jax.evaluation import paired
from reproduction import runs
from reproduction.targets import Cell, Target

# How names of measures begin that are no fractions.
_NO_FRACTIONS = ("r_N", "r_En", "r_W", "r_S", "sum_of_volumes")


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
        """Those of runs of the same seed."""
        ours, others = self.values(cell, measure), self.values(base, measure)
        return np.array([ours[seed] - others[seed] for seed in sorted(ours) if seed in others])

    def by_class(self, column: str) -> Mapping[tuple[str, str, str], Mapping[str, float]]:
        """What a column of the classes' rows has: ``{(on, method, seed): {class: value}}``, where it has something."""
        found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
        for row in self.classes:
            if row[column]:
                found[row["on"], row["method"], row["seed"]][row["class"]] = float(row[column])
        return found


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
