"""CIFAR-100 by the recipe of the paper's Table 3: ResNet-18, Adam, mixup and CutMix, batches of 64.

Sec. 5.2: 500 training and 100 test images of each class; Adam with learning rate 0.1, which falls linearly, momentum
0.9 and weight decay 5e-3, "random clipping, mixup, and cutmix". A rate of 0.1 is a hundred times Adam's usual one: it
is what the caption says, and ``learning_rate=0.001`` is at hand. Not stated are the number of epochs, 200 as usual, the
beginning of the networks, a 3x3 convolution as in ``configs/cifar100.py``, and the strengths of mixup and CutMix, both
1 (Zhang et al., 2018, and Yun et al., 2019, on CIFAR), one of which is drawn for each batch. Clipping is read as crops
padded by 4. Flips, which the caption has not, belong to them (``flip=False`` is the caption to the letter).

The archive has 170 MB:

  python -m dsb_jax.main --config=configs/cifar100_table3.py:data=synthetic
  python -m dsb_jax.data.prepare cifar100 --archive DIR
  python -m dsb_jax.main --config=configs/cifar100_table3.py
  python -m dsb_jax.main --config=configs/cifar100_table3.py:balancer=uniform

The networks of the table are ``model=resnet18``, ``resnet34``, ``resnet50``, ``vgg16``, ``bn_inception``,
``densenet201``, ``seresnet50`` and ``resnext101_32x4d``. All have the stem for small images; the paper does not say how
they begin.

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "cifar100"
    config.flip = True
    config.crop_padding = 4
    config.mixup = 1.0
    config.cutmix = 1.0
    config.model = "resnet18"
    config.stem = "cifar"
    config.batch_size = 64
    config.epochs = 200
    config.optimizer = "adam"
    config.learning_rate = 0.1
    config.schedule = "linear"
    config.weight_decay = 5e-3
    return with_arguments(config, arguments)
