"""Long-tailed MNIST as in Table 8 of the paper: MNIST-LT-2 (5,923 … 74 images per class) or MNIST-LT-1 (5,923 … 900).

Sec. 3.4.2 and Appendix D.3, Figure 3. The paper names neither the network nor the optimizer for it; a LeNet-size CNN
and SGD with momentum are our choice. Prepare the dataset once from its four idx files, then train:

  python -m dsb_jax.data.prepare mnist --archive DIR
  python -m dsb_jax.main --config=configs/mnist_lt.py
  python -m dsb_jax.main --config=configs/mnist_lt.py:balancer=uniform
  python -m dsb_jax.main --config=configs/mnist_lt.py:long_tail=mnist_lt_1 --workdir=runs/mnist_lt_1/dsb-ce-seed0

About four minutes on one CPU core. Top-1 on MNIST-LT-2 for seeds 0, 1, 2: DSB-CE 96.3, 94.2, 96.2 %, plain CE
(``:balancer=uniform``) 96.2, 93.9, 96.0 %. The subset drawn matters more than the method.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "mnist"
    config.long_tail = "mnist_lt_2"
    config.model = "lenet"
    config.batch_size = 128
    config.epochs = 15
    config.learning_rate = 0.02
    config.weight_decay = 5e-4
    return with_arguments(config, arguments)
