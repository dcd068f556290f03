"""The losses against the official implementations' numbers, float64 NumPy, and what must hold for any input."""

import functools
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from dsb_jax import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")

COUNTS = np.array([500, 120, 30, 7, 1])
PRIOR = COUNTS / COUNTS.sum()
MEAN_SCORES = np.array([0.9, 0.5, 0.03, 0.2, 0.01])
ALL = {
    "arcface": losses.arcface,
    "cross_entropy": losses.cross_entropy,
    "cross_entropy_smoothed": functools.partial(losses.cross_entropy, label_smoothing=0.1),
    "focal_0.5": functools.partial(losses.focal, gamma=0.5),
    "focal_2": losses.focal,
    "focal_2_detached": functools.partial(losses.focal, detach_modulator=True),
    "balanced_softmax": functools.partial(losses.balanced_softmax, counts=COUNTS),
    "ldam": functools.partial(losses.ldam, counts=COUNTS),
    "logit_adjusted": functools.partial(losses.logit_adjusted, prior=PRIOR, tau=0.7),
    "lade": functools.partial(losses.lade, prior=PRIOR),
    "seesaw": functools.partial(losses.seesaw, counts=COUNTS),
    "equilibrium": functools.partial(losses.equilibrium, mean_scores=MEAN_SCORES),
    "sigmoid_focal": functools.partial(losses.sigmoid_focal, gamma=2.0),
    "sigmoid_cross_entropy": functools.partial(losses.sigmoid_focal, gamma=0.0),
    "distribution_balanced": functools.partial(losses.distribution_balanced, counts=COUNTS),
}
OF_COUNTS = ["balanced_softmax", "distribution_balanced", "lade", "ldam", "logit_adjusted", "seesaw"]
OF_A_PRIOR = ["lade", "logit_adjusted"]
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())


def is_one_of(loss, *functions):
    """Whether an entry of ALL is one of these functions, with some of its arguments filled in or not."""
    return getattr(loss, "func", loss) in functions


