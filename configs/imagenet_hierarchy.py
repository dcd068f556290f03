"""Seven classes of ImageNet whose superclasses are to be found by semantic scale: ResNet-18, Adam (Table 12).

Appendix L: poodles, Samoyeds, Labradors, Persian and Siamese cats, chimpanzees and gorillas, 1,000 images each; Adam
with learning rate 0.01, which falls linearly, momentum 0.9, weight decay 5e-3 and batches of 64. The loss is implied to
be plain cross-entropy. Not stated are where the images are from, ImageNet here, which has all seven; the number of
epochs, 100, and the augmentation, parts of random size and shape and flips, which are our choice. Weights begin at
random.

This trains the network. With it, the scales of dogs, cats and monkeys (``protocol="parents"`` of ``dsb_jax.data.load``)
are measured without and with the features of a child mixed in (``dsb_jax.class_volumes``): the parent whose scale grows
least is the child's.

ImageNet's archives have 153 GB, and what is prepared of them, which ``configs/imagenet2012.py`` reads too, as many
again:

  python -m dsb_jax.main --config=configs/imagenet_hierarchy.py:data=synthetic
  python -m dsb_jax.data.prepare imagenet_hierarchy --archive DIR
  python -m dsb_jax.main --config=configs/imagenet_hierarchy.py:balancer=uniform

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "imagenet_hierarchy"
    config.protocol = "children"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "resize"
    config.flip = True
    config.model = "resnet18"
    config.stem = "imagenet"
    config.batch_size = 64
    config.epochs = 100
    config.optimizer = "adam"
    config.learning_rate = 0.01
    config.schedule = "linear"
    config.weight_decay = 5e-3
    config.eval_batch_size = 128
    return with_arguments(config, arguments)
