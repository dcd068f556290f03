"""Images of any size as points of sample space, and folders of them.

An image becomes a square of 16x16 pixels, whatever its shape, by what :func:`dsb_jax.pixel_features` does to images of
one size: a resize is linear in the columns of an image and in its rows, so that two matrices per shape are all of it.
Sides of more than four times as many pixels are brought to that first, by means over areas.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from dsb_jax import validation
from dsb_jax.data import images
from dsb_jax.data.builders import folder
from dsb_jax.toolkit.inputs.files import Rows

_MUCH_LARGER = 4
_THREADS = min(32, 2 * (os.cpu_count() or 1))
_NAMED = 20  # files that an error names


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file of which the image, or parts of it, are rows.

    Attributes:
      path: of the file.
      labels: of its rows.
      boxes: left, top, right and bottom in pixels of each row's part; None for one row of all of the image.
      shape: of the image, None where any will do.
    """

    path: str
    labels: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...] | None = None
    shape: tuple[int | None, int | None, int] = (None, None, 3)

    def row_paths(self) -> list[str]:
        """The path, once for each row; behind it, after a tab, left, top, width and height of the row's box.

        Example:
          >>> Picture("street.png", (0,), ((5, 10, 36, 30),)).row_paths()
          ['street.png\\t5,10,31,20']
        """
        if self.boxes is None:
            return [self.path] * len(self.labels)
        return [f"{self.path}\t{x},{y},{right - x},{bottom - y}" for x, y, right, bottom in self.boxes]


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Image files as a part of :class:`files.Rows`, in sample space; they are decoded on several threads.

    Files that cannot be used are looked for until the end, and then named all in one error.

    Attributes:
      path: of the folder that they are in.
      pictures: the files.
      image_size: see :func:`images_as_samples`.
    """

    path: str
    pictures: tuple[Picture, ...]
    image_size: int

    @property
    def row_bytes(self) -> int:
        return 4 * 3 * self.image_size**2

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        bad: list[str] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(self.pictures), size):
                pictures = self.pictures[start : start + size]
                found = list(pool.map(functools.partial(_points, image_size=self.image_size), pictures))
                bad += [text for text in found if isinstance(text, str)]
                good = [
                    (each, picture) for each, picture in zip(found, pictures, strict=True) if not isinstance(each, str)
                ]
                if good:
                    labels = np.concatenate([picture.labels for _, picture in good])
                    yield np.concatenate([each for each, _ in good]), labels.astype(np.int32)
        if bad:
            number = f"{len(bad):,} of {len(self.pictures):,} images"
            more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
            raise ValueError(f"{self.path}: {number} cannot be used: {'; '.join(bad[:_NAMED])}{more}")


def _points(picture: Picture, image_size: int) -> np.ndarray | str:
    """The rows of a file, or what is wrong with it."""
    try:
        encoded = pathlib.Path(picture.path).read_bytes()
        images.check(encoded)
        image = images.decode(encoded, picture.shape)
    except (ValueError, OSError) as error:
        return f"{picture.path}: {getattr(error, 'strerror', None) or error}"
    if picture.boxes is None:
        return images_as_samples([image], image_size)
    return images_as_samples((image[top:bottom, left:right] for left, top, right, bottom in picture.boxes), image_size)


def folder_rows(path: str | os.PathLike[str], image_size: int = 16) -> Rows:
    """The images of a folder of CLASS/IMAGE, or of those of its folder ``train``, as points of sample space.

    Args:
      path: of the folder; classes are in the order of their names.
      image_size: see :func:`images_as_samples`.

    Returns:
      A row for every image, read when blocks are.

    Raises:
      ValueError: there is no such folder, or a class has no images.

    Example:
      >>> for name, level in (("day", 250), ("night", 5)):
      ...     pathlib.Path("photos", name).mkdir(parents=True)
      ...     encoded = images.encode_png(np.full((20, 30), level, np.uint8))
      ...     _ = pathlib.Path("photos", name, "1.png").write_bytes(encoded)
      >>> photos = folder_rows("photos").load()
      >>> photos.class_names, photos.points.shape, photos.labels.tolist()
      (('day', 'night'), (2, 768), [0, 1])
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise ValueError(
            f"{path} must be a folder of CLASS/IMAGE, and there is {'a file' if path.exists() else 'nothing'}"
        )
    classes = folder.class_images(path)
    if not classes:
        raise ValueError(f"{path} must be a folder of CLASS/IMAGE, but has no folders")
    pictures = [Picture(str(file), (label,)) for label, paths in enumerate(classes.values()) for file in paths]
    return rows_of(pictures, tuple(classes), image_size, name=path.name or str(path), path=str(path))


def rows_of(
    pictures: Iterable[Picture], class_names: tuple[str, ...], image_size: int, *, name: str, path: str
) -> Rows:
    """Parts of images as rows; ``path`` is where they come from."""
    part = Pictures(path, tuple(pictures), validation.positive_int("image_size", image_size))
    samples = sum(len(picture.labels) for picture in part.pictures)
    return Rows(name, "sample", class_names, samples, 3 * image_size**2, (part,))


def images_as_samples(pictures: Iterable[np.ndarray], image_size: int = 16) -> np.ndarray:
    """Images of different sizes as points of sample space, see :func:`dsb_jax.pixel_features`.

    Args:
      pictures: m images, uint8 ``[height, width, 1 or 3]`` or grey ``[height, width]``.
      image_size: side of the square that they are resized to; what is not square is stretched.

    Returns:
      float32 ``[m, image_size²·3]`` in [0, 1], row by row, the channels of a pixel side by side.

    Raises:
      ValueError: an image of another shape or dtype.

    Example:
      >>> wide, high = np.full((8, 40, 3), 255, np.uint8), np.zeros((300, 50), np.uint8)
      >>> points = images_as_samples([wide, high])
      >>> points.shape, points.mean(axis=1).tolist()
      ((2, 768), [1.0, 0.0])

    Source: Algorithm 1 (Appendix E) of the paper, for images of one size.
    """
    validation.positive_int("image_size", image_size)
    squares = [_square(picture, image_size) for picture in pictures]
    return np.stack(squares) if squares else np.empty((0, 3 * image_size**2), np.float32)


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    image = picture[..., None] if picture.ndim == 2 else picture
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        wanted = "images must be uint8 [height, width] or [height, width, 1 or 3]"
        raise ValueError(f"{wanted}, got {picture.dtype} {list(picture.shape)}")
    height, width = (min(side, _MUCH_LARGER * size) for side in image.shape[:2])
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    rows = _resize(height, size) @ (image.astype(np.float32) / 255).reshape(height, -1)
    square = _resize(width, size) @ rows.reshape(size, width, -1)
    return np.broadcast_to(square, (size, size, 3)).reshape(-1)


@functools.cache
def _resize(length: int, size: int) -> np.ndarray:
    """The matrix ``[size, length]`` of JAX's antialiased bilinear resize of a column, float32.

    JAX would compile a program for each length, which takes longer than to resize a thousand images.
    """
    step = length / size
    centers = (np.arange(size) + 0.5) * step - 0.5
    weights = np.maximum(1 - np.abs(centers[:, None] - np.arange(length)) / max(step, 1), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
