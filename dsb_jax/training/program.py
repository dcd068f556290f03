"""The compiled steps of an experiment, and its examples where the steps find them."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax.data import feed, samplers
from dsb_jax.data.environments import environment_weights
from dsb_jax.evaluation import metrics
from dsb_jax.training import building, methods
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.progress import announced
from dsb_jax.training.sharding import everywhere, of_batch
from dsb_jax.training.step import Batch, TrainState, augmented, init_state, make_eval_step, make_train_step

_logger = logging.getLogger(__name__)

# Outputs of evaluation steps that may wait on the device for the host to fetch them.
_STEPS_BEHIND = 4


class Program:
    """What a run computes: compiled once, before anything is written, so that what does not fit is refused.

    Args:
      config: the run's settings.
      experiment: its parts.
      given: variables of earlier runs, as for :func:`dsb_jax.training.step.init_state`; a teacher's that are not there
        are zeros, for a state that is restored.

    Attributes:
      initial: the state before the first step; on CPU and GPU the first step takes its buffers.
      train_step: ``(state, batch) -> (state, metrics)``; None where there are no steps.
      summary: ``balancer state -> dict``, see :class:`dsb_jax.Balancer`.
      learning_rates: ``[steps]``, known beforehand so that no log line asks the device for one.
    """

    def __init__(self, config: ConfigDict, experiment: Experiment, given: Mapping[str, Any] | None = None) -> None:
        self._config, self._experiment = config, experiment
        self._mesh = None if experiment.placement is None else experiment.placement.mesh
        options = {"sharding": of_batch(self._mesh), "resident_bytes": config.resident_megabytes * 2**20}
        self._train = feed.Examples(experiment.train, experiment.indices, **options)
        self._test = feed.Examples(experiment.test, **options)
        self._held_out = feed.Examples(experiment.train, experiment.held_out, **options) if self.holds_out else None
        self._describe()
        begin = time.perf_counter()
        self._following = samplers.following(experiment.objective.samplers)
        preprocessing = experiment.preprocessing
        image = preprocessing.evaluation(jnp.zeros((1, *experiment.train.image_shape), jnp.uint8))
        known = dict(given or {})
        if experiment.teacher is not None:
            nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), experiment.teacher_shapes)
            known = {"teacher": nothing} | known
        self.initial: TrainState = init_state(
            experiment.model,
            experiment.objective,
            experiment.balancer,
            experiment.optimizer,
            image,
            seed=config.seed,
            ema_decay=config.ema_decay,
            held_out_classes=len(experiment.counts) if self.holds_out else 0,
            drawn_examples=len(experiment.indices) if self._following else 0,
            trainable=config.trainable,
            given=known,
            placement=experiment.placement,
        )
        # Of arrays on several devices or processes the table says also how they are divided.
        include_stats = True if self._mesh is None else "global"
        table = parameter_overview.get_parameter_overview(self.initial.params, include_stats=include_stats)
        _logger.info("Parameters:\n%s", table)
        _logger.info("Compiling")
        self.train_step: Any = None if experiment.steps == 0 else self._compiled_step()
        eval_step = make_eval_step(
            experiment.model, experiment.objective.loss, preprocessing.evaluation, placement=experiment.placement
        )
        self._eval_step = eval_step.lower(self.initial, _arrays(next(self._in_order(self._test)))).compile()
        summary = jax.jit(experiment.balancer.summary, out_shardings=everywhere(self._mesh))
        self.summary = summary.lower(self.initial.balancing).compile()
        self.learning_rates = np.asarray(jax.jit(jax.vmap(experiment.schedule))(jnp.arange(experiment.steps)))
        _logger.info("Compiled in %.0f s", time.perf_counter() - begin)

    def _compiled_step(self):
        config, experiment, preprocessing = self._config, self._experiment, self._experiment.preprocessing
        train_step = make_train_step(
            experiment.model,
            experiment.objective,
            experiment.balancer,
            experiment.optimizer,
            preprocessing.train,
            further=preprocessing.further,
            mix=preprocessing.mix if preprocessing.mixes else None,
            label_share=preprocessing.label_share,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            skip_nonfinite=config.skip_nonfinite,
            trainable=config.trainable,
            placement=experiment.placement,
        )
        return train_step.lower(self.initial, next(self.batches(0))).compile()

    def batches(self, start_step: int, drawn_by: Any = ()) -> Iterator[Batch]:
        """Training batches from step ``start_step`` on, on the devices; ``drawn_by`` is what the state has of it."""
        config, objective = self._config, self._experiment.objective
        return self._train.shuffled(
            config.batch_size,
            seed=config.seed,
            start_step=start_step,
            views=objective.views,
            sampling=objective.samplers,
            weights=np.asarray(drawn_by) if len(drawn_by) else None,
            options={"examples_per_class": config.examples_per_class, "epochs": config.epochs},
        )

    def first_images(self, state: TrainState, number: int) -> dict[str, np.ndarray]:
        """Training images as the model saw them in the first step.

        Returns:
          ``images`` uint8 ``[n, height, width, channels]`` with n ≤ ``number``, ``labels`` int32 ``[n]``,
          ``other_labels`` int32 ``[n]`` and ``shares`` float32 ``[n]``: where images are mixed, what else is in each
          and how much of its loss is by its own label; otherwise the label again and 1.
        """
        preprocessing, objective = self._experiment.preprocessing, self._experiment.objective
        rng, _ = jax.random.split(jax.random.fold_in(state.key, 0))
        augment = functools.partial(
            augmented,
            preprocess=preprocessing.train,
            views=objective.views,
            further=preprocessing.further,
            mix=preprocessing.mix if preprocessing.mixes else None,
            label_share=preprocessing.label_share,
        )
        seen = jax.jit(augment, out_shardings=everywhere(self._mesh))(next(self.batches(0)), rng)
        seen = {
            name: np.asarray(seen[name])[:number] for name in ("image", "label", "other_label", "share") if name in seen
        }
        pixels = seen["image"] * np.asarray(preprocessing.std, np.float32) + np.asarray(preprocessing.mean, np.float32)
        return {
            "images": np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8),
            "labels": seen["label"],
            "other_labels": seen.get("other_label", seen["label"]),
            "shares": seen.get("share", np.ones(len(pixels), np.float32)),
        }

    def test(self, state: TrainState, names: Sequence[str], check: Callable[[], None]) -> dict[str, np.ndarray]:
        """What the evaluation step gives under these names, of every test example; ``check`` is called before every
        batch.
        """
        return self._outputs(state, self._test, names, check, "Testing")

    @property
    def holds_out(self) -> bool:
        """Whether there are examples that tell the balancer each class's accuracy."""
        return len(self._experiment.held_out) > 0

    def follows(self, epoch: int) -> bool:
        """Whether something that follows the model is made anew at the start of this epoch."""
        return self.holds_out or self._draws_anew(epoch)

    def followed(self, state: TrainState, epoch: int, check: Callable[[], None]) -> TrainState:
        """The state as it starts an epoch: accuracies are those of now, and examples are drawn by weights of now."""
        if self.holds_out:
            state = self.with_accuracy(state, check)
        if self._draws_anew(epoch):
            state = self.with_weights(state, check)
        return state

    def _draws_anew(self, epoch):
        if self._following == "environments" and epoch not in building.environment_epochs(self._config):
            return False
        return self._following is not None and epoch < self._config.epochs

    def with_accuracy(self, state: TrainState, check: Callable[[], None]) -> TrainState:
        """The state with each class's accuracy on the examples held out, as the state's parameters have it."""
        predictions = self._outputs(state, self._held_out, ("prediction",), check, "Testing on what is held out")
        labels = self._experiment.train.labels[self._experiment.held_out]
        confusion = metrics.confusion_matrix(labels, predictions["prediction"], len(self._experiment.counts))
        return dataclasses.replace(state, accuracy=_laid_as(state.accuracy, metrics.class_accuracy(confusion)))

    def with_weights(self, state: TrainState, check: Callable[[], None]) -> TrainState:
        """The state with the weights by which its sampler draws the training examples, as its model has them."""
        labels = self._experiment.train.labels[self._experiment.indices]
        if self._following == "semantic_scale":
            found, weights_of = self._coming_weights(state), samplers.by_class
        else:
            found = self._outputs(state, self._train, ("probability",), check, "Rebuilding environments")["probability"]
            settings = {"kind": self._config.ifl.environments, "scale": self._config.ifl.scale}
            weights_of = functools.partial(environment_weights, **settings)
        if not np.isfinite(found).all() or not found.any():  # what broke the model is for the log to say
            return state
        drawn_by = _laid_as(state.drawn_by, weights_of(found, labels))
        same = np.array_equal(state.drawn_by, drawn_by)
        return state if same else dataclasses.replace(state, drawn_by=drawn_by)

    def _coming_weights(self, state):
        """The class weights of the step to come; a balancer's summary has those of the step before."""
        waiting = state.balancing
        coming = dataclasses.replace(waiting, updates=waiting.updates + 1)
        return np.asarray(jax.device_get(self.summary(coming))["weights"])

    def training_features(self, state: TrainState, check: Callable[[], None]) -> np.ndarray:
        """Features of the training examples, pooled as the balancer pools them, in the order of ``indices``."""
        return self._outputs(state, self._train, ("pooled",), check, "Measuring features")["pooled"]

    def training_pixels(self, check: Callable[[], None]) -> np.ndarray:
        """The training examples in sample space, in the order of ``indices``."""
        pixel_features = jax.jit(dsb_jax.pixel_features, out_shardings=everywhere(self._mesh))
        batches = announced(self._in_order(self._train), self._batch_count(self._train), "Measuring images")
        parts = []
        for batch in batches:
            check()
            parts.append(np.asarray(pixel_features(batch["image"]))[batch["mask"]])
        return np.concatenate(parts)

    def _outputs(self, state, examples, names, check, what):
        parts, masks = [], []
        for batch in announced(self._in_order(examples), self._batch_count(examples), what):
            check()
            outputs = self._eval_step(state, _arrays(batch))
            if "pooled" in names:
                outputs["pooled"] = dsb_jax.pool_features(outputs["features"], self._config.dsb.dim)
            parts.append({name: outputs[name] for name in names})
            masks.append(batch["mask"])
            if len(parts) > _STEPS_BEHIND:
                parts[-1 - _STEPS_BEHIND] = jax.device_get(parts[-1 - _STEPS_BEHIND])
        parts = jax.device_get(parts)
        return {
            name: np.concatenate([part[name][mask] for part, mask in zip(parts, masks, strict=True)]) for name in names
        }

    def _in_order(self, examples):
        return examples.in_order(self._eval_batch_size)

    @property
    def _eval_batch_size(self):
        """The next multiple of the devices: what is added is masked."""
        devices = self._mesh.shape["data"] if self._mesh is not None else 1
        return -(-self._config.eval_batch_size // devices) * devices

    def _batch_count(self, examples):
        return -(-len(examples) // self._eval_batch_size)

    def _describe(self):
        experiment = self._experiment
        devices = self._mesh.size if self._mesh is not None else 1
        _logger.info(
            "%s on %d images of %s in %d classes (%d to %d each), %d steps on %d %s",
            methods.name(self._config), len(experiment.indices), self._config.dataset, len(experiment.counts),
            experiment.counts.min(), experiment.counts.max(), experiment.steps, devices, jax.devices()[0].device_kind,
        )  # fmt: skip


def _laid_as(like, values):
    """An array on the devices of another one, with its dtype and shape."""
    # Not by device_put, which asks several processes for equal values, and takes NaN for another one.
    values = np.asarray(values, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])


def _arrays(batch):
    """The part of an evaluation batch that is on the devices."""
    return {"image": batch["image"], "label": batch["label"]}
