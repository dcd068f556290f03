"""Batches on the devices: resident and streamed give the same bits, in any layout; trouble is one error."""

import dataclasses
import itertools
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsb_jax import data
from dsb_jax.data import feed, pipeline
from dsb_jax.data.records import Split

SAMPLES = 90
SUBSET = np.random.default_rng(3).permutation(SAMPLES)[:53]
IMAGES = np.random.default_rng(4).integers(0, 256, (SAMPLES, 5, 4, 3), np.uint8)
LABELS = np.random.default_rng(5).integers(0, 7, SAMPLES).astype(np.int32)


class ArraySource:
    """Examples from arrays; the image of ``corrupt`` cannot be read."""

    def __init__(self, corrupt=None):
        self.corrupt = corrupt

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if index == self.corrupt:
            raise ValueError(f"arrays/train[{index}]: its image does not decode (8 bytes)")
        return {"image": IMAGES[index], "label": int(LABELS[index])}

    def __getitems__(self, indices):
        return [self[index] for index in indices]

    def labels(self):
        return LABELS.copy()


def split(corrupt=None):
    return Split("arrays", "train", ArraySource(corrupt), tuple("abcdefg"), (5, 4, 3))


def sharding(devices=8):
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


def resident(**options):
    return feed.Examples(split(), SUBSET, **options)


def streamed(**options):
    return feed.Examples(split(), SUBSET, resident_bytes=0, **options)


def take(batches, count):
    return [{name: np.asarray(value) for name, value in batch.items()} for batch in itertools.islice(batches, count)]


def assert_equal_batches(batches, expected):
    assert len(batches) == len(expected)
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for name, value in batch.items():
            assert value.dtype == wanted[name].dtype
            np.testing.assert_array_equal(value, wanted[name])


@pytest.mark.parametrize("where", [None, "sharded"])
@pytest.mark.parametrize("make", [resident, streamed])
def test_training_batches_are_the_pipelines(make, where):
    examples = make(sharding=where and sharding())
    assert len(examples) == 53
    assert examples.resident is (make is resident)
    expected = [
        {"image": IMAGES[rows], "label": LABELS[rows]}
        for rows in (batch["index"] for batch in take(pipeline.train_batches(split(), SUBSET, 16, seed=7), 12))
    ]
    assert_equal_batches(take(examples.shuffled(16, seed=7), 12), expected)
    # As after a restart in the second epoch.
    assert_equal_batches(take(examples.shuffled(16, seed=7, start_step=5), 7), expected[5:])


