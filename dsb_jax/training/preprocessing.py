"""What the device makes of a batch of images before the model sees it, as the settings say."""

import dataclasses
import math

import jax
from ml_collections import ConfigDict

from dsb_jax import validation
from dsb_jax.data import augment, mixing, preprocess
from dsb_jax.data.mixing import Mixed


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
      mixup: alpha of mixup.
      cutmix: alpha of cutmix.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int
    color_jitter: tuple[float, float, float]
    randaugment_layers: int
    randaugment_magnitude: float
    mixup: float
    cutmix: float

    @classmethod
    def of(cls, config: ConfigDict, *, mean: tuple[float, ...], std: tuple[float, ...]) -> "Preprocessing":
        """From a run's settings, and the statistics that they or the dataset give.

        Raises:
          ValueError: a setting out of range.
        """
        jitter = tuple(config.color_jitter)
        if len(jitter) != 3 or not all(0 <= strength < math.inf for strength in jitter):
            raise ValueError(f"color_jitter must be brightness, contrast and saturation, each >= 0, got {jitter}")
        validation.integer("crop_padding", config.crop_padding, lowest=0)
        validation.integer("randaugment_layers", config.randaugment_layers, lowest=0)
        if not 0 <= config.randaugment_magnitude <= 10:
            raise ValueError(f"randaugment_magnitude must lie in [0, 10], got {config.randaugment_magnitude}")
        for name in ("mixup", "cutmix"):
            validation.at_least(name, config[name], 0)
        names = ("flip", "crop_padding", "randaugment_layers", "randaugment_magnitude", "mixup", "cutmix")
        return cls(mean=mean, std=std, color_jitter=jitter, **{name: config[name] for name in names})

    def train(self, images: jax.Array, rng: jax.Array) -> jax.Array:
        """uint8 images to floats, with augmentation."""
        images = preprocess.augment(images, rng, flip=self.flip, crop_padding=self.crop_padding)
        # Keys that `augment` does not make of the same one.
        jitter_rng, layers_rng = (jax.random.fold_in(rng, 2**31 + number) for number in range(2))
        if any(self.color_jitter):
            strengths = dict(zip(("brightness", "contrast", "saturation"), self.color_jitter, strict=True))
            images = augment.color_jitter(images, jitter_rng, **strengths)
        if self.randaugment_layers:
            layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
            images = augment.rand_augment(images, layers_rng, layers=layers, magnitude=magnitude)
        return self.evaluation(images)

    def evaluation(self, images: jax.Array) -> jax.Array:
        """uint8 images to floats."""
        return preprocess.normalize(images, self.mean, self.std)

    def mix(self, images: jax.Array, rng: jax.Array) -> Mixed:
        """Each image of a batch with another one."""
        return mixing.mix(images, rng, mixup_alpha=self.mixup, cutmix_alpha=self.cutmix)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0
