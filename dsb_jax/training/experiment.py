"""A config becomes an experiment: data, model, objective, balancer and optimizer, checked before the first step."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dsb_jax import balancers, data, losses, models, validation
from dsb_jax.balancers import Balancer
from dsb_jax.data import long_tail, preprocess
from dsb_jax.objectives import Supervised
from dsb_jax.training import optimizers
from dsb_jax.training.step import Preprocess

_LOSS_NAMES = {"cross_entropy": "CE", "focal": "Focal", "balanced_softmax": "BS", "ldam": "LDAM"}
_BALANCER_NAMES = {"dsb": "DSB-", "uniform": "", "inverse_frequency": "IF-", "class_balanced": "CB-"}
_LONG_TAILS = ("none", "exponential", "mnist_lt_1", "mnist_lt_2")
_DSB_START_EPOCH = 5  # n of the paper


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run consists of.

    Attributes:
      train: the training split.
      test: the test split.
      indices: rows of ``train`` to train on, sorted.
      counts: int ``[C]``, training samples per class.
      alpha: smoothing of interference in the semantic scale.
      model: the network.
      objective: what a batch is trained on.
      balancer: where class weights come from.
      schedule: the learning rate by step.
      optimizer: what makes updates of gradients.
      preprocess: uint8 images to floats, on the device.
      steps: updates in all.
    """

    train: data.Split
    test: data.Split
    indices: np.ndarray
    counts: np.ndarray
    alpha: float
    model: nn.Module
    objective: Supervised
    balancer: Balancer
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    preprocess: Preprocess
    steps: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.train.class_names

    def epoch(self, step: int, batch_size: int) -> float:
        """Passes over the training set after ``step`` updates."""
        return step * batch_size / len(self.indices)


def method(config: ConfigDict) -> str:
    """The name that the field uses: ``DSB-CE``, ``CB-Focal``, ``LDAM``.

    Raises:
      ValueError: on an unknown loss or balancer.

    Example:
      >>> from dsb_jax.training import base_config
      >>> method(base_config())
      'DSB-CE'
    """
    losses.head(config.loss)  # raises for an unknown name
    if config.balancer not in _BALANCER_NAMES:
        raise validation.unknown_name("balancer", config.balancer, _BALANCER_NAMES)
    return _BALANCER_NAMES[config.balancer] + _LOSS_NAMES[config.loss]


def build(config: ConfigDict) -> Experiment:
    """Makes all parts of a run.

    Raises:
      ValueError: on any setting that is unknown or does not fit the others.
      FileNotFoundError: if the dataset is not prepared; the message is the command that prepares it.
    """
    method(config)
    for name in ("batch_size", "eval_batch_size", "log_every", "eval_every", "epochs"):
        validation.positive_int(name, config[name])
    if not 0 <= config.seed < 2**32:  # what a key of jax.random has room for
        raise ValueError(f"seed must lie in [0, 2**32), got {config.seed}")
    if config.start_epoch is not None and config.start_epoch < 0:
        raise ValueError(f"start_epoch must be >= 0, got {config.start_epoch}")
    splits = {split: data.load(config.dataset, split, data_dir=config.data_dir) for split in ("train", "test")}
    train = splits["train"]
    indices = _training_rows(config, train)
    counts = np.bincount(train.labels[indices], minlength=train.num_classes)
    if config.batch_size > len(indices):
        raise ValueError(f"batch_size must be at most the {len(indices)} training examples, got {config.batch_size}")
    steps = math.ceil(config.epochs * len(indices) / config.batch_size)
    alpha = config.dsb.alpha if config.dsb.alpha is not None else (1.0 if config.long_tail == "none" else 2.0)
    schedule = optimizers.schedule(config.schedule, config.learning_rate, steps)
    mean, std = tuple(config.mean), tuple(config.std)
    return Experiment(
        **splits,
        indices=indices,
        counts=counts,
        alpha=alpha,
        model=_model(config, train.num_classes),
        objective=Supervised(losses.create(config.loss, counts=counts, **config[config.loss])),
        balancer=_balancer(config, counts, alpha),
        schedule=schedule,
        optimizer=optimizers.sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay),
        preprocess=lambda images: preprocess.normalize(images, mean, std),
        steps=steps,
    )


def _training_rows(config, train):
    if config.long_tail not in _LONG_TAILS:
        raise validation.unknown_name("long_tail", config.long_tail, _LONG_TAILS)
    if config.long_tail == "none":
        return np.arange(len(train))
    if config.long_tail == "exponential":
        largest = int(np.bincount(train.labels, minlength=train.num_classes).min())
        counts = long_tail.exponential_counts(largest, train.num_classes, config.imbalance)
    else:
        counts = np.asarray(long_tail.MNIST_LT[int(config.long_tail[-1])])
    try:
        return long_tail.subset(train.labels, counts, seed=config.seed)
    except ValueError as error:
        raise ValueError(f"long_tail {config.long_tail!r} does not fit {config.dataset}: {error}") from error


def _model(config, num_classes):
    wanted = losses.head(config.loss)
    head = config.head if config.head is not None else wanted
    if wanted == "cosine" and head != "cosine":
        raise ValueError(f"loss {config.loss!r} needs cosines: head must be 'cosine', got {head!r}")
    own_scale = head == "linear" or wanted == "cosine"
    scale = 1.0 if own_scale else config.head_scale
    return models.create(config.model, num_classes, head=head, head_scale=scale, dtype=config.dtype)


def _balancer(config, counts, alpha):
    """The paper's three stages: fill the pool, keep filling it, and from ``start_epoch`` on weigh by it."""
    num_classes, examples, batch_size = len(counts), int(counts.sum()), config.batch_size
    default_start = 0
    match config.balancer:
        case "dsb":
            default_start = _DSB_START_EPOCH
            settings = {key: value for key, value in config.dsb.items() if key != "alpha"}
            capacity = max(round(examples / batch_size), 1) * batch_size  # about one epoch
            balancer = balancers.semantic_scale(num_classes, capacity, alpha=alpha, batch_size=batch_size, **settings)
        case "uniform":
            balancer = balancers.uniform(num_classes)
        case "inverse_frequency":
            balancer = balancers.inverse_frequency(jnp.asarray(counts))
        case "class_balanced":
            balancer = balancers.class_balanced(jnp.asarray(counts), beta=config.class_balanced.beta)
    start = config.start_epoch if config.start_epoch is not None else default_start
    # The first step whose examples all belong to the epoch after: a batch may straddle two.
    return balancers.start_at(math.ceil(start * examples / batch_size), balancer)
