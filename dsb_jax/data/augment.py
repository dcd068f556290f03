"""Stronger augmentation of whole batches on the device: colour jitter and RandAugment."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dsb_jax import validation

# Of `rand_augment`; each is drawn by its position.
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "posterize",
    "contrast",
    "brightness",
    "color",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)

_LEVELS = 256
_UNCOVERED = 128  # the grey of pixels that a warp moves in from outside
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of Pillow and torchvision

# `strongest -> value`: of the operation `name`, signed, for the images that drew it, and zero for all others.
_Amount = Callable[[str, float], jax.Array]


def color_jitter(
    images: jax.Array, rng: jax.Array, *, brightness: float, contrast: float, saturation: float
) -> jax.Array:
    """Every image by itself made darker or brighter, then flatter or harder, then paler or more colourful.

    Each of the three takes pixels x to b + f·(x − b), clipped to [0, 255], with a factor f uniform in
    [max(0, 1 − s), 1 + s] for the strength s. The base b is black for brightness, the mean of the grey image for
    contrast, and the grey image for saturation. Where torchvision draws an order, the order here is always this one;
    where it truncates after each, the result here is rounded once.

    Args:
      images: uint8 ``[batch, height, width, channels]``, of 1 or 3 channels.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      brightness: its strength, not negative; 0 leaves it as it is.
      contrast: likewise.
      saturation: likewise; of no effect on images of 1 channel.

    Returns:
      uint8, of the shape of ``images``.

    Raises:
      ValueError: images of another rank, dtype or number of channels, or a strength that is negative or not finite.

    Example:
      >>> images = jnp.full((2, 4, 4, 3), 200, jnp.uint8)
      >>> darker = color_jitter(images, jax.random.key(0), brightness=0.4, contrast=0.4, saturation=0.2)
      >>> darker.shape, darker.dtype
      ((2, 4, 4, 3), dtype('uint8'))

    Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, 2012; ``ColorJitter`` of
    torchvision.
    """
    _check_images(images)
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    strengths = [validation.at_least(name, value, 0) for name, value in given.items()]
    if not any(strengths):
        return images
    drawn = jax.random.uniform(rng, (3, len(images), 1, 1, 1))
    lowest = [max(0.0, 1 - strength) for strength in strengths]
    brighter, harder, purer = (
        low + (1 + strength - low) * uniform for low, strength, uniform in zip(lowest, strengths, drawn, strict=True)
    )
    pixels = _blend(images.astype(jnp.float32), 0.0, brighter)
    pixels = _blend(pixels, _mean_grey(pixels), harder)
    pixels = _blend(pixels, _grey(pixels), purer)
    return _rounded(pixels)


def rand_augment(images: jax.Array, rng: jax.Array, *, layers: int, magnitude: float) -> jax.Array:
    """RandAugment: ``layers`` times one of 14 operations on every image, drawn uniformly and for each image by itself.

    With m = ``magnitude`` / 10, and ± a fair coin for each image and layer:

    ===================================  ================================================
    identity, autocontrast, equalize     as in Pillow, whatever m
    rotate                               by ±30°·m about the centre
    shear_x, shear_y                     by ±0.3·m from the top left corner
    translate_x, translate_y             by ±0.45·m of the width or height
    contrast, brightness, color,         Pillow's ``ImageEnhance`` with a factor 1 ± 0.9·m
    sharpness
    solarize                             inverts levels from 256·(1 − m) up
    posterize                            keeps 8 − 4·m bits, rounded to a whole number
    ===================================  ================================================

    The ranges are those of AutoAugment, Table 6. As in torchvision and unlike in the code of TensorFlow, solarize,
    posterize and the enhancers, too, do more at a greater magnitude, and nothing at 0. Warps take the nearest pixel,
    and grey 128 where there is none.

    One layer is a warp, a look-up of levels and two blends of the whole batch, with parameters that change nothing for
    the images that drew something else: a ``lax.switch`` under ``vmap`` would do all 14 operations for all images.

    Args:
      images: uint8 ``[batch, height, width, channels]``, of 1 or 3 channels.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      layers: how many operations, not negative; 0 leaves the images as they are.
      magnitude: of all operations, in [0, 10].

    Returns:
      uint8, of the shape of ``images``.

    Raises:
      ValueError: images of another rank, dtype or number of channels, layers or a magnitude out of range.

    Example:
      >>> images = jnp.full((2, 4, 4, 1), 200, jnp.uint8)
      >>> rand_augment(images, jax.random.key(0), layers=2, magnitude=9).shape
      (2, 4, 4, 1)

    Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2020; ranges of Cubuk
    et al., AutoAugment: Learning Augmentation Strategies from Data, 2019.
    """
    _check_images(images)
    validation.integer("layers", layers, lowest=0)
    strength = validation.at_least("magnitude", magnitude, 0) / 10
    if strength > 1:
        raise ValueError(f"magnitude must be at most 10, got {magnitude!r}")
    operations, signs = _draw(rng, layers, len(images))
    for operation, sign in zip(operations, signs, strict=True):
        images = _layer(images, operation, sign, strength)
    return images


def _draw(rng, layers, batch):
    """For every layer and image a position in ``OPERATIONS``, and ±1."""
    operation_rng, sign_rng = jax.random.split(rng)
    operations = jax.random.randint(operation_rng, (layers, batch), 0, len(OPERATIONS))
    return operations, jax.random.rademacher(sign_rng, (layers, batch), jnp.float32)


def _layer(images, operation, sign, strength):
    """One operation on each image: ``operation`` and ``sign`` are ``[batch]``, ``strength`` is in [0, 1]."""

    def amount(name, strongest):
        return jnp.where(operation == OPERATIONS.index(name), strongest * strength * sign, 0.0)

    def factor(*names):
        return 1 + sum(amount(name, 0.9) for name in names).reshape(-1, 1, 1, 1)

    images = _warp(images, *_affine(amount, *images.shape[1:3]))
    images = _look_up(images, _tables(images, operation, factor("brightness", "contrast"), strength))
    images = _rounded(_blend(images.astype(jnp.float32), _grey(images), factor("color")))
    return _rounded(_blend(images.astype(jnp.float32), _smoothed(images), factor("sharpness")))


def _affine(amount: _Amount, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """``(a, b, c)`` and ``(d, e, f)``, each ``[batch]``: an output at x, y comes from a·x + b·y + c, d·x + e·y + f."""
    angle = amount("rotate", math.radians(30))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return (
        (cos, amount("shear_x", 0.3) - sin, amount("translate_x", 0.45 * width) + x - cos * x + sin * y),
        (amount("shear_y", 0.3) + sin, cos, amount("translate_y", 0.45 * height) + y - sin * x - cos * y),
    )


def _warp(images, to_x, to_y):
    """The nearest pixels; x and y are of their centres, so that of the first one is 0.5, 0.5."""
    _, height, width, _ = images.shape
    x = jnp.arange(width, dtype=jnp.float32).reshape(1, 1, -1) + 0.5
    y = jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1) + 0.5

    def source(by_x, by_y, shift):
        by_x, by_y, shift = (value.reshape(-1, 1, 1) for value in (by_x, by_y, shift))
        return jnp.floor(by_x * x + by_y * y + shift).astype(jnp.int32)

    def pixels(image, row, column):
        return image.at[row, column].get(mode="fill", fill_value=_UNCOVERED, wrap_negative_indices=False)

    return jax.vmap(pixels)(images, source(*to_y), source(*to_x))


def _tables(images, operation, factor, strength):
    """What becomes of every level, for each image and channel: uint8 ``[batch, 256, channels]``."""
    levels = jnp.arange(_LEVELS).reshape(1, -1, 1)

    def drawn(name):
        return (operation == OPERATIONS.index(name)).reshape(-1, 1, 1)

    base = jnp.where(drawn("contrast"), _mean_grey(images).reshape(-1, 1, 1), 0.0)
    bits = 8 - round(4 * strength)
    choices = {
        "autocontrast": _autocontrast(images, levels),
        "equalize": _equalize(images, levels),
        "solarize": jnp.where(levels < math.ceil(_LEVELS * (1 - strength)), levels, 255 - levels),
        "posterize": levels >> (8 - bits) << (8 - bits),
    }
    enhanced = _rounded(_blend(levels.astype(jnp.float32), base, factor.reshape(-1, 1, 1)))
    tables = [jnp.clip(table, 0, 255).astype(jnp.uint8) for table in choices.values()]
    return jnp.select([drawn(name) for name in choices], tables, enhanced)


def _autocontrast(images, levels):
    """The darkest level of a channel becomes 0, the brightest 255."""
    low, high = (bound[:, None].astype(jnp.int32) for bound in (images.min((1, 2)), images.max((1, 2))))
    return jnp.where(high > low, (levels - low) * 255 // jnp.maximum(high - low, 1), levels)


def _equalize(images, levels):
    """A level becomes the share of the pixels below it, with the rounding of Pillow."""
    batch, height, width, channels = images.shape
    pixels = images.reshape(batch, height * width, channels).astype(jnp.int32)
    count = jax.vmap(lambda channel: jnp.zeros(_LEVELS, jnp.int32).at[channel].add(1), in_axes=-1, out_axes=-1)
    counts = jax.vmap(count)(pixels)
    below = jnp.cumsum(counts, axis=1) - counts
    brightest = jnp.take_along_axis(counts, pixels.max(axis=1, keepdims=True), axis=1)
    step = (height * width - brightest) // 255
    return jnp.where(step > 0, (below + step // 2) // jnp.maximum(step, 1), levels)


def _look_up(images, tables):
    batch, height, width, channels = images.shape
    pixels = images.reshape(batch, height * width, channels).astype(jnp.int32)
    return jnp.take_along_axis(tables, pixels, axis=1).reshape(images.shape)


def _smoothed(images):
    """Mean of the 3×3 pixels around, the middle one counting five times; the border stays as it is."""
    _, height, width, _ = images.shape
    pixels = images.astype(jnp.float32)
    rows = pixels + jnp.roll(pixels, 1, axis=1) + jnp.roll(pixels, -1, axis=1)
    box = rows + jnp.roll(rows, 1, axis=2) + jnp.roll(rows, -1, axis=2)
    row, column = jnp.arange(height).reshape(1, -1, 1, 1), jnp.arange(width).reshape(1, 1, -1, 1)
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(border, pixels, (box + 4 * pixels) / 13)


def _grey(images):
    """float32 ``[batch, height, width, 1]``."""
    pixels = images.astype(jnp.float32)
    return pixels if images.shape[-1] == 1 else pixels @ jnp.array(_LUMA).reshape(3, 1)


def _mean_grey(images):
    return _grey(images).mean(axis=(1, 2, 3), keepdims=True)


def _blend(pixels, base, factor):
    return jnp.clip(base + factor * (pixels - base), 0, 255)


def _rounded(pixels):
    return jnp.round(pixels).astype(jnp.uint8)


def _check_images(images):
    if jnp.ndim(images) != 4 or images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [batch, height, width, 1 or 3], got {images.dtype} {list(jnp.shape(images))}"
        )