def batch(examples=12, classes=5, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((examples, classes)), rng.integers(classes, size=examples)


# --- Against the official implementations -----------------------------------------------------------------------------

GOLDEN = {
    "focal_g1": lambda file: functools.partial(losses.focal, gamma=1.0),
    "focal_g2": lambda file: losses.focal,
    "focal_g2_big": lambda file: functools.partial(losses.focal, gamma=2.0),
    "focal_detached_g1": lambda file: functools.partial(losses.focal, gamma=1.0, detach_modulator=True),
    "focal_detached_g2": lambda file: functools.partial(losses.focal, gamma=2.0, detach_modulator=True),
    "balanced_softmax": lambda file: functools.partial(losses.balanced_softmax, counts=file["counts"]),
    "ldam_plain": lambda file: functools.partial(losses.ldam, counts=file["counts"]),
    "ldam_drw": lambda file: functools.partial(losses.ldam, counts=file["counts"], max_margin=0.5, scale=30.0),
    "ldam_drw0": lambda file: losses.create("ldam", counts=file["counts"]),
    # The official code adds 1e-9 to the prior: 1e-6 in the logarithm of the rarest class.
    "prior_ce": lambda file: functools.partial(losses.logit_adjusted, prior=share(file) + file["eps"]),
    "seesaw_ce_a": lambda file: functools.partial(losses.seesaw, counts=file["cum_samples"]),
    "seesaw_ce_q0": lambda file: functools.partial(losses.seesaw, counts=file["cum_samples"], q=0.0),
    "loce_equilibrium": lambda file: functools.partial(losses.equilibrium, mean_scores=file["mean_score"]),
    "cb_softmax_beta0.99": lambda file: losses.cross_entropy,
    "cb_softmax_beta0.9999": lambda file: losses.cross_entropy,
    "cb_sigmoid_beta0.99": lambda file: functools.partial(losses.sigmoid_focal, gamma=0.0),
    "cb_sigmoid_beta0.9999": lambda file: functools.partial(losses.sigmoid_focal, gamma=0.0),
    "cb_focal_beta0.99_g0.5": lambda file: functools.partial(losses.sigmoid_focal, gamma=0.5),
    "cb_focal_beta0.99_g1": lambda file: losses.sigmoid_focal,
    "cb_focal_beta0.99_g2": lambda file: functools.partial(losses.sigmoid_focal, gamma=2.0),
    "cb_focal_beta0.9999_g0.5": lambda file: functools.partial(losses.sigmoid_focal, gamma=0.5),
    "cb_focal_beta0.9999_g1": lambda file: losses.sigmoid_focal,
    "cb_focal_beta0.9999_g2": lambda file: functools.partial(losses.sigmoid_focal, gamma=2.0),
}


def share(file):
    return file["counts"] / file["counts"].sum()


@pytest.mark.parametrize("name", GOLDEN)
def test_value_and_gradient_equal_the_official_ones(name, golden, dtype):
    file = golden(name)
    loss = GOLDEN[name](file)
    labels = file["labels"].astype(np.int32)
    weights = file.get("class_weights", np.ones(10))[labels]
    # The weighted means of PyTorch divide by the weights, the class-balanced losses by the examples.
    weights = (weights / (len(labels) if name.startswith("cb_") else weights.sum())).astype(dtype)

    def mean(logits):
        per_example = loss(logits, labels)
        return jnp.sum(weights * per_example), per_example

    logits = jnp.asarray(file["logits"], dtype)
    (value, per_example), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(logits)
    assert per_example.dtype == gradient.dtype == dtype
    rtol, atol = tolerance(np.float32 if file["loss"].dtype == np.float32 else dtype)
    np.testing.assert_allclose(value, file["loss"], rtol=rtol)
    np.testing.assert_allclose(gradient, file["grad_logits"], rtol=rtol, atol=atol * np.abs(file["grad_logits"]).max())
    if "loss_per_example" in file:
        np.testing.assert_allclose(per_example, file["loss_per_example"], rtol=rtol, atol=atol)


def test_a_class_weight_of_the_official_focal_loss_is_inside_of_its_modulator(golden):
    """It multiplies the cross-entropy that the modulator is of; here, as any loss, focal is multiplied itself."""
    file = golden("focal_g1_cbw")
    weights = file["class_weights"][file["labels"]]
    with jax.enable_x64(True):
        inside = weights * np.asarray(losses.cross_entropy(file["logits"], file["labels"]))
        outside = weights * np.asarray(losses.focal(file["logits"], file["labels"], gamma=1.0))
    official = (1 - np.exp(-inside)) * inside
    np.testing.assert_allclose(official, file["loss_per_example"], rtol=1e-10)
    np.testing.assert_allclose(np.mean(official), file["loss"], rtol=1e-10)
    assert abs(np.mean(outside) - file["loss"]) > 0.02 * file["loss"]


def test_weighted_equilibrium_equals_the_official_one(golden, dtype):
    """Its weights are of examples, and it divides by their number."""
    file = golden("loce_equilibrium")
    weights = file["sample_weight"].astype(dtype)
    loss = functools.partial(losses.equilibrium, labels=file["labels"], mean_scores=file["mean_score"])
    value, gradient = jax.value_and_grad(lambda z: jnp.mean(weights * loss(z)))(jnp.asarray(file["logits"], dtype))
    rtol, atol = tolerance(dtype)
    np.testing.assert_allclose(value, file["loss_weighted"], rtol=rtol)
    np.testing.assert_allclose(gradient, file["grad_logits_weighted"], rtol=rtol, atol=atol)


def test_seesaw_of_the_official_module(golden, dtype):
    """Of its outputs the first ten are classes; where it has seen no sample of a class it counts one."""
    file = golden("seesaw_full")
    foreground = file["labels"] < 10
    logits = jnp.asarray(file["logits"][foreground, :10], dtype)
    counts = np.maximum(file["cum_samples_after"][:10], 1)
    loss = losses.seesaw(logits, file["labels"][foreground], counts=counts)
    # The module keeps its counts, and so its mitigation, in float32.
    np.testing.assert_allclose(jnp.mean(loss), file["loss_classes"], rtol=1e-5 if dtype == np.float32 else 1e-8)

    def both(logits):
        """Beside it two outputs tell whether there is an object at all, in every row."""
        of_classes = losses.seesaw(logits[foreground, :10], file["labels"][foreground], counts=counts)
        is_none = (~foreground).astype(np.int32)
        return jnp.mean(of_classes), jnp.mean(losses.cross_entropy(logits[:, 10:], is_none))

    everything = jnp.asarray(file["logits"], dtype)
    np.testing.assert_allclose(both(everything)[1], file["loss_objectness"], rtol=tolerance(dtype)[0])
    gradient, expected = jax.grad(lambda z: sum(both(z)))(everything), file["grad_logits"]
    np.testing.assert_allclose(
        gradient, expected, rtol=0, atol=(1e-5 if dtype == np.float32 else 1e-7) * expected.max()
    )


@pytest.mark.parametrize("name", ["lade_a", "lade_b"])
def test_lade_equals_the_official_one(name, golden, dtype):
    """It differs by the official epsilons alone: with them, the formula tested here gives the official value."""
    file = golden(name)
    prior, penalty = share(file), float(file["remine_lambda"])
    official = regularizer_of_lade(file["logits"], file["labels"], prior, penalty, prior_eps=1e-9, count_eps=1e-8)
    np.testing.assert_allclose(official, file["loss_lade"], rtol=1e-12)
    plain = regularizer_of_lade(file["logits"], file["labels"], prior, penalty)

    logits, arguments = jnp.asarray(file["logits"], dtype), {"labels": file["labels"], "prior": prior}
    regularizer = functools.partial(losses.lade_regularizer, penalty=penalty, **arguments)
    value, gradient = jax.value_and_grad(regularizer)(logits)
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(value, plain, rtol=tolerance(dtype)[0])
    rtol = 1e-5 if dtype == np.float32 else 1e-7  # the epsilons
    np.testing.assert_allclose(value, file["loss_lade"], rtol=rtol)
    np.testing.assert_allclose(gradient, file["grad_logits_lade"], rtol=rtol, atol=1e-8)

    loss = functools.partial(losses.lade, weight=float(file["lade_weight"]), penalty=penalty, **arguments)
    value, gradient = jax.value_and_grad(lambda z: jnp.mean(loss(z)))(logits)
    np.testing.assert_allclose(value, file["loss_total"], rtol=rtol)
    np.testing.assert_allclose(gradient, file["grad_logits_total"], rtol=rtol, atol=1e-8)


def tolerance(dtype):
    """Beside the relative one, what rounding the logits (up to 40) to this dtype already does."""
    return {"float32": (1e-5, 1e-6), "float64": (1e-10, 1e-14)}[np.dtype(dtype).name]


# --- Against float64 NumPy --------------------------------------------------------------------------------------------


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def oracle(name, logits, labels, constant=None):
    """The formula of ``ALL[name]``, written once more without care for overflow.

    Of ``constant``, by default the logits, are those parts of which a loss takes no gradient.
    """
    logits = np.asarray(logits, np.float64)
    constant = logits if constant is None else constant
    rows, target = np.arange(len(labels)), np.eye(logits.shape[1])[labels]
    if name.startswith("sigmoid"):
        return binary_focal(logits, target, gamma=2.0 if name == "sigmoid_focal" else 0.0).sum(1)
    if name == "distribution_balanced":
        return distribution_balanced(logits, labels)
    if name == "arcface":
        return arcface(logits, labels)
    shift = {
        "balanced_softmax": np.log(COUNTS),
        "logit_adjusted": 0.7 * np.log(PRIOR),
        "lade": np.log(PRIOR),
        "equilibrium": np.log(MEAN_SCORES),
        "ldam": -0.5 * target * COUNTS**-0.25 / np.max(COUNTS**-0.25),
        "seesaw": np.log(seesaw_factors(softmax(constant), labels)),
    }.get(name, 0.0)
    p = softmax((30.0 if name == "ldam" else 1.0) * (logits + shift))
    if name == "cross_entropy_smoothed":
        target = 0.9 * target + 0.1 / logits.shape[1]
    gamma = {"focal_0.5": 0.5, "focal_2": 2.0, "focal_2_detached": 2.0}.get(name, 0.0)
    hard = softmax(constant)[rows, labels] if name == "focal_2_detached" else p[rows, labels]
    loss = (1 - hard) ** gamma * -(target * np.log(p)).sum(1)
    return loss + 0.1 * regularizer_of_lade(logits, labels, PRIOR, 0.1) if name == "lade" else loss


def binary_focal(logits, target, gamma):
    """As the code of the class-balanced losses has it."""
    modulator = np.exp(-gamma * target * logits - gamma * np.log(1 + np.exp(-logits)))
    return modulator * (target * np.log(1 + np.exp(-logits)) + (1 - target) * np.log(1 + np.exp(logits)))


def distribution_balanced(logits, labels, kappa=0.05, scale=2.0):
    """Example by example and class by class, as the paper has it."""
    loss = np.zeros(len(labels))
    for (i, c), z in np.ndenumerate(logits - kappa * np.log(1 / PRIOR - 1)):
        weight = 0.1 + 1 / (1 + np.exp(-10.0 * ((1 / COUNTS[c]) / (1 / COUNTS[labels[i]]) - 0.2)))
        if c == labels[i]:
            p = 1 / (1 + np.exp(-z))
            loss[i] += weight * (1 - p) ** 2 * -np.log(p)
        else:
            p = 1 / (1 + np.exp(-scale * z))
            loss[i] += weight * p**2 * -np.log(1 - p) / scale
    return 2.0 * loss / len(COUNTS)


def arcface(cosines, labels, margin=0.5, scale=64.0):
    """Example by example, by the angle; of what is beyond 1, the sine is 0."""
    loss = np.zeros(len(labels))
    for i, (row, label) in enumerate(zip(cosines, labels, strict=True)):
        scores = scale * row
        if np.arccos(np.clip(row[label], -1, 1)) > np.pi - margin:
            scores[label] = scale * (row[label] - margin * np.sin(margin))
        elif abs(row[label]) < 1:
            scores[label] = scale * np.cos(np.arccos(row[label]) + margin)
        else:
            scores[label] = scale * row[label] * np.cos(margin)
        loss[i] = np.logaddexp.reduce(scores) - scores[label]
    return loss


def seesaw_factors(p, labels):
    factors = np.ones_like(p)
    for (i, j), _ in np.ndenumerate(p):
        y = labels[i]
        if j != y:
            factors[i, j] = min(1.0, COUNTS[j] / COUNTS[y]) ** 0.8 * max(1.0, p[i, j] / max(p[i, y], 0.01)) ** 2
    return factors


def regularizer_of_lade(logits, labels, prior, penalty, prior_eps=0.0, count_eps=0.0):
    """Class by class; the official code has the epsilons."""
    classes, total = len(prior), 0.0
    for c in range(classes):
        of_class = logits[labels == c, c]
        first = of_class.sum() / (len(of_class) + count_eps) if len(of_class) else 0.0
        ratio = np.exp(logits[:, c]) / (prior[c] + prior_eps) * (1 / classes + prior_eps)
        second = np.log(ratio.mean())
        total -= prior[c] * (first - second - penalty * second**2)
    return total


@pytest.mark.parametrize("name", ALL)
def test_value_and_gradient_equal_the_formula(name, dtype):
    logits, labels = batch(scale=0.5 if name in ("arcface", "ldam") else 3.0)
    loss = functools.partial(ALL[name], labels=labels)
    value = loss(jnp.asarray(logits, dtype))
    gradient = jax.grad(lambda z: jnp.sum(loss(z)))(jnp.asarray(logits, dtype))
    expected_gradient = np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        difference = oracle(name, logits + step, labels, logits) - oracle(name, logits - step, labels, logits)
        expected_gradient[index] = difference.sum() / 2e-5
    np.testing.assert_allclose(value, oracle(name, logits, labels), rtol=1e-5 if dtype == np.float32 else 1e-12)
    tolerance = 2e-5 if dtype == np.float32 else 1e-7  # The second is that of the finite difference.
    np.testing.assert_allclose(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def test_a_detached_modulator_only_rescales_the_gradient_of_cross_entropy():
    logits, labels = (jnp.asarray(array) for array in batch())
    focal, plain = (
        jax.grad(lambda z, loss=loss: jnp.sum(loss(z, labels)))(logits)
        for loss in (functools.partial(losses.focal, detach_modulator=True), losses.cross_entropy)
    )
    p = np.exp(-oracle("cross_entropy", logits, labels))
    np.testing.assert_allclose(focal, (1 - p[:, None]) ** 2 * plain, rtol=2e-5, atol=1e-7)


def test_ldam_margins_fall_with_the_fourth_root_of_the_count():
    """At equal cosines and scale 1, the odds of the true class are exp(-margin)."""
    labels = jnp.arange(5)
    loss = losses.ldam(jnp.zeros((5, 5)), labels, counts=COUNTS, max_margin=0.3, scale=1.0)
    margins = -jnp.log(4.0 / (jnp.exp(loss) - 1.0))
    np.testing.assert_allclose(-margins, -0.3 * (1 / COUNTS) ** 0.25, rtol=2e-6)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.5, np.pi / 2])
