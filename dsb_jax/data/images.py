"""Encoded bytes to images and back, by OpenCV."""

import cv2
import numpy as np

# Batches are decoded on several threads already; OpenCV's own would only compete with them.
cv2.setNumThreads(1)


def encode_png(image: np.ndarray) -> bytes:
    """The PNG bytes of a grey uint8 image ``[height, width]``.

    Example:
      >>> encode_png(np.zeros((8, 8), np.uint8))[1:4]
      b'PNG'
    """
    return cv2.imencode(".png", image)[1].tobytes()


def decode(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The image in PNG or JPEG bytes, as uint8 ``[height, width, channels]``.

    Args:
      encoded: what the file holds. A rotation noted in it is not applied, as in TFDS.
      shape: the shape wanted; one channel decodes to grey, three to RGB.

    Returns:
      The image, uint8 of ``shape``.

    Raises:
      ValueError: the bytes are no complete image, or it has another shape.

    Example:
      >>> decode(encode_png(np.eye(3, dtype=np.uint8)), (3, 3, 1))[..., 0].tolist()
      [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    grey = shape[-1] == 1
    flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # how it answers no bytes at all; damaged ones give None
        image = None
    if image is None:
        raise ValueError(f"its image does not decode ({len(encoded)} bytes)")
    image = image[..., None] if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if image.shape != tuple(shape):
        raise ValueError(f"its image has shape {image.shape}, but {tuple(shape)} is wanted")
    return image
