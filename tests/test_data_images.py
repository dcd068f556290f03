"""Decoding agrees with Pillow whatever the format; crops lie where they are drawn; damage is refused."""

import concurrent.futures
import contextlib
import io
import math
import tarfile

import cv2
import hypothesis
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest
import scipy.stats
from hypothesis import strategies as st

from dsb_jax.data import images

ORIENTATION = 0x0112
SAME_PART = 6  # mean difference of crops whose edges are rounded to another pixel; of any two places it is about 50
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}, "BMP": {}}
PHOTO_FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


def smooth(height, width, channels=3, *, seed=0):
    """A picture of soft blobs, as photographs are smooth: without sharp edges, and with all colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, channels), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def places(height, width):
    """A picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def save(image, file_format, **options):
    image = (
        image
        if isinstance(image, PIL.Image.Image)
        else PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    )
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def rotated(orientation, image, file_format, **options):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return save(image, file_format, exif=exif, **options)


def by_pillow(encoded, mode="RGB"):
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB").convert(mode)).astype(int)


def mean_difference(image, other):
    assert image.shape == other.shape
    return np.abs(image.astype(float) - other).mean()


def cmyk(image):
    return PIL.Image.frombytes("CMYK", image.shape[1::-1], image.tobytes())


def odd_files():
    """Each with how far off Pillow's colours, and Pillow's grey, an image may be."""
    colour, alpha = smooth(48, 64), smooth(48, 64, 4)
    picture, transparent = PIL.Image.fromarray(colour), PIL.Image.fromarray(alpha)
    palette = picture.quantize(64)
    gamma = PIL.PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    deep = colour.astype(np.uint16) * 256 + np.random.default_rng(1).integers(0, 256, colour.shape, np.uint16)
    without_adobe = save(cmyk(alpha), "JPEG", quality=95)
    at = without_adobe.index(b"\xff\xee")
    without_adobe = without_adobe[:at] + without_adobe[at + 16 :]
    return {
        "jpeg": save(colour, "JPEG", quality=95),
        "jpeg without subsampling": save(colour, "JPEG", quality=95, subsampling=0),
        "jpeg of RGB": save(colour, "JPEG", quality=95, keep_rgb=True),
        "jpeg progressive": save(colour, "JPEG", quality=95, progressive=True),
        "jpeg with restarts": save(colour, "JPEG", quality=95, restart_marker_rows=1),
        "jpeg grey": save(picture.convert("L"), "JPEG", quality=95),
        "jpeg CMYK": save(cmyk(alpha), "JPEG", quality=95),
        "jpeg CMYK without Adobe's marker": without_adobe,
        "png palette": save(palette, "PNG"),
        "png palette of 4 bits": save(picture.quantize(16), "PNG", bits=4),
        "png palette with a transparent colour": save(palette, "PNG", transparency=3),
        "png RGBA": save(transparent, "PNG"),
        "png grey and alpha": save(transparent.convert("LA"), "PNG"),
        "png grey": save(picture.convert("L"), "PNG"),
        "png black and white": save(picture.convert("1"), "PNG"),
        "png with a transparent colour": save(colour, "PNG", transparency=tuple(colour[5, 5].tolist())),
        "png with a gamma": save(colour, "PNG", pnginfo=gamma),
        "png of 16 bits": cv2.imencode(".png", deep[..., ::-1])[1].tobytes(),
        "webp": save(colour, "WEBP", quality=90),
        "webp RGBA": save(transparent, "WEBP", lossless=True, exact=True),
        "webp animated": save(colour, "WEBP", lossless=True, save_all=True, append_images=[picture.convert("L")]),
        "bmp": save(colour, "BMP"),
        "bmp palette": save(palette, "BMP"),
        "bmp grey": save(picture.convert("L"), "BMP"),
        "tiff": save(colour, "TIFF"),
        "tiff LZW": save(colour, "TIFF", compression="tiff_lzw"),
        "tiff deflate": save(colour, "TIFF", compression="tiff_deflate"),
        "tiff palette": save(palette, "TIFF"),
        "tiff CMYK": save(cmyk(alpha), "TIFF"),
        "tiff of 16 bits": cv2.imencode(".tiff", deep[..., ::-1])[1].tobytes(),
        "tiff of two pages": save(colour, "TIFF", save_all=True, append_images=[picture.convert("L")]),
    }