@pytest.mark.parametrize("where", [None, "sharded"])
@pytest.mark.parametrize("batch_size", [8, 24, 56, 64])
@pytest.mark.parametrize("make", [resident, streamed])
def test_evaluation_batches_are_all_examples_in_order(make, batch_size, where):
    batches = list(make(sharding=where and sharding()).in_order(batch_size))
    assert len(batches) == -(-53 // batch_size)
    for batch in batches:
        assert isinstance(batch["mask"], np.ndarray)
        assert isinstance(batch["image"], jax.Array)
    joined = {name: np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}
    padding = len(batches) * batch_size - 53
    np.testing.assert_array_equal(joined["mask"], np.arange(53 + padding) < 53)
    np.testing.assert_array_equal(joined["image"], np.pad(IMAGES[SUBSET], [(0, padding), (0, 0), (0, 0), (0, 0)]))
    np.testing.assert_array_equal(joined["label"], np.pad(LABELS[SUBSET], (0, padding)))
    assert (joined["image"].dtype, joined["label"].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("make", [resident, streamed])
def test_batches_lie_as_the_sharding_says(make):
    layout = sharding(4)
    examples = make(sharding=layout)
    for batch in (next(examples.shuffled(8, seed=0)), next(examples.in_order(8))):
        for name in ("image", "label"):
            assert batch[name].sharding.is_equivalent_to(layout, batch[name].ndim)
            assert batch[name].addressable_shards[0].data.shape[0] == 2


def test_all_examples_are_the_default_and_the_limit_is_in_bytes():
    whole = feed.Examples(split(), resident_bytes=SAMPLES * 60)
    assert (len(whole), whole.resident) == (SAMPLES, True)
    assert not feed.Examples(split(), resident_bytes=SAMPLES * 60 - 1).resident
    np.testing.assert_array_equal(np.asarray(next(whole.in_order(90))["image"]), IMAGES)


def test_a_resident_set_needs_nothing_of_the_host():
    batches = resident(sharding=sharding()).shuffled(16, seed=1)
    next(batches)
    before = [np.asarray(batch["label"]) for batch in itertools.islice(batches, 12)]
    batches = resident(sharding=sharding()).shuffled(16, seed=1)
    next(batches)
    with jax.transfer_guard_host_to_device("disallow_explicit"):  # over three epochs, whose orders are made, too
        within = [batch["label"] for batch in itertools.islice(batches, 12)]
    for label, wanted in zip(within, before, strict=True):
        np.testing.assert_array_equal(label, wanted)


@pytest.mark.parametrize("where", [None, "sharded"])
def test_samplers_are_the_same_from_either_place(where):
    further = ("plain", "reversed", "class_aware", "pk", "progressively_balanced", "environments")
    options = {"seed": 7, "sampling": ("class_balanced", *further), "options": {"epochs": 3, "examples_per_class": 4}}
    options |= {"environments": {"second": np.arange(53)}, "weights": np.arange(53)}
    taken = [
        list(itertools.islice(make(sharding=where and sharding()).shuffled(16, **options), 4))
        for make in (resident, streamed)
    ]
    for from_device, from_disk in zip(*taken, strict=True):
        assert from_device.keys() == from_disk.keys() == {"image", "label", *further, "second"}
        for name in (*further, "second"):
            assert from_device[name].keys() == {"image", "label"}
        jax.tree.map(np.testing.assert_array_equal, from_device, from_disk)
    plain = take(resident().shuffled(16, seed=7 + 2**32), 1)[0]  # a further sampler has a seed of its own
    np.testing.assert_array_equal(taken[0][0]["plain"]["label"], plain["label"])


@pytest.mark.parametrize("name", ["class_balanced", "class_aware", "pk", "environments", "semantic_scale"])
@pytest.mark.parametrize("make", [resident, streamed])
def test_a_sampler_goes_on_at_any_step(make, name):
    options = {"seed": 7, "sampling": (name,), "weights": np.arange(53)}
    whole = take(make().shuffled(16, **options), 9)
    assert_equal_batches(take(make().shuffled(16, start_step=5, **options), 4), whole[5:])


def test_sets_that_are_cropped_at_random_stay_on_the_host():
    cropped = dataclasses.replace(split(), random_crops=True)
    assert not feed.Examples(cropped, SUBSET).resident


def test_a_resident_step_compiles_once_and_reads_nothing(monkeypatch):
    examples = resident()
    monkeypatch.setattr(ArraySource, "__getitems__", None)
    # All sets share one cache; no other test has batches of 19.
    before = [function._cache_size() for function in (examples._draw, examples._next_epoch, examples._gather)]
    list(itertools.islice(examples.shuffled(19, seed=0), 5))
    list(itertools.islice(examples.shuffled(19, seed=1, start_step=9), 5))
    list(examples.in_order(19))
    after = [function._cache_size() for function in (examples._draw, examples._next_epoch, examples._gather)]
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 1]


def test_streaming_reads_on_while_a_step_runs(monkeypatch):
    moved = []
    monkeypatch.setattr(feed.jax, "device_put", lambda batch, where: moved.append(batch) or batch)
    batches = streamed().shuffled(16, seed=0)
    next(batches)
    assert len(moved) == 3  # this one and the next two
    next(batches)
    assert len(moved) == 4


def test_an_unreadable_example_is_one_error():
    corrupt = int(SUBSET[20])
    message = f"arrays/train[{corrupt}]: its image does not decode (8 bytes)"
    with pytest.raises(ValueError) as error:
        feed.Examples(split(corrupt), SUBSET)
    assert str(error.value) == message
    examples = feed.Examples(split(corrupt), SUBSET, resident_bytes=0)
    for batches in (examples.shuffled(8, seed=0), examples.in_order(8)):
        with pytest.raises(ValueError) as error:
            list(itertools.islice(batches, 7))
        assert str(error.value) == message


@pytest.mark.parametrize("make", [resident, streamed])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.shuffled(54, seed=0), "batch_size must be at most the 53 training examples, got 54"),
        (lambda e: e.shuffled(8, seed=-1), "seed must be an integer >= 0, got -1"),
        (lambda e: e.shuffled(8, seed=0, start_step=-1), "start_step must be an integer >= 0, got -1"),
        (lambda e: e.shuffled(12, seed=0), "batch_size must be a multiple of the 8 devices, got 12"),
        (
            lambda e: e.shuffled(8, seed=0, sampling=("environments",), weights=np.ones(52)),
            "weights must be one for each of 53 examples, got 52",
        ),
        (lambda e: e.in_order(12), "batch_size must be a multiple of the 8 devices, got 12"),
        (lambda e: e.in_order(0), "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_refusals(make, call, message):
    with pytest.raises(ValueError, match=message):
        call(make(sharding=sharding()))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples of arrays/train are chosen"):
        feed.Examples(split(), np.array([], np.int32))
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 90\) for arrays/train, got 90"):
        feed.Examples(split(), np.array([90]))


