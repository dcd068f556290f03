"""BBN against the official implementation's numbers, NumPy, and its own contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_models import structure

from dsb_jax import losses, models
from dsb_jax.objectives import BBN, Supervised, total_loss
from dsb_jax.objectives.bbn import parabolic, published_divisor
from dsb_jax.training import step

BATCH, DIM, CLASSES = 12, 4, 5


def model_of(parts, weight, bias):
    """A forward pass whose features are given: ``parts`` by the images of a batch, the branch checked."""

    def forward(inputs, *, method, number=None):
        if method == "branch":
            branch, features = parts[inputs]
            assert branch == number
            return features
        assert method == "outputs"
        logits = jnp.matmul(inputs, weight.T, precision="highest") + bias[None, :]
        return models.Outputs(logits, inputs, weight)

    return forward


def apply(objective, forward, plain, other, state=0):
    """The result for the labels, and perhaps more, of a plain and of a reversed batch."""
    batch = {"image": "plain", **plain, "reversed": {"image": "reversed", **other}}
    return objective(forward, batch, jnp.int32(state), jax.random.key(0))


# --- Against the official implementation ------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [90, 180, 200])
def test_loss_gradient_and_accuracy_are_the_official_ones(golden, epochs, dtype):
    file = golden(f"bbn_max{epochs}")
    divisor = published_divisor(epochs)
    assert divisor == file["div_epoch"]
    objective = BBN(Supervised(losses.create("cross_entropy")), parabolic(divisor, range(1, epochs)))  # a step an epoch
    names = ("features_a", "features_b", "weight", "bias")

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)
    def loss(first, second, weight, bias, state):
        forward = model_of({"plain": (0, first), "reversed": (1, second)}, weight, bias)
        labels = ({"label": jnp.asarray(file[f"labels_{part}"], jnp.int32)} for part in "ab")
        result = apply(objective, forward, *labels, state)
        return total_loss(result.terms, jnp.ones(10)), result.metrics

    loss, tolerance = jax.jit(loss), 1e-10 if dtype == np.float64 else 1e-5
    arrays = [jnp.asarray(file[name], dtype) for name in names]
    for number, epoch in enumerate(file["epochs"]):
        (value, metrics), gradients = loss(*arrays, epoch - 1)
        np.testing.assert_allclose(metrics["share"], file["l"][number], rtol=tolerance)
        np.testing.assert_allclose(metrics["accuracy"], file["accuracy"][number], rtol=1e-5)
        np.testing.assert_allclose(value, file["loss"][number], rtol=tolerance)
        for name, gradient in zip(names, gradients, strict=True):
            expected = file[f"grad_{name}"][number]
            np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# --- Against NumPy ----------------------------------------------------------------------------------------------------


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(2, BATCH, DIM)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, (2, BATCH)).astype(np.int32),
        "weight": rng.normal(size=(CLASSES, 2 * DIM)).astype(np.float32),
        "bias": rng.normal(size=CLASSES).astype(np.float32),
        "weights": rng.gamma(2.0, 1.0, CLASSES).astype(np.float32),
    }


def forward_of(numbers):
    parts = {"plain": (0, jnp.asarray(numbers["features"][0])), "reversed": (1, jnp.asarray(numbers["features"][1]))}
    return model_of(parts, jnp.asarray(numbers["weight"]), jnp.asarray(numbers["bias"]))


def log_p_of(numbers, share):
    first, second = np.float64(numbers["features"])
    mixed = 2 * np.concatenate([share * first, (1 - share) * second], axis=1)
    logits = mixed @ numbers["weight"].T.astype(np.float64) + numbers["bias"]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), logits


def test_each_half_has_its_share_and_the_weights_of_its_own_labels(numbers):
    objective = BBN(Supervised(losses.create("cross_entropy")), lambda step: jnp.float32(0.7))
    result = apply(objective, forward_of(numbers), *({"label": jnp.asarray(part)} for part in numbers["labels"]))
    (log_p, logits), rows = log_p_of(numbers, 0.7), np.arange(BATCH)
    first, second = (-numbers["weights"][labels] * log_p[rows, labels] for labels in numbers["labels"])
    expected = 0.7 * first.mean() + 0.3 * second.mean()
    np.testing.assert_allclose(total_loss(result.terms, jnp.asarray(numbers["weights"])), expected, rtol=1e-5)
    # What enters the pool: both batches, row by row, each example by its own label.
    np.testing.assert_array_equal(result.labels.reshape(BATCH, 2).T, numbers["labels"])
    np.testing.assert_array_equal(result.features.reshape(BATCH, 2, DIM).swapaxes(0, 1), numbers["features"])
    np.testing.assert_allclose(result.logits, np.repeat(logits, 2, axis=0), rtol=1e-4, atol=1e-5)
    assert len(result.labels) == objective.rows_per_example * BATCH
    assert result.mask is None
    assert [len(term.losses) for term in result.terms] == [2 * BATCH]
    np.testing.assert_array_equal(result.classifier, numbers["weight"])


@pytest.mark.parametrize("both", [True, False])
def test_masked_rows_do_not_count(numbers, both):
    objective = BBN(Supervised(losses.create("cross_entropy")), lambda step: jnp.float32(0.7))
    masks = np.arange(2 * BATCH).reshape(2, BATCH) % 3 != 0
    masks[1] |= not both
    parts = [{"label": jnp.asarray(labels)} for labels in numbers["labels"]]
    for part, mask in zip(parts[: 1 + both], masks, strict=False):
        part["mask"] = jnp.asarray(mask)
    result = apply(objective, forward_of(numbers), *parts)
    np.testing.assert_array_equal(result.mask.reshape(BATCH, 2).T, masks)
    log_p, rows = log_p_of(numbers, 0.7)[0], np.arange(BATCH)
    of_rows = [
        -share * numbers["weights"][labels] * log_p[rows, labels]
        for share, labels in zip((0.7, 0.3), numbers["labels"], strict=True)
    ]
    expected = 2 * np.concatenate(of_rows)[masks.ravel()].mean()
    loss = total_loss(result.terms, jnp.asarray(numbers["weights"]), mask=result.mask)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_mixed_images_have_their_share_of_both_labels(numbers):
    objective = BBN(Supervised(losses.create("cross_entropy")), lambda step: jnp.float32(0.7))
    others, shares = np.roll(numbers["labels"], 1, axis=1), (0.8, 0.4)
    parts = [
        {"label": jnp.asarray(label), "other_label": jnp.asarray(other), "share": jnp.full(BATCH, share)}
        for label, other, share in zip(numbers["labels"], others, shares, strict=True)
    ]
    result = apply(objective, forward_of(numbers), *parts)
    log_p, rows = log_p_of(numbers, 0.7)[0], np.arange(BATCH)
    expected = 0.0
    for half, labels, other, share in zip((0.7, 0.3), numbers["labels"], others, shares, strict=True):
        for part, y in ((share, labels), (1 - share, other)):
            expected -= half * part * np.mean(numbers["weights"][y] * log_p[rows, y])
    np.testing.assert_allclose(total_loss(result.terms, jnp.asarray(numbers["weights"])), expected, rtol=1e-5)
    np.testing.assert_array_equal(result.labels.reshape(BATCH, 2).T, [numbers["labels"][0], others[1]])


def test_a_reversed_example_that_is_not_finite_is_found_by_its_own_label(numbers):
    numbers["features"][1, 5, 0], numbers["labels"][:, 5] = np.nan, (0, 3)
    objective = BBN(Supervised(losses.create("cross_entropy")), lambda step: jnp.float32(0.7))
    result = apply(objective, forward_of(numbers), *({"label": jnp.asarray(part)} for part in numbers["labels"]))
    findings = step._findings_of_result(result)
    assert findings["features"] == (True, 3)
    assert findings["losses"] == (True, 0)  # the mixed features are those of both


def test_the_share_follows_the_steps_of_the_epochs():
    share = parabolic(4, [10, 20, 30, 40, 50])
    objective = BBN(Supervised(losses.create("cross_entropy")), share)
    state = objective.init(jax.random.key(0), {"params": {"branches_1": {}}}, None)
    shares = []
    for _ in range(60):
        shares.append(float(jax.jit(share)(state)))
        state = objective.after_update(state, {})
    expected = [max(1 - (number // 10 / 4) ** 2, 0) for number in range(60)]
    np.testing.assert_allclose(shares, expected, rtol=1e-6)
    assert float(parabolic(1, [])(0)) == 1.0


@pytest.mark.parametrize(
    ("epochs", "divisor"),
    [(1, 1), (2, 2), (60, 60), (89, 89), (90, 100), (100, 100), (150, 150), (180, 200), (200, 200)],
)
def test_a_run_ends_near_a_share_of_zero(epochs, divisor):
    assert published_divisor(epochs) == divisor


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_model_without_branches_is_refused():
    objective = BBN(Supervised(losses.create("cross_entropy")), lambda step: 0.5)
    variables = structure(models.create("lenet", 3), (1, 8, 8, 1))
    with pytest.raises(ValueError, match=r"objective 'bbn' needs a model with two branches, .*branches=2"):
        objective.init(jax.random.key(0), variables, None)


def test_the_reversed_sampler_alone_is_refused():
    with pytest.raises(ValueError, match="objective 'bbn' has the reversed sampler besides another one"):
        BBN(Supervised(losses.create("cross_entropy"), samplers=("reversed",)), lambda step: 0.5)


@pytest.mark.parametrize("divisor", [0.0, -1.0, np.inf])
def test_a_divisor_out_of_range(divisor):
    with pytest.raises(ValueError, match="divisor must be a finite number > 0"):
        parabolic(divisor, [1])
