"""What becomes of the bytes of an image: its size, and which part of it is seen."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dsb_jax import validation
from dsb_jax.data import images

RANDOM_CROPS = ("none", "shift", "resize")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How images are decoded.

    Attributes:
      shape: of what comes out, ``(height, width, channels)``.
      whole: the image of encoded bytes, the same each time; raises ValueError where they are none.
      crop: a part of it that a random generator ``rng`` decides; None where training sees the whole image too.
    """

    shape: tuple[int, int, int]
    whole: Callable[[bytes], np.ndarray]
    crop: Callable[..., np.ndarray] | None = None

    @property
    def random(self) -> bool:
        """Whether training sees another part of an image each time."""
        return self.crop is not None

    @classmethod
    def of(
        cls,
        name: str,
        stored_shape: tuple[int | None, int | None, int],
        *,
        image_size: int | None = None,
        shorter_side: int | None = None,
        random_crop: str = "none",
        crop_scale: tuple[float, float] = (0.08, 1.0),
    ) -> "Decoding":
        """The decoding that settings ask for; see :func:`dsb_jax.data.load`.

        Args:
          name: of the dataset, for messages.
          stored_shape: of its images, None where they differ.
          image_size, shorter_side, random_crop, crop_scale: as for ``data.load``.

        Raises:
          ValueError: a setting out of range, or that makes no sense beside another.

        Example:
          >>> Decoding.of("photos", (None, None, 3), image_size=224, shorter_side=256, random_crop="resize").shape
          (224, 224, 3)
        """
        if random_crop not in RANDOM_CROPS:
            raise validation.unknown_name("random_crop", random_crop, RANDOM_CROPS)
        if image_size is None:
            for argument, value, unset in (("shorter_side", shorter_side, None), ("random_crop", random_crop, "none")):
                if value != unset:
                    raise ValueError(f"{argument}={value} needs an image_size")
            height, width, channels = stored_shape
            if height is None or width is None:
                raise ValueError(
                    f"{name} has images of any size: set image_size, the height and width to bring them to"
                )
            shape = (height, width, channels)
            return cls(shape, functools.partial(images.decode, shape=shape))
        size: dict[str, Any] = {"size": validation.positive_int("image_size", image_size), "channels": stored_shape[-1]}
        scaled = size | {"shorter_side": _shorter_side(shorter_side, image_size)}
        crops: dict[str, Callable[..., np.ndarray] | None] = {
            "none": None,
            "shift": functools.partial(images.decode_random_crop, **scaled),
            "resize": functools.partial(images.decode_random_resized_crop, **size, scale=_scale(crop_scale)),
        }
        shape = (image_size, image_size, stored_shape[-1])
        return cls(shape, functools.partial(images.decode_square, **scaled), crops[random_crop])


def _shorter_side(shorter_side, image_size):
    if shorter_side is None:
        return image_size
    validation.positive_int("shorter_side", shorter_side)
    if shorter_side < image_size:
        raise ValueError(f"shorter_side must be at least image_size = {image_size}, got {shorter_side}")
    return shorter_side


def _scale(crop_scale):
    scale = tuple(float(bound) for bound in crop_scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"crop_scale must be two numbers, 0 < smallest <= largest <= 1, got {tuple(crop_scale)}")
    return scale
