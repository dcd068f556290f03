"""MNIST, all 60,000 training images: semantic scales of classes that are balanced by number (Figure 3 of the paper).

Sec. 3.4.2 and Appendix D.3. The paper names neither the network nor the optimizer for it; a LeNet-size CNN and SGD with
momentum are our choice, as in ``configs/mnist_lt.py``. Fashion-MNIST has the same files and shapes:

  python -m dsb_jax.data.prepare mnist --archive DIR
  python -m dsb_jax.main --config=configs/mnist.py
  python -m dsb_jax.main --config=configs/mnist.py:dataset=fashion_mnist --workdir=runs/fashion_mnist/dsb-ce-seed0
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "mnist"
    config.model = "lenet"
    config.batch_size = 128
    config.epochs = 15
    config.learning_rate = 0.02
    config.weight_decay = 5e-4
    return with_arguments(config, arguments)
