"""The pool against a Python deque and float64 recomputes, on one device and on eight."""

import collections
import dataclasses
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from dsb_jax import balancers, feature_pool

pytestmark = pytest.mark.usefixtures("strict_dtypes")

enqueue = jax.jit(feature_pool.enqueue)


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


def batches(seed, count, batch, dim, num_classes, *, drift=0.0, offset=0.0):
    """Long-tailed batches whose class means wander; the mean may lie far from the origin."""
    rng = np.random.default_rng(seed)
    probability = 0.8 ** np.arange(num_classes)
    means = rng.normal(size=(num_classes, dim)) + offset * rng.normal(size=dim)
    spread = rng.uniform(0.5, 2.0, size=dim)
    for _ in range(count):
        labels = rng.choice(num_classes, size=batch, p=probability / probability.sum()).astype(np.int32)
        yield (means[labels] + rng.normal(size=(batch, dim)) * spread).astype(np.float32), labels
        means += drift * rng.normal(size=means.shape)


def in_time_order(pool):
    """Rows and labels, oldest first, without the empty places."""
    rows = np.roll(np.asarray(pool.rows), -int(pool.cursor), axis=0).reshape(-1, pool.rows.shape[-1])
    labels = np.roll(np.asarray(pool.labels), -int(pool.cursor), axis=0).reshape(-1)
    return rows[labels >= 0], labels[labels >= 0]


def assert_statistics(pool, rows, labels, *, rtol=2e-5):
    rows, labels = np.asarray(rows).reshape(-1, pool.rows.shape[-1]), np.asarray(labels, np.int32)
    num_classes = pool.num_classes
    np.testing.assert_array_equal(feature_pool.counts(pool), np.bincount(labels, minlength=num_classes))
    expected = reference.class_volumes(rows, labels, num_classes)
    np.testing.assert_allclose(feature_pool.volumes(pool), expected, rtol=rtol, atol=1e-6)
    centers = reference.class_centers(rows, labels, num_classes)
    scale = max(np.abs(rows).max(initial=0), 1.0)
    np.testing.assert_allclose(feature_pool.centers(pool), centers, atol=1e-6 * scale)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_is_a_deque(data):
    """Any capacity, batches of any sizes, masks: the rows are the deque's, and the statistics are the rows'."""
    capacity = data.draw(st.sampled_from([3, 7, 12]), "capacity")
    sizes = data.draw(st.lists(st.sampled_from([1, 3]), min_size=1, max_size=14), "batch sizes")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6), "seed"))
    pool, places = feature_pool.init(capacity, 2, 4), collections.deque(maxlen=capacity)
    for size in sizes:
        features = (rng.normal(size=(size, 2)) + 30).astype(np.float32)
        labels = rng.integers(0, 4, size=size).astype(np.int32)
        mask = rng.random(size) < 0.8
        pool = enqueue(pool, features, labels, mask=mask)
        places.extend((x, y) if keep else None for x, y, keep in zip(features, labels, mask, strict=True))
    held = [place for place in places if place is not None]
    rows, labels = in_time_order(pool)
    np.testing.assert_array_equal(labels, [y for _, y in held])
    np.testing.assert_array_equal(rows, np.reshape([x for x, _ in held], (-1, 2)))
    assert_statistics(pool, rows, labels)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(
    ("capacity", "batch_size"), [(640, 32), pytest.param(640, None, marks=pytest.mark.slow), (601, None)]
)
def test_ten_passes_of_drifting_features_leave_no_error(capacity, batch_size, offset):
    pool = feature_pool.init(capacity, 8, 7, batch_size=batch_size)
    steps = 10 * capacity // 32 + 3
    for step, (features, labels) in enumerate(batches(0, steps, 32, 8, 7, drift=0.05, offset=offset)):
        pool = enqueue(pool, features, labels)
        if step % 37 == 0 or step == steps - 1:
            assert_statistics(pool, *in_time_order(pool))
    assert int(pool.passes) >= 10
    assert int(pool.failed) == int(pool.rejected) == 0


@pytest.mark.slow
def test_ten_passes_at_dimension_64():
    pool = feature_pool.init(1536, 64, 20, batch_size=128)
    for features, labels in batches(1, 10 * 12 + 5, 128, 64, 20, drift=0.05, offset=100.0):
        pool = enqueue(pool, features, labels)
    assert_statistics(pool, *in_time_order(pool))


def test_error_does_not_grow_with_passes():
    """What a single generation, adding and taking away for ever, would not achieve."""
    rng = np.random.default_rng(0)
    pool = feature_pool.init(64, 4, 1, batch_size=16)
    for step in range(400):  # 100 passes; large features come and go
        scale = 1000.0 if step % 20 < 4 else 1.0
        features = (scale * rng.normal(size=(16, 4))).astype(np.float32)
        pool = enqueue(pool, features, np.zeros(16, np.int32))
    assert_statistics(pool, *in_time_order(pool))


