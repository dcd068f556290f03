"""RIDE against the official implementation's numbers, NumPy, and its own contract."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.objectives import Ride, RideRouting, Supervised, total_loss
from dsb_jax.objectives.ride import class_temperatures

EXPERTS, BATCH, CLASSES = 3, 12, 5


def outputs_of(expert_logits, routers=None):
    """What a model with these experts returns."""
    features = jnp.arange(expert_logits.shape[0] * expert_logits.shape[1] * 2.0).reshape(*expert_logits.shape[:2], 2)
    experts = models.Outputs(expert_logits, features)
    means = (jnp.mean(array, axis=0) for array in experts[:2])
    return models.Outputs(*means, experts=experts, routers=routers)


def apply(objective, outputs, labels, *, step=0, teacher=(), **more):
    """The result of an objective whose model returns ``outputs``."""
    batch = {"image": "the images", "label": jnp.asarray(labels, jnp.int32), **more}
    state = objective.init(jax.random.key(0), {"teacher": teacher}, outputs)
    for _ in range(step):
        state = objective.after_update(state, {})
    return objective(lambda images, **options: outputs, batch, state, jax.random.key(0))


# --- Against the official implementation ------------------------------------------------------------------------------


def of_golden(file, **options):
    """The objective of a golden file, and its step: one for each epoch."""
    loss, scale = losses.create("cross_entropy"), 1.0
    if int(file.get("use_ldam", 1)):
        scale = float(file["s"])
        loss = losses.create("ldam", counts=file["counts"], max_margin=float(file["max_m"]), scale=scale)
    objective = Ride(
        Supervised(loss),
        diversity=float(file["diversity_factor"]),
        class_temperatures=class_temperatures(file["counts"], float(file["reweight_factor"])),
        start=int(file["reweight_epoch"]),
        scale=scale,
        **options,
    )
    return objective, int(file["epoch"]) - 1


def weights_of(file):
    """Those of deferred re-weighting, which the official code starts together with the temperatures."""
    effective = 1 - 0.9999 ** file["counts"].astype(np.float64)
    weights = 1 / effective
    late = int(file["epoch"]) > int(file["reweight_epoch"])
    return len(weights) * weights / weights.sum() if late else np.ones(len(weights))


def as_torch_reduces(terms, weights):
    """Weighted terms by their weighted mean; the sum of all."""
    total = 0.0
    for term in terms:
        weight = jnp.ones(len(term.losses)) if term.labels is None else jnp.asarray(weights)[term.labels]
        total += term.scale * jnp.sum(weight * term.losses) / jnp.sum(weight)
    return total


def value_and_gradient(file, dtype, factor=1.0, **options):
    objective, step = of_golden(file, **options)
    taught = jnp.asarray(file.get("teacher_logits", 0), dtype)

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        outputs = outputs_of(logits / objective.scale)
        terms = apply(objective, outputs, file["labels"], step=step, teacher=taught).terms
        return factor * as_torch_reduces(terms, weights_of(file))

    return loss(jnp.asarray(file["expert_logits"], dtype))


@pytest.mark.parametrize("name", ["ride_before", "ride_after", "ride_ce_nodrw"])
def test_loss_and_gradient_are_the_official_ones(golden, name, dtype):
    file = golden(name)
    loss, gradient = value_and_gradient(file, dtype)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(loss, file["loss"], rtol=tolerance)
    limit = tolerance * np.abs(file["grad_expert_logits"]).max()
    np.testing.assert_allclose(gradient, file["grad_expert_logits"], rtol=tolerance, atol=limit)


@pytest.mark.parametrize("name", ["ride_before", "ride_after", "ride_ce_nodrw"])
def test_without_diversity_the_experts_losses_are_left(golden, name):
    file = golden(name)
    loss, _ = value_and_gradient(file | {"diversity_factor": 0.0}, np.float32)
    np.testing.assert_allclose(loss, file["loss_base_only"], rtol=1e-5)


def test_distillation_is_the_official_one_but_for_the_number_of_experts(golden, dtype):
    file = golden("ride_distill")
    teacher = functools.partial(models.Outputs, features=None)
    loss, gradient = value_and_gradient(
        file,
        dtype,
        factor=len(file["expert_logits"]),
        teacher=lambda logits, images: teacher(logits),
        distillation=float(file["distill_factor"]),
        distillation_temperature=float(file["distill_temperature"]),
    )
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(loss, file["loss"], rtol=tolerance)
    limit = tolerance * np.abs(file["grad_expert_logits"]).max()
    np.testing.assert_allclose(gradient, file["grad_expert_logits"], rtol=tolerance, atol=limit)


def test_temperatures_are_the_official_ones(golden):
    file = golden("ride_after")
    expected = np.ravel(file["class_temperatures"])
    np.testing.assert_allclose(class_temperatures(file["counts"], 0.02), expected, rtol=1e-12)


# --- Against NumPy ----------------------------------------------------------------------------------------------------


@pytest.fixture
def numbers():
    rng = np.random.default_rng(0)
    return {
        "logits": (2 * rng.normal(size=(EXPERTS, BATCH, CLASSES))).astype(np.float32),
        "labels": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "mask": rng.random(BATCH) < 0.6,
        "weights": rng.gamma(2.0, 1.0, CLASSES).astype(np.float32),
    }


def softmax(logits):
    exp = np.exp(np.asarray(logits, np.float64))
    return exp / exp.sum(axis=-1, keepdims=True)


def by_hand(numbers, *, diversity, temperatures, mask):
    """Of cross-entropy, with class weights on the classification terms, over the examples that count."""
    logits, labels = numbers["logits"].astype(np.float64), numbers["labels"]
    target, total = softmax(logits.mean(axis=0) / temperatures), 0.0
    for expert in logits:
        classified = -np.log(softmax(expert))[np.arange(BATCH), labels] * numbers["weights"][labels]
        distance = np.sum(target * np.log(target / softmax(expert / temperatures)), axis=1)
        total += np.mean((classified + diversity * np.mean(temperatures) ** 2 * distance)[mask])
    return total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_terms_and_the_step_at_which_temperatures_go_by_class(numbers, step, masked):
    of_class = np.linspace(1.0, 0.6, CLASSES)
    objective = Ride(
        Supervised(losses.create("cross_entropy")),
        diversity=-0.3,
        temperature=1.5,
        class_temperatures=of_class,
        start=3,
    )
    mask = {"mask": jnp.asarray(numbers["mask"])} if masked else {}
    outputs = outputs_of(jnp.asarray(numbers["logits"]))
    result = apply(objective, outputs, numbers["labels"], step=step, **mask)
    assert [term.labels is None for term in result.terms] == [False, True] * EXPERTS
    loss = total_loss(result.terms, jnp.asarray(numbers["weights"]), mask=result.mask)
    temperatures = 1.5 * (of_class if step == 3 else np.ones(CLASSES))
    counted = numbers["mask"] if masked else slice(None)
    np.testing.assert_allclose(
        loss, by_hand(numbers, diversity=-0.3, temperatures=temperatures, mask=counted), rtol=1e-5
    )
    assert result.features is outputs.features
    assert result.logits is outputs.logits
    np.testing.assert_array_equal(result.labels, numbers["labels"])
    right = numbers["logits"].mean(axis=0).argmax(axis=1) == numbers["labels"]
    np.testing.assert_allclose(result.metrics["accuracy"], right[counted].mean(), rtol=1e-6)
    assert result.metrics["diversity"] > 0
    assert result.state.step == step


def test_mixed_images_have_their_share_of_both_labels(numbers):
    objective = Ride(Supervised(losses.create("cross_entropy")), diversity=0.0)
    others, share = np.roll(numbers["labels"], 1), 0.3
    mixed = {"share": jnp.full(BATCH, share), "other_label": jnp.asarray(others)}
    result = apply(objective, outputs_of(jnp.asarray(numbers["logits"])), numbers["labels"], **mixed)
    weights, rows = numbers["weights"], np.arange(BATCH)
    log_p = np.log(softmax(numbers["logits"]))
    parts = ((share, numbers["labels"]), (1 - share, others))
    expected = -sum(s * np.mean(weights[y] * log_p[:, rows, y].sum(axis=0)) for s, y in parts)
    np.testing.assert_allclose(total_loss(result.terms, jnp.asarray(weights)), expected, rtol=1e-5)
    np.testing.assert_array_equal(result.labels, others)


def test_saturated_logits_have_finite_terms_and_gradients():
    logits = jnp.asarray(np.random.default_rng(0).choice([-1e4, 0.0, 1e4], (EXPERTS, BATCH, CLASSES)), jnp.float32)
    objective = Ride(Supervised(losses.create("cross_entropy")))

    @jax.value_and_grad
    def loss(logits):
        return total_loss(apply(objective, outputs_of(logits), np.zeros(BATCH)).terms, jnp.ones(CLASSES))

    chex.assert_tree_all_finite(loss(logits))


def test_routers_learn_where_a_later_expert_helps(numbers):
    """By hand: 100 for an image whose experts so far are wrong and more are right; and the early exit's size."""
    logits, labels = numbers["logits"], numbers["labels"]
    routers = np.random.default_rng(1).normal(size=(EXPERTS - 1, BATCH)).astype(np.float32)
    seen = {}

    def forward(images, **options):
        seen.update(options)
        return outputs_of(jnp.asarray(logits), jnp.asarray(routers))

    objective = RideRouting(Supervised(losses.create("cross_entropy")), positive_weight=100.0)
    batch = {"image": "the images", "label": jnp.asarray(labels), "mask": jnp.asarray(numbers["mask"])}
    result = objective(forward, batch, (), jax.random.key(0))
    assert seen == {"train": False}  # no statistics follow
    right = np.stack([logits[: n + 1].mean(axis=0).argmax(axis=1) == labels for n in range(EXPERTS)])
    expected, taken = 0.0, np.ones(BATCH)
    for number, router in enumerate(np.float64(routers)):
        wanted = ~right[number] & right[number + 1 :].any(axis=0)
        assert wanted.any()
        probability = 1 / (1 + np.exp(-router))
        losses_of = np.where(wanted, -100 * np.log(probability), -np.log(1 - probability))
        expected += losses_of / (EXPERTS - 1)
        taken += (routers[: number + 1] > 0).all(axis=0)
    (term,) = result.terms
    assert term.labels is None
    np.testing.assert_allclose(term.losses, expected, rtol=1e-5)
    np.testing.assert_allclose(result.metrics["experts"], taken[numbers["mask"]].mean(), rtol=1e-6)


