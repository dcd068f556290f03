"""CIFAR-10 and CIFAR-100 from the files in which they go round, in the layout of the stock TFDS builders."""

import io
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import images
from dsb_jax.data.builders import cifar_files
from dsb_jax.data.builders.cifar_files import CIFAR10, CIFAR100, Layout
from dsb_jax.data.builders.folder import listing
from dsb_jax.data.builders.sized import Sized

_logger = logging.getLogger(__name__)


class _FromFiles:
    """Name, version, features and keys of examples are those of TFDS, so either one's files serve the other.

    The order of examples, and with it their ids, is that of the files: TFDS's for the two originals. Where the files
    are a part of the dataset, the metadata hold their ``listing``.
    """

    url_infos = None  # see builders/__init__.py
    layout: Layout

    def _info(self) -> tfds.core.DatasetInfo:
        stock = super()._info()
        return tfds.core.DatasetInfo(
            builder=self,
            description=stock.description,
            features=stock.features,
            supervised_keys=stock.supervised_keys,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Sized]:
        self.info.features["label"].names = self.layout.class_names
        if self.layout.coarse_names:
            self.info.features["coarse_label"].names = self.layout.coarse_names
        # Everything is read and checked before the first record is written.
        parts = cifar_files.read(pathlib.Path(dl_manager.manual_dir), self.layout)
        for split, part in parts.items():
            if len(part.labels) < (complete := self.layout.images_per_class[split] * len(self.layout.class_names)):
                _logger.warning("%s/%s is a part: %d of %d images", self.name, split, len(part.labels), complete)
                self.info.metadata["listing"] = listing(dl_manager.manual_dir)
        return {
            split: Sized(self._generate_examples(split, part.images, part.labels), len(part.labels))
            for split, part in parts.items()
        }

    def _generate_examples(
        self, split: str, pixels: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            example = {
                "id": f"{split}_{row:05d}",
                "image": io.BytesIO(images.encode_png(image)),
                "label": label,
            }
            if self.layout.coarse_names:
                example["coarse_label"] = self.layout.coarse_labels[label]
            yield row, example


class Cifar10(_FromFiles, tfds.image_classification.Cifar10, skip_registration=True):
    """60,000 colour images of 32x32 in 10 classes (Krizhevsky, 2009)."""

    name = "cifar10"
    layout = CIFAR10
    MANUAL_DOWNLOAD_INSTRUCTIONS = cifar_files.wanted(CIFAR10)


class Cifar100(_FromFiles, tfds.image_classification.Cifar100, skip_registration=True):
    """60,000 colour images of 32x32 in 100 classes of 20 superclasses (Krizhevsky, 2009)."""

    name = "cifar100"
    layout = CIFAR100
    MANUAL_DOWNLOAD_INSTRUCTIONS = cifar_files.wanted(CIFAR100)
