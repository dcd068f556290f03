"""Mini-ImageNet, retrieval: 64 classes train, the other 36 are searched (Table 10; cost, Table 11).

Appendix D.5.2: 600 images of each class. The recipe is that of ``configs/cub2011.py``, whose remarks hold here too.

To prepare are at most 3 GB:

  python -m dsb_jax.main --config=configs/mini_imagenet_retrieval.py:data=synthetic
  python -m dsb_jax.data.prepare mini_imagenet --archive DIR
  python -m dsb_jax.main --config=configs/mini_imagenet_retrieval.py:init_from=FILE
  python -m dsb_jax.main --config=configs/mini_imagenet_retrieval.py:objective=soft_triple,init_from=FILE

Made for a GPU.
"""

from dsb_jax.training.config import with_arguments
from dsb_jax.training.recipes import metric_learning


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    return with_arguments(metric_learning("mini_imagenet", "retrieval"), arguments)
