"""A config becomes an experiment: data, model, objective, balancer and optimizer, checked before the first step."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dsb_jax import balancers, data, losses, models, validation
from dsb_jax.balancers import Balancer
from dsb_jax.data import long_tail, samplers, synthetic
from dsb_jax.data.builders import OWN
from dsb_jax.data.specs import OTHER_CLASSES
from dsb_jax.objectives import Objective
from dsb_jax.training import building, earlier_runs, methods, optimizers, parameters, stages
from dsb_jax.training.config import base_config, section
from dsb_jax.training.earlier_runs import EarlierRun
from dsb_jax.training.preprocessing import Preprocessing
from dsb_jax.training.sharding import Placement, make_mesh

_logger = logging.getLogger(__name__)

_DATA = ("prepared", "synthetic")
_TASKS = ("classification", "retrieval")
_DSB_START_EPOCH = 5  # n of the paper
_POOL_DTYPES = ("float32", "bfloat16", "float16")
_WITH_AUXILIARY = ("supervised", "deconfound_tde")
_HEADS_WITH_SCALE = ("cosine", "soft_triple")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run consists of.

    Attributes:
      train: the training split.
      test: the split that results are reported on.
      indices: rows of ``train`` to train on, sorted.
      held_out: rows of ``train`` that tell the balancer each class's accuracy, sorted; mostly none.
      counts: int ``[C]``, training samples per class.
      alpha: smoothing of interference in the semantic scale.
      model: the network.
      objective: what a batch is trained on.
      balancer: where class weights come from.
      schedule: the learning rate by step.
      optimizer: what makes updates of gradients.
      preprocessing: what the device makes of images.
      placement: the devices that share a batch, and what of the parameters is where; None for one device.
      steps: updates in all.
      initial: the run whose parameters it begins with, or None.
      teacher: the run whose model the objective learns from, and that model; or None.
      numbers: whether the dataset's splits have the images that they were published with, in words: ``"true"``, or
        what they have instead.
    """

    train: data.Split
    test: data.Split
    indices: np.ndarray
    held_out: np.ndarray
    counts: np.ndarray
    alpha: float
    model: nn.Module
    objective: Objective
    balancer: Balancer
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    preprocessing: Preprocessing
    placement: Placement | None
    steps: int
    initial: EarlierRun | None
    teacher: tuple[EarlierRun, nn.Module] | None
    numbers: str

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Of the model's ``params`` and ``batch_stats``."""
        return _shapes(self.model, self.train.image_shape)

    @functools.cached_property
    def teacher_shapes(self) -> dict[str, Any]:
        """Likewise of the teacher's, where there is one."""
        return {} if self.teacher is None else _shapes(self.teacher[1], self.train.image_shape)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.train.class_names

    @property
    def dataset(self) -> dict[str, Any]:
        """What the run is on: the dataset's name, and of each split the digest and what there is of it in words."""
        splits = {split.split: {"digest": split.digest, "is": str(split)} for split in (self.train, self.test)}
        return {"name": self.train.name, "splits": splits}

    def epoch(self, step: int, batch_size: int) -> float:
        """Passes over the training set after ``step`` updates."""
        return step * batch_size / len(self.indices)


