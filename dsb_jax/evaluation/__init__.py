"""How well a model does, class by class.

The metrics are here, of classification and of retrieval; `report` and `compare`, which make pages of finished runs, and
the `plots` and `curves` on them load matplotlib and are submodules to import by name.
"""

from dsb_jax.evaluation.metrics import (
    accuracy_by_scale,
    average_precision,
    class_accuracy,
    class_precision,
    confusion_matrix,
    correlations,
    correlations_by_alpha,
    hardest_pairs,
    pearson,
    shot_accuracy,
)
from dsb_jax.evaluation.retrieval import Found, cluster, measure, neighbors, nmi, recall_at_k

__all__ = [
    "Found",
    "accuracy_by_scale",
    "average_precision",
    "class_accuracy",
    "class_precision",
    "cluster",
    "confusion_matrix",
    "correlations",
    "correlations_by_alpha",
    "hardest_pairs",
    "measure",
    "neighbors",
    "nmi",
    "pearson",
    "recall_at_k",
    "shot_accuracy",
]
