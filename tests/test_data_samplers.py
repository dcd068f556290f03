"""Draws are pure functions of the seed and the step, with the frequencies that they promise."""

import concurrent.futures
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from dsb_jax.data import samplers

COUNTS = np.array([400, 120, 40, 8, 2])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


WEIGHTS = np.random.default_rng(1).uniform(0.5, 2.0, len(LABELS))
OPTIONS = {"epochs": 4, "weights": WEIGHTS, "examples_per_class": 16}


def drawn(name, batches=400, batch_size=50, seed=3, **options):
    draw = samplers.create(name, LABELS, batch_size, seed=seed, **options)
    return np.concatenate([draw(step) for step in range(batches)])


@pytest.mark.parametrize(
    ("name", "frequencies"),
    [
        ("class_balanced", np.ones(5)),
        ("square_root", COUNTS**0.5),
        ("reversed", COUNTS.max() / COUNTS),  # w_i of BBN's equation 5
    ],
)
def test_classes_have_their_frequencies_and_their_images_are_alike(name, frequencies):
    rows = drawn(name)
    assert rows.dtype == np.int32
    found = np.bincount(LABELS[rows], minlength=5)
    wanted = len(rows) * frequencies / frequencies.sum()
    assert scipy.stats.chisquare(found, wanted).pvalue > 1e-4
    for label in range(5):
        of_class = np.bincount(rows, minlength=len(LABELS))[label == LABELS]
        assert scipy.stats.chisquare(of_class).pvalue > 1e-4


def test_plain_is_the_order():
    plain, order = samplers.create("plain", LABELS, 32, seed=5), samplers.order(len(LABELS), 32, seed=5)
    for step in (0, 3, 40):
        np.testing.assert_array_equal(plain(step), order(step))


@pytest.mark.parametrize("name", samplers.names())
def test_a_step_needs_no_other_step(name):
    forwards = samplers.create(name, LABELS, 32, seed=5, **OPTIONS)
    batches = [forwards(step) for step in range(20)]
    assert all(batch.dtype == np.int32 and batch.shape == (32,) for batch in batches)
    for step in np.random.default_rng(1).permutation(20).tolist():
        np.testing.assert_array_equal(samplers.create(name, LABELS, 32, seed=5, **OPTIONS)(step), batches[step])
    assert len({tuple(batch) for batch in batches}) == 20
    assert (samplers.create(name, LABELS, 32, seed=6, **OPTIONS)(0) != batches[0]).any()


@pytest.mark.parametrize("name", samplers.names())
def test_threads_do_not_change_a_draw(name):
    alone, shared = (samplers.create(name, LABELS, 64, seed=5, **OPTIONS) for _ in range(2))
    steps = np.random.default_rng(2).permutation(200).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for step, batch in zip(steps, pool.map(shared, steps), strict=True):
            np.testing.assert_array_equal(batch, alone(step))


