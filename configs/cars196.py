"""Cars196, retrieval: the first 98 classes train, the others are searched (Table 4; cost, Table 11).

The recipe is that of ``configs/cub2011.py``, whose remarks hold here too. Long tails are in ``configs/cars196_lt.py``.

To prepare are 2 GB:

  python -m dsb_jax.main --config=configs/cars196.py:data=synthetic
  python -m dsb_jax.data.prepare cars196 --archive DIR
  python -m dsb_jax.main --config=configs/cars196.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cars196.py:balancer=uniform,init_from=FILE
  python -m dsb_jax.main --config=configs/cars196.py:objective=soft_triple,init_from=FILE

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.task = "retrieval"
    config.dataset = "cars196"
    config.protocol = "retrieval"
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
    return with_arguments(config, arguments)
