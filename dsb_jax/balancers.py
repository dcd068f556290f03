"""Class weights, fixed or following the features as they change.

A balancer is three functions, ``init``, ``update`` and ``summary``. It knows nothing of losses: a loss gives a number
per example, and :func:`weighted_mean` brings the two together.

    weights, state = balancer.update(state, features, labels)
    loss = weighted_mean(losses, labels, weights)
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import feature_pool, interference, validation
from dsb_jax.losses import domain_frequency as _domain_frequency
from dsb_jax.losses import mean_score_update as _mean_score_update
from dsb_jax.semantic_scale import combine, pool_features
from dsb_jax.semantic_scale import effective_number as _effective_number

_LEAST_SCORE = 1e-30  # of a class that is never right: weights must stay finite
_NORMALIZATIONS = ("mean", "sum", "expected", "none")
_NEUTRAL = {"weights": jnp.ones_like, "offsets": jnp.zeros_like}  # of a summary, before a balancer acts
_DYNAMIC_TAU = {
    "none": lambda bias, tau: tau,
    "imagenet_lt": lambda bias, tau: 2.0 * jax.nn.sigmoid(bias - 1.0),
    "cifar_lt": lambda bias, tau: jax.nn.sigmoid(bias),
}


class Balancer(NamedTuple):
    """Where class weights come from.

    Attributes:
      init: ``() -> state``, a pytree.
      update: ``(state, features, labels, *, logits=None, classifier=None, accuracy=None, mask=None)`` to
        ``(weights, state)``, with features ``[batch, d]``, labels int ``[batch]`` and weights ``[C]``. A balancer that
        needs a keyword and does not get it raises ValueError.
      summary: ``state -> dict`` of what is worth logging: ``weights`` always; ``counts``, ``volumes``, ``scales``,
        ``interclass`` (all ``[C]``), ``centers`` (``[C, d]``) and ``rejected``, ``failed`` (scalars) where they exist.
        Beside them ``offsets`` ``[C]``, where there are any: what is added to the logits of the next batch, by whatever
        computes its losses, and in no evaluation.
    """

    init: Callable[[], Any]
    update: Callable[..., tuple[jax.Array, Any]]
    summary: Callable[[Any], dict[str, jax.Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SemanticScaleState:
    """The pool of features and, where interference counts, the distances of its classes' centres."""

    pool: feature_pool.FeaturePool
    interference: interference.Interference | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StartAtState:
    """Updates so far, int32, and the state of the balancer that waits."""

    updates: jax.Array
    state: Any


