"""Retrieval against brute force in float64, and against the official implementations' numbers."""

import functools
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from dsb_jax import evaluation
from dsb_jax.evaluation import retrieval, search


def ranking(embeddings, query):
    """Rows of the others by falling similarity, the lower of equals first; one by one, in float64."""
    unit = np.asarray(embeddings, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return sorted((row for row in range(len(unit)) if row != query), key=lambda row: (-(unit[row] @ unit[query]), row))


def by_hand(embeddings, labels, query):
    """Rank of the first of the class, R-precision and average precision at R."""
    match = [labels[row] == labels[query] for row in ranking(embeddings, query)]
    total = sum(match)
    precisions = [sum(match[: i + 1]) / (i + 1) for i in range(total) if match[i]]
    return match.index(True) + 1, sum(match[:total]) / total, sum(precisions) / total


def several_of_each(labels):
    return np.flatnonzero(np.bincount(labels)[labels] > 1)


def clustered(rng, samples=300, dim=16, classes=20):
    labels = rng.integers(0, classes, samples)
    return (rng.normal(size=(classes, dim))[labels] + rng.normal(size=(samples, dim))).astype(np.float32), labels


@pytest.fixture
def small_blocks(monkeypatch):
    """Several queries and several rows of the gallery at once, neither of which divides what there is."""
    monkeypatch.setattr(search, "GALLERY_BLOCK", 48)
    monkeypatch.setattr(search, "_HELD_ON_CPU", 7 * (48 + 4 * 40))


@pytest.fixture(params=["cpu", "accelerator"])
def device(request, monkeypatch):
    """In turn the search of CPUs, and on a CPU that of other devices."""
    if request.param == "accelerator":
        monkeypatch.setattr(search, "_method", lambda platform: (search._nearest, search._HELD_ON_CPU, 2))


def check(embeddings, labels, queries):
    found = evaluation.measure(embeddings, labels, ks=(1, 2, len(labels) - 1), queries=queries)
    wanted = [by_hand(embeddings, labels, query) for query in queries]
    first, precisions, averages = (np.array(column) for column in zip(*wanted, strict=True))
    np.testing.assert_array_equal(found.labels, labels[queries])
    np.testing.assert_array_equal(found.first, first)
    np.testing.assert_allclose(found.r_precisions, precisions, rtol=1e-12)
    np.testing.assert_allclose(found.average_precisions, averages, rtol=1e-6)
    assert found.recall_at_k == {k: np.mean(first <= k) for k in found.ks}
    assert found.recall_at_k == evaluation.recall_at_k(embeddings, labels, found.ks, queries=queries)
    assert found.precision_at_1 == np.mean(first == 1)
    assert found.r_precision == pytest.approx(precisions.mean())
    assert found.map_at_r == pytest.approx(averages.mean())


# Of these, dot products and lengths are whole numbers: equal similarities are equal in any precision.
DIRECTIONS = np.concatenate([np.eye(4), -np.eye(4), 1 - 2 * ((np.arange(16)[:, None] >> np.arange(4)) & 1)])


@pytest.mark.usefixtures("device")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 2)), min_size=30, max_size=30))
def test_ties_and_duplicates(drawn):
    """Each direction is of an image of any class, any number of times."""
    directions, labels = np.array(drawn).T
    check(DIRECTIONS[directions].astype(np.float32), labels, several_of_each(labels))


@pytest.mark.usefixtures("device")
def test_equals_brute_force():
    check(*clustered(np.random.default_rng(0)), np.arange(300))


@pytest.mark.usefixtures("device", "small_blocks")
def test_equals_brute_force_in_blocks():
    embeddings, labels = clustered(np.random.default_rng(1))
    check(embeddings, labels, np.random.default_rng(2).permutation(300)[:100])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("samples", [37, 1040])
