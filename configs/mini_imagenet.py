"""Mini-ImageNet by the paper's recipe for measuring semantic scales: ResNet-18, Adam, no augmentation.

Sec. 3.3, Appendix D.1 and D.2 (Figures 2, 7 and 22, Table 7): 100 classes of 600 images, the recipe that of
``configs/cifar10.py``, whose remarks hold here too. Of each class 500 images train; that the other 100 are the test is
not stated, but there are no others. Nor is the size of the images: 84x84 is that of the files that go round. They are
large enough for the network to begin as on ImageNet.

To prepare are at most 3 GB:

  python -m dsb_jax.main --config=configs/mini_imagenet.py:data=synthetic
  python -m dsb_jax.data.prepare mini_imagenet --archive DIR
  python -m dsb_jax.main --config=configs/mini_imagenet.py
  python -m dsb_jax.main --config=configs/mini_imagenet.py:balancer=uniform

One of the nested, balanced sub-datasets of Table 7, of 10 to 500 images per class
(``dsb_jax.data.long_tail.BALANCED``):

  python -m dsb_jax.main --workdir=runs/mini_imagenet/50-each-seed0 \\
    --config=configs/mini_imagenet.py:balancer=uniform,long_tail=balanced,images_per_class=50

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "mini_imagenet"
    config.image_size = 84
    config.model = "resnet18"
    config.stem = "imagenet"
    config.batch_size = 64
    config.epochs = 200
    config.optimizer = "adam"
    config.learning_rate = 0.01
    config.schedule = "exponential"
    config.decay_rate = 0.98
    config.weight_decay = 0.0
    return with_arguments(config, arguments)
