"""Volumes and centres of the classes of points, which their scales for any α are made of."""

from typing import Any

import numpy as np

from dsb_jax import validation
from dsb_jax.toolkit import moments
from dsb_jax.toolkit.points import Points


def space(points: Points, *, epsilon: float = 1.0) -> dict[str, Any]:
    """What :func:`dsb_jax.training.spaces.measures` asks of a space, measured in float64.

    Args:
      points: with their classes.
      epsilon: of the volumes.

    Returns:
      ``volumes`` float32 ``[C]`` in bits; ``centers`` float32 ``[C, d]`` about the mean of the present ones, which
      changes no distance and leaves the digits to what differs; and ``present`` bool ``[C]``.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> two = space(points.of(np.array([[1e6, 0.0], [1e6 + 2, 0.0], [1e6, 5.0]]), np.array([0, 0, 1])))
      >>> print(two["volumes"].round(4), two["centers"].tolist(), two["present"].tolist())
      [0.7925 0.    ] [[0.5, -2.5], [-0.5, 2.5]] [True, True]
    """
    epsilon = validation.positive("epsilon", epsilon)

    def of_class(rows: np.ndarray) -> tuple[float, np.ndarray]:
        return moments.volume(rows, epsilon=epsilon), rows.sum(axis=0) / max(len(rows), 1)

    found = moments.of_classes(points.points, points.labels, points.num_classes, of_class)
    volumes, centers = (np.array(column) for column in zip(*found, strict=True))
    present = points.counts > 0
    centers[present] -= centers[present].mean(axis=0)
    return {"volumes": volumes.astype(np.float32), "centers": centers.astype(np.float32), "present": present}
