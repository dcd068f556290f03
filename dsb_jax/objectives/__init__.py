"""Objectives: what a method makes of a batch, as terms that the training step weighs and adds up.

An objective is built from a loss and knows no class weights. It returns a list of :class:`Term`, and the step has one
rule for all: ``loss = Σ_terms mean(scale·weights[labels]·losses)``. Views, experts or a memory are further terms.

What a balancer sees of each, and what its weights multiply:

=================  ==================================  =============================================  ==================
objective          features in the pool                terms that class weights multiply              terms without
=================  ==================================  =============================================  ==================
supervised         the model's                         the loss; of a mixed image both parts, each    of LADE: the
                                                       by its own label                               regularizer
bbn                each branch's, with the label of    both parts of the mixed loss, each by its own
                   the image that went through it      label
ride               the experts' mean                   each expert's classification                   diversity,
                                                                                                      distillation
ride_routing       the experts' mean                                                                  the routers'
paco, gpaco        of the query, or the first view;    each anchor, by its own label
                   no keys
dive               the student's                       the loss against the label                     divergence from
                                                                                                      the teacher
balms              the model's                         the loss of an example, as many times as it
                                                       was drawn
deconfound_tde     the model's                         the loss
loce               the model's                         the loss
domain_balancing   the model's                         the loss
norm_softmax       of length 1, as the loss has them   the loss
proxy_anchor       of length 1, as the loss has them   each example's part of the loss of the batch
soft_triple        of length 1, as the loss has them   the loss                                       τ times the
                                                                                                      regularizer
circle             of length 1, as the loss has them   each anchor, by its own label
circle around a    as a has them                       those of a; each anchor, by its own label      those of a
mbj around a       as a has them                       those of a; those of remembered features and   those of a
                                                       of earlier last layers, by their own labels
ifl around a       as a has them                       those of a                                     distances from
                                                                                                      centres
=================  ==================================  =============================================  ==================

Mixed images enter the pool as of the class with the larger share of the loss: by half and more they are of it, and an
epoch without them would leave the pool empty. In stages (``cRT``, ``LWS``) a balancer acts in the last one, on the
classifier, unless ``stages`` says otherwise.
"""

from dsb_jax.objectives.balms import Balms
from dsb_jax.objectives.bbn import BBN
from dsb_jax.objectives.difficulty import DomainBalancing, Loce
from dsb_jax.objectives.dive import Dive
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.invariant import InvariantFeatures
from dsb_jax.objectives.memory import MemoryJitter, memory_capacity
from dsb_jax.objectives.metric import NormSoftmax, ProxyAnchor, SoftTriple
from dsb_jax.objectives.paco import GPaco, Paco
from dsb_jax.objectives.pairs import Circle, CircleExtension
from dsb_jax.objectives.regularized import Regularized
from dsb_jax.objectives.ride import Ride, RideRouting
from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Objective, Result, Term, majority_labels, result_of, state_shardings, total_loss

__all__ = [
    "BBN",
    "Balms",
    "Circle",
    "CircleExtension",
    "Dive",
    "DomainBalancing",
    "Extension",
    "GPaco",
    "InvariantFeatures",
    "Loce",
    "MemoryJitter",
    "NormSoftmax",
    "Objective",
    "Paco",
    "ProxyAnchor",
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
    "result_of",
    "state_shardings",
    "total_loss",
]

_NAMES = (
    "balms",
    "bbn",
    "circle",
    "deconfound_tde",
    "dive",
    "domain_balancing",
    "gpaco",
    "ifl",
    "loce",
    "mbj",
    "norm_softmax",
    "paco",
    "proxy_anchor",
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
