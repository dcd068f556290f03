"""Colour jitter, greyscale, blur and RandAugment, against Pillow, SciPy and NumPy."""

import colorsys
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from dsb_jax.data import augment

HEIGHT, WIDTH = 37, 42
INDEX = {name: position for position, name in enumerate(augment.OPERATIONS)}
ENHANCE = {
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}
# Of the others the sign means nothing.
SIGNED = (*ENHANCE, "rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def pictures(channels):
    """Noise, noise of little contrast, gradients, blocks of two levels, one level, and one dark pixel on bright."""
    rng = np.random.default_rng(channels)
    shape = (HEIGHT, WIDTH, channels)
    row, column, channel = np.indices(shape)
    images = [
        rng.integers(0, 256, shape),
        rng.integers(90, 131, shape) + 20 * channel,
        (9 * row + 3 * column + 40 * channel) % 256,
        np.where((row // 4 + column // 5) % 2, 60 + 30 * channel, 200),
        np.full(shape, 77),
        np.where((row == 3) & (column == 5), 100, 220),
    ]
    return np.stack(images).astype(np.uint8)


def by_pillow(name, image, sign, strength):
    """One operation on one image by Pillow, from the table in the docstring of ``rand_augment``."""
    height, width, channels = image.shape
    pillow = Image.fromarray(image[..., 0] if channels == 1 else image)
    grey = (128,) * channels
    if name in ENHANCE:
        result = ENHANCE[name](pillow).enhance(1 + sign * 0.9 * strength)
    elif name == "rotate":
        result = pillow.rotate(sign * 30 * strength, Image.Resampling.NEAREST, fillcolor=grey)
    elif name in SIGNED:
        shear, shift = sign * 0.3 * strength, sign * 0.45 * strength
        coefficients = {
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, shift * width, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, shift * height),
        }[name]
        affine = Image.Transform.AFFINE
        result = pillow.transform(pillow.size, affine, coefficients, Image.Resampling.NEAREST, fillcolor=grey)
    else:
        result = {
            "identity": lambda: pillow,
            "autocontrast": lambda: ImageOps.autocontrast(pillow),
            "equalize": lambda: ImageOps.equalize(pillow),
            "solarize": lambda: ImageOps.solarize(pillow, 256 * (1 - strength)),
            "posterize": lambda: ImageOps.posterize(pillow, 8 - round(4 * strength)),
        }[name]()
    return np.asarray(result).reshape(image.shape)


@pytest.fixture(scope="module")
def layer():
    return jax.jit(augment._layer, static_argnames="strength")


def every_operation(layer, images, strength):
    """All operations with both signs on all images, in one batch: ``[operations, signs, images, ...]``."""
    operations, signs, rows = np.indices((len(INDEX), 2, len(images))).reshape(3, -1)
    results = layer(images[rows], operations, np.float32([1, -1])[signs], strength=strength)
    return np.asarray(results).reshape(len(INDEX), 2, *images.shape)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.0, 0.45, 1.0])
def test_every_operation_equals_pillow(layer, channels, strength):
    images = pictures(channels)
    results = every_operation(layer, images, strength)
    assert results.dtype == np.uint8
    for name, position in INDEX.items():
        for side, sign in enumerate((1, -1)):
            expected = np.stack([by_pillow(name, image, sign, strength) for image in images])
            differences = np.abs(results[position, side].astype(int) - expected)
            if name in ENHANCE or name == "autocontrast":  # Pillow cuts off, and rounds the grey
                assert differences.max() <= 1, (name, sign)
            elif name in SIGNED:  # Pillow's coordinates have 16 bits after the point
                assert (differences > 0).mean() < 0.005, (name, sign)
            else:
                assert differences.max() == 0, name


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
@pytest.mark.parametrize("sign", [1, -1])
def test_warps_equal_float64(layer, name, sign):
    images, strength = pictures(3), 0.45
    angle = np.deg2rad(30 * strength * sign) * (name == "rotate")
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear += 0.3 * strength * sign * np.array([[0, name == "shear_x"], [name == "shear_y", 0]])
    size = np.array([WIDTH, HEIGHT])
    origin = size / 2 if name == "rotate" else np.zeros(2)
    shift = 0.45 * strength * sign * size * [name == "translate_x", name == "translate_y"]
    expected = np.full_like(images, 128)
    for y, x in np.ndindex(HEIGHT, WIDTH):
        source_x, source_y = np.floor(linear @ ([x + 0.5, y + 0.5] - origin) + origin + shift).astype(int)
        if 0 <= source_x < WIDTH and 0 <= source_y < HEIGHT:
            expected[:, y, x] = images[:, source_y, source_x]
    results = every_operation(layer, images, strength)
    np.testing.assert_array_equal(results[INDEX[name], 0 if sign == 1 else 1], expected)


