"""OIA-ODIR, eyes of seven classes, by the paper's recipe: ResNet-50, Adam (Figures 10, 11; OIA-ODIR-B, Figure 12).

Appendix D.6: Adam with learning rate 0.1, which falls linearly, momentum 0.9 and weight decay 5e-3. A rate of 0.1 is a
hundred times Adam's usual one: it is what the paper says, and ``learning_rate=0.001`` is at hand. Not stated are the
size of batches, 64 as for CIFAR-100 with the same optimizer (Table 3), and the number of epochs, the size of the images
and their augmentation, which are our choice: 100 epochs, and crops of 224x224 out of images whose shorter side has 256
pixels, with flips, so that the rim of the fundus is seen. The paper begins with weights of ImageNet; here they are
random. It measures average precision, which the results have beside accuracies.

How the classes of eyes are told from the keywords, and what is the test, is in ``dsb_jax/data/builders/fundus.py``. To
prepare are 1.6 GB:

  python -m dsb_jax.main --config=configs/odir.py:data=synthetic
  python -m dsb_jax.data.prepare odir --archive DIR
  python -m dsb_jax.main --config=configs/odir.py
  python -m dsb_jax.main --config=configs/odir.py:loss=balanced_softmax

Figure 11 has CE, BS, Focal and LDAM, alone (``balancer=uniform``) and with DSB. Figure 12 is of OIA-ODIR-B, 103 eyes of
each class, and of ``model=resnet50``, ``resnet18``, ``vgg16`` and ``seresnet50``:

  python -m dsb_jax.main --config=configs/odir.py:protocol=balanced --workdir=runs/odir_b/dsb-ce-seed0

Made for a GPU.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "odir"
    config.image_size = 224
    config.shorter_side = 256
    config.random_crop = "shift"
    config.flip = True
    config.model = "resnet50"
    config.stem = "imagenet"
    config.batch_size = 64
    config.epochs = 100
    config.optimizer = "adam"
    config.learning_rate = 0.1
    config.schedule = "linear"
    config.weight_decay = 5e-3
    config.eval_batch_size = 128
    config.average_precision = True
    return with_arguments(config, arguments)