def test_arcface_falls_with_the_angle_over_the_whole_half_circle(margin, dtype):
    """From the loss of two classes follows the score of the true one: that of the wider angle, up to π."""
    angles = np.linspace(0.0, np.pi, 401)
    cosines = jnp.asarray(np.stack([np.cos(angles), np.zeros(401)], axis=1), dtype)
    loss = losses.arcface(cosines, jnp.zeros(401, jnp.int32), margin=margin, scale=1.0)
    assert loss.dtype == dtype
    score = -np.log(np.expm1(np.asarray(loss, np.float64)))
    assert np.all(np.diff(score) < (1e-6 if dtype == np.float32 else 1e-12))
    below = angles < np.pi - margin - 1e-3
    atol = 1e-3 if dtype == np.float32 else 1e-7  # where cosines are rounded, angles near 0 are by the root of that
    np.testing.assert_allclose(score[below], np.cos(angles + margin)[below], rtol=0, atol=atol)
    beyond = angles > np.pi - margin + 1e-3
    np.testing.assert_allclose(score[beyond], (np.cos(angles) - margin * np.sin(margin))[beyond], rtol=0, atol=atol)


def test_arcface_at_the_ends(variant):
    """The sine is 0 there and counts as having no slope; and beyond by rounding, nothing else happens."""
    own = np.array([1.0, np.nextafter(np.float32(1), np.float32(0)), 1.0 + 1e-6, -1.0, -1.0 - 1e-6], np.float32)
    cosines, labels = jnp.asarray(np.stack([own, np.zeros(5, np.float32)], axis=1)), jnp.zeros(5, jnp.int32)
    loss = functools.partial(losses.arcface, labels=labels, scale=2.0)
    value, gradient = variant(lambda z: (loss(z), jax.grad(lambda z: jnp.sum(loss(z)))(z)))(cosines)
    ends = np.array([np.cos(0.5)] * 3 + [-1 - 0.5 * np.sin(0.5)] * 2)
    np.testing.assert_allclose(value, np.log1p(np.exp(-2 * ends)), rtol=1e-3)
    chex.assert_tree_all_finite(gradient)
    slope = np.array([np.cos(0.5), 1.0])
    np.testing.assert_allclose(gradient[jnp.array([0, 3]), 0], -2 * slope / (1 + np.exp(2 * ends[[0, 3]])), rtol=1e-5)
    assert gradient[1, 0] < -100  # of the sine


