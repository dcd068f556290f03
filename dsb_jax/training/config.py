"""Every setting of a run with its default, and the short form ``configs/x.py:key=value,…``.

Nothing is derived here, so that any override takes effect; what follows from several settings is worked out when the
experiment is built. A placeholder means "as the method has it"; its rule stands beside it.
"""

import ast
import contextlib
import functools
import operator
from collections.abc import Iterator

from flax import traverse_util
from ml_collections import ConfigDict, config_dict

from dsb_jax import validation

# Where and how a run is done, not what it computes: a run may go on with other values of these.
NEUTRAL = frozenset(
    {
        "data_dir",
        "save_every",
        "keep_checkpoints",
        "devices",
        "model_devices",
        "fsdp_elements",
        "resident_megabytes",
        "compilation_cache",
        "profile",
        "watchdog_minutes",
        "tensorboard",
    }
)


def base_config() -> ConfigDict:
    """All settings with their defaults; a file in ``configs/`` changes what its dataset needs.

    Example:
      >>> config = base_config()
      >>> config.loss, config.balancer
      ('cross_entropy', 'dsb')
    """
    config = ConfigDict()

    # What counts: classification (which class an image is of) | retrieval (whether an image's nearest are of its class,
    # of classes that mostly are none of those that were trained).
    config.task = "classification"
    config.retrieval = ConfigDict({"ks": (1, 2, 4, 8)})  # k of Recall@k

    config.dataset = "digits"  # python -m dsb_jax.data lists all
    config.protocol = config_dict.placeholder(str)  # how it is divided, where there is more than one way
    config.eval_split = config_dict.placeholder(str)  # on which results are reported: test | val, as the dataset has it
    config.data = "prepared"  # prepared | synthetic: a rehearsal with the dataset's numbers and made-up pixels
    config.data_dir = config_dict.placeholder(str)  # TFDS's default folder
    config.image_size = config_dict.placeholder(int)  # to which a dataset with images of many sizes is brought
    config.shorter_side = config_dict.placeholder(int)  # scaled to this before image_size is cut out: image_size
    config.long_tail = "none"  # none | exponential | balanced | mnist_lt_1 | mnist_lt_2
    config.imbalance = 1.0  # of the exponential long tail alone: largest class / smallest class
    # Images of the largest class of an exponential tail, or of every class of a balanced subset: the smallest
    # class's number by default. Subsets of one seed are nested.
    config.images_per_class = config_dict.placeholder(int)
    config.subset_seed = config_dict.placeholder(int)  # draws the subset; the run's seed by default
    config.mean = config_dict.placeholder(tuple)  # per channel, of images in [0, 1]; the dataset's
    config.std = config_dict.placeholder(tuple)
    # What the host cuts out of a training image: none (the middle) | shift (another place of the scaled image) | resize
    # (a part of random size and shape, brought to image_size).
    config.random_crop = "none"
    config.crop_scale = (0.08, 1.0)  # of resize: smallest and largest part of the area
    config.flip = False  # half of the training images left to right
    config.crop_padding = 0  # training images are cropped at random after padding with this many zeros at each side
    config.color_jitter = (0.0, 0.0, 0.0)  # largest change of brightness, contrast and saturation
    config.randaugment_layers = 0  # operations of RandAugment on every image …
    config.randaugment_magnitude = 10.0  # … and how strong they are, up to 10
    # Further views, of an objective that has some: same (made like the first) | sim (as SimCLR's). RandAugment in the
    # first and sim in the second is PaCo's recipe; flip and crop_padding are of all views.
    config.second_view = "same"
    config.sim = ConfigDict({"color_jitter": (0.4, 0.4, 0.4), "hue": 0.0})  # largest changes …
    config.sim.jitter_share = 1.0  # … and what share of the images is jittered: on CIFAR 0.8, and hue 0.1
    config.sim.grey_share = 0.2
    config.sim.blur_share = 0.5  # 0.2 on CIFAR
    config.sim.blur_sigma = (0.1, 2.0)  # least and largest, in pixels
    config.sim.randaugment_layers = 0  # after all that, with randaugment_magnitude: 2 is GPaCo's recipe
    config.mixup = 0.0  # alpha of mixup; with cutmix besides, one of them is drawn for each batch
    config.cutmix = 0.0
    config.remix = False  # labels of mixed images in favour of the rarer class, where one is …
    config.remix_kappa = 3.0  # … so many times as large as the other, which has a share of the image …
    config.remix_tau = 0.5  # … of more than 1 - this
    # How examples are drawn: plain (each once an epoch) | class_balanced | class_aware | pk (batch_size /
    # examples_per_class different classes in every batch) | square_root | reversed | progressively_balanced |
    # semantic_scale (classes at rates proportional to the balancer's weights, anew each epoch from start_epoch on,
    # plain before; the loss then has no weights, which would count twice)
    config.sampler = "plain"
    config.examples_per_class = 4  # of class_aware and pk, one after the other

    config.model = "resnet8"
    config.stem = config_dict.placeholder(str)  # of models that have both: cifar | imagenet
    config.zero_init = False  # residual blocks begin as their shortcuts
    config.frozen_norm = False  # batch normalisation goes by its running statistics in training too
    config.remat = False  # the backward pass computes the inside of blocks again, for memory
    config.auxiliary = False  # of googlenet: two further classifiers halfway
    config.head = config_dict.placeholder(
        str
    )  # what objective and loss want: cosine for arcface and ldam, mostly linear
    config.head_scale = 30.0  # of a cosine head under a loss that has no scale of its own
    # Of a tau_normalized head: 0 leaves the class weights their lengths, 1 takes them away. Kang et al., 2020,
    # choose it on validation data.
    config.head_tau = 1.0
    # Width of a dense layer between backbone and head, whose outputs, at length 1, are the embeddings of metric
    # learning; none by default.
    config.embedding = config_dict.placeholder(int)
    config.embedding_norm = False  # with a normalisation of layers before it, and no bias, as in NormSoftmax
    config.dtype = "float32"  # in which the backbone computes

    # What a batch is trained on: supervised is the loss alone; `objectives.names()` lists all; "a+b" is a around b.
    # circle is that loss alone where it stands last, without a classifier.
    config.objective = "supervised"
    config.loss = "cross_entropy"
    config.cross_entropy = ConfigDict({"label_smoothing": 0.0})
    config.focal = ConfigDict({"gamma": 2.0, "detach_modulator": False})
    config.balanced_softmax = ConfigDict()
    config.arcface = ConfigDict({"margin": 0.5, "scale": 64.0})
    config.ldam = ConfigDict({"max_margin": 0.5, "scale": 30.0})
    config.logit_adjusted = ConfigDict({"tau": 1.0})
    config.lade = ConfigDict({"weight": 0.1, "penalty": 0.1})
    config.seesaw = ConfigDict({"p": 0.8, "q": 2.0, "eps": 0.01})
    config.sigmoid_focal = ConfigDict({"gamma": 1.0})
    config.distribution_balanced = ConfigDict(
        {"alpha": 0.1, "beta": 10.0, "mu": 0.2, "negative_scale": 2.0, "bias": 0.05, "gamma": 2.0, "balance": 2.0}
    )
    # As for ImageNet-LT; on CIFAR alpha=0.01, temperature=0.05, queue_size=1024, dim=32. Both ask for two views.
    config.paco = ConfigDict({"alpha": 0.05, "beta": 1.0, "gamma": 1.0, "temperature": 0.2, "logit_temperature": 1.0})
    config.paco.queue_size = 8192  # keys of earlier batches, a multiple of batch_size
    config.paco.dim = 128  # of the embeddings
    config.paco.momentum = 0.999  # of the key encoder's parameters
    config.gpaco = ConfigDict({"alpha": 0.05, "beta": 1.0, "gamma": 1.0, "temperature": 0.2, "logit_temperature": 1.0})
    config.gpaco.queue_size = 8192
    config.gpaco.dim = 128
    config.gpaco.label_smoothing = 0.0  # 0.1 on the whole of ImageNet

    config.bbn = ConfigDict()
    # The share of the plain branch after e epochs is 1 - (e/divisor)^2. By default the next multiple of 100 where the
    # run nearly fills it, as published, else the epochs.
    config.bbn.divisor = config_dict.placeholder(float)
    config.ride = ConfigDict({"experts": 3, "diversity": -0.2, "temperature": 1.0, "reweight_factor": 0.02})
    config.ride.reweight_epoch = config_dict.placeholder(float)  # epochs before temperatures go by class: 80 % of them
    config.ride.update({"distillation": 1.0, "distillation_temperature": 1.0})  # from config.teacher, if there is one
    config.ride.routers = False  # the model has them already, untrained, for a stage of ride_routing to come
    config.ride_routing = ConfigDict({"positive_weight": 100.0})

    config.balms = ConfigDict({"meta_learning_rate": 0.01, "init_power": 0.0})
    config.balms.learning_rate = config_dict.placeholder(float)  # of the inner step; that of the run
    config.dive = ConfigDict({"alpha": 0.5, "temperature": 3.0, "power": 0.5})  # learns from config.teacher

    config.ifl = ConfigDict()  # invariant feature learning
    config.ifl.milestones = (0.6, 0.8)  # shares of the run, in whole epochs, at which environments are made anew …
    config.ifl.center_weights = (0.0, 0.001, 0.005)  # … and the next of these multiplies the distance from the centre
    config.ifl.center_learning_rate = 0.5
    config.ifl.distance = config_dict.placeholder(str)  # squared | cosine: cosine for a loss of cosines and for ride
    config.ifl.environments = "intra"  # intra: hard images of each class | inter: of all together | inter_intra
    config.ifl.scale = 4.0  # how much likelier the hardest fifth is to be drawn
    config.deconfound_tde = ConfigDict({"heads": 2, "tau": 16.0, "alpha": 3.0, "gamma": 1 / 32, "mu": 0.9})
    config.domain_balancing = ConfigDict({"margin": 0.35, "scale": 30.0, "neighbours": 10})
    config.domain_balancing.epsilon = config_dict.placeholder(float)  # what makes the mean indicator 1
    config.circle = ConfigDict({"margin": 0.4, "scale": 80.0, "weight": 1 / 80})  # weight: of "circle+…" alone
    # In epochs: what the memory of features holds, when it begins to count, and how often a last layer is kept.
    config.mbj = ConfigDict({"history": 5.0, "start_epoch": 5.0, "interval": 1.0})
    config.mbj.update({"weight": 1.0, "head_weight": 0.5, "power": 1.0, "snapshots": 4})
    config.norm_softmax = ConfigDict({"temperature": 0.05})
    config.proxy_anchor = ConfigDict({"margin": 0.1, "scale": 32.0})
    config.soft_triple = ConfigDict({"scale": 20.0, "gamma": 0.1, "tau": 0.2, "margin": 0.01, "centers": 10})

    # dsb | uniform | inverse_frequency | inverse_sqrt_frequency | class_balanced | effective_number, the same |
    # class_difficulty | loce | domain_frequency
    config.balancer = "dsb"
    # Epochs with weight 1 before it acts: for dsb 5, or its history with the features of an initial run or file, which
    # only have to fill the pool, and at most half of the run; else 0.
    config.start_epoch = config_dict.placeholder(int)
    config.dsb = ConfigDict()
    config.dsb.alpha = config_dict.placeholder(float)  # 2 where long_tail makes a tail, else 1
    config.dsb.history = 1.0  # epochs whose features the pool holds, to whole batches
    config.dsb.dim = 64  # to which longer features are pooled
    config.dsb.dtype = "float32"  # of the features in the pool; bfloat16 takes half the memory
    config.dsb.epsilon = 1.0
    config.dsb.interclass = True
    config.dsb.power = 1.0
    config.dsb.normalize = "mean"
    config.dsb.logit_adjustment = 0.0  # of coding lengths, in the place of counts; power=0 then leaves no weights
    config.class_balanced = ConfigDict({"beta": 0.9999})
    config.loce = ConfigDict({"decay": 0.9, "initial": 0.01})  # of the objective and of the balancer
    config.domain_frequency = ConfigDict({"neighbours": 10, "scale": 30.0})
    config.class_difficulty = ConfigDict({"tau": 1.0, "dynamic": "none"})  # none | imagenet_lt | cifar_lt
    # Share of each class's training images that is not trained on, and gives its accuracy once an epoch. A class that
    # is always right there has weight 0, as many may be of which it holds only one or two.
    config.class_difficulty.held_out = 0.1

    # What a run begins with and what it changes: globs of parameters' paths, as head/* or backbone/*, several with
    # spaces between them.
    config.initial = config_dict.placeholder(str)  # workdir of a run, finished or saved, whose parameters are taken …
    config.reinitialize = ""  # … but for these
    # Instead of a run, a .safetensors file of PyTorch's weights, as torchvision and timm name them.
    config.init_from = config_dict.placeholder(str)
    config.init_bgr = False  # whether they are of images whose channels are blue, green and red, as Caffe's are
    config.trainable = "*"  # the others stay as they are
    config.teacher = config_dict.placeholder(str)  # workdir of a run whose model an objective learns from
    # Runs that each begin with the parameters of the one before: `stages.names()`, or settings of every stage as in
    # "epochs=90;epochs=10,sampler=class_balanced,trainable=head/*"; see `dsb_jax.training.stages`.
    config.stages = ""

    config.batch_size = 128
    config.epochs = 30
    config.optimizer = "sgd"  # sgd | adam
    config.learning_rate = 0.1
    config.head_rate_factor = 1.0  # the learning rate of the head, such as proxies and centres, is so many times that
    config.schedule = "linear"  # linear | cosine | exponential | step | constant
    config.decay_rate = 0.98  # exponential: factor of every epoch
    config.milestones = (160, 180)  # step: epochs after which the rate falls …
    config.decay_factor = 0.1  # … by this factor
    config.warmup_epochs = 0.0  # linearly from 0, before the schedule begins
    config.momentum = 0.9  # beta1 of adam
    config.adam_beta2 = 0.999
    config.adam_epsilon = 1e-8
    config.weight_decay = 5e-4
    config.decay = "l2"  # l2: in the gradient, as torch.optim.SGD and Adam | decoupled: AdamW (Loshchilov et al., 2019)
    config.decay_on = "all"  # all | kernels: without biases and what normalisations learn
    config.clip_norm = 0.0  # largest norm of a gradient; 0 clips nothing
    config.ema_decay = 0.0  # of the averaged parameters that are evaluated; 0 evaluates the parameters themselves
    config.accumulate = 1  # parts of a batch that pass through the model one after the other
    config.skip_nonfinite = False  # a step whose gradient is not finite: left out and counted, or the end of the run

    config.seed = 0  # of parameters, order, augmentation and subset
    config.log_every = 50  # steps
    config.eval_every = 1  # epochs
    config.eval_batch_size = 500
    config.average_precision = False  # of classification the results also have that of every class, against all others
    config.sample_space = True  # of classification the results also have volumes of the training images themselves
    config.deterministic = False  # on GPU: the same bits every time, at some speed

    # What follows is in NEUTRAL.
    config.save_every = 1  # epochs
    config.keep_checkpoints = 2  # the latest; the best is kept besides
    config.devices = config_dict.placeholder(int)  # all by default; batch_size must be a multiple
    config.model_devices = 1  # of them for the parts of the classes; the others divide a batch
    config.fsdp_elements = config_dict.placeholder(int)  # parameters of as many elements are spread over devices: none
    config.resident_megabytes = 1024  # examples that take less live on the device as uint8
    config.compilation_cache = config_dict.placeholder(str)  # a folder: compiled once, read by later runs
    config.profile = ""  # "step:count" writes a trace of so many steps to the workdir
    config.watchdog_minutes = 10.0  # without a step: the stacks of all threads are printed
    config.tensorboard = True  # also write events, where TensorFlow is installed
    return config


