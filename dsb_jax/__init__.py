"""Semantic scale of classes and dynamic semantic-scale-balanced training, in JAX.

The names below are the core: pure functions that import jax alone. The trainer's packages load when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dsb_jax import balancers, feature_pool, interference, losses, semantic_scale
from dsb_jax.balancers import (
    Balancer,
    class_balanced,
    class_difficulty,
    inverse_frequency,
    inverse_sqrt_frequency,
    start_at,
    state_shardings,
    uniform,
    weighted_mean,
)
from dsb_jax.feature_pool import FeaturePool
from dsb_jax.semantic_scale import (
    class_centers,
    class_volumes,
    effective_number,
    interclass_weights,
    pixel_features,
    pool_features,
    sample_volumes,
    semantic_scales,
    volume,
)

if TYPE_CHECKING:  # whom ``__getattr__`` tells nothing
    from dsb_jax import data as data
    from dsb_jax import evaluation as evaluation
    from dsb_jax import models as models
    from dsb_jax import objectives as objectives
    from dsb_jax import toolkit as toolkit
    from dsb_jax import training as training

__version__ = "0.1.0"

_LAZY = ("data", "evaluation", "models", "objectives", "toolkit", "training")

__all__ = [
    "Balancer",
    "FeaturePool",
    "balancers",
    "class_balanced",
    "class_centers",
    "class_difficulty",
    "class_volumes",
    "effective_number",
    "feature_pool",
    "interclass_weights",
    "interference",
    "inverse_frequency",
    "inverse_sqrt_frequency",
    "losses",
    "pixel_features",
    "pool_features",
    "sample_volumes",
    "semantic_scale",
    "semantic_scales",
    "start_at",
    "state_shardings",
    "uniform",
    "volume",
    "weighted_mean",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