def test_a_single_pixel_is_augmented():
    function = jax.jit(lambda x, rng: augment.rand_augment(x, rng, layers=1, magnitude=10))
    assert function(np.full((64, 1, 1, 1), 200, np.uint8), jax.random.key(0)).shape == (64, 1, 1, 1)


def test_operations_and_signs_are_uniform_and_independent(layer):
    samples = 5_600
    image = np.random.default_rng(1).integers(30, 200, (1, 16, 17, 3), np.uint8)
    images = np.repeat(image, samples, axis=0)
    augmented = np.asarray(augment.rand_augment(images, jax.random.key(3), layers=1, magnitude=9))
    outcomes = every_operation(layer, image, 0.9)
    share = {}
    for name, (plus, minus) in zip(augment.OPERATIONS, outcomes[:, :, 0], strict=True):
        for outcome in (plus, minus):
            share[outcome.tobytes()] = share.get(outcome.tobytes(), 0) + 1 / 28
        assert (plus.tobytes() == minus.tobytes()) == (name not in SIGNED)
    assert len(share) == 14 + len(SIGNED)
    drawn = [outcome.tobytes() for outcome in augmented]
    counts = [drawn.count(outcome) for outcome in share]
    assert scipy.stats.chisquare(counts, samples * np.array(list(share.values()))).pvalue > 1e-3
    # Neighbours in the batch draw independently of each other.
    same = np.mean([first == second for first, second in itertools.pairwise(drawn)])
    expected = sum(part**2 for part in share.values())
    assert abs(same - expected) < 4 * np.sqrt(expected / samples)


def test_layers_draw_independently():
    (first, second), signs = (np.asarray(drawn) for drawn in augment._draw(jax.random.key(2), 2, 14 * 14 * 100))
    pairs = np.bincount(14 * first + second, minlength=14 * 14)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    assert abs(np.corrcoef(signs)[0, 1]) < 4 / np.sqrt(len(first))


def test_layers_follow_each_other(layer):
    images, key = np.repeat(pictures(3), 28, axis=0), jax.random.key(8)
    expected = images
    for operation, sign in zip(*augment._draw(key, 3, len(images)), strict=True):
        expected = layer(expected, operation, sign, strength=0.45)
    np.testing.assert_array_equal(augment.rand_augment(images, key, layers=3, magnitude=4.5), expected)


def by_definition(images, brightness, contrast, saturation):
    """torchvision's ColorJitter of floating images, in its order of definition."""

    def grey(pixels):
        return pixels if pixels.shape[-1] == 1 else pixels @ np.array([[0.299], [0.587], [0.114]])

    pixels = np.clip(brightness * images, 0, 255)
    pixels = np.clip(contrast * pixels + (1 - contrast) * grey(pixels).mean((1, 2, 3), keepdims=True), 0, 255)
    return np.clip(saturation * pixels + (1 - saturation) * grey(pixels), 0, 255)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strengths", [(0.4, 0.3, 0.2), (0.0, 0.0, 2.5), (0.8, 0.0, 0.0), (0.0, 1.5, 0.0)])
def test_jitter_equals_float64(channels, strengths):
    images, key = np.concatenate([pictures(channels)] * 4), jax.random.key(1)
    arguments = dict(zip(("brightness", "contrast", "saturation"), strengths, strict=True))
    jittered = jax.jit(lambda x, rng: augment.color_jitter(x, rng, **arguments))(images, key)
    assert jittered.dtype == np.uint8
    factors = np.asarray(augment._draw_factors(key, strengths, len(images)), np.float64)
    # Half a level is what rounding takes.
    np.testing.assert_allclose(jittered, by_definition(images.astype(np.float64), *factors), rtol=0, atol=0.501)


