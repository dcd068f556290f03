"""The train state and the two jitted steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dsb_jax.balancers import Balancer
from dsb_jax.objectives import Objective, total_loss

Batch = dict[str, jax.Array]
Preprocess = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on: one pytree.

    Attributes:
      step: int32, updates so far.
      params: the model's parameters.
      batch_stats: its batch statistics; empty for a model without.
      opt_state: the optimizer's.
      balancing: the balancer's, the feature pool included.
      objective: the objective's.
      key: a random key; step ``s`` uses ``fold_in(key, s)``.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    balancing: Any
    objective: Any
    key: jax.Array


def init_state(
    model: nn.Module,
    objective: Objective,
    balancer: Balancer,
    optimizer: optax.GradientTransformation,
    images: jax.Array,
    *,
    seed: int,
) -> TrainState:
    """The state before the first step.

    Args:
      model: as :func:`dsb_jax.models.create` makes it.
      objective: what a batch is trained on.
      balancer: where class weights come from.
      optimizer: an Optax transformation.
      images: floating ``[batch, height, width, channels]``, of which only the shape matters.
      seed: of the parameters and of everything random in a step.
    """
    key, params_key, objective_key = jax.random.split(jax.random.key(seed), 3)

    @jax.jit
    def init():
        variables = model.init(params_key, images, train=False)
        outputs = model.apply(variables, images, train=False)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            balancing=balancer.init(),
            objective=objective.init(objective_key, variables, outputs),
            key=key,
        )

    return init()


def make_train_step(
    model: nn.Module,
    objective: Objective,
    balancer: Balancer,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    The batch's features enter the balancer first, then the weights that come out multiply the batch's losses. Only
    the losses are differentiated: the balancer runs between the forward and the backward pass, outside of both.
    """

    def step(state, batch):
        batch = batch | {"image": preprocess(batch["image"])}
        rng = jax.random.fold_in(state.key, state.step)

        def losses_of(params):
            stats = state.batch_stats

            def forward(images):
                nonlocal stats
                variables = {"params": params, "batch_stats": stats}
                outputs, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
                stats = changed.get("batch_stats", stats)
                return outputs

            result = objective(forward, batch, state.objective, rng)
            return [term.losses for term in result.terms], (result, stats)

        losses, backward, (result, stats) = jax.vjp(losses_of, state.params, has_aux=True)
        weights, balancing = balancer.update(state.balancing, result.features, result.labels, mask=result.mask)

        def weighted(losses):
            terms = [term._replace(losses=loss) for term, loss in zip(result.terms, losses, strict=True)]
            return total_loss(terms, weights, mask=result.mask)

        loss, of_losses = jax.value_and_grad(weighted)(losses)
        (gradient,) = backward(of_losses)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=stats,
            opt_state=opt_state,
            balancing=balancing,
            objective=objective.after_update(result.state, params),
            key=state.key,
        )
        return state, {"loss": loss} | result.metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    model: nn.Module, loss: Callable[[jax.Array, jax.Array], jax.Array], preprocess: Preprocess
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """A jitted step ``(state, batch) -> outputs`` with predicted classes, losses and features, per example."""

    @jax.jit
    def step(state, batch):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        outputs = model.apply(variables, preprocess(batch["image"]), train=False)
        return {
            "prediction": jnp.argmax(outputs.logits, axis=1),
            "loss": loss(outputs.logits, batch["label"]),
            "features": outputs.features,
        }

    return step
