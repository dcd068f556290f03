"""Long-tailed CIFAR-10: 5,000 … 50 training images per class (imbalance 100), the whole test set.

The recipe is the field's (Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, 2019):
ResNet-32, SGD with momentum 0.9 and weight decay 2e-4, batches of 128, 200 epochs, learning rate 0.1 after 5 epochs of
warm-up, a hundredth of it after epoch 160 and again after 180; flips and crops padded by 4. The paper's own, without
augmentation, is in ``configs/cifar10.py``. Prepare the dataset once from the published files, then train:

  python -m dsb_jax.data.prepare cifar10 --archive DIR
  python -m dsb_jax.main --config=configs/cifar10_lt.py
  python -m dsb_jax.main --config=configs/cifar10_lt.py:balancer=uniform
  python -m dsb_jax.main --config=configs/cifar10_lt.py:model=resnet8,epochs=15,schedule=linear,warmup_epochs=1 \\
    --workdir=runs/cifar10_lt/resnet8-seed0

The last one is small enough for a CPU, ten minutes on one core. Top-1 over its seeds 0-2: plain CE
(``:balancer=uniform``) 41.4 ± 0.2 %, DSB-CE 42.1 ± 0.3 %, with ``dsb.power=6.0`` 45.0 ± 0.2 %; class accuracy goes with
semantic scale at r = .89 and with the number of samples at r = .87 (DSB-CE). These were measured with another random
order of examples, before devices made it. The paper gives no accuracies for this dataset.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "cifar10"
    config.long_tail = "exponential"
    config.imbalance = 100.0
    config.images_per_class = 5000
    config.flip = True
    config.crop_padding = 4
    config.model = "resnet32"
    config.stem = "cifar"  # of models for large images, should one be chosen
    config.batch_size = 128
    config.epochs = 200
    config.learning_rate = 0.1
    config.schedule = "step"
    config.milestones = (160, 180)
    config.decay_factor = 0.01
    config.warmup_epochs = 5.0
    config.weight_decay = 2e-4
    return with_arguments(config, arguments)
