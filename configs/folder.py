"""Your own images: any directory of class/image files.

DIR holds ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``), or just ``CLASS/*``, of which a fifth is then kept for
the test. Images of any size become squares of ``image_size`` pixels, whose middle is seen:

  python -m dsb_jax.data.prepare folder/NAME --archive DIR
  python -m dsb_jax.main --config=configs/folder.py:dataset=folder/NAME --workdir=runs/NAME/dsb-ce-seed0

A ResNet-18 from scratch, for sets of some hundreds to some ten thousand images; the recipe is ours, and its batches are
small because few images give few updates. Without a GPU, ``image_size=64,crop_padding=4`` costs a twelfth. Where left
and right matter (text, traffic signs), ``flip=False``. Where classes differ much in number, ``dsb.alpha=2.0``.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "folder"
    config.image_size = 224
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.flip = True
    config.crop_padding = 16
    config.model = "resnet18"
    config.stem = "imagenet"
    config.batch_size = 32
    config.epochs = 100
    config.learning_rate = 0.02
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.weight_decay = 5e-4
    config.eval_batch_size = 64
    return with_arguments(config, arguments)
