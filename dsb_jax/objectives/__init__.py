"""Objectives: what a method makes of a batch, as terms that the training step weighs and adds up.

An objective is built from a loss and knows no class weights. It returns a list of :class:`Term`, and the step has one
rule for all: ``loss = Σ_terms mean(scale·weights[labels]·losses)``. Views, experts or a memory are further terms.
"""

from dsb_jax.objectives.balms import Balms
from dsb_jax.objectives.bbn import BBN
from dsb_jax.objectives.difficulty import DomainBalancing, Loce
from dsb_jax.objectives.dive import Dive
from dsb_jax.objectives.invariant import InvariantFeatures
from dsb_jax.objectives.memory import MemoryJitter, memory_capacity
from dsb_jax.objectives.metric import NormSoftmax, SoftTriple
from dsb_jax.objectives.paco import GPaco, Paco
from dsb_jax.objectives.regularized import Regularized
from dsb_jax.objectives.ride import Ride, RideRouting
from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Objective, Result, Term, majority_labels, state_shardings, total_loss

__all__ = [
    "BBN",
    "Balms",
    "Dive",
    "DomainBalancing",
    "GPaco",
    "InvariantFeatures",
    "Loce",
    "MemoryJitter",
    "NormSoftmax",
    "Objective",
    "Paco",
    "Regularized",
    "Result",
    "Ride",
    "RideRouting",
    "SoftTriple",
    "Supervised",
    "Term",
    "majority_labels",
    "memory_capacity",
    "names",
    "state_shardings",
    "total_loss",
]

_NAMES = (
    "balms",
    "bbn",
    "deconfound_tde",
    "dive",
    "domain_balancing",
    "gpaco",
    "ifl",
    "loce",
    "mbj",
    "norm_softmax",
    "paco",
    "ride",
    "ride_routing",
    "soft_triple",
    "supervised",
)


def names() -> list[str]:
    """The objectives that a config may name, sorted.

    Example:
      >>> "supervised" in names()
      True
    """
    return sorted(_NAMES)
