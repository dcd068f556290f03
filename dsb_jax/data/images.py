"""Encoded bytes to images and back, by OpenCV."""

import cv2
import numpy as np

# Batches are decoded on several threads already; OpenCV's own would only compete with them.
cv2.setNumThreads(1)
# What is wrong with an image is raised here, and need not be printed too.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def encode_png(image: np.ndarray) -> bytes:
    """The PNG bytes of a uint8 image, grey ``[height, width]`` or RGB ``[height, width, 3]``.

    Example:
      >>> encode_png(np.zeros((8, 8), np.uint8))[1:4]
      b'PNG'
    """
    return cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def decode(encoded: bytes, shape: tuple[int | None, int | None, int]) -> np.ndarray:
    """The image in the bytes of a file, as uint8 ``[height, width, channels]``.

    Args:
      encoded: what the file holds, in any format of OpenCV. A rotation noted in it is not applied, as in TFDS.
      shape: the shape wanted, None where any will do; one channel decodes to grey, three to RGB.

    Returns:
      The image, uint8 of ``shape``.

    Raises:
      ValueError: the bytes are no complete image, or it has another shape.

    Example:
      >>> decode(encode_png(np.eye(3, dtype=np.uint8)), (3, 3, 1))[..., 0].tolist()
      [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    image = _decode(encoded, shape[-1], cv2.IMREAD_IGNORE_ORIENTATION)
    if any(want not in (None, size) for want, size in zip(shape, image.shape, strict=True)):
        raise ValueError(f"its image has shape {image.shape}, but {tuple(shape)} is wanted")
    return image


def decode_square(encoded: bytes, size: int, channels: int) -> np.ndarray:
    """The image in the bytes of a file, brought to ``[size, size, channels]``.

    It is turned upright as its EXIF data say, scaled until the shorter side has ``size`` pixels (by the mean over areas
    where it shrinks, bilinearly where it grows), and cropped in the middle of the longer side. An alpha channel is
    dropped.

    Args:
      encoded: what the file holds, in any format of OpenCV.
      size: height and width wanted.
      channels: 1 for grey, 3 for RGB.

    Returns:
      The image, uint8 ``[size, size, channels]``.

    Raises:
      ValueError: the bytes are no complete image.

    Example:
      >>> decode_square(encode_png(np.zeros((20, 30), np.uint8)), 10, 3).shape
      (10, 10, 3)
    """
    image = _decode(encoded, channels, 0)
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        wanted = max(round(width * scale), size), max(round(height * scale), size)
        image = cv2.resize(image, wanted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size].reshape(size, size, channels)


def _decode(encoded, channels, flags):
    colours = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), colours | flags)
    except cv2.error:  # how it answers no bytes at all; damaged ones give None
        image = None
    if image is None:
        raise ValueError(f"its image does not decode ({len(encoded)} bytes)")
    return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
