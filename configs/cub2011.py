"""CUB-200-2011, retrieval: the first 100 classes train, the others are searched (Table 4; cost, Table 11).

Sec. 5.3 and Appendix D.5: BN-Inception with ImageNet's weights, pooled features through one dense layer to embeddings
of 64 (or ``embedding=512``) at length 1, Adam, batches of 32, 50 epochs, flips and crops to 224x224 at random, and all
else "consistent with those reported in NormSoftmax and SoftTriple" (Zhai and Wu, 2019; Qian et al., 2019), which
differ. As the paper's optimizer is SoftTriple's, so is here what its code has beside it: learning rate 1e-4, of proxies
and centres 0.01, a tenth of both after every 20 epochs, ε = 0.01, weight decay 1e-4, frozen batch statistics.
NormSoftmax has σ = 0.05, which is the setting's default, and in its own code a normalisation of layers below the
embedding (``embedding_norm=True``), batches of 25 classes of 3 images
(``sampler=pk,examples_per_class=3,batch_size=75``) and an epoch of the new layers alone (``stages=new_layers``). Crops
are out of images whose shorter side has 256 pixels.

The weights are no part of this package. Those of BN-Inception in pretrained-models.pytorch (with PyTorch,
``safetensors.torch.save_file(torch.load("bn_inception-52deb4733.pth"), "FILE")``) were trained on Caffe's images, for
which add ``init_bgr=True,mean=(0.502,0.459,0.408),std=(0.00392,0.00392,0.00392)``: blue first, (128, 117, 104) of 255
subtracted. ``model=resnet50`` takes torchvision's as they are. From random weights batch statistics must not be frozen,
and ``frozen_norm=False,learning_rate=0.001,adam_epsilon=1e-8`` is nearer to what is usual.

To prepare are 1.2 GB:

  python -m dsb_jax.main --config=configs/cub2011.py:data=synthetic
  python -m dsb_jax.data.prepare cub2011 --archive DIR
  python -m dsb_jax.main --config=configs/cub2011.py:init_from=FILE
  python -m dsb_jax.main --config=configs/cub2011.py:balancer=uniform,init_from=FILE
  python -m dsb_jax.main --config=configs/cub2011.py:objective=soft_triple,init_from=FILE
  python -m dsb_jax.main --config=configs/cub2011.py:objective=circle,balancer=uniform,embedding=512,sampler=pk \\
    --config.init_from=FILE

Made for a GPU.
"""

from dsb_jax.training.config import with_arguments
from dsb_jax.training.recipes import metric_learning


def get_config(arguments=None):
    """The settings; ``arguments`` are ``key=value`` pairs separated by commas."""
    return with_arguments(metric_learning("cub2011", "retrieval"), arguments)
