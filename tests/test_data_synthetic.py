"""Rehearsals have a dataset's numbers and cost; selections of stored examples are what they say."""

import numpy as np
import pytest

from dsb_jax import data
from dsb_jax.data import datasets, images, specs, synthetic
from dsb_jax.data.builders import BUILDERS, SPECS
from dsb_jax.data.records import Selection


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec_is_whole(name):
    spec = SPECS[name]
    assert spec.name == name
    assert spec.stored_as in BUILDERS
    height, width, channels = spec.image_shape
    assert min(height, width) > 0
    assert len(spec.mean) == len(spec.std) == channels
    assert all(0 < mean < 1 and 0 < std < 1 for mean, std in zip(spec.mean, spec.std, strict=True))
    assert spec.licence
    assert spec.title
    for protocol in spec.protocols.values():
        assert {"train", protocol.evaluation} <= protocol.splits.keys()
        for part in protocol.splits.values():
            assert part.counts.dtype == np.int64
            assert (part.counts > 0).all()
            if part.relabel is not None:
                assert set(part.relabel[part.relabel >= 0]) == set(range(len(part.counts)))
        if protocol.same_classes:
            assert len({len(part.counts) for part in protocol.splits.values()}) == 1
    groups = spec.groups()
    assert sum(len(rows) for rows in groups.values()) == len(spec.train_counts())
    assert (spec.train_counts()[groups["head"]] > 100).all()
    assert (spec.train_counts()[groups["tail"]] < 20).all()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_rehearsal_has_the_numbers_of_the_dataset(name):
    spec = SPECS[name]
    split = spec.protocol().evaluation
    sizes = {"image_size": 8} if spec.sizes_differ else {}
    made = synthetic.load(spec, split, **sizes)
    np.testing.assert_array_equal(np.bincount(made.labels), spec.part(split).counts)
    assert made.num_classes == len(spec.part(split).counts)
    examples = made.source.__getitems__([0, len(made) - 1])
    assert [example["label"] for example in examples] == [made.labels[0], made.labels[-1]]
    for example in examples:
        assert example["image"].shape == made.image_shape
        assert example["image"].dtype == np.uint8


def test_made_up_files_have_the_size_of_photographs():
    """A photograph of 500x375 has 110 kB in ImageNet (138 GB of 1.28 million), give or take a third."""
    spec = next(spec for spec in SPECS.values() if spec.image_shape == (375, 500, 3) and spec.encoding == ".jpg")
    files = synthetic._files(spec, 0)
    assert 75_000 < np.mean([len(file) for file in files]) < 145_000
    assert len(set(files)) == len(files)
    assert images.decode(files[0], (375, 500, 3)).std() > 20


def test_made_up_files_are_of_the_seed():
    files = [synthetic._files(SPECS["cifar10"], seed) for seed in (0, 0, 1)]
    assert files[0] == files[1]
    assert not set(files[0]) & set(files[2])


