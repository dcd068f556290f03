"""How well a model does, class by class.

The metrics are here; `plots` and `report`, which load matplotlib, are submodules to import by name.
"""

from dsb_jax.evaluation.metrics import class_accuracy, confusion_matrix, correlations, pearson, shot_accuracy

__all__ = ["class_accuracy", "confusion_matrix", "correlations", "pearson", "shot_accuracy"]
