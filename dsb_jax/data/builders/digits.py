"""The 1,797 handwritten digits that scikit-learn carries: real images that need no network."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import images, specs
from dsb_jax.data.builders.sized import Sized
from dsb_jax.data.specs import Part, Protocol, Spec

_TEST_IMAGES_PER_CLASS = 40
_SPLIT_SEED = 0
_TRAIN_COUNTS = np.array([138, 142, 137, 143, 141, 142, 141, 139, 134, 140])
_RETRIEVAL_CLASSES = 6  # that train, where the others are searched


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey digits: 400 test images, 40 of each class, and the other 1,397 (134 to 143 of each) to train on.

    scikit-learn's values 0..16 become ``round(value * 255 / 16)``, which keeps the 17 levels apart. The split is drawn
    once, with a fixed seed; the key of an example is its row in ``sklearn.datasets.load_digits``.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # see builders/__init__.py

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The test part of the UCI data set of handwritten digits, as bundled with scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation="Alpaydin and Kaynak. Optical Recognition of Handwritten Digits. UCI repository, 1998.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Sized]:
        del dl_manager
        from sklearn.datasets import load_digits  # takes a second to import, and only preparing needs it

        digits = load_digits()
        levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        in_test = _balanced_test_rows(digits.target)
        rows = {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}
        return {
            split: Sized(self._generate_examples(levels, digits.target, of_split), len(of_split))
            for split, of_split in rows.items()
        }

    def _generate_examples(
        self, levels: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in rows.tolist():
            yield row, {"image": io.BytesIO(images.encode_png(levels[row])), "label": int(labels[row])}


def _balanced_test_rows(labels: np.ndarray) -> np.ndarray:
    """Boolean [samples]: the same number of rows of every class, drawn with a fixed seed."""
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:_TEST_IMAGES_PER_CLASS]] = True
    return chosen


def _retrieval() -> Protocol:
    first, last = (0, _RETRIEVAL_CLASSES), (_RETRIEVAL_CLASSES, 10)
    counts = _TRAIN_COUNTS + _TEST_IMAGES_PER_CLASS
    splits = {
        split: Part(("train", "test"), counts[slice(*classes)], relabel=specs.class_range(*classes, 10))
        for split, classes in {"train": first, "test": last}.items()
    }
    return Protocol("0 to 5 train, the other four digits are searched", splits)


SPECS = (
    Spec(
        name="digits",
        title="handwritten digits of scikit-learn",
        stored_as="digits",
        protocols={
            "classification": Protocol(
                "40 test images of each class, the others train",
                {
                    "train": Part(("train",), _TRAIN_COUNTS),
                    "test": Part(("test",), specs.alike(_TEST_IMAGES_PER_CLASS, 10)),
                },
            ),
            "retrieval": _retrieval(),
        },
        image_shape=(8, 8, 1),
        mean=(0.305,),
        std=(0.376,),
        licence="CC BY 4.0",
        gigabytes=0.0,
        class_names=tuple("0123456789"),
        encoding=".png",
    ),
)