ODD_FILES = odd_files()


@pytest.mark.parametrize("kind", ODD_FILES)
def test_every_kind_of_file_decodes_as_by_pillow(kind):
    encoded = ODD_FILES[kind]
    images.check(encoded)
    image = images.decode(encoded, (48, 64, 3))
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), by_pillow(encoded), rtol=0, atol=2)
    grey = images.decode(encoded, (48, 64, 1))[..., 0]
    np.testing.assert_allclose(grey.astype(int), by_pillow(encoded, "L"), rtol=0, atol=2)
    for size in (16, 48):  # with and without a JPEG being reduced
        square = images.decode_square(encoded, size, 3)
        assert mean_difference(square, images.decode_square(images.encode_png(image), size, 3)) < SAME_PART
        crop = images.decode_random_resized_crop(encoded, size, 3, np.random.default_rng(0))
        whole = images.decode_random_resized_crop(images.encode_png(image), size, 3, np.random.default_rng(0))
        assert mean_difference(crop, whole) < SAME_PART


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_of_sixteen_bits_the_upper_eight_are_kept(file_format):
    # Pillow is no oracle here: it clips sixteen bits of grey to 255.
    deep = np.linspace(0, 2**16 - 1, 48 * 64).reshape(48, 64).astype(np.uint16)
    image = images.decode(save(deep, file_format), (48, 64, 3))
    np.testing.assert_array_equal(image, np.repeat((deep >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_the_colour_beneath_transparent_pixels_shows(file_format):
    beneath = smooth(20, 30)
    for alpha in (0, 100, 255):
        image = np.dstack([beneath, np.full((20, 30), alpha, np.uint8)])
        decoded = images.decode(save(image, file_format, **LOSSLESS[file_format]), (20, 30, 3))
        np.testing.assert_array_equal(decoded, beneath)


def test_a_transparent_tiff_is_blended_with_black():
    image = smooth(20, 30, 4)
    blended = image[..., :3] * (image[..., 3:] / 255)
    np.testing.assert_allclose(images.decode(save(image, "TIFF"), (20, 30, 3)), blended, rtol=0, atol=1)


def test_channels_of_32_bits_are_refused():
    encoded = save(PIL.Image.fromarray(np.zeros((20, 30), np.float32)), "TIFF")
    with pytest.raises(ValueError, match="begins as TIFF, but is damaged, cut short or of a kind that OpenCV does not"):
        images.check(encoded)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", PHOTO_FORMATS)
def test_photographs_are_turned_upright(file_format, orientation):
    picture = smooth(180, 250)
    encoded = rotated(orientation, picture, file_format, **PHOTO_FORMATS[file_format])
    upright = images.encode_png(by_pillow(encoded).astype(np.uint8))
    if file_format != "TIFF":  # which OpenCV always turns
        assert mean_difference(images.decode(encoded, (180, 250, 3)), picture) < 2
    decoders = (
        lambda file, size: images.decode_square(file, size, 3, shorter_side=size + 3),
        lambda file, size: images.decode_random_crop(file, size, 3, np.random.default_rng(7), shorter_side=size + 3),
        lambda file, size: images.decode_random_resized_crop(file, size, 3, np.random.default_rng(7)),
    )
    for decode in decoders:
        for size in (40, 90, 200):
            assert mean_difference(decode(encoded, size), decode(upright, size)) < SAME_PART


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"\xff\xc0" * 99}]
)
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (48, 64), (500, 375)])
def test_the_header_of_a_jpeg_says_what_pillow_finds(size, options):
    width, height = size
    for orientation in (1, 3, 6, 8):
        encoded = rotated(orientation, smooth(height, width), "JPEG", **options)
        assert images._jpeg_header(encoded)[:3] == (height, width, orientation)
    assert images._jpeg_header(save(smooth(height, width), "PNG")) is None


