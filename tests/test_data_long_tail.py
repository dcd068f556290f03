"""How many images each class of a long-tailed training set keeps, and which ones."""

import csv
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dsb_jax.data import long_tail

PAPER_RESULTS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "paper_results"
LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(5), [40, 31, 22, 13, 4]))


@pytest.mark.parametrize(
    ("profile", "largest", "imbalance"),
    [
        ("ldam_cifar10_exp_0.5", 5000, 2),
        ("ldam_cifar10_exp_0.05", 5000, 20),
        ("ldam_cifar10_exp_0.01", 5000, 100),
        ("ldam_cifar100_exp_0.5", 500, 2),
        ("ldam_cifar100_exp_0.05", 500, 20),
        ("ldam_cifar100_exp_0.01", 500, 100),
        ("cb_cifar10_0.05", 5000, 20),
        ("cb_cifar10_0.01", 5000, 100),
        ("cb_cifar100_0.1", 500, 10),
        ("cb_cifar100_0.02", 500, 50),
        ("cb_cifar100_0.005", 500, 200),
    ],
)
def test_exponential_counts_are_the_official_ones(golden, profile, largest, imbalance):
    official = golden("longtail_profiles")[profile]
    counts = long_tail.exponential_counts(largest, len(official), imbalance)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, official)


@hypothesis.given(
    largest=st.integers(1, 10_000),
    num_classes=st.integers(2, 200),
    imbalance=st.integers(1, 1000),
)
def test_exponential_counts_fall_from_largest_to_largest_over_imbalance(largest, num_classes, imbalance):
    hypothesis.assume(imbalance <= largest)
    counts = long_tail.exponential_counts(largest, num_classes, imbalance)
    assert counts.shape == (num_classes,)
    assert counts[0] == largest
    assert counts[-1] == largest // imbalance
    assert (np.diff(counts) <= 0).all()
    # The logarithm is a straight line, up to the part of an image that the floor takes.
    line = np.log(largest) - np.log(imbalance) * np.arange(num_classes) / (num_classes - 1)
    assert (counts <= np.exp(line) * (1 + 1e-9)).all()
    assert (counts + 1 >= np.exp(line) * (1 - 1e-9)).all()


def test_one_class_keeps_everything():
    np.testing.assert_array_equal(long_tail.exponential_counts(7, 1, 3), [7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 10), "largest must be an integer >= 1, got 0"),
        ((100, 0, 10), "num_classes must be an integer >= 1, got 0"),
        ((100, 10, 0.01), "imbalance is the largest class over the smallest and must be >= 1, got 0.01"),
        ((100, 10, float("nan")), "imbalance must be a finite number > 0, got nan"),
        ((50, 10, 100), "imbalance must be at most the images of the largest class, 50, got 100"),
    ],
)
def test_exponential_counts_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tail.exponential_counts(*arguments)


def test_mnist_lt_is_the_papers_table():
    if not PAPER_RESULTS.is_dir():
        pytest.skip(f"the paper's tables are not at {PAPER_RESULTS}")
    with open(PAPER_RESULTS / "table08.csv", newline="") as file:
        rows = {row["dataset"]: tuple(int(row[f"class_{c}"]) for c in range(10)) for row in csv.DictReader(file)}
    assert rows == {f"MNIST-LT-{number}": counts for number, counts in long_tail.MNIST_LT.items()}


def test_balanced_sub_datasets_are_the_papers_table():
    if not PAPER_RESULTS.is_dir():
        pytest.skip(f"the paper's tables are not at {PAPER_RESULTS}")
    names = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "Mini-ImageNet": "mini_imagenet"}
    table = dict.fromkeys(names.values(), ())
    with open(PAPER_RESULTS / "table07.csv", newline="") as file:
        for row in csv.DictReader(file):
            table[names[row["dataset"]]] += (int(row["samples_per_class_m"]),)
            counts = long_tail.balanced_counts(int(row["samples_per_class_m"]), int(row["num_classes"]))
            assert counts.sum() == int(row["total_C_times_m"])
    assert table == long_tail.BALANCED


def test_balanced_sub_datasets_are_nested():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 5000))
    subsets = [
        long_tail.subset(labels, long_tail.balanced_counts(m, 10), seed=4) for m in long_tail.BALANCED["cifar10"]
    ]
    for smaller, larger, m in zip(subsets, subsets[1:], long_tail.BALANCED["cifar10"], strict=False):
        assert np.isin(smaller, larger).all()
        np.testing.assert_array_equal(np.bincount(labels[smaller]), [m] * 10)
    np.testing.assert_array_equal(subsets[-1], np.arange(50_000))
    # A long tail of the same seed begins with the same images too.
    tail = long_tail.subset(labels, long_tail.exponential_counts(5000, 10, 100), seed=4)
    assert np.isin(subsets[0], tail).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10), "images_per_class must be an integer >= 1, got 0"),
        ((5, 0), "num_classes must be an integer >= 1, got 0"),
        ((5.0, 10), "images_per_class must be an integer >= 1, got 5.0"),
    ],
)
def test_balanced_counts_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tail.balanced_counts(*arguments)


counts_within_labels = st.tuples(*(st.integers(0, int(n)) for n in np.bincount(LABELS)))


@hypothesis.given(counts=counts_within_labels, smaller=counts_within_labels, seed=st.integers(0, 2**40))
def test_subset_has_the_counts_and_is_nested(counts, smaller, seed):
    rows = long_tail.subset(LABELS, counts, seed=seed)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.bincount(LABELS[rows], minlength=5), counts)
    np.testing.assert_array_equal(rows, long_tail.subset(LABELS, counts, seed=seed))
    inner = long_tail.subset(LABELS, np.minimum(counts, smaller), seed=seed)
    assert set(inner) <= set(rows)


def test_every_row_of_a_class_is_as_likely_as_another():
    kept = np.zeros(len(LABELS))
    for seed in range(600):
        kept[long_tail.subset(LABELS, [10, 10, 11, 0, 1], seed=seed)] += 1
    for label, expected in enumerate([150, 600 * 10 / 31, 300, 0, 150]):
        # Five standard deviations of a binomial count.
        np.testing.assert_allclose(kept[label == LABELS], expected, atol=5 * np.sqrt(150))


@pytest.mark.parametrize(
    ("labels", "counts", "seed", "message"),
    [
        (LABELS, [40, 32, 1, 1, 1], 0, "class 1 has 31 samples, but 32 are wanted of it"),
        (LABELS, [1] * 6, 0, "class 5 has 0 samples, but 1 are wanted of it"),
        (LABELS, [1] * 4, 0, r"labels must lie in \[0, 4\), got 4 at position"),
        (LABELS - 1, [1] * 5, 0, r"labels must lie in \[0, 5\), got -1 at position"),
        (LABELS.astype(float), [1] * 5, 0, "labels must be integers, got float64"),
        (LABELS[:, None], [1] * 5, 0, r"labels must have shape \(110,\)"),
        (LABELS, [1.5] * 5, 0, "counts must be integers >= 0"),
        (LABELS, [-1] * 5, 0, "counts must be integers >= 0"),
        (LABELS, [[1] * 5], 0, "counts must be integers >= 0"),
        (LABELS, [1] * 5, -3, "seed must be an integer >= 0, got -3"),
    ],
)
def test_subset_refuses(labels, counts, seed, message):
    with pytest.raises(ValueError, match=message):
        long_tail.subset(labels, counts, seed=seed)
