"""Long-tailed CIFAR-100, retrieval: a tail of 60 classes trains, the other 40 are searched (Table 5).

Sec. 5.3 and Appendix D.5.1: n_i = N·μ^(i/(1−M)) images of class i, with M = 60 and an imbalance μ of 10, 50 or 200; N,
which is not stated, is all 600. The recipe is that of ``configs/cub2011.py`` and ``configs/cifar100_retrieval.py``,
whose remarks hold here too; α is 2, as of all long tails.

  python -m dsb_jax.data.prepare cifar100 --archive DIR
  python -m dsb_jax.main --config=configs/cifar100_retrieval_lt.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cifar100_retrieval_lt.py:protocol=retrieval_lt_50,balancer=class_balanced \\
    --config.init_from=FILE
  python -m dsb_jax.main --config=configs/cifar100_retrieval_lt.py:protocol=retrieval_lt_200,objective=soft_triple \\
    --config.init_from=FILE

Made for a GPU. To prepare are 161 MB.
"""

from dsb_jax.training.config import with_arguments
from dsb_jax.training.recipes import metric_learning


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    return with_arguments(metric_learning("cifar100", "retrieval_lt_10"), arguments)
