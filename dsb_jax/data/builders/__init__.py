"""TFDS builders that write encoded image bytes, and therefore need no TensorFlow.

A builder with ``MANUAL_DOWNLOAD_INSTRUCTIONS`` reads an archive that the user names; one without them carries its data.

Nothing is downloaded, so builders set ``url_infos = None``: TFDS 4.9.10 looks for the checksums of downloads with a
package that it does not declare (https://github.com/tensorflow/datasets/issues/11212).
"""

import tensorflow_datasets as tfds

from dsb_jax.data.builders.cifar import Cifar10, Cifar100
from dsb_jax.data.builders.digits import Digits
from dsb_jax.data.builders.folder import Folder
from dsb_jax.data.builders.mnist import FashionMnist, Mnist

BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "digits": Digits,
    "fashion_mnist": FashionMnist,
    "folder": Folder,
    "mnist": Mnist,
}
