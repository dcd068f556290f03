"""The train state and the two jitted steps."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import balancers, validation
from dsb_jax.balancers import Balancer
from dsb_jax.data.mixing import Mixed
from dsb_jax.objectives import Objective, Result, state_shardings, total_loss
from dsb_jax.training import diagnosis, parameters
from dsb_jax.training.diagnosis import Finding
from dsb_jax.training.sharding import HEAD, Placement, everywhere

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on: one pytree.

    Attributes:
      step: int32, steps so far.
      params: the model's parameters.
      batch_stats: its batch statistics; empty for a model without.
      opt_state: the optimizer's.
      balancing: the balancer's, the feature pool included.
      objective: the objective's.
      average: the model's variables averaged over the steps, ``{"params", "batch_stats"}``; ``()`` without averaging.
      accuracy: float32 ``[C]``, each class's on held-out examples, NaN where it is not known; ``()`` without any.
      drawn_by: float32 ``[n]``, weights of the training examples for a sampler that follows the model; else ``()``.
      skipped: int32, steps left out because something in them was not finite.
      key: a random key; step ``s`` uses ``fold_in(key, s)``.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    balancing: Any
    objective: Any
    average: Any
    accuracy: Any
    drawn_by: Any
    skipped: jax.Array
    key: jax.Array

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that the model is evaluated with: the averaged ones where there are any."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    objective: Objective,
    balancer: Balancer,
    optimizer: optax.GradientTransformation,
    images: jax.Array,
    *,
    seed: int,
    ema_decay: float = 0.0,
    held_out_classes: int = 0,
    drawn_examples: int = 0,
    trainable: str = parameters.ALL,
    given: Mapping[str, Any] | None = None,
    placement: Placement | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      model: as :func:`dsb_jax.models.create` makes it.
      objective: what a batch is trained on.
      balancer: where class weights come from.
      optimizer: an Optax transformation.
      images: floating ``[batch, height, width, channels]``, of which only the shape matters.
      seed: of the parameters and of everything random in a step.
      ema_decay: as in :func:`make_train_step`.
      held_out_classes: how many classes the balancer is to be told the accuracy of.
      drawn_examples: how many examples there are for a sampler that follows the model; all equal to begin with.
      trainable: as in :func:`make_train_step`.
      given: variables that take the place of random ones, ``params`` and ``batch_stats`` or parts of them; and, for an
        objective that has a teacher, its variables as ``teacher``.
      placement: devices, over which a feature pool is spread and parameters as it says; one device by default.

    Raises:
      ValueError: if ``ema_decay`` is outside [0, 1).
    """
    validation.below_one("ema_decay", ema_decay)
    key, params_key, objective_key = jax.random.split(jax.random.key(seed), 3)

    def init(given):
        made: dict[str, Any] = dict(model.init(params_key, images, train=False))
        variables = made | {name: parameters.merged(made[name], part) for name, part in given.items() if name in made}
        outputs = model.apply(variables, images, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        trained, _ = parameters.split(params, trainable)
        known = variables | ({"teacher": given["teacher"]} if "teacher" in given else {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(trained),
            balancing=balancer.init(),
            objective=objective.init(objective_key, known, outputs),
            average={"params": params, "batch_stats": batch_stats} if ema_decay else (),
            accuracy=jnp.full(held_out_classes, jnp.nan, jnp.float32) if held_out_classes else (),
            drawn_by=jnp.ones(drawn_examples, jnp.float32) if drawn_examples else (),
            skipped=jnp.zeros((), jnp.int32),
            key=key,
        )

    given = given or {}
    if placement is None:
        return jax.jit(init)(given)
    shardings = _state_shardings(jax.eval_shape(init, given), objective, balancer, placement)
    return jax.jit(init, out_shardings=shardings)(given)


def make_train_step(
    model: nn.Module,
    objective: Objective,
    balancer: Balancer,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    further: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    mix: Callable[[jax.Array, jax.Array], Mixed] | None = None,
    label_share: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
    trainable: str = parameters.ALL,
    placement: Placement | None = None,
) -> jax.stages.Wrapped:
    """A jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    The batch's features enter the balancer first, then the weights that come out multiply the batch's losses. Only
    the losses are differentiated: the balancer runs between the forward and the backward pass, outside of both.
    Offsets, where a balancer has them, are those after the batch before, which raise this one's logits.

    Averaging is ``average ← d·average + (1 − d)·new`` after every step, of batch statistics as well, with
    ``d = min(ema_decay, (1 + t)/(10 + t))`` after ``t`` updates, as TensorFlow's ``ExponentialMovingAverage`` has it:
    the random parameters that it starts from are forgotten however short the run is.

    Args:
      model, objective, balancer, optimizer: as for :func:`init_state`.
      preprocess: ``(images, rng) -> images``, with augmentation, of the whole batch.
      further: what makes further views in its place; None is ``preprocess`` itself.
      mix: ``(images, rng) -> Mixed``, of what comes out of it; None mixes nothing.
      label_share: ``(share, labels, other_labels) -> [batch]``, what of the loss of a mixed image is by its own label;
        None for as much as it has of its own image.
      accumulate: parts of a batch that pass through the model one after the other, for batches that memory does not
        hold. The balancer is fed once, with all of them, so that without batch statistics the update is the one of
        the whole batch; it costs a second forward pass if the balancer looks at features. Batch normalisation sees a
        part at a time. ``batch`` must be a multiple.
      ema_decay: of the average, in [0, 1); 0 keeps none.
      skip_nonfinite: a step that meets a number that is not finite changes neither the model nor the optimizer, the
        average and the objective's state, and is counted in ``skipped``. The balancer leaves out such rows by itself.
      trainable: globs of the parameters that are trained, separated by spaces. The others stay as they are, to the bit:
        they have no gradient, no decay and no share in the optimizer's state. Where what is trained has no batch
        statistics beside it, as a head over a frozen backbone, the model computes as in evaluation.
      placement: devices that share the batch, which is sharded ``P("data")``, the pool and, as it says, parameters.

    Returns:
      The step. Its metrics are scalars: ``loss``, those of the objective, ``gradient_norm`` before clipping, and
      what :func:`dsb_jax.training.diagnosis.describe` reads; with ``accumulate`` they are means over the batch.

    Raises:
      ValueError: if ``accumulate`` is not a positive integer or ``ema_decay`` is outside [0, 1); from the step, if the
        batch is not a multiple of ``accumulate``.

    Example:
      >>> from dsb_jax import losses, models, objectives
      >>> import optax
      >>> objective = objectives.Supervised(losses.create("cross_entropy"))
      >>> parts = (models.create("lenet", 2), objective, balancers.uniform(2), optax.sgd(0.1))
      >>> images = jnp.zeros((4, 4, 4, 1))
      >>> state = init_state(*parts, images, seed=0)
      >>> train_step = make_train_step(*parts, lambda images, rng: images)
      >>> state, metrics = train_step(state, {"image": images, "label": jnp.array([0, 0, 0, 1])})
      >>> print(state.step, f"{metrics['loss']:.4f}")
      1 0.6931

    Source: Algorithm 2 of the paper.
    """
    validation.below_one("ema_decay", ema_decay)
    validation.positive_int("accumulate", accumulate)
    differentiate = _of_whole(model, objective, balancer, trainable)
    if accumulate > 1:
        differentiate = _of_parts(model, objective, balancer, trainable, accumulate, placement and placement.mesh)

    of_batches: dict[str, Any] = {"further": further, "mix": mix, "label_share": label_share}

    def step(state, batch):
        augmentation_key, objective_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = augmented(batch, augmentation_key, preprocess, views=objective.views, **of_batches)
        if placement is None:
            outcome = differentiate(state, batch, objective_key)
        else:
            outcome = differentiate(_whole(state, placement), batch, objective_key)
            outcome = outcome._replace(gradient=placement.constrain(outcome.gradient))
        gradient_norm = optax.tree.norm(outcome.gradient)
        trained, frozen = parameters.split(state.params, trainable)
        updates, opt_state = optimizer.update(outcome.gradient, state.opt_state, trained)
        params = parameters.merged(optax.apply_updates(trained, updates), frozen)
        trouble = diagnosis.first(_findings(state, batch, outcome, gradient_norm, params))
        new = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=outcome.batch_stats,
            opt_state=opt_state,
            balancing=outcome.balancing,
            objective=objective.after_update(outcome.objective, params),
            average=_averaged(state, params, outcome.batch_stats, ema_decay, trainable),
            accuracy=state.accuracy,
            drawn_by=state.drawn_by,
            skipped=state.skipped,
            key=state.key,
        )
        if skip_nonfinite:
            new = _unless(trouble["nonfinite_place"] >= 0, new, state)
        if placement is not None:
            new = dataclasses.replace(new, **{name: placement.constrain(getattr(new, name)) for name in _PARAMETERS})
        metrics = {"loss": outcome.loss} | outcome.metrics | {"gradient_norm": gradient_norm} | trouble
        return new, metrics

    if placement is None:
        return jax.jit(step, donate_argnums=0)
    shardings = _out_shardings(objective, balancer, placement.mesh), everywhere(placement.mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def augmented(
    batch: Batch,
    rng: jax.Array,
    preprocess: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    views: int = 1,
    further: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    mix: Callable[[jax.Array, jax.Array], Mixed] | None = None,
    label_share: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> Batch:
    """A batch as the model sees it.

    Args:
      batch: as the pipeline gives it, with uint8 images.
      rng: a key, from which all draws are made.
      preprocess: as for :func:`make_train_step`; each view has a key of its own.
      views: of every image; one that the host did not crop by itself is made of ``image``.
      further: as for :func:`make_train_step`.
      mix: as for :func:`make_train_step`; further views are not mixed.
      label_share: as for :func:`make_train_step`.

    Returns:
      The batch as :class:`dsb_jax.objectives.Objective` describes it.
    """
    ready = batch | {"image": preprocess(batch["image"], rng)}
    for view in range(1, views):
        images: Any = batch.get(f"view_{view}", batch["image"])
        ready[f"view_{view}"] = (further or preprocess)(images, jax.random.fold_in(rng, view))
    of_samplers = sorted(name for name, value in batch.items() if isinstance(value, dict))
    for number, name in enumerate(of_samplers):
        key = jax.random.fold_in(rng, views + number)
        ready[name] = augmented(
            batch[name], key, preprocess, views=views, further=further, mix=mix, label_share=label_share
        )
    if mix is not None:
        mixed = mix(ready["image"], jax.random.fold_in(rng, views + len(of_samplers)))
        share = jnp.broadcast_to(mixed.share, batch["label"].shape)
        others = batch["label"][mixed.partner]
        if label_share is not None:
            share = label_share(share, batch["label"], others)
        ready |= {"image": mixed.images, "other_label": others, "share": share}
    return ready


def make_eval_step(
    model: nn.Module,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    preprocess: Callable[[jax.Array], jax.Array],
    *,
    placement: Placement | None = None,
) -> jax.stages.Wrapped:
    """A jitted step ``(state, batch) -> outputs``: of every example ``prediction``, the class that the model takes it
    for, ``probabilities`` of all and ``probability`` of its own class, ``loss`` and ``features``.

    Args:
      model: as for :func:`init_state`; evaluated with the averaged variables where the state has them.
      loss: ``(logits, labels) -> [batch]``.
      preprocess: ``images -> images``.
      placement: devices that share a batch; the outputs are on every one, so that every process can read them.
    """

    def step(state, batch):
        variables = (state if placement is None else _whole(state, placement)).evaluated
        outputs: Any = model.apply(variables, preprocess(batch["image"]), train=False)
        probabilities = jax.nn.softmax(outputs.logits.astype(jnp.float32))
        return {
            "prediction": jnp.argmax(outputs.logits, axis=1),
            "probabilities": probabilities,
            "probability": jnp.take_along_axis(probabilities, batch["label"][:, None], axis=1)[:, 0],
            "loss": loss(outputs.logits, batch["label"]),
            "features": outputs.features,
        }

    return jax.jit(step) if placement is None else jax.jit(step, out_shardings=everywhere(placement.mesh))


class _Outcome(NamedTuple):
    """What a batch makes of a state, before the optimizer has its say."""

    loss: jax.Array
    gradient: Any
    weights: jax.Array
    batch_stats: Any
    balancing: Any
    objective: Any
    metrics: Metrics
    findings: Mapping[str, Finding]  # of what is at hand only while the losses are


def _of_whole(model, objective, balancer, trainable):
    """The gradient of a batch that passes through the model at once."""

    def differentiate(state, batch, rng):
        trained, losses_of = _losses_of(model, objective, balancer, state, trainable)

        def of_batch(trained):
            return losses_of(trained, state.batch_stats, state.objective, batch, rng)

        losses, backward, (result, stats) = jax.vjp(of_batch, trained, has_aux=True)
        weights, balancing = _weigh(balancer, state, result)

        def weighted(losses):
            terms = [term._replace(losses=loss) for term, loss in zip(result.terms, losses, strict=True)]
            return total_loss(terms, weights, mask=result.mask)

        loss, of_losses = jax.value_and_grad(weighted)(losses)
        (gradient,) = backward(of_losses)
        return _Outcome(
            loss, gradient, weights, stats, balancing, result.state, result.metrics, _findings_of_result(result)
        )

    return differentiate


def _of_parts(model, objective, balancer, trainable, count, mesh):
    """The same gradient from one part of the batch after the other.

    All features must be known before the first weight is, and to keep what a backward pass needs is what the parts are
    there to avoid: so the parts pass forward twice. XLA leaves out the first time for a balancer that ignores it.
    """

    def differentiate(state, batch, rng):
        parts = jax.tree.map(lambda array: _split(array, count, mesh), batch)
        keys = jax.random.split(rng, count)
        trained, losses_of = _losses_of(model, objective, balancer, state, trainable)

        def collect(memory, part):
            _, (result, _) = losses_of(trained, state.batch_stats, memory, *part)
            return result.state, result._replace(terms=(), state=(), metrics={})

        _, collected = lax.scan(collect, state.objective, (parts, keys))
        classifier = jax.tree.map(lambda array: array[0], collected.classifier)  # all parts have the same
        collected = jax.tree.map(lambda array: _join(array, mesh), collected._replace(classifier=None))
        weights, balancing = _weigh(balancer, state, collected._replace(classifier=classifier))
        mask = collected.mask

        def add(carry, part):
            gradient, stats, memory = carry
            *part, share = part

            def loss_of(trained):
                _, (result, changed) = losses_of(trained, stats, memory, *part)
                return share * total_loss(result.terms, weights, mask=result.mask), (result, changed)

            (loss, (result, stats)), of_part = jax.value_and_grad(loss_of, has_aux=True)(trained)
            # A part of which all is masked has no mean.
            metrics = jax.tree.map(lambda metric: jnp.where(share > 0, share * metric, 0), result.metrics)
            carry = optax.tree.add(gradient, of_part), stats, result.state
            return carry, (loss, metrics, _findings_of_result(result))

        carry = optax.tree.zeros_like(trained), state.batch_stats, state.objective
        inputs = (parts, keys, _shares(mask, count))
        (gradient, stats, memory), (losses, metrics, findings) = lax.scan(add, carry, inputs)
        loss, metrics = jax.tree.map(jnp.sum, (losses, metrics))
        findings = {place: diagnosis.lowest(each) for place, each in findings.items()}
        return _Outcome(loss, gradient, weights, stats, balancing, memory, metrics, findings)

    return differentiate


def _losses_of(model, objective, balancer, state, trainable):
    """The parameters that are trained, and the losses as a function of them; the others are constants to it.

    So JAX never asks for the gradient of those, nor for what lies before them alone.
    """
    trained, frozen = parameters.split(state.params, trainable)
    follows = _follows(trained, frozen, state.batch_stats)
    offsets = balancer.summary(state.balancing).get("offsets")

    def losses_of(trained, *arguments):
        return _losses(model, objective, parameters.merged(trained, frozen), follows, offsets, *arguments)

    return trained, losses_of


def _follows(trained, frozen, stats):
    """Whether batch statistics follow: all is trained, or something that makes features and has some beside it.

    Of a model without any, whether it computes as in training: what makes features is trained.
    """
    if not frozen:
        return True
    paths = [path.split("/") for path in parameters.flat(trained)]
    return any((path[0] in stats or not stats) and HEAD not in path for path in paths)


# The keys of passes through the model are none that an objective splits off from its own.
_FIRST_CALL = 1 << 20


def _losses(model, objective, params, follows, offsets, stats, memory, batch, rng):
    """The losses of an objective's terms; besides, all that it returns, and the batch statistics it leaves behind.

    Unless the batch statistics follow, the model computes as in evaluation. Offsets raise the logits of what is called
    plainly.
    """

    calls = itertools.count(_FIRST_CALL)

    def forward(inputs, *, variables=None, train=True, **options):
        nonlocal stats
        train = train and (follows or variables is not None)
        used = {"params": params, "batch_stats": stats} if variables is None else variables
        rngs = {"dropout": jax.random.fold_in(rng, next(calls))}
        outputs, changed = model.apply(used, inputs, train=train, mutable=["batch_stats"], rngs=rngs, **options)
        # Statistics are of the images of batches, not of features that are classified besides.
        if variables is None and options.get("method") != "classify":
            stats = changed.get("batch_stats", stats)
        plainly = variables is None and "method" not in options
        return _raised(outputs, offsets) if offsets is not None and plainly else outputs

    result = objective(forward, batch, memory, rng)
    return [term.losses for term in result.terms], (result, stats)


def _raised(outputs, offsets):
    """The outputs with offsets ``[C]`` on their logits."""
    found = {name: getattr(outputs, name, None) for name in ("logits", "auxiliary")}
    return outputs._replace(
        **{name: x + jnp.broadcast_to(offsets, x.shape) for name, x in found.items() if x is not None}
    )


def _weigh(balancer, state, result):
    """The balancer's weights and its state after a batch."""
    known = {"logits": result.logits, "classifier": result.classifier}
    known |= {} if isinstance(state.accuracy, tuple) else {"accuracy": state.accuracy}
    return balancer.update(state.balancing, result.features, result.labels, mask=result.mask, **known)


def _split(array, count, mesh):
    """``[batch, …]`` to ``[count, batch/count, …]``: consecutive parts, each of them spread over all devices."""
    if array.shape[0] % count:
        raise ValueError(f"a batch of {array.shape[0]} examples does not divide into accumulate = {count} parts")
    return _constrained(array.reshape(count, -1, *array.shape[1:]), mesh, P(None, "data"))


def _join(array, mesh):
    return _constrained(array.reshape(-1, *array.shape[2:]), mesh, P("data"))


def _constrained(array, mesh, spec):
    return array if mesh is None else lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def _shares(mask, count):
    """``[count]``: which share of the batch's examples each part holds."""
    if mask is None:
        return jnp.full(count, 1 / count, jnp.float32)
    kept = jnp.sum(mask.reshape(count, -1), axis=1, dtype=jnp.float32)
    return kept / jnp.maximum(jnp.sum(kept), 1.0)


def _findings_of_result(result: Result) -> dict[str, Finding]:
    rows = [(term.losses, result.labels if term.labels is None else term.labels) for term in result.terms]
    return {
        "features": diagnosis.examples(result.features, result.labels, result.mask),
        "losses": diagnosis.lowest(*(diagnosis.examples(losses, labels, result.mask) for losses, labels in rows)),
    }


def _findings(state, batch, outcome, gradient_norm, updated):
    """Of the whole step. A sum of finite numbers may overflow: then it is found where it was summed."""
    classes = jnp.arange(outcome.weights.shape[0], dtype=jnp.int32)
    untouched = jax.tree.map(lambda _: jnp.zeros(()), state.params)  # arrays are named by their place among all
    return outcome.findings | {
        "parameter": diagnosis.arrays(state.params),
        "image": diagnosis.examples(batch["image"], batch["label"], batch.get("mask")),
        "statistic": diagnosis.arrays(outcome.batch_stats),
        "weight": diagnosis.examples(outcome.weights, classes),
        "loss": diagnosis.scalar(outcome.loss),
        "gradient": diagnosis.arrays(parameters.merged(untouched, outcome.gradient)),
        "gradient_norm": diagnosis.scalar(gradient_norm),
        "update": diagnosis.arrays(updated),
    }


def _averaged(state, params, batch_stats, decay, trainable):
    if not decay:
        return ()
    updates = (state.step - state.skipped).astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    new = {"params": params, "batch_stats": batch_stats}
    average = optax.incremental_update(new, state.average, 1 - decay)
    # The mean of equal numbers may differ from them by rounding.
    trained, frozen = parameters.split(params, trainable)
    stats = average["batch_stats"] if _follows(trained, frozen, batch_stats) else batch_stats
    return {"params": parameters.merged(average["params"], frozen), "batch_stats": stats}


def _unless(bad, new, old):
    """``new``, or ``old`` with the step counted. By selection: branches would copy the pool, which goes on anyway."""
    kept = ("params", "batch_stats", "opt_state", "objective", "average")
    chosen = {
        name: jax.tree.map(lambda n, o: jnp.where(bad, o, n), getattr(new, name), getattr(old, name)) for name in kept
    }
    return dataclasses.replace(new, **chosen, skipped=old.skipped + bad.astype(jnp.int32))


def _whole(state, placement):
    """The state, with the parameters that a model computes with gathered."""
    return dataclasses.replace(state, params=placement.gather(state.params), average=placement.gather(state.average))


# What has the shapes of parameters.
_PARAMETERS = ("params", "opt_state", "average")


def _state_shardings(shapes, objective, balancer, placement):
    of_parameters = {name: placement.shardings(getattr(shapes, name)) for name in _PARAMETERS}
    return dataclasses.replace(_out_shardings(objective, balancer, placement.mesh), **of_parameters)


def _out_shardings(objective, balancer, mesh):
    """All but those of parameters, whose shapes are known inside of the step only."""
    fields: dict[str, Any] = {field.name: everywhere(mesh) for field in dataclasses.fields(TrainState)}
    fields |= {"balancing": balancers.state_shardings(balancer, mesh)} | dict.fromkeys(_PARAMETERS)
    fields["objective"] = state_shardings(objective, mesh)
    return TrainState(**fields)
