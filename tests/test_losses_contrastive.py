"""Circle and PaCo against the official numbers, float64 NumPy, what must hold for any batch, and bad input."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dsb_jax import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CLASSES = 4
PRIOR = np.array([0.6, 0.25, 0.1, 0.05])
OTHER = {"alpha": 0.3, "beta": 0.7, "gamma": 0.5, "temperature": 0.4, "logit_temperature": 2.0}
any_seed = hypothesis.given(st.integers(0, 2**16))
examples = hypothesis.settings(max_examples=10, deadline=None)


def unit(rng, rows, dim=5):
    vectors = rng.standard_normal((rows, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batch(examples=7, dim=5, seed=0):
    """Embeddings of any length and labels, of which one is alone in its class, in float64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES - 1, size=examples).astype(np.int32)
    labels[0] = CLASSES - 1
    return 3.0 * rng.standard_normal((examples, dim)), labels


def contrasts(examples=6, keys=8, seed=0):
    """The arrays of `paco` by name, in float64."""
    rng = np.random.default_rng(seed)
    return {
        "queries": unit(rng, examples),
        "labels": rng.integers(CLASSES, size=examples).astype(np.int32),
        "keys": unit(rng, keys),
        "key_labels": rng.integers(CLASSES, size=keys).astype(np.int32),
        "logits": 2.0 * rng.standard_normal((examples, CLASSES)),
        "prior": PRIOR,
    }


def paco(arguments, **changed):
    return losses.paco(**(arguments | changed))


# --- Against the official implementations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["circle_pml_m04_g80", "circle_pml_m025_g256"])
def test_circle_equals_that_of_pytorch_metric_learning(name, golden, dtype):
    file = golden(name)
    labels = file["labels"].astype(np.int32)

    def mean(embeddings):  # over anchors with a loss > 0
        per_anchor = losses.circle(embeddings, labels, margin=float(file["m"]), scale=float(file["gamma"]))
        return jnp.sum(per_anchor) / jnp.sum(per_anchor > 0, dtype=per_anchor.dtype), per_anchor

    embeddings = jnp.asarray(file["embeddings"], dtype)
    (value, per_anchor), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(embeddings)
    assert per_anchor.dtype == gradient.dtype == dtype
    official = file["loss_per_anchor"][:, 0]
    np.testing.assert_array_equal(np.asarray(per_anchor) == 0, official == 0)
    # Above 20, torch's softplus is the identity, up to 2e-9 less: 9e-11 of the gradient where an anchor is at 21.8.
    rtol = {"float32": 1e-5, "float64": 1e-10}[dtype.name]
    np.testing.assert_allclose(value, file["loss"], rtol=rtol)
    np.testing.assert_allclose(per_anchor, official, rtol=rtol, atol=rtol)
    largest = np.abs(file["grad_embeddings"]).max()
    np.testing.assert_allclose(gradient, file["grad_embeddings"], rtol=0, atol=rtol * largest)


@pytest.mark.parametrize("name", ["circle_batch_m04_g80", "circle_batch_m025_g256"])
def test_circle_over_all_pairs_of_the_batch_is_another_value(name, golden):
    """The other public form is one softplus over all pairs; no anchor's loss and no mean of them is it."""
    file = golden(name)
    x, labels, margin, scale = file["embeddings_normalized"], file["labels"], float(file["m"]), float(file["gamma"])
    first, second = np.triu_indices(len(labels), 1)
    similarity, same = np.sum(x[first] * x[second], axis=1), labels[first] == labels[second]
    positive = -scale * np.maximum(1 + margin - similarity, 0) * (similarity - 1 + margin)
    negative = scale * np.maximum(similarity + margin, 0) * (similarity - margin)
    global_form = np.logaddexp(0, np.logaddexp.reduce(positive[same]) + np.logaddexp.reduce(negative[~same]))
    np.testing.assert_allclose(global_form, file["loss"], rtol=1e-12)
    with jax.enable_x64(True):
        per_anchor = np.asarray(losses.circle(x, labels, margin=margin, scale=scale))
    assert np.max(per_anchor) < 0.95 * global_form
    assert np.mean(per_anchor[per_anchor > 0]) < 0.6 * global_form