def build(config: ConfigDict, *, before: EarlierRun | None = None) -> Experiment:
    """Makes all parts of a run.

    Args:
      config: its settings.
      before: of a stage of several, the one before, whose parameters it begins with.

    Raises:
      ValueError: on any setting that is unknown or does not fit the others.
      FileNotFoundError: if the dataset is not prepared; the message is the command that prepares it.
    """
    methods.name(config)  # raises for an unknown one
    if config.init_from is not None and config.initial is not None:
        raise ValueError(f"initial and init_from both say where to begin, got {config.initial} and {config.init_from}")
    initial = before
    if before is None and config.initial is not None:
        initial = earlier_runs.at(config.initial, setting="initial")
    _check_numbers(config, initial)
    train, test = _splits(config)
    _check_task(config, test)
    indices, held_out = _hold_out(config, train, _training_rows(config, train))
    counts = np.bincount(train.labels[indices], minlength=train.num_classes)
    if config.batch_size > len(indices):
        raise ValueError(f"batch_size must be at most the {len(indices)} training examples, got {config.batch_size}")
    if config.sampler == "pk":
        samplers.classes_per_batch(int(np.count_nonzero(counts)), config.batch_size, config.examples_per_class)
    placement = _placement(config, train.num_classes)
    steps = math.ceil(config.epochs * len(indices) / config.batch_size)
    alpha = config.dsb.alpha if config.dsb.alpha is not None else 2.0 if _is_long_tailed(config) else 1.0
    schedule = _schedule(config, steps, len(indices))
    model, preprocessing = _model(config, train.num_classes), _preprocessing(config, train.image_shape[-1], counts)
    teacher = _teacher(config, before, train, preprocessing)
    begins = initial is not None or config.init_from is not None
    if config.frozen_norm and not begins:
        _logger.warning(
            "frozen_norm=True goes by running statistics that are of no images: set init_from, initial, or "
            "frozen_norm=False"
        )
    if config.init_bgr and config.init_from is None:
        raise ValueError("init_bgr says of which images the weights of init_from are, and init_from is not set")
    inherits = _inherits_features(config, begins, model, train)
    taught_by = teacher and (teacher[0].config, teacher[1])
    if initial is None and config.objective.split("+")[-1] == "ride_routing":
        raise ValueError(
            "objective 'ride_routing' trains the routers of experts that are trained already: initial must be the "
            "workdir of a run with objective=ride,ride.routers=True; stages=ride trains both"
        )
    objective = methods.objective(config, counts, len(indices) / config.batch_size, teacher=taught_by)
    if config.second_view != "same" and objective.views == 1:
        _logger.warning("second_view=%s has no effect with objective=%s", config.second_view, config.objective)
    mesh = placement and placement.mesh
    return Experiment(
        train=train,
        test=test,
        indices=indices,
        held_out=held_out,
        counts=counts,
        alpha=alpha,
        model=model,
        objective=objective,
        balancer=_balancer(config, counts, alpha, objective, model, train.image_shape, mesh, inherits),
        schedule=schedule,
        optimizer=_optimizer(config, schedule),
        preprocessing=preprocessing,
        placement=placement,
        steps=steps,
        initial=initial,
        teacher=teacher,
        numbers=_numbers(config, train, test),
    )


def _check_task(config, test):
    """Of retrieval, that every test image has another one to be found with it."""
    if config.task == "classification":
        if config.objective.split("+")[-1] == "circle":
            raise ValueError(
                "objective 'circle' is of pairs of images alone, which trains no classifier: task must be 'retrieval', "
                "or objective 'circle+supervised'"
            )
        return
    ks = config.retrieval.ks
    if not ks:
        raise ValueError("retrieval.ks must hold an integer >= 1 or several, got none")
    for k in ks:
        validation.positive_int("retrieval.ks", k)
    if max(ks) >= len(test):
        raise ValueError(f"retrieval.ks must be below the {len(test)} images that are searched, got {max(ks)}")
    alone = np.flatnonzero(np.bincount(test.labels, minlength=test.num_classes) == 1)
    if len(alone):
        more = f" and of {len(alone) - 1} others" if len(alone) > 1 else ""
        raise ValueError(
            "task 'retrieval' needs two images or more of every class that is searched, got a single one of "
            f"{test.class_names[alone[0]]!r}{more} in {test.split} of {config.dataset}"
        )


def _check_numbers(config, initial):
    for name in ("batch_size", "eval_batch_size", "log_every", "eval_every", "save_every", "accumulate"):
        validation.positive_int(name, config[name])
    if initial is None or config.epochs != 0:  # what begins with another run's parameters may be evaluated only
        validation.positive_int("epochs", config.epochs)
    validation.positive_int("keep_checkpoints", config.keep_checkpoints)
    for name in ("seed", "subset_seed"):
        if config[name] is not None and not 0 <= config[name] < 2**32:  # what a key of jax.random has room for
            raise ValueError(f"{name} must lie in [0, 2**32), got {config[name]}")
    if config.start_epoch is not None and config.start_epoch < 0:
        raise ValueError(f"start_epoch must be >= 0, got {config.start_epoch}")
    if config.sampler not in samplers.names():
        raise validation.unknown_name("sampler", config.sampler, samplers.names())
    validation.positive_int("examples_per_class", config.examples_per_class)
    if config.sampler == "environments":
        raise ValueError("sampler 'environments' is that of invariant feature learning: choose objective=ifl instead")
    if config.sampler == "semantic_scale" and config.balancer == "uniform":
        raise ValueError(
            "sampler 'semantic_scale' draws classes by the balancer's weights: balancer must be another one than "
            "'uniform', such as 'dsb'"
        )
    if config.batch_size % config.accumulate:
        raise ValueError(f"batch_size must be a multiple of accumulate = {config.accumulate}, got {config.batch_size}")


