"""EuroSAT (RGB): 27,000 images of 64x64 from Sentinel-2 in 10 classes. The paper has no such experiment.

Of each class 80 % train, the split of Helber et al., EuroSAT, 2019; they fine-tune a ResNet-50 that has learnt
ImageNet. The recipe is the usual one for small images from random weights (He et al., Deep Residual Learning, 2016,
Sec. 4.2, with a cosine instead of steps), as in ``configs/tiny_imagenet.py``.

To prepare are 90 MB:

  python -m dsb_jax.main --config=configs/eurosat.py:data=synthetic
  python -m dsb_jax.data.prepare eurosat --archive DIR
  python -m dsb_jax.main --config=configs/eurosat.py
  python -m dsb_jax.main --config=configs/eurosat.py:long_tail=exponential,imbalance=100 --workdir=runs/eurosat_lt

Made for a GPU. ``model=resnet8`` and fewer epochs are for a CPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "eurosat"
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
