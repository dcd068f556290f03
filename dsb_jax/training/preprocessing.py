"""What the device makes of a batch of images before the model sees it, as the settings say."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax import validation
from dsb_jax.data import augment, mixing, preprocess
from dsb_jax.data.mixing import Mixed

SECOND_VIEWS = ("same", "sim")


@dataclasses.dataclass(frozen=True)
class Sim:
    """Colour jitter, greyscale and blur as in SimCLR, and RandAugment after it; attributes are settings of ``sim``.

    Attributes:
      color_jitter: largest change of brightness, contrast and saturation.
      hue: likewise.
      jitter_share: probability that an image is jittered at all.
      grey_share: that it is made grey.
      blur_share: that it is blurred.
      blur_sigma: least and largest standard deviation of that in pixels.
      randaugment_layers: operations of RandAugment.
      randaugment_magnitude: how strong they are, a setting beside ``sim``.

    Raises:
      ValueError: a setting out of range.
    """

    color_jitter: tuple[float, float, float]
    hue: float
    jitter_share: float
    grey_share: float
    blur_share: float
    blur_sigma: tuple[float, float]
    randaugment_layers: int
    randaugment_magnitude: float

    def __post_init__(self) -> None:
        _check_jitter("sim.color_jitter", self.color_jitter)
        for name, highest in (("hue", 0.5), ("jitter_share", 1), ("grey_share", 1), ("blur_share", 1)):
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(f"sim.{name} must lie in [0, {highest}], got {getattr(self, name)}")
        sigma = self.blur_sigma
        if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1] < math.inf:
            raise ValueError(f"sim.blur_sigma must be two numbers with 0 < least <= largest, got {sigma}")
        validation.integer("sim.randaugment_layers", self.randaugment_layers, lowest=0)

    def __call__(self, images: jax.Array, rng: jax.Array) -> jax.Array:
        """Of uint8 images uint8 images."""
        keys = jax.random.split(rng, 4)
        strengths = _strengths(self.color_jitter)
        images = augment.color_jitter(images, keys[0], hue=self.hue, share=self.jitter_share, **strengths)
        images = augment.greyscale(images, keys[1], share=self.grey_share)
        images = augment.blur(images, keys[2], share=self.blur_share, sigma=self.blur_sigma)
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        return augment.rand_augment(images, keys[3], layers=layers, magnitude=magnitude) if layers else images


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Augmentation and normalisation; attributes are settings of :func:`dsb_jax.training.base_config`.

    Attributes:
      mean: of every channel, of images in [0, 1].
      std: likewise.
      flip: whether training images are flipped.
      crop_padding: of training images, before they are cropped.
      color_jitter: largest change of brightness, contrast and saturation.
      randaugment_layers: operations of RandAugment.
      randaugment_magnitude: how strong they are.
      sim: what further views have in place of colour jitter and RandAugment; None where they are made like the first.
      mixup: alpha of mixup.
      cutmix: alpha of cutmix.
      remix: whether labels of mixed images are those of Remix, with
      remix_kappa: the ratio of class sizes, and
      remix_tau: the share, from which on it decides.
      counts: training samples per class, which Remix needs.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int
    color_jitter: tuple[float, float, float]
    randaugment_layers: int
    randaugment_magnitude: float
    sim: Sim | None
    mixup: float
    cutmix: float
    remix: bool = False
    remix_kappa: float = 3.0
    remix_tau: float = 0.5
    counts: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        config: ConfigDict,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        counts: tuple[int, ...] = (),
    ) -> "Preprocessing":
        """From a run's settings, the statistics that they or the dataset give, and training samples per class.

        Raises:
          ValueError: a setting out of range.
        """
        jitter = tuple(config.color_jitter)
        _check_jitter("color_jitter", jitter)
        validation.integer("crop_padding", config.crop_padding, lowest=0)
        validation.integer("randaugment_layers", config.randaugment_layers, lowest=0)
        if not 0 <= config.randaugment_magnitude <= 10:
            raise ValueError(f"randaugment_magnitude must lie in [0, 10], got {config.randaugment_magnitude}")
        if config.second_view not in SECOND_VIEWS:
            raise validation.unknown_name("second_view", config.second_view, SECOND_VIEWS)
        of_sim: dict[str, Any] = {
            key: tuple(value) if isinstance(value, tuple | list) else value for key, value in config.sim.items()
        }
        sim = Sim(**of_sim, randaugment_magnitude=config.randaugment_magnitude)
        for name in ("mixup", "cutmix"):
            validation.at_least(name, config[name], 0)
        validation.at_least("remix_kappa", config.remix_kappa, 1)
        if not 0 <= config.remix_tau <= 1:
            raise ValueError(f"remix_tau must lie in [0, 1], got {config.remix_tau}")
        if config.remix and not (config.mixup or config.cutmix):
            raise ValueError("remix is of the labels of mixed images: mixup or cutmix must be above 0, got 0 for both")
        names = ["flip", "crop_padding", "randaugment_layers", "randaugment_magnitude", "mixup", "cutmix"]
        names += ["remix", "remix_kappa", "remix_tau"]
        given = {name: config[name] for name in names} | {"sim": sim if config.second_view == "sim" else None}
        return cls(mean=mean, std=std, counts=tuple(counts), color_jitter=jitter, **given)

    def train(self, images: jax.Array, rng: jax.Array) -> jax.Array:
        """uint8 images to floats, with augmentation."""
        images = self._moved(images, rng)
        jitter_rng, layers_rng = (jax.random.fold_in(rng, 2**31 + number) for number in range(2))
        if any(self.color_jitter):
            images = augment.color_jitter(images, jitter_rng, **_strengths(self.color_jitter))
        if self.randaugment_layers:
            layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
            images = augment.rand_augment(images, layers_rng, layers=layers, magnitude=magnitude)
        return self.evaluation(images)

    @property
    def further(self) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
        """What makes further views, ``(images, rng) -> images``; None where :meth:`train` does."""
        sim = self.sim
        if sim is None:
            return None
        return lambda images, rng: self.evaluation(sim(self._moved(images, rng), jax.random.fold_in(rng, 2**31)))

    def _moved(self, images, rng):
        # It splits the key: what else is drawn needs keys that a split does not make.
        return preprocess.augment(images, rng, flip=self.flip, crop_padding=self.crop_padding)

    def evaluation(self, images: jax.Array) -> jax.Array:
        """uint8 images to floats."""
        return preprocess.normalize(images, self.mean, self.std)

    def mix(self, images: jax.Array, rng: jax.Array) -> Mixed:
        """Each image of a batch with another one."""
        return mixing.mix(images, rng, mixup_alpha=self.mixup, cutmix_alpha=self.cutmix)

    def label_share(self, share: jax.Array, labels: jax.Array, other_labels: jax.Array) -> jax.Array:
        """The share of ``labels`` in the loss of mixed images, of which their own images have ``share``."""
        if not self.remix:
            return share
        counts = np.asarray(self.counts)
        return mixing.remix(share, labels, other_labels, counts=counts, kappa=self.remix_kappa, tau=self.remix_tau)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0


def _strengths(color_jitter):
    return dict(zip(("brightness", "contrast", "saturation"), color_jitter, strict=True))


def _check_jitter(name, strengths):
    if len(strengths) != 3 or not all(0 <= strength < math.inf for strength in strengths):
        raise ValueError(f"{name} must be brightness, contrast and saturation, each >= 0, got {strengths}")