@pytest.mark.parametrize("name", ["paco_a", "paco_b"])
def test_paco_equals_the_official_one(name, golden, dtype):
    file = golden(name)
    hyper = {key: float(file[key]) for key in ("alpha", "beta", "gamma", "temperature")}
    hyper["logit_temperature"] = float(file["supt"])
    labels, queue_labels = (file[key].astype(np.int32) for key in ("labels", "queue_labels"))
    constants = {
        "keys": jnp.asarray(np.concatenate([file["k"], file["queue"]]), dtype),
        "key_labels": np.concatenate([labels, queue_labels]),
        "prior": file["counts"] / file["counts"].sum(),
    }

    def mean(queries, logits):
        return jnp.mean(losses.paco(queries, labels, logits=logits, **constants, **hyper))

    both = jnp.asarray(file["q"], dtype), jnp.asarray(file["sup_logits"], dtype)
    value, gradients = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(*both)
    assert value.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    # The official 1e-12 in the normalizer, left out here, is 8e-12 of these losses, but 1.5e-10 of their gradients.
    rtol, grad_rtol = {"float32": (1e-5, 1e-5), "float64": (1e-10, 3e-10)}[dtype.name]
    np.testing.assert_allclose(value, file["loss"], rtol=rtol)
    for gradient, key in zip(gradients, ("grad_q", "grad_sup_logits"), strict=True):
        np.testing.assert_allclose(gradient, file[key], rtol=0, atol=grad_rtol * np.abs(file[key]).max())


# --- Against float64 NumPy --------------------------------------------------------------------------------------------


def circle_oracle(embeddings, labels, *, margin=0.4, scale=80.0, detached=None):
    """The formula, anchor by anchor and pair by pair, with the weights of the ``detached`` embeddings."""
    similarity, weighting = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
        for x in (embeddings, embeddings if detached is None else detached)
    )
    values = []
    for a, label in enumerate(labels):
        positive, negative = [], []
        for b, other in enumerate(labels):
            s, fixed = similarity[a, b], weighting[a, b]
            if a != b and other == label:
                positive.append(np.exp(-scale * max(1 + margin - fixed, 0) * (s - 1 + margin)))
            elif a != b:
                negative.append(np.exp(scale * max(fixed + margin, 0) * (s - margin)))
        values.append(np.log1p(sum(positive) * sum(negative)))
    return np.array(values)


def paco_oracle(queries, labels, keys, key_labels, logits, prior, label_smoothing=0.0, **hyper):
    """The formula, query by query and contrast by contrast."""
    alpha, beta, gamma = (hyper.get(name, default) for name, default in (("alpha", 0.05), ("beta", 1), ("gamma", 1)))
    temperature, logit_temperature = hyper.get("temperature", 0.2), hyper.get("logit_temperature", 1.0)
    others, other_labels = np.concatenate([queries, keys]), np.concatenate([labels, key_labels])
    values = []
    for i, (query, label) in enumerate(zip(queries, labels, strict=True)):
        of_class = (logits[i] + np.log(prior + 1e-9)) / logit_temperature
        similar = {j: query @ x / temperature for j, x in enumerate(others) if j != i}
        normalizer = np.log(np.exp(of_class).sum() + gamma * sum(np.exp(s) for s in similar.values()))
        shares = dict.fromkeys(range(CLASSES), label_smoothing / (CLASSES - 1)) | {label: 1 - label_smoothing}
        terms = [(beta * share, of_class[c]) for c, share in shares.items()]
        terms += [(alpha, s) for j, s in similar.items() if other_labels[j] == label]
        values.append(sum(w * (normalizer - s) for w, s in terms) / sum(w for w, _ in terms))
    return np.array(values)


@pytest.mark.parametrize("hyper", [{}, {"margin": 0.1, "scale": 5.0}], ids=["default", "other"])
def test_circle_equals_the_formula(hyper, dtype):
    embeddings, labels = batch()
    narrow = jnp.asarray(embeddings, dtype)
    rtol = 1e-5 if dtype == np.float32 else 1e-11
    value = losses.circle(narrow, labels, **hyper)
    np.testing.assert_allclose(value, circle_oracle(embeddings, labels, **hyper), rtol=rtol, atol=rtol)
    gradient = jax.grad(lambda x: jnp.sum(losses.circle(x, labels, **hyper)))(narrow)
    slope = reference.slope(lambda x: circle_oracle(x, labels, detached=embeddings, **hyper).sum(), embeddings)
    rtol = 1e-5 if dtype == np.float32 else 1e-7  # The second is that of the finite difference.
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=rtol * np.abs(slope).max())


