"""CIFAR-100, retrieval: 60 classes train, the other 40 are searched (Table 10).

Appendix D.5.2: of each class the 600 images of the training and test files together. The recipe is that of
``configs/cub2011.py``, whose remarks hold here too: "All images are cropped to 224x224", so those of 32x32 are
enlarged. The last command is for a small network without weights, on images of the size that they have:

  python -m dsb_jax.data.prepare cifar100 --archive DIR
  python -m dsb_jax.main --config=configs/cifar100_retrieval.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cifar100_retrieval.py:objective=soft_triple,init_from=FILE
  python -m dsb_jax.main --config=configs/cifar100_retrieval.py:image_size=None,shorter_side=None,random_crop=none \\
    --config.model=resnet20 --config.stem=cifar --config.frozen_norm=False --config.crop_padding=4 \\
    --config.learning_rate=0.001 --config.adam_epsilon=1e-8

Made for a GPU. To prepare are 161 MB.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.task = "retrieval"
    config.dataset = "cifar100"
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