def test_arcface_without_a_margin_is_cross_entropy_of_scaled_cosines():
    cosines, labels = batch(scale=0.4)
    expected = losses.cross_entropy(10.0 * cosines, labels)
    np.testing.assert_allclose(losses.arcface(cosines, labels, margin=0.0, scale=10.0), expected, rtol=1e-5)


def test_seesaw_takes_no_gradient_of_its_factors():
    logits, labels = batch()
    gradient = jax.grad(lambda z: jnp.sum(losses.seesaw(z, labels, counts=COUNTS)))(jnp.asarray(logits, jnp.float32))
    weighted = seesaw_factors(softmax(logits), labels) * np.exp(logits)
    expected = weighted / weighted.sum(1, keepdims=True) - np.eye(5)[labels]
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-6)


def test_lade_counts_a_class_that_the_batch_lacks():
    """Of two classes, one without examples: its first term is 0 and its second counts."""
    logits, labels = jnp.log(jnp.array([[1.0, 2.0], [1.0, 4.0]])), jnp.array([0, 0])
    value = losses.lade_regularizer(logits, labels, prior=[0.25, 0.75], penalty=0.5)
    present, absent = np.log(1.0 / (2 * 0.25)), np.log(3.0 / (2 * 0.75))
    expected = 0.25 * (present + 0.5 * present**2) + 0.75 * (absent + 0.5 * absent**2)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_lade_leaves_out_a_class_that_no_example_can_have(variant):
    logits, labels = batch(scale=1.0)
    labels = labels % 4
    masked = np.array(logits, np.float32)
    masked[:, 4] = -np.inf
    regularizer = functools.partial(losses.lade_regularizer, labels=labels, prior=PRIOR)
    value, gradient = variant(jax.value_and_grad(regularizer))(jnp.asarray(masked))
    second = np.log(np.exp(logits[:, 4]).mean() / (5 * PRIOR[4]))
    expected = regularizer_of_lade(logits, labels, PRIOR, 0.1) - PRIOR[4] * (second + 0.1 * second**2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_array_equal(gradient[:, 4], 0.0)


def test_lade_where_single_examples_rule_classes_out(variant):
    logits, labels = batch(scale=1.0)
    masked = np.where((np.arange(5)[None, :] == 1) & (labels[:, None] % 2 == 0), -np.inf, logits).astype(np.float32)
    regularizer = functools.partial(losses.lade_regularizer, labels=labels, prior=PRIOR)
    value, gradient = variant(jax.value_and_grad(regularizer))(jnp.asarray(masked))
    np.testing.assert_allclose(value, regularizer_of_lade(masked, labels, PRIOR, 0.1), rtol=1e-5)
    chex.assert_tree_all_finite(gradient)


def test_lade_of_examples_that_are_all_no_class():
    logits, _ = batch()
    regularizer = functools.partial(losses.lade_regularizer, prior=PRIOR)
    value, gradient = jax.jit(jax.value_and_grad(regularizer))(jnp.asarray(logits), jnp.full(12, -1))
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_mean_of_lade_is_that_of_logit_adjusted_and_the_weighted_regularizer():
    logits, labels = batch()
    value = losses.lade(logits, labels, prior=PRIOR, weight=0.3, penalty=0.7)
    regularizer = losses.lade_regularizer(logits, labels, prior=PRIOR, penalty=0.7)
    expected = losses.logit_adjusted(logits, labels, prior=PRIOR) + 0.3 * regularizer
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_distribution_balanced_when_one_class_has_nearly_all_samples():
    """The share of the largest class rounds to 1 in float32, and its bias must stay finite."""
    logits, labels = jnp.zeros((2, 2)), jnp.array([0, 1])
    loss = functools.partial(losses.distribution_balanced, labels=labels, counts=[10**12, 1])
    chex.assert_tree_all_finite(jax.value_and_grad(lambda z: jnp.sum(loss(z)))(logits))


# --- What holds for any input -----------------------------------------------------------------------------------------

any_logits = hnp.arrays(np.float64, (4, 5), elements=st.floats(-50, 50))
any_labels = hnp.arrays(np.int32, (4,), elements=st.integers(0, 4))
examples = hypothesis.settings(
    max_examples=25, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


@every_loss
@examples
@hypothesis.given(any_logits, any_labels, st.floats(-100, 100))
def test_a_shift_of_all_logits_changes_nothing(loss, logits, labels, shift):
    if is_one_of(loss, losses.sigmoid_focal, losses.distribution_balanced):
        pytest.skip("a sigmoid is of one logit, whatever the others are")
    if is_one_of(loss, losses.lade):
        pytest.skip("the penalty is there to keep the logits where they are")
    if is_one_of(loss, losses.arcface):
        pytest.skip("a shift of cosines changes angles")
    with jax.enable_x64(True):
        np.testing.assert_allclose(loss(logits + shift, labels), loss(logits, labels), rtol=1e-9, atol=1e-9)


@examples
@hypothesis.given(any_logits, any_labels, st.permutations(range(5)))
@pytest.mark.parametrize("name", losses.names())
def test_renaming_the_classes_changes_nothing(name, logits, labels, order):
    with jax.enable_x64(True):
        before = losses.create(name, counts=COUNTS)(logits, labels)
        renamed = np.argsort(order)[labels].astype(np.int32)
        after = losses.create(name, counts=COUNTS[order])(logits[:, order], renamed)
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)


@examples
@hypothesis.given(any_logits, any_labels, st.floats(0.1, 5.0))
def test_focal_lies_between_zero_and_cross_entropy(logits, labels, gamma):
    with jax.enable_x64(True):
        cross_entropy = losses.cross_entropy(logits, labels)
        focal = losses.focal(logits, labels, gamma=gamma)
        np.testing.assert_array_equal(losses.focal(logits, labels, gamma=0.0), cross_entropy)
        assert bool(jnp.all((focal >= 0) & (focal <= cross_entropy)))


@examples
@hypothesis.given(any_logits, any_labels, st.floats(1e-3, 1e3))
def test_only_ratios_of_counts_matter(logits, labels, factor):
    with jax.enable_x64(True):
        for name in OF_COUNTS:
            before, after = (losses.create(name, counts=c)(logits, labels) for c in (COUNTS, COUNTS * factor))
            np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)
        equal = np.full(5, factor)
        expected = losses.cross_entropy(logits, labels)
        np.testing.assert_allclose(
            losses.balanced_softmax(logits, labels, counts=equal), expected, rtol=1e-9, atol=1e-12
        )
        logit_adjusted = losses.logit_adjusted(logits, labels, prior=PRIOR, tau=0.0)
        np.testing.assert_allclose(logit_adjusted, expected, rtol=1e-9, atol=1e-12)
        without_factors = losses.seesaw(logits, labels, counts=COUNTS, p=0.0, q=0.0)
        np.testing.assert_allclose(without_factors, expected, rtol=1e-9, atol=1e-12)
        without_margin = losses.ldam(logits, labels, counts=COUNTS, max_margin=0.0, scale=1.0)
        np.testing.assert_allclose(without_margin, expected, rtol=1e-9, atol=1e-12)


