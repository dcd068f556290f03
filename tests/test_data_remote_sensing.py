"""RSSCN7, NWPU-RESISC45 and EuroSAT from their class folders, and the halves or fifths that are drawn of them."""

import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.resisc45 import resisc45_dataset_builder
from tensorflow_datasets.image_classification import eurosat

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import remote_sensing
from dsb_jax.data.builders.remote_sensing import Eurosat, Resisc45, Rsscn7

BUILDERS = pytest.mark.parametrize("builder", [Rsscn7, Resisc45, Eurosat])


# The layouts as they were published, whatever the builders say.
LAYOUTS = {
    "rsscn7": {
        "Grass": "aGrass/a",
        "Field": "bField/b",
        "Industry": "cIndustry/c",
        "RiverLake": "dRiverLake/d",
        "Forest": "eForest/e",
        "Resident": "fResident/f",
        "Parking": "gParking/g",
    },
    "eurosat": {name: f"{name}/{name}_" for name in eurosat._LABELS},
}


@pytest.mark.parametrize("builder", [remote_sensing.Rsscn7, remote_sensing.Eurosat])
def test_layouts_are_the_published_ones(builder):
    found = {name: f"{folder}/{builder.prefixes[name]}" for name, folder in builder.folders.items()}
    assert list(found.items()) == list(LAYOUTS[builder.name].items())


def test_resisc45_has_the_classes_of_tfds():
    names = resisc45_dataset_builder._LABELS
    assert remote_sensing.Resisc45.folders == {name: name for name in names}
    assert list(remote_sensing.Resisc45.folders) == list(names)


@pytest.fixture
def archive(tmp_path, monkeypatch, builder):
    """The unpacked folder, with three images of the first class and two of the others."""
    rng = np.random.default_rng(0)
    counts = [3] + [2] * (len(builder.folders) - 1)
    monkeypatch.setattr(builder, "images_per_class", {"train": counts})
    top, digits = tmp_path / "archive" / builder.inside[0], 1 if builder is Eurosat else 3
    for (name, folder), count in zip(builder.folders.items(), counts, strict=True):
        (top / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            image = rng.integers(0, 256, builder.image_shape, np.uint8)
            assert cv2.imwrite(str(top / folder / f"{builder.prefixes[name]}{number:0{digits}d}.jpg"), image)
    (top / "README.md").write_text("# images")
    return top


def prepare(builder, archive, data_dir):
    """The dataset, prepared and read back."""
    written = builder(data_dir=data_dir, file_format="array_record")
    written.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    )
    return tfds.builder_from_directory(data_dir / builder.name / str(builder.VERSION))


def named(folder):
    """Label name, file name and pixels of every example, in their order."""
    names = folder.info.features["label"].names
    return [
        (names[example["label"]], example["filename"].decode(), example["image"])
        for example in folder.as_data_source("train")
    ]


