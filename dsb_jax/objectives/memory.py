"""Memory-based jitter: rare classes as earlier versions of the model had them, besides as it has them now."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import validation
from dsb_jax.objectives.extension import Extension
from dsb_jax.objectives.terms import Result, Term, majority_labels, state_shardings

_HEAD = "head"  # what the parameters of a last layer lie under


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryJitterState:
    """The memory, and the state of the objective inside.

    Attributes:
      inner: of the other objective.
      step: int32, updates so far.
      features: ``[capacity, dim]``, or ``[capacity, experts, dim]``.
      labels: int32 ``[capacity]``, their classes.
      place: int32, where the next feature goes.
      filled: int32, how many features there are.
      heads: earlier parameters of the last layers, ``[snapshots, ...]`` each.
      taken: int32, how many times they were taken.
    """

    inner: Any
    step: jax.Array
    features: jax.Array
    labels: jax.Array
    place: jax.Array
    filled: jax.Array
    heads: Any
    taken: jax.Array


@dataclasses.dataclass(frozen=True)
class MemoryJitter(Extension):
    """Memory-based jitter (MBJ) around another objective: its terms, and two that look back.

    While the model changes, the same image has other features and the same class other weights in the last layer. Both
    jitters are remembered, those of rare classes above all, and make up for images that these lack:

    - Of features: one of class c enters the memory with probability ``(min n / n_c)^power`` and leaves after the number
      that about ``history`` epochs bring. With every batch the last layer classifies as many features, drawn evenly
      from the memory. They carry no gradient: the term trains the last layer alone, with each feature's class weight.
    - Of weights: the features of the batch are classified by an earlier last layer, one of the latest ``snapshots``
      that were taken every ``interval`` steps, drawn anew for every batch. It carries no gradient: the term trains what
      makes features, each by its class weight times the probability above.

    The loss of both is what the other objective reports in evaluation. Where the model has several experts, each has
    memories of its own features and a term of each kind; ``mbj+ride`` needs ``outputs.experts.features``
    ``[experts, batch, dim]`` and that the model classifies such features to ``[experts, batch, classes]``. Parameters
    of last layers are those under the name ``head``. Mixed images are of the class of their larger share.

    There is no public code, and the published numbers are not known to us. The memory of labelled features for the
    classifier, collected by class with higher probability for rarer ones, is the paper's; the paper has the memory of
    weights in metric learning only. Ours are all hyper-parameters, the form of the probabilities, that ``weight`` and
    ``head_weight`` are factors of means over as many rows as a batch has, and that an earlier last layer is taken
    whole, the weights of frequent classes with those of rare ones.

    Attributes:
      inner: the other objective.
      counts: ``n``, training samples per class, ``[C]``.
      capacity: of the memory, in features; see :func:`memory_capacity`.
      weight: factor of the features' term, >= 0.
      head_weight: factor of the earlier layers' term, >= 0.
      power: how much the probabilities fall with the number of samples, >= 0.
      start: the first step with either term; the memories fill from the first step on.
      snapshots: how many earlier last layers are kept.
      interval: steps from one to the next.

    Raises:
      ValueError: on a number out of range; from ``init``, if there is no last layer; from a call, if the other
        objective passes no images of the batch through the model.

    Example:
      >>> from dsb_jax import losses, objectives
      >>> inner = objectives.Supervised(losses.create("cross_entropy"))
      >>> objective = MemoryJitter(inner, counts=np.array([90, 10]), capacity=64)
      >>> print(objective.probabilities)
      [0.1111 1.    ]

    Source: Liu et al., Memory-Based Jitter: Improving Visual Recognition on Long-Tailed Data with Diversity in Memory,
    2022.
    """

    counts: np.ndarray
    capacity: int
    weight: float = 1.0
    head_weight: float = 0.5
    power: float = 1.0
    start: int = 0
    snapshots: int = 4
    interval: int = 100

    def __post_init__(self):
        for name in ("capacity", "snapshots", "interval"):
            validation.positive_int(name, getattr(self, name))
        for name in ("weight", "head_weight", "power"):
            validation.at_least(name, getattr(self, name), 0)

    @property
    def probabilities(self) -> np.ndarray:
        """``[C]``, with which a feature of each class enters the memory."""
        return _probabilities(self.counts, self.power)

    def init(self, rng: jax.Array, variables: Any, outputs: Any) -> MemoryJitterState:
        """Nothing remembered."""
        heads = _heads(variables["params"])
        if not heads:
            names = list(variables["params"])
            raise ValueError(f"mbj needs a model whose last layer lies under {_HEAD!r}, got parameters under {names}")
        rows = _rows(outputs)
        zero = jnp.zeros((), jnp.int32)
        return MemoryJitterState(
            inner=self.inner.init(rng, variables, outputs),
            step=zero,
            features=jnp.zeros((self.capacity, *rows.shape[1:]), rows.dtype),
            labels=jnp.zeros(self.capacity, jnp.int32),
            place=zero,
            filled=zero,
            heads=jax.tree.map(lambda array: jnp.zeros((self.snapshots, *array.shape), array.dtype), heads),
            taken=zero,
        )

    def __call__(
        self, forward: Callable[..., Any], batch: dict[str, Any], state: MemoryJitterState, rng: jax.Array
    ) -> Result:
        """The terms of the other objective, then those of remembered features and of an earlier last layer."""
        inner_rng, draw_rng, head_rng, enter_rng = jax.random.split(rng, 4)
        seen = []

        def watched(inputs, **options):
            outputs = forward(inputs, **options)
            if inputs is batch["image"] and options.get("variables") is None and "method" not in options:
                seen.append(outputs)
            return outputs

        result = self.inner(watched, batch, state.inner, inner_rng)
        if not seen:
            raise ValueError(
                "objective 'mbj' needs one inside that passes the batch's images through the whole model, which bbn "
                "does not: choose another with objective=mbj+…"
            )
        rows, labels = _rows(seen[0]), majority_labels(batch)
        started = state.step >= self.start
        terms = list(result.terms)
        if self.weight:
            drawn = jax.random.randint(draw_rng, labels.shape, 0, jnp.maximum(state.filled, 1))
            scale = jnp.where(started & (state.filled > 0), self.weight, 0.0)
            logits = forward(_by_expert(state.features[drawn]), method="classify")
            terms += [Term(losses, state.labels[drawn], scale) for losses in self._losses(logits, state.labels[drawn])]
        if self.head_weight:
            there = jnp.clip(state.taken, 1, self.snapshots)
            number = jax.random.randint(head_rng, (), 0, there)
            earlier = {"params": jax.tree.map(lambda array: array[number], state.heads)}
            scale = jnp.where(started & (state.taken > 0), self.head_weight, 0.0)
            logits = forward(_by_expert(rows), variables=earlier, method="classify")
            share = self._share(labels)
            terms += [Term(share * losses, labels, scale) for losses in self._losses(logits, labels)]
        state = dataclasses.replace(state, inner=result.state)
        state = self._remember(state, rows, labels, batch.get("mask"), enter_rng)
        metrics = result.metrics | {"memory": state.filled.astype(jnp.float32)}
        return result._replace(terms=terms, state=state, metrics=metrics)

    def after_update(self, state: MemoryJitterState, params: Any) -> MemoryJitterState:
        """A step more, after some of which the last layer is remembered."""
        step, slot = state.step + 1, state.taken % self.snapshots
        due = step % self.interval == 0
        heads = jax.tree.map(
            lambda kept, new: kept.at[slot].set(jnp.where(due, new, kept[slot])), state.heads, _heads(params)
        )
        # The count stops short of wrapping round: only its place in the ring matters then.
        taken = jnp.where(due, state.taken + 1, state.taken)
        taken = jnp.where(taken >= 2 * self.snapshots, taken - self.snapshots, taken)
        inner = self.inner.after_update(state.inner, params)
        return dataclasses.replace(state, inner=inner, step=step, heads=heads, taken=taken)

    def state_shardings(self, mesh: Mesh) -> MemoryJitterState:
        """As the other objective has it; the memories are on every device."""
        fields = {field.name: NamedSharding(mesh, P()) for field in dataclasses.fields(MemoryJitterState)}
        return MemoryJitterState(**fields | {"inner": state_shardings(self.inner, mesh)})

    def _losses(self, logits, labels):
        """``[batch]`` for each expert, of ``[experts, batch, classes]``; or for the only one."""
        each = logits if logits.ndim == 3 else logits[None]
        return [self.inner.loss(each[number], labels) for number in range(len(each))]

    def _share(self, labels):
        return jnp.asarray(self.probabilities, jnp.float32)[labels]

    def _remember(self, state, rows, labels, mask, rng):
        """Some of the rows take the places of the oldest ones."""
        enters = jax.random.uniform(rng, labels.shape) < self._share(labels)
        if mask is not None:
            enters &= mask
        number = jnp.cumsum(enters, dtype=jnp.int32) - 1
        enters &= number < self.capacity
        # Places are all different, so that the order of writing does not matter; those beyond the memory are dropped.
        beyond = self.capacity + jnp.arange(len(labels), dtype=jnp.int32)
        places = jnp.where(enters, (state.place + number) % self.capacity, beyond)
        entered = jnp.sum(enters, dtype=jnp.int32)
        write = {"mode": "drop", "unique_indices": True}
        return dataclasses.replace(
            state,
            features=state.features.at[places].set(jax.lax.stop_gradient(rows), **write),
            labels=state.labels.at[places].set(labels.astype(jnp.int32), **write),
            place=(state.place + entered) % self.capacity,
            filled=jnp.minimum(state.filled + entered, self.capacity),
        )


def memory_capacity(counts: np.ndarray, *, history: float, power: float) -> int:
    """How many features enter the memory in ``history`` epochs, at least one.

    Example:
      >>> memory_capacity(np.array([90, 10]), history=5, power=1.0)
      100

    Raises:
      ValueError: if ``history`` is not above 0.
    """
    validation.positive("history", history)
    entering = np.sum(np.asarray(counts) * _probabilities(counts, power))
    return max(int(np.ceil(np.round(history * entering, 6))), 1)


def _probabilities(counts, power):
    counts = np.asarray(counts, np.float64)
    fewest = counts[counts > 0].min()
    return (fewest / np.maximum(counts, fewest)) ** power


def _rows(outputs):
    """What the last layer saw of each image: ``[batch, dim]``, or ``[batch, experts, dim]``."""
    experts = getattr(outputs, "experts", None)
    return outputs.features if experts is None else jnp.moveaxis(experts.features, 0, 1)


def _by_expert(rows):
    return rows if rows.ndim == 2 else jnp.moveaxis(rows, 1, 0)


def _heads(params):
    """The parameters under the name of a last layer, wherever it lies, in the same tree."""
    found = {}
    for name, node in params.items():
        if name == _HEAD:
            found[name] = node
        elif isinstance(node, Mapping) and (inside := _heads(node)):
            found[name] = inside
    return found
