"""The order of examples is a pure function of (seed, step), and evaluation sees every example once."""

import itertools

import numpy as np
import pytest

from dsb_jax.data import pipeline, samplers
from dsb_jax.data.records import Split

SAMPLES = 50
SUBSET = np.arange(3, 47, 2)


class CountingSource:
    """Images that show their own index, and labels that follow from it."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"image": np.full((4, 3, 1), index, np.uint8), "label": int(index) % 7}

    def __getitems__(self, indices):
        return [self[index] for index in indices]

    def labels(self):
        return np.arange(SAMPLES, dtype=np.int32) % 7


SPLIT = Split("counting", "train", CountingSource(), tuple("abcdefg"), (4, 3, 1))


def stream(seed, examples, batch_size=8, indices=SUBSET):
    """The first examples of the stream, as rows of the split."""
    batches = pipeline.train_batches(SPLIT, indices, batch_size, seed=seed)
    rows = [batch["index"] for batch in itertools.islice(batches, -(-examples // batch_size))]
    return np.concatenate(rows)[:examples]


def test_a_batch_is_what_its_rows_hold():
    for batch in itertools.islice(pipeline.train_batches(SPLIT, SUBSET, 8, seed=0), 7):
        assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
            "image": ((8, 4, 3, 1), "uint8"),
            "label": ((8,), "int32"),
            "index": ((8,), "int32"),
        }
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 7)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 22])
def test_every_pass_is_another_permutation_of_the_subset(batch_size):
    passes = stream(5, 6 * len(SUBSET), batch_size).reshape(6, len(SUBSET))
    for rows in passes:
        np.testing.assert_array_equal(np.sort(rows), SUBSET)
    assert len({tuple(rows) for rows in passes}) == 6


@pytest.mark.parametrize("batch_size", [1, 3, 8, 10])
def test_a_batch_is_cut_from_the_permutations_in_a_row(batch_size):
    whole = samplers.order(10, 10, seed=11)
    row = np.concatenate([whole(epoch) for epoch in range(8)])
    np.testing.assert_array_equal(np.sort(row.reshape(8, 10), axis=1), np.tile(np.arange(10), (8, 1)))
    batch = samplers.order(10, batch_size, seed=11)
    for step in np.random.default_rng(0).permutation(80 // batch_size).tolist():
        np.testing.assert_array_equal(batch(step), row[step * batch_size : (step + 1) * batch_size])
        assert batch(step).dtype == np.int32


def test_every_place_is_as_likely_for_every_example():
    batch = samplers.order(6, 6, seed=2)
    places = np.array([np.argsort(batch(epoch)) for epoch in range(3000)])
    counts = np.array([np.bincount(column, minlength=6) for column in places.T])
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(counts, 500, rtol=0, atol=5 * np.sqrt(500))


def test_a_permutation_is_made_once_in_an_epoch(monkeypatch):
    made = []
    permutation = samplers.permutation
    monkeypatch.setattr(samplers, "permutation", lambda *arguments: made.append(arguments) or permutation(*arguments))
    batch = samplers.order(100, 7, seed=0)
    for step in range(43):  # three epochs and the first example of the fourth
        batch(step)
    assert [epoch.tolist() for _, epoch, _ in made] == [[0, 0], [0, 1], [0, 2], [0, 3]]


def test_large_seeds_and_epochs_are_told_apart():
    first = [samplers.order(50, 50, seed=seed)(0).tolist() for seed in (0, 1, 2**32, 2**32 + 1, 2**63)]
    first += [samplers.order(50, 50, seed=0)(epoch).tolist() for epoch in (1, 2**32, 2**32 + 1)]
    assert len({tuple(rows) for rows in first}) == len(first)


def test_the_stream_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(stream(5, 100, batch_size=4), stream(5, 100, batch_size=22))


def test_any_step_can_be_the_first():
    batches = list(itertools.islice(pipeline.train_batches(SPLIT, SUBSET, 8, seed=3), 12))
    for step in range(12):
        resumed = next(pipeline.train_batches(SPLIT, SUBSET, 8, seed=3, start_step=step))
        for name, value in batches[step].items():
            np.testing.assert_array_equal(resumed[name], value)
    # Far beyond any run there is a batch too.
    assert next(pipeline.train_batches(SPLIT, SUBSET, 8, seed=3, start_step=10**12))["index"].shape == (8,)


def test_the_seed_alone_decides_the_order():
    np.testing.assert_array_equal(stream(3, 100), stream(3, 100))
    assert (stream(3, 100) != stream(4, 100)).any()


def test_neighbouring_seeds_share_no_pass():
    passes = {tuple(rows) for seed in range(4) for rows in stream(seed, 5 * len(SUBSET)).reshape(5, -1)}
    assert len(passes) == 4 * 5


def test_indices_need_not_be_sorted_or_a_subset():
    rows = stream(0, SAMPLES, indices=np.arange(SAMPLES)[::-1])
    np.testing.assert_array_equal(np.sort(rows), np.arange(SAMPLES))


@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 64])
def test_evaluation_sees_every_example_once_and_in_order(batch_size):
    batches = list(pipeline.eval_batches(SPLIT, batch_size))
    assert len(batches) == -(-SAMPLES // batch_size)
    for batch in batches:
        assert batch["image"].shape == (batch_size, 4, 3, 1)
        assert batch["label"].dtype == np.int32
        assert batch["mask"].dtype == np.bool_
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
    images, labels, mask = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label", "mask"))
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < SAMPLES)
    np.testing.assert_array_equal(images[mask, 0, 0, 0], np.arange(SAMPLES))
    np.testing.assert_array_equal(labels[mask], SPLIT.labels)


@pytest.mark.parametrize(
    ("indices", "batch_size", "options", "message"),
    [
        (SUBSET, 23, {}, "batch_size must be at most the 22 training examples, got 23"),
        (SUBSET, 0, {}, "batch_size must be an integer >= 1, got 0"),
        (SUBSET, 8, {"seed": -1}, "seed must be an integer >= 0, got -1"),
        (SUBSET, 8, {"start_step": -1}, "start_step must be an integer >= 0, got -1"),
        (SUBSET.astype(float), 8, {}, "indices must be integers .*, got float64"),
        (SUBSET[:, None], 8, {}, "indices must be integers"),
        (np.arange(SAMPLES + 1), 8, {}, r"indices must lie in \[0, 50\) for counting/train, got 50 at position 50"),
        (SUBSET - 4, 8, {}, r"indices must lie in \[0, 50\) for counting/train, got -1 at position 0"),
    ],
)
def test_train_batches_refuse(indices, batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(SPLIT, indices, batch_size, **{"seed": 0, **options})


def test_eval_batches_refuse_an_empty_batch():
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        pipeline.eval_batches(SPLIT, 0)


def test_labels_are_read_once_and_cannot_be_overwritten():
    assert SPLIT.labels is SPLIT.labels
    with pytest.raises(ValueError, match="read-only"):
        SPLIT.labels[0] = 1


# Several readers, views and samplers.


class CroppingSource(CountingSource):
    """Crops that show what their generator says."""

    def crops(self, indices, rngs):
        return [
            {"image": np.full((4, 3, 1), rng.integers(256), np.uint8), "label": int(index) % 7}
            for index, rng in zip(indices, rngs, strict=True)
        ]


CROPPED = Split("cropped", "train", CroppingSource(), tuple("abcdefg"), (4, 3, 1), random_crops=True)


def flattened(batch, prefix=""):
    for name, value in batch.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize("split", [SPLIT, CROPPED], ids=["whole", "cropped"])
@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 3, 7])  # in the middle of the first and of a later epoch
def test_readers_share_the_batches_of_one(split, readers, start_step):
    options = {"seed": 9, "views": 2, "sampling": ("plain", "reversed")}
    alone = itertools.islice(pipeline.train_batches(split, SUBSET, 8, **options), 12)
    alone = [dict(flattened(batch)) for batch in alone][start_step:]
    shares = [
        pipeline.train_batches(split, SUBSET, 8, start_step=start_step, reader=(number, readers), **options)
        for number in range(readers)
    ]
    for wanted in alone:
        parts = [dict(flattened(next(batches))) for batches in shares]
        for name, value in wanted.items():
            assert parts[0][name].shape[0] == 8 // readers
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_every_example_comes_once_from_several_readers():
    readers = [pipeline.train_batches(SPLIT, SUBSET, 8, seed=4, reader=(number, 4)) for number in range(4)]
    rows = np.concatenate([next(batches)["index"] for _ in range(11) for batches in readers])
    assert len(rows) == 4 * len(SUBSET)
    for rows_of_epoch in rows.reshape(4, -1):
        np.testing.assert_array_equal(np.sort(rows_of_epoch), SUBSET)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(threads, monkeypatch):
    expected = list(itertools.islice(pipeline.train_batches(CROPPED, SUBSET, 8, seed=2, views=3), 9))
    options = pipeline.grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    monkeypatch.setattr(pipeline, "_READ_OPTIONS", options)
    for batch, wanted in zip(pipeline.train_batches(CROPPED, SUBSET, 8, seed=2, views=3), expected, strict=False):
        for name, value in wanted.items():
            np.testing.assert_array_equal(batch[name], value)


def test_crops_depend_on_the_seed_the_step_the_place_and_the_view():
    def seen(seed, steps=40, **options):
        batches = pipeline.train_batches(CROPPED, np.arange(SAMPLES), 10, seed=seed, views=2, **options)
        batches = list(itertools.islice(batches, steps))
        return np.array([[batch[name][:, 0, 0, 0] for name in ("image", "view_1")] for batch in batches])

    crops = seen(0)
    np.testing.assert_array_equal(seen(0, 10, start_step=30), crops[30:])
    assert (seen(1) != crops).mean() > 0.98
    # Of 256 values, 800 independent ones take all but some.
    assert len(np.unique(crops)) > 230
    assert (crops[:, 0] == crops[:, 1]).mean() < 0.03
    assert (crops[1:] == crops[:-1]).mean() < 0.03


def test_crops_of_further_samplers_are_their_own():
    """Even of the same examples at the same places."""
    batches = pipeline.train_batches(CROPPED, SUBSET, 8, seed=0, sampling=("plain", "square_root", "class_balanced"))
    parts = [(batch, batch["square_root"], batch["class_balanced"]) for batch in itertools.islice(batches, 30)]
    first, second, third = (np.stack([part[place]["image"][:, 0, 0, 0] for part in parts]) for place in range(3))
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one == other).mean() < 0.03


def test_only_cropped_splits_have_views_of_the_host():
    assert "view_1" not in next(pipeline.train_batches(SPLIT, SUBSET, 8, seed=0, views=2))
    assert "view_2" in next(pipeline.train_batches(CROPPED, SUBSET, 8, seed=0, views=3))


def test_samplers_give_batches_of_their_own():
    batch = next(pipeline.train_batches(SPLIT, SUBSET, 8, seed=0, sampling=("plain", "class_balanced", "reversed")))
    plain = next(pipeline.train_batches(SPLIT, SUBSET, 8, seed=0))
    np.testing.assert_array_equal(batch["index"], plain["index"])
    for name in ("class_balanced", "reversed"):
        np.testing.assert_array_equal(batch[name]["label"], batch[name]["index"] % 7)
        assert set(batch[name]["index"]) <= set(SUBSET)
    assert (batch["class_balanced"]["index"] != batch["reversed"]["index"]).any()
    first = next(pipeline.train_batches(SPLIT, SUBSET, 8, seed=0, sampling=("reversed",)))
    assert first["image"].shape == (8, 4, 3, 1)


def test_environments_are_drawn_by_their_weights():
    weights = np.where(np.arange(len(SUBSET)) == 5, 9.0, 1.0)
    batches = pipeline.train_batches(SPLIT, SUBSET, 8, seed=0, environments={"second": weights})
    batches = list(itertools.islice(batches, 200))
    plain = list(itertools.islice(pipeline.train_batches(SPLIT, SUBSET, 8, seed=0), 200))
    np.testing.assert_array_equal([batch["index"] for batch in batches], [batch["index"] for batch in plain])
    drawn = np.concatenate([batch["second"]["index"] for batch in batches])
    assert set(drawn) <= set(SUBSET)
    assert abs((drawn == SUBSET[5]).mean() - 9 / 30) < 0.05
    resumed = pipeline.train_batches(SPLIT, SUBSET, 8, seed=0, environments={"second": weights}, start_step=77)
    np.testing.assert_array_equal(next(resumed)["second"]["index"], batches[77]["second"]["index"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": ("plian",)}, "unknown sampler 'plian'; did you mean 'plain'"),
        ({"sampling": ()}, "sampling must be the names of different samplers"),
        ({"sampling": ("plain", "plain")}, "sampling must be the names of different samplers"),
        ({"environments": {"plain": np.ones(22)}}, "sampling must be the names of different samplers"),
        ({"environments": {"env": np.ones(21)}}, r"environment 'env' must have a weight for each of 22 examples, got"),
        ({"environments": {"env": np.zeros(22)}}, "weights must be finite numbers >= 0"),
        ({"reader": (2, 2)}, r"reader must lie in \[0, 2\), got 2"),
        ({"reader": (0, 3)}, "batch_size must be a multiple of the 3 readers, got 8"),
        ({"reader": (0, 0)}, "readers must be an integer >= 1, got 0"),
        ({"views": 0}, "views must be an integer >= 1, got 0"),
    ],
)
def test_further_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(SPLIT, SUBSET, 8, seed=0, **options)
