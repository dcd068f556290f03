"""Long-tailed Cars196, retrieval: a tail of the first 98 classes trains, the other 98 are searched (Table 9).

Appendix D.5.2: n_i = N·μ^(i/(1−M)) images of class i, with M = 98 and an imbalance μ of 10, 20 or 50; N is the largest
that the classes allow. The recipe is that of ``configs/cub2011.py``, whose remarks hold here too; α is 2, as of all
long tails.

To prepare are 2 GB:

  python -m dsb_jax.main --config=configs/cars196_lt.py:data=synthetic
  python -m dsb_jax.data.prepare cars196 --archive DIR
  python -m dsb_jax.main --config=configs/cars196_lt.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cars196_lt.py:protocol=retrieval_lt_50,balancer=class_balanced,init_from=FILE
  python -m dsb_jax.main --config=configs/cars196_lt.py:protocol=retrieval_lt_50,objective=soft_triple,init_from=FILE

Made for a GPU.
"""

from dsb_jax.training.config import with_arguments
from dsb_jax.training.recipes import metric_learning


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    return with_arguments(metric_learning("cars196", "retrieval_lt_10"), arguments)
