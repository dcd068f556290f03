"""Long-tailed CIFAR-100: 500 … 5 training images per class (imbalance 100), the whole test set.

The recipe is that of ``configs/cifar10_lt.py`` (Cao et al., 2019). A training set that is itself long-tailed will do,
as long as every class has its n_i = 500·μ^(i/(1−M)) images:

  python -m dsb_jax.data.prepare cifar100 --archive DIR
  python -m dsb_jax.main --config=configs/cifar100_lt.py
  python -m dsb_jax.main --config=configs/cifar100_lt.py:balancer=uniform,imbalance=50

The paper gives no accuracies for this dataset.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "cifar100"
    config.long_tail = "exponential"
    config.imbalance = 100.0
    config.images_per_class = 500
    config.flip = True
    config.crop_padding = 4
    config.model = "resnet32"
    config.stem = "cifar"  # of models for large images, should one be chosen
    config.batch_size = 128
    config.epochs = 200
    config.learning_rate = 0.1
    config.schedule = "step"
    config.milestones = (160, 180)
    config.decay_factor = 0.01
    config.warmup_epochs = 5.0
    config.weight_decay = 2e-4
    return with_arguments(config, arguments)
