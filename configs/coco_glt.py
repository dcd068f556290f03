"""MSCOCO-GLT by the recipe of its authors, which is the paper's: ResNeXt-50, SGD, a cosine (Table 6).

Sec. 5.4: long tails of classes and, within them, of attributes, by three protocols. ``clt`` changes the numbers of the
classes between training and test, ``glt`` those of the attributes too, and ``alt`` those alone. The paper has "the same
experimental settings as IFL" (Tang et al., Invariant Feature Learning for Generalized Long-Tailed Classification,
2022), whose published code and remarks say: batches of 256, 100 epochs, learning rate 0.1, which falls as a cosine,
weight decay 5e-4; parts of 0.5 to 1 of the area brought to 112x112, flips; for the test the middle of images whose
shorter side has 128 pixels. The numbers there, of which most of the table is, were measured without momentum, by
mistake, as the authors report: hence ``momentum = 0``. That the network is ResNeXt-50 is theirs as well. Weights begin
at random. The paper's α = 2 is that of long-tailed classes: ``alt`` trains on balanced ones, and has α = 1.

To prepare are 20 GB of COCO 2014 and its attributes:

  python -m dsb_jax.main --config=configs/coco_glt.py:data=synthetic
  python -m dsb_jax.data.prepare coco_glt --archive DIR
  python -m dsb_jax.main --config=configs/coco_glt.py:loss=ldam
  python -m dsb_jax.main --config=configs/coco_glt.py:loss=ldam,protocol=glt --workdir=runs/coco_glt/glt-dsb-ldam-seed0
  python -m dsb_jax.main --config=configs/coco_glt.py:loss=ldam,protocol=alt --workdir=runs/coco_glt/alt-dsb-ldam-seed0

All methods of the table are at hand; ``launch/reproduce.py table6`` has their settings, and trains them with several
seeds. The authors' LDAM is re-weighted by class-balanced weights in the last fifth, and so is the table's there
(``:loss=ldam,balancer=class_balanced,start_epoch=80``); DSB's weights begin after epoch 5.

Made for a GPU. ``dtype=bfloat16`` is faster there.
"""

from dsb_jax.training.config import base_config, with_arguments


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    config = base_config()
    config.dataset = "coco_glt"
    config.protocol = "clt"
    config.image_size = 112
    config.shorter_side = 128
    config.random_crop = "resize"
    config.crop_scale = (0.5, 1.0)
    config.flip = True
    config.model = "resnext50_32x4d"
    config.stem = "imagenet"
    config.batch_size = 256
    config.epochs = 100
    config.learning_rate = 0.1
    config.schedule = "cosine"
    config.momentum = 0.0
    config.weight_decay = 5e-4
    config.eval_batch_size = 256
    return with_arguments(config, arguments)
