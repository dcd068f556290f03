"""Your own images, listed in a table: a CSV or Parquet file with the columns ``path`` and ``label``.

Paths are relative to the folder of the table. A column ``split`` says ``train`` or ``test`` (or ``val``); without it a
fifth of each class is kept for the test:

  python -m dsb_jax.data.prepare listing/NAME --archive DIR/images.csv
  python -m dsb_jax.main --config=configs/listing.py:dataset=listing/NAME --workdir=runs/NAME/dsb-ce-seed0

The recipe is that of ``configs/folder.py``, whose remarks hold here too.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "listing"
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