def test_segments_of_a_jpeg_may_come_in_another_order_and_padded():
    encoded = rotated(6, smooth(20, 30), "JPEG")
    start, tables = 2, []
    while encoded[start + 1] != 0xDA:  # the scan
        end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
        tables.append(encoded[start:end])
        start = end
    huffman_first = b"".join(sorted(tables, key=lambda table: table[1] != 0xC4))
    padded = b"".join(b"\xff" * (1 + number) + table for number, table in enumerate(tables))
    for segments in (huffman_first, padded):
        other = encoded[:2] + segments + encoded[start:]
        assert images._jpeg_header(other)[:3] == (20, 30, 6)
        np.testing.assert_array_equal(images.decode_square(other, 16, 3), images.decode_square(encoded, 16, 3))


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (b"MM\0*\0\0\0\x08\0\x02" + 12 * b"\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", 6),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", 6),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", 6),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0", 1),
        (b"MM\0*\0\0\0\x08\0\xff\x01\x13", 1),
        (b"MM\0*\xff\xff\xff\xff", 1),
        (b"MM", 1),
        (b"", 1),
    ],
)
def test_damaged_exif_data_turn_nothing(exif, orientation):
    encoded = save(smooth(20, 30), "JPEG", quality=95, exif=b"Exif\0\0" + exif)
    assert images._jpeg_header(encoded)[:3] == (20, 30, orientation)
    assert images.decode_square(encoded, 16, 3).shape == (16, 16, 3)


def whole_files():
    noisy = smooth(75, 101).astype(int) + np.random.default_rng(0).integers(-9, 10, (75, 101, 3))
    noisy = noisy.clip(0, 255).astype(np.uint8)
    return {
        "jpeg": save(noisy, "JPEG", quality=92),
        "jpeg progressive": save(noisy, "JPEG", quality=92, progressive=True),
        "jpeg with restarts": save(noisy, "JPEG", quality=92, restart_marker_rows=1),
        "jpeg grey": save(noisy[..., 0], "JPEG", quality=92),
        "png": save(noisy, "PNG"),
        "png palette": save(PIL.Image.fromarray(noisy).quantize(99), "PNG"),
        "webp": save(noisy, "WEBP"),
        "webp lossless": save(noisy, "WEBP", lossless=True),
        "bmp": save(noisy, "BMP"),
        "tiff": save(noisy, "TIFF"),
        "tiff LZW": save(noisy, "TIFF", compression="tiff_lzw"),
    }


WHOLE_FILES = whole_files()


@pytest.mark.parametrize("kind", WHOLE_FILES)
def test_a_file_that_ends_early_is_refused(kind):
    encoded = WHOLE_FILES[kind]
    images.check(encoded)
    images.check(encoded + b"\0trailing bytes")
    first = 16 if kind.startswith("png") else 1  # the last 12 bytes of a PNG file, its end, hold no pixels
    cuts = {first, 20, 100, *np.linspace(first, len(encoded) - 1, 30).astype(int).tolist()}
    for cut in cuts:
        with pytest.raises(ValueError, match=r"its image does not decode \(\d+ bytes\): it begins (as|with) "):
            images.check(encoded[:-cut])


def detailed(*, seed=0, **options):
    """A JPEG of some 100 kB, with as much detail as photographs have."""
    noisy = smooth(375, 500, seed=seed) + np.random.default_rng(seed).normal(0, 24, (375, 500, 1))
    return save(noisy.clip(0, 255).astype(np.uint8), "JPEG", quality=85, **options)


def with_junk(encoded, junk, before):
    at = encoded.rindex(before) if before == b"\xff\xd9" else encoded.index(before)
    return encoded[:at] + junk + encoded[at:]