def _placement(config, num_classes):
    """All devices, or the first few."""
    if config.fsdp_elements is not None:
        validation.positive_int("fsdp_elements", config.fsdp_elements)
    mesh = make_mesh(config.devices, model_devices=config.model_devices)
    if mesh is None:
        return None
    if num_classes % config.model_devices:
        raise ValueError(f"model_devices must divide the {num_classes} classes, got {config.model_devices}")
    if config.batch_size % mesh.shape["data"]:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.shape['data']} devices, got {config.batch_size}; "
            "fewer devices are taken with --config.devices"
        )
    return Placement(mesh, config.fsdp_elements)


def _splits(config):
    """The training split, and the one that results are reported on."""
    if config.data not in _DATA:
        raise validation.unknown_name("data", config.data, _DATA)
    if config.data == "synthetic" and config.dataset.partition("/")[0] in OWN:
        raise ValueError(f"own images have no rehearsal: data=synthetic needs published numbers, got {config.dataset}")
    spec = data.spec(config.dataset)
    evaluation = config.eval_split or ("test" if spec is None else spec.protocol(config.protocol).evaluation)
    if evaluation == "train":
        raise ValueError("eval_split must be another split than 'train', on which the model learns")
    if spec is not None:
        spec.part(evaluation, config.protocol)  # raises for a split that it has not, before anything is read
    if config.task not in _TASKS:
        raise validation.unknown_name("task", config.task, _TASKS)
    if config.task == "classification" and spec is not None and not spec.protocol(config.protocol).same_classes:
        fitting = [name for name, protocol in spec.protocols.items() if protocol.same_classes]
        instead = f" or protocol={' or '.join(fitting)}" if fitting else ""
        raise ValueError(
            f"{config.dataset} tests classes that are not trained, which no classifier does; "
            f"it needs task=retrieval{instead}"
        )
    if config.task == "classification" and spec is None and config.protocol == OTHER_CLASSES:
        raise ValueError(f"protocol={OTHER_CLASSES} tests classes that are not trained, which needs task=retrieval")
    seed = config.subset_seed if config.subset_seed is not None else config.seed
    sizes = {name: config[name] for name in ("image_size", "shorter_side")}
    crops = {"random_crop": config.random_crop, "crop_scale": tuple(config.crop_scale)}
    options = {"protocol": config.protocol, "seed": seed, **sizes}
    if config.data == "prepared" or spec is None:
        load: Callable[..., data.Split] = functools.partial(data.load, config.dataset, data_dir=config.data_dir)
    else:
        load = functools.partial(synthetic.load, spec)
        profile = f"; numbers of images: {spec.profile}" if spec.profile else ""
        _logger.warning("A rehearsal: %s with made-up pixels%s", spec.title, profile)
    return load("train", **options, **crops), load(evaluation, **options)


def _numbers(config, train, test):
    spec = data.spec(config.dataset)
    if spec is None:
        return "true"
    if config.data == "synthetic":
        return spec.profile or "true"
    other = (spec.otherwise(split.split, split.labels, config.protocol) for split in (train, test))
    if not (text := " and ".join(filter(None, other))):
        return "true"
    _logger.warning("%s is prepared in part only: %s", config.dataset, text)
    return f"a part: {text}"


def _is_long_tailed(config):
    spec = data.spec(config.dataset)
    if config.long_tail == "exponential":
        return config.imbalance > 1
    if config.long_tail != "none":
        return config.long_tail != "balanced"
    return spec is not None and (spec.long_tailed or spec.protocol(config.protocol).long_tailed)


def _is_drawn_tail(config):
    """Whether the dataset is a long-tailed part of another one, as cifar10_lt is of cifar10."""
    spec = data.spec(config.dataset)
    if spec is None or not (spec.long_tailed or spec.protocol(config.protocol).long_tailed):
        return False
    return spec.part("train", config.protocol).choose is not None


