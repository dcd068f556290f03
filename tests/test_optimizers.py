"""Schedules against their formulas, optimizers against PyTorch's, written down in float64."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsb_jax.training import optimizers

NAMES = ("constant", "cosine", "exponential", "linear", "step")


def rates(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.asarray(steps, jnp.int32)))


# Schedules. 40 steps of 4 epochs.


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda t: 0.3),
        ("linear", lambda t: 0.3 * (1 - t / 40)),
        ("cosine", lambda t: 0.3 * (1 + math.cos(math.pi * t / 40)) / 2),
        ("exponential", lambda t: 0.3 * 0.9 ** (t // 10)),
        ("step", lambda t: 0.3 * 0.2 ** ((t >= 10) + (t >= 25))),
    ],
)
def test_schedules_are_their_formulas(name, formula):
    options = {"decay_rate": 0.9, "milestones": (1, 2.5), "decay_factor": 0.2}
    schedule = optimizers.schedule(name, 0.3, 40, steps_per_epoch=10, **options)
    expected = [formula(t) for t in range(40)]
    np.testing.assert_allclose(rates(schedule, range(40)), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose([jax.jit(schedule)(t) for t in (0, 17, 39)], np.array(expected)[[0, 17, 39]], rtol=1e-4)
    np.testing.assert_allclose([float(schedule(t)) for t in (0, 17, 39)], np.array(expected)[[0, 17, 39]], rtol=1e-4)
    if name in ("linear", "cosine"):
        np.testing.assert_allclose(rates(schedule, [40, 1000]), 0.0, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda t: 0.3),
        ("linear", lambda t: 0.3 * (1 - (t - 15) / 25)),
        ("cosine", lambda t: 0.3 * (1 + math.cos(math.pi * (t - 15) / 25)) / 2),
        ("exponential", lambda t: 0.3 * 0.9 ** ((t - 15) // 10)),
        ("step", lambda t: 0.3 * 0.2 ** ((t >= 20) + (t >= 30))),  # epochs of the run, warm-up included
    ],
)
def test_warm_up_comes_before_the_schedule_and_wastes_no_step(name, formula):
    options = {"decay_rate": 0.9, "milestones": [2, 3], "decay_factor": 0.2, "warmup_epochs": 1.5}
    schedule = optimizers.schedule(name, 0.3, 40, steps_per_epoch=10, **options)
    expected = [0.3 * (t + 1) / 15 if t < 15 else formula(t) for t in range(40)]
    np.testing.assert_allclose(rates(schedule, range(40)), expected, rtol=1e-6, atol=1e-8)


def test_steps_and_warm_up_are_those_of_the_official_ldam(golden):
    file = golden("lr_schedule_ldam_drw")
    options = {"milestones": (160, 180), "decay_factor": 0.01, "warmup_epochs": 5}
    schedule = optimizers.schedule("step", float(file["base_lr"]), 200, steps_per_epoch=1, **options)
    np.testing.assert_allclose(rates(schedule, range(200)), file["lr"], rtol=1e-6)


@given(examples=st.integers(1, 10**6), batch=st.integers(1, 4096), early=st.sampled_from([0, 2]))
@example(examples=50_000, batch=128, early=0)
@example(examples=7, batch=3, early=0)  # 27 epochs are 63 steps, but in floats 27·(7/3) is more
@example(examples=437_513, batch=512, early=2)
@settings(deadline=None, max_examples=100)
def test_epochs_end_where_the_examples_have_been_seen(examples, batch, early):
    """An epoch's first step is the first that lies wholly beyond it, by counting examples in integers."""
    batch, epochs = min(batch, examples), 30
    steps = -(-(epochs + 1) * examples // batch)
    first = [-(-epoch * examples // batch) for epoch in range(early + 1, epochs + 1)]
    around = np.clip([step + shift for step in first for shift in (-1, 0, 1)], 0, steps - 1)
    passed = np.array([int(step) * batch // examples for step in around])
    warm = around >= -(-early * examples // batch)
    options = {"steps_per_epoch": examples / batch, "decay_rate": 0.5, "decay_factor": 0.5, "warmup_epochs": early}
    exponential = optimizers.schedule("exponential", 1.0, steps, **options)
    milestones = tuple(range(early + 1, epochs + 1))
    stepwise = optimizers.schedule("step", 1.0, steps, milestones=milestones, **options)
    for schedule in (exponential, stepwise):
        halvings = -np.log2(rates(schedule, around)[warm])
        np.testing.assert_allclose(halvings, np.minimum(passed, epochs)[warm] - early, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps_per_epoch", [1, 0.25, 37.5])
def test_a_run_of_one_step_has_the_full_rate(name, steps_per_epoch):
    schedule = optimizers.schedule(name, 0.3, 1, steps_per_epoch=steps_per_epoch, milestones=(7,))
    np.testing.assert_allclose(rates(schedule, [0]), 0.3, rtol=1e-6)
    assert np.isfinite(rates(schedule, range(5))).all()


# Optimizers, with a rate that changes.

RATES = (0.5, 0.1, 0.1, 0.02, 0.3)
BETA2, EPSILON, DECAY = 0.99, 1e-3, 0.1


def torch_steps(name, theta, gradients, *, momentum, decay, decayed, clip_norm):
    """θ after every step; torch.optim.SGD, Adam and AdamW after torch.nn.utils.clip_grad_norm_, less its 1e-6."""
    theta = {key: value.copy() for key, value in theta.items()}
    first, second = ({key: np.zeros_like(value) for key, value in theta.items()} for _ in range(2))
    for count, (rate, gradient) in enumerate(zip(RATES, gradients, strict=True), start=1):
        norm = math.sqrt(sum(np.sum(value**2) for value in gradient.values()))
        for key, value in gradient.items():
            weight_decay = DECAY if key in decayed else 0.0
            g = value * min(1.0, clip_norm / norm) if clip_norm else value
            if decay == "l2":
                g = g + weight_decay * theta[key]
            else:
                theta[key] = theta[key] * (1 - rate * weight_decay)
            if name == "sgd":
                first[key] = momentum * first[key] + g
                theta[key] = theta[key] - rate * first[key]
            else:
                first[key] = momentum * first[key] + (1 - momentum) * g
                second[key] = BETA2 * second[key] + (1 - BETA2) * g**2
                denominator = np.sqrt(second[key]) / math.sqrt(1 - BETA2**count) + EPSILON
                theta[key] = theta[key] - rate / (1 - momentum**count) * first[key] / denominator
        yield dict(theta)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("decay_on", ["all", "kernels"])
@pytest.mark.parametrize("decay", ["l2", "decoupled"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizers_are_those_of_pytorch(name, decay, decay_on, momentum, clip_norm):
    rng = np.random.default_rng(0)
    shapes = {"conv": (2, 2, 1, 3), "kernel": (3, 2), "bias": (2,), "scale": (3,)}
    theta, *gradients = ({key: rng.normal(size=shape) for key, shape in shapes.items()} for _ in range(6))
    gradients[3] = {key: value / 100 for key, value in gradients[3].items()}  # shorter than what is clipped
    decayed = shapes if decay_on == "all" else ("conv", "kernel")
    options = {"momentum": momentum, "decay": decay, "clip_norm": clip_norm}
    with jax.enable_x64(True):
        optimizer = optimizers.optimizer(
            name, lambda step: jnp.asarray(RATES)[step], adam_beta2=BETA2, adam_epsilon=EPSILON,
            weight_decay=DECAY, decay_on=decay_on, **options,
        )  # fmt: skip
        params = jax.tree.map(jnp.asarray, theta)
        state = initial = optimizer.init(params)
        expected = torch_steps(name, theta, gradients, decayed=decayed, **options)
        for gradient, wanted in zip(gradients, expected, strict=True):
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)
            chex.assert_trees_all_close(params, wanted, rtol=1e-10)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, initial)


def test_the_settings_of_an_optimizer_all_matter():
    """Else the comparison with PyTorch could pass for any."""
    rng = np.random.default_rng(0)
    theta, *gradients = ({"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)} for _ in range(6))
    results = [
        list(torch_steps(name, theta, gradients, momentum=m, decay=d, decayed=on, clip_norm=c))[-1]["bias"]
        for name, m, d, on, c in itertools.product(
            ("sgd", "adam"), (0.0, 0.8), ("l2", "decoupled"), (("bias",), ()), (0.0, 1.0)
        )
    ]
    # Without momentum both decays of SGD are one but for the rate's order, and without decay they are one altogether.
    assert len({tuple(np.round(result, 9)) for result in results}) >= 20


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("decay", ["l2", "decoupled"])
def test_a_head_may_have_a_rate_of_its_own(name, decay):
    """It moves as in a run that has this rate for all, and the others as in one without it; also heads of experts."""
    rng = np.random.default_rng(0)
    shapes = {"backbone": {"kernel": (3, 2)}, "head": {"kernel": (2, 4)}, "experts_0": {"head": {"kernel": (2, 3)}}}
    theta, *gradients = (
        jax.tree.map(
            lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda x: type(x) is tuple
        )
        for _ in range(4)
    )

    def trained(rate, head_rate=None):
        head = head_rate and optax.linear_schedule(head_rate, 0.0, 10)
        options = {"weight_decay": 0.1, "decay": decay}
        optimizer = optimizers.optimizer(name, optax.linear_schedule(rate, 0.0, 10), head_schedule=head, **options)
        params, state = jax.tree.map(jnp.asarray, theta), optimizer.init(theta)
        for gradient in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)
        return params

    slow, fast, both = trained(0.01), trained(0.2), trained(0.01, 0.2)
    chex.assert_trees_all_close(both["backbone"], slow["backbone"], rtol=1e-6)
    # Each parameter moves by itself, so that the two runs differ in nothing else.
    chex.assert_trees_all_close(both["head"], fast["head"], rtol=1e-6)
    chex.assert_trees_all_close(both["experts_0"], fast["experts_0"], rtol=1e-6)
    assert np.abs(both["head"]["kernel"] - slow["head"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_half_precision_gradients_do_not_narrow_the_state(name):
    optimizer = optimizers.optimizer(name, optax.constant_schedule(0.1), weight_decay=0.1, clip_norm=1.0)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(optax.apply_updates(params, updates), params)


def schedule(name="linear", rate=0.1, steps=10, **options):
    return optimizers.schedule(name, rate, steps, **{"steps_per_epoch": 2.5} | options)


def optimizer(name="sgd", **options):
    return optimizers.optimizer(name, optax.constant_schedule(0.1), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule("linaer"), "unknown schedule 'linaer'; did you mean 'linear'"),
        (lambda: schedule(rate=0.0), "learning_rate must be a finite number > 0, got 0.0"),
        (lambda: schedule(rate=math.nan), "learning_rate must be a finite number > 0, got nan"),
        (lambda: schedule(steps=0), "steps must be an integer >= 1, got 0"),
        (lambda: schedule(steps_per_epoch=0), "steps_per_epoch must be a finite number > 0, got 0"),
        (lambda: schedule(warmup_epochs=-1), "warmup_epochs must be a finite number >= 0, got -1"),
        (lambda: schedule(warmup_epochs=4.0), "warmup_epochs must leave some of the run's .* steps, got 4"),
        (lambda: schedule("exponential", decay_rate=0.0), r"decay_rate must lie in \(0, 1\], got 0.0"),
        (lambda: schedule("exponential", decay_rate=1.1), r"decay_rate must lie in \(0, 1\], got 1.1"),
        (lambda: schedule("step", decay_factor=math.nan), r"decay_factor must lie in \(0, 1\], got nan"),
        (lambda: schedule("step", milestones=(3, 2)), r"milestones must increase and .* warm-up, got \(3, 2\)"),
        (lambda: schedule("step", milestones=(2, 2)), r"milestones must increase and .* warm-up, got \(2, 2\)"),
        (lambda: schedule("step", milestones=(0,)), "milestones must be a finite number > 0, got 0"),
        (lambda: schedule("step", milestones=(1,), warmup_epochs=1), r"beyond the 1 epochs of warm-up, got \(1,\)"),
        (lambda: optimizer("adamw"), "unknown optimizer 'adamw'; did you mean 'adam'"),
        (lambda: optimizer(decay="L2"), "unknown decay 'L2'; did you mean 'l2'"),
        (lambda: optimizer(decay_on="kernel"), "unknown decay_on 'kernel'; did you mean 'kernels'"),
        (lambda: optimizer(momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: optimizer(momentum=-0.1), r"momentum must lie in \[0, 1\), got -0.1"),
        (lambda: optimizer("adam", adam_beta2=1), r"adam_beta2 must lie in \[0, 1\), got 1"),
        (lambda: optimizer("adam", adam_epsilon=0), "adam_epsilon must be a finite number > 0, got 0"),
        (lambda: optimizer(weight_decay=-1.0), "weight_decay must be a finite number >= 0, got -1.0"),
        (lambda: optimizer(weight_decay=math.nan), "weight_decay must be a finite number >= 0, got nan"),
        (lambda: optimizer(clip_norm=-1.0), "clip_norm must be a finite number >= 0, got -1.0"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
