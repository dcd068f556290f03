"""Features of images by a model that is trained: by a run's, as it was saved at any step, or by PyTorch's weights.

A run's features are those that its balancer measured: of the last layer's input, in evaluation, averaged over
neighbouring channels down to ``dsb.dim``. Its workdir is only read, also while the run is still at it.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax import data, models, validation
from dsb_jax.data import feed, preprocess
from dsb_jax.data.specs import IMAGENET_MEAN, IMAGENET_STD
from dsb_jax.models import zoo
from dsb_jax.toolkit.points import Points, require_finite
from dsb_jax.training import earlier_runs, parameters
from dsb_jax.training import experiment as experiments
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.config import base_config, with_arguments
from dsb_jax.training.experiment import Experiment

_SPLITS = ("train", "test")
_SETTING = "input"  # what errors call the workdir
_BATCHES_BEHIND = 4  # features that may wait on the device for the host to fetch them


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run in its workdir, and some of its images; :func:`load` makes it.

    Attributes:
      workdir: the run's.
      config: its settings.
      experiment: what it consists of.
      split: where the images are from, of which
      rows: are taken, sorted.
      steps: of which there is a checkpoint, in order.
    """

    workdir: pathlib.Path
    config: ConfigDict
    experiment: Experiment
    split: data.Split
    rows: np.ndarray
    steps: tuple[int, ...]

    @property
    def labels(self) -> np.ndarray:
        """Of the images, int32 ``[n]``."""
        return self.split.labels[self.rows]

    @property
    def name(self) -> str:
        """For titles."""
        return f"{self.split.name}/{self.split.split}"

    def epoch(self, step: int) -> float:
        """Passes over the training set after ``step`` updates."""
        return self.experiment.epoch(step, self.config.batch_size)

    def learning_rate(self, first: int, last: int) -> float:
        """The mean over the updates after step ``first`` up to step ``last``; NaN where there is none."""
        steps = jnp.arange(first, last)
        return float(jnp.mean(jax.vmap(self.experiment.schedule)(steps))) if len(steps) else float("nan")

    def points(self, step: int | None = None, *, progress: Callable[..., Iterable[Any]] | None = None) -> Points:
        """Features of the images by the model as it was saved, in the order of ``rows``.

        Args:
          step: one of ``steps``; the last if it is None.
          progress: ``(iterable, total) -> iterable``, through which the batches of images pass.

        Returns:
          Features float32 ``[n, dim]`` with their classes.

        Raises:
          ValueError: if there is no checkpoint, it is damaged or of another model, or a feature is not finite.
        """
        variables = earlier_runs.variables(self.workdir, self.experiment.shapes, setting=_SETTING, step=step)
        batches: Iterable[dict[str, Any]] = self._examples.in_order(self.config.eval_batch_size)
        if progress is not None:
            batches = progress(batches, -(-len(self.rows) // self.config.eval_batch_size))
        parts: list[jax.Array | np.ndarray] = []
        for batch in batches:
            parts.append(self._pooled(variables, batch["image"]))
            if len(parts) > _BATCHES_BEHIND:
                parts[-1 - _BATCHES_BEHIND] = np.asarray(parts[-1 - _BATCHES_BEHIND])
        points = np.concatenate([np.asarray(part) for part in parts])[: len(self.rows)]
        at = f"{self.workdir} at step {self.steps[-1] if step is None else step}"
        require_finite(points, self.labels, self.split.class_names, name=at)
        return Points(points, self.labels, self.split.class_names, name=self.name)

    @functools.cached_property
    def _examples(self) -> feed.Examples:
        """Kept where they are few: several checkpoints see the same ones."""
        return feed.Examples(self.split, self.rows, resident_bytes=self.config.resident_megabytes * 2**20)

    @functools.cached_property
    def _pooled(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        model, preprocessing, dim = self.experiment.model, self.experiment.preprocessing, self.config.dsb.dim

        def pooled(variables, images):
            outputs: Any = model.apply(variables, preprocessing.evaluation(images), train=False)
            return dsb_jax.pool_features(outputs.features, dim)

        return jax.jit(pooled)


def load(
    workdir: str | os.PathLike[str], *, split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> TrainedRun:
    """The run in a workdir, finished or not, ready to give features.

    Args:
      workdir: as the run has it; of a run in stages that of the last one, or ``stages/1`` … in it.
      split: ``"train"``, the images that it was trained on, or ``"test"``, those that its results are on.
      data_dir: where its dataset lies here; by default as the run has it.

    Raises:
      ValueError: if there is no run or no checkpoint, ``split`` is another one, or the dataset that is here is not that
        of the run.
      FileNotFoundError: if the dataset is not prepared here; the message is the command that prepares it.

    Example:
      >>> load("runs/none")
      Traceback (most recent call last):
      ValueError: input must be the workdir of a run, got 'runs/none': there is no config.json
    """
    if split not in _SPLITS:
        raise validation.unknown_name("split", split, _SPLITS)
    workdir, config = earlier_runs.at(workdir, setting=_SETTING)
    steps = kept_steps(workdir)
    if not steps:
        raise ValueError(f"{_SETTING} must be the workdir of a run with a checkpoint: there is none in {workdir}")
    experiment = experiments.build(_to_be_read(config, workdir, data_dir))
    _require_same_images(workdir, experiment)
    images = (experiment.train, experiment.indices)
    if split == "test":
        images = (experiment.test, np.arange(len(experiment.test)))
    return TrainedRun(workdir, config, experiment, *images, steps)


def kept_steps(workdir: str | os.PathLike[str]) -> tuple[int, ...]:
    """The steps of which a run has a checkpoint, in order.

    Example:
      >>> kept_steps("runs/none")
      ()
    """
    with Checkpoints(pathlib.Path(workdir, "checkpoints").absolute()) as checkpoints:
        return tuple(checkpoints.steps())


class Network:
    """A network with PyTorch's weights, as torchvision and timm publish them, from images to features.

    Images are normalised as for the published weights: for most networks by the mean and spread of ImageNet, for some
    by their own, with blue first where they want it. They are not resized, which is for the caller to do, usually to
    224×224; what has one channel gets three.

    Args:
      name: one of :func:`dsb_jax.models.names`.
      weights: a ``.safetensors`` file.

    Attributes:
      dim: of the features.

    Raises:
      ValueError: an unknown model, or weights that are not its.

    Example:
      >>> from safetensors.numpy import save_file
      >>> resnet = models.create("resnet8", 10)
      >>> shapes = jax.eval_shape(lambda: resnet.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
      >>> variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
      >>> save_file(models.to_torch("resnet8", variables), "resnet8.safetensors")
      >>> network = Network("resnet8", "resnet8.safetensors")
      >>> network(np.zeros((4, 32, 32, 3), np.uint8)).shape, network.dim
      ((4, 64), 64)
    """

    def __init__(self, name: str, weights: str | os.PathLike[str]) -> None:
        self._weights = weights
        self._variables = models.from_torch(name, weights)
        self.dim, num_classes = self._variables["params"]["head"]["kernel"].shape
        network = models.create(name, num_classes)
        settings = with_arguments(base_config(), zoo.entry(name).settings)
        mean, std = settings.mean or IMAGENET_MEAN, settings.std or IMAGENET_STD

        def features(variables, images):
            pixels = preprocess.normalize(images[..., ::-1] if settings.init_bgr else images, mean, std)
            outputs: Any = network.apply(variables, pixels, train=False)
            return outputs.features

        self._init, self._features = functools.partial(network.init, train=False), jax.jit(features)
        self._size = 0
        self._shape: tuple[int, ...] | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features, float32 ``[n, dim]``, of images, uint8 ``[n, height, width, 1 or 3]``.

        Raises:
          ValueError: images of another dtype or shape, or not of the size of those before.
        """
        images = np.asarray(images)
        preprocess.check_images(images)
        if images.shape[3] == 1:
            images = np.repeat(images, 3, axis=3)
        if self._shape is None:
            self._require_fit(images.shape[1:])
            self._shape = images.shape[1:]
        if images.shape[1:] != self._shape:
            raise ValueError(f"images must be of one size, got {list(images.shape[1:])} after {list(self._shape)}")
        number = len(images)
        self._size = max(self._size, number)  # compiled for the largest batch alone
        filled = np.concatenate([images, np.zeros((self._size - number, *self._shape), np.uint8)])
        return np.asarray(self._features(self._variables, filled))[:number]

    def _require_fit(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError unless the weights are for images of this shape, as those of positions may not be."""
        wanted = jax.eval_shape(self._init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        there, here = (parameters.shapes_of(tree["params"]) for tree in (self._variables, wanted))
        source = f"{os.fspath(self._weights)} for images {list(shape)}"
        earlier_runs.require_fit(there, here, source=source, setting="weights")


def _to_be_read(config: ConfigDict, workdir: pathlib.Path, data_dir: str | os.PathLike[str] | None) -> ConfigDict:
    """The settings of a run that begins, on one device, where this one was saved."""
    config = config.copy_and_resolve_references()
    config.update({"devices": 1, "model_devices": 1, "fsdp_elements": None})
    if data_dir is not None:
        config.data_dir = os.fspath(data_dir)
    # The runs that it began with or learned from itself may be gone; what they gave is in its checkpoint.
    if config.init_from is None:
        config.initial = str(workdir)
    if config.teacher is not None:
        config.teacher = str(workdir)
    return config


def _require_same_images(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Raises ValueError unless the dataset that is here is that of the run, as far as its workdir tells."""
    try:
        before = json.loads((workdir / "dataset.json").read_text())["splits"]
        rows = np.load(workdir / "train_indices.npy", allow_pickle=False)
    except FileNotFoundError:  # of an older run, or one that is just beginning
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{workdir} does not tell its images: {error}") from error
    for split, now in experiment.dataset["splits"].items():
        if split in before and before[split]["digest"] != now["digest"]:
            raise ValueError(
                f"the run in {workdir} is on another {experiment.train.name} than is here: {split} was "
                f"{before[split]['is']}, and is {now['is']}; prepare it as it was, or name its data_dir"
            )
    if not np.array_equal(rows, experiment.indices):
        raise ValueError(f"{workdir} was trained on other rows of {experiment.train.name} than its settings choose")
