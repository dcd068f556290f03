"""iNaturalist 2018 by the paper's recipe: ResNet-50, SGD, batches of 512 (Table 2; its cost, Table 11).

Sec. 5.1: 437,513 training images of 8,142 classes in the official split; SGD with momentum 0.9, weight decay 5e-4 and
learning rate 0.1, which falls linearly. Head, middle and tail are the classes of more than 100, of 20 to 100 and of
fewer than 20 images. Not stated are the number of epochs, the augmentation and the weights to begin with. The first two
are those of Kang et al., Decoupling Representation and Classifier, 2020: 90 epochs, parts of random size and shape,
flips and no change of colours. Weights begin at random, as theirs.

The archives have 120 GB, and what is prepared of them as many again. The rehearsal has the classes and the number of
images of the dataset, pixels that mean nothing, and, as the list of the training images is not part of this package,
made-up numbers for each class: a seeded long tail of 2 to 1,000, 437,513 in all:

  python -m dsb_jax.main --config=configs/inat2018.py:data=synthetic
  python -m dsb_jax.data.prepare inat2018 --archive DIR
  python -m dsb_jax.main --config=configs/inat2018.py
  python -m dsb_jax.main --config=configs/inat2018.py:balancer=uniform

All methods of the table are at hand; ``launch/reproduce.py table2 --scale=paper`` has their settings, and trains them
with several seeds.

Made for a GPU. ``dtype=bfloat16`` is faster there, and ``accumulate=4`` is for one that a batch does not fit.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "inat2018"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "resize"
    config.flip = True
    config.model = "resnet50"
    config.stem = "imagenet"
    config.batch_size = 512
    config.epochs = 90
    config.learning_rate = 0.1
    config.schedule = "linear"
    config.weight_decay = 5e-4
    config.eval_batch_size = 128
    config.sample_space = False  # another pass over all training images
    return with_arguments(config, arguments)
