"""Settings that several config files share: of experiments that the paper has on several datasets."""

from ml_collections import ConfigDict

from dsb_jax.training.config import base_config


def metric_learning(dataset: str, protocol: str) -> ConfigDict:
    """The paper's recipe of retrieval (Sec. 5.3, Appendix D.5), as ``configs/cub2011.py`` explains it.

    Args:
      dataset: its name.
      protocol: which of its classes train and which are searched.

    Returns:
      All settings.

    Example:
      >>> config = metric_learning("cub2011", "retrieval")
      >>> config.task, config.objective, config.embedding
      ('retrieval', 'norm_softmax', 64)
    """
    config = base_config()
    config.task = "retrieval"
    config.dataset = dataset
    config.protocol = protocol
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "shift"
    config.flip = True
    config.model = "bn_inception"
    config.stem = "imagenet"
    config.frozen_norm = True
    config.embedding = 64
    config.objective = "norm_softmax"
    config.batch_size = 32
    config.epochs = 50
    config.start_epoch = 5
    config.optimizer = "adam"
    config.adam_epsilon = 0.01
    config.learning_rate = 1e-4
    config.head_rate_factor = 100.0
    config.schedule = "step"
    config.milestones = (20, 40)
    config.decay_factor = 0.1
    config.weight_decay = 1e-4
    config.eval_batch_size = 128
    config.eval_every = 5
    return config
