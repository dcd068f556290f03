"""NWPU-RESISC45, scenes from above, by the paper's recipe: ResNet-34, Adam, no augmentation (Figure 15).

Appendix D.7: 31,500 images of 45 classes, 20 % of each for training; Adam with its default parameters, batches of 100,
a learning rate that "decays 10 times every 50 epochs", until convergence. The default rate is 0.001, without weight
decay (Kingma and Ba, 2015). Not stated are the number of epochs, 150 here, that is three rates, and the size of the
images, 224x224 as usual for these networks. Weights begin at random; whether the paper's do, it does not say.

To prepare are 0.4 GB:

  python -m dsb_jax.main --config=configs/resisc45.py:data=synthetic
  python -m dsb_jax.data.prepare resisc45 --archive DIR
  python -m dsb_jax.main --config=configs/resisc45.py
  python -m dsb_jax.main --config=configs/resisc45.py:balancer=uniform

Of the networks, VGG-16 and GoogLeNet are ``model=vgg16`` and ``model=googlenet``.

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "resisc45"
    config.image_size = 224
    config.model = "resnet34"
    config.stem = "imagenet"
    config.batch_size = 100
    config.epochs = 150
    config.optimizer = "adam"
    config.learning_rate = 0.001
    config.schedule = "step"
    config.milestones = (50, 100)
    config.decay_factor = 0.1
    config.weight_decay = 0.0
    config.eval_batch_size = 128
    return with_arguments(config, arguments)