def test_a_long_decoding_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(feed, "_FIRST_LOG_SECONDS", 0.0)
    monkeypatch.setattr(feed, "_DECODED_AT_ONCE", 20)
    caplog.set_level(logging.INFO)
    resident()
    assert [record.message.rpartition(",")[0] for record in caplog.records if "Decoding" in record.message] == [
        "Decoding arrays/train: 20 of 53 images"
    ]


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_abandoned_iterators_leave_nothing_behind(resident_bytes):
    data.load("digits", "train")  # preparing it shows its progress
    program = f"""
from dsb_jax import data
from dsb_jax.data import feed
examples = feed.Examples(data.load("digits", "train"), resident_bytes={resident_bytes})
kept = examples.shuffled(32, seed=0), examples.in_order(32), examples.shuffled(32, seed=1)
for batches in kept[:2]:
    print(next(batches)["image"].shape)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "(32, 8, 8, 1)\n" * 2, "")


# Several processes: two of four devices each, of which one is looked at at a time.


@pytest.fixture
def reader(monkeypatch):
    """``reader(n)`` makes this the n-th of two processes; what it sends to its devices comes back as it is."""

    def become(number):
        monkeypatch.setattr(feed.jax, "process_index", lambda: number)
        monkeypatch.setattr(feed.jax, "process_count", lambda: 2)
        monkeypatch.setattr(feed.jax, "make_array_from_process_local_data", lambda sharding, share: share)

    return become


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.shuffled(16, seed=0, start_step=2),
        lambda e: e.shuffled(16, seed=0, sampling=("environments",), weights=np.arange(53)),
        lambda e: e.shuffled(16, seed=0, sampling=("class_aware",)),
        lambda e: e.in_order(24),
    ],
)
def test_each_process_reads_its_share_of_every_batch(reader, monkeypatch, call):
    read, shares = [], []

    class Counting(ArraySource):  # what an earlier test abandoned still reads ahead, and is not counted
        def __getitems__(self, indices):
            read.append(len(indices))
            return super().__getitems__(indices)

    monkeypatch.setattr(sys.modules[__name__], "ArraySource", Counting)
    for number in range(2):
        reader(number)
        shares.append(take(call(streamed(sharding=sharding())), 3))
    assert read
    assert set(read) <= {8, 12, 5, 0}  # half of a batch, and less of the last one
    monkeypatch.undo()
    whole = take(call(streamed(sharding=sharding())), 3)  # last, since what is abandoned still reads ahead
    for expected, first, second in zip(whole, *shares, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), expected[name])
        if "mask" in expected:  # for whoever reads the results, which all processes have
            np.testing.assert_array_equal(first["mask"], expected["mask"])


def test_each_process_decodes_its_share_of_a_set_that_lives_on_the_devices(reader, monkeypatch):
    rows = []
    monkeypatch.setattr(feed, "_decode", lambda split, share: rows.append(share) or {})
    for number in range(2):
        reader(number)
        resident(sharding=sharding())
    assert [len(share) for share in rows] == [28, 28]  # 53 in stretches of 7 for eight devices
    np.testing.assert_array_equal(np.concatenate(rows)[:53], SUBSET)
