"""MNIST and Fashion-MNIST from their four idx files on disk, in the layout of the stock TFDS builders."""

import gzip
import hashlib
import io
import math
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import images, long_tail, specs
from dsb_jax.data.builders.sized import Sized
from dsb_jax.data.specs import Part, Protocol, Spec


class _IdxFile(NamedTuple):
    """One file of the archive: name without ``.gz``, shape, and MD5 of the uncompressed bytes where it is published."""

    name: str
    shape: tuple[int, ...]
    md5: str | None


_FILES = {
    "train": (
        _IdxFile("train-images-idx3-ubyte", (60_000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
        _IdxFile("train-labels-idx1-ubyte", (60_000,), "a25bea736e30d166cdddb491f175f624"),
    ),
    "test": (
        _IdxFile("t10k-images-idx3-ubyte", (10_000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
        _IdxFile("t10k-labels-idx1-ubyte", (10_000,), "27ae3e4e09519cfbb04c329615203637"),
    ),
}


# The same names and shapes; the uncompressed bytes have no published MD5, but the classes are balanced, as MNIST's
# are not.
_FASHION_FILES = {split: tuple(file._replace(md5=None) for file in files) for split, files in _FILES.items()}


_WANTED = "the folder of " + ", ".join(f"{file.name}[.gz]" for files in _FILES.values() for file in files)


class _FromIdxFiles:
    """Name, version, features and order of examples are those of TFDS, so either one's files serve the other."""

    url_infos = None  # see builders/__init__.py

    def _arrays(self, archive: pathlib.Path) -> dict[str, list[np.ndarray]]:
        """Images and labels of each split."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Sized]:
        # All four files are read and checked before the first record is written.
        arrays = self._arrays(pathlib.Path(dl_manager.manual_dir))
        return {split: Sized(self._generate_examples(*pair), len(pair[0])) for split, pair in arrays.items()}

    def _generate_examples(self, pixels: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            yield row, {"image": io.BytesIO(images.encode_png(image)), "label": label}


class Mnist(_FromIdxFiles, tfds.image_classification.MNIST, skip_registration=True):
    """70,000 handwritten digits of 28x28 (LeCun et al., 1998)."""

    name = "mnist"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{_WANTED} of http://yann.lecun.com/exdb/mnist"

    def _arrays(self, archive: pathlib.Path) -> dict[str, list[np.ndarray]]:
        return {split: [_read(archive, file) for file in files] for split, files in _FILES.items()}


class FashionMnist(_FromIdxFiles, tfds.image_classification.FashionMNIST, skip_registration=True):
    """70,000 images of clothes, 28x28, in the files of MNIST (Xiao et al., 2017)."""

    name = "fashion_mnist"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{_WANTED} of https://github.com/zalandoresearch/fashion-mnist"

    def _arrays(self, archive: pathlib.Path) -> dict[str, list[np.ndarray]]:
        arrays = {split: [_read(archive, file) for file in files] for split, files in _FASHION_FILES.items()}
        for split, (_, labels) in arrays.items():
            counts = np.bincount(labels, minlength=10)
            if len(counts) != 10 or (counts != len(labels) // 10).any():
                path = _find(archive, _FASHION_FILES[split][1].name)
                raise ValueError(
                    f"{path} is damaged or of another dataset with the same file names: Fashion-MNIST has "
                    f"{len(labels) // 10} of each of 10 labels, this file {counts.tolist()}"
                )
        return arrays


def _read(archive: pathlib.Path, file: _IdxFile) -> np.ndarray:
    """The uint8 array of one idx file; where its MD5 is known, it must be the published one to the byte."""
    path = _find(archive, file.name)
    content = _uncompressed(path)
    # Two zero bytes, 08 for uint8 and the rank; then the sizes, big-endian.
    header = bytes([0, 0, 8, len(file.shape)]) + np.asarray(file.shape, ">u4").tobytes()
    if content[:4] != header[:4]:
        raise ValueError(
            f"{path} starts with {content[:4].hex() or 'nothing'}, but an idx file of {len(file.shape)}-dimensional "
            f"uint8 data starts with {header[:4].hex()}"
        )
    if content[: len(header)] != header:
        sizes = np.frombuffer(content[4 : len(header)], ">u4").tolist() if len(content) >= len(header) else "no sizes"
        raise ValueError(f"{path} declares the sizes {sizes}, but {list(file.shape)} is wanted")
    if len(content) != len(header) + math.prod(file.shape):
        raise ValueError(f"{path} has {len(content)} bytes, but {len(header) + math.prod(file.shape)} are wanted")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != (file.md5 or md5):
        raise ValueError(
            f"{path} is damaged or of another dataset with the same file names: the MD5 of its uncompressed bytes "
            f"is {md5}, MNIST's is {file.md5}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(file.shape)


def _find(archive: pathlib.Path, name: str) -> pathlib.Path:
    for path in (archive / name, archive / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"neither {name}.gz nor {name} is in {archive}")


def _uncompressed(path: pathlib.Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error


_TRAIN = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
_TEST = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _spec(name: str, title: str, protocol: Protocol, **facts: Any) -> Spec:
    mnist: dict[str, Any] = {
        "stored_as": "mnist",
        "image_shape": (28, 28, 1),
        "mean": (0.1307,),
        "std": (0.3081,),
        "licence": "CC BY-SA 3.0",
        "gigabytes": 0.01,
        "class_names": tuple("0123456789"),
        "encoding": ".png",
    }
    return Spec(name=name, title=title, protocols={"classification": protocol}, **mnist | facts)


def _long_tail(number: int) -> Protocol:
    counts = np.array(long_tail.MNIST_LT[number])
    train = Part(("train",), counts, choose=specs.thinned(counts))
    description = f"{counts[0]:,} … {counts[-1]} training images by class (Table 8), the whole test set"
    return Protocol(description, {"train": train, "test": Part(("test",), _TEST)})


SPECS = (
    _spec(
        "mnist",
        "MNIST",
        Protocol("the published split", {"train": Part(("train",), _TRAIN), "test": Part(("test",), _TEST)}),
    ),
    _spec("mnist_lt_1", "MNIST-LT-1", _long_tail(1), long_tailed=True),
    _spec("mnist_lt_2", "MNIST-LT-2", _long_tail(2), long_tailed=True),
    _spec(
        "fashion_mnist",
        "Fashion-MNIST",
        Protocol(
            "the published split",
            {"train": Part(("train",), specs.alike(6000, 10)), "test": Part(("test",), specs.alike(1000, 10))},
        ),
        stored_as="fashion_mnist",
        mean=(0.286,),
        std=(0.353,),
        licence="MIT",
        gigabytes=0.03,
        class_names=_CLOTHES,
    ),
)