@pytest.mark.parametrize("batch_size", [24, 50])  # also one that groups straddle
@pytest.mark.parametrize("per_class", [1, 3, 4])
def test_the_class_aware_sampler_takes_all_classes_in_turn_and_all_images_of_each(per_class, batch_size):
    rows = drawn("class_aware", 3 * 5 * per_class * 40, batch_size, examples_per_class=per_class)
    groups = LABELS[rows].reshape(-1, per_class)
    np.testing.assert_array_equal(groups, np.broadcast_to(groups[:, :1], groups.shape))
    cycles = groups[:, 0].reshape(-1, 5)
    np.testing.assert_array_equal(np.sort(cycles, axis=1), np.broadcast_to(np.arange(5), cycles.shape))
    # Each of 120 orders is as likely, and a class follows itself now and then.
    orders = [tuple(cycle) for cycle in cycles.tolist()]
    found = [orders.count(order) for order in itertools.permutations(range(5))]
    assert scipy.stats.chisquare(found).pvalue > 1e-4
    for label, count in enumerate(COUNTS):
        of_class = rows[LABELS[rows] == label]
        passes = of_class[: len(of_class) // count * count].reshape(-1, count)
        every = np.broadcast_to(np.flatnonzero(label == LABELS), passes.shape)
        np.testing.assert_array_equal(np.sort(passes, axis=1), every)
        assert count < 3 or len({tuple(order) for order in passes.tolist()}) > len(passes) // 2


def pk_batches(labels, classes_per_batch, per_class, batches, seed=0, first=0):
    """Positions ``[batches, classes_per_batch, per_class]``."""
    draw = samplers.pk(labels, classes_per_batch * per_class, seed=seed, examples_per_class=per_class)
    rows = np.stack([draw(step) for step in range(first, first + batches)])
    assert rows.dtype == np.int32
    return rows.reshape(batches, classes_per_batch, per_class)


@st.composite
def cases_of_pk(draw):
    """Labels of classes of 0 to 9 examples, how many classes a batch has, and how many examples of each."""
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(len(counts)), counts))
    return labels, draw(st.integers(1, np.count_nonzero(counts))), draw(st.integers(1, 6))


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(cases_of_pk(), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_pk_batch_has_different_classes_and_as_many_examples_of_each(case, seed, first):
    labels, classes_per_batch, per_class = case
    counts = np.bincount(labels)
    for batch in pk_batches(labels, classes_per_batch, per_class, 5, seed, first):
        of_group = labels[batch]
        np.testing.assert_array_equal(of_group, np.broadcast_to(of_group[:, :1], of_group.shape))
        assert len(set(of_group[:, 0].tolist())) == classes_per_batch
        for label, group in zip(of_group[:, 0], batch, strict=True):
            times = np.unique(group, return_counts=True)[1]
            assert len(times) == min(per_class, counts[label])
            assert times.max() - times.min() <= 1


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(cases_of_pk(), st.integers(0, 2**40))
def test_the_classes_of_pk_take_turns(case, seed):
    labels, classes_per_batch, per_class = case
    present = np.unique(labels)
    # As often as all have sat out equally often.
    batches = len(present) // classes_per_batch * len(present) // np.gcd(len(present), len(present) % classes_per_batch)
    rows = pk_batches(labels, classes_per_batch, per_class, 2 * batches, seed)
    come = np.cumsum((labels[rows[:, :, 0]][:, :, None] == present).sum(axis=1), axis=0)
    assert np.max(np.ptp(come, axis=1)) <= 2
    np.testing.assert_array_equal(np.ptp(come[batches - 1 :: batches], axis=1), 0)


def test_pk_shuffles_classes_and_the_images_of_each():
    """Of five classes three in a batch: every pair of classes meets as often, and images of a class are alike."""
    rows = pk_batches(LABELS, 3, 3, 4000)
    come = LABELS[rows[:, :, 0]]
    assert scipy.stats.chisquare(np.bincount(come.ravel(), minlength=5)).pvalue > 0.99
    pairs = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for batch in np.sort(come, axis=1).tolist():
        for pair in itertools.combinations(batch, 2):
            pairs[pair] += 1
    assert scipy.stats.chisquare(list(pairs.values())).pvalue > 1e-4
    for label in range(5):
        of_class = np.bincount(rows.ravel(), minlength=len(LABELS))[label == LABELS]
        assert scipy.stats.chisquare(of_class).pvalue > 1e-4
    # Where none sits out, thirteen groups of the class of 40 come before one of its images comes again.
    groups = LABELS[(every := pk_batches(LABELS, 5, 3, 26))[:, :, 0]] == 2
    passes = every[groups].reshape(2, 39)
    assert [len(set(once)) for once in passes.tolist()] == [39, 39]
    assert (passes[0] != passes[1]).any()


def test_pk_of_many_classes_needs_no_other_batch():
    labels = np.repeat(np.arange(10_000), 3)
    far = pk_batches(labels, 32, 4, 2, first=10**9)
    assert len(set(labels[far[0, :, 0]])) == len(set(labels[far[1, :, 0]])) == 32
    np.testing.assert_array_equal(pk_batches(labels, 32, 4, 1, first=10**9 + 1)[0], far[1])


def test_classes_without_images_are_passed_over():
    labels = np.array([1, 1, 4, 4, 4])
    draw = samplers.create("class_aware", labels, 8, seed=0)
    assert [sorted(set(labels[draw(step)])) for step in range(3)] == [[1, 4]] * 3
    balanced = samplers.progressively_balanced(labels, 1000, seed=0, epochs=1)(1)
    assert scipy.stats.binomtest(int((labels[balanced] == 1).sum()), 1000, 0.5).pvalue > 1e-4


def test_the_progressively_balanced_sampler_goes_from_images_to_classes():
    epochs, batches = 4, 10  # of 57 are the 570 images
    draws = [samplers.create("progressively_balanced", LABELS, 57, seed=seed, epochs=epochs) for seed in range(40)]
    for epoch in range(epochs + 2):
        rows = np.concatenate([draw(epoch * batches + number) for draw in draws for number in range(batches)])
        share = min(epoch / epochs, 1.0)
        wanted = (1 - share) * COUNTS / COUNTS.sum() + share / 5
        assert scipy.stats.chisquare(np.bincount(LABELS[rows], minlength=5), wanted * len(rows)).pvalue > 1e-4
        assert scipy.stats.chisquare(np.bincount(rows, minlength=570)[LABELS == 1]).pvalue > 1e-4


def test_semantic_scale_draws_classes_at_their_rates_and_the_images_of_each_alike():
    rates = np.array([0.3, 0.5, 1.0, 1.7, 3.5])
    rows = drawn("semantic_scale", weights=samplers.by_class(rates, LABELS))
    found = np.bincount(LABELS[rows], minlength=5)
    assert scipy.stats.chisquare(found, len(rows) * rates / rates.sum()).pvalue > 1e-4
    for label in range(5):
        of_class = np.bincount(rows, minlength=len(LABELS))[label == LABELS]
        assert scipy.stats.chisquare(of_class).pvalue > 1e-4


def test_without_rates_that_differ_semantic_scale_is_the_plain_order():
    plain = drawn("plain", batches=30)
    np.testing.assert_array_equal(drawn("semantic_scale", batches=30), plain)
    np.testing.assert_array_equal(
        drawn("semantic_scale", batches=30, weights=samplers.by_class(np.full(5, 0.7), LABELS)), plain
    )


@pytest.mark.parametrize("batch_size", [50, 51])
def test_environments_are_the_plain_order_and_a_draw_by_weights(batch_size):
    draw = samplers.create("environments", LABELS, batch_size, seed=3, weights=WEIGHTS)
    batches = np.stack([draw(step) for step in range(400)])
    first, second = batches[:, ::2], batches[:, 1::2]
    plain = samplers.order(len(LABELS), (batch_size + 1) // 2, seed=3)
    np.testing.assert_array_equal(first, [plain(step) for step in range(400)])
    assert second.shape == (400, batch_size // 2)
    found = np.bincount(second.ravel(), minlength=len(LABELS))
    assert scipy.stats.chisquare(found, second.size * WEIGHTS / WEIGHTS.sum()).pvalue > 1e-4
    # Nothing ties the two together.
    pairs = np.bincount(5 * LABELS[first[:, :25].ravel()] + LABELS[second[:, :25].ravel()], minlength=25).reshape(5, 5)
    assert scipy.stats.chi2_contingency(pairs[:3, :3]).pvalue > 1e-4


def test_before_environments_are_made_both_are_alike():
    second = np.concatenate([samplers.create("environments", LABELS, 50, seed=3)(step)[1::2] for step in range(800)])
    assert scipy.stats.chisquare(np.bincount(second, minlength=len(LABELS))).pvalue > 1e-4


def test_one_sampler_may_follow_the_model():
    assert samplers.following(("plain", "semantic_scale")) == "semantic_scale"
    assert samplers.following(("plain", "reversed")) is None
    with pytest.raises(ValueError, match="at most one sampler may follow the model, got 'environments' and 'semantic"):
        samplers.following(("environments", "semantic_scale"))


def test_weights_decide():
    weights = np.array([0.0, 3.0, 0.0, 1.0, 0.0])
    rows = np.concatenate([samplers.weighted(weights, 100, seed=0)(step) for step in range(100)])
    assert set(rows.tolist()) == {1, 3}
    assert scipy.stats.binomtest(int((rows == 1).sum()), len(rows), 0.75).pvalue > 1e-4
    # The largest number below 1 is at the top of the heights.
    assert samplers.weighted(np.array([1.0, 0.0]), 1000, seed=0)(0).max() == 0


def test_seeds_and_steps_are_told_apart():
    seeds = (0, 1, 7, 7 + 2**32, 7 + 2**33)
    batches = {tuple(samplers.create("reversed", LABELS, 20, seed=seed)(step)) for seed in seeds for step in range(4)}
    assert len(batches) == 4 * len(seeds)


def test_threads_make_an_epoch_once(monkeypatch):
    made = []
    permutation = samplers.permutation
    monkeypatch.setattr(samplers, "permutation", lambda *arguments: made.append(arguments) or permutation(*arguments))
    batch = samplers.order(10_000, 500, seed=0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(batch, range(40)))  # two epochs
    assert sorted(int(epoch[1]) for _, epoch, _ in made) == [0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.create("balanced", LABELS, 8, seed=0), "unknown sampler 'balanced'; did you mean 'class_bal"),
        (lambda: samplers.create("plain", LABELS, 571, seed=0), "batch_size must be at most the 570"),
        (lambda: samplers.create("reversed", LABELS, 0, seed=0), "batch_size must be an integer >= 1, got 0"),
        (lambda: samplers.weighted(np.zeros(3), 8, seed=0), "weights must be finite numbers >= 0"),
        (lambda: samplers.weighted(np.array([1.0, -1.0]), 8, seed=0), "weights must be finite numbers >= 0"),
        (lambda: samplers.weighted(np.array([1.0, np.nan]), 8, seed=0), "weights must be finite numbers >= 0"),
        (lambda: samplers.weighted(np.ones(3), 8, seed=-1), "seed must be an integer >= 0, got -1"),
        (lambda: samplers.create("progressively_balanced", LABELS, 8, seed=0), "'progressively_balanced' needs epochs"),
        (lambda: samplers.progressively_balanced(LABELS, 8, seed=0, epochs=0), "epochs must be an integer >= 1, got 0"),
        (
            lambda: samplers.class_aware(LABELS, 8, seed=0, examples_per_class=0),
            "examples_per_class must be an integer",
        ),
        (lambda: samplers.pk(LABELS, 8, seed=0, examples_per_class=0), "examples_per_class must be an integer >= 1"),
        (lambda: samplers.pk(LABELS, 0, seed=0), "batch_size must be an integer >= 1, got 0"),
        (lambda: samplers.pk(LABELS, 8, seed=-1), "seed must be an integer >= 0, got -1"),
        (
            lambda: samplers.create("pk", LABELS, 64, seed=0, examples_per_class=3),
            "batch_size must be a multiple of examples_per_class = 3 for sampler 'pk', got 64",
        ),
        (
            lambda: samplers.pk(np.array([0, 2, 2, 9]), 16, seed=0),
            r"draws batch_size / examples_per_class = 16 / 4 = 4 different classes, got 3 that have examples",
        ),
        (lambda: samplers.environments(WEIGHTS, 1, seed=0), "batch_size must be an integer >= 2, got 1"),
        (
            lambda: samplers.create("semantic_scale", LABELS, 8, seed=0, weights=WEIGHTS[1:]),
            "weights must be one for each of 570 examples, got 569",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