# --- Numerics ---------------------------------------------------------------------------------------------------------


@every_loss
def test_saturated_logits_keep_value_and_gradient_finite(loss, variant):
    logits = jnp.array([[1.0, -1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0, -1.0]])
    logits = jnp.concatenate([magnitude * logits for magnitude in (0.0, 88.0, 1e4) for _ in range(2)])
    labels = jnp.array([0, 0, 4, 4] * 3)  # Certain and right, torn between four, certain and wrong, ruled out by all.
    value, gradient = variant(lambda z: (loss(z, labels), jax.grad(lambda z: jnp.sum(loss(z, labels)))(z)))(logits)
    chex.assert_tree_all_finite((value, gradient))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_at_certainty(gamma, variant):
    """p = 1 costs nothing and pulls nowhere; p = 0 costs and pulls as cross-entropy does."""
    logits = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    labels = jnp.array([0, 1])
    loss = functools.partial(losses.focal, gamma=gamma)
    value, gradient = variant(lambda z: (loss(z, labels), jax.grad(lambda z: jnp.sum(loss(z, labels)))(z)))(logits)
    np.testing.assert_array_equal(value, [0.0, 2e4])
    np.testing.assert_array_equal(gradient, [[0.0, 0.0], [1.0, -1.0]])


def test_focal_gradient_falls_to_zero_towards_certainty():
    """For γ < 1 too, where (1-p)^γ alone has an unbounded slope."""
    gap = np.linspace(0.0, 60.0, 601)
    logits = jnp.asarray(np.stack([gap, np.zeros_like(gap)], axis=1), jnp.float32)
    labels = jnp.zeros(601, jnp.int32)
    slope = jax.grad(lambda z: jnp.sum(losses.focal(z, labels, gamma=0.5)))(logits)[:, 0]
    p, q = 1 / (1 + np.exp(-gap)), 1 / (1 + np.exp(gap))
    np.testing.assert_allclose(slope, 0.5 * p * q**0.5 * np.log(p) - q**1.5, rtol=1e-3, atol=1e-9)


