"""CIFAR-10 by the paper's recipe for measuring semantic scales: ResNet-18, Adam, no augmentation.

Sec. 3.3 and 3.4.2, Appendix D.1 and D.2 (Figures 2 and 22, Tables 1 and 7): Adam with learning rate 0.01, 0.98 times
that after every epoch, batches of 64 and no "other additional tricks", so no weight decay. The number of epochs is not
stated; 200 is our choice, at whose end the learning rate is 0.018 of the first. Prepare the dataset once from the
published files, then train; the paper's measurements are of plain cross-entropy:

  python -m dsb_jax.data.prepare cifar10 --archive DIR
  python -m dsb_jax.main --config=configs/cifar10.py
  python -m dsb_jax.main --config=configs/cifar10.py:balancer=uniform

Plain cross-entropy with the pool filled all the same, for measuring scales in it (``correlations_by_space``), is DSB
that never starts:

  python -m dsb_jax.main --config=configs/cifar10.py:balancer=dsb,start_epoch=200 \\
    --workdir=runs/cifar10/measured-seed0

Table 1's long tail (Pearson r with class accuracy, imbalance 200), and one of the nested, balanced sub-datasets of
Table 7 (``dsb_jax.data.long_tail.BALANCED``; the same seed keeps them nested):

  python -m dsb_jax.main --config=configs/cifar10.py:balancer=uniform,long_tail=exponential,imbalance=200 \\
    --workdir=runs/cifar10/tail-seed0
  python -m dsb_jax.main --config=configs/cifar10.py:balancer=uniform,long_tail=balanced,images_per_class=500 \\
    --workdir=runs/cifar10/500-each-seed0

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "cifar10"
    config.model = "resnet18"
    config.stem = "cifar"
    config.batch_size = 64
    config.epochs = 200
    config.optimizer = "adam"
    config.learning_rate = 0.01
    config.schedule = "exponential"
    config.decay_rate = 0.98
    config.weight_decay = 0.0
    return with_arguments(config, arguments)