def of_an_odd_version(encoded):
    at = encoded.index(b"JFIF\0") + 5
    return encoded[:at] + b"\0\0" + encoded[at + 2 :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("before", ["nothing", "a note", "junk"])
def test_damage_inside_of_a_jpeg_is_refused(options, before):
    """Most of it: a few changed bytes may be another image."""
    passed = 0
    for seed in range(20):
        whole = detailed(seed=seed, **options)
        if before == "a note":
            whole = of_an_odd_version(whole)
        if before == "junk":
            whole = with_junk(whole, b"??", b"\xff\xdb")
        images.check(whole)
        at = int(np.random.default_rng(seed).integers(len(whole) // 4, len(whole) - 5000))
        for damaged in (whole[: len(whole) // 2] + b"\xff\xd9", whole[:at] + bytes(4096) + whole[at + 4096 :]):
            with contextlib.suppress(ValueError):
                images.check(damaged)
                passed += 1
    assert passed <= 10


@pytest.mark.parametrize(
    "change",
    [
        of_an_odd_version,
        lambda encoded: with_junk(encoded, b"unlabelled", b"\xff\xc4"),
        lambda encoded: with_junk(encoded, bytes(234), b"\xff\xd9"),
        lambda encoded: with_junk(encoded, b"\n", b"\xff\xd9"),
        lambda encoded: with_junk(of_an_odd_version(encoded), bytes(9), b"\xff\xd9"),
        lambda encoded: encoded + b"of a camera \xff\xd8 \xff\xd9",
    ],
    ids=["version", "header", "zeros", "line", "both", "behind"],
)
def test_what_touches_no_pixel_of_a_jpeg_passes(change):
    whole = detailed()
    images.check(change(whole))
    np.testing.assert_array_equal(images.decode(change(whole), (375, 500, 3)), images.decode(whole, (375, 500, 3)))


def test_left_over_data_are_no_padding():
    with pytest.raises(ValueError, match=r"begins as JPEG, but is damaged or cut short: .* extraneous bytes"):
        images.check(with_junk(detailed(), b"compressed", b"\xff\xd9"))


def test_a_jpeg_of_rare_subsampling_is_opencvs_to_judge():
    encoded = bytearray(save(smooth(48, 64), "JPEG", subsampling=2))
    encoded[encoded.index(b"\xff\xc0") + 11] = 0x31
    images.check(bytes(encoded))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", r"its image does not decode \(0 bytes\): the file is empty"),
        (b"<html><body>", r"\(12 bytes\): it begins with b'<html><b', as no JPEG, PNG, WebP, BMP or TIFF does"),
        (bytes(1000), r"\(1000 bytes\): it begins with b'\\x00"),
        (
            b"\xff\xd8\xff\xe0" + bytes(200),
            "begins as JPEG, but is damaged, cut short or of a kind that OpenCV does",
        ),
        (b"GIF89a", "it begins with b'GIF89a'"),
    ],
)
def test_what_is_no_image_is_named(encoded, message):
    decoders = (
        images.check,
        lambda encoded: images.decode(encoded, (None, None, 3)),
        lambda encoded: images.decode_square(encoded, 8, 1),
        lambda encoded: images.decode_random_crop(encoded, 8, 3, np.random.default_rng(0), shorter_side=9),
        lambda encoded: images.decode_random_resized_crop(encoded, 8, 3, np.random.default_rng(0)),
    )
    for decoder in decoders:
        with pytest.raises(ValueError, match=message):
            decoder(encoded)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    kind=st.sampled_from(sorted(WHOLE_FILES)),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    size=st.sampled_from([8, 40]),
)
def test_damage_is_refused_or_decodes_to_the_size_wanted(kind, damage, size):
    encoded = bytearray(WHOLE_FILES[kind])
    for place, byte in damage:
        encoded[int(place * len(encoded))] = byte
    for decode in (
        lambda: images.decode_square(bytes(encoded), size, 3),
        lambda: images.decode_random_resized_crop(bytes(encoded), size, 3, np.random.default_rng(0)),
    ):
        with contextlib.suppress(ValueError):
            image = decode()
            assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)


@hypothesis.given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_headers(tail):
    assert images._jpeg_header(b"\xff\xd8\xff\xc0\0\x11\x08\0\0\0\x09" + tail) is None  # without a height
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\x00\x50Exif\0\0MM\0*"):
        images._jpeg_header(start + tail)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (129, 131), (64, 640), (80, 80)])
