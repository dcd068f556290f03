"""All that the toolkit finds in one input, on one page."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dsb_jax.toolkit import agglomeration, class_geometry, class_scales, correlation, growth, output, selection
from dsb_jax.toolkit.feature_drift import Drift
from dsb_jax.toolkit.findings import Finding
from dsb_jax.toolkit.points import Points

Progress = Callable[[str], Callable[..., Iterable[Any]] | None]

_ROWS_OF_SHAPES = 1000  # neighbours of more take minutes
_FEW_CLASSES = 200  # a tree of more takes long and cannot be read


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Several findings of one input.

    Attributes:
      name: of the input.
      classes: how many it has.
      found: by command, each with the heading of its section.
    """

    name: str
    classes: int
    found: dict[str, tuple[str, Finding]]

    def reading(self) -> str:
        """What each of them says."""
        left_out = f"A tree of more than {_FEW_CLASSES} classes is left out." if self.classes > _FEW_CLASSES else ""
        return " ".join([*(finding.reading() for _, finding in self.found.values()), left_out]).rstrip()

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each section."""
        return ("section", "plots"), [(heading, str(len(one.figures()))) for heading, one in self.found.values()]

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """None besides those of the page."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """By command."""
        findings = {command: finding.as_dict() for command, (_, finding) in self.found.items()}
        return {"name": self.name, "findings": findings}

    def write(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the page.

        Returns:
          Its path. It appears whole or not at all; an older one is replaced.
        """
        return output.write_page(list(self.found.values()), path, f"What semantic scale tells about {self.name}")


def report(
    points: Points,
    *,
    accuracy: np.ndarray | None = None,
    drift: Drift | None = None,
    keep: float = 0.1,
    alpha: float | None = None,
    epsilon: float = 1.0,
    seed: int = 0,
    progress: Progress = lambda what: None,
) -> Report:
    """Scales, growth, selection, the tree of classes and geometry of points; and what accuracy goes with.

    Args:
      points: what is measured.
      accuracy: fractions ``[C]`` of the classes, where they are known.
      drift: of the features, where they are of a run.
      keep: share of every class that a selection keeps.
      alpha: of the scales, see :func:`dsb_jax.toolkit.class_scales.scales`.
      epsilon: of all volumes.
      seed: of all that is drawn.
      progress: from what is done to ``(iterable, total) -> iterable``.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> rows = np.random.default_rng(0).normal(size=(90, 4))
      >>> list(report(points.of(rows, np.repeat([0, 1, 2], 30))).found)
      ['scales', 'marginal', 'select', 'hierarchy', 'geometry']
    """
    found: dict[str, tuple[str, Finding]] = {}
    measured = class_scales.scales(points, alpha=alpha, epsilon=epsilon, progress=progress("Scales"))
    found["scales"] = ("How diverse each class is", measured)
    growing = growth.marginal(points, epsilon=epsilon, seed=seed, progress=progress("Growth"))
    found["marginal"] = ("Whether more samples would help", growing)
    if accuracy is not None:
        going = correlation.correlate(accuracy, points, epsilon=epsilon, seed=seed, progress=progress("Correlations"))
        found["correlate"] = ("What accuracy goes with", going)
    chosen = selection.select(points, keep=keep, epsilon=epsilon, seed=seed, progress=progress("Selection"))
    found["select"] = ("What may be left out", chosen)
    if 1 < (points.counts > 1).sum() <= _FEW_CLASSES:
        tree = agglomeration.of(points, epsilon=epsilon, progress=progress("Tree"))
        found["hierarchy"] = ("Which classes belong together", tree)
    shape = class_geometry.geometry(
        points, rows=_ROWS_OF_SHAPES, epsilon=epsilon, seed=seed, progress=progress("Geometry")
    )
    found["geometry"] = ("What shape the classes have", shape)
    if drift is not None:
        found["drift"] = ("How features drifted in training", drift)
    return Report(points.name, points.num_classes, found)