@pytest.mark.parametrize(
    "hyper",
    [{}, OTHER, {"gamma": 0.0}, {"alpha": 0.0}, {**OTHER, "label_smoothing": 0.3}],
    ids=["default", "other", "γ=0", "α=0", "smoothed"],
)
def test_paco_equals_the_formula(hyper, dtype):
    arrays = contrasts()
    narrow = {name: jnp.asarray(arrays[name], dtype) for name in ("queries", "logits", "keys")}
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(paco(arrays | narrow, **hyper), paco_oracle(**arrays, **hyper), rtol=rtol, atol=rtol)
    gradients = jax.grad(lambda moving: jnp.sum(paco(arrays, **moving, **hyper)))(narrow)
    np.testing.assert_array_equal(gradients["keys"], 0.0)
    rtol = 1e-5 if dtype == np.float32 else 1e-7  # The second is that of the finite difference.
    for name in ("queries", "logits"):
        expected = functools.partial(lambda name, x: paco_oracle(**(arrays | {name: x}), **hyper).sum(), name)
        slope = reference.slope(expected, arrays[name])
        np.testing.assert_allclose(gradients[name], slope, rtol=0, atol=rtol * np.abs(slope).max())


# --- What must hold ---------------------------------------------------------------------------------------------------


@examples
@any_seed
def test_an_order_a_rotation_and_names_of_classes_change_nothing(seed):
    rng = np.random.default_rng(seed)
    embeddings, labels = batch(seed=seed)
    arrays = contrasts(seed=seed)
    rotation, order = np.linalg.qr(rng.standard_normal((5, 5)))[0], rng.permutation(6)
    of_keys, names, of_batch = rng.permutation(8), rng.permutation(CLASSES), rng.permutation(7)
    renamed = names.astype(np.int32)
    with jax.enable_x64(True):
        after = losses.circle((embeddings @ rotation)[of_batch], renamed[labels][of_batch], scale=5.0)
        before = losses.circle(embeddings, labels, scale=5.0)
        np.testing.assert_allclose(after, before[of_batch], rtol=1e-9, atol=1e-12)
        after = paco(
            {
                "queries": (arrays["queries"] @ rotation)[order],
                "labels": renamed[arrays["labels"]][order],
                "keys": (arrays["keys"] @ rotation)[of_keys],
                "key_labels": renamed[arrays["key_labels"]][of_keys],
                "logits": arrays["logits"][order][:, np.argsort(names)],
                "prior": PRIOR[np.argsort(names)],
            }
        )
        np.testing.assert_allclose(after, paco(arrays)[order], rtol=1e-9)


@examples
@any_seed
def test_masked_keys_change_nothing_whatever_they_hold(seed):
    arrays = contrasts(seed=seed)
    mask = np.random.default_rng(seed).permutation(8) < 5
    fewer = {name: arrays[name][mask] for name in ("keys", "key_labels")}
    spoilt = {
        "keys": np.where(mask[:, None], arrays["keys"], np.nan),
        "key_labels": np.where(mask, arrays["key_labels"], -7).astype(np.int32),
    }
    with jax.enable_x64(True):
        of_fewer = jax.value_and_grad(lambda q: jnp.sum(paco(arrays, **fewer, queries=q)))
        of_spoilt = jax.value_and_grad(lambda q: jnp.sum(paco(arrays, **spoilt, key_mask=mask, queries=q)))
        (expected, slope), (value, gradient) = of_fewer(arrays["queries"]), of_spoilt(arrays["queries"])
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