@every_loss
def test_infinite_logits_mask_classes_out(loss):
    """A class that -inf rules out is as good as absent, unless the target has a share of it."""
    if getattr(loss, "keywords", {}).get("label_smoothing"):
        pytest.skip("a smoothed target gives every class a share")
    if is_one_of(loss, losses.lade):
        pytest.skip("the penalty is on low logits too; what -inf does has its own test")
    logits, labels = batch(classes=5, scale=1.0)
    labels = labels % 4
    removed = np.array(logits, np.float32)
    removed[:, 4] = -np.inf
    floor = np.where(np.isinf(removed), np.float32(-1e4), removed)
    np.testing.assert_allclose(loss(removed, labels), loss(floor, labels), rtol=1e-6)
    gradient, expected = (jax.grad(lambda z: jnp.sum(loss(z, labels)))(jnp.asarray(z)) for z in (removed, floor))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@every_loss
@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_upcast_first(loss, narrow):
    logits, labels = batch()
    logits = jnp.asarray(logits, narrow)
    value = loss(logits, labels)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(logits.astype(jnp.float32), labels))


@every_loss
def test_a_sharded_batch_needs_no_communication(loss):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
    logits, labels = batch(examples=32, scale=0.3)
    logits, labels = jax.device_put((logits.astype(np.float32), labels.astype(np.int32)), rows)

    @jax.jit
    def value_and_gradient(logits, labels):
        value, pullback = jax.vjp(lambda z: loss(z, labels), logits)
        return value, *pullback(jnp.ones_like(value))

    value, gradient = value_and_gradient(logits, labels)
    expected = loss(np.asarray(logits), np.asarray(labels))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert value.sharding == gradient.sharding == rows
    if is_one_of(loss, losses.lade):
        return  # Its regularizer is of the whole batch.
    program = value_and_gradient.lower(logits, labels).compile().as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in program]


# --- Bad input --------------------------------------------------------------------------------------------------------


@every_loss
def test_traced_labels_that_are_no_class_give_nan(loss):
    logits, _ = batch(examples=6)
    logits = jnp.asarray(logits)
    labels = jnp.array([-1, 2, 5, -5, 2**31 - 1, 4])
    is_class = np.array([False, True, False, False, False, True])
    gradient, value = jax.jit(jax.grad(lambda z, y: (jnp.nansum(loss(z, y)), loss(z, y)), has_aux=True))(logits, labels)
    np.testing.assert_array_equal(np.isfinite(value), is_class)
    expected = loss(np.asarray(logits)[is_class], np.asarray(labels)[is_class])
    np.testing.assert_allclose(np.asarray(value)[is_class], expected, rtol=1e-5)
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=1), is_class)


@every_loss
@pytest.mark.parametrize("bad", [-1, 5, 2**32])
def test_readable_labels_that_are_no_class_raise(loss, bad):
    logits, labels = batch(examples=4)
    labels[2] = bad
    message = rf"labels must lie in \[0, 5\), got {bad} at position 2"
    with pytest.raises(ValueError, match=message):
        loss(logits, labels)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda z: loss(z, labels))(logits.astype(np.float32))


@pytest.mark.parametrize("label_dtype", [np.int8, np.uint8])
def test_labels_narrower_than_the_number_of_classes(label_dtype, variant):
    logits = 0.1 * np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    loss = functools.partial(losses.ldam, counts=np.arange(1, 301))
    labels = np.array([0, 5, 127])
    np.testing.assert_allclose(variant(loss)(logits, jnp.asarray(labels, label_dtype)), loss(logits, labels), rtol=1e-5)


@every_loss
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((4, 5), np.int32), np.zeros(4, np.int32), "(logits|cosines) must be floating point, got int32"),
        (
            np.zeros(5, np.float32),
            np.zeros(1, np.int32),
            r"(logits|cosines) must have shape \[batch, classes\], got \(5,\)",
        ),
        (np.zeros((4, 5), np.float32), np.zeros(3, np.int32), r"labels must have shape \(4,\)"),
        (np.zeros((4, 5), np.float32), np.zeros((4, 1), np.int32), r"labels must have shape \(4,\)"),
        (np.zeros((4, 5), np.float32), np.zeros(4, np.float32), "labels must be integers, got float32"),
    ],
)
def test_wrong_shapes_and_dtypes_raise(loss, logits, labels, message, variant):
    with pytest.raises(ValueError, match=message):
        variant(loss)(logits, labels)


