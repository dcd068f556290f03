"""Settings decide what the device makes of images, from one key and in one order."""

import jax
import numpy as np
import pytest

from dsb_jax import training
from dsb_jax.data import augment, preprocess
from dsb_jax.training.preprocessing import Preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
RNG = jax.random.key(3)


def made(**settings):
    config = training.base_config()
    config.update_from_flattened_dict(settings)
    return Preprocessing.of(config, **STATISTICS)


def normalized(images):
    return (np.asarray(images, np.float32) / np.float32(255) - np.float32(STATISTICS["mean"])) / np.float32(
        STATISTICS["std"]
    )


def test_without_augmentation_training_sees_what_evaluation_sees():
    plain = made()
    np.testing.assert_allclose(plain.evaluation(IMAGES), normalized(IMAGES), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(plain.train(IMAGES, RNG), plain.evaluation(IMAGES))
    assert not plain.mixes


def test_flips_and_crops_have_the_draws_that_they_always_had():
    moved = preprocess.augment(IMAGES, RNG, flip=True, crop_padding=2)
    for settings in ({}, {"mixup": 0.2}):
        seen = made(flip=True, crop_padding=2, **settings).train(IMAGES, RNG)
        np.testing.assert_allclose(seen, normalized(moved), rtol=1e-5, atol=1e-6)


def test_every_augmentation_takes_part_and_has_its_own_key():
    keys = [jax.random.fold_in(RNG, 2**31 + number) for number in range(2)]
    moved = preprocess.augment(IMAGES, RNG, flip=True, crop_padding=2)
    moved = augment.color_jitter(moved, keys[0], brightness=0.4, contrast=0.3, saturation=0.2)
    moved = augment.rand_augment(moved, keys[1], layers=2, magnitude=7.0)
    settings = {"color_jitter": (0.4, 0.3, 0.2), "randaugment_layers": 2, "randaugment_magnitude": 7.0}
    seen = made(flip=True, crop_padding=2, **settings).train(IMAGES, RNG)
    np.testing.assert_allclose(seen, normalized(moved), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made(**settings).evaluation(IMAGES), made().evaluation(IMAGES))


def test_further_views_are_made_like_the_first_unless_told_otherwise():
    assert made().further is None
    assert made(**{"sim.blur_share": 0.1}).further is None


@pytest.mark.parametrize("layers", [0, 2])
def test_a_view_as_of_simclr_is_jittered_grey_and_blurred(layers):
    settings = {"color_jitter": (0.1, 0.2, 0.3), "randaugment_layers": 1, "randaugment_magnitude": 7.0}
    settings |= {"second_view": "sim", "sim.randaugment_layers": layers}
    preprocessing = made(flip=True, crop_padding=2, **settings)
    moved = preprocess.augment(IMAGES, RNG, flip=True, crop_padding=2)
    keys = jax.random.split(jax.random.fold_in(RNG, 2**31), 4)
    expected = augment.color_jitter(moved, keys[0], brightness=0.4, contrast=0.4, saturation=0.4)
    expected = augment.greyscale(expected, keys[1], share=0.2)
    expected = augment.blur(expected, keys[2], share=0.5, sigma=(0.1, 2.0))
    expected = augment.rand_augment(expected, keys[3], layers=layers, magnitude=7.0)
    np.testing.assert_allclose(preprocessing.further(IMAGES, RNG), normalized(expected), rtol=1e-5, atol=1e-6)
    first = made(flip=True, crop_padding=2, **settings | {"second_view": "same"})
    np.testing.assert_array_equal(preprocessing.train(IMAGES, RNG), first.train(IMAGES, RNG))


@pytest.mark.parametrize(("settings", "shares"), [({"mixup": 1.0}, None), ({"cutmix": 1.0}, 256)])
def test_images_are_mixed(settings, shares):
    preprocessing = made(**settings)
    assert preprocessing.mixes
    images = preprocessing.evaluation(IMAGES)
    mixed = preprocessing.mix(images, RNG)
    assert sorted(mixed.partner.tolist()) == list(range(6))
    assert 0 < float(mixed.share) < 1
    if shares:  # whole pixels
        assert (float(mixed.share) * shares) % 1 == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -0.1}, "mixup must be a finite number >= 0, got -0.1"),
        ({"cutmix": -1.0}, "cutmix must be a finite number >= 0, got -1.0"),
        ({"remix": True}, "remix is of the labels of mixed images: mixup or cutmix must be above 0, got 0 for both"),
        ({"remix": True, "mixup": 1.0, "remix_kappa": 0.5}, "remix_kappa must be a finite number >= 1, got 0.5"),
        ({"remix": True, "mixup": 1.0, "remix_tau": 2.0}, r"remix_tau must lie in \[0, 1\], got 2.0"),
        ({"color_jitter": (0.4, 0.4)}, "color_jitter must be brightness, contrast and saturation, each"),
        ({"color_jitter": (0.4, -0.4, 0.0)}, "color_jitter must be brightness, contrast and saturation, each"),
        ({"randaugment_layers": -1}, "randaugment_layers must be an integer >= 0, got -1"),
        ({"second_view": "sam"}, "unknown second_view 'sam'; did you mean 'same'?"),
        ({"sim.color_jitter": (0.4, 0.4)}, "sim.color_jitter must be brightness, contrast and saturation, each"),
        ({"sim.hue": 0.6}, r"sim.hue must lie in \[0, 0.5\], got 0.6"),
        ({"sim.jitter_share": -0.1}, r"sim.jitter_share must lie in \[0, 1\], got -0.1"),
        ({"sim.grey_share": 1.1}, r"sim.grey_share must lie in \[0, 1\], got 1.1"),
        ({"sim.blur_share": float("nan")}, r"sim.blur_share must lie in \[0, 1\], got nan"),
        ({"sim.blur_sigma": (2.0, 1.0)}, "sim.blur_sigma must be two numbers with 0 < least <= largest, got"),
        ({"sim.randaugment_layers": -1}, "sim.randaugment_layers must be an integer >= 0, got -1"),
        ({"randaugment_magnitude": 11.0}, r"randaugment_magnitude must lie in \[0, 10\], got 11"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
