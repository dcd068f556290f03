"""Images and labels of CIFAR-10 and CIFAR-100 from any of three forms: binary, Python pickles, strips of images.

The first two are the originals, https://www.cs.toronto.edu/~kriz/cifar.html, read also inside of their archives. A
strip ``train/CLASS_00.webp`` is a lossless image 32 pixels wide with the images of one class below each other.
"""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dsb_jax.data import images

_SIZE = 32
_PIXELS = 3 * _SIZE * _SIZE
_SPLITS = ("train", "test")


class Part(NamedTuple):
    """One split: images uint8 ``[n, 32, 32, 3]`` and labels uint8 ``[n]``."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Original:
    """One of the two published forms of a dataset.

    Attributes:
      archive: the file as it is downloaded.
      folder: the folder inside of it.
      files: of every split.
      names: the file of class names.
      md5: of the files of which it is published.
    """

    archive: str
    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    md5: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the files of a dataset must hold.

    Attributes:
      title: the dataset, for messages.
      class_names: in the order of the labels.
      coarse_names: of the superclasses; empty for CIFAR-10.
      coarse_labels: the superclass of each class.
      images_per_class: of every split.
      binary: the published binary version.
      python: the published version for Python.
    """

    title: str
    class_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    coarse_labels: tuple[int, ...]
    images_per_class: dict[str, int]
    binary: Original
    python: Original


_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_SUPERCLASS_OF = {name: superclass for superclass, names in enumerate(_SUPERCLASSES.values()) for name in names.split()}

