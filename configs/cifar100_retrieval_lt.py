"""Long-tailed CIFAR-100, retrieval: a tail of 60 classes trains, the other 40 are searched (Table 5).

Sec. 5.3 and Appendix D.5.1: n_i = N·μ^(i/(1−M)) images of class i, with M = 60 and an imbalance μ of 10, 50 or 200; N,
which is not stated, is all 600. The recipe is that of ``configs/cub2011.py`` and ``configs/cifar100_retrieval.py``,
whose remarks hold here too; α is 2, as of all long tails.

  python -m dsb_jax.data.prepare cifar100 --archive DIR
  python -m dsb_jax.main --config=configs/cifar100_retrieval_lt.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cifar100_retrieval_lt.py:protocol=retrieval_lt_50,balancer=class_balanced \\
    --config.init_from=FILE
  python -m dsb_jax.main --config=configs/cifar100_retrieval_lt.py:protocol=retrieval_lt_200,objective=soft_triple \\
    --config.init_from=FILE

Made for a GPU. To prepare are 161 MB.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.task = "retrieval"
    config.dataset = "cifar100"
    config.protocol = "retrieval_lt_10"
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
