"""Places-LT: 62,500 training images, 4,980 to 5 of each of 365 classes. The paper has no such experiment.

The recipe is that of ``configs/imagenet_lt.py``, from random weights, with a ResNet-50. The literature fine-tunes a
ResNet-152 that has learnt ImageNet (Liu et al., 2019: 30 epochs, batches of 128, rate 0.1 in the last layer and 0.001
below, a tenth of it after every 10): ``model=resnet152,init_from=FILE.safetensors``, with one rate for all.

The small images of Places365 have 27 GB, of which 1.6 are prepared:

  python -m dsb_jax.main --config=configs/places_lt.py:data=synthetic
  python -m dsb_jax.data.prepare places_lt --archive DIR
  python -m dsb_jax.main --config=configs/places_lt.py
  python -m dsb_jax.main --config=configs/places_lt.py:balancer=uniform

Made for a GPU. ``dtype=bfloat16`` is faster there, and ``accumulate=4`` is for one that a batch does not fit.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "places_lt"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "resize"
    config.flip = True
    config.color_jitter = (0.4, 0.4, 0.4)
    config.model = "resnet50"
    config.stem = "imagenet"
    config.batch_size = 256
    config.epochs = 90
    config.learning_rate = 0.1
    config.schedule = "linear"
    config.weight_decay = 5e-4
    config.eval_batch_size = 128
    return with_arguments(config, arguments)
