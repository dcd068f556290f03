"""Memory-based jitter: what enters the memories, what is drawn from them, and what the two terms train."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsb_jax import losses, models
from dsb_jax.models import Classifier, heads
from dsb_jax.objectives import MemoryJitter, Supervised, memory_capacity

RNG = jax.random.key(0)
CROSS_ENTROPY = Supervised(losses.create("cross_entropy"))
COUNTS = np.array([40, 20, 10])


class Flat:
    """A model that is its head: images are their own features; with calls as the step has them."""

    def __init__(self, kernel):
        self.params = {"backbone": {}, "head": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}}

    def forward(self, inputs, *, variables=None, method=None, train=True):
        head = (variables or {"params": self.params})["params"]["head"]
        logits = inputs.reshape(len(inputs), -1) @ head["kernel"] + head["bias"][None]
        return logits if method == "classify" else models.Outputs(logits, inputs.reshape(len(inputs), -1))


def images(number, start=0):
    """One feature that numbers them, and one that is 1."""
    count = jnp.arange(start, start + number, dtype=jnp.float32)
    return jnp.stack([count, jnp.ones(number)], axis=1)


def objective(**changed):
    return MemoryJitter(CROSS_ENTROPY, **({"counts": COUNTS, "capacity": 6} | changed))


def begin(of, model):
    return of.init(RNG, {"params": model.params}, model.forward(images(1)))


def call(of, model, state, number, labels, start=0, rng=RNG, **more):
    batch = {"image": images(number, start), "label": jnp.asarray(labels, jnp.int32), **more}
    return of(model.forward, batch, state, rng)


MODEL = Flat(jnp.array([[0.1, -0.2, 0.3], [1.0, 0.0, -1.0]]))


# --- What enters ------------------------------------------------------------------------------------------------------


def test_all_enter_in_order_where_all_probabilities_are_1():
    of = objective(power=0.0)
    state = begin(of, MODEL)
    for number in range(3):  # 12 features pass through 6 places
        state = call(of, MODEL, state, 4, [0, 1, 2, 0], 4 * number).state
    np.testing.assert_array_equal(state.features[:, 0], [6, 7, 8, 9, 10, 11])
    np.testing.assert_array_equal(state.labels, [2, 0, 0, 1, 2, 0])
    assert (state.filled, state.place) == (6, 0)
    state = call(of, MODEL, state, 4, [1, 1, 1, 1], 12, mask=jnp.array([True, False, True, True])).state
    np.testing.assert_array_equal(state.features[:, 0], [12, 14, 15, 9, 10, 11])  # the oldest gave way
    np.testing.assert_array_equal(state.labels, [1, 1, 1, 1, 2, 0])
    assert (state.filled, state.place) == (6, 3)


def test_a_batch_that_is_more_than_the_memory_fills_it_once():
    of = objective(power=0.0)
    state = call(of, MODEL, begin(of, MODEL), 9, [0] * 9).state
    np.testing.assert_array_equal(state.features[:, 0], range(6))


def test_features_enter_with_the_probability_of_their_class():
    of = objective(capacity=4000)
    np.testing.assert_allclose(of.probabilities, [0.25, 0.5, 1.0])
    state = call(of, MODEL, begin(of, MODEL), 3000, np.repeat([0, 1, 2], 1000)).state
    entered = np.bincount(state.labels[: int(state.filled)], minlength=3)
    assert entered[2] == 1000
    np.testing.assert_allclose(entered[:2], [250, 500], atol=4 * 16)
    assert len(np.unique(state.features[: int(state.filled), 0])) == state.filled


def test_capacity_is_what_enters_in_so_many_epochs():
    assert memory_capacity(COUNTS, history=2.0, power=1.0) == 60  # 10 of each class in an epoch
    assert memory_capacity(COUNTS, history=1.0, power=0.0) == 70
    assert memory_capacity(np.array([3, 0, 3]), history=0.01, power=1.0) == 1
    with pytest.raises(ValueError, match="history must be a finite number > 0, got 0"):
        memory_capacity(COUNTS, history=0, power=1.0)


# --- The term of features ---------------------------------------------------------------------------------------------


def filled_state(of, model=MODEL):
    state = call(of, model, begin(of, model), 6, [0, 1, 2, 2, 1, 0], 10).state
    return dataclasses.replace(state, step=jnp.int32(of.start))


def test_remembered_features_are_classified_by_the_last_layer_as_it_is():
    of = objective(power=0.0, head_weight=0.0, weight=0.7)
    state = filled_state(of)
    other = Flat(MODEL.params["head"]["kernel"] + 0.1)
    drawn = []
    for seed in range(40):
        result = call(of, other, state, 6, [0] * 6, rng=jax.random.key(seed))
        plain, term = result.terms
        np.testing.assert_array_equal(plain.labels, np.zeros(6))
        np.testing.assert_allclose(term.scale, 0.7, rtol=1e-6)
        possible = losses.cross_entropy(other.forward(state.features, method="classify"), state.labels)
        for value, label in zip(term.losses, term.labels, strict=True):
            match = np.flatnonzero((np.abs(possible - value) < 1e-6) & (state.labels == label))
            assert len(match) == 1
            drawn.append(match[0])
    assert np.bincount(drawn, minlength=6).min() > 20  # 40 of each are expected


def test_it_trains_the_last_layer_and_not_what_made_the_features():
    of = objective(power=0.0, head_weight=0.0)
    state = filled_state(of)

    def term(kernel, image):
        batch = {"image": image, "label": jnp.zeros(6, jnp.int32)}
        return jnp.sum(of(Flat(kernel).forward, batch, state, RNG).terms[1].losses)

    of_kernel, of_image = jax.grad(term, argnums=(0, 1))(MODEL.params["head"]["kernel"], images(6))
    assert np.abs(of_kernel).max() > 0.1
    np.testing.assert_array_equal(of_image, np.zeros((6, 2)))


def test_memories_fill_from_the_first_step_and_count_from_the_start():
    of = objective(power=0.0, start=2, interval=1)
    state, scales = begin(of, MODEL), []
    for number in range(4):
        result = call(of, MODEL, state, 3, [0, 1, 2], 3 * number)
        state = of.after_update(result.state, MODEL.params)
        scales.append([float(term.scale) for term in result.terms[1:]])
        assert result.metrics["memory"] == min(3 * (number + 1), 6)
    np.testing.assert_allclose(scales, [[0, 0], [0, 0], [1, 0.5], [1, 0.5]])


def test_empty_memories_count_for_nothing():
    of = objective(interval=5)
    result = call(of, MODEL, begin(of, MODEL), 3, [0, 1, 2])
    assert [float(term.scale) for term in result.terms] == [1.0, 0.0, 0.0]
    assert all(np.isfinite(term.losses).all() for term in result.terms)


# --- The term of earlier last layers ----------------------------------------------------------------------------------


def test_last_layers_are_kept_every_few_steps_and_the_oldest_gives_way():
    of = objective(snapshots=3, interval=2)
    state = begin(of, MODEL)
    for number in range(1, 21):
        state = of.after_update(state, Flat(jnp.full((2, 3), float(number))).params)
        kept = sorted(state.heads["head"]["kernel"][:, 0, 0].tolist())
        even = [float(n) for n in range(2, number + 1, 2)][-3:]
        assert kept == sorted([0.0] * (3 - len(even)) + even)
        assert (int(state.taken) == 0) == (number < 2)
    assert "backbone" not in state.heads


def test_features_are_classified_by_an_earlier_last_layer_the_more_the_rarer_their_class():
    of = objective(weight=0.0, head_weight=0.3, snapshots=2, interval=1)
    state = begin(of, MODEL)
    kernels = [jnp.array([[0.2, 0.1, -0.4], [0.5, 0.5, 2.0]]) * factor for factor in (1.0, -1.0)]
    for kernel in kernels:
        state = of.after_update(state, Flat(kernel).params)
    labels, seen = np.array([0, 1, 2, 2]), set()
    for seed in range(12):
        _, term = call(of, MODEL, state, 4, labels, rng=jax.random.key(seed)).terms
        expected = [of.probabilities[labels] * losses.cross_entropy(images(4) @ k, labels) for k in kernels]
        match = [n for n in range(2) if np.allclose(term.losses, expected[n], rtol=1e-5)]
        assert len(match) == 1
        seen |= set(match)
        np.testing.assert_array_equal(term.labels, labels)
        np.testing.assert_allclose(term.scale, 0.3, rtol=1e-6)
    assert seen == {0, 1}


def test_it_trains_what_makes_features_and_not_the_last_layer():
    of = objective(weight=0.0, interval=1)
    state = of.after_update(begin(of, MODEL), MODEL.params)

    def term(kernel, image):
        batch = {"image": image, "label": jnp.zeros(6, jnp.int32)}
        return jnp.sum(of(Flat(kernel).forward, batch, state, RNG).terms[1].losses)

    of_kernel, of_image = jax.grad(term, argnums=(0, 1))(MODEL.params["head"]["kernel"], images(6))
    np.testing.assert_array_equal(of_kernel, np.zeros((2, 3)))
    assert np.abs(of_image).max() > 0.01


# --- What is inside ---------------------------------------------------------------------------------------------------


def test_the_terms_and_the_state_of_the_other_objective_are_as_it_makes_them():
    @dataclasses.dataclass(frozen=True)
    class Counting(Supervised):
        def init(self, rng, variables, outputs):
            return jnp.int32(5)

        def __call__(self, forward, batch, state, rng):
            return super().__call__(forward, batch, state + 1, rng)

        def after_update(self, state, params):
            return 10 * state

    inner = Counting(losses.create("focal", gamma=1.0), views=2, samplers=("plain", "reversed"))
    of = MemoryJitter(inner, counts=COUNTS, capacity=6)
    assert (of.loss, of.views, of.samplers) == (inner.loss, 2, ("plain", "reversed"))
    state = begin(of, MODEL)
    assert state.inner == 5
    result = call(of, MODEL, state, 3, [0, 1, 2])
    expected = inner(MODEL.forward, {"image": images(3), "label": jnp.arange(3)}, 5, RNG)
    np.testing.assert_array_equal(result.terms[0].losses, expected.terms[0].losses)
    np.testing.assert_array_equal(result.features, expected.features)
    assert of.after_update(result.state, MODEL.params).inner == 60


def test_every_expert_has_memories_and_terms_of_its_own():
    """Outputs and parameters as a model of several experts has them."""
    kernels = [jnp.array([[0.1, -0.2, 0.3], [1.0, 0.0, -1.0]]), jnp.array([[-0.4, 0.2, 0.1], [0.0, 1.0, 0.5]])]
    params = {f"experts_{n}": {"backbone": {}, "head": {"kernel": kernel}} for n, kernel in enumerate(kernels)}

    @dataclasses.dataclass
    class Outputs:
        logits: jax.Array
        features: jax.Array
        experts: "Outputs | None" = None
        classifier: None = None

    def forward(inputs, *, variables=None, method=None):
        used = (variables or {"params": params})["params"]
        features = inputs if method == "classify" else jnp.stack([inputs, 2 * inputs])
        logits = jnp.stack([features[n] @ used[f"experts_{n}"]["head"]["kernel"] for n in range(2)])
        if method == "classify":
            return logits
        return Outputs(logits.mean(0), features.mean(0), Outputs(logits, features))

    of = objective(power=0.0, interval=1)
    batch = {"image": images(3), "label": jnp.array([2, 1, 0], jnp.int32)}
    state = of.init(RNG, {"params": params}, forward(images(1)))
    state = of.after_update(of(forward, batch, state, RNG).state, params)
    assert state.features.shape == (6, 2, 2)
    np.testing.assert_array_equal(state.features[1], [[1.0, 1.0], [2.0, 2.0]])
    assert sorted(state.heads) == ["experts_0", "experts_1"]
    result = of(forward, batch, state, RNG)
    _, *remembered, earlier_0, earlier_1 = result.terms
    for number, term in enumerate([earlier_0, earlier_1]):
        expected = losses.cross_entropy((number + 1) * images(3) @ kernels[number], batch["label"])
        np.testing.assert_allclose(term.losses, expected, rtol=1e-5)
    for number, term in enumerate(remembered):
        possible = losses.cross_entropy((number + 1) * images(3) @ kernels[number], batch["label"])
        assert all(np.abs(possible - value).min() < 1e-5 for value in term.losses)


def test_mixed_images_enter_as_of_the_class_of_their_larger_share():
    of, labels = objective(power=0.0), jnp.array([0, 1, 2])
    mixed = {"other_label": jnp.array([1, 2, 0]), "share": jnp.array([0.4, 0.5, 0.9])}
    state = call(of, MODEL, begin(of, MODEL), 3, labels, **mixed).state
    np.testing.assert_array_equal(state.labels[:3], [1, 1, 2])


def test_what_it_cannot_look_into_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Elsewhere(Supervised):
        def __call__(self, forward, batch, state, rng):
            return super().__call__(lambda images: MODEL.forward(images), batch, state, rng)

    of = MemoryJitter(Elsewhere(losses.create("cross_entropy")), counts=COUNTS, capacity=6)
    with pytest.raises(ValueError, match=r"'mbj' needs one inside that passes .* choose another with objective=mbj"):
        call(of, MODEL, begin(of, MODEL), 3, [0, 1, 2])
    with pytest.raises(ValueError, match=r"last layer lies under 'head', got parameters under \['backbone'\]"):
        of.init(RNG, {"params": {"backbone": {}}}, MODEL.forward(images(1)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"capacity": 0}, "capacity must be an integer >= 1, got 0"),
        ({"snapshots": 0}, "snapshots must be an integer >= 1, got 0"),
        ({"interval": 0}, "interval must be an integer >= 1, got 0"),
        ({"weight": -1.0}, "weight must be a finite number >= 0, got -1.0"),
        ({"head_weight": -1.0}, "head_weight must be a finite number >= 0"),
        ({"power": -1.0}, "power must be a finite number >= 0"),
    ],
)
def test_bad_numbers_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        objective(**changed)


@pytest.mark.parametrize("head", [heads.CosineHead(3, 4.0), heads.CausalHead(3), heads.SoftTripleHead(3, 4.0)])
def test_any_head_is_kept_and_classifies(head):
    model = Classifier(backbone=models.create("lenet", 3).backbone, head=head)
    pixels = jax.random.normal(RNG, (5, 8, 8, 1))
    variables = model.init(RNG, pixels, train=False)

    def forward(inputs, *, variables=variables, train=True, **options):
        return model.apply(variables, inputs, train=train, mutable=["batch_stats"], **options)[0]

    of = objective(interval=1)
    state = of.init(RNG, variables, model.apply(variables, pixels[:1], train=False))
    state = of.after_update(state, variables["params"])
    result = of(forward, {"image": pixels, "label": jnp.array([0, 1, 2, 0, 1], jnp.int32)}, state, RNG)
    now, _, earlier = result.terms
    np.testing.assert_allclose(earlier.losses, of.probabilities[now.labels] * now.losses, rtol=1e-5)
