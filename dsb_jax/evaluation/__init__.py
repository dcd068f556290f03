"""How well a model does, class by class.

The metrics are here; `report` and `compare`, which make pages of finished runs, and the `plots` and `curves` on them
load matplotlib and are submodules to import by name.
"""

from dsb_jax.evaluation.metrics import (
    class_accuracy,
    confusion_matrix,
    correlations,
    correlations_by_alpha,
    hardest_pairs,
    pearson,
    shot_accuracy,
)

__all__ = [
    "class_accuracy",
    "confusion_matrix",
    "correlations",
    "correlations_by_alpha",
    "hardest_pairs",
    "pearson",
    "shot_accuracy",
]
