"""Volumes, interference and scales of classes in one space: of features, of images, of what is searched."""

from typing import Any

import numpy as np

import dsb_jax


def space(points: np.ndarray, labels: np.ndarray, num_classes: int, *, epsilon: float = 1.0) -> dict[str, Any]:
    """What :func:`dsb_jax.evaluation.correlations_by_alpha` asks of a space.

    Args:
      points: ``[n, d]``.
      labels: of these, ``[n]``.
      num_classes: C.
      epsilon: of the volumes.

    Returns:
      ``volumes [C]`` in bits, ``centers [C, d]`` and ``present [C]``.
    """
    return {
        "volumes": np.asarray(dsb_jax.class_volumes(points, labels, num_classes, epsilon=epsilon)),
        "centers": np.asarray(dsb_jax.class_centers(points, labels, num_classes)),
        "present": np.bincount(labels, minlength=num_classes) > 0,
    }


def measures(space: dict[str, Any], alpha: float) -> dict[str, np.ndarray]:
    """``volume``, ``interclass`` and ``scale`` of every class of a :func:`space`, ``[C]`` each."""
    volumes, centers, present = space["volumes"], space["centers"], space["present"]
    return {
        "volume": volumes,
        "interclass": np.asarray(dsb_jax.interclass_weights(centers, alpha, present=present)),
        "scale": np.asarray(dsb_jax.semantic_scales(volumes, centers, alpha, present=present)),
    }
