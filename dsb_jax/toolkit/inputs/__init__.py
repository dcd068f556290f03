"""What the toolkit measures: files, folders, datasets and runs, all of them as rows with classes.

===================================  ================================  =============================================
input                                rows are                          read by
===================================  ================================  =============================================
a dataset of ``dsb_jax.data``        its images, or their features     :mod:`~dsb_jax.toolkit.inputs.datasets`
a folder of CLASS/IMAGE              likewise                          :mod:`~dsb_jax.toolkit.inputs.pixels`
the workdir of a run                 features by its model             :mod:`~dsb_jax.toolkit.inputs.run_features`
``.npz``, ``.npy``, ``.parquet``     embeddings, or images             :mod:`~dsb_jax.toolkit.inputs.files`
``.ply``, ``.obj``, ``.xyz``         points of a cloud                 the same
boxes in COCO's format               objects cut out of images         :mod:`~dsb_jax.toolkit.inputs.boxes`
===================================  ================================  =============================================
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from dsb_jax import data, validation
from dsb_jax.toolkit.inputs import boxes as coco_boxes
from dsb_jax.toolkit.inputs import datasets, files, pixels, run_features
from dsb_jax.toolkit.inputs.files import Rows
from dsb_jax.toolkit.points import Points

SPACES = ("feature", "sample")


@dataclasses.dataclass(frozen=True)
class Options:
    """How an input is to be read; what does not concern it must be left as it is.

    Attributes:
      space: ``"sample"`` for images as vectors of pixels, ``"feature"`` for features; by default sample for images
        that no model is given for, and otherwise feature.
      split: of a dataset or a run.
      protocol: how a dataset is divided.
      data_dir: the folder of TFDS's datasets.
      features: the array or column of embeddings in a file.
      labels: likewise of labels, or the file that has them.
      model: with ``weights``, what makes features of images: one of :func:`dsb_jax.models.names`.
      weights: a ``.safetensors`` file of PyTorch's.
      images: the folder of the images that an input in COCO's format has boxes of.
      min_side: pixels that the shorter side of a box must have.
      image_size: side to which images in sample space are brought.
      dim: channels to which rows are pooled.
    """

    space: str | None = None
    split: str = "train"
    protocol: str | None = None
    data_dir: str | None = None
    features: str | None = None
    labels: str | None = None
    model: str | None = None
    weights: str | None = None
    images: str | None = None
    min_side: int = 8
    image_size: int = 16
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.space is not None and self.space not in SPACES:
            raise validation.unknown_name("space", self.space, SPACES)
        if (self.model is None) != (self.weights is None):
            given, lacking = ("model", "weights") if self.weights is None else ("weights", "model")
            raise ValueError(f"{given}={getattr(self, given)!r} needs {lacking} too")
        if self.space == "sample" and self.model is not None:
            raise ValueError(f"space='sample' is of images themselves, got model={self.model!r}")
        validation.positive_int("image_size", self.image_size)
        validation.positive_int("min_side", self.min_side)
        if self.dim is not None:
            validation.positive_int("dim", self.dim)


OPTIONS = tuple(field.name for field in dataclasses.fields(Options))


def rows(
    name: str | os.PathLike[str],
    options: Options | None = None,
    *,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Rows:
    """An input by its name.

    Args:
      name: what is there is taken first: the workdir of a run, a folder of files, a folder of CLASS/IMAGE, a file, a
        pattern of files; then the name of a dataset.
      options: how it is read.
      progress: ``(iterable, total) -> iterable``, through which passes what has to be read beforehand.

    Raises:
      ValueError: there is no such input, it is damaged, or an option is wrong or not for it.
      FileNotFoundError: a dataset that is not prepared; the message is the command that prepares it.

    Example:
      >>> rows("digits", Options(split="test")).samples
      400
    """
    name, options = os.fspath(name), options or Options()
    path = pathlib.Path(name)
    _require_for(name, path, options)
    if path.suffix.lower() == ".json" and options.images is None:
        raise ValueError(f"{name}: boxes in COCO's format need images, the folder of the images that they are of")
    if options.images is not None:
        found = coco_boxes.rows(name, options.images, image_size=options.image_size, min_side=options.min_side)
        space = "sample"
    elif (path / "config.json").is_file():
        found, space = _of_run(path, options, progress)
    elif _is_of_files(name, path):
        found = files.rows(
            name, features=options.features, labels=options.labels, image_size=options.image_size, progress=progress
        )
        space = found.space
    elif path.is_dir():
        found, space = _of_folder(path, options)
    else:
        found, space = _of_dataset(name, options)
    require_space(name, options, space)
    if space == "feature" and options.image_size != Options.image_size:
        raise ValueError(
            f"{name} is measured in feature space, for which image_size has no effect, got {options.image_size}"
        )
    return found if options.dim is None else found.pooled(options.dim)


def require_files(name: str, options: Options) -> None:
    """Raises ValueError for an input that is not files of rows, or an option that would have no effect on them."""
    path = pathlib.Path(name)
    if options.images is not None or (path / "config.json").is_file() or not _is_of_files(name, path):
        raise ValueError(f"{name} must be files of rows, such as a folder of .parquet files, or a pattern of them")
    _require_for(name, path, options)


def require_space(name: str, options: Options, space: str) -> None:
    """Raises ValueError where rows are of another space than the options say."""
    if options.space is not None and options.space != space:
        raise ValueError(_no_such_space(name, options.space, space))


def paths(of: Rows) -> list[str] | None:
    """The file of each row, where rows are image files; of a part of an image its box follows, in COCO's order."""
    found: list[str] = []
    for part in of.parts:
        inner = part.part if isinstance(part, files.Pooled) else part
        if isinstance(inner, pixels.Pictures):
            found += [path for picture in inner.pictures for path in picture.row_paths()]
        elif isinstance(inner, datasets.Batched):
            found += inner.files
    return found or None


