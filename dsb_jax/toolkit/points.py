"""Points with classes: what the toolkit measures, checked once."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dsb_jax import validation

_ROWS_AT_A_TIME = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Rows of an input in memory.

    Attributes:
      points: floating ``[n, d]``, finite.
      labels: int32 ``[n]`` in ``[0, C)``.
      class_names: C names.
      space: what the rows are: ``"feature"``, ``"sample"`` (images as vectors of pixels) or ``"cloud"``.
      name: what they are of, for titles.
    """

    points: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    space: str = "feature"
    name: str = "points"

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def counts(self) -> np.ndarray:
        """Rows of each class, int64 ``[C]``."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def rows_of(self, label: int) -> np.ndarray:
        """The rows of one class, float64 ``[m, d]``."""
        return self.points[self.labels == label].astype(np.float64)


def of(
    points: ArrayLike,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    *,
    space: str = "feature",
    name: str = "points",
) -> Points:
    """Checks points.

    Args:
      points: floating ``[n, d]``.
      labels: integers ``[n]``, from 0; all of one class if it is None.
      class_names: by default the numbers of the labels.
      space: see :class:`Points`.
      name: likewise.

    Raises:
      ValueError: naming the first row that is not finite and its class, or what else is wrong.

    Example:
      >>> of(np.array([[0.0, 1.0], [np.nan, 2.0]]), np.array([0, 1]), ["cat", "dog"], name="a.npz")
      Traceback (most recent call last):
      ValueError: a.npz: points must be finite, got NaN or infinity in row 1 (class dog)
    """
    points = np.asarray(points)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"{name}: points must have shape [samples, dim] and not be empty, got {list(points.shape)}")
    if points.dtype.kind not in "iubf":
        raise ValueError(f"{name}: points must be numbers, got {points.dtype}")
    points = floating(points)
    labels = np.zeros(len(points), np.int32) if labels is None else np.asarray(labels)
    if class_names is None:
        if labels.shape != (len(points),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{name}: labels must be integers [{len(points)}], one per row, got {labels.dtype} {list(labels.shape)}"
            )
        class_names = [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
    class_names = tuple(str(name) for name in class_names)
    try:
        validation.labels(labels, len(class_names), samples=len(points))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    labels = labels.astype(np.int32)
    require_finite(points, labels, class_names, name=name)
    return Points(points, labels, class_names, space, name)


def floating(numbers: np.ndarray) -> np.ndarray:
    """Integers in a floating dtype that holds them; others as they are.

    Example:
      >>> floating(np.array([1], np.uint8)).dtype, floating(np.array([2**30 + 1], np.int32)).tolist()
      (dtype('float32'), [1073741825.0])
    """
    if numbers.dtype.kind == "f":
        return numbers
    return numbers.astype(np.float32 if numbers.dtype.itemsize < 4 else np.float64)


def require_finite(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    name: str,
    first_row: int = 0,
    below: float = np.inf,
) -> None:
    """Raises ValueError that names the first row with a NaN, an infinity or a number that is not ``below``.

    ``first_row`` is the number of the first of the rows.
    """
    for start in range(0, len(points), _ROWS_AT_A_TIME):
        block = points[start : start + _ROWS_AT_A_TIME]
        if max(-float(block.min()), float(block.max())) < below:  # never so of a NaN
            continue
        bad = ~(np.abs(block.astype(np.float64)) < below).all(axis=1)
        row = start + int(bad.argmax())
        finite = np.isfinite(points[row]).all()
        found = f"{np.abs(points[row]).max():.3g}" if finite else "NaN or infinity"
        more = f" and {int(bad.sum()) - 1} more near it" if bad.sum() > 1 else ""
        raise ValueError(
            f"{name}: points must be finite{f' and below {below:g}' if finite else ''}, got {found} in row "
            f"{first_row + row} (class {class_names[labels[row]]}){more}"
        )
