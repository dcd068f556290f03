"""Every example mixed with another one of its batch, on the device: mixup, CutMix and the labels of Remix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsb_jax import validation


class Mixed(NamedTuple):
    """Images that are each made of two examples, and how much of which.

    The loss of row i is share · L(y_i) + (1 − share) · L(y_partner(i)).

    Attributes:
      images: floating ``[batch, height, width, channels]``.
      partner: int32 ``[batch]``, the row of the other example.
      share: float32 ``[]``, the part of the row's own example, in [0, 1].
    """

    images: jax.Array
    partner: jax.Array
    share: jax.Array


def mixup(images: jax.Array, rng: jax.Array, *, alpha: float) -> Mixed:
    """Sums λ·x_i + (1 − λ)·x_partner(i), with one λ ~ Beta(α, α) for the batch.

    The partner of a row is the one before it, of the first row the last: batches are in random order already, and to
    move every image by one row costs little where a batch is spread over devices.

    Args:
      images: floating ``[batch, height, width, channels]``.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      alpha: α, above 0; towards 0 one of the two examples is almost all there is.

    Returns:
      Images of the shape and dtype of ``images``, with the share λ.

    Raises:
      ValueError: images of another rank or dtype, or an α not above 0.

    Example:
      >>> images = jnp.arange(3.0).reshape(3, 1, 1, 1)
      >>> mixed = mixup(images, jax.random.key(0), alpha=0.2)
      >>> mixed.partner.tolist()
      [2, 0, 1]
      >>> bool(jnp.isclose(mixed.images[1, 0, 0, 0], mixed.share))
      True

    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018.
    """
    _check_images(images)
    return _mixed(images, *_even(images, _draw(rng, validation.positive("alpha", alpha))))


def cutmix(images: jax.Array, rng: jax.Array, *, alpha: float) -> Mixed:
    """One box of every image replaced by that of its partner, the box the same for the batch.

    With λ ~ Beta(α, α), a box of √(1 − λ) times the height and the width has its centre anywhere in the image. What
    lies outside is cut off, and the share is that of the pixels left. Partners are those of :func:`mixup`.

    Args:
      images: floating ``[batch, height, width, channels]``.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      alpha: α, above 0; at 1 all λ are equally likely.

    Returns:
      Images of the shape and dtype of ``images``, with the share of pixels that are the row's own.

    Raises:
      ValueError: images of another rank or dtype, or an α not above 0.

    Example:
      >>> images = jnp.broadcast_to(jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1), (2, 8, 8, 1))
      >>> mixed = cutmix(images, jax.random.key(0), alpha=1.0)
      >>> bool(mixed.images[0].mean() == mixed.share)
      True

    Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019.
    """
    _check_images(images)
    return _mixed(images, *_box(images, _draw(rng, validation.positive("alpha", alpha))))


def mix(images: jax.Array, rng: jax.Array, *, mixup_alpha: float, cutmix_alpha: float) -> Mixed:
    """For each batch mixup or CutMix, with probability ½; with an α of 0 always the other one.

    Args:
      images: floating ``[batch, height, width, channels]``.
      rng: a key, from which all draws of the batch are made, however it is spread over devices.
      mixup_alpha: that of :func:`mixup`, not negative; 0 for no mixup.
      cutmix_alpha: that of :func:`cutmix`, not negative; 0 for no CutMix.

    Returns:
      Images of the shape and dtype of ``images``, with the share of the one that was drawn.

    Raises:
      ValueError: images of another rank or dtype, a negative α, or both 0.

    Example:
      >>> mixed = mix(jnp.ones((4, 8, 8, 3)), jax.random.key(0), mixup_alpha=0.2, cutmix_alpha=1.0)
      >>> mixed.images.shape, mixed.share.dtype
      ((4, 8, 8, 3), dtype('float32'))

    Touvron et al., Training data-efficient image transformers & distillation through attention, 2021.
    """
    validation.at_least("mixup_alpha", mixup_alpha, 0)
    validation.at_least("cutmix_alpha", cutmix_alpha, 0)
    if not mixup_alpha and not cutmix_alpha:
        raise ValueError("mixup_alpha or cutmix_alpha must be above 0, got 0 for both")
    if not cutmix_alpha:
        return mixup(images, rng, alpha=mixup_alpha)
    if not mixup_alpha:
        return cutmix(images, rng, alpha=cutmix_alpha)
    _check_images(images)
    choice_rng, rng = jax.random.split(rng)
    chosen = jax.random.bernoulli(choice_rng)
    alpha = jnp.where(chosen, float(mixup_alpha), float(cutmix_alpha))
    drawn = _draw(rng, alpha)
    pairs = zip(_even(images, drawn), _box(images, drawn), strict=True)
    return _mixed(images, *(jnp.where(chosen, even, box) for even, box in pairs))


def remix(
    share: jax.Array,
    labels: jax.Array,
    other_labels: jax.Array,
    *,
    counts: jax.typing.ArrayLike,
    kappa: float = 3.0,
    tau: float = 0.5,
) -> jax.Array:
    """Remix: shares of labels in mixed images, in favour of the rarer class where there is enough of it.

    Images are mixed as before. The label of row i, with a share λ of the image, is left out of its loss where its class
    is at least κ times as large as the other one and λ < τ, and takes all of it where it is at least κ times as small
    and 1 − λ < τ; else its share of the label is λ too.

    Args:
      share: λ, floating ``[]`` or ``[batch]``, in [0, 1].
      labels: int ``[batch]``, of the row's own example.
      other_labels: int ``[batch]``, of its partner.
      counts: ``n``, training samples per class, ``[C]``.
      kappa: κ, at least 1.
      tau: τ, in [0, 1].

    Returns:
      float32 ``[batch]``, the share of ``labels`` in the loss.

    Raises:
      ValueError: counts of another rank, or κ or τ out of range.

    Example:
      >>> labels, others = jnp.array([0, 1, 0]), jnp.array([1, 0, 0])
      >>> print(remix(jnp.array([0.4, 0.6, 0.4]), labels, others, counts=jnp.array([90, 10])))
      [0.  1.  0.4]

    Chou et al., Remix: Rebalanced Mixup, 2020, Eq. 8.
    """
    counts = jnp.asarray(counts, jnp.float32)
    if counts.ndim != 1:
        raise ValueError(f"counts must have shape [classes], got {counts.shape}")
    validation.at_least("kappa", kappa, 1)
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must lie in [0, 1], got {tau!r}")
    share = jnp.broadcast_to(jnp.asarray(share, jnp.float32), jnp.shape(labels))
    own, other = counts[labels], counts[other_labels]
    kept = jnp.where((own >= kappa * other) & (share < tau), 0.0, share)
    return jnp.where((other >= kappa * own) & (1 - share < tau), 1.0, kept)


def _draw(rng, alpha):
    """λ, and the centre of a box in the unit square, ``[2]``."""
    share_rng, centre_rng = jax.random.split(rng)
    return jax.random.beta(share_rng, alpha, alpha, dtype=jnp.float32), jax.random.uniform(centre_rng, (2,))


def _even(images, drawn):
    """Weights ``[height, width]`` of a row's own pixels, the same everywhere, and its share."""
    share, _ = drawn
    return jnp.full(images.shape[1:3], share), share


def _box(images, drawn):
    """Weights ``[height, width]`` of a row's own pixels, 0 in a box and 1 around it, and its share."""
    share, centre = drawn
    sizes = jnp.array(images.shape[1:3], jnp.float32)
    cut = jnp.floor(jnp.sqrt(1 - share) * sizes)
    first = jnp.floor(centre * sizes) - jnp.floor(cut / 2)

    def inside(axis):
        place = jnp.arange(images.shape[1 + axis], dtype=jnp.float32)
        return (place >= first[axis]) & (place < first[axis] + cut[axis])

    own = ~(inside(0)[:, None] & inside(1)[None, :])
    return own.astype(jnp.float32), own.mean(dtype=jnp.float32)


def _mixed(images, weights, share):
    own = weights[None, :, :, None].astype(images.dtype)
    mixed = own * images + (1 - own) * jnp.roll(images, 1, axis=0)
    return Mixed(mixed, jnp.roll(jnp.arange(len(images), dtype=jnp.int32), 1), share)


def _check_images(images):
    if jnp.ndim(images) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating [batch, height, width, channels], got {images.dtype} {list(jnp.shape(images))}"
        )