@examples
@any_seed
def test_masked_queries_change_nothing_whatever_they_hold(seed):
    arrays = contrasts(seed=seed)
    mask = np.random.default_rng(seed).permutation(6) < 4
    fewer = {name: arrays[name][mask] for name in ("queries", "labels", "logits")}
    spoilt = {name: np.where(mask[:, None], arrays[name], np.nan) for name in ("queries", "logits")}
    labels = np.where(mask, arrays["labels"], -7).astype(np.int32)

    def of(**given):
        return jax.value_and_grad(lambda moving: jnp.sum(paco(arrays, **(given | moving))))

    with jax.enable_x64(True):
        names = ("queries", "logits")
        expected, slopes = of(**fewer)({name: fewer[name] for name in names})
        value, gradients = of(labels=labels, mask=mask)(spoilt)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        for name in names:
            np.testing.assert_allclose(gradients[name][mask], slopes[name], rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(gradients[name][~mask], 0.0)
        np.testing.assert_array_equal(paco(arrays | spoilt, labels=labels, mask=mask)[~mask], 0.0)


def test_circle_does_not_depend_on_lengths():
    embeddings, labels = batch()
    with jax.enable_x64(True):
        lengths = np.arange(1.0, 8.0)[:, None]
        np.testing.assert_allclose(losses.circle(lengths * embeddings, labels), losses.circle(embeddings, labels))


@pytest.mark.parametrize("scale", [1.0, 80.0, 1e4])
@pytest.mark.parametrize("embeddings", ["zero", "tiny", "coinciding", "opposite"])
def test_circle_of_degenerate_embeddings_is_finite(embeddings, scale):
    usual, labels = batch()
    given = {
        "zero": 0.0 * usual,
        "tiny": 1e-30 * usual,
        "coinciding": np.ones_like(usual),
        "opposite": np.ones_like(usual) * np.where(labels % 2, 1.0, -1.0)[:, None],
    }[embeddings]
    function = jax.jit(jax.value_and_grad(lambda x: jnp.sum(losses.circle(x, labels, scale=scale))))
    chex.assert_tree_all_finite(function(jnp.asarray(given)))


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2], []], ids=["single", "one class", "all differ", "none"])
def test_circle_without_positives_or_negatives_is_zero(labels):
    labels = np.array(labels, np.int32)
    embeddings = jnp.asarray(np.random.default_rng(0).standard_normal((len(labels), 5)))
    per_anchor, pull_back = jax.vjp(jax.jit(lambda x: losses.circle(x, labels)), embeddings)
    np.testing.assert_array_equal(per_anchor, np.zeros(len(labels)))
    np.testing.assert_array_equal(pull_back(jnp.ones(len(labels)))[0], np.zeros((len(labels), 5)))


