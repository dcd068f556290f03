"""Invariant feature learning around another objective: features are drawn to the centre of their class."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import losses, validation
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.terms import Result, Term, state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InvariantFeaturesState:
    """Where the centres are, and what moves them.

    Attributes:
      step: int32, steps so far.
      centers: float32 ``[C, d]``.
      pull: float32 ``[C, d]``, the gradient of the distances of this step's features, summed over them.
      pulling: float32, how many features those are.
      inner: the state of the objective inside.
    """

    step: jax.Array
    centers: jax.Array
    pull: jax.Array
    pulling: jax.Array
    inner: Any


@dataclasses.dataclass(frozen=True)
class InvariantFeatures(Extension):
    """The terms of ``inner``, and ``λ`` times the distance of each feature from the centre of its class.

    A batch is one of two environments, between which the images of a class differ in what is not its own; that their
    features have one centre is what makes these invariant. The loss treats both environments alike.

    Class weights multiply the terms of ``inner`` as they would without it, and not the distances; what enters the pool
    is what ``inner`` says, and its features are those that have a centre. A mixed image is drawn to the centres of both
    of its classes by their shares. Centres begin at random. In a step with λ > 0 gradient descent with a rate of their
    own moves them by the mean distance alone, without λ and weight decay, and once even where a batch passes in parts.

    Attributes:
      inner: its first sampler must be the plain one; this one draws two environments instead.
      num_classes: ``C``.
      weights: λ, which takes the next value at each of
      starts: numbers of steps, one less than there are weights, in ascending order.
      learning_rate: of the centres.
      distance: ``(features, labels, *, centers) -> [batch]``, the same from a centre to a feature as back:
        :func:`dsb_jax.losses.center_loss`, or :func:`dsb_jax.losses.center_cosine_loss`, which the original takes
        around LDAM and RIDE.

    Raises:
      ValueError: on a bad number, or samplers that do not fit.

    Example:
      >>> from dsb_jax.objectives import Supervised
      >>> supervised = Supervised(losses.create("cross_entropy"))
      >>> objective = InvariantFeatures(supervised, 10, weights=(0.0, 0.001), starts=(600,))
      >>> objective.samplers
      ('environments',)

    Source: Tang et al., Invariant Feature Learning for Generalized Long-Tailed Classification, 2022, and their code. As
    there, centres rest as long as λ is 0. Their published numbers are without momentum in the network's optimizer, by
    mistake as they say; ``configs/coco_glt.py`` has it so, to reproduce them, and all other configs have momentum.
    """

    num_classes: int
    weights: tuple[float, ...] = (0.0, 0.001, 0.005)
    starts: tuple[int, ...] = (0, 0)
    learning_rate: float = 0.5
    distance: Callable[..., jax.Array] = losses.center_loss

    def __post_init__(self) -> None:
        validation.positive_int("num_classes", self.num_classes)
        validation.positive("learning_rate", self.learning_rate)
        for weight in self.weights:
            validation.at_least("weights", weight, 0)
        if len(self.weights) != len(self.starts) + 1 or list(self.starts) != sorted(self.starts):
            raise ValueError(
                f"weights must be one more than starts, which must ascend, got {self.weights} and {self.starts}"
            )
        if self.inner.samplers[0] != "plain":
            raise ValueError(
                "objective 'ifl' draws environments of its own: sampler must be 'plain', "
                f"got {self.inner.samplers[0]!r}"
            )

    @property
    def samplers(self) -> tuple[str, ...]:
        """As ``inner`` has them, but two environments in place of the plain one."""
        return ("environments", *self.inner.samplers[1:])

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> InvariantFeaturesState:
        """Centres from a standard normal distribution, as many numbers each as the model's features have."""
        inner_key, centers_key = jax.random.split(rng)
        shape = (self.num_classes, outputs.features.shape[-1])
        return InvariantFeaturesState(
            step=jnp.zeros((), jnp.int32),
            centers=jax.random.normal(centers_key, shape, jnp.float32),
            pull=jnp.zeros(shape, jnp.float32),
            pulling=jnp.zeros((), jnp.float32),
            inner=self.inner.init(inner_key, variables, outputs),
        )

    def __call__(
        self, forward: Callable[..., Any], batch: dict[str, Any], state: InvariantFeaturesState, rng: jax.Array
    ) -> Result:
        """One term more than ``inner`` has.

        Raises:
          ValueError: if the features of ``inner`` are not as many as its labels, or not as long as the centres.
        """
        result = self.inner(forward, batch, state.inner, rng)
        _check_fit(result, state.centers)
        mask = jnp.ones(result.labels.shape, bool) if result.mask is None else result.mask
        # What is masked may be anything.
        features = jnp.where(mask[:, None], result.features, 0).astype(state.centers.dtype)
        distances, pull = jnp.zeros((), features.dtype), state.pull
        for labels, share in _parts(batch, result):
            of_part, of_class = self._pulled(features, jnp.where(mask, labels, 0), share * mask, state.centers)
            distances, pull = distances + share * of_part, pull + of_class
        pulling = state.pulling + jnp.sum(mask, dtype=jnp.float32)
        return result._replace(
            terms=[*result.terms, Term(distances, None, self._weight(state.step))],
            state=dataclasses.replace(state, pull=pull, pulling=pulling, inner=result.state),
            metrics=result.metrics | {"center_loss": jnp.mean(distances, where=mask)},
        )

    def _pulled(self, features, labels, shares, centers):
        """Distances ``[n]`` from the centres, and by class the sum of their gradients there ``[C, d]``."""
        fixed = jax.lax.stop_gradient(features)
        of_each = jax.grad(lambda own: jnp.sum(shares * self._from_each(own, fixed)))(centers[labels])
        # As a product: a sum over equal indices has no fixed order on a GPU.
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=centers.dtype)
        by_class = jnp.einsum("nc,nd->cd", one_hot, of_each, precision=jax.lax.Precision.HIGHEST)
        return self.distance(features, labels, centers=centers), by_class

    def _from_each(self, own, features):
        """The distance of each one's centre from it, for its gradient there: the other way it would be such a sum."""

        def alone(center, feature):
            return self.distance(center[None], jnp.zeros(1, jnp.int32), centers=feature[None])[0]

        return jax.vmap(alone)(own, features)

    def after_update(self, state: InvariantFeaturesState, params: Any) -> InvariantFeaturesState:
        """The centres after a step of their own."""
        moved = state.centers - self.learning_rate * state.pull / jnp.maximum(state.pulling, 1.0)
        return InvariantFeaturesState(
            step=state.step + 1,
            centers=jnp.where(self._weight(state.step) > 0, moved, state.centers),
            pull=jnp.zeros_like(state.pull),
            pulling=jnp.zeros_like(state.pulling),
            inner=self.inner.after_update(state.inner, params),
        )

    def state_shardings(self, mesh: Mesh) -> InvariantFeaturesState:
        """As ``inner`` has it; the centres are on every device."""
        whole: Any = NamedSharding(mesh, P())
        return InvariantFeaturesState(whole, whole, whole, whole, inner=state_shardings(self.inner, mesh))

    def _weight(self, step):
        past = jnp.sum(step >= jnp.asarray(self.starts, jnp.int32), dtype=jnp.int32)
        return jnp.asarray(self.weights, jnp.float32)[past]


def _parts(batch, result):
    """Labels of the features, and how much of each they are: of mixed images both classes."""
    if "share" not in batch or batch["share"].shape != result.labels.shape:
        return [(result.labels, jnp.ones(result.labels.shape, jnp.float32))]
    share = batch["share"]
    return [(batch["label"], share), (batch["other_label"], 1 - share)]


def _check_fit(result, centers):
    features, labels, dim = result.features.shape, result.labels.shape, centers.shape[1]
    if len(features) != 2 or labels != features[:1] or features[1] != dim:
        raise ValueError(
            f"objective 'ifl' needs one feature of an image, [n, {dim}] as in the model's outputs, and its label [n]; "
            f"the objective inside has {list(features)} and {list(labels)}: choose another with objective=ifl+…"
        )
