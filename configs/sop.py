"""Stanford Online Products: features that drift ever more slowly while a network learns 11,318 classes of few images.

Sec. 2 cites it as the reason why a pool may hold features of earlier steps: they are "relatively stable after
traversing the dataset twice" and drift "extremely slowly when the learning rate decreases". The experiment is that of
Wang et al., Cross-Batch Memory for Embedding Learning, 2020; the paper has none of its own and states nothing. The
recipe is the one of their published code, as far as it is not one of pairs: ResNet-50, Adam with learning rate 1e-4 and
weight decay 5e-4, batches of 64, 35,000 steps, which are 38 epochs, parts of at least 0.2 of the area, flips,
embeddings of 512. The loss is NormSoftmax, as in ``configs/cub2011.py``, whose remarks on weights hold here too; the
rate falls to a tenth after two thirds, where theirs waits for a plateau. The other 11,316 classes are searched. The
drift itself is not among the results.

To prepare are 3 GB:

  python -m dsb_jax.main --config=configs/sop.py:data=synthetic
  python -m dsb_jax.data.prepare sop --archive DIR
  python -m dsb_jax.main --config=configs/sop.py

Made for a GPU. ``dtype=bfloat16`` is faster there.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.task = "retrieval"
    config.dataset = "sop"
    config.protocol = "retrieval"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "resize"
    config.crop_scale = (0.2, 1.0)
    config.flip = True
    config.model = "resnet50"
    config.stem = "imagenet"
    config.embedding = 512
    config.objective = "norm_softmax"
    config.batch_size = 64
    config.epochs = 38
    config.optimizer = "adam"
    config.learning_rate = 1e-4
    config.schedule = "step"
    config.milestones = (25,)
    config.decay_factor = 0.1
    config.weight_decay = 5e-4
    config.eval_batch_size = 128
    return with_arguments(config, arguments)