@pytest.mark.parametrize(("size", "shorter_side"), [(64, None), (64, 64), (56, 64), (64, 256)])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_the_middle_of_the_scaled_image(height, width, size, shorter_side, file_format):
    encoded = save(smooth(height, width), file_format)
    scale = (shorter_side or size) / min(height, width)
    scaled = PIL.Image.fromarray(by_pillow(encoded).astype(np.uint8)).resize(
        (round(width * scale), round(height * scale)), PIL.Image.Resampling.BOX if scale < 1 else 2
    )
    left, top = ((length - size) // 2 for length in scaled.size)
    wanted = np.asarray(scaled.crop((left, top, left + size, top + size)))
    assert mean_difference(images.decode_square(encoded, size, 3, shorter_side=shorter_side), wanted) < 2
    grey = images.decode_square(encoded, size, 1, shorter_side=shorter_side)
    assert mean_difference(grey[..., 0], np.asarray(PIL.Image.fromarray(wanted).convert("L"))) < 2


@pytest.mark.parametrize("channels", [1, 3])
def test_what_shrinks_much_is_the_mean_over_areas(channels):
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, channels), np.uint8)
    blocks = noise[:, 15:75].reshape(20, 3, 20, 3, channels).mean((1, 3))
    square = images.decode_square(images.encode_png(noise.squeeze()), 20, channels)
    np.testing.assert_allclose(square, blocks, rtol=0, atol=0.51)


def test_a_random_crop_is_a_window_and_all_places_are_equally_likely():
    picture = places(20, 23)
    encoded, rng = images.encode_png(picture), np.random.default_rng(0)
    corners = np.zeros((5, 8), int)
    for _ in range(4000):
        crop = images.decode_random_crop(encoded, 16, 3, rng, shorter_side=20)
        left, top = crop[0, 0, :2].tolist()
        np.testing.assert_array_equal(crop, picture[top : top + 16, left : left + 16])
        corners[top, left] += 1
    assert scipy.stats.chisquare(corners.ravel()).pvalue > 1e-3


def test_a_random_crop_of_an_image_that_fits_is_all_of_it():
    picture = smooth(16, 16)
    crop = images.decode_random_crop(images.encode_png(picture), 16, 3, np.random.default_rng(0), shorter_side=16)
    np.testing.assert_array_equal(crop, picture)


def torchvision_rectangles(height, width, scale, ratio, number):
    """``RandomResizedCrop.get_params`` of torchvision with a generator of NumPy: rows, columns, number of fallbacks."""
    rng, sizes, fallbacks = np.random.default_rng(99), [], 0
    for _ in range(number):
        for _ in range(10):
            target_area = height * width * rng.uniform(*scale)
            aspect_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(target_area * aspect_ratio)), round(math.sqrt(target_area / aspect_ratio))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            fallbacks += 1
            w, h = width, height
            if width / height < min(ratio):
                h = round(w / min(ratio))
            elif width / height > max(ratio):
                w = round(h * max(ratio))
        sizes.append((h, w))
    return *np.array(sizes).T, fallbacks


def drawn_rectangles(height, width, scale, ratio, number):
    rng = np.random.default_rng(5)
    rectangles = [images._draw_rectangle(height, width, rng, scale, ratio) for _ in range(number)]
    top, left, bottom, right = np.array(rectangles).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= height).all()
    assert (right <= width).all()
    return top, left, bottom - top, right - left


