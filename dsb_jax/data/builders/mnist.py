"""MNIST from its four idx files on disk, in the layout of the stock TFDS builder."""

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

from dsb_jax.data import images


class _IdxFile(NamedTuple):
    """One file of the archive: name without ``.gz``, shape, and MD5 of the uncompressed bytes as published."""

    name: str
    shape: tuple[int, ...]
    md5: str


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


class Mnist(tfds.image_classification.MNIST, skip_registration=True):
    """Name, version, features and order of examples are those of TFDS, so either one's files serve the other."""

    name = "mnist"
    url_infos = None  # see builders/__init__.py
    MANUAL_DOWNLOAD_INSTRUCTIONS = "the folder of " + ", ".join(
        f"{file.name}[.gz]" for files in _FILES.values() for file in files
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        # All four files are read and checked before the first record is written.
        arrays = {
            split: [_read(pathlib.Path(dl_manager.manual_dir), file) for file in files]
            for split, files in _FILES.items()
        }
        return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

    def _generate_examples(self, digits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (digit, label) in enumerate(zip(digits, labels.tolist(), strict=True)):
            yield row, {"image": io.BytesIO(images.encode_png(digit)), "label": label}


def _read(archive: pathlib.Path, file: _IdxFile) -> np.ndarray:
    """The uint8 array of one idx file, which must be the published one to the byte."""
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
        raise ValueError(f"{path} declares the sizes {sizes}, but MNIST's are {list(file.shape)}")
    if len(content) != len(header) + math.prod(file.shape):
        raise ValueError(f"{path} has {len(content)} bytes, but {len(header) + math.prod(file.shape)} are wanted")
    if (md5 := hashlib.md5(content, usedforsecurity=False).hexdigest()) != file.md5:
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