def test_batches_longer_than_the_read_ahead(monkeypatch):
    monkeypatch.setattr(feature_pool, "_READ_AHEAD", 16)
    pool = feature_pool.init(50, 3, 4)
    assert pool.next_rows.shape == (16, 3)
    kept = []
    for features, labels in batches(0, 8, 37, 3, 4):
        pool = feature_pool.enqueue(pool, jnp.asarray(features), jnp.asarray(labels))
        kept.append((features, labels))
    rows, labels = in_time_order(pool)
    np.testing.assert_array_equal(rows, np.concatenate([x for x, _ in kept])[-50:])
    assert_statistics(pool, rows, labels)


def test_a_fixed_batch_size_changes_nothing_but_the_shape():
    slots, flat = feature_pool.init(96, 5, 6, batch_size=16), feature_pool.init(96, 5, 6)
    for features, labels in batches(0, 15, 16, 5, 6, drift=0.1):
        slots, flat = enqueue(slots, features, labels), enqueue(flat, features, labels)
    chex.assert_shape(slots.rows, (6, 16, 5))
    chex.assert_shape(flat.rows, (96, 5))
    np.testing.assert_array_equal(slots.rows.reshape(96, 5), flat.rows)
    chex.assert_trees_all_equal(slots.statistics, flat.statistics)
    chex.assert_trees_all_equal(slots.volume, flat.volume)


def test_rebuild_and_another_epsilon_equal_float64():
    pool = feature_pool.init(77, 5, 6)
    for features, labels in batches(0, 21, 16, 5, 6, drift=0.1, offset=10.0):
        pool = enqueue(pool, features, labels)
    rows, labels = in_time_order(pool)
    rebuilt = feature_pool.rebuild(pool)
    assert_statistics(rebuilt, rows, labels)
    for each in (pool, rebuilt):
        expected = reference.class_volumes(rows, labels, 6, epsilon=0.3)
        np.testing.assert_allclose(feature_pool.volumes(each, epsilon=0.3), expected, rtol=2e-5)
    for features, new in batches(5, 12, 16, 5, 6):  # both generations are right: the next pass works
        rebuilt = enqueue(rebuilt, features, new)
    assert_statistics(rebuilt, *in_time_order(rebuilt))


def test_a_class_that_left_returns_without_residue():
    pool = feature_pool.init(4, 2, 3, batch_size=4)
    for label, offset in ((0, 1e6), (1, 0.0), (0, 0.0), (2, 5.0), (2, 5.0), (0, 7.0)):
        features = (np.random.default_rng(label).normal(size=(4, 2)) + offset).astype(np.float32)
        pool = enqueue(pool, features, np.full(4, label, np.int32))
        assert_statistics(pool, features, np.full(4, label))


def test_bfloat16_rows_take_half_the_memory_and_stay_exact():
    pool = feature_pool.init(64, 4, 3, batch_size=16, dtype=jnp.bfloat16)
    for features, labels in batches(0, 30, 16, 4, 3):
        pool = enqueue(pool, features, labels)
    chex.assert_type(pool.rows, jnp.bfloat16)
    assert_statistics(pool, *in_time_order(pool))  # of the rows as they are stored


def test_every_class_in_one_batch_and_one_class_in_all():
    """The longest and the shortest runs of rows that a step can meet."""
    many, one = feature_pool.init(600, 3, 300, batch_size=300), feature_pool.init(600, 3, 300, batch_size=300)
    rng = np.random.default_rng(0)
    for _ in range(5):
        features = rng.normal(size=(300, 3)).astype(np.float32)
        many = enqueue(many, features, rng.permutation(300).astype(np.int32))
        one = enqueue(one, features, np.full(300, 299, np.int32))
    assert_statistics(many, *in_time_order(many))
    assert_statistics(one, *in_time_order(one))


def test_bad_rows_under_jit_are_left_out_and_counted():
    pool = feature_pool.init(8, 2, 3, batch_size=4)
    features = np.ones((4, 2), np.float32) * np.arange(4)[:, None].astype(np.float32)
    features[1, 1], features[2, 0] = np.nan, np.inf
    pool = enqueue(pool, features, np.array([0, 0, 1, 3], np.int32))
    assert int(pool.rejected) == 3
    assert_statistics(pool, features[:1], [0])
    masked = enqueue(pool, features, np.array([0, 0, 1, 9], np.int32), mask=np.array([True, False, False, False]))
    assert int(masked.rejected) == 3  # what is masked may hold anything
    assert_statistics(masked, features[[0, 0]], [0, 0])