CIFAR10 = Layout(
    title="CIFAR-10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    coarse_names=(),
    coarse_labels=(),
    images_per_class={"train": 5000, "test": 1000},
    binary=Original(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        files={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        names="batches.meta.txt",
        md5={},
    ),
    python=Original(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        names="batches.meta",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
)

CIFAR100 = Layout(
    title="CIFAR-100",
    class_names=tuple(sorted(_SUPERCLASS_OF)),
    coarse_names=tuple(_SUPERCLASSES),
    coarse_labels=tuple(_SUPERCLASS_OF[name] for name in sorted(_SUPERCLASS_OF)),
    images_per_class={"train": 500, "test": 100},
    binary=Original(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        names="fine_label_names.txt",
        md5={},
    ),
    python=Original(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        names="meta",
        md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
)


def wanted(layout: Layout) -> str:
    """What the folder of an archive may hold, for messages.

    Example:
      >>> wanted(CIFAR10)[:72]
      'the folder of cifar-10-binary.tar.gz or cifar-10-python.tar.gz, of their'
    """
    return (
        f"the folder of {layout.binary.archive} or {layout.python.archive}, of their files, "
        "or of train|test/CLASS_00.webp …; the archives are of https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def read(archive: pathlib.Path, layout: Layout) -> dict[str, Part]:
    """All images and labels of a dataset; which form they are in is seen from the names of the files.

    Originals must be complete. Of strips every one is taken that is there, at least one for each class.

    Raises:
      FileNotFoundError: a file that is missing, or none of a known form.
      ValueError: a file that is truncated, damaged or of another dataset.
    """
    if any((archive / split).is_dir() for split in _SPLITS):
        return {split: _read_strips(archive / split, layout) for split in _SPLITS}
    for original, parse in ((layout.binary, _parse_binary), (layout.python, _parse_pickle)):
        if (files := _files(archive, original)) is not None:
            return _read_original(files, original, parse, layout)
    raise FileNotFoundError(f"no files of {layout.title} are in {archive}")


class _File(NamedTuple):
    where: str
    content: bytes


def _files(archive: pathlib.Path, original: Original) -> dict[str, _File] | None:
    """The files of one published form, in the folder, in the one inside of it, or in the archive; None without any."""
    required = [name for names in original.files.values() for name in names]
    for folder in (archive, archive / original.folder):
        if any((folder / name).is_file() for name in required):
            paths = {name: folder / name for name in (*required, original.names) if (folder / name).is_file()}
            where, files = str(folder), {name: _File(str(path), path.read_bytes()) for name, path in paths.items()}
            break
    else:
        path = archive / original.archive
        if not path.is_file():
            return None
        where, files = str(path), _members(path, {*required, original.names})
    for name in required:
        if name not in files:
            raise FileNotFoundError(f"{name} is not in {where}")
    return files


def _members(path: pathlib.Path, names: set[str]) -> dict[str, _File]:
    """Some files of a ``.tar.gz``, read to its end, where its checksum is."""
    files = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream) as tar:
                for member in tar:
                    name = pathlib.PurePosixPath(member.name).name
                    if name in names and member.isfile() and (content := tar.extractfile(member)):
                        files[name] = _File(f"{path}:{member.name}", content.read())
            while stream.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete .tar.gz file: {error}") from error
    return files


def _read_original(
    files: dict[str, _File], original: Original, parse: Callable[[_File, Layout], Part], layout: Layout
) -> dict[str, Part]:
    for name, file in files.items():
        md5 = hashlib.md5(file.content, usedforsecurity=False).hexdigest()
        if md5 != original.md5.get(name, md5):
            raise ValueError(f"{file.where} is damaged: its MD5 is {md5}, {layout.title}'s is {original.md5[name]}")
    _check_names(files, original, layout)
    parts = {}
    for split, names in original.files.items():
        of_files = [parse(files[name], layout) for name in names]
        parts[split] = Part(*(np.concatenate(arrays) for arrays in zip(*of_files, strict=True)))
        counts = np.bincount(parts[split].labels, minlength=len(layout.class_names))
        if (wrong := np.flatnonzero(counts != layout.images_per_class[split])).size:
            raise ValueError(
                f"{', '.join(files[name].where for name in names)}: {counts[wrong[0]]} images of class "
                f"{layout.class_names[wrong[0]]}, but {layout.title} has {layout.images_per_class[split]}"
            )
    return parts


def _check_names(files: dict[str, _File], original: Original, layout: Layout) -> None:
    """The class names that come with the labels, where they do, must be the known ones."""
    if original.names not in files:
        return
    file = files[original.names]
    if original is layout.binary:
        names = file.content.decode(errors="replace").split()
    else:
        table = _unpickle(file)
        names = _entry(table, "fine_label_names" if layout.coarse_names else "label_names", file, list)
    if tuple(names) != layout.class_names:
        raise ValueError(f"{file.where} names other classes than {layout.title}'s: {', '.join(map(str, names))[:100]}")


def _parse_binary(file: _File, layout: Layout) -> Part:
    """Rows of one or two labels, the last one being the class, and three planes of pixels."""
    labels = 2 if layout.coarse_names else 1
    row = labels + _PIXELS
    if not file.content or len(file.content) % row:
        raise ValueError(f"{file.where} has {len(file.content)} bytes, which is no multiple of {row}, one image")
    table = np.frombuffer(file.content, np.uint8).reshape(-1, row)
    part = _part(table[:, labels:], table[:, labels - 1], file, layout)
    if layout.coarse_names:
        wrong = np.flatnonzero(table[:, 0] != np.asarray(layout.coarse_labels)[part.labels])
        if wrong.size:
            raise ValueError(
                f"{file.where} is damaged: image {wrong[0]} is of class {layout.class_names[part.labels[wrong[0]]]} "
                f"and superclass {table[wrong[0], 0]}"
            )
    return part


def _parse_pickle(file: _File, layout: Layout) -> Part:
    """A dictionary of the pixels, three planes in a row, and a list of labels."""
    table = _unpickle(file)
    pixels = _entry(table, "data", file, np.ndarray)
    labels = _entry(table, "fine_labels" if layout.coarse_names else "labels", file, list)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise ValueError(
            f"{file.where}: data must be uint8 [{len(labels)}, {_PIXELS}], got {pixels.dtype} {list(pixels.shape)}"
        )
    if not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{file.where}: labels must be integers")
    return _part(pixels, np.asarray(labels, np.int64), file, layout)


def _part(pixels: np.ndarray, labels: np.ndarray, file: _File, layout: Layout) -> Part:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(layout.class_names)))
    if wrong.size:
        raise ValueError(
            f"{file.where}: labels must lie in [0, {len(layout.class_names)}), "
            f"got {labels[wrong[0]]} of image {wrong[0]}"
        )
    return Part(pixels.reshape(-1, 3, _SIZE, _SIZE).transpose(0, 2, 3, 1), labels.astype(np.uint8))


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and whatever else pickles can hold without calling anything."""

    _ARRAYS = {  # noqa: RUF012  (a constant)
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR's files do not")
        return self._ARRAYS[module, name]


def _unpickle(file: _File) -> Any:
    try:
        # Written by Python 2: its strings are bytes, and latin1 keeps them.
        return _Unpickler(io.BytesIO(file.content), encoding="latin1").load()
    except Exception as error:  # of damaged pickles nearly any
        raise ValueError(f"{file.where} is no pickle of CIFAR's: {error or type(error).__name__}") from error


def _entry(table: Any, key: str, file: _File, kind: type) -> Any:
    if not isinstance(table, dict) or not isinstance(table.get(key), kind):
        raise ValueError(f"{file.where} must hold a dictionary with {key!r}, a {kind.__name__}")
    return table[key]


def _read_strips(folder: pathlib.Path, layout: Layout) -> Part:
    """Class after class, the strips ``CLASS_00.webp``, ``CLASS_01.webp`` … of a folder."""
    found = sorted(path.name for path in folder.glob("*.webp"))
    for name in found:
        match = re.fullmatch(r"(.+)_\d\d\.webp", name)
        if match is None or match[1] not in layout.class_names:
            raise ValueError(f"{folder / name} is no strip of a class of {layout.title}")
    parts = []
    for label, class_name in enumerate(layout.class_names):
        of_class = [name for name in found if name[: -len("_00.webp")] == class_name]
        for number in range(max(len(of_class), 1)):
            path = folder / f"{class_name}_{number:02d}.webp"
            if path.name not in of_class:
                raise FileNotFoundError(f"{path} is missing")
            strip = _decode_strip(path)
            parts.append(Part(strip, np.full(len(strip), label, np.uint8)))
    return Part(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _decode_strip(path: pathlib.Path) -> np.ndarray:
    try:
        strip = images.decode(path.read_bytes(), (None, _SIZE, 3))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(strip) % _SIZE:
        raise ValueError(f"{path}: its height {len(strip)} is no multiple of {_SIZE}")
    return strip.reshape(-1, _SIZE, _SIZE, 3)