@pytest.mark.parametrize("block_size", [1, 16, 50, 1024, 5000])
def test_blocks_do_not_matter(samples, block_size):
    """Nor does the way among them in which few of many are chosen."""
    embeddings, _ = clustered(np.random.default_rng(0), samples)
    embeddings[samples // 2 :] = embeddings[: samples - samples // 2]  # each is twice there
    queries = np.arange(0, samples, 37)
    for k in (1, 3, 36):
        rows, similarities = evaluation.neighbors(embeddings, k, queries=queries, block_size=block_size)
        again, same = evaluation.neighbors(embeddings, k, queries=queries)
        np.testing.assert_array_equal(rows, again)
        np.testing.assert_allclose(similarities, same, rtol=1e-6)
        wanted = -np.sort(-(search.directions(embeddings)[queries] @ search.directions(embeddings).T), axis=1)
        np.testing.assert_allclose(similarities, wanted[:, 1 : k + 1], rtol=1e-5, atol=1e-6)  # the first is itself
        assert (rows != queries[:, None]).all()


@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_few_of_many_are_chosen_as_all_at_once_would_be(k):
    """Of equals too, whatever their number."""
    values = jnp.asarray(np.random.default_rng(k).integers(0, 30, (50, 1024)), jnp.float32)
    for few in (values, jnp.zeros_like(values)):
        for mine, wanted in zip(search._top_k(few, k), jax.lax.top_k(few, k), strict=True):
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("name", ["retrieval_main", "retrieval_singleton"])
def test_official_numbers(golden, name):
    case = golden(name)
    embeddings, labels, ks = case["embeddings"], case["labels"], tuple(case["ks"].tolist())
    queries = several_of_each(labels)
    assert (len(queries) < len(labels)) == (name == "retrieval_singleton")
    found = evaluation.measure(embeddings, labels, ks, queries=queries)
    # SoftTriple and azgo14 count an image that is alone in its class as missed.
    for wanted in ("recall_at_k", "recall_at_k_azgo14"):
        missed = {k: recall * len(queries) / len(labels) for k, recall in found.recall_at_k.items()}
        np.testing.assert_allclose(list(missed.values()), case[wanted], rtol=1e-12)
    of_class = labels[queries] == np.unique(labels[queries])[:, None]
    for wanted, vector in {
        "mean_average_precision_at_r": found.average_precisions,
        "r_precision": found.r_precisions,
        "precision_at_1": found.hits(1),
    }.items():
        np.testing.assert_allclose(vector.mean(), case[f"pml_{wanted}"], rtol=1e-6)
        means = [vector[members].mean() for members in of_class]
        np.testing.assert_allclose(np.mean(means), case[f"pml_{wanted}_avg_of_avgs"], rtol=1e-6)
    assert evaluation.nmi(labels, case["kmeans_labels"]) == pytest.approx(float(case["nmi"]), rel=1e-12)


def test_official_clusters(golden):
    case = golden("retrieval_main")
    clusters = evaluation.cluster(case["embeddings"], len(case["kmeans_centers"]))
    # Rounding of the embeddings' length may move an image between clusters.
    assert sklearn.metrics.adjusted_rand_score(clusters, case["kmeans_labels"]) > 0.95


def test_length_and_dtype_do_not_matter():
    embeddings, labels = clustered(np.random.default_rng(0), 60, classes=6)
    wanted = evaluation.measure(embeddings, labels)
    scaled = embeddings * 10.0 ** np.linspace(-25, 25, 60, dtype=np.float32)[:, None]
    for same in (scaled, scaled.astype(np.float64), jnp.asarray(embeddings), embeddings.tolist()):
        found = evaluation.measure(same, labels - 100)
        np.testing.assert_allclose(found.average_precisions, wanted.average_precisions, rtol=1e-6)
        np.testing.assert_array_equal(found.labels, labels - 100)
    assert evaluation.recall_at_k(jnp.asarray(embeddings, jnp.bfloat16), labels.astype(np.uint8), [8])[8] > 0.5


def test_spread_over_devices():
    embeddings, labels = clustered(np.random.default_rng(0), 64, classes=6)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(embeddings, NamedSharding(mesh, PartitionSpec("data")))
    assert evaluation.recall_at_k(spread, labels, [1]) == evaluation.recall_at_k(embeddings, labels, [1])


def test_a_class_in_which_all_are_equal_and_one_that_is_large():
    embeddings = np.concatenate([np.tile([[1.0, 0.0]], (600, 1)), np.tile([[0.0, 1.0]], (3, 1))])
    found = evaluation.measure(embeddings, np.repeat([0, 1], [600, 3]))
    assert found.map_at_r == found.r_precision == found.precision_at_1 == 1


@pytest.mark.parametrize("k", [8, 599])
def test_no_array_is_as_large_as_all_similarities(k):
    """By the compiled searches' own account, at a million embeddings."""
    samples, queries, block = 2**20, 32, search.GALLERY_BLOCK
    of_block = 4 * queries * block
    gallery, rows, query = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((samples // block, block, 64), (block, 64), (queries, 64))
    )
    own = jax.ShapeDtypeStruct((queries,), jnp.int32)
    whole = search._nearest.lower(gallery, query, own, k=k, samples=samples).compile().memory_analysis()
    part = search._with_maxima.lower(query, own, rows, 0, k=k, samples=samples).compile().memory_analysis()
    assert whole.temp_size_in_bytes < 6 * of_block + 8 * 64 * block
    assert part.temp_size_in_bytes + part.output_size_in_bytes < 6 * of_block + 8 * 64 * block
    assert 6 * of_block + 8 * 64 * block < 4 * queries * samples


@pytest.mark.usefixtures("device", "small_blocks")
def test_one_trace(monkeypatch):
    traced, similarities = [], search._similarities

    def counted(*arguments):
        traced.append(1)
        return similarities(*arguments)

    monkeypatch.setattr(search, "_similarities", counted)
    jax.clear_caches()
    embeddings, labels = clustered(np.random.default_rng(0), 250)
    for _ in range(2):
        evaluation.measure(embeddings, labels)
    assert len(traced) == 1


def test_numbers_that_order_similarities_give_them_back():
    """The larger first, of equals the lower row, whatever the sign; the zeros are equal."""
    cosine = np.array([[0.5, -0.0, -1.0, 0.0, 1.0, -1e-30, -np.inf, 0.5]], np.float32)
    keys = np.sort(search._keys(cosine, np.full((1, 1), -1, np.float32), 2**30, k=8), axis=1)
    similarities, rows = search._decoded(keys)
    np.testing.assert_array_equal(similarities, np.float32([[1.0, 0.5, 0.5, 0.0, 0.0, -1e-30, -1.0]]))
    np.testing.assert_array_equal(rows - 2**30, [[4, 0, 7, 1, 3, 5, 2]])


def test_equal_similarities_take_no_more_memory_than_others():
    """Of a network that has collapsed: every image is as near as all others, and the lowest rows are enough."""
    cosine = np.full((16, 2**16), 0.5, np.float32)
    cosine[3, 100] = 0.75
    tracemalloc.start()
    keys = search._keys(cosine, np.full((16, 1), 0.5, np.float32), 0, k=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * cosine.nbytes
    rows = search._decoded(np.sort(keys, axis=1)[:, :5])[1]
    expected = np.tile(np.arange(5), (16, 1))
    expected[3] = [100, 0, 1, 2, 3]
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("scale", [1e-40, 3e-38, 1e38, 1e-300, 1e300])
def test_no_length_is_too_small_or_too_large(scale):
    dtype = np.float32 if 1e-45 < scale < 1e39 else np.float64
    plain = np.array([[1.0, 0.25], [0.5, 1.0], [1.0, -1.0], [0.0, 1.0]])
    scaled = np.multiply(plain, scale).astype(dtype)
    rows, similarities = evaluation.neighbors(scaled, 3)
    wanted = [ranking(plain, query) for query in range(4)]
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_allclose(similarities, evaluation.neighbors(plain, 3)[1], atol=1e-3)


def test_larger_sets_are_clustered_by_mini_batches(monkeypatch):
    embeddings, labels = clustered(np.random.default_rng(0), classes=4)
    for largest in (300 * 16 * 4, 300 * 16 * 4 - 1):
        monkeypatch.setattr(retrieval, "LARGEST_KMEANS", largest)
        clusters = evaluation.cluster(embeddings, 4)
        assert clusters.dtype == np.int64
        np.testing.assert_array_equal(clusters, evaluation.cluster(7 * embeddings, 4))
        assert evaluation.nmi(labels, clusters) > 0.5


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=30))
def test_nmi(pairs):
    labels, clusters = np.array(pairs).T
    joint = sklearn.metrics.mutual_info_score(labels, clusters)
    both = sum(sklearn.metrics.mutual_info_score(each, each) for each in (labels, clusters))
    wanted = 2 * joint / both if both > 1e-12 else 1.0
    assert evaluation.nmi(labels, clusters) == pytest.approx(wanted, abs=1e-9)


EMBEDDINGS, LABELS = np.eye(6, dtype=np.float32), np.array([3, 3, 3, 5, 5, 5])


def changed(array, at, value):
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": changed(LABELS, 0, 9)}, "another image, got a single one of class 9; queries may leave it out"),
        ({"ks": []}, "ks must be positive integers, at least one, got []"),
        ({"ks": 2}, "ks must be positive integers, at least one, got 2"),
        ({"ks": (1, 6)}, "ks must be at most the number of other samples, 5, got 6"),
        ({"ks": (1, 0)}, "ks must be an integer >= 1, got 0"),
        ({"ks": (1.5,)}, "ks must be an integer >= 1, got 1.5"),
        ({"labels": LABELS[:5]}, "labels must have one integer per row of embeddings, got 5 for 6"),
        ({"labels": LABELS + 0.5}, "labels must be integers of shape [samples], got float64 (6,)"),
        ({"labels": LABELS[None]}, "labels must be integers of shape [samples], got int64 (1, 6)"),
        ({"queries": [0, 6]}, "queries must lie in [0, 6), got 6 at position 1"),
        ({"queries": [-1]}, "queries must lie in [0, 6), got -1 at position 0"),
        ({"queries": np.zeros(6, bool)}, "queries must be integers of shape [samples], got bool (6,)"),
        ({"queries": np.zeros(0, int)}, "queries must be rows of embeddings, at least one, got none"),
        ({"embeddings": EMBEDDINGS[0]}, "embeddings must have shape [samples, dim], got (6,)"),
        ({"embeddings": LABELS[:, None]}, "embeddings must be floating point, got int"),
        ({"embeddings": changed(EMBEDDINGS, 4, 0)}, "embeddings must have a direction, got a zero vector in row 4"),
        ({"embeddings": changed(EMBEDDINGS, 2, np.nan)}, "embeddings must be finite, got NaN or infinity in row 2"),
    ],
)
def test_bad_input(arguments, message):
    arguments = {"embeddings": EMBEDDINGS, "labels": LABELS, "ks": (1, 2)} | arguments
    for function in (evaluation.measure, evaluation.recall_at_k):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(**arguments)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functools.partial(evaluation.neighbors, k=6), "k must be at most the number of other samples, 5, got 6"),
        (functools.partial(evaluation.neighbors, k=True), "k must be an integer >= 1, got True"),
        (functools.partial(evaluation.neighbors, k=1, block_size=0), "block_size must be an integer >= 1, got 0"),
        (
            functools.partial(evaluation.cluster, num_clusters=7),
            "num_clusters must be at most the number of samples, 6",
        ),
        (functools.partial(evaluation.cluster, num_clusters=0), "num_clusters must be an integer >= 1, got 0"),
        (functools.partial(evaluation.cluster, num_clusters=2, seed=-1), "seed must be an integer >= 0, got -1"),
        (lambda _: evaluation.nmi([0, 1], [0]), "labels and clusters must have one length > 0, got 2 and 1"),
        (lambda _: evaluation.nmi([0.5], [0]), "labels must be integers of shape [samples], got float64 (1,)"),
        (lambda _: evaluation.measure(EMBEDDINGS, LABELS, (1, 2)).hits(3), "k must be at most the largest of ks, 2"),
    ],
)
def test_bad_input_of_the_others(function, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(EMBEDDINGS)


def test_one_embedding_has_no_other():
    with pytest.raises(ValueError, match="k must be at most the number of other samples, 0, got 1"):
        evaluation.neighbors(EMBEDDINGS[:1], 1)


def test_an_image_that_is_alone_does_not_search_but_is_found():
    labels = changed(LABELS, 0, 9)
    embeddings = changed(EMBEDDINGS, 1, EMBEDDINGS[0] + 0.1 * EMBEDDINGS[1])  # nearest to the one that is alone
    found = evaluation.measure(embeddings, labels, ks=(1, 2), queries=[1])
    np.testing.assert_array_equal(found.first, [2])
    assert found.map_at_r == 0


@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_queries_can_be_followed():
    """All but the first, which compiles."""
    embeddings, labels = clustered(np.random.default_rng(0))
    seen = []

    def progress(blocks, total):
        for block in blocks:
            seen.append(total)
            yield block

    followed, plain = (evaluation.measure(embeddings, labels, progress=each) for each in (progress, None))
    np.testing.assert_array_equal(followed.first, plain.first)
    assert len(seen) > 10
    assert set(seen) == {len(seen)}
