"""ImageNet by the paper's recipe: ResNet-18, Adam, mixup and CutMix, batches of 512 (Table 3, Figure 19).

Sec. 5.2 and H.3: 1,281,167 training and 50,000 validation images of 1,000 classes; Adam with learning rate 0.05,
momentum 0.9 and weight decay 5e-4, "random clipping, mixup, and cutmix". A rate of 0.05 is fifty times Adam's usual
one: it is what the caption says, and ``learning_rate=0.001`` is at hand. Not stated are the schedule, for which
CIFAR-100's linear one in the same caption is taken; the number of epochs, 90 as usual (Goyal et al., Accurate, Large
Minibatch SGD, 2017); and the strengths of mixup, 0.2 (Zhang et al., 2018, on ImageNet), and of CutMix, 1 (Yun et al.,
2019), one of which is drawn for each batch. Clipping is read as parts of random size and shape. Flips, which the
caption has not, belong to them (``flip=False`` is the caption to the letter).

The archives have 153 GB, and what is prepared of them as many again. The rehearsal has the classes and numbers of the
dataset, and pixels that mean nothing:

  python -m dsb_jax.main --config=configs/imagenet2012.py:data=synthetic
  python -m dsb_jax.data.prepare imagenet2012 --archive DIR
  python -m dsb_jax.main --config=configs/imagenet2012.py
  python -m dsb_jax.main --config=configs/imagenet2012.py:balancer=uniform
  python -m dsb_jax.main --config=configs/imagenet2012.py:model=resnet50 --workdir=runs/imagenet2012/resnet50-seed0

The networks of the table are ``model=resnet18``, ``resnet34``, ``resnet50``, ``vgg16``, ``bn_inception``,
``densenet201``, ``seresnet50`` and ``resnext101_32x4d``. Figure 19 has the accuracies of three thirds of the classes
by semantic scale; the results have scale and accuracy of every class.

Made for a GPU. ``dtype=bfloat16`` is faster there, and ``accumulate=4`` is for one that a batch does not fit.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "imagenet2012"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "resize"
    config.flip = True
    config.mixup = 0.2
    config.cutmix = 1.0
    config.model = "resnet18"
    config.stem = "imagenet"
    config.batch_size = 512
    config.epochs = 90
    config.optimizer = "adam"
    config.learning_rate = 0.05
    config.schedule = "linear"
    config.weight_decay = 5e-4
    config.eval_batch_size = 128
    config.sample_space = False  # another pass over all training images
    return with_arguments(config, arguments)