@pytest.mark.parametrize("name", ["balanced_softmax", "distribution_balanced", "ldam", "seesaw"])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 2, 1, 1], r"counts must have shape \(5,\), one per class, got \(4,\)"),
        ([[3, 2, 1, 1, 1]], r"counts must have shape \(5,\)"),
        ([3, 2, 1, 1, -1], "counts must be finite and positive, one per class, got -1 for class 4"),
        ([3, 2, 1, 1, np.nan], "counts must be finite and positive, one per class, got nan for class 4"),
        ([3, 2, np.inf, 1, 1], "counts must be finite and positive, one per class, got inf for class 2"),
        ([3, 0, 1, 1, 0], "counts must be finite and positive, one per class, got 0 for class 1"),
    ],
)
def test_bad_counts_raise(name, counts, message, variant):
    logits, labels = batch()
    with pytest.raises(ValueError, match=message):
        variant(lambda z: getattr(losses, name)(z, labels, counts=counts))(logits)


@pytest.mark.parametrize("name", ["logit_adjusted", "lade", "lade_regularizer"])
@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.3, 0.3, 0.2, 0.2], r"prior must have shape \(5,\), one per class, got \(4,\)"),
        (0.2, r"prior must have shape \(5,\), one per class, got \(\)"),
        ([0.3, 0.3, 0.2, 0.2, 0.0], r"prior must be positive and sum to 1, got \[0.3, 0.3, 0.2, 0.2, 0.0\] with sum 1"),
        ([0.4, 0.4, 0.2, 0.2, -0.2], "prior must be positive and sum to 1"),
        ([0.3, 0.3, 0.2, 0.2, 0.1], "prior must be positive and sum to 1, got .* with sum 1.1"),
        ([0.3, 0.3, 0.2, 0.2, np.nan], "prior must be positive and sum to 1, got .* with sum nan"),
        ([0.3, 0.3, 0.2, 0.2, np.inf], "prior must be positive and sum to 1, got .* with sum inf"),
        (COUNTS, "prior must be positive and sum to 1, got .* with sum 658"),
    ],
)
def test_bad_priors_raise(name, prior, message, variant):
    logits, labels = batch()
    with pytest.raises(ValueError, match=message):
        variant(lambda z: getattr(losses, name)(z, labels, prior=prior))(logits)


@pytest.mark.parametrize("prior_dtype", [np.float32, np.float16, np.float64, jnp.bfloat16])
def test_a_prior_may_be_rounded(prior_dtype):
    prior = np.full(1000, 1e-3, prior_dtype)
    loss = losses.logit_adjusted(np.zeros((1, 1000), np.float32), np.zeros(1, int), prior=prior)
    np.testing.assert_allclose(loss, np.log(1000), rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, np.nan, np.inf])
def test_bad_mean_scores_raise(bad, variant):
    logits, labels = batch()
    with pytest.raises(ValueError, match=rf"mean_scores must lie in \(0, 1\], got \[0.5, 0.5, 0.5, 0.5, {bad}\]"):
        variant(lambda z: losses.equilibrium(z, labels, mean_scores=[0.5, 0.5, 0.5, 0.5, bad]))(logits)
    with pytest.raises(ValueError, match=r"mean_scores must have shape \(5,\), one per class, got \(4,\)"):
        losses.equilibrium(logits, labels, mean_scores=np.full(4, 0.5))


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        *((name, "counts", np.array([500, 100, 30, 7, 1])) for name in OF_COUNTS if name not in OF_A_PRIOR),
        ("logit_adjusted", "prior", PRIOR),
        ("lade", "prior", PRIOR),
        ("lade_regularizer", "prior", PRIOR),
        ("equilibrium", "mean_scores", MEAN_SCORES),
    ],
)
def test_what_is_of_classes_may_be_traced(name, argument, value):
    logits, labels = batch(scale=0.3)
    loss = getattr(losses, name)
    traced = jax.jit(lambda z, y, of_classes: loss(z, y, **{argument: of_classes}))(logits, labels, value)
    np.testing.assert_allclose(traced, loss(logits, labels, **{argument: value}), rtol=1e-5, atol=1e-6)


# --- Registry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", losses.names())
def test_create_fills_in_counts_and_defaults(name):
    logits, labels = batch()
    hyper = {"prior": PRIOR} if name in OF_A_PRIOR else {"counts": COUNTS} if name in OF_COUNTS else {}
    created = losses.create(name, counts=COUNTS)
    np.testing.assert_array_equal(created(logits, labels), getattr(losses, name)(logits, labels, **hyper))
    chex.assert_shape(created(logits, labels), (12,))


def test_create_passes_hyper_parameters_on():
    logits, labels = batch()
    np.testing.assert_array_equal(
        losses.create("ldam", counts=COUNTS, max_margin=0.2, scale=10.0)(logits, labels),
        losses.ldam(logits, labels, counts=COUNTS, max_margin=0.2, scale=10.0),
    )


