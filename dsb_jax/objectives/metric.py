"""Objectives of metric learning, whose losses compare features with what the last layer's weights say of classes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsb_jax import losses
from dsb_jax.losses.embeddings import normalized
from dsb_jax.objectives.supervised import Supervised
from dsb_jax.objectives.terms import Result, Term


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

    Source: Zhai & Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019; their features pass through
    a normalisation of layers before, which is a matter of the model.
    """

    temperature: float = 0.05
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """``[batch]``, of cosines ``[batch, classes]``."""
        return losses.cross_entropy(logits / self.temperature, labels)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """It has no state."""
        del rng, variables
        self._proxies(outputs)
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
      margin: δ, by how much the true class must be the most similar, >= 0.
      samplers: of the batches.

    Example:
      >>> objective = SoftTriple(scale=2.0, margin=0.5)
      >>> similarities = jnp.array([[1.0, 0.0]])
      >>> [f"{value:.3f}" for value in objective.loss(similarities, jnp.array([0]))]  # log(1 + 1/e)
      ['0.313']

    Source: Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019; Eq. 6 of the paper.
    """

    scale: float = 20.0
    gamma: float = 0.1
    tau: float = 0.2
    margin: float = 0.01
    samplers: tuple[str, ...] = ("plain",)
    views: int = 1

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