def test_factors_are_uniform_and_independent():
    strengths, samples = (0.4, 0.0, 2.5), 10_000
    drawn = np.asarray(augment._draw_factors(jax.random.key(4), strengths, samples)).reshape(3, samples)
    np.testing.assert_array_equal(drawn[1], 1)
    for factors, low, high in ((drawn[0], 0.6, 1.4), (drawn[2], 0.0, 3.5)):
        assert scipy.stats.kstest(factors, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3
        assert abs(np.corrcoef(factors[1:], factors[:-1])[0, 1]) < 4 / np.sqrt(samples)
    assert abs(np.corrcoef(drawn[[0, 2]])[0, 1]) < 4 / np.sqrt(samples)


def test_saturation_leaves_grey_as_it_is():
    images = pictures(1)
    saturate = jax.jit(lambda x, rng: augment.color_jitter(x, rng, brightness=0, contrast=0, saturation=0.9))
    np.testing.assert_array_equal(saturate(images, jax.random.key(0)), images)


def test_nothing_asked_is_the_identity():
    images = jnp.asarray(pictures(3))
    jittered = augment.color_jitter(images, jax.random.key(0), brightness=0, contrast=0, saturation=0)
    assert jittered is images
    np.testing.assert_array_equal(augment.rand_augment(images, jax.random.key(0), layers=0, magnitude=5), images)


@pytest.mark.parametrize("hue", [0.1, 0.5])
def test_hue_goes_round_as_in_the_standard_library(hue):
    images, key = pictures(3)[:, ::3, ::4], jax.random.key(6)
    pixels = images.astype(np.float32)
    turns = np.asarray(jax.random.uniform(key, (len(images), 1, 1), minval=-hue, maxval=hue))
    turned = jax.jit(augment._turned)(pixels, turns)
    for image, turn, result in zip(images / 255, turns.ravel(), np.asarray(turned), strict=True):
        for place in np.ndindex(image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*image[place])
            expected = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
            np.testing.assert_allclose(result[place], 255 * np.array(expected), atol=2e-3)
    np.testing.assert_allclose(jax.jit(augment._turned)(pixels, 0 * turns), pixels, atol=1e-3)


def test_hue_comes_last_and_has_draws_of_its_own():
    images, key = pictures(3), jax.random.key(2)
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2}
    without, jittered = (
        jax.jit(lambda x, rng, hue=hue: augment.color_jitter(x, rng, **strengths, hue=hue))(images, key)
        for hue in (0.0, 0.1)
    )
    turns = jax.random.uniform(jax.random.fold_in(key, 0), (len(images), 1, 1), minval=-0.1, maxval=0.1)
    turned = jax.jit(augment._turned)(without.astype(jnp.float32), turns)
    np.testing.assert_allclose(jittered, turned, rtol=0, atol=2.5)  # of what was rounded before, or not
    assert np.abs(jittered - turned).mean() < 0.5
    assert (np.asarray(jittered) != without).mean() > 0.1  # of which much is grey
    grey = pictures(1)
    np.testing.assert_array_equal(
        augment.color_jitter(grey, key, **strengths, hue=0.1), augment.color_jitter(grey, key, **strengths)
    )


def test_greyscale_equals_pillow():
    images = pictures(3)
    grey = augment.greyscale(images, jax.random.key(0), share=1.0)
    for image, result in zip(images, np.asarray(grey), strict=True):
        expected = np.asarray(Image.fromarray(image).convert("L"), int)
        for channel in range(3):
            assert np.abs(result[..., channel] - expected).max() <= 1  # Pillow's weights have 16 bits after the point
    single = pictures(1)
    np.testing.assert_array_equal(augment.greyscale(single, jax.random.key(0), share=1.0), single)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("sigma", [(0.1, 2.0), (1.5, 1.5), (0.1, 0.1)])
def test_blur_equals_scipy(channels, sigma):
    images, key = pictures(channels) if channels != 2 else pictures(3)[..., :2], jax.random.key(4)
    blurred = jax.jit(lambda x, rng: augment.blur(x, rng, share=1.0, sigma=sigma))(images, key)
    draws = jax.random.uniform(jax.random.split(key)[1], (len(images), 1, 1, 1), minval=sigma[0], maxval=sigma[1])
    for image, deviation, result in zip(images, np.ravel(draws), np.asarray(blurred), strict=True):
        expected = scipy.ndimage.gaussian_filter(
            image.astype(np.float64), float(deviation), mode="nearest", radius=int(np.ceil(3 * sigma[1])), axes=(0, 1)
        )
        np.testing.assert_allclose(result, expected, rtol=0, atol=0.501)


def test_an_image_smaller_than_the_blur_is_blurred():
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 2, 3), np.uint8)
    blurred = jax.jit(lambda x, rng: augment.blur(x, rng, share=1.0, sigma=(2.0, 2.0)))(images, jax.random.key(0))
    near = scipy.stats.norm.pdf(np.arange(-6, 7), scale=2.0)
    own = near[:7].sum() / near.sum()  # what reaches a pixel from its side of the border, and of the other
    np.testing.assert_allclose(blurred, own * images + (1 - own) * images[:, :, ::-1].astype(float), rtol=0, atol=0.501)