def test_areas_shapes_and_places_of_rectangles_are_uniform():
    height, width, scale, ratio = 2000, 3000, (0.1, 0.3), (3 / 4, 4 / 3)  # none of these is too large
    top, left, rows, columns = drawn_rectangles(height, width, scale, ratio, 5000)
    shares = {
        "area": (rows * columns / (height * width) - 0.1) / 0.2,
        "shape": (np.log(columns / rows) - math.log(3 / 4)) / math.log(16 / 9),
        "top": (top + 0.5) / (height - rows + 1),
        "left": (left + 0.5) / (width - columns + 1),
    }
    for name, values in shares.items():
        assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3, name
    names = list(shares)
    correlations = np.corrcoef([shares[name] for name in names]) - np.eye(len(names))
    assert np.abs(correlations).max() < 0.06


def test_all_places_of_a_rectangle_are_equally_likely():
    rng, corners = np.random.default_rng(0), np.zeros((4, 6), int)
    for _ in range(5000):
        top, left, bottom, right = images._draw_rectangle(8, 10, rng, (0.3125, 0.3125), (1, 1))
        assert (bottom - top, right - left) == (5, 5)
        corners[top, left] += 1
    assert scipy.stats.chisquare(corners.ravel()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (500, 500, (0.5, 1.0), (1 / 3, 3.0)),
        (40, 900, (0.08, 1.0), (3 / 4, 4 / 3)),
        (900, 40, (0.08, 1.0), (3 / 4, 4 / 3)),
        (3, 4, (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_rectangles_that_do_not_fit_are_drawn_again_as_in_torchvision(height, width, scale, ratio):
    _, _, rows, columns = drawn_rectangles(height, width, scale, ratio, 5000)
    their_rows, their_columns, fallbacks = torchvision_rectangles(height, width, scale, ratio, 5000)
    assert scipy.stats.ks_2samp(rows * columns, their_rows * their_columns).pvalue > 1e-3
    assert scipy.stats.ks_2samp(columns / rows, their_columns / their_rows).pvalue > 1e-3
    if height == 40:
        assert fallbacks > 100


@pytest.mark.parametrize(("height", "width", "rectangle"), [(10, 500, (0, 243, 10, 256)), (500, 10, (243, 0, 256, 10))])
def test_what_never_fits_is_the_middle(height, width, rectangle):
    rng = np.random.default_rng(0)
    assert images._draw_rectangle(height, width, rng, (0.9, 1), (3 / 4, 4 / 3)) == rectangle
    after_all_draws = np.random.default_rng(0)
    after_all_draws.random(40)
    assert rng.bit_generator.state == after_all_draws.bit_generator.state
    assert images._draw_rectangle(10, 12, rng, (1, 1), (1.2, 1.2)) == (0, 0, 10, 12)
    assert images._draw_rectangle(10, 10, rng, (1, 1), (9, 9)) == (4, 0, 5, 10)
    assert images._draw_rectangle(1, 1, rng, (0.001, 0.002), (1, 1)) == (0, 0, 1, 1)


@hypothesis.given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)).map(sorted),
    st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(sorted),
    st.integers(0, 9),
)
def test_rectangles_lie_within(height, width, scale, ratio, seed):
    top, left, bottom, right = images._draw_rectangle(height, width, np.random.default_rng(seed), scale, ratio)
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width


@pytest.mark.parametrize("size", [32, 90, 224])
@pytest.mark.parametrize("seed", range(6))
def test_a_resized_crop_is_its_rectangle_resized(size, seed):
    picture = smooth(171, 233)
    crop = images.decode_random_resized_crop(images.encode_png(picture), size, 3, np.random.default_rng(seed))
    top, left, bottom, right = images._draw_rectangle(171, 233, np.random.default_rng(seed), (0.08, 1), (3 / 4, 4 / 3))
    part = PIL.Image.fromarray(picture).crop((left, top, right, bottom))
    assert mean_difference(crop, np.asarray(part.resize((size, size), PIL.Image.Resampling.BILINEAR))) < 1.5


