"""Objectives of metric learning: features are compared with each other, or with what the last layer has of classes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import losses, validation
from dsb_jax.losses.embeddings import normalized
from dsb_jax.losses.inputs import LARGEST_MARGIN
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Result, Term


@dataclasses.dataclass(frozen=True)
class Circle(Extension):
    """The terms of ``inner``, and circle loss of the features that it puts into the pool.

    So features of one class come together and others part, whatever the classifier makes of them. An anchor's loss has
    the weight of its class. The batch should hold several examples of a class: ``class_aware`` draws four at a time.

    Attributes:
      inner: the other objective.
      margin: m, in [0, 1].
      scale: γ, > 0.
      weight: factor of the circle loss, >= 0. As an anchor's loss is up to about γ, it is ``1/γ`` by default.

    Raises:
      ValueError: on a number out of range; from a call, on mixed images.

    Example:
      >>> objective = Circle(Supervised(losses.create("cross_entropy")))
      >>> objective.margin, objective.scale
      (0.4, 80.0)

    Source: Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020; that it stands beside
    a classification loss, and its factor, are ours.
    """

    margin: float = 0.4
    scale: float = 80.0
    weight: float = 1 / 80

    def __post_init__(self) -> None:
        validation.in_range("margin", self.margin, 0, 1)
        validation.positive("scale", self.scale)
        validation.at_least("weight", self.weight, 0)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, jax.Array], state: Any, rng: jax.Array) -> Result:
        """One term more than ``inner`` has."""
        if "share" in batch:
            raise ValueError(
                "circle compares images by their class, and mixed ones have two: mixup and cutmix must be 0"
            )
        result = self.inner(forward, batch, state, rng)
        hyper = {"margin": self.margin, "scale": self.scale}
        of_anchors = losses.circle(result.features, result.labels, mask=result.mask, **hyper)
        return result._replace(terms=[*result.terms, Term(of_anchors, result.labels, self.weight)])


@dataclasses.dataclass(frozen=True)
class NormSoftmax:
    """Normalised softmax: cross-entropy of the cosines of features and class weights, divided by ``temperature``.

    It needs the class weights, ``outputs.classifier``, and that the model's logits are cosines: those are what
    evaluation predicts by. The features that enter the pool are at length 1, as the loss sees them.

    Attributes:
      temperature: σ, > 0.
      samplers: of the batches.

    Example:
      >>> objective = NormSoftmax(temperature=0.5)
      >>> cosines = jnp.array([[1.0, 0.0]])
      >>> [f"{value:.3f}" for value in objective.loss(cosines, jnp.array([0]))]  # log(1 + 1/e²)
      ['0.127']

    Raises:
      ValueError: on a number out of range; from ``init``, if the model's head is another.

    Source: Zhai & Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019; their features pass through
    a normalisation of layers before, which is a matter of the model.
    """

    temperature: float = 0.05
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1

    def __post_init__(self) -> None:
        validation.positive("temperature", self.temperature)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """``[batch]``, of cosines ``[batch, classes]``."""
        return losses.cross_entropy(logits / self.temperature, labels)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng
        self._proxies(outputs)
        require_cosines("norm_softmax", variables)
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, jax.Array], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image."""
        outputs = forward(batch["image"])
        proxies, features = self._proxies(outputs), normalized(outputs.features)

        def loss(logits, labels):
            return losses.norm_softmax(features, labels, proxies=proxies, temperature=self.temperature)

        # Of the logits a balancer may ask, and softmax makes scores of these.
        seen = outputs._replace(features=features, logits=outputs.logits / self.temperature)
        return Supervised(loss)(lambda images: seen, batch, state, rng)

    def after_update(self, state: Any, params: Any) -> Any:
        """Nothing follows the parameters."""
        del params
        return state

    @staticmethod
    def _proxies(outputs):
        if outputs.classifier is None or outputs.classifier.ndim != 2:
            got = None if outputs.classifier is None else outputs.classifier.shape
            raise ValueError(f"norm_softmax needs a model with class weights [classes, dim], head='cosine'; got {got}")
        return outputs.classifier


@dataclasses.dataclass(frozen=True)
class SoftTriple:
    """SoftTriple: cross-entropy of the similarities to classes of several centres, and what merges centres.

    It needs the centres, ``outputs.classifier [classes, centers, dim]``, and that the model's logits are the
    similarities: those are what evaluation predicts by. Class weights multiply the loss and not the regularizer, which
    is of no example; the paper's Eq. 6 is without it (``tau`` = 0). The features that enter the pool are at length 1,
    as the loss sees them.

    Attributes:
      scale: λ, inverse temperature over classes, > 0.
      gamma: γ, temperature over a class's centres, > 0.
      tau: τ, the factor of the regularizer, >= 0.
      margin: δ, by how much the true class must be the most similar, in [0, 2].
      samplers: of the batches.

    Example:
      >>> objective = SoftTriple(scale=2.0, margin=0.5)
      >>> similarities = jnp.array([[1.0, 0.0]])
      >>> [f"{value:.3f}" for value in objective.loss(similarities, jnp.array([0]))]  # log(1 + 1/e)
      ['0.313']

    Raises:
      ValueError: on a number out of range; from ``init``, if the model's head is another.

    Source: Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019; Eq. 6 of the paper.
    """

    scale: float = 20.0
    gamma: float = 0.1
    tau: float = 0.2
    margin: float = 0.01
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1

    def __post_init__(self) -> None:
        for name in ("scale", "gamma"):
            validation.positive(name, getattr(self, name))
        validation.at_least("tau", self.tau, 0)
        validation.in_range("margin", self.margin, 0, LARGEST_MARGIN)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """``[batch]``, of similarities ``[batch, classes]``; without the regularizer."""
        true_class = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        return losses.cross_entropy(self.scale * (logits - self.margin * true_class), labels)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng, variables
        self._centers(outputs)
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, jax.Array], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image, and one for the centres."""
        outputs = forward(batch["image"])
        centers, features = self._centers(outputs), normalized(outputs.features)
        hyper = {"scale": self.scale, "gamma": self.gamma, "margin": self.margin}

        def loss(logits, labels):
            return losses.soft_triple(features, labels, centers=centers, **hyper)

        seen = outputs._replace(features=features, logits=self.scale * outputs.logits)
        result = Supervised(loss)(lambda images: seen, batch, state, rng)
        if not self.tau:
            return result
        regularizer = jnp.broadcast_to(losses.soft_triple_regularizer(centers), result.labels.shape)
        return result._replace(terms=[*result.terms, Term(regularizer, None, self.tau)])

    def after_update(self, state: Any, params: Any) -> Any:
        """Nothing follows the parameters."""
        del params
        return state

    @staticmethod
    def _centers(outputs):
        if outputs.classifier is None or outputs.classifier.ndim != 3:
            got = None if outputs.classifier is None else outputs.classifier.shape
            raise ValueError(
                f"soft_triple needs a model with class weights [classes, centers, dim], head='soft_triple'; got {got}"
            )
        return outputs.classifier


def require_cosines(name: str, variables: Any) -> None:
    """Raises ValueError if the last layer has a bias: that of a linear head, whose logits are no cosines."""
    head = variables.get("params", {}).get("head", {})
    if "bias" in head:
        raise ValueError(
            f"objective {name!r} needs logits that are cosines, got a linear head: models.create(…, head='cosine') "
            "makes one, and in a config head=cosine"
        )