def semantic_scale(
    num_classes: int,
    capacity: int,
    *,
    dim: int = 64,
    alpha: float = 2.0,
    epsilon: float = 1.0,
    interclass: bool = True,
    power: float = 1.0,
    normalize: str = "mean",
    logit_adjustment: float = 0.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Balancer:
    """Dynamic semantic-scale balancing (DSB): weights ``∝ S^(−power)`` from a pool of the latest features.

    The batch enters the pool first, then the weights are computed. A class with fewer than two pooled rows or without
    volume has no measured scale and takes the largest weight of those that have; where none has, all weights are 1.
    Weights are finite and positive whatever comes in. No gradient flows into them.

    Args:
      num_classes: ``C``.
      capacity: rows in the pool; the paper takes the number of training examples.
      dim: features longer than this are average-pooled to it; they must not be shorter.
      alpha: smoothing of the interference, at least 1; the paper takes 2 on long-tailed data and 1 otherwise.
      epsilon: radius in the volume.
      interclass: False leaves interference out, ``S = S'/max S'`` (Appendix H.1).
      power: 1 is the paper's.
      normalize: ``"mean"`` weights sum to C, so the learning rate keeps its meaning; ``"sum"`` they sum to 1, the
        paper's text; ``"expected"`` their mean is 1 under the pool's class frequencies; ``"none"`` raw
        ``S^(−power)``, Eq. 4.
      logit_adjustment: τ of offsets ``τ·ln((m + d)·S')`` to the logits, of a class with ``m`` pooled rows. So many bits
        tell them, less their mean, to within ``epsilon``; they take the place that counts have in Balanced Softmax,
        whose τ is 1. 0 is the paper's, which has none; with ``power=0`` they take the place of weights too. Meant for
        losses that are a softmax of the logits as they come. They are told in the summary, the largest being 0.
      batch_size: rows of every batch, where fixed; ``capacity`` must then be a multiple of it.
      mesh: devices that share the pool, along their axis ``"data"``; needs ``batch_size``.
      dtype: in which the pool stores its rows; bfloat16 halves them.

    Returns:
      A balancer that needs features and labels alone.

    Raises:
      ValueError: on a bad number, an unknown ``normalize``, or what :func:`feature_pool.init` refuses.

    Example:
      >>> balancer = semantic_scale(num_classes=2, capacity=4, dim=1, interclass=False)
      >>> features = jnp.array([[-1.0], [1.0], [-3.0], [3.0]])  # volumes ½·log2(2) and ½·log2(10)
      >>> weights, state = balancer.update(balancer.init(), features, jnp.array([0, 0, 1, 1]))
      >>> print(weights)
      [1.5372 0.4628]

    Source: Sec. 4 of the paper. The offsets are ours: the coding length of Ma et al., Segmentation of multivariate
    mixed data via lossy data coding and compression, 2007, in the place of the counts of Menon et al., 2021.
    """
    num_classes, dim = validation.positive_int("num_classes", num_classes), validation.positive_int("dim", dim)
    alpha, power = validation.at_least("alpha", alpha, 1), validation.at_least("power", power, 0)
    logit_adjustment = validation.at_least("logit_adjustment", logit_adjustment, 0)
    if not isinstance(interclass, bool):
        raise ValueError(f"interclass must be True or False, got {interclass!r}")
    if normalize not in _NORMALIZATIONS:
        raise validation.unknown_name("normalize", str(normalize), _NORMALIZATIONS)
    new_pool = jax.tree_util.Partial(
        feature_pool.init, capacity, dim, num_classes, epsilon=epsilon, batch_size=batch_size, mesh=mesh, dtype=dtype
    )
    jax.eval_shape(new_pool)  # bad numbers are refused now, not at the first update

    def init():
        state = interference.init(num_classes, dim) if interclass else None
        return SemanticScaleState(pool=new_pool(), interference=state)

    def scales(state):
        present = feature_pool.counts(state.pool) > 0
        weight = interference.weights(state.interference, alpha) if interclass else jnp.ones(num_classes, jnp.float32)
        return combine(feature_pool.volumes(state.pool), weight, present), weight

    def measured(state):
        return (feature_pool.counts(state.pool) > 1) & (feature_pool.volumes(state.pool) > 0)

    def weights(state):
        counts = feature_pool.counts(state.pool)
        return _inverse_weights(scales(state)[0], measured(state), counts, power, normalize)

    def offsets(state):
        rows = feature_pool.counts(state.pool).astype(jnp.float32)
        return logit_adjustment * _log_shares((rows + dim) * feature_pool.volumes(state.pool), measured(state))

    def update(state, features, labels, *, logits=None, classifier=None, accuracy=None, mask=None):
        del logits, classifier, accuracy
        features = jnp.asarray(features)
        if features.ndim == 2 and features.shape[1] < dim:
            raise ValueError(
                f"features have {features.shape[1]} channels, fewer than the balancer's dim = {dim}; lower it"
            )
        pool = feature_pool.enqueue(state.pool, pool_features(features, dim), labels, mask=mask)
        state = dataclasses.replace(state, pool=pool)
        if interclass:
            present = feature_pool.counts(pool) > 0
            moved = interference.update(state.interference, feature_pool.centers(pool), present)
            state = dataclasses.replace(state, interference=moved)
        return weights(state), state

    def summary(state):
        scale, weight = scales(state)
        raised = {"offsets": offsets(state)} if logit_adjustment else {}
        return raised | {
            "counts": feature_pool.counts(state.pool),
            "centers": feature_pool.centers(state.pool),
            "volumes": feature_pool.volumes(state.pool),
            "interclass": weight,
            "scales": scale,
            "weights": weights(state),
            "rejected": state.pool.rejected,
            "failed": state.pool.failed,
        }

    return Balancer(init, update, summary)


def uniform(num_classes: int) -> Balancer:
    """Weight 1 for every class.

    Example:
      >>> balancer = uniform(3)
      >>> print(balancer.update(balancer.init(), jnp.zeros((1, 2)), jnp.array([0]))[0])
      [1. 1. 1.]
    """
    num_classes = validation.positive_int("num_classes", num_classes)
    return _fixed({"weights": jnp.ones(num_classes, jnp.float32)})


def inverse_frequency(counts: jax.typing.ArrayLike) -> Balancer:
    """Weights ``∝ 1/n``, summing to C. A class without samples takes the largest weight of the others.

    Args:
      counts: ``n``, training samples per class, ``[C]``.

    Raises:
      ValueError: if ``counts`` is not a vector of numbers that are not negative and not all 0.

    Example:
      >>> balancer = inverse_frequency(jnp.array([10, 30]))
      >>> print(balancer.summary(balancer.init())["weights"])
      [1.5 0.5]
    """
    counts = _check_counts(counts)
    return _fixed({"counts": counts, "weights": _inverse_weights(counts, counts > 0, counts, 1.0, "mean")})


def class_balanced(counts: jax.typing.ArrayLike, *, beta: float = 0.9999) -> Balancer:
    """Weights ``∝ (1 − β)/(1 − βⁿ)``, summing to C. A class without samples takes the largest weight of the others.

    Args:
      counts: ``n``, training samples per class, ``[C]``.
      beta: in [0, 1); see :func:`dsb_jax.effective_number`.

    Raises:
      ValueError: on bad counts or ``beta``.

    Example:
      >>> balancer = class_balanced(jnp.array([1, 100]), beta=0.9)
      >>> print(balancer.summary(balancer.init())["weights"])
      [1.8182 0.1818]

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019.
    """
    counts = _check_counts(counts)
    effective = _effective_number(counts, beta=beta)
    return _fixed({"counts": counts, "weights": _inverse_weights(effective, counts > 0, counts, 1.0, "mean")})


# The weights are those of the effective numbers of samples, and some know them by that name.
effective_number = class_balanced


def inverse_sqrt_frequency(counts: jax.typing.ArrayLike) -> Balancer:
    """Weights ``∝ 1/√n``, summing to C. A class without samples takes the largest weight of the others.

    Args:
      counts: ``n``, training samples per class, ``[C]``.

    Raises:
      ValueError: if ``counts`` is not a vector of numbers that are not negative and not all 0.

    Example:
      >>> balancer = inverse_sqrt_frequency(jnp.array([10, 90]))
      >>> print(balancer.summary(balancer.init())["weights"])
      [1.5 0.5]

    Source: Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, 2018, Sec. 2.2, of sampling rates.
    """
    counts = _check_counts(counts)
    return _fixed({"counts": counts, "weights": _inverse_weights(counts, counts > 0, counts, 0.5, "mean")})


def class_difficulty(num_classes: int, *, tau: float = 1.0, dynamic: str = "none") -> Balancer:
    """Class-wise difficulty-balanced weights ``∝ (1 − A)^τ``, summing to C, from each class's accuracy A.

    The accuracies come with every update, from examples that are held out of the training set; a class that is always
    right there has weight 0. One whose accuracy is NaN, for there is no such example of it, has the mean difficulty of
    the others. Before any accuracy is known, and where all classes are always right, all weights are 1.

    The published codes can also have τ follow from the bias ``b = (1 − min d)/(1 − max d + 0.01)`` of the difficulties
    ``d = 1 − A``, in two ways that differ: ``2σ(b − 1)`` in the one for ImageNet-LT and ``σ(b)`` in that for CIFAR-LT.

    Args:
      num_classes: ``C``.
      tau: not negative.
      dynamic: ``"imagenet_lt"`` or ``"cifar_lt"``, instead of ``tau``; ``"none"`` takes it.

    Returns:
      A balancer whose ``update`` needs ``accuracy``, floating ``[C]`` in [0, 1] or NaN.

    Raises:
      ValueError: on a bad number or name; from ``update``, without ``accuracy`` or with one of another shape or range.

    Example:
      >>> balancer = class_difficulty(2, tau=1.0)
      >>> accuracy = jnp.array([0.9, 0.7])
      >>> weights, _ = balancer.update(balancer.init(), jnp.zeros((1, 2)), jnp.array([0]), accuracy=accuracy)
      >>> print(weights)
      [0.5 1.5]

    Source: Sinha et al., Class-Difficulty Based Methods for Long-Tailed Visual Recognition, 2022, and their code.
    """
    num_classes = validation.positive_int("num_classes", num_classes)
    tau = validation.at_least("tau", tau, 0)
    if dynamic not in _DYNAMIC_TAU:
        raise validation.unknown_name("dynamic", str(dynamic), _DYNAMIC_TAU)

    def weights(accuracy):
        known = jnp.isfinite(accuracy)
        mean = jnp.mean(accuracy, where=known)
        difficulty = 1.0 - jnp.where(known, accuracy, mean)
        bias = (1.0 - jnp.min(difficulty)) / (1.0 - jnp.max(difficulty) + 0.01)
        powers = difficulty ** _DYNAMIC_TAU[dynamic](bias, tau)
        total = jnp.sum(powers)
        usable = jnp.any(known) & (total > 0)
        return jnp.where(usable, num_classes * powers / jnp.where(usable, total, 1.0), 1.0)

    def update(state, features, labels, *, logits=None, classifier=None, accuracy=None, mask=None):
        del state, features, labels, logits, classifier, mask
        if accuracy is None:
            raise ValueError("class_difficulty needs accuracy, each class's on held-out examples; got none")
        accuracy = _check_accuracy(accuracy, num_classes)
        return weights(accuracy), accuracy

    def init():
        return jnp.full(num_classes, jnp.nan, jnp.float32)

    return Balancer(init, update, lambda state: {"accuracy": state, "weights": weights(state)})


def loce(num_classes: int, *, decay: float = 0.9, initial: float = 0.01) -> Balancer:
    """Weights ``∝ 1/s`` with LOCE's mean scores s, summing to C: classes that the model is still unsure of count more.

    The mean scores follow what the model scores the examples of a class for it, ``softmax(logits)[i, labels[i]]``, and
    take in a batch before its weights are computed. Where logits are cosines, as under LDAM, they differ little. The
    weights are ours: the method has margins instead, see :func:`dsb_jax.losses.equilibrium`.

    Args:
      num_classes: ``C``.
      decay: of the mean scores, for each example of a class, in [0, 1].
      initial: the mean scores to begin with, in (0, 1].

    Returns:
      A balancer whose ``update`` needs ``logits``, floating ``[batch, C]``. Rows that are not finite are left out.

    Raises:
      ValueError: on a bad number; from ``update``, without ``logits`` or with some of another shape.

    Example:
      >>> balancer = loce(2, decay=0.0)
      >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
      >>> weights, _ = balancer.update(balancer.init(), jnp.zeros((2, 2)), jnp.array([0, 1]), logits=logits)
      >>> print(weights)
      [0.5 1.5]

    Source: Feng et al., Exploring Classification Equilibrium in Long-Tailed Object Detection, 2021.
    """
    num_classes = validation.positive_int("num_classes", num_classes)
    validation.in_range("decay", decay, 0, 1)
    validation.in_range("initial", validation.positive("initial", initial), 0, 1)

    def weights(scores):
        return _inverse_weights(scores, jnp.ones(num_classes, bool), jnp.ones(num_classes), 1.0, "mean")

    def update(state, features, labels, *, logits=None, classifier=None, accuracy=None, mask=None):
        del features, classifier, accuracy
        if logits is None:
            raise ValueError("loce needs logits, of which it makes scores; got none")
        logits = jnp.asarray(logits)
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(f"logits must have shape [batch, {num_classes}], got {logits.shape}")
        labels = validation.labels(labels, num_classes, samples=logits.shape[0], mask=mask)
        kept = validation.boolean("mask", mask, labels.shape) & (labels >= 0)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        scores = jnp.take_along_axis(probabilities, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        kept &= jnp.isfinite(scores)
        state = _mean_score_update(state, scores, labels, decay=decay, mask=kept)
        state = jnp.maximum(state, _LEAST_SCORE)
        return weights(state), state

    def init():
        return jnp.full(num_classes, initial, jnp.float32)

    return Balancer(init, update, lambda state: {"scores": state, "weights": weights(state)})


def domain_frequency(num_classes: int, *, neighbours: int = 10, scale: float = 30.0) -> Balancer:
    """Weights ``∝`` the domain frequency indicator, summing to C: the rarer the domain of a class, the larger.

    A class whose weights in the last layer lie close to those of others is of a frequent domain. The indicator is that
    of :func:`dsb_jax.losses.domain_frequency`, of the classifier as it is in the step; that it weighs the loss is ours,
    the method has margins instead. Before the first update all weights are 1.

    Args:
      num_classes: ``C``.
      neighbours: how many nearest classes count, >= 1; all others where there are fewer.
      scale: inverse temperature of the compactness, > 0.

    Returns:
      A balancer whose ``update`` needs ``classifier``, floating ``[C, d]``.

    Raises:
      ValueError: on a bad number; from ``update``, without ``classifier`` or with one of another shape.

    Example:
      >>> balancer = domain_frequency(4, neighbours=2, scale=4.0)
      >>> classifier = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> weights, _ = balancer.update(balancer.init(), jnp.zeros((1, 2)), jnp.array([0]), classifier=classifier)
      >>> [f"{value:.2f}" for value in weights]  # of the first two is the domain that is frequent
      ['0.40', '0.40', '1.60', '1.60']

    Source: Cao et al., Domain Balancing: Face Recognition on Long-Tailed Domains, 2020, Sec. 3.
    """
    num_classes = validation.positive_int("num_classes", num_classes)
    validation.positive_int("neighbours", neighbours)
    validation.positive("scale", scale)

    def update(state, features, labels, *, logits=None, classifier=None, accuracy=None, mask=None):
        del state, features, labels, logits, accuracy, mask
        if classifier is None:
            raise ValueError("domain_frequency needs classifier, each class's weights in the last layer; got none")
        classifier = jnp.asarray(classifier)
        if classifier.ndim != 2 or classifier.shape[0] != num_classes:
            raise ValueError(f"classifier must have shape [{num_classes}, dim], got {classifier.shape}")
        weights = _domain_frequency(classifier, neighbours=neighbours, scale=scale).astype(jnp.float32)
        return weights, weights

    def init():
        return jnp.ones(num_classes, jnp.float32)

    return Balancer(init, update, lambda state: {"weights": state})


def start_at(step: int, balancer: Balancer) -> Balancer:
    """Weight 1 and no offset for every class before its own update number ``step``, counted from 0.

    The wrapped balancer is fed from the first update. With ``step`` = 5 epochs of steps, the first weighted step is the
    first of epoch 6: the paper's three stages with n = 5. Around :func:`class_balanced` it is deferred re-weighting
    (Cao et al., 2019).

    Raises:
      ValueError: if ``step`` is not an integer of at least 0.

    Example:
      >>> balancer = start_at(1, inverse_frequency(jnp.array([10, 30])))
      >>> state = balancer.init()
      >>> for _ in range(2):
      ...     weights, state = balancer.update(state, jnp.zeros((1, 2)), jnp.array([0]))
      ...     print(weights)
      [1. 1.]
      [1.5 0.5]

    Source: Sec. 4.2 of the paper.
    """
    step = validation.integer("step", step, lowest=0)
    if not isinstance(balancer, Balancer):
        raise ValueError(f"balancer must be a Balancer, got {balancer!r}")

    def init():
        return StartAtState(updates=jnp.zeros((), jnp.int32), state=balancer.init())

    def update(state, features, labels, **extra):
        weights, inner = balancer.update(state.state, features, labels, **extra)
        started = state.updates >= step
        # The count stops where it no longer matters: it must not wrap around in a very long run.
        updates = jnp.minimum(state.updates + 1, step + 1)
        return jnp.where(started, weights, jnp.ones_like(weights)), StartAtState(updates, inner)

    def summary(state):
        inner, started = balancer.summary(state.state), state.updates > step
        before = {name: neutral(inner[name]) for name, neutral in _NEUTRAL.items() if name in inner}
        return inner | {name: jnp.where(started, inner[name], value) for name, value in before.items()}

    return Balancer(init, update, summary)


def weighted_mean(
    losses: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    weights: jax.typing.ArrayLike,
    *,
    mask: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The mean of ``weights[labels]·losses`` over the batch.

    The sum is divided by the number of examples, not by the sum of their weights, so that a batch of rare classes
    counts for more. Weights carry no gradient.

    Args:
      losses: floating ``[batch]``.
      labels: int ``[batch]`` in ``[0, C)``. Under ``jit`` another label makes the result NaN.
      weights: floating ``[C]``.
      mask: bool ``[batch]``; examples where it is False do not count at all, whatever their loss and label.

    Returns:
      A scalar, at least float32; 0 if ``mask`` leaves nothing.

    Raises:
      ValueError: on a wrong shape, dtype or label.

    Example:
      >>> print(weighted_mean(jnp.array([1.0, 2.0]), jnp.array([0, 1]), jnp.array([0.5, 1.5])))
      1.75

    Source: Eq. 4 of the paper.
    """
    losses, weights = jnp.asarray(losses), jnp.asarray(weights)
    if losses.ndim != 1 or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"losses must be floating point of shape [batch], got {losses.dtype} {losses.shape}")
    if weights.ndim != 1 or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights must be floating point of shape [classes], got {weights.dtype} {weights.shape}")
    mask = validation.boolean("mask", mask, losses.shape)
    labels = validation.labels(labels, weights.shape[0], samples=losses.shape[0], mask=mask)
    dtype = jnp.float64 if losses.dtype == jnp.float64 else jnp.float32  # narrower ones overflow in a sum
    weight = jnp.where(labels >= 0, jax.lax.stop_gradient(weights).astype(dtype)[jnp.maximum(labels, 0)], jnp.nan)
    kept = jnp.where(mask, losses.astype(dtype), 0.0) * jnp.where(mask, weight, 0.0)
    return jnp.sum(kept) / jnp.maximum(jnp.sum(mask, dtype=dtype), 1.0)


def state_shardings(balancer: Balancer, mesh: Mesh) -> Any:
    """A sharding for every array of the balancer's state: a pool's as it asks for, the rest on every device.

    For the ``in_shardings`` and ``out_shardings`` of a user's own ``jit``.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> balancer = semantic_scale(num_classes=10, capacity=64, batch_size=8, mesh=mesh)
      >>> print(tuple(state_shardings(balancer, mesh).pool.rows.spec))
      (None, 'data')
    """

    def of(node):
        if isinstance(node, feature_pool.FeaturePool) and node.mesh is not None:
            return feature_pool.shardings(node)
        return jax.tree.map(lambda _: NamedSharding(mesh, P()), node)

    state = jax.eval_shape(balancer.init)
    return jax.tree.map(of, state, is_leaf=lambda node: isinstance(node, feature_pool.FeaturePool))


def _fixed(summary):
    def update(state, features, labels, *, logits=None, classifier=None, accuracy=None, mask=None):
        del features, labels, logits, classifier, accuracy, mask
        return summary["weights"], state

    return Balancer(init=tuple, update=update, summary=lambda state: summary)


def _inverse_weights(values, measured, counts, power, normalize):
    """Normalized ``values^(−power)``, in logarithms so that nothing overflows on the way."""
    values = values.astype(jnp.float32)
    measured = measured & (values > 0) & jnp.isfinite(values)
    log_weights = jnp.where(measured, -power * jnp.log(jnp.where(measured, values, 1.0)), -jnp.inf)
    log_weights = jnp.where(measured, log_weights, jnp.max(log_weights))
    if normalize == "expected":
        frequency = counts.astype(jnp.float32) / jnp.maximum(jnp.sum(counts), 1).astype(jnp.float32)
        log_weights -= jax.nn.logsumexp(log_weights, b=frequency)
    elif normalize != "none":
        log_weights -= jax.nn.logsumexp(log_weights)
    if normalize == "mean":
        log_weights += math.log(values.shape[0])
    weights = jnp.exp(jnp.clip(log_weights, -87.0, 88.0))  # the range of float32
    return jnp.where(jnp.any(measured), weights, 1.0)


def _log_shares(values, measured):
    """``ln(values / max)``; one that is not measured is as the smallest, and all are 0 where none is."""
    least = jnp.min(jnp.where(measured, values, jnp.inf))
    values = jnp.where(measured, values, jnp.where(jnp.any(measured), least, 1.0))
    return jnp.log(values / jnp.max(values))


def _check_counts(counts: jax.typing.ArrayLike) -> jax.Array:
    counts = jnp.asarray(counts)
    if counts.ndim != 1 or not counts.size:
        raise ValueError(f"counts must have shape [classes], got {counts.shape}")
    values = np.asarray(counts) if validation.is_concrete(counts) else np.ones(1)
    if not (np.all(values >= 0) and np.all(np.isfinite(values)) and np.any(values > 0)):
        raise ValueError(f"counts must be finite, >= 0 and not all 0, got {values.tolist()}")
    return counts


def _check_accuracy(accuracy, num_classes):
    accuracy = jnp.asarray(accuracy, jnp.float32)
    if accuracy.shape != (num_classes,):
        raise ValueError(f"accuracy must have shape ({num_classes},), one per class, got {accuracy.shape}")
    if validation.is_concrete(accuracy):
        values = np.asarray(accuracy)
        if np.any((values < 0) | (values > 1)):
            raise ValueError(f"accuracy must lie in [0, 1], or be NaN where it is not known, got {values.tolist()}")
    return accuracy
