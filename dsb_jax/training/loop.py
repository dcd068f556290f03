"""The training loop: evaluate, next batch, step, metrics; then the results."""

import itertools
import logging
import os
import shlex
import sys
import time
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax.data import pipeline
from dsb_jax.evaluation import metrics, report
from dsb_jax.training import experiment as experiments
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.progress import Progress
from dsb_jax.training.step import TrainState, init_state, make_eval_step, make_train_step
from dsb_jax.training.workdir import Workdir

_logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains, evaluates and writes ``config.json, train_indices.npy, metrics.jsonl, results.json, report.html``.

    A workdir in which this very run is finished is left as it is.

    Args:
      config: as :func:`dsb_jax.training.base_config` makes it.
      workdir: the folder to write to.

    Returns:
      What ``results.json`` holds.

    Raises:
      ValueError: on a setting that is unknown or does not fit, a workdir that holds another run, or broken data.
      FileNotFoundError: if the dataset is not prepared.
      FloatingPointError: if the loss or the features stop being finite.
    """
    files = Workdir(workdir, config)
    if files.results is not None:
        _logger.info("%s holds this run, finished; remove the folder to train again", files.path)
        return files.results
    run = _Run(config, experiments.build(config), files)
    with files:
        files.write_indices(run.experiment.indices)
        run.train()
        files.write_json("results.json", run.results())
    results = files.results
    _logger.info("top-1 %.2f %%, report: %s", 100 * results["top1"], report.write(files.path))
    return results


class _Run:
    """One training run: the compiled steps, the state they pass on, and where its records go."""

    def __init__(self, config: ConfigDict, experiment: Experiment, files: Workdir) -> None:
        self.config, self.experiment, self.files = config, experiment, files
        parts = (experiment.model, experiment.objective, experiment.balancer, experiment.optimizer)
        example = np.zeros((1, *experiment.train.image_shape), np.uint8)
        self.state: TrainState = init_state(*parts, experiment.preprocess(example), seed=config.seed)
        self.train_step = make_train_step(*parts, experiment.preprocess)
        self.eval_step = make_eval_step(experiment.model, experiment.objective.loss, experiment.preprocess)
        self.summary = jax.jit(experiment.balancer.summary)
        self.progress = Progress(experiment.steps, config.batch_size)
        self._trace()  # settings that do not fit each other are refused before anything is written
        _logger.info("Parameters:\n%s", parameter_overview.get_parameter_overview(self.state.params))
        _logger.info(
            "%s on %d images of %s in %d classes (%d to %d each), %d steps",
            experiments.method(config), len(experiment.indices), config.dataset, len(experiment.counts),
            experiment.counts.min(), experiment.counts.max(), experiment.steps,
        )  # fmt: skip

    def _trace(self):
        jax.eval_shape(self.train_step, self.state, _zeros(self.experiment.train, self.config.batch_size))

    def train(self) -> None:
        """All steps, with an evaluation at the end of every ``eval_every``-th epoch and of the run."""
        config, experiment = self.config, self.experiment
        batches = pipeline.train_batches(experiment.train, experiment.indices, config.batch_size, seed=config.seed)
        evaluated, window = 0, []  # the last epoch evaluated; metrics since they were last logged
        _logger.info("Compiling")
        jax.block_until_ready(self.eval_step(self.state, _zeros(experiment.test, config.eval_batch_size)))
        for step, batch in enumerate(itertools.islice(batches, experiment.steps), start=1):
            images = {"image": batch["image"], "label": batch["label"]}
            self.state, outputs = self.train_step(self.state, jax.device_put(images))
            window.append(outputs)
            if step == 1:
                jax.block_until_ready(outputs)
                self.progress.start(step)
            last = step == experiment.steps
            if step % config.log_every == 0 or last:
                self._log(step, window)
                window = []
            epoch = int(experiment.epoch(step, config.batch_size))
            if last or epoch >= evaluated + config.eval_every:
                evaluated = epoch
                self._evaluate(step)

    def _log(self, step, window):
        """Metrics averaged over the steps since the last time; the only place where the device is waited for."""
        window = jax.device_get(window)
        rate = self.progress.rate(step)
        mean = {name: float(np.mean([outputs[name] for outputs in window])) for name in window[0]}
        epoch = self.experiment.epoch(step, self.config.batch_size)
        learning_rate = float(self.experiment.schedule(step - 1))
        timing = {"images_per_second": rate, "train_seconds": self.progress.seconds}
        self.files.log(step=step, epoch=epoch, **mean, learning_rate=learning_rate, **timing)
        text = " ".join(f"{name} {value:.4f}" for name, value in mean.items())
        self.progress.report(step, f"epoch {epoch:.2f} {text}", rate)
        rejected = int(self.summary(self.state.balancing).get("rejected", 0))
        if rejected or not np.isfinite(mean["loss"]):
            what = f"{rejected} rows of features were not finite" if rejected else f"the loss is {mean['loss']}"
            raise FloatingPointError(f"by step {step}: {what}; try a learning_rate below {self.config.learning_rate}")

    def _evaluate(self, step):
        """Test accuracy by class, and what the balancer makes of the classes."""
        jax.block_until_ready(self.state)  # steps still under way are training time
        begin = time.perf_counter()
        outputs = self._predict(self.experiment.test)
        confusion = metrics.confusion_matrix(
            self.experiment.test.labels, outputs["prediction"], len(self.experiment.counts)
        )
        accuracy, per_class = np.trace(confusion) / confusion.sum(), metrics.class_accuracy(confusion)
        self.accuracy = accuracy, per_class
        summary = jax.device_get(self.summary(self.state.balancing))
        record = {name: summary[name] for name in ("weights", "volumes", "scales") if name in summary}
        epoch = self.experiment.epoch(step, self.config.batch_size)
        loss = float(np.mean(outputs["loss"]))
        self.files.log(
            step=step, epoch=epoch, test_accuracy=accuracy, test_loss=loss, class_accuracy=per_class, **record
        )
        _logger.info("epoch %.2f: test accuracy %.4f, loss %.4f", epoch, accuracy, loss)
        self.progress.pause(time.perf_counter() - begin)

    def _predict(self, split, indices=None):
        """What the evaluation step gives for the examples of a split, as NumPy arrays."""
        outputs = []
        for batch in pipeline.eval_batches(split, self.config.eval_batch_size, indices=indices):
            of_batch = self.eval_step(self.state, {"image": batch["image"], "label": batch["label"]})
            outputs.append(jax.tree.map(lambda array, mask=batch["mask"]: np.asarray(array)[mask], of_batch))
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}

    def results(self) -> dict[str, Any]:
        """Accuracies, and the final model's view of every class: the same measurement whatever the method."""
        config, experiment = self.config, self.experiment
        top1, per_class = self.accuracy
        measured = self._measure_classes()
        weights = np.asarray(self.summary(self.state.balancing)["weights"])
        counts = experiment.counts
        rows = zip(
            experiment.class_names,
            per_class,
            counts,
            np.bincount(experiment.test.labels, minlength=len(counts)),
            measured["volume"],
            measured["scale"],
            weights,
            strict=True,
        )
        columns = ("accuracy", "samples", "test_samples", "volume", "scale", "weight")
        return {
            "dataset": config.dataset,
            "model": config.model,
            "loss": config.loss,
            "balancer": config.balancer,
            "method": experiments.method(config),
            "seed": config.seed,
            "steps": experiment.steps,
            "epochs": config.epochs,
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "top1": top1,
            **metrics.shot_accuracy(per_class, counts),
            "per_class": {name: dict(zip(columns, values, strict=True)) for name, *values in rows},
            "correlations": metrics.correlations(
                per_class,
                samples=counts,
                effective_number=np.asarray(dsb_jax.effective_number(counts)),
                **measured,
            ),
        }

    def _measure_classes(self):
        """Volume, interference and scale of the training features under the final model."""
        experiment, num_classes = self.experiment, len(self.experiment.counts)
        features = self._predict(experiment.train, experiment.indices)["features"]
        labels = experiment.train.labels[experiment.indices]
        features = dsb_jax.pool_features(features, self.config.dsb.dim)
        present = experiment.counts > 0
        volumes = dsb_jax.class_volumes(features, labels, num_classes, epsilon=self.config.dsb.epsilon)
        centers = dsb_jax.class_centers(features, labels, num_classes)
        scales = dsb_jax.semantic_scales(volumes, centers, experiment.alpha, present=present)
        interclass = dsb_jax.interclass_weights(centers, experiment.alpha, present=present)
        return {"volume": np.asarray(volumes), "interclass": np.asarray(interclass), "scale": np.asarray(scales)}


def _zeros(split, rows):
    """A batch of which only the shapes matter."""
    return {"image": np.zeros((rows, *split.image_shape), np.uint8), "label": np.zeros(rows, np.int32)}