def _training_rows(config, train):
    available = np.bincount(train.labels, minlength=train.num_classes)
    counts = long_tail.subset_counts(
        config.long_tail, available, imbalance=config.imbalance, images_per_class=config.images_per_class
    )
    _warn_of_idle_settings(config)
    if config.long_tail != "none" and _is_drawn_tail(config):
        raise ValueError(f"long_tail must be 'none', got {config.long_tail!r}: {config.dataset} is a subset already")
    if config.long_tail == "none":
        return np.arange(len(train))
    seed = config.subset_seed if config.subset_seed is not None else config.seed
    try:
        return long_tail.subset(train.labels, counts, seed=seed)
    except ValueError as error:
        raise ValueError(f"long_tail {config.long_tail!r} does not fit {config.dataset}: {error}") from error


def _hold_out(config, train, rows):
    """The rows to train on, and those that are not: a share of each class, at least one of a class with several."""
    if config.balancer != "class_difficulty":
        return rows, rows[:0]
    share = config.class_difficulty.held_out
    if not 0 < share < 1:
        raise ValueError(f"class_difficulty.held_out must lie in (0, 1), got {share}")
    labels = train.labels[rows]
    counts = np.bincount(labels, minlength=train.num_classes)
    out = np.where(counts > 1, np.clip(np.rint(share * counts), 1, counts - 1), 0).astype(np.int64)
    if not out.any():
        raise ValueError(
            "balancer=class_difficulty holds out training images of classes that have two or more, "
            f"got {counts.tolist()}"
        )
    seed = config.subset_seed if config.subset_seed is not None else config.seed
    kept = np.zeros(len(rows), bool)
    kept[long_tail.subset(labels, counts - out, seed=seed)] = True
    return rows[kept], rows[~kept]


def _warn_of_idle_settings(config):
    users = {
        "imbalance": ("long_tail", ("exponential",)),
        "images_per_class": ("long_tail", ("exponential", "balanced")),
        "crop_scale": ("random_crop", ("resize",)),
    }
    defaults = base_config()
    for name, (setting, kinds) in users.items():
        if config[name] != defaults[name] and config[setting] not in kinds:
            _logger.warning("%s=%s has no effect with %s=%s", name, config[name], setting, config[setting])
    if config.long_tail == "exponential" and config.imbalance == 1:
        _logger.warning("long_tail=exponential leaves all classes alike: imbalance is 1")


