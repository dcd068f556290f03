"""Cars196, retrieval: the first 98 classes train, the others are searched (Table 4; cost, Table 11).

The recipe is that of ``configs/cub2011.py``, whose remarks hold here too. Long tails are in ``configs/cars196_lt.py``.

To prepare are 2 GB:

  python -m dsb_jax.main --config=configs/cars196.py:data=synthetic
  python -m dsb_jax.data.prepare cars196 --archive DIR
  python -m dsb_jax.main --config=configs/cars196.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cars196.py:balancer=uniform,init_from=FILE
  python -m dsb_jax.main --config=configs/cars196.py:objective=soft_triple,init_from=FILE

Made for a GPU.
"""

from dsb_jax.training.config import with_arguments
from dsb_jax.training.recipes import metric_learning


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    return with_arguments(metric_learning("cars196", "retrieval"), arguments)
