"""Volumes and centres of the classes of points, which their scales for any α are made of."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dsb_jax.toolkit import moments
from dsb_jax.toolkit.points import Points


def space(
    points: Points, *, epsilon: float = 1.0, progress: Callable[..., Iterable[Any]] | None = None
) -> dict[str, np.ndarray]:
    """What :func:`dsb_jax.training.spaces.measures` asks of a space, measured in float64.

    Args:
      points: with their classes.
      epsilon: of the volumes.
      progress: ``(iterable, total) -> iterable``, through which the classes pass.

    Returns:
      As :func:`of`.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> two = space(points.of(np.array([[1e6, 0.0], [1e6 + 2, 0.0], [1e6, 5.0]]), np.array([0, 0, 1])))
      >>> print(two["volumes"].round(4), two["centers"].tolist(), two["present"].tolist())
      [0.7925 0.    ] [[0.125, -0.625], [-0.125, 0.625]] [True, True]
    """
    given = points.points, points.labels, points.num_classes
    volumes, centers = moments.volumes_and_means(*given, epsilon=epsilon, progress=progress)
    return of(volumes, centers, points.counts)


def of(volumes: np.ndarray, centers: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """A space of what is known of its classes.

    Args:
      volumes: in bits ``[C]``.
      centers: ``[C, d]``.
      counts: samples ``[C]``.

    Returns:
      ``volumes`` as they are; ``centers`` float32 ``[C, d]`` about the mean of the present ones and times a power of
      two that leaves their largest entry below 1, which changes no ratio of distances; and ``present`` bool ``[C]``.
    """
    present = counts > 0
    if present.any():
        centers = centers - centers[present].mean(axis=0)
        centers = np.ldexp(centers, -np.frexp(np.abs(centers[present]).max())[1])
    return {"volumes": volumes, "centers": centers.astype(np.float32), "present": present}