@pytest.mark.parametrize(
    "options", [*({"orientation": orientation} for orientation in range(1, 9)), {"progressive": True}]
)
@pytest.mark.parametrize("size", [20, 47, 112])
def test_a_reduced_jpeg_shows_the_same_part(size, options, monkeypatch):
    options = {"orientation": 1, "quality": 95, **options}
    encoded = rotated(image=smooth(399, 485), file_format="JPEG", **options)
    seeds = range(8)
    factors = set()

    def crops():
        return [images.decode_random_resized_crop(encoded, size, 3, np.random.default_rng(seed)) for seed in seeds]

    factor = images._factor
    monkeypatch.setattr(images, "_factor", lambda *sides: factors.add(factor(*sides)) or factor(*sides))
    reduced = crops()
    monkeypatch.setattr(images, "_factor", lambda *sides: 1)
    whole = crops()
    assert max(factors) == {20: 8, 47: 4, 112: 2}[size]
    for one, other in zip(reduced, whole, strict=True):
        assert mean_difference(one, other) < SAME_PART


@pytest.mark.parametrize("side", [1, 7, 8, 223, 224, 447, 448, 449, 900, 1791, 1792, 5000])
def test_a_factor_leaves_the_pixels_wanted(side):
    factor = images._factor(side, 224)
    assert side // factor >= 224 or factor == 1
    assert factor == 8 or side // (2 * factor) < 224