@pytest.mark.parametrize("temperature", [0.2, 1e-4])
@pytest.mark.parametrize("factor", [0.0, 1.0, 100.0])
def test_paco_of_degenerate_vectors_is_finite(temperature, factor):
    arrays = contrasts()
    same = {"queries": factor * jnp.ones((6, 5)), "keys": factor * jnp.ones((8, 5)), "logits": 1e4 * arrays["logits"]}

    def total(queries):
        return jnp.sum(paco(arrays | same, queries=queries, temperature=temperature))

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(total))(same["queries"]))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_paco_of_a_single_query_without_keys_is_that_of_the_classes(gamma, variant):
    arrays = contrasts(examples=1, keys=0)
    expected = losses.balanced_softmax(arrays["logits"], arrays["labels"], counts=PRIOR)
    value = variant(lambda q: paco(arrays, queries=q, gamma=gamma))(arrays["queries"])
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_what_is_narrow_is_upcast_first(narrow):
    embeddings, labels = batch()
    embeddings = jnp.asarray(embeddings, narrow)
    value = losses.circle(embeddings, labels)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, losses.circle(embeddings.astype(jnp.float32), labels))
    arrays = contrasts()
    narrowed = {name: jnp.asarray(arrays[name], narrow) for name in ("queries", "keys", "logits", "prior")}
    value = paco(arrays | narrowed)
    assert value.dtype == jnp.float32
    widened = {name: array.astype(jnp.float32) for name, array in narrowed.items()}
    np.testing.assert_array_equal(value, paco(arrays | widened))


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_nothing_is_compared_with_traced_labels_that_are_no_class():
    """Their own loss is NaN, their gradient zero, and the others' losses are as without them."""
    embeddings, labels = batch()
    arrays = contrasts(examples=7)
    bad = np.array([False, False, True, False, True, False, False])
    good = np.flatnonzero(~bad)
    marked = jnp.where(bad, jnp.array([0, 0, -1, 0, -5, 0, 0]), labels)
    bad_keys = jnp.asarray(arrays["key_labels"]).at[3].set(CLASSES)
    without = np.arange(8) != 3

    def total(x, labels, key_labels):
        values = losses.circle(x, labels, scale=5.0), paco(arrays, queries=x, labels=labels, key_labels=key_labels)
        return jnp.nansum(values[0]) + jnp.nansum(values[1]), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(embeddings), marked, bad_keys)
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=1), ~bad)
    kept = {"keys": arrays["keys"][without], "key_labels": arrays["key_labels"][without]}
    kept |= {"queries": embeddings[good], "labels": labels[good], "logits": arrays["logits"][good]}
    alone = losses.circle(embeddings[good], labels[good], scale=5.0), paco(arrays | kept)
    for value, expected in zip(values, alone, strict=True):
        np.testing.assert_array_equal(np.isnan(value), bad)
        np.testing.assert_allclose(value[good], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": np.zeros(5, np.float32)}, r"embeddings must have shape \[batch, dim\], got \(5,\)"),
        ({"embeddings": np.zeros((7, 5), np.int32)}, "embeddings must be floating point, got int32"),
        ({"labels": np.zeros(5, np.int32)}, r"labels must have shape \(7,\), one per sample, got \(5,\)"),
        ({"labels": np.zeros(7, np.float32)}, "labels must be integers, got float32"),
        ({"labels": np.full(7, -1, np.int32)}, r"labels must lie in \[0, 2147483647\), got -1 at position 0"),
        ({"margin": -0.1}, r"margin must be a finite number in \[0, 1\], got -0.1"),
        ({"margin": 1.5}, r"margin must be a finite number in \[0, 1\], got 1.5"),
        ({"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
    ],
)
def test_circle_refuses(changed, message, variant):
    arguments = dict(zip(("embeddings", "labels"), batch(), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        variant(lambda: losses.circle(arguments.pop("embeddings"), arguments.pop("labels"), **arguments))()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": np.zeros(5, np.float32)}, r"queries must have shape \[batch, dim\], got \(5,\)"),
        ({"queries": np.zeros((6, 5), np.int32)}, "queries must be floating point, got int32"),
        ({"keys": np.zeros(5, np.float32)}, r"keys must have shape \[keys, dim\], got \(5,\)"),
        (
            {"keys": np.zeros((8, 4), np.float32)},
            r"queries and keys must have the same last dimension, got \(6, 5\) and \(8, 4\)",
        ),
        ({"logits": np.zeros((5, 4), np.float32)}, r"logits must have one row per query, 6, got \(5, 4\)"),
        ({"logits": np.zeros((6, 4), np.int32)}, "logits must be floating point, got int32"),
        ({"labels": np.full(6, 4, np.int32)}, r"^labels must lie in \[0, 4\), got 4 at position 0"),
        ({"key_labels": np.zeros(6, np.int32)}, r"key_labels must have shape \(8,\), one per sample, got \(6,\)"),
        ({"key_labels": np.full(8, -1, np.int32)}, r"key_labels must lie in \[0, 4\), got -1 at position 0"),
        ({"key_mask": np.ones(6, bool)}, r"key_mask must be boolean of shape \(8,\), got bool \(6,\)"),
        ({"prior": np.array([0.5, 0.5])}, r"prior must have shape \(4,\), one per class, got \(2,\)"),
        ({"prior": np.array([5.0, 3.0, 1.0, 1.0])}, r"prior must be positive and sum to 1, got \[5.0, .* with sum 10"),
        ({"prior": np.array([1.5, -0.5, 0.0, 0.0])}, r"prior must be positive and sum to 1, got \[1.5, -0.5"),
        ({"alpha": -1.0}, "alpha must be a finite number >= 0, got -1.0"),
        ({"beta": 0.0}, "beta must be a finite number > 0, got 0.0"),
        ({"gamma": float("nan")}, "gamma must be a finite number >= 0, got nan"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"logit_temperature": "1"}, "logit_temperature must be a finite number > 0, got '1'"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be a finite number in \[0, 1\], got 1.5"),
        ({"mask": np.ones(5, bool)}, r"^mask must be boolean of shape \(6,\), got bool \(5,\)"),
    ],
)
def test_paco_refuses(changed, message, variant):
    with pytest.raises(ValueError, match=message):
        variant(lambda: paco(contrasts(), **changed))()