def _shapes(model, image_shape):
    """Of a model's variables."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)


def _inherits_features(config, begins, model, train):
    """Whether the backbone begins with parameters that are trained already; refuses globs that match nothing."""
    if config.trainable == parameters.ALL and not begins:
        if config.reinitialize:
            raise ValueError(
                f"reinitialize={config.reinitialize} is of the parameters of initial or init_from, and neither is set"
            )
        return False
    paths = parameters.flat(_shapes(model, train.image_shape)["params"])
    if not config.trainable.strip():
        raise ValueError("trainable must name parameters; epochs=0 trains none")
    for setting in ("trainable", "reinitialize"):
        parameters.check(setting, config[setting], paths)
    taken = paths.keys() - parameters.chosen(config.reinitialize, paths)
    return begins and any(path.startswith(f"{models.BACKBONE}/") for path in taken)


def _teacher(config, before, train, preprocessing):
    """The run that an objective learns from, and its model, which must see the images as this one does."""
    if config.teacher is None:
        return None
    if config.teacher == stages.PREVIOUS and before is None:
        raise ValueError(f"teacher={stages.PREVIOUS} is the stage before; of a run without one, teacher is a workdir")
    is_before = config.teacher == stages.PREVIOUS
    earlier = before if is_before else earlier_runs.at(config.teacher, setting="teacher")
    theirs = _preprocessing(earlier.config, train.image_shape[-1], counts=())
    for name in ("mean", "std"):
        if getattr(theirs, name) != getattr(preprocessing, name):
            raise ValueError(
                f"teacher {earlier.workdir} was trained on images with {name}={getattr(theirs, name)}, "
                f"here {name} is {getattr(preprocessing, name)}: a batch is for both"
            )
    return earlier, _model(earlier.config, train.num_classes)


def _schedule(config, steps, examples):
    if config.schedule == "step" and not any(epoch < config.epochs for epoch in config.milestones):
        text = "schedule=step never decays: none of the milestones %s lies before the end, epoch %d"
        _logger.warning(text, tuple(config.milestones), config.epochs)
    return optimizers.schedule(
        config.schedule,
        config.learning_rate,
        max(steps, 1),
        steps_per_epoch=examples / config.batch_size,
        decay_rate=config.decay_rate,
        milestones=tuple(config.milestones),
        decay_factor=config.decay_factor,
        warmup_epochs=config.warmup_epochs,
    )


def _optimizer(config, schedule):
    names = ("momentum", "adam_beta2", "adam_epsilon", "weight_decay", "decay", "decay_on", "clip_norm")
    factor = validation.positive("head_rate_factor", config.head_rate_factor)
    options = {name: config[name] for name in names}
    if factor != 1:
        options["head_schedule"] = lambda step: factor * schedule(step)
    return optimizers.optimizer(config.optimizer, schedule, **options)


def _preprocessing(config, channels, counts):
    spec = data.spec(config.dataset)
    statistics = {}
    for name in ("mean", "std"):
        if config[name] is None and spec is None:
            raise ValueError(f"{name} must be set for own images: {channels} numbers, of images in [0, 1]")
        statistics[name] = tuple(config[name] if config[name] is not None else getattr(spec, name))
        if len(statistics[name]) != channels:
            raise ValueError(f"{name} must be one number per channel ({channels}), got {list(statistics[name])}")
    return Preprocessing.of(config, **statistics, counts=tuple(int(count) for count in counts))


def _model(config, num_classes):
    needed = dict(methods.model_options(config))
    head = _head(config, needed.pop("head", None))
    own_scale = head not in _HEADS_WITH_SCALE or losses.head(config.loss) == "cosine"
    scale = needed.pop("head_scale", 1.0 if own_scale else config.head_scale)
    if config.stem is not None and config.stem not in models.STEMS:
        raise validation.unknown_name("stem", config.stem, models.STEMS)
    # A config of small images says "cifar" whatever its model is, and not all have more than one stem.
    options = {"stem": config.stem} if config.stem is not None and models.takes(config.model, "stem") else {}
    if config.auxiliary and config.objective.split("+")[-1] not in _WITH_AUXILIARY:
        raise ValueError(
            f"auxiliary=True adds the loss of classifiers halfway, which objective={config.objective} does not: "
            f"objective must be {' or '.join(_WITH_AUXILIARY)}, or auxiliary False"
        )
    of_model = ("embedding", "embedding_norm", "zero_init", "frozen_norm", "remat", "auxiliary")
    options |= {name: config[name] for name in of_model}
    options |= {"head_options": building.head_options(config, head)} | needed
    with section(config, config.objective.split("+")[-1], building.HEAD_SECTIONS.get(head, head)):
        return models.create(config.model, num_classes, head=head, head_scale=scale, dtype=config.dtype, **options)


def _head(config, needed):
    """The one that is set, else the one that the objective needs or the loss wants; they must not contradict."""
    by_loss = losses.head(config.loss)
    if needed not in (None, "cosine") and by_loss == "cosine":
        raise ValueError(f"loss {config.loss!r} needs a cosine head, objective {config.objective!r} a {needed} one")
    head = config.head if config.head is not None else needed or by_loss
    if needed is not None and head != needed:
        raise ValueError(
            f"objective {config.objective!r} needs a {needed} head: head must be left out or {needed!r}, got {head!r}"
        )
    if by_loss == "cosine" and head != "cosine":
        raise ValueError(f"loss {config.loss!r} needs cosines: head must be 'cosine', got {head!r}")
    return head


def _pool_dim(config, model, image_shape):
    """Of experts and embeddings, which may have fewer features than the default asks for, as many as there are."""
    if config.dsb.dim != base_config().dsb.dim:
        return config.dsb.dim
    if config.embedding is not None:
        return min(config.dsb.dim, config.embedding)
    if not isinstance(model, models.Experts):
        return config.dsb.dim
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    outputs, _ = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)
    return min(config.dsb.dim, outputs.features.shape[1])


def start_epoch(config: ConfigDict, inherits: bool) -> float:
    """From which epoch on the balancer acts: by default DSB's waits for features that are not random, and a full pool.

    Args:
      config: of a run.
      inherits: whether its features are not random at first.

    Example:
      >>> from dsb_jax.training.config import base_config
      >>> config = base_config()
      >>> start_epoch(config, inherits=False), start_epoch(config, inherits=True)
      (5, 1.0)
    """
    if config.start_epoch is not None or config.balancer != "dsb":
        return config.start_epoch or 0
    if not inherits:
        return _DSB_START_EPOCH
    return min(config.dsb.history, config.epochs / 2)  # they only have to fill the pool, or half of a short stage


def _balancer(config, counts, alpha, objective, model, image_shape, mesh, inherits):
    """The paper's three stages: fill the pool, keep filling it, and from ``start_epoch`` on weigh by it."""
    of_section = "class_balanced" if config.balancer == "effective_number" else config.balancer
    with section(config, of_section):
        balancer = _balancer_of_any_step(config, counts, alpha, objective, model, image_shape, mesh)
    start = start_epoch(config, inherits)
    if start >= config.epochs > 0:
        text = "balancer=%s never acts: start_epoch=%g is not before the end, epoch %d; all weights are 1"
        _logger.warning(text, config.balancer, start, config.epochs)
    # The first step whose examples all belong to the epoch after: a batch may straddle two.
    balancer = balancers.start_at(math.ceil(start * int(counts.sum()) / config.batch_size), balancer)
    return _without_weights(balancer) if config.sampler == "semantic_scale" else balancer