SHARED = {
    "color_jitter": lambda x, rng, share: augment.color_jitter(
        x, rng, brightness=0.9, contrast=0.0, saturation=0.0, share=share
    ),
    "greyscale": lambda x, rng, share: augment.greyscale(x, rng, share=share),
    "blur": lambda x, rng, share: augment.blur(x, rng, share=share, sigma=(1.0, 2.0)),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_share_of_the_images_is_changed(name):
    image = np.random.default_rng(1).integers(30, 200, (1, 6, 5, 3), np.uint8)
    images, key = np.repeat(image, 4000, axis=0), jax.random.key(9)
    some, every, none = (np.asarray(SHARED[name](images, key, share)) for share in (0.3, 1.0, 0.0))
    np.testing.assert_array_equal(none, images)
    changed = (some != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(some[changed], every[changed])
    assert abs(changed.mean() - 0.3) < 4 * np.sqrt(0.21 / 4000)
    assert abs(np.corrcoef(changed[1:], changed[:-1])[0, 1]) < 4 / np.sqrt(4000)
    for share in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="share must"):
            SHARED[name](images, key, share)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 12, 10, 3), np.uint8)
AUGMENTATIONS = {
    "color_jitter": lambda x, rng: augment.color_jitter(x, rng, brightness=0.4, contrast=0.4, saturation=0.4),
    "jitter of hue": lambda x, rng: augment.color_jitter(
        x, rng, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, share=0.8
    ),
    "greyscale": lambda x, rng: augment.greyscale(x, rng, share=0.5),
    "blur": lambda x, rng: augment.blur(x, rng, share=0.5),
    "rand_augment": lambda x, rng: augment.rand_augment(x, rng, layers=2, magnitude=9),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_does_not_depend_on_the_devices(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(NOISE, NamedSharding(mesh, PartitionSpec("data")))
    function = jax.jit(AUGMENTATIONS[name])
    key = jax.random.key(5)
    compiled = function.lower(spread, key).compile()
    augmented = compiled(spread, key)
    np.testing.assert_array_equal(augmented, function(NOISE, key))
    assert augmented.sharding.is_equivalent_to(spread.sharding, ndim=4)
    # No device asks another for images.
    assert not any(
        word in compiled.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_key_is_all_that_matters_and_is_traced_once(name):
    function = jax.jit(chex.assert_max_traces(AUGMENTATIONS[name], n=1))
    first, again, other = (np.asarray(function(NOISE, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "blur"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), r"images must be uint8 \[batch, height, width, 1 or 3\], got float32"),
        (IMAGES[0], r"images must be uint8 .*, got uint8 \[4, 4, 3\]"),
        (IMAGES[..., :2], r"images must be uint8 .* 1 or 3\], got uint8 \[2, 4, 4, 2\]"),
    ],
)
def test_other_images_are_refused(name, images, message):
    with pytest.raises(ValueError, match=message):
        AUGMENTATIONS[name](images, jax.random.key(0))


def test_blur_refuses():
    with pytest.raises(ValueError, match=r"images must be uint8 \[batch, height, width, channels\], got float32"):
        augment.blur(IMAGES.astype(np.float32), jax.random.key(0), share=0.5)
    for sigma in ((0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="sigma must be two numbers with 0 < least <= largest, got"):
            augment.blur(IMAGES, jax.random.key(0), share=0.5, sigma=sigma)


def test_jitter_refuses_more_than_half_of_the_circle():
    with pytest.raises(ValueError, match=r"hue must lie in \[0, 0.5\], got 0.6"):
        augment.color_jitter(IMAGES, jax.random.key(0), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.6)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("value", [-0.1, np.inf, np.nan, "0.1", True])
def test_jitter_refuses(name, value):
    strengths = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0, got {value!r}"):
        augment.color_jitter(IMAGES, jax.random.key(0), **strengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": -1}, "layers must be an integer >= 0, got -1"),
        ({"layers": 1.0}, "layers must be an integer >= 0, got 1.0"),
        ({"magnitude": -1}, "magnitude must be a finite number >= 0, got -1"),
        ({"magnitude": 10.5}, "magnitude must be at most 10, got 10.5"),
        ({"magnitude": np.nan}, "magnitude must be a finite number >= 0, got nan"),
    ],
)
def test_rand_augment_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        augment.rand_augment(IMAGES, jax.random.key(0), **({"layers": 2, "magnitude": 9} | arguments))
