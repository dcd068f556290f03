"""Objectives of metric learning that compare features with what the last layer has of classes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import losses, validation
from dsb_jax.losses.embeddings import normalized
from dsb_jax.losses.inputs import LARGEST_MARGIN
from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Result, Term, Unmoved, result_of


@dataclasses.dataclass(frozen=True)
class NormSoftmax(Unmoved):
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
        class_weights("norm_softmax", outputs)
        require_cosines("norm_softmax", variables)
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """A term for each label of an image."""
        outputs = forward(batch["image"])
        proxies, features = class_weights("norm_softmax", outputs), normalized(outputs.features)

        def loss(logits, labels):
            return losses.norm_softmax(features, labels, proxies=proxies, temperature=self.temperature)

        # Of the logits a balancer may ask, and softmax makes scores of these.
        seen = outputs._replace(features=features, logits=outputs.logits / self.temperature)
        return Supervised(loss)(lambda images: seen, batch, state, rng)


@dataclasses.dataclass(frozen=True)
class ProxyAnchor(Unmoved):
    """Proxy Anchor: the class weights, as proxies, pull the batch's examples of their class and push the others.

    It needs the class weights, ``outputs.classifier``, and that the model's logits are cosines: those are what
    evaluation predicts by. The loss is of a whole batch of images that are not mixed; what a class weight then
    multiplies says :func:`dsb_jax.losses.proxy_anchor`. It wants batches with several examples of a class, as
    ``class_aware`` and ``pk`` draw. Evaluation reports the loss of each example as a batch of its own. The features
    that enter the pool are at length 1, as the loss sees them.

    Attributes:
      margin: δ, in [0, 1].
      scale: α, > 0.
      samplers: of the batches.

    Example:
      >>> objective = ProxyAnchor(margin=0.0, scale=1.0)
      >>> cosines = jnp.array([[1.0, 0.0]])
      >>> [f"{value:.3f}" for value in objective.loss(cosines, jnp.array([0]))]  # log(1 + 1/e) + (log 2)/2
      ['0.660']

    Raises:
      ValueError: on a number out of range; from ``init``, if the model's head is another; from a call, on mixed images.

    Source: Kim et al., Proxy Anchor Loss for Deep Metric Learning, 2020; their proxies have a rate of learning of their
    own, 100 times that of the model.
    """

    margin: float = 0.1
    scale: float = 32.0
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1

    def __post_init__(self) -> None:
        validation.in_range("margin", self.margin, 0, 1)
        validation.positive("scale", self.scale)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """``[batch]``, of cosines ``[batch, classes]``, each example alone."""
        true_class = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        of_proxy = jax.nn.softplus(self.scale * (self.margin + jnp.where(true_class, -logits, logits)))
        return jnp.sum(jnp.where(true_class, of_proxy, of_proxy / logits.shape[1]), axis=1)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng
        class_weights("proxy_anchor", outputs)
        require_cosines("proxy_anchor", variables)
        return ()

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """A term with each example's part of the loss of the batch."""
        del rng
        require_one_class("proxy_anchor", batch)
        outputs, labels = forward(batch["image"]), batch["label"]
        proxies, features = class_weights("proxy_anchor", outputs), normalized(outputs.features)
        mask = batch.get("mask")
        parts = losses.proxy_anchor(features, labels, proxies=proxies, margin=self.margin, scale=self.scale, mask=mask)
        # Of the logits a balancer may ask, and softmax makes scores of these.
        seen = outputs._replace(features=features, logits=self.scale * outputs.logits)
        return result_of([Term(parts, labels)], seen, batch, state)


@dataclasses.dataclass(frozen=True)
class SoftTriple(Unmoved):
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

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
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


def class_weights(name: str, outputs: Any) -> jax.Array:
    """The class weights ``[classes, dim]``; raises ValueError if the model has others or none."""
    if outputs.classifier is None or outputs.classifier.ndim != 2:
        got = None if outputs.classifier is None else outputs.classifier.shape
        raise ValueError(f"{name} needs a model with class weights [classes, dim], head='cosine'; got {got}")
    return outputs.classifier


def require_one_class(name: str, batch: dict[str, Any]) -> None:
    """Raises ValueError if the images are mixed."""
    if "share" in batch:
        raise ValueError(f"{name} compares images by their class, and mixed ones have two: mixup and cutmix must be 0")
