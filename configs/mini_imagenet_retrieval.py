"""Mini-ImageNet, retrieval: 64 classes train, the other 36 are searched (Table 10; cost, Table 11).

Appendix D.5.2: 600 images of each class. The recipe is that of ``configs/cub2011.py``, whose remarks hold here too.

To prepare are at most 3 GB:

  python -m dsb_jax.main --config=configs/mini_imagenet_retrieval.py:data=synthetic
  python -m dsb_jax.data.prepare mini_imagenet --archive DIR
  python -m dsb_jax.main --config=configs/mini_imagenet_retrieval.py:init_from=FILE
  python -m dsb_jax.main --config=configs/mini_imagenet_retrieval.py:objective=soft_triple,init_from=FILE

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.task = "retrieval"
    config.dataset = "mini_imagenet"
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
