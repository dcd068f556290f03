"""BBN: a branch for the data as they are and a branch for rare classes, with attention that moves to the second."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax import validation
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.terms import Result, Term


@dataclasses.dataclass(frozen=True)
class BBN(Extension):
    """A plain batch through one branch and a reversed one through the other, mixed in features and in losses.

    With the features f_a and f_b and the share l of the step, the logits are ``classifier(2 [l f_a; (1 − l) f_b])``,
    and the loss is ``l loss(y_a) + (1 − l) loss(y_b)``, each part weighted by its own label's class. Both batches
    enter the pool, each example by its own label: so results, and the losses of a term, have two rows for every
    example, one of the plain batch and then one of the reversed. The metrics are mixed as the losses are.

    Evaluation passes an image through both branches and classifies ``[f_a; f_b]``, which is l = ½.

    Attributes:
      inner: what is made of each batch's outputs; its first sampler draws the plain batch.
      share: ``step -> l``, see :func:`parabolic`.
      rows_per_example: how many rows of a result an example of the batch has.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> objective = BBN(objectives.Supervised(losses.create("cross_entropy")), parabolic(200, [10, 20]))
      >>> objective.samplers
      ('plain', 'reversed')

    Source: Zhou et al., BBN: Bilateral-Branch Network with Cumulative Learning, 2020.
    """

    share: Callable[[jax.Array], jax.Array]
    rows_per_example: ClassVar[int] = 2

    def __post_init__(self):
        if "reversed" in self.inner.samplers:
            raise ValueError(
                "objective 'bbn' has the reversed sampler besides another one: sampler must be the other one"
            )

    @property
    def samplers(self) -> tuple[str, ...]:
        """That of ``inner`` and the reversed one."""
        return (*self.inner.samplers, "reversed")

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> jax.Array:
        """No step so far.

        Raises:
          ValueError: if the model has no two branches.
        """
        del rng, outputs
        if "branches_1" not in variables["params"]:
            raise ValueError(
                "objective 'bbn' needs a model with two branches, got one without: models.create(…, branches=2) "
                "makes one"
            )
        return jnp.zeros((), jnp.int32)

    def __call__(self, forward: Callable[..., Any], batch: dict[str, Any], state: jax.Array, rng: jax.Array) -> Result:
        """The terms of ``inner``, with two rows for every example."""
        batches = batch, batch["reversed"]
        features = [forward(part["image"], method="branch", number=number) for number, part in enumerate(batches)]
        share = self.share(state).astype(features[0].dtype)
        shares = share, 1 - share
        mixed = [2 * share * of_branch for share, of_branch in zip(shares, features, strict=True)]
        outputs = forward(jnp.concatenate(mixed, axis=1), method="outputs")
        results = [self.inner(lambda images: outputs, part, (), rng) for part in batches]
        terms = [_both(pair, shares) for pair in zip(*(result.terms for result in results), strict=True)]
        metrics = jax.tree.map(lambda a, b: shares[0] * a + shares[1] * b, *(result.metrics for result in results))
        return Result(
            terms=terms,
            features=_interleaved(*features),
            labels=_interleaved(*(result.labels for result in results)),
            mask=_masks(results),
            state=state,
            metrics=metrics | {"share": share},
            logits=_interleaved(outputs.logits, outputs.logits),
            classifier=outputs.classifier,
        )

    def after_update(self, state: jax.Array, params: Any) -> jax.Array:
        """One step more."""
        del params
        return state + 1


def parabolic(divisor: float, first_steps: Sequence[int]) -> Callable[[jax.Array], jax.Array]:
    """``l = 1 − (e / divisor)²`` after e epochs, and 0 where that is negative.

    Args:
      divisor: at which it reaches 0, above 0; see :func:`published_divisor`.
      first_steps: of the second epoch, of the third …

    Returns:
      ``step -> l``, a scalar.

    Raises:
      ValueError: if ``divisor`` is no such number.

    Example:
      >>> share = parabolic(2, [10, 20])
      >>> [float(share(step)) for step in (0, 9, 10, 20)]
      [1.0, 1.0, 0.75, 0.0]

    Source: Zhou et al., 2020, Sec. 4.3.
    """
    divisor, starts = validation.positive("divisor", divisor), np.asarray(first_steps, np.int32)

    def share(step):
        return jnp.maximum(1 - (jnp.sum(step >= starts) / divisor) ** 2, 0)

    return share


def published_divisor(epochs: int) -> int:
    """The next multiple of 100 for a run that nearly fills it, as published of 90, 180 and 200 epochs; else ``epochs``.

    The official code takes the next multiple of 100 always, by which a short run would train one branch alone; that
    a run of another length ends with a share near 0, as the published ones do, is ours.

    Example:
      >>> [published_divisor(epochs) for epochs in (90, 180, 200, 60)]
      [100, 200, 200, 60]
    """
    hundreds = 100 * -(-epochs // 100)
    return hundreds if 10 * epochs >= 9 * hundreds else epochs


def _both(pair, shares):
    """A term of each batch as one, whose rows are twice as many: their mean is half of the sum that is meant."""
    losses = _interleaved(*(share * term.losses for share, term in zip(shares, pair, strict=True)))
    labels = None if pair[0].labels is None else _interleaved(*(term.labels for term in pair))
    return Term(losses, labels, 2 * pair[0].scale)


def _masks(results):
    masks = [result.mask for result in results]
    if all(mask is None for mask in masks):
        return None
    return _interleaved(*(validation.boolean("mask", mask, results[0].labels.shape) for mask in masks))


def _interleaved(plain, other):
    """``[2·batch, …]``: where a batch is divided over devices, each keeps its own rows."""
    return jnp.stack([plain, other], axis=1).reshape(-1, *plain.shape[1:])
