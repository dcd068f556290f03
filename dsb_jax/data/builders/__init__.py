"""TFDS builders that write encoded image bytes, and therefore need no TensorFlow; and what is known of their datasets.

A builder with ``MANUAL_DOWNLOAD_INSTRUCTIONS`` reads an archive that the user names; one without them carries its data.
A module has the builders of one source and, in ``SPECS``, the datasets that are read from what they write.

Nothing is downloaded, so builders set ``url_infos = None``: TFDS 4.9.10 looks for the checksums of downloads with a
package that it does not declare (https://github.com/tensorflow/datasets/issues/11212).
"""

import sys

import tensorflow_datasets as tfds

from dsb_jax.data.builders import (
    cars,
    cifar,
    coco_glt,
    cub,
    digits,
    fundus,
    imagenet,
    imagenet_lt,
    inaturalist,
    mini_imagenet,
    mnist,
    places_lt,
    products,
    remote_sensing,
    tiny_imagenet,
)
from dsb_jax.data.builders.folder import Folder
from dsb_jax.data.builders.listing import Listing
from dsb_jax.data.specs import Spec

# By their names, which are those of folders on disk.
BUILDERS: dict[str, type[tfds.core.DatasetBuilder]] = {
    builder.name: builder
    for builder in (
        cars.Cars,
        cifar.Cifar10,
        cifar.Cifar100,
        coco_glt.CocoGlt,
        cub.Cub,
        digits.Digits,
        fundus.Odir,
        imagenet.Imagenet2012,
        imagenet_lt.ImagenetLt,
        inaturalist.INaturalist2018,
        mini_imagenet.MiniImagenet,
        mnist.FashionMnist,
        mnist.Mnist,
        places_lt.PlacesLt,
        products.OnlineProducts,
        remote_sensing.Eurosat,
        remote_sensing.Resisc45,
        remote_sensing.Rsscn7,
        tiny_imagenet.TinyImagenet,
    )
}

# Of own images; a name of the user's choice follows: ``folder/NAME``.
OWN: dict[str, type[tfds.core.DatasetBuilder]] = {builder.name: builder for builder in (Folder, Listing)}

_MODULES = dict.fromkeys(sys.modules[builder.__module__] for builder in BUILDERS.values())
SPECS: dict[str, Spec] = {spec.name: spec for module in _MODULES for spec in module.SPECS}
