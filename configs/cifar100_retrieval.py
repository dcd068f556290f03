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

from dsb_jax.training.config import with_arguments
from dsb_jax.training.recipes import metric_learning


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    return with_arguments(metric_learning("cifar100", "retrieval"), arguments)