# --- With a model -----------------------------------------------------------------------------------------------------


def test_routing_trains_routers_alone():
    model = models.create("lenet", CLASSES, experts=EXPERTS, routers=True)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 8, 8, 1)), jnp.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    objective = RideRouting(Supervised(losses.create("cross_entropy")))

    @jax.jit
    @jax.grad
    def gradient(params):
        forward = functools.partial(model.apply, variables | {"params": params})
        batch = {"image": images, "label": jnp.arange(BATCH) % CLASSES}
        return total_loss(objective(forward, batch, (), jax.random.key(0)).terms, jnp.ones(CLASSES))

    moved = {name for name, part in gradient(variables["params"]).items() if any(map(np.any, jax.tree.leaves(part)))}
    assert moved == {"routers_0", "routers_1"}


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_model_without_experts_or_routers_is_refused():
    supervised = Supervised(losses.create("cross_entropy"))
    plain = models.Outputs(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    experts = outputs_of(jnp.zeros((2, 2, 3)))
    for objective, outputs, message in (
        (Ride(supervised), plain, r"objective 'ride' needs a model with experts, got one without: .*ride\.experts"),
        (RideRouting(supervised), plain, "objective 'ride_routing' needs a model with experts, got one without"),
        (RideRouting(supervised), experts, "objective 'ride_routing' needs a model with routers.*routers=True"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.init(jax.random.key(0), {}, outputs)
        batch = {"image": "the images", "label": jnp.zeros(2, jnp.int32)}
        with pytest.raises(ValueError, match=message):
            objective(lambda images, outputs=outputs, **options: outputs, batch, (), jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"scale": -1.0}, "scale must be a finite number > 0, got -1.0"),
        ({"distillation": -1.0}, "distillation must be a finite number >= 0, got -1.0"),
        ({"distillation_temperature": 0.0}, "distillation_temperature must be a finite number > 0"),
        ({"diversity": np.nan}, "diversity must be a finite number, got nan"),
        ({"class_temperatures": np.array([1.0, 0.0])}, "class_temperatures must be finite and above 0"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ride(Supervised(losses.create("cross_entropy")), **arguments)


@pytest.mark.parametrize("factor", [-0.1, 1.0])
def test_a_reweight_factor_out_of_range(factor):
    with pytest.raises(ValueError, match=r"reweight_factor must lie in \[0, 1\), got"):
        class_temperatures(np.array([3, 1]), factor)
