"""Stronger augmentation of whole batches on the device: colour jitter and RandAugment."""

import math

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
    brighter, harder, purer = _draw_factors(rng, strengths, len(images))
    pixels = _blend(images.astype(jnp.float32), 0.0, brighter)
    pixels = _blend(pixels, _grey(pixels.mean(axis=(1, 2), keepdims=True)), harder)
    pixels = _blend(pixels, _grey(pixels), purer)
    return _rounded(pixels)


def _draw_factors(rng, strengths, batch):
    """For every strength and image a factor, ``[strengths, batch, 1, 1, 1]``."""
    strengths = jnp.array(strengths).reshape(-1, 1, 1, 1, 1)
    lowest = jnp.maximum(0, 1 - strengths)
    return lowest + (1 + strengths - lowest) * jax.random.uniform(rng, (len(strengths), batch, 1, 1, 1))


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

    def layer(images, drawn):
        return _layer(images, *drawn, strength), None

    return jax.lax.scan(layer, images, _draw(rng, layers, len(images)))[0]


def _draw(rng, layers, batch):
    """For every layer and image a position in ``OPERATIONS``, and ±1."""
    operation_rng, sign_rng = jax.random.split(rng)
    operations = jax.random.randint(operation_rng, (layers, batch), 0, len(OPERATIONS))
    return operations, jax.random.rademacher(sign_rng, (layers, batch), jnp.float32)


def _layer(images, operation, sign, strength):
    """One operation on each image: ``operation`` and ``sign`` are ``[batch]``, ``strength`` is in [0, 1]."""

    def drawn(name):
        return operation == OPERATIONS.index(name)

    def amount(name, strongest):
        return jnp.where(drawn(name), strongest * strength * sign, 0.0)

    def enhanced(images, base, name):
        factor = 1 + amount(name, 0.9).reshape(-1, 1, 1, 1)
        return _rounded(_blend(images.astype(jnp.float32), base, factor))

    images = _warp(images, *_affine(amount, *images.shape[1:3]))
    images = _look_up(images, _tables(_histograms(images), drawn, amount, strength))
    images = enhanced(images, _grey(images), "color")
    return enhanced(images, _smoothed(images), "sharpness")


def _affine(amount, height, width):
    """``(a, b, c)`` and ``(d, e, f)``: the pixel at x, y comes from a·x + b·y + c, d·x + e·y + f, each ``[batch]``."""
    angle = amount("rotate", math.radians(30))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2  # the centre
    return (
        (cos, amount("shear_x", 0.3) - sin, amount("translate_x", 0.45 * width) + x - cos * x + sin * y),
        (amount("shear_y", 0.3) + sin, cos, amount("translate_y", 0.45 * height) + y - sin * x - cos * y),
    )


def _warp(images, to_x, to_y):
    """The nearest pixels of the affine map; x and y are of their centres, those of the first one 0.5 and 0.5."""
    _, height, width, _ = images.shape
    x = jnp.arange(width, dtype=jnp.float32).reshape(1, 1, -1) + 0.5
    y = jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1) + 0.5

    def source(*coefficients):
        by_x, by_y, shift = (value.reshape(-1, 1, 1) for value in coefficients)
        return jnp.floor(by_x * x + by_y * y + shift).astype(jnp.int32)

    def pixels(image, row, column):
        return image.at[row, column].get(mode="fill", fill_value=_UNCOVERED, wrap_negative_indices=False)

    return jax.vmap(pixels)(images, source(*to_y), source(*to_x))


def _look_up(images, tables):
    levels = images.reshape(len(images), -1, images.shape[-1]).astype(jnp.int32)
    return jnp.take_along_axis(tables, levels, axis=1).reshape(images.shape)


def _histograms(images):
    """How many pixels of each image and channel have each level: int32 ``[batch, 256, channels]``."""
    batch, channels = len(images), images.shape[-1]
    bins = images.astype(jnp.int32) * channels + jnp.arange(channels).reshape(1, 1, 1, channels)
    count = jax.vmap(lambda bins: jnp.bincount(bins, length=_LEVELS * channels))
    return count(bins.reshape(batch, -1)).reshape(batch, _LEVELS, channels)


def _tables(counts, drawn, amount, strength):
    """What becomes of every level, for each image and channel: uint8 ``[batch, 256, channels]``."""
    levels = jnp.arange(_LEVELS).reshape(1, -1, 1)
    dropped = round(4 * strength)
    choices = {
        "autocontrast": _autocontrast(counts, levels),
        "equalize": _equalize(counts, levels),
        "solarize": jnp.where(levels < math.ceil(_LEVELS * (1 - strength)), levels, _LEVELS - 1 - levels),
        "posterize": levels >> dropped << dropped,
    }
    mean = (counts * levels).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    base = jnp.where(drawn("contrast").reshape(-1, 1, 1), _grey(mean), 0.0)
    factor = 1 + (amount("contrast", 0.9) + amount("brightness", 0.9)).reshape(-1, 1, 1)
    return jnp.select(
        [drawn(name).reshape(-1, 1, 1) for name in choices],
        [jnp.clip(table, 0, _LEVELS - 1).astype(jnp.uint8) for table in choices.values()],
        _rounded(_blend(levels.astype(jnp.float32), base, factor)),
    )


def _autocontrast(counts, levels):
    """The darkest level of a channel becomes 0, the brightest 255."""
    low = jnp.argmax(counts > 0, axis=1, keepdims=True)
    high = _LEVELS - 1 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    return jnp.where(high > low, (levels - low) * (_LEVELS - 1) // jnp.maximum(high - low, 1), levels)


def _equalize(counts, levels):
    """A level becomes the share of pixels below it, in the integers of Pillow."""
    below = jnp.cumsum(counts, axis=1) - counts
    below_brightest = jnp.where(counts > 0, below, 0).max(axis=1, keepdims=True)
    step = below_brightest // (_LEVELS - 1)
    return jnp.where(step > 0, (below + step // 2) // jnp.maximum(step, 1), levels)


def _smoothed(images):
    """Means of 3×3 pixels, the middle one counting five times; the border stays as it is."""
    _, height, width, _ = images.shape
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)]).astype(jnp.float32)
    box = sum(padded[:, top : top + height, left : left + width] for top in range(3) for left in range(3))
    pixels = images.astype(jnp.float32)
    row, column = jnp.arange(height).reshape(1, -1, 1, 1), jnp.arange(width).reshape(1, 1, -1, 1)
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(border, pixels, (box + 4 * pixels) / 13)


def _grey(pixels):
    """float32 ``[..., 1]`` of ``[..., channels]``."""
    pixels = pixels.astype(jnp.float32)
    if pixels.shape[-1] == 1:
        return pixels
    # A matrix product would be made of fewer bits on some devices.
    return sum(weight * channel for weight, channel in zip(_LUMA, jnp.split(pixels, 3, axis=-1), strict=True))


def _blend(pixels, base, factor):
    return jnp.clip(base + factor * (pixels - base), 0, _LEVELS - 1)


def _rounded(pixels):
    return jnp.round(pixels).astype(jnp.uint8)


def _check_images(images):
    if jnp.ndim(images) != 4 or images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [batch, height, width, 1 or 3], got {images.dtype} {list(jnp.shape(images))}"
        )
