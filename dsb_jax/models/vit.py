"""A small vision transformer: attention between patches (Dosovitskiy et al., 2021)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsb_jax.models import layers

_EPSILON = 1e-6
_PATCHES = {"imagenet": 16, "cifar": 4}  # pixels on a side


class ViT(layers.DeepBackbone):
    """ViT-S/16 and its like, as timm has them: to the class token after the last block, ``width`` features.

    Positions are learned for images of one size, that of the images it is initialised with. Submodules are
    ``patch_embed_proj, blocks_0, …, norm``, in a block ``norm1, attn_qkv, attn_proj, norm2, mlp_fc1, mlp_fc2``;
    parameters beside them ``cls_token`` and ``pos_embed``. It has no batch normalisation.

    Attributes:
      width: of the tokens.
      depth: how many blocks there are.
      attention_heads: which divide the width.
      stem: patches of 16x16 (``"imagenet"``) or 4x4 pixels (``"cifar"``).
    """

    width: int = 384
    depth: int = 12
    attention_heads: int = 6
    stem: str = "imagenet"

    torch_head: ClassVar[str] = "head"
    least_sides: ClassVar[dict[str, int]] = _PATCHES

    @staticmethod
    def torch_name(path: tuple[str, ...]) -> str:
        """A dot after each name of a part, but for those with an underscore of their own."""
        name = ".".join(path)
        for own in ("patch_embed", "blocks", "attn", "mlp"):
            name = name.replace(f"{own}_", f"{own}.")
        return name

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train  # No layer here depends on it.
        layers.check_side(images, self.least_sides, self.stem, "a ViT")
        size = _PATCHES[self.stem]
        embed = nn.Conv(
            self.width, (size, size), strides=size, padding="VALID", dtype=self.dtype, name="patch_embed_proj"
        )
        x = embed(images)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)).astype(x.dtype), x], axis=1)
        positions = self.param("pos_embed", nn.initializers.truncated_normal(0.02), (1, x.shape[1], self.width))
        x = x + positions.astype(x.dtype)
        make = self.kept(Block)
        for number in range(self.depth):
            x = make(self.attention_heads, self.dtype, name=f"blocks_{number}")(x)
        return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="norm")(x)[:, 0]


class Block(nn.Module):
    """Attention and two dense layers, each after normalisation and beside a shortcut."""

    attention_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features, name):
            return nn.Dense(features, kernel_init=nn.initializers.truncated_normal(0.02), dtype=self.dtype, name=name)

        batch, tokens, width = x.shape
        y = nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="norm1")(x)
        qkv = dense(3 * width, "attn_qkv")(y).reshape(batch, tokens, 3, self.attention_heads, -1)
        y = jax.nn.dot_product_attention(*(qkv[:, :, part] for part in range(3))).reshape(batch, tokens, width)
        x = x + dense(width, "attn_proj")(y)
        y = nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="norm2")(x)
        return x + dense(width, "mlp_fc2")(nn.gelu(dense(4 * width, "mlp_fc1")(y), approximate=False))