def held(points: Points) -> Rows:
    """Points in memory as rows.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> [block.shape for block, _ in held(points.of(np.eye(3))).blocks(2)]
      [(2, 3), (1, 3)]
    """
    part = _Held(points.name, points)
    return Rows(points.name, points.space, points.class_names, len(points.labels), points.points.shape[1], (part,))


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    path: str
    points: Points

    @property
    def row_bytes(self) -> int:
        return self.points.points.shape[1] * self.points.points.itemsize

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.points.labels), size):
            yield self.points.points[start : start + size], self.points.labels[start : start + size]


def _is_of_files(name: str, path: pathlib.Path) -> bool:
    if path.is_dir():
        inside = [path, *(entry for entry in path.iterdir() if entry.is_dir())]
        return any(entry.suffix.lower() in files.SUFFIXES for folder in inside for entry in folder.iterdir())
    return path.is_file() or "://" in name or any(sign in name for sign in "*?[") or path.suffix in files.SUFFIXES


def _require_for(name: str, path: pathlib.Path, options: Options) -> None:
    """Raises ValueError for an option that would have no effect."""
    if options.images is not None:
        kind, takes = "boxes in COCO's format", {"images", "min_side", "image_size"}
    elif (path / "config.json").is_file():
        kind, takes = "a run", {"split", "data_dir", "image_size"}
    elif _is_of_files(name, path):
        kind, takes = "a file of rows" if path.is_file() else "files of rows", {"features", "labels", "image_size"}
    elif path.is_dir():
        kind, takes = "a folder of CLASS/IMAGE", {"model", "weights", "image_size"}
    else:
        kind, takes = "a dataset", {"split", "protocol", "data_dir", "model", "weights", "image_size"}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in takes | {"space", "dim"}:
            raise ValueError(f"{name} is {kind}, for which {field.name} has no effect, got {value!r}")


def _of_run(path: pathlib.Path, options: Options, progress: Any) -> tuple[Rows, str]:
    run = run_features.load(path, split=options.split, data_dir=options.data_dir)
    if options.space == "sample":
        return datasets.in_sample_space(run.split, run.rows, image_size=options.image_size), "sample"
    return held(run.points(progress=progress)), "feature"


def _of_folder(path: pathlib.Path, options: Options) -> tuple[Rows, str]:
    if options.model is None or options.weights is None:
        return pixels.folder_rows(path, options.image_size), "sample"
    return datasets.folder_features(path, options.model, options.weights), "feature"


def _of_dataset(name: str, options: Options) -> tuple[Rows, str]:
    try:
        data.spec(name)
    except ValueError as error:
        raise ValueError(f"there is no file or folder {name!r}, and {error}") from None
    chosen = {"protocol": options.protocol, "data_dir": options.data_dir}
    if options.model is None or options.weights is None:
        return datasets.samples(name, options.split, image_size=options.image_size, **chosen), "sample"
    return datasets.features(name, options.split, options.model, options.weights, **chosen), "feature"


def _no_such_space(name: str, wanted: str, space: str) -> str:
    if wanted == "feature":
        return f"{name} is measured in {space} space; for features of its images give a model and weights"
    return f"{name} has no images that could be measured in sample space"