def test_a_failed_factorization_keeps_the_volume_and_is_counted():
    pool = feature_pool.init(64, 2, 2, batch_size=4)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 2)).astype(np.float32)
    pool = enqueue(pool, features, np.array([0, 0, 1, 1], np.int32))
    before = np.asarray(feature_pool.volumes(pool))
    broken = dataclasses.replace(pool.statistics, moment=pool.statistics.moment.at[0].set(-1e9))
    pool = enqueue(dataclasses.replace(pool, statistics=broken), features, np.array([0, 1, 1, 1], np.int32))
    assert int(pool.failed) == 1
    assert feature_pool.volumes(pool)[0] == before[0]
    assert feature_pool.volumes(pool)[1] != before[1]


def test_runs_in_a_scan_with_one_trace_and_gives_no_gradient():
    stack = [np.stack(x) for x in zip(*batches(0, 9, 8, 3, 4), strict=True)]

    @chex.assert_max_traces(n=1)
    def step(pool, batch):
        return feature_pool.enqueue(pool, *batch), None

    pool, _ = jax.lax.scan(step, feature_pool.init(24, 3, 4, batch_size=8), (stack[0], stack[1]))
    assert_statistics(pool, *in_time_order(pool))

    def total(features):
        after = feature_pool.enqueue(pool, features, jnp.asarray(stack[1][0]))
        return jnp.sum(feature_pool.volumes(after)) + jnp.sum(feature_pool.centers(after)) + jnp.sum(after.rows)

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(stack[0][0])), 0.0)


def test_steps_do_not_trace_again():
    step = jax.jit(chex.assert_max_traces(n=1)(lambda *args: feature_pool.enqueue(*args)))
    pool = feature_pool.init(24, 3, 4, batch_size=8)
    for features, labels in batches(0, 9, 8, 3, 4):
        pool = step(pool, features, labels)
    assert int(pool.passes) == 3


@pytest.mark.parametrize("batch_size", [512, None])
def test_no_temporary_grows_with_the_pool(batch_size):
    """Read before write, the ring of 500k rows would be copied: 128 MB."""
    capacity = 512 * 977 if batch_size else 500_000
    pool = jax.eval_shape(lambda: feature_pool.init(capacity, 64, 1000, batch_size=batch_size))
    batch = jax.ShapeDtypeStruct((512, 64), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)
    compiled = jax.jit(feature_pool.enqueue, donate_argnums=0).lower(pool, *batch).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 8e6
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes  # the donated pool is written in place


@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_equals_one_device_to_the_bit(devices):
    alone = feature_pool.init(96, 5, 300, batch_size=16)
    shared = feature_pool.init(96, 5, 300, batch_size=16, mesh=mesh_of(devices))
    assert len(shared.rows.sharding.device_set) == devices
    for features, labels in batches(0, 15, 16, 5, 300, drift=0.1, offset=10.0):
        mask = np.arange(16) != 3
        alone, shared = enqueue(alone, features, labels, mask=mask), enqueue(shared, features, labels, mask=mask)
    for field in dataclasses.fields(feature_pool.FeaturePool):
        if not field.metadata.get("static"):
            one, many = (jax.device_get(getattr(pool, field.name)) for pool in (alone, shared))
            chex.assert_trees_all_equal(one, many)
    one, many = (jax.device_get(feature_pool.volumes(pool, epsilon=0.5)) for pool in (alone, shared))
    np.testing.assert_allclose(one, many, rtol=1e-6)
    chex.assert_trees_all_equal(
        jax.device_get(feature_pool.rebuild(alone).volume), jax.device_get(feature_pool.rebuild(shared).volume)
    )
    assert shared.statistics.moment.sharding.spec == jax.sharding.PartitionSpec("data")


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("at_once", [2**23, 2**9])  # all classes, or 8
def test_as_many_classes_at_once_as_on_an_accelerator_are_the_same(request, monkeypatch, devices, at_once):
    def pool_after_two_passes():
        pool = feature_pool.init(512, 8, 100, batch_size=64, mesh=mesh_of(devices))
        rng = np.random.default_rng(0)
        for features, labels in batches(3, 17, 64, 8, 100, drift=0.1):
            labels[:48] = rng.permutation(100)[:48]  # with those that leave, more classes than a CPU takes at once
            pool = enqueue(pool, features, labels)
        return jax.device_get(pool)

    expected = pool_after_two_passes()
    request.getfixturevalue("accelerator")
    monkeypatch.setattr(feature_pool, "_MOMENT_BLOCK", at_once)
    found = pool_after_two_passes()
    np.testing.assert_allclose(found.volume, expected.volume, rtol=1e-5)  # without its loop XLA rounds it otherwise
    chex.assert_trees_all_equal(dataclasses.replace(found, volume=expected.volume), expected)


