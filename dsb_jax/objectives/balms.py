"""Balanced softmax on examples that a learned sampler draws (BALMS)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsb_jax import losses, validation
from dsb_jax.objectives.terms import Result, Term, result_of

META = "class_balanced"  # the sampler of the batch that the rates are judged by


class Scored(NamedTuple):
    """What a classifier makes of some examples: ``[n, d]``, ``[n, C]`` and int32 ``[n]``."""

    features: jax.Array
    logits: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Balms:
    """The mean loss of B examples drawn out of a batch of B, with rates per class that are learned from step to step.

    Example i has the chance ``σ(ψ_{y_i})``, normalised over the batch, in each of B draws with replacement (by the
    Gumbel maximum). The rates descend the *meta loss*: the plain cross-entropy of a class-balanced batch under the
    classifier that one step of gradient descent on the drawn examples gives. The draws pass gradients straight through,
    those of their softmax, and Adam takes the step in ψ. What is drawn trains the parameters in the same step.

    It is the second stage of a chain: with ``trainable=head/*`` the features are those of the stage before, and only a
    linear classifier is trained, which is what the inner step is a step of.

    The official code draws from the whole training set; here the candidates are the examples of a batch, which needs
    no pass over the set and no state beside ψ, and the rates are those relative to the batch's classes. Its inner step
    is one of SGD with momentum, decay and the scheduled rate; here it is plain, with a constant rate.

    Attributes:
      loss: ``(logits, labels) -> [batch]``, balanced softmax.
      counts: int ``[C]``, training samples per class.
      learning_rate: of the inner step.
      meta_learning_rate: of Adam in ψ; 0.01 officially, 0.001 on Places-LT.
      init_power: the rates begin proportional to ``counts^-init_power``, the smallest and the largest adding up to 1;
        0 officially, 0.3 on Places-LT.
      samplers: of the candidates, and the class-balanced one.

    Example:
      >>> counts = np.array([90, 10])
      >>> objective = Balms(losses.create("balanced_softmax", counts=counts), counts, learning_rate=0.1)
      >>> print(jax.nn.sigmoid(objective.init(jax.random.key(0), {}, None)["rates"]))
      [0.5 0.5]

    Source: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, 2020, Sec. 3.3.
    """

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    counts: np.ndarray
    learning_rate: float
    meta_learning_rate: float = 0.01
    init_power: float = 0.0
    samplers: tuple[str, ...] = ("plain", META)
    views: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError on a number that makes no sense, or samplers that are none."""
        for name in ("learning_rate", "meta_learning_rate"):
            validation.positive(name, getattr(self, name))
        validation.at_least("init_power", self.init_power, 0)
        if self.samplers[0] == META:
            raise ValueError(f"objective 'balms' draws classes evenly by itself: sampler must be another than {META!r}")

    @property
    def _optimizer(self):
        return optax.adam(self.meta_learning_rate)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> Any:
        """The rates before their sigmoid, and Adam's moments."""
        del rng, variables, outputs
        rates = np.maximum(np.asarray(self.counts, np.float64), 1.0) ** -self.init_power
        rates = rates / (rates.min() + rates.max())
        psi = jnp.asarray(np.log(rates) - np.log1p(-rates), jnp.float32)
        return {"rates": psi, "moments": self._optimizer.init(psi)}

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: Any, rng: jax.Array) -> Result:
        """One term: each example's loss as often as it was drawn. All of the batch enters the pool, once."""
        outputs, labels, mask = forward(batch["image"]), batch["label"], batch.get("mask")
        balanced = forward(batch[META]["image"], train=False)
        noise = jax.random.gumbel(rng, (labels.shape[0], labels.shape[0]))
        if mask is not None:
            noise = jnp.where(mask[None, :], noise, -jnp.inf)
        candidates = Scored(outputs.features, outputs.logits, labels)
        judges = Scored(balanced.features, balanced.logits, batch[META]["label"])
        candidates, judges = jax.lax.stop_gradient((candidates, judges))
        (value, drawn), gradient = jax.value_and_grad(meta_loss, has_aux=True)(
            state["rates"], noise, candidates, judges, loss=self.loss, learning_rate=self.learning_rate
        )
        updates, moments = self._optimizer.update(gradient, state["moments"])
        times = jnp.sum(drawn, axis=0)
        if mask is not None:  # as many draws as there are examples that count
            times = times * jnp.mean(mask, dtype=times.dtype)
        state = {"rates": optax.apply_updates(state["rates"], updates), "moments": moments}
        terms = [Term(times * self.loss(outputs.logits, labels), labels)]
        result = result_of(terms, outputs, batch, state)
        return result._replace(metrics=result.metrics | {"meta_loss": value})

    def after_update(self, state: Any, params: Any) -> Any:
        """The rates have had their step."""
        del params
        return state


def meta_loss(
    rates: jax.Array,
    noise: jax.Array,
    candidates: Scored,
    judges: Scored,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    learning_rate: float,
    hard: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of balanced examples after a step of a linear classifier on drawn ones.

    A step of the classifier changes logits by ``f·ΔW + Δb``: so neither W nor b has to be known.

    Args:
      rates: ψ, floating ``[C]``.
      noise: standard Gumbel ``[draws, n]``; −∞ for an example that is not to be drawn.
      candidates: n examples.
      judges: the balanced ones.
      loss: of the candidates.
      learning_rate: of the step.
      hard: each draw is one example, with the gradient of the softmax that it is the maximum of; otherwise it is that
        softmax.

    Returns:
      The mean cross-entropy of ``judges``, and the draws ``[draws, n]``.
    """
    classes = jax.nn.one_hot(candidates.labels, rates.shape[0], dtype=rates.dtype)
    chances = jnp.sum(classes * jax.nn.log_sigmoid(rates)[None, :], axis=1)  # sums, as a gather's gradient is unordered
    scores = chances[None, :] + noise
    soft = drawn = jax.nn.softmax(scores, axis=1)
    weights = soft
    if hard:
        drawn = jax.nn.one_hot(jnp.argmax(scores, axis=1), scores.shape[1], dtype=soft.dtype)
        # Only what was drawn passes a gradient on, as officially.
        weights = drawn * (drawn + soft - jax.lax.stop_gradient(soft))
    times = jnp.mean(weights, axis=0)

    def moved(step, scored):
        return scored.logits + jnp.matmul(scored.features, step[0], precision="highest") + step[1][None, :]

    def inner(step):
        return jnp.sum(times * loss(moved(step, candidates), candidates.labels))

    dim, dtype = candidates.features.shape[1], candidates.logits.dtype
    nowhere = jnp.zeros((dim, rates.shape[0]), dtype), jnp.zeros(rates.shape[0], dtype)
    step = jax.tree.map(lambda slope: -learning_rate * slope, jax.grad(inner)(nowhere))
    return jnp.mean(losses.cross_entropy(moved(step, judges), judges.labels)), jax.lax.stop_gradient(drawn)