def with_arguments(config: ConfigDict, arguments: str | None) -> ConfigDict:
    """Applies the part of ``--config=configs/x.py:key=value,…`` behind the colon.

    Args:
      config: the settings so far; changed in place.
      arguments: ``key=value`` pairs separated by commas; a key is any setting, dotted where it is nested, and commas
        inside of parentheses belong to a tuple.

    Returns:
      ``config``.

    Raises:
      ValueError: on a pair without ``=``, an unknown key, or a value of the wrong type.

    Example:
      >>> config = with_arguments(base_config(), "loss=focal,imbalance=50,dsb.alpha=1.5")
      >>> config.loss, config.imbalance, config.dsb.alpha
      ('focal', 50.0, 1.5)
    """
    for pair in split(arguments, ",") if arguments else ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"config arguments must be key=value, got {pair!r}")
        _set(config, key.strip(), text.strip())
    return config


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that are not inside of parentheses.

    Example:
      >>> split("a=(1,(2,3)),b=4", ",")
      ['a=(1,(2,3))', 'b=4']
    """
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@contextlib.contextmanager
def section(config: ConfigDict, *names: str) -> Iterator[None]:
    """Within it, an error about a setting of one of these sections says which: ``gamma`` becomes ``focal.gamma``.

    Example:
      >>> with section(base_config(), "focal"):
      ...     raise ValueError("gamma must be a number")
      Traceback (most recent call last):
      ValueError: focal.gamma must be a number
    """
    try:
        yield
    except ValueError as error:
        unknown = "unknown " if str(error).startswith("unknown ") else ""
        text = str(error).removeprefix(unknown)
        for name in names:
            if isinstance(config.get(name), ConfigDict) and text.partition(" ")[0] in config[name]:
                raise ValueError(f"{unknown}{name}.{text}") from error
        raise


def put(config: ConfigDict, key: str, value: object) -> None:
    """Sets what a config.json has for a setting, where tuples are lists; one that is not known any more is left out."""
    if key not in _keys(config):
        return
    config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})


def check_setting(config: ConfigDict, key: str) -> None:
    """Raises ValueError unless ``config`` has the setting ``key``, dotted where it is nested."""
    keys = _keys(config)
    if key not in keys:
        raise validation.unknown_name("setting", key, keys)


def _set(config, key, text):
    check_setting(config, key)
    *path, name = key.split(".")
    node, defaults = (functools.reduce(operator.getitem, path, settings) for settings in (config, base_config()))
    wanted = node.get_type(name)
    is_text = wanted is str and not (text == "None" and defaults[name] is None)
    try:
        node[name] = text if is_text else ast.literal_eval(text)
    except (TypeError, ValueError, SyntaxError):
        raise ValueError(f"{key} must be of type {wanted.__name__}, got {text!r}") from None


def _keys(config):
    return traverse_util.flatten_dict(config.to_dict(), sep=".").keys()