def test_rehearsals_crop_and_repeat():
    spec = SPECS["cifar10"]
    split = synthetic.load(spec, "train", image_size=8, shorter_side=16, random_crop="resize")
    assert split.random_crops
    one, same, other = (
        split.source.crops([5], [np.random.default_rng(seed)])[0]["image"] for seed in (0, 0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    again = synthetic.load(spec, "train", image_size=8, shorter_side=16, random_crop="resize")
    np.testing.assert_array_equal(again.labels, split.labels)
    np.testing.assert_array_equal(again.source[5]["image"], split.source[5]["image"])


def test_profiles_have_sum_and_extremes():
    for total, classes, smallest, largest in ((437_513, 8142, 2, 1000), (1_281_167, 1000, 732, 1300), (100, 10, 1, 90)):
        counts = specs.profile(total, classes, smallest=smallest, largest=largest)
        assert (counts.sum(), counts.min(), counts.max(), len(counts)) == (total, smallest, largest, classes)
    with pytest.raises(ValueError, match="no profile of 10 classes of 5 to 9 images has 100 in all"):
        specs.profile(100, 10, smallest=5, largest=9)


# Selections.


@pytest.fixture(scope="module")
def digits():
    return {split: data.load("digits", split) for split in ("train", "test")}


@pytest.mark.slow
def test_a_selection_reads_what_its_rows_say(digits):
    sources = [digits["train"].source, digits["test"].source]
    everything = [*(example for source in sources for example in source)]
    rows = np.random.default_rng(0).permutation(len(everything))[:300]
    relabel = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    selection = Selection(sources, rows, relabel)
    assert len(selection) == 300
    for place, example in enumerate(selection.__getitems__(np.arange(300))):
        np.testing.assert_array_equal(example["image"], everything[rows[place]]["image"])
        assert example["label"] == 9 - everything[rows[place]]["label"] == selection.labels()[place]
    assert selection[7]["label"] == selection.labels()[7]


def test_protocols_choose_classes_and_images(digits, monkeypatch):
    both = ("train", "test")
    first = specs.class_range(0, 6, 10)
    counts = np.full(6, 30)
    spec = specs.Spec(
        **{**vars(SPECS["digits"]), "class_names": ()},
    )
    protocol = specs.Protocol(
        "halves",
        {
            "train": specs.Part(both, counts, relabel=first, choose=specs.thinned(counts)),
            "test": specs.Part(both, np.full(4, 170), relabel=specs.class_range(6, 10, 10)),
        },
    )
    spec.protocols["halves"] = protocol
    try:
        monkeypatch.setitem(SPECS, "digits", spec)
        train, again, other = (data.load("digits", "train", protocol="halves", seed=seed) for seed in (0, 0, 1))
        test = data.load("digits", "test", protocol="halves")
        assert np.bincount(train.labels).tolist() == [30] * 6
        np.testing.assert_array_equal(train.source._rows, again.source._rows)
        assert (train.source._rows != other.source._rows).any()
        assert train.class_names == tuple("012345")
        assert test.class_names == tuple("6789")
        labels = np.concatenate([digits[split].labels for split in both])
        assert len(test) == (labels >= 6).sum()
        np.testing.assert_array_equal(np.sort(np.unique(test.labels)), np.arange(4))
        assert not protocol.same_classes
    finally:
        del spec.protocols["halves"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("digits", "val"), {}, "unknown split of digits 'val'. Valid names: test, train"),
        (
            ("digits", "test"),
            {"protocol": "x"},
            "unknown protocol of digits 'x'. Valid names: class",
        ),
        (("digits", "test"), {"random_crop": "shift"}, "random_crop=shift needs an image_size"),
        (("digits", "test"), {"shorter_side": 9}, "shorter_side=9 needs an image_size"),
        (("digits", "test"), {"random_crop": "shfit", "image_size": 8}, "unknown random_crop 'shfit'; did you mean"),
        (
            ("digits", "test"),
            {"shorter_side": 7, "image_size": 8},
            "shorter_side must be at least image_size = 8, got 7",
        ),
        (
            ("digits", "test"),
            {"random_crop": "resize", "image_size": 8, "crop_scale": (0.5, 0.1)},
            r"crop_scale must be two numbers, 0 < smallest <= largest <= 1, got \(0.5, 0.1\)",
        ),
    ],
)
def test_loading_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(*arguments, **options)


def test_the_list_of_datasets(capsys, tmp_path):
    from dsb_jax.data import __main__ as listing

    datasets.prepare("digits", data_dir=tmp_path)
    capsys.readouterr()
    assert listing.main(["--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:] if not line.startswith("*")} == set(SPECS)
    (own,) = [line for line in lines if line.startswith("digits ")]
    assert own.split()[1] == "yes"
    assert "1,397 train + 400 test" in own
    (other,) = [line for line in lines if line.startswith("cifar10 ")]
    assert other.split()[1] == "–"
    for name in SPECS:
        assert listing.main([name, "--data-dir", str(tmp_path)]) == 0
        assert "protocol=" in capsys.readouterr().out
    assert listing.main(["folder/birds", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("folder/birds: your own images; here: no; to prepare: the folder of")
    assert listing.main(["digit"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown dataset 'digit'; did you mean 'digits'")


def test_a_digest_is_of_spec_protocol_and_seed():
    splits = [
        synthetic.load(data.spec("cifar100_lt"), "train", **options)
        for options in ({}, {"protocol": "100"}, {"protocol": "10"}, {"seed": 1}, {"image_size": 40})
    ]
    digests = [split.digest for split in splits]
    assert digests[0] == digests[1] == digests[4]
    assert len(set(digests)) == 3
