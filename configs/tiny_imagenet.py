"""Tiny ImageNet: 100,000 images of 64x64 in 200 classes, tested on its validation set.

The paper has no such experiment. The recipe is the usual one for small images (He et al., Deep Residual Learning, 2016,
Sec. 4.2), with the numbers that github.com/cs-giung/giung2-jax publishes for this dataset: ResNet-18, SGD with momentum
0.9, weight decay 5e-4, batches of 128, 100 epochs, learning rate 0.1 after 5 epochs of warm-up, a cosine; flips and
padded crops.

To prepare are 250 MB:

  python -m dsb_jax.main --config=configs/tiny_imagenet.py:data=synthetic
  python -m dsb_jax.data.prepare tiny_imagenet --archive DIR
  python -m dsb_jax.main --config=configs/tiny_imagenet.py
  python -m dsb_jax.main --config=configs/tiny_imagenet.py:long_tail=exponential,imbalance=100 \\
    --workdir=runs/tiny_imagenet_lt/dsb-ce-seed0

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "tiny_imagenet"
    config.flip = True
    config.crop_padding = 8
    config.model = "resnet18"
    config.stem = "cifar"
    config.batch_size = 128
    config.epochs = 100
    config.learning_rate = 0.1
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.weight_decay = 5e-4
    return with_arguments(config, arguments)