def test_real_photographs_are_cut_where_pillow_cuts_them(shared_data, monkeypatch):
    path = shared_data("mnist").parent / "cub_subset.tar"
    if not path.is_file():
        pytest.skip(f"the photographs are not at {path}")
    with tarfile.open(path) as tar:
        files = [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    assert len(files) == 60
    for seed, encoded in enumerate(files):
        images.check(encoded)
        picture = by_pillow(encoded).astype(np.uint8)
        np.testing.assert_allclose(images.decode(encoded, picture.shape).astype(int), picture, rtol=0, atol=3)
        for size, tolerance in ((224, 5), (48, 11)):
            crop = images.decode_random_resized_crop(encoded, size, 3, np.random.default_rng(seed))
            top, left, bottom, right = images._draw_rectangle(
                *picture.shape[:2], np.random.default_rng(seed), (0.08, 1), (3 / 4, 4 / 3)
            )
            part = PIL.Image.fromarray(picture).crop((left, top, right, bottom))
            wanted = part.resize((size, size), PIL.Image.Resampling.BILINEAR)
            assert mean_difference(crop, np.asarray(wanted)) < tolerance


def test_the_generator_decides_alone():
    encoded = save(smooth(90, 120), "JPEG")

    def crops(seed):
        rng = np.random.default_rng(seed)
        return [images.decode_random_resized_crop(encoded, 32, 3, rng) for _ in range(4)] + [
            images.decode_random_crop(encoded, 32, 1, rng, shorter_side=40) for _ in range(4)
        ]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first, again, other = pool.map(crops, [0, 0, 1])
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert all(not np.array_equal(one, another) for one, another in zip(first[:4], other[:4], strict=True))
    assert not np.array_equal(first[0], first[1])
    assert [crop.shape for crop in first] == [(32, 32, 3)] * 4 + [(32, 32, 1)] * 4


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_returned_can_be_written_to(channels):
    encoded = save(smooth(40, 60), "PNG")
    square = images.decode_square(encoded, 40, channels)
    assert square.flags.writeable
    assert square.flags.c_contiguous
    assert square.base is None


def test_arguments_are_checked():
    encoded, rng = images.encode_png(smooth(20, 30)), np.random.default_rng(0)
    with pytest.raises(ValueError, match="shorter_side must be at least the size 224, got 223"):
        images.decode_square(encoded, 224, 3, shorter_side=223)
    with pytest.raises(ValueError, match="shorter_side must be at least the size 32, got 31"):
        images.decode_random_crop(encoded, 32, 3, rng, shorter_side=31)
    with pytest.raises(ValueError, match=r"shorter_side must be an integer >= 1, got 40\.0"):
        images.decode_random_crop(encoded, 32, 3, rng, shorter_side=40.0)
    for decode in (images.decode_square, lambda *given: images.decode_random_resized_crop(*given, rng)):
        with pytest.raises(ValueError, match="size must be an integer >= 1, got 0"):
            decode(encoded, 0, 3)
    for scale in ((0, 1), (0.5, 0.4), (0.5, 1.1), (math.nan, 1)):
        with pytest.raises(ValueError, match="scale must be two numbers, 0 < least <= greatest <= 1, got"):
            images.decode_random_resized_crop(encoded, 32, 3, rng, scale=scale)
    for ratio in ((0, 1), (2, 1), (1, math.inf), (1, math.nan)):
        with pytest.raises(ValueError, match="ratio must be two finite numbers, 0 < least <= greatest, got"):
            images.decode_random_resized_crop(encoded, 32, 3, rng, ratio=ratio)


@pytest.mark.parametrize("shape", [(3, 4000), (4000, 3), (1, 900)])
def test_of_a_strip_the_middle_is_seen(shape):
    """Brought to 256 pixels in its shorter side, the whole of it would be an image of 256x340,000."""
    strip = np.zeros((*shape, 3), np.uint8)
    strip[...] = (
        np.linspace(0, 255, max(shape))
        .astype(np.uint8)
        .reshape([-1 if side == max(shape) else 1 for side in shape] + [1])
    )
    encoded = images.encode_png(strip)
    square = images.decode_square(encoded, 224, 3, shorter_side=256)
    assert square.shape == (224, 224, 3)
    assert abs(square.mean() - 127) < 3
    shifted = images.decode_random_crop(encoded, 224, 3, np.random.default_rng(0), shorter_side=256)
    assert abs(shifted.mean() - 127) < 5


def photograph(kind="RGB", size=(300, 200), **options):
    """Shapes and detail, as a JPEG file."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.uniform(0, 255, (5, 7, 3)), size, interpolation=cv2.INTER_CUBIC)
    image = np.clip(coarse + rng.normal(0, 10, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(image).convert(kind).save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


KINDS = {
    "plain": {},
    "grey": {"kind": "L"},
    "no subsampling": {"subsampling": 0},
    "half subsampling": {"subsampling": 1},
    "restart markers": {"restart_marker_blocks": 3},
    "coarse": {"quality": 20},
    "odd size": {"size": (301, 203)},
}
WHOLE = {"CMYK": {"kind": "CMYK"}, "progressive": {"progressive": True}}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [*KINDS, *WHOLE])
def test_rows_below_a_crop_are_not_decoded_and_not_missed(kind, channels, monkeypatch):
    """To the bit what is cut out of the whole image."""
    encoded = photograph(**(KINDS | WHOLE)[kind])
    seen, decode_rows = [], images._decode_rows
    monkeypatch.setattr(images, "_decode_rows", lambda *given: seen.append(decode_rows(*given)) or seen[-1])
    crops = [images.decode_random_resized_crop(encoded, 90, channels, np.random.default_rng(s)) for s in range(40)]
    heights = [len(rows) for rows in seen if rows is not None]
    assert len(heights) > 10 if kind in KINDS else not heights
    assert all(height < 200 for height in heights)
    monkeypatch.setattr(images, "_decode_rows", lambda *given: None)
    for seed, crop in enumerate(crops):
        wanted = images.decode_random_resized_crop(encoded, 90, channels, np.random.default_rng(seed))
        np.testing.assert_array_equal(crop, wanted)


@pytest.mark.parametrize("missing", [1, 2, 50, 5000])
def test_a_crop_of_a_file_that_is_cut_short_is_refused(missing):
    encoded = photograph()[:-missing]
    for seed in range(20):
        with pytest.raises(ValueError, match="its image does not decode"):
            images.decode_random_resized_crop(encoded, 90, 3, np.random.default_rng(seed))