def decoded(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


@BUILDERS
def test_every_image_is_stored_under_its_folders_name(builder, archive, tmp_path):
    read = named(prepare(builder, archive, tmp_path / "data"))
    files = [
        (name, file.name, decoded(file))
        for name, folder in builder.folders.items()
        for file in sorted((archive / folder).iterdir())
    ]
    assert [example[:2] for example in read] == [file[:2] for file in files]
    for (_, _, image), (_, _, wanted) in zip(read, files, strict=True):
        np.testing.assert_array_equal(image, wanted)


@BUILDERS
def test_the_folder_around_it_and_a_zip_file_are_the_same(builder, archive, tmp_path):
    inner = prepare(builder, archive, tmp_path / "data0")
    outer = prepare(builder, archive.parent, tmp_path / "data1")
    shutil.make_archive(str(tmp_path / "zipped" / "all"), "zip", archive.parent)
    packed = prepare(builder, tmp_path / "zipped", tmp_path / "data2")
    for other in (outer, packed):
        for first, second in zip(named(inner), named(other), strict=True):
            assert first[:2] == second[:2]
            np.testing.assert_array_equal(first[2], second[2])


@pytest.mark.parametrize(("builder", "stock"), [(Resisc45, "resisc45"), (Eurosat, "eurosat/rgb")])
def test_the_layout_is_that_of_tfds(builder, stock, archive, tmp_path):
    info = prepare(builder, archive, tmp_path / "data").info
    wanted = tfds.builder(stock, data_dir=tmp_path / "stock").info
    assert repr(info.features) == repr(wanted.features)
    assert info.features["label"].names == wanted.features["label"].names
    assert info.supervised_keys == wanted.supervised_keys
    if builder is Resisc45:
        assert info.full_name == wanted.full_name


def remove_class(builder, archive, label):
    shutil.rmtree(archive / list(builder.folders.values())[label])


def first_image(builder, archive, label):
    return min((archive / list(builder.folders.values())[label]).iterdir())


def remove_image(builder, archive, label):
    first_image(builder, archive, label).unlink()


def rename_image(builder, archive, label):
    """An extra one makes up for one that is missing, by number."""
    image = first_image(builder, archive, label)
    image.rename(image.with_stem(f"{image.stem}61"))


def swap(builder, archive, label):
    """An image of the first class goes to those of another."""
    first, *_ = builder.folders.values()
    (image,) = (archive / first).glob("*3.jpg")
    image.rename(archive / list(builder.folders.values())[label] / image.name)


@BUILDERS
@pytest.mark.parametrize(
    ("damage", "label", "error", "message"),
    [
        (remove_class, 0, FileNotFoundError, "{folder} is not in {archive}"),
        (remove_class, 2, FileNotFoundError, "{folder} of {classes} class folders are not in {archive}"),
        (
            remove_image,
            2,
            ValueError,
            "images cannot be used; mend them, or leave them out with --skip-bad: {first}: it is",
        ),
        (rename_image, 2, ValueError, "61.jpg in {archive} are among the images of {name}, whose names are {prefix}"),
        (swap, 2, ValueError, "3.jpg in {archive} are among the images of {name}, whose names are {prefix}"),
    ],
)
def test_what_is_wrong_is_named(builder, archive, tmp_path, damage, label, error, message):
    name, folder = list(builder.folders.items())[label]
    first = "" if damage is remove_class else first_image(builder, archive, label).relative_to(archive)
    damage(builder, archive, label)
    facts = {"first": first} | {
        "name": name,
        "folder": folder,
        "prefix": builder.prefixes[name],
        "classes": len(builder.folders),
    }
    with pytest.raises(error) as raised:
        prepare(builder, archive, tmp_path / "data")
    assert message.format(dataset=builder.name, archive=archive, **facts) in str(raised.value)


@BUILDERS
def test_a_missing_image_can_be_left_out(builder, archive, tmp_path):
    first = first_image(builder, archive, 2)
    first.unlink()
    written = builder(data_dir=tmp_path / "data", file_format="array_record")
    written.skip_bad = True
    written.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    )
    assert written.info.metadata["skipped"] == [f"{first.relative_to(archive)}: it is missing"]
    assert written.info.splits["train"].num_examples == 2 * len(builder.folders)


@pytest.mark.parametrize(
    ("builder", "first", "last"),
    [
        (Rsscn7, "aGrass/a001.jpg", "gParking/g400.jpg"),
        (Resisc45, "airplane/airplane_001.jpg", "wetland/wetland_700.jpg"),
        (Eurosat, "AnnualCrop/AnnualCrop_1.jpg", "SeaLake/SeaLake_999.jpg"),
    ],
)
def test_images_are_in_the_order_of_their_names(builder, first, last, tmp_path):
    for folder in builder.folders.values():
        (tmp_path / folder).mkdir()
    paths = [item.path for item in builder(data_dir=tmp_path / "data")._index(Archive(tmp_path)).splits["train"]]
    assert (paths[0], paths[-1]) == (first, last)
    assert len(set(paths)) == len(paths) == sum(builder.images_per_class["train"])
    for folder in builder.folders.values():
        of_class = [path for path in paths if path.startswith(f"{folder}/")]
        assert of_class == sorted(of_class)


def test_what_is_still_packed_is_named(tmp_path):
    (tmp_path / "NWPU-RESISC45.rar").write_bytes(b"Rar!")
    with pytest.raises(FileNotFoundError, match=r"NWPU-RESISC45\.rar is there, but packed: unpack it first .*unrar x"):
        prepare(Resisc45, tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("rsscn7", [200] * 7, [200] * 7),
        ("resisc45", [140] * 45, [560] * 45),
        (
            "eurosat",
            [2400, 2400, 2400, 2000, 2000, 1600, 2000, 2400, 2000, 2400],
            [600, 600, 600, 500, 500, 400, 500, 600, 500, 600],
        ),
    ],
)
def test_the_published_counts_are_divided(name, train, test):
    (spec,) = (spec for spec in remote_sensing.SPECS if spec.name == name)
    splits = spec.protocol().splits
    assert splits["train"].counts.tolist() == train
    assert splits["test"].counts.tolist() == test
    labels = np.repeat(np.arange(len(train)), np.add(train, test))
    rows = {split: part.choose(labels, seed) for seed, (split, part) in enumerate(splits.items())}
    for split, part in splits.items():
        assert part.stored == ("train",)
        assert np.bincount(labels[rows[split]]).tolist() == part.counts.tolist()
        np.testing.assert_array_equal(rows[split], part.choose(labels, 9))
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(labels)))
    assert len(spec.class_names) == len(train)
