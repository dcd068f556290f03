"""CIFAR-100 by the paper's recipe for measuring semantic scales: ResNet-18, Adam, no augmentation.

Sec. 3.3, Appendix D.1 and D.2 (Figures 2 and 22, Table 7): as ``configs/cifar10.py``, whose remarks hold here too.

  python -m dsb_jax.data.prepare cifar100 --archive DIR
  python -m dsb_jax.main --config=configs/cifar100.py
  python -m dsb_jax.main --config=configs/cifar100.py:balancer=uniform,long_tail=balanced,images_per_class=50

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "cifar100"
    config.model = "resnet18"
    config.stem = "cifar"
    config.batch_size = 64
    config.epochs = 200
    config.optimizer = "adam"
    config.learning_rate = 0.01
    config.schedule = "exponential"
    config.decay_rate = 0.98
    config.weight_decay = 0.0
    return with_arguments(config, arguments)
