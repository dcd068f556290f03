"""Stronger augmentation of whole batches on the device: colour jitter, greyscale, blur and RandAugment."""

import math

import jax
import jax.numpy as jnp

from dsb_jax import validation
from dsb_jax.data import preprocess

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
    images: jax.Array,
    rng: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float = 0.0,
    share: float = 1.0,
) -> jax.Array:
    """Every image by itself made darker or brighter, then flatter or harder, paler or more colourful, of another hue.

    Each of the first three takes pixels x to b + f·(x − b), clipped to [0, 255], with a factor f uniform in
    [max(0, 1 − s), 1 + s] for the strength s. The base b is black for brightness, the mean of the grey image for
    contrast, and the grey image for saturation. The hue goes round by a part of its circle uniform in [−s, s]. Where
    torchvision draws an order, the order here is always this one; where it truncates after each, the result here is
    rounded once.

    Args:
      images: uint8 ``[batch, height, width, channels]``, of 1 or 3 channels.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      brightness: its strength, not negative; 0 leaves it as it is.
      contrast: likewise.
      saturation: likewise; of no effect on images of 1 channel.
      hue: its strength, in [0, 0.5]; of no effect on images of 1 channel.
      share: of the images, each of which is changed with this probability.

    Returns:
      uint8, of the shape of ``images``.

    Raises:
      ValueError: images of another rank, dtype or number of channels, or a strength or share out of range.

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
    if validation.at_least("hue", hue, 0) > 0.5:
        raise ValueError(f"hue must lie in [0, 0.5], got {hue!r}")
    _check_share(share)
    if not any((*strengths, hue)):
        return images
    brighter, harder, purer = _draw_factors(rng, strengths, len(images))
    hue_rng, share_rng = (jax.random.fold_in(rng, number) for number in range(2))
    pixels = _blend(images.astype(jnp.float32), 0.0, brighter)
    pixels = _blend(pixels, _grey(pixels.mean(axis=(1, 2), keepdims=True)), harder)
    pixels = _blend(pixels, _grey(pixels), purer)
    if hue and images.shape[-1] == 3:
        pixels = _turned(pixels, jax.random.uniform(hue_rng, (len(images), 1, 1), minval=-hue, maxval=hue))
    return _for_share(share, share_rng, _rounded(pixels), images)


def _draw_factors(rng, strengths, batch):
    """For every strength and image a factor, ``[strengths, batch, 1, 1, 1]``."""
    strengths = jnp.array(strengths).reshape(-1, 1, 1, 1, 1)
    lowest = jnp.maximum(0, 1 - strengths)
    return lowest + (1 + strengths - lowest) * jax.random.uniform(rng, (len(strengths), batch, 1, 1, 1))


def greyscale(images: jax.Array, rng: jax.Array, *, share: float) -> jax.Array:
    """Every image by itself, with probability ``share``, grey in all channels, by the weights of ITU-R BT.601.

    Args:
      images: uint8 ``[batch, height, width, channels]``, of 1 or 3 channels; with 1 they are as they were.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      share: in [0, 1].

    Returns:
      uint8, of the shape of ``images``.

    Raises:
      ValueError: images of another rank, dtype or number of channels, or a share out of range.

    Example:
      >>> red = jnp.array([255, 0, 0], jnp.uint8).reshape(1, 1, 1, 3)
      >>> print(greyscale(red, jax.random.key(0), share=1.0)[0, 0, 0])
      [76 76 76]

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020 (SimCLR).
    """
    _check_images(images)
    _check_share(share)
    if not share or images.shape[-1] == 1:
        return images
    grey = jnp.broadcast_to(_rounded(_grey(images)), images.shape)
    return _for_share(share, rng, grey, images)


def blur(images: jax.Array, rng: jax.Array, *, share: float, sigma: tuple[float, float] = (0.1, 2.0)) -> jax.Array:
    """Every image by itself, with probability ``share``, under a Gaussian of a standard deviation of its own.

    That is uniform in ``sigma``; the Gaussian is cut off at three of the largest one, and beyond the border the image
    goes on as it is there.

    Args:
      images: uint8 ``[batch, height, width, channels]``, of any number of channels.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      share: in [0, 1].
      sigma: least and largest standard deviation in pixels, above 0.

    Returns:
      uint8, of the shape of ``images``.

    Raises:
      ValueError: images of another rank or dtype, or a share or deviations out of range.

    Example:
      >>> image = jnp.zeros((1, 3, 3, 1), jnp.uint8).at[0, 1, 1, 0].set(255)
      >>> print(blur(image, jax.random.key(0), share=1.0, sigma=(0.5, 0.5))[0, ..., 0])
      [[  3  21   3]
       [ 21 158  21]
       [  3  21   3]]

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020 (SimCLR).
    """
    preprocess.check_images(images)
    _check_share(share)
    low, high = sigma
    if not 0 < low <= high < math.inf:
        raise ValueError(f"sigma must be two numbers with 0 < least <= largest, got {sigma!r}")
    if not share:
        return images
    share_rng, sigma_rng = jax.random.split(rng)
    deviation = jax.random.uniform(sigma_rng, (len(images), 1, 1, 1), minval=low, maxval=high)
    pixels = _gaussian(images.astype(jnp.float32), deviation, radius=math.ceil(3 * high))
    return _for_share(share, share_rng, _rounded(pixels), images)


def _gaussian(pixels, deviation, *, radius):
    """Means of 2·radius + 1 pixels along the height, then the width; ``deviation`` is ``[batch, 1, 1, 1]``."""
    heights = [jnp.exp(-0.5 * jnp.square(tap / deviation)) for tap in range(-radius, radius + 1)]
    total = sum(heights)
    for axis in (1, 2):
        size = pixels.shape[axis]
        padding = [(radius, radius) if dimension == axis else (0, 0) for dimension in range(4)]
        padded = jnp.pad(pixels, padding, mode="edge")
        taps = (jax.lax.slice_in_dim(padded, first, first + size, axis=axis) for first in range(2 * radius + 1))
        pixels = sum(height / total * tap for height, tap in zip(heights, taps, strict=True))
    return pixels


def _turned(pixels, turn):
    """The hue of colours ``[batch, height, width, 3]`` moved on by ``turn`` ``[batch, 1, 1]`` of the circle.

    In HSV each channel is V − V·S·clip(min(k, 4 − k), 0, 1) with k = (n + 6·hue) mod 6, where n is 5 for red, 3 for
    green and 1 for blue (Smith, Color gamut transform pairs, 1978).
    """
    red, green, blue = (pixels[..., channel] for channel in range(3))
    brightest, darkest = jnp.max(pixels, axis=-1), jnp.min(pixels, axis=-1)
    range_ = brightest - darkest  # V·S
    safe = jnp.where(range_ > 0, range_, 1.0)
    sextant = jnp.select(
        [brightest == red, brightest == green],
        [(green - blue) / safe, 2 + (blue - red) / safe],
        4 + (red - green) / safe,
    )
    places = (jnp.mod(number + sextant + 6 * turn, 6) for number in (5, 3, 1))
    return jnp.stack([brightest - range_ * jnp.clip(jnp.minimum(k, 4 - k), 0, 1) for k in places], axis=-1)


def _for_share(share, rng, changed, images):
    """``changed``, each with probability ``share``, else as in ``images``."""
    if share == 1:
        return changed
    return jnp.where(jax.random.bernoulli(rng, share, (len(images), 1, 1, 1)), changed, images)


def _check_share(share):
    if validation.at_least("share", share, 0) > 1:
        raise ValueError(f"share must lie in [0, 1], got {share!r}")


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
        operation, sign = drawn
        return _layer(images, operation, sign, strength), None

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