def test_only_margins_on_cosines_want_a_cosine_head():
    assert {name: losses.head(name) for name in losses.names()} == {
        "arcface": "cosine",
        "balanced_softmax": "linear",
        "cross_entropy": "linear",
        "distribution_balanced": "linear",
        "focal": "linear",
        "lade": "linear",
        "ldam": "cosine",
        "logit_adjusted": "linear",
        "seesaw": "linear",
        "sigmoid_focal": "linear",
    }


@pytest.mark.parametrize("name", OF_COUNTS)
def test_create_under_jit_takes_traced_counts(name):
    logits, labels = batch(scale=0.3)
    counts = np.array([500, 100, 30, 7, 1])
    traced = jax.jit(lambda counts: losses.create(name, counts=counts)(logits, labels))(counts)
    np.testing.assert_allclose(traced, losses.create(name, counts=counts)(logits, labels), rtol=1e-5, atol=1e-6)


def test_create_takes_a_prior_of_its_own():
    logits, labels = batch()
    created = losses.create("logit_adjusted", prior=PRIOR[::-1], tau=2.0)
    expected = losses.logit_adjusted(logits, labels, prior=PRIOR[::-1], tau=2.0)
    np.testing.assert_array_equal(created(logits, labels), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "focl"}, "unknown loss 'focl'; did you mean 'focal'?"),
        ({"name": "focal", "gama": 1.0}, "unknown hyper-parameter of focal 'gama'; did you mean 'gamma'?"),
        ({"name": "ldam", "counts": [1, 2], "margin": 1.0}, "'margin'; did you mean 'max_margin'?"),
        ({"name": "ldam"}, "loss 'ldam' needs counts"),
        ({"name": "balanced_softmax"}, "loss 'balanced_softmax' needs counts"),
        ({"name": "balanced_softmax", "counts": [1, -2]}, "counts must be finite and positive"),
        ({"name": "focal", "gamma": -1.0}, "gamma must be a finite number >= 0, got -1.0"),
        ({"name": "focal", "gamma": "2"}, "gamma must be a finite number >= 0, got '2'"),
        ({"name": "cross_entropy", "label_smoothing": 1.5}, r"label_smoothing must be .* in \[0, 1\], got 1.5"),
        ({"name": "ldam", "counts": [1, 2], "max_margin": float("nan")}, r"max_margin must be .* in \[0, 2\]"),
        ({"name": "ldam", "counts": [1, 2], "max_margin": 7.0}, r"max_margin must be .* in \[0, 2\], got 7.0"),
        ({"name": "ldam", "counts": [1, 2], "scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"name": "arcface", "margin": -0.1}, r"margin must be .* in \[0, 1.5708\], got -0.1"),
        ({"name": "arcface", "margin": 28.6}, r"margin must be .* in \[0, 1.5708\], got 28.6"),
        ({"name": "arcface", "scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"name": "lade"}, "loss 'lade' needs counts, the training samples per class"),
        ({"name": "seesaw"}, "loss 'seesaw' needs counts"),
        ({"name": "lade", "counts": [[1, 2]]}, r"counts must have shape \[classes\], got \(1, 2\)"),
        ({"name": "lade", "counts": [1, -2]}, "counts must be finite and positive"),
        ({"name": "lade", "counts": [1, 0]}, "counts must be finite and positive, one per class, got 0 for class 1"),
        ({"name": "lade", "prior": [0.5, 0.4]}, "prior must be positive and sum to 1"),
        ({"name": "lade", "prior": [0.5, 0.495]}, "prior must be positive and sum to 1"),
        ({"name": "lade", "counts": [1, 2], "weight": -1.0}, "weight must be a finite number >= 0, got -1.0"),
        ({"name": "lade", "counts": [1, 2], "penalty": -1.0}, "penalty must be a finite number >= 0, got -1.0"),
        ({"name": "lade", "counts": [1, 2], "remine_lambda": 0.5}, "unknown hyper-parameter of lade 'remine_lambda'"),
        ({"name": "logit_adjusted", "counts": [1, 2], "tau": -1.0}, "tau must be a finite number >= 0, got -1.0"),
        ({"name": "seesaw", "counts": [1, 2], "p": -0.1}, "p must be a finite number >= 0, got -0.1"),
        ({"name": "seesaw", "counts": [1, 2], "q": float("inf")}, "q must be a finite number >= 0, got inf"),
        ({"name": "seesaw", "counts": [1, 2], "eps": 0.0}, r"eps must be a number in \(0, 1\], got 0.0"),
        ({"name": "seesaw", "counts": [1, 2], "eps": 1.5}, r"eps must be .* in \(0, 1\], got 1.5"),
        ({"name": "sigmoid_focal", "gamma": -1.0}, "gamma must be a finite number >= 0, got -1.0"),
        (
            {"name": "distribution_balanced", "counts": [3]},
            r"logits must be of at least two classes, got shape \(1, 1\)",
        ),
        *(
            ({"name": "distribution_balanced", "counts": [1, 2], hyper: -1.0}, f"{hyper} must be a finite number >= 0")
            for hyper in ("alpha", "beta", "mu", "bias", "gamma")
        ),
        *(
            ({"name": "distribution_balanced", "counts": [1, 2], hyper: 0.0}, f"{hyper} must be a finite number > 0")
            for hyper in ("negative_scale", "balance")
        ),
    ],
)
def test_create_refuses(arguments, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        losses.create(**arguments)


def test_head_refuses_an_unknown_loss():
    with pytest.raises(ValueError, match="did you mean 'ldam'"):
        losses.head("ldamm")


def test_losses_load_no_layer_library():
    program = "import sys, dsb_jax.losses; assert not {'flax', 'optax'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
