"""A network of LeNet's size, for digits of 8x8 or 28x28 pixels."""

from typing import ClassVar

import flax.linen as nn
import jax

from dsb_jax.models.layers import Backbone, check_side


class LeNet(Backbone):
    """Two 5x5 convolutions with 2x2 max-pooling and a hidden layer: images to 128 features.

    After LeCun et al., 1998, with ReLU, max-pooling, and padding for images as small as 4x4.

    Attributes:
      start: layers that are left out at the beginning, and
      stop: at which it ends, of a part of the network: from feature maps, or to them.
    """

    start: int = 0
    stop: int = 3

    torch_head: ClassVar[None] = None
    least_sides: ClassVar[dict[None, int]] = {None: 4}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train  # No layer here depends on it.
        if self.start == 0:
            check_side(images, self.least_sides, None, "lenet")
        he_normal = nn.initializers.he_normal()
        x = images
        for index, channels in list(enumerate((20, 50), start=1))[self.start : self.stop]:
            x = nn.Conv(channels, (5, 5), kernel_init=he_normal, dtype=self.dtype, name=f"conv{index}")(x)
            x = nn.relu(nn.max_pool(x, (2, 2), (2, 2)))
        if self.stop < 3:
            return x
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(128, kernel_init=he_normal, dtype=self.dtype, name="hidden")(x))

    def parts_of_experts(self) -> tuple[nn.Module, nn.Module]:
        """What experts share, the first convolution, and what each has of its own, as wide as ever."""
        return self.clone(stop=1), self.clone(start=1)

    def parts_of_branches(self) -> tuple[nn.Module, nn.Module]:
        """What two branches share, and what each has of its own: the hidden layer."""
        return self.clone(stop=2), self.clone(start=2)
