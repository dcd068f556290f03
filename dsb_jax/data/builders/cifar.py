"""CIFAR-10 and CIFAR-100 from the files in which they go round, in the layout of the stock TFDS builders."""

import io
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import images, long_tail, specs
from dsb_jax.data.builders import cifar_files
from dsb_jax.data.builders.cifar_files import CIFAR10, CIFAR100, Layout
from dsb_jax.data.builders.folder import listing
from dsb_jax.data.builders.sized import Sized
from dsb_jax.data.specs import Part, Protocol, Spec

_logger = logging.getLogger(__name__)


class _FromFiles:
    """Name, version, features and keys of examples are those of TFDS, so either one's files serve the other.

    The order of examples, and with it their ids, is that of the files: TFDS's for the two originals. Where the files
    are a part of the dataset, the metadata hold their ``listing``.
    """

    url_infos = None  # see builders/__init__.py
    layout: Layout
    # TFDS's:
    name: str
    info: tfds.core.DatasetInfo

    def _info(self) -> tfds.core.DatasetInfo:
        stock = super()._info()  # type: ignore[misc]  # of the class beside which this one is mixed in
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


_IMBALANCES = (100, 10, 50, 200)
_RETRIEVAL_CLASSES = 60  # of CIFAR-100 that train; the other 40 are searched (Sec. 5.3)
_STATISTICS: dict[str, dict[str, Any]] = {
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    "cifar100": {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)},
}


def _spec(builder: type[_FromFiles], protocols: dict[str, Protocol], *, long_tailed: bool = False) -> Spec:
    return Spec(
        name=builder.name + ("_lt" if long_tailed else ""),
        title=builder.layout.title + ("-LT" if long_tailed else ""),
        stored_as=builder.name,
        protocols=protocols,
        image_shape=(32, 32, 3),
        licence="not stated",
        gigabytes=0.17,
        long_tailed=long_tailed,
        class_names=builder.layout.class_names,
        encoding=".png",
        **_STATISTICS[builder.name],
    )


def _classification(layout: Layout) -> Protocol:
    splits = {
        split: Part((split,), specs.alike(count, len(layout.class_names)))
        for split, count in layout.images_per_class.items()
    }
    return Protocol("the published split", splits)


def _long_tails(layout: Layout) -> dict[str, Protocol]:
    """Cao et al., 2019: by imbalance, from all images of the first class on."""
    protocols, classes = {}, len(layout.class_names)
    for imbalance in _IMBALANCES:
        counts = long_tail.exponential_counts(layout.images_per_class["train"], classes, imbalance)
        splits = {
            "train": Part(("train",), counts, choose=specs.thinned(counts)),
            "test": Part(("test",), specs.alike(layout.images_per_class["test"], classes)),
        }
        protocols[str(imbalance)] = Protocol(f"imbalance {imbalance}, the whole test set", splits)
    return protocols


def _retrieval() -> dict[str, Protocol]:
    """The 600 images of each class of CIFAR-100: the first 60 classes train, the others are searched (Tables 5, 10).

    Of the long-tailed ones the paper does not state the number of images of the first class; all 600 are taken.
    """
    everything = ("train", "test")
    kept, others = _RETRIEVAL_CLASSES, 100 - _RETRIEVAL_CLASSES
    first = specs.class_range(0, kept, 100)
    test = Part(everything, specs.alike(600, others), relabel=specs.class_range(kept, 100, 100))
    whole = Part(everything, specs.alike(600, kept), relabel=first)
    protocols = {"retrieval": Protocol("60 classes train, the other 40 are searched", {"train": whole, "test": test})}
    for imbalance in (10, 50, 200):
        counts = long_tail.exponential_counts(600, kept, imbalance)
        train = Part(everything, counts, relabel=first, choose=specs.thinned(counts))
        description = f"60 classes of imbalance {imbalance} train, the other 40 are searched"
        splits = {"train": train, "test": test}
        protocols[f"retrieval_lt_{imbalance}"] = Protocol(description, splits, long_tailed=True)
    return protocols


SPECS = (
    _spec(Cifar10, {"classification": _classification(CIFAR10)}),
    _spec(Cifar10, _long_tails(CIFAR10), long_tailed=True),
    _spec(Cifar100, {"classification": _classification(CIFAR100), **_retrieval()}),
    _spec(Cifar100, _long_tails(CIFAR100), long_tailed=True),
)