def _balancer_of_any_step(config, counts, alpha, objective, model, image_shape, mesh):
    num_classes = len(counts)
    match config.balancer:
        case "dsb":
            if config.dsb.dtype not in _POOL_DTYPES:
                raise validation.unknown_name("dsb.dtype", config.dsb.dtype, _POOL_DTYPES)
            if config.dsb.logit_adjustment:
                _require_plain_softmax(config)
            settings = {key: value for key, value in config.dsb.items() if key not in ("alpha", "dtype", "history")}
            settings["dtype"] = jnp.dtype(config.dsb.dtype)
            settings["dim"] = _pool_dim(config, model, image_shape)
            rows = config.batch_size * getattr(objective, "rows_per_example", 1)
            history = validation.positive("history", config.dsb.history)
            capacity = max(round(history * int(counts.sum()) / config.batch_size), 1) * rows
            return balancers.semantic_scale(num_classes, capacity, alpha=alpha, batch_size=rows, mesh=mesh, **settings)
        case "uniform":
            return balancers.uniform(num_classes)
        case "inverse_frequency":
            return balancers.inverse_frequency(jnp.asarray(counts))
        case "inverse_sqrt_frequency":
            return balancers.inverse_sqrt_frequency(jnp.asarray(counts))
        case "class_balanced" | "effective_number":
            return balancers.class_balanced(jnp.asarray(counts), beta=config.class_balanced.beta)
        case "class_difficulty":
            settings = {key: value for key, value in config.class_difficulty.items() if key != "held_out"}
            return balancers.class_difficulty(num_classes, **settings)
        case "loce":
            return balancers.loce(num_classes, **config.loce)
        case "domain_frequency":
            return balancers.domain_frequency(num_classes, **config.domain_frequency)


def _require_plain_softmax(config):
    """Whose logits offsets can raise: others scale them, have an adjustment of their own, or decide by them."""
    wanted = {"objective": ("supervised",), "loss": ("cross_entropy", "focal")}
    for name, values in wanted.items():
        if config[name] not in values:
            raise ValueError(
                f"dsb.logit_adjustment raises logits of a plain softmax: {name} must be {' or '.join(values)}, got "
                f"{config[name]!r}"
            )
    if config.sampler == "semantic_scale":
        raise ValueError("dsb.logit_adjustment and sampler 'semantic_scale' would balance twice: choose one")


def _without_weights(balancer):
    """The same balancer for the sampler, which draws by its weights: in the loss they would count a second time.

    The paper sets re-sampling and re-weighting side by side as two ways of balancing (Sec. 1).
    """

    def update(state, features, labels, **known):
        weights, state = balancer.update(state, features, labels, **known)
        return jnp.ones_like(weights), state

    return balancer._replace(update=update)
