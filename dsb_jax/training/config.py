"""Every setting of a run with its default, and the short form ``configs/x.py:key=value,…``.

Nothing is derived here, so that any override takes effect; what follows from several settings is worked out when the
experiment is built. A placeholder means "as the method has it"; its rule stands beside it.
"""

import ast
import functools
import operator
import re

from ml_collections import ConfigDict, config_dict

from dsb_jax import validation


def base_config() -> ConfigDict:
    """All settings with their defaults; a file in ``configs/`` changes what its dataset needs.

    Example:
      >>> config = base_config()
      >>> config.loss, config.balancer
      ('cross_entropy', 'dsb')
    """
    config = ConfigDict()

    config.dataset = "digits"
    config.data_dir = config_dict.placeholder(str)  # TFDS's default folder
    config.long_tail = "none"  # none | exponential | mnist_lt_1 | mnist_lt_2
    config.imbalance = 1.0  # of the exponential long tail alone: largest class / smallest class
    config.mean = (0.5,)  # per channel, of images in [0, 1]
    config.std = (0.25,)

    config.model = "resnet8"
    config.head = config_dict.placeholder(str)  # what the loss wants: cosine for ldam, else linear
    config.head_scale = 30.0  # of a cosine head under a loss that has no scale of its own
    config.dtype = "float32"  # in which the backbone computes

    config.loss = "cross_entropy"
    config.cross_entropy = ConfigDict({"label_smoothing": 0.0})
    config.focal = ConfigDict({"gamma": 2.0, "detach_modulator": False})
    config.balanced_softmax = ConfigDict()
    config.ldam = ConfigDict({"max_margin": 0.5, "scale": 30.0})

    config.balancer = "dsb"  # dsb | uniform | inverse_frequency | class_balanced
    config.start_epoch = config_dict.placeholder(int)  # epochs with weight 1 before it acts: 5 for dsb, else 0
    config.dsb = ConfigDict()
    config.dsb.alpha = config_dict.placeholder(float)  # 2 on a long-tailed training set, else 1
    config.dsb.dim = 64  # to which longer features are pooled
    config.dsb.epsilon = 1.0
    config.dsb.interclass = True
    config.dsb.power = 1.0
    config.dsb.normalize = "mean"
    config.class_balanced = ConfigDict({"beta": 0.9999})

    config.batch_size = 128
    config.epochs = 30
    config.learning_rate = 0.1
    config.schedule = "linear"  # linear | cosine | constant
    config.momentum = 0.9
    config.weight_decay = 5e-4  # added to the gradient

    config.seed = 0
    config.log_every = 50  # steps
    config.eval_every = 1  # epochs
    config.eval_batch_size = 500
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
    for pair in re.split(r",(?![^()]*\))", arguments) if arguments else ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"config arguments must be key=value, got {pair!r}")
        _set(config, key.strip(), text.strip())
    return config


def check_setting(config: ConfigDict, key: str) -> None:
    """Raises ValueError unless ``config`` has the setting ``key``, dotted where it is nested."""
    keys = set(_keys(config))
    if key not in keys:
        raise validation.unknown_name("setting", key, keys)


def _set(config, key, text):
    check_setting(config, key)
    *path, name = key.split(".")
    node = functools.reduce(operator.getitem, path, config)
    wanted = node.get_type(name)
    try:
        node[name] = text if wanted is str else ast.literal_eval(text)
    except (TypeError, ValueError, SyntaxError):
        raise ValueError(f"{key} must be of type {wanted.__name__}, got {text!r}") from None


def _keys(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
