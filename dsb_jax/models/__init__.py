"""Image classifiers in Flax linen: ``apply(variables, images, train=...) -> Outputs(logits, features)``."""

from dsb_jax.models.assembly import create
from dsb_jax.models.branches import Branches
from dsb_jax.models.classifier import BACKBONE, Classifier, Outputs
from dsb_jax.models.experts import Experts
from dsb_jax.models.pytorch import from_torch, to_torch
from dsb_jax.models.summary import size
from dsb_jax.models.zoo import STEMS, names, takes

__all__ = [
    "BACKBONE",
    "STEMS",
    "Branches",
    "Classifier",
    "Experts",
    "Outputs",
    "create",
    "from_torch",
    "names",
    "size",
    "takes",
    "to_torch",
]