def test_an_accelerator_waits_for_no_count_where_there_is_little_to_do(request):
    request.getfixturevalue("accelerator")

    def loops(num_classes, rows):
        balancer = balancers.semantic_scale(num_classes, 2 * rows, dim=8)
        shapes = jax.eval_shape(balancer.init), jnp.zeros((rows, 8)), jnp.zeros(rows, jnp.int32)
        return str(jax.make_jaxpr(balancer.update)(*shapes)).count(" while[")

    assert loops(10, 128) == 0  # all are scans, of known length
    assert loops(3000, 1024) > 0


def test_sharded_step_communicates_rows_and_volumes_once():
    pool = feature_pool.init(96, 5, 300, batch_size=16, mesh=mesh_of(8))
    batch = np.zeros((16, 5), np.float32), np.zeros(16, np.int32)
    text = jax.jit(feature_pool.enqueue, donate_argnums=0).lower(pool, *batch).compile().as_text()
    collectives = re.findall(r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)
    assert sorted(kind for _, kind in collectives) == ["all-gather", "all-gather"]
    elements = sorted(np.prod([int(n) for n in re.search(r"\[([\d,]+)\]", s)[1].split(",")]) for s, _ in collectives)
    assert elements == [2 * 16 * (5 + 2), 512]  # rows with label and mark; the volumes of the padded classes


def test_masked_rows_may_hold_anything_without_jit_too():
    features, mask = jnp.ones((4, 2)).at[3].set(jnp.nan), jnp.array([True, True, True, False])
    pool = feature_pool.enqueue(feature_pool.init(8, 2, 2), features, [0, 1, 0, 9], mask=mask)
    np.testing.assert_array_equal(feature_pool.counts(pool), [2, 1])
    assert int(pool.rejected) == 0


def test_scale_that_falls_threefold_within_a_pass():
    """As features do early in training; what large rows leave behind in float32 goes with the generation."""
    pool = feature_pool.init(2560, 64, 10, batch_size=128)
    for step, (features, labels) in enumerate(batches(0, 80, 128, 64, 10)):
        pool = enqueue(pool, features * max(0.97**step, 1 / 3), labels)
        if step % 20 == 19:
            assert_statistics(pool, *in_time_order(pool))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_same_with_and_without_jit(self):
        pool, step = feature_pool.init(24, 3, 4), self.variant(feature_pool.enqueue)
        for features, labels in batches(0, 5, 8, 3, 4):
            pool = step(pool, jnp.asarray(features), jnp.asarray(labels))
        assert_statistics(pool, *in_time_order(pool))


X, Y = jnp.ones((4, 2)), jnp.array([0, 1, 0, 1])
POOL = partial(feature_pool.init, 8, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_pool.init(0, 2, 2), "capacity must be an integer >= 1, got 0"),
        (lambda: feature_pool.init(8, 2.0, 2), "dim must be an integer >= 1, got 2.0"),
        (lambda: feature_pool.init(8, 2, 2, epsilon=-1.0), "epsilon must be a finite number > 0, got -1.0"),
        (lambda: feature_pool.init(8, 2, 2, batch_size=3), r"capacity must be a multiple of batch_size \(3\), got 8"),
        (lambda: feature_pool.init(8, 2, 2, dtype=jnp.int32), "dtype must be bfloat16, float16 or float32, got"),
        (lambda: POOL(mesh=mesh_of(8)), "batch_size must be a multiple of the 8 devices, got None"),
        (lambda: POOL(batch_size=4, mesh=mesh_of(8)), "batch_size must be a multiple of the 8 devices, got 4"),
        (lambda: POOL(batch_size=8, mesh=mesh_of(8), axis="dat"), "unknown mesh axis 'dat'; did you mean 'data'"),
        (lambda: POOL(batch_size=8, mesh=jax.make_mesh((8,), ("data",))), "mesh must have axes of type Auto"),
        (lambda: feature_pool.enqueue(POOL(), jnp.ones((4, 3)), Y), r"features must have shape \[samples, 2\]"),
        (lambda: feature_pool.enqueue(POOL(), X.at[3, 0].set(jnp.nan), Y), "NaN or infinity in row 3"),
        (lambda: feature_pool.enqueue(POOL(), X, Y + 1), r"labels must lie in \[0, 2\), got 2 at position 1"),
        (lambda: feature_pool.enqueue(POOL(), X, Y[:2]), r"labels must have shape \(4,\)"),
        (lambda: feature_pool.enqueue(POOL(), X, Y, mask=Y), "mask must be boolean of shape"),
        (lambda: feature_pool.enqueue(POOL(batch_size=8), X, Y), "features must have the pool's batch_size of 8 rows"),
        (lambda: feature_pool.enqueue(feature_pool.init(3, 2, 2), X, Y), "at most capacity = 3 rows, got 4"),
        (lambda: feature_pool.volumes(POOL(), epsilon=0.0), "epsilon must be a finite number > 0, got 0.0"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
