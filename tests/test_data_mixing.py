"""Mixup and CutMix: what is in the images, which row and how much it counts, and how the shares are distributed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsb_jax.data import mixing

IMAGES = np.random.default_rng(0).normal(size=(16, 9, 12, 3)).astype(np.float32)
PARTNER = [15, *range(15)]
MIXES = {
    "mixup": lambda x, rng: mixing.mixup(x, rng, alpha=0.8),
    "cutmix": lambda x, rng: mixing.cutmix(x, rng, alpha=1.0),
    "mix": lambda x, rng: mixing.mix(x, rng, mixup_alpha=3.0, cutmix_alpha=0.5),
}


@pytest.mark.usefixtures("strict_dtypes")
def test_mixup_equals_float64():
    function = jax.jit(MIXES["mixup"])
    for seed in range(5):
        mixed = function(IMAGES, jax.random.key(seed))
        share = np.float64(mixed.share)
        assert 0 <= share <= 1
        assert (mixed.share.dtype, mixed.partner.dtype, mixed.partner.tolist()) == (np.float32, np.int32, PARTNER)
        expected = share * IMAGES.astype(np.float64) + (1 - share) * IMAGES[PARTNER]
        np.testing.assert_allclose(mixed.images, expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("strict_dtypes")
def test_cutmix_replaces_one_box():
    function, boxes = jax.jit(MIXES["cutmix"]), set()
    for seed in range(12):
        mixed = function(IMAGES, jax.random.key(seed))
        assert (mixed.share.dtype, mixed.partner.dtype, mixed.partner.tolist()) == (np.float32, np.int32, PARTNER)
        replaced = (np.asarray(mixed.images) != IMAGES)[0, :, :, 0]
        rows, columns = np.flatnonzero(replaced.any(1)), np.flatnonzero(replaced.any(0))
        box = np.zeros((9, 12), bool)
        if len(rows):
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(mixed.images, np.where(box[None, :, :, None], IMAGES[PARTNER], IMAGES))
        np.testing.assert_allclose(mixed.share, 1 - box.mean(), rtol=0, atol=1e-6)
        boxes.add(box.tobytes())
    assert len(boxes) > 6


@pytest.fixture(scope="module")
def draws():
    """Five thousand λ and centres for an α."""
    draw = jax.jit(jax.vmap(mixing._draw, in_axes=(0, None)))
    return lambda alpha: map(np.asarray, draw(jax.random.split(jax.random.key(6), 5_000), alpha))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta(draws, alpha):
    shares, _ = draws(alpha)
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-4, 1e4])
def test_an_extreme_alpha_is_no_trouble(draws, alpha):
    shares, _ = draws(alpha)
    assert ((shares >= 0) & (shares <= 1)).all()
    distance = np.abs(shares - 0.5) if alpha > 1 else np.minimum(shares, 1 - shares)
    assert np.median(distance) < 0.01


def test_centres_are_uniform_and_independent(draws):
    shares, centres = draws(1.0)
    for centre in centres.T:
        assert scipy.stats.kstest(centre, scipy.stats.uniform.cdf).pvalue > 1e-3
    correlations = np.corrcoef([shares, *centres.T])
    assert np.abs(correlations - np.eye(3)).max() < 4 / np.sqrt(len(shares))


def test_boxes_are_those_of_the_paper():
    height, width, samples = 40, 57, 300
    rng = np.random.default_rng(0)
    drawn = rng.beta(0.5, 0.5, samples).astype(np.float32), rng.random((samples, 2), np.float32)
    weights, shares = jax.jit(jax.vmap(lambda *drawn: mixing._box(np.zeros((2, height, width, 1)), drawn)))(*drawn)
    expected = np.ones((samples, height, width))
    for own, share, (centre_y, centre_x) in zip(expected, *drawn, strict=True):
        cut_height, cut_width = (int(size * np.sqrt(1.0 - float(share))) for size in (height, width))
        top, left = int(centre_y * height) - cut_height // 2, int(centre_x * width) - cut_width // 2
        own[max(top, 0) : max(top + cut_height, 0), max(left, 0) : max(left + cut_width, 0)] = 0
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_allclose(shares, expected.mean((1, 2)), rtol=0, atol=1e-6)


def test_one_of_both_is_drawn_with_probability_half():
    images = jnp.zeros((2, 6, 6, 1)).at[1].set(1.0)
    samples = 2_000
    keys = jax.random.split(jax.random.key(11), samples)
    mixed, _, shares = map(np.asarray, jax.jit(jax.vmap(lambda key: MIXES["mix"](images, key)))(keys))
    boxes = np.isin(mixed, [0, 1]).all((1, 2, 3, 4))
    assert abs(boxes.mean() - 0.5) < 4 * 0.5 / np.sqrt(samples)
    np.testing.assert_allclose(1 - mixed[:, 0].mean((1, 2, 3)), shares, rtol=0, atol=1e-6)
    even = mixed[~boxes, 0, 0, 0, 0]
    np.testing.assert_array_equal(mixed[~boxes, 0], np.broadcast_to(even[:, None, None, None], (len(even), 6, 6, 1)))
    assert scipy.stats.kstest(even, scipy.stats.beta(3.0, 3.0).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_without_the_one_it_is_the_other(name):
    alphas = {"mixup_alpha": 0, "cutmix_alpha": 0} | {f"{name}_alpha": 1.5}
    programs = [
        jax.make_jaxpr(lambda x, rng: mixing.mix(x, rng, **alphas))(IMAGES, jax.random.key(0)),
        jax.make_jaxpr(lambda x, rng: getattr(mixing, name)(x, rng, alpha=1.5))(IMAGES, jax.random.key(0)),
    ]
    assert str(programs[0]) == str(programs[1])


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("name", MIXES)
def test_the_dtype_stays(name):
    mixed = jax.eval_shape(MIXES[name], IMAGES.astype(jnp.bfloat16), jax.random.key(0))
    assert (mixed.images.dtype, mixed.share.dtype) == (jnp.bfloat16, np.float32)


@pytest.mark.slow
def test_mixing_does_not_depend_on_the_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    function = jax.jit(MIXES["mix"])
    compiled = function.lower(spread, jax.random.key(0)).compile()
    for seed in range(8):
        key = jax.random.key(seed)
        mixed = compiled(spread, key)
        chex.assert_trees_all_equal(mixed, function(IMAGES, key))
    assert mixed.images.sharding.is_equivalent_to(spread.sharding, ndim=4)
    # A device asks its neighbour for one row, and nobody for all of them.
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))


@pytest.mark.parametrize("name", MIXES)
def test_a_key_is_all_that_matters_and_is_traced_once(name):
    function = jax.jit(chex.assert_max_traces(MIXES[name], n=1))
    first, again, other = (function(IMAGES, jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert float(first.share) != float(other.share)


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.uint8), r"images must be floating \[batch, height, width, channels\], got uint8"),
        (IMAGES[0], r"images must be floating .*, got float32 \[9, 12, 3\]"),
    ],
)
def test_other_images_are_refused(name, images, message):
    with pytest.raises(ValueError, match=message):
        MIXES[name](images, jax.random.key(0))


@pytest.mark.parametrize("function", [mixing.mixup, mixing.cutmix], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [0, -1.0, np.inf, np.nan])
def test_other_alphas_are_refused(function, alpha):
    with pytest.raises(ValueError, match=f"alpha must be a finite number > 0, got {alpha!r}"):
        function(IMAGES, jax.random.key(0), alpha=alpha)


@pytest.mark.parametrize(
    ("mixup_alpha", "cutmix_alpha", "message"),
    [
        (0, 0.0, "mixup_alpha or cutmix_alpha must be above 0, got 0 for both"),
        (-1, 1.0, "mixup_alpha must be a finite number >= 0, got -1"),
        (1.0, np.nan, "cutmix_alpha must be a finite number >= 0, got nan"),
    ],
)
def test_mix_refuses(mixup_alpha, cutmix_alpha, message):
    with pytest.raises(ValueError, match=message):
        mixing.mix(IMAGES, jax.random.key(0), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)


# --- Remix ------------------------------------------------------------------------------------------------------------


def remixed(share, own, other, kappa, tau):
    """Eq. 8 as it is written, for one row."""
    if own / other >= kappa and share < tau:
        return 0.0
    if own / other <= 1 / kappa and 1 - share < tau:
        return 1.0
    return share


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("kappa", "tau"), [(3.0, 0.5), (1.5, 0.8), (10.0, 0.2), (3.0, 0.0), (3.0, 1.0)])
def test_remix_is_as_it_is_written(kappa, tau):
    rng, counts = np.random.default_rng(0), np.array([500, 150, 50, 49, 5, 1])
    labels, others = rng.integers(6, size=(2, 400)).astype(np.int32)
    share = rng.uniform(size=400).astype(np.float32)
    function = jax.jit(lambda *x: mixing.remix(*x, counts=counts, kappa=kappa, tau=tau))
    got = function(share, labels, others)
    expected = [remixed(s, counts[a], counts[b], kappa, tau) for s, a, b in zip(share, labels, others, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32
    changed = np.mean(np.asarray(got) != share)
    assert changed == 0 if tau == 0 else changed > 0.05
    # One share for the batch, as mixup has it.
    np.testing.assert_array_equal(function(share[0], labels, others), function(np.full(400, share[0]), labels, others))


@pytest.mark.parametrize(("tau", "agree"), [(0.3, True), (0.5, True), (0.8, False)])
def test_the_larger_share_of_the_label_is_that_of_the_image_unless_tau_is_large(tau, agree):
    """Where it is not, the label decides what an image is taken for."""
    labels, others = jnp.tile(jnp.array([0, 1, 0]), 101), jnp.tile(jnp.array([1, 0, 0]), 101)
    share = jnp.repeat(jnp.linspace(0, 1, 101), 3)
    got = mixing.remix(share, labels, others, counts=jnp.array([90, 10]), tau=tau)
    by_image, by_label = (np.asarray(jnp.where(x >= 0.5, labels, others)) for x in (share, got))
    assert np.array_equal(by_image, by_label) == agree
    differ = by_image != by_label
    assert (by_label[differ] == 1).all()  # in favour of the rare one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0.5}, "kappa must be a finite number >= 1, got 0.5"),
        ({"tau": 1.5}, r"tau must lie in \[0, 1\], got 1.5"),
        ({"counts": np.ones((2, 2))}, r"counts must have shape \[classes\], got \(2, 2\)"),
    ],
)
def test_remix_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        mixing.remix(jnp.float32(0.3), jnp.array([0]), jnp.array([1]), **({"counts": np.array([9, 1])} | options))
