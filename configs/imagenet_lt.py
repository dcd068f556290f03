"""ImageNet-LT by the paper's recipe: ResNeXt-50, SGD, batches of 256 (Table 2, Figures 17 and 18; cost, Table 11).

Sec. 5.1: 115,846 training images, 1,280 to 5 of each of 1,000 classes; SGD with momentum 0.9, weight decay 5e-4 and
learning rate 0.1, which falls linearly. Head, middle and tail are the classes of more than 100, of 20 to 100 and of
fewer than 20 images. ResNeXt-50 is taken to be the 32x4d of the literature. Not stated are the number of epochs, the
augmentation and the weights to begin with. The first two are those of Kang et al., Decoupling Representation and
Classifier, 2020, whose numbers for CE are those of the table: 90 epochs, parts of random size and shape, flips, changes
of brightness, contrast and saturation by up to 0.4. Weights begin at random, as theirs. Nor is it stated whether
accuracies are of the 20,000 images that are called validation, ``eval_split=val``, or of the 50,000 of the test, on
which most work reports and which are the default.

Lists and ImageNet's archives have 153 GB, of which 22 are prepared. The rehearsal has the classes and numbers of the
dataset, and pixels that mean nothing:

  python -m dsb_jax.main --config=configs/imagenet_lt.py:data=synthetic
  python -m dsb_jax.data.prepare imagenet_lt --archive DIR
  python -m dsb_jax.main --config=configs/imagenet_lt.py
  python -m dsb_jax.main --config=configs/imagenet_lt.py:balancer=uniform

All methods of the table and of Figures 17 and 18 are at hand; ``launch/reproduce.py table2`` has their settings, and
trains them with several seeds:

  python launch/reproduce.py table2 --scale=paper
  python launch/reproduce.py figure17 --scale=paper
  python launch/reproduce.py figure18 --scale=paper

Made for a GPU. ``dtype=bfloat16`` is faster there, and ``accumulate=4`` is for one that a batch does not fit.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "imagenet_lt"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "resize"
    config.flip = True
    config.color_jitter = (0.4, 0.4, 0.4)
    config.model = "resnext50_32x4d"
    config.stem = "imagenet"
    config.batch_size = 256
    config.epochs = 90
    config.learning_rate = 0.1
    config.schedule = "linear"
    config.weight_decay = 5e-4
    config.eval_batch_size = 128
    return with_arguments(config, arguments)
