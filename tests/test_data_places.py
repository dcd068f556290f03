"""Places-LT from either version of its lists and either arrangement of the images of Places365."""

import hashlib
import pathlib
import shutil
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import places_lt
from dsb_jax.data.builders.places_lt import PlacesLt

LISTS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "splits.tar.xz"
CLASSES = ["airfield", "apartment_building-outdoor", "zen_garden"]
# File and label of each image of a list, in its order; training images of several classes are called alike.
ROWS = {
    "train": [("00000003.jpg", 0), ("00000001.jpg", 0), ("00000001.jpg", 1), ("00000001.jpg", 2), ("00000007.jpg", 2)],
    "val": [("00000002.jpg", 0), ("00000003.jpg", 1), ("00000003.jpg", 2)],
    "test": [(f"Places365_val_{number:08d}.jpg", number % 3) for number in (3, 1, 2)],
}


def top(split):
    return "val" if split == "test" else "train"


def path(split, file, label, version):
    """Of an image in a version of the lists, and in the arrangement of Places365 that it is for."""
    if version == 1:
        return f"{top(split)}/{CLASSES[label]}/{file}"
    name = CLASSES[label]
    return f"val_256/{file}" if split == "test" else f"data_256/{name[0]}/{name.replace('-', '/')}/{file}"


def jpeg(name):
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (256, 256), np.uint8)
    return cv2.imencode(".jpg", pixels // 32)[1].tobytes()


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def write_lists(folder, version, change=lambda lines: None):
    lines = {split: [f"{path(split, *row, version)} {row[1]}" for row in rows] for split, rows in ROWS.items()}
    change(lines)
    for split, rows in lines.items():
        if rows:
            write(folder / f"Places_LT_{split}.txt", "".join(f"{row}\n" for row in rows).encode())


def write_images(folder, version):
    for split, rows in ROWS.items():
        for row in rows:
            write(folder / path(split, *row, version), jpeg(path(split, *row, 1)))


@pytest.fixture
def small(monkeypatch):
    """A Places-LT of three classes."""
    counts = {"train": [2, 1, 2], "val": [1, 1, 1], "test": [1, 1, 1]}
    monkeypatch.setattr(places_lt, "_COUNTS", counts)
    monkeypatch.setattr(places_lt, "_MD5", dict.fromkeys(ROWS, ()))
    monkeypatch.setattr(PlacesLt, "images_per_split", {})
    monkeypatch.setattr(PlacesLt, "images_per_class", counts)


@pytest.fixture
def archive(small, tmp_path):
    write_images(tmp_path / "archive", 1)
    return tmp_path / "archive"


def prepare(archive, data_dir):
    builder = PlacesLt(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return tfds.builder_from_directory(data_dir / "places_lt" / "1.0.0")


def check_examples(folder):
    assert folder.info.features["label"].names == CLASSES
    assert list(folder.info.splits) == list(ROWS)
    for split, rows in ROWS.items():
        read = list(folder.as_data_source(split))
        names = [example["filename"].decode() for example in read]
        assert names == [path(split, *row, 1) for row in rows]
        assert [example["label"] for example in read] == [label for _, label in rows]
        for name, example in zip(names, read, strict=True):
            wanted = cv2.imdecode(np.frombuffer(jpeg(name), np.uint8), cv2.IMREAD_COLOR_RGB)
            np.testing.assert_array_equal(example["image"], wanted)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("lists", [1, 2])
@pytest.mark.parametrize("inside", ["", "Places_LT"])
def test_either_lists_go_with_either_images(small, lists, images, inside, tmp_path):
    write_images(tmp_path / "archive", images)
    write_lists(tmp_path / "archive" / inside, lists)
    check_examples(prepare(tmp_path / "archive", tmp_path / "data"))


@pytest.mark.parametrize("version", [1, 2])
def test_the_tars_need_not_be_unpacked(small, version, tmp_path):
    write_images(tmp_path / "unpacked" / ("places365_standard" if version == 1 else ""), version)
    (tmp_path / "archive").mkdir()
    tars = {"places365standard_easyformat": ["places365_standard"]}
    if version == 2:
        tars = {"train_256_places365standard": ["data_256"], "val_256": ["val_256"]}
    for name, folders in tars.items():
        with tarfile.open(tmp_path / "archive" / f"{name}.tar", "w") as tar:
            for folder in folders:
                tar.add(tmp_path / "unpacked" / folder, folder)
    write_lists(tmp_path / "archive", 2)
    check_examples(prepare(tmp_path / "archive", tmp_path / "data"))


def put(split, row, line):
    """Writes another line into a list."""
    return lambda lines: lines[split].__setitem__(row, line)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda lines: lines["train"].clear(), FileNotFoundError, "Places_LT_train.txt is not in {archive}"),
        (
            lambda lines: lines["val"].clear(),
            FileNotFoundError,
            "Places_LT_val.txt not in {archive}, where Places_LT_train.txt is",
        ),
        (
            put("train", 1, "train/airfield/00000003.jpg 0"),
            ValueError,
            "{archive}/Places_LT_train.txt lists train/airfield/00000003.jpg more than once, the second time in line 2",
        ),
        (
            put("train", 1, "data_256/a/airfield/00000003.jpg 0"),
            ValueError,
            "places_lt/train lists train/airfield/00000003.jpg more than once",
        ),
        (
            put("train", 1, "train/airfield/00000001.jpg 2"),
            ValueError,
            "{archive}/Places_LT_train.txt has label 2 for both airfield and zen_garden",
        ),
        (
            lambda lines: lines.update(train=lines["train"][:3]),
            ValueError,
            "{archive}/Places_LT_train.txt has no images with label 2",
        ),
        (
            put("val", 1, "train/airfield/00000001.jpg 2"),
            ValueError,
            "{archive}/Places_LT_val.txt has label 2, that is zen_garden, for train/airfield/00000001.jpg",
        ),
        (
            put("val", 1, "val/airfield/Places365_val_00000003.jpg 0"),
            ValueError,
            "Places_LT_val.txt must list images of Places365's train set, got val/airfield/",
        ),
        (
            put("test", 1, "test/00000001.jpg 2"),
            ValueError,
            "Places_LT_test.txt must list paths such as train/airfield/",
        ),
        (put("val", 0, "data_256/b/airfield/1.jpg 0"), ValueError, "got data_256/b/airfield/1.jpg"),
        (put("val", 0, "1.jpg 0"), ValueError, "got 1.jpg"),
        (put("val", 2, "train/zen_garden/00000003.jpg 3"), ValueError, "labels must lie in [0, 3), got 3 of train/"),
        (put("val", 2, "train/zen_garden/00000003.jpg"), ValueError, "line 3 must be a path and a label, got 'train"),
        (
            lambda lines: lines["train"].pop(),
            ValueError,
            "places_lt/train must have 2 images of class zen_garden, but 1 are in {archive}",
        ),
        (put("train", 1, "train/airfield/00000099.jpg 0"), ValueError, "train/airfield/00000099.jpg: it is missing"),
    ],
)
def test_what_is_wrong_with_the_lists_is_named(archive, tmp_path, change, error, message):
    write_lists(archive, 1, change)
    with pytest.raises(error) as raised:
        prepare(archive, tmp_path / "data")
    assert message.format(archive=archive) in str(raised.value)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("train", "neither train_256_places365standard.tar nor data_256 nor train/airfield … is in {archive}"),
        ("val", "neither val_256.tar nor val_256 nor val/airfield … is in {archive}"),
        ("train/zen_garden", "1 of 3 class folders (train/zen_garden) are not in {archive}"),
    ],
)
def test_what_is_missing_is_named(archive, tmp_path, folder, message):
    write_lists(archive, 1)
    shutil.rmtree(archive / folder)
    with pytest.raises(FileNotFoundError) as raised:
        prepare(archive, tmp_path / "data")
    assert message.format(archive=archive) in str(raised.value)


def test_another_version_of_a_list_is_refused(archive, tmp_path, monkeypatch):
    write_lists(archive, 1)
    md5 = hashlib.md5((archive / "Places_LT_val.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(places_lt, "_MD5", {"train": (), "val": ("0" * 32, md5), "test": ("0" * 32, "1" * 32)})
    with pytest.raises(ValueError, match=r"Places_LT_test\.txt is damaged or another version: its MD5 is"):
        prepare(archive, tmp_path / "data")


class Everything(Archive):
    """An archive with all of Places365, and the lists that are really there."""

    def has(self, name):
        return super().has(name) or name.startswith(self.arrangement)


def test_the_real_lists(tmp_path):
    if not LISTS.is_file():
        pytest.skip(f"the real lists are not at {LISTS}")
    with tarfile.open(LISTS) as packed:
        for member in packed:
            if member.name.startswith("splits/Places_LT") and member.isfile():
                write(tmp_path / member.name, packed.extractfile(member).read())
    (spec,) = places_lt.SPECS
    assert spec.protocol().evaluation == "test"
    versions = {}
    for version, arrangement in (("Places_LT", ("train/", "val/")), ("Places_LT_v2", ("data_256/", "val_256"))):
        archive = Everything(tmp_path / "splits" / version)
        archive.arrangement = arrangement
        index = PlacesLt(data_dir=tmp_path / "unused")._index(archive)
        for split, total in (("train", 62_500), ("val", 7300), ("test", 36_500)):
            found = np.bincount([item.label for item in index.splits[split]])
            assert found.sum() == PlacesLt.images_per_split[split] == total
            np.testing.assert_array_equal(found, spec.protocol().splits[split].counts)
            np.testing.assert_array_equal(found, PlacesLt.images_per_class[split])
            lines = (tmp_path / "splits" / version / f"Places_LT_{split}.txt").read_text().splitlines()
            assert [f"{item.path} {item.label}" for item in index.splits[split]] == lines
        versions[version] = [
            (item.features["filename"], item.label) for split in index.splits.values() for item in split
        ]
    assert versions["Places_LT"] == versions["Places_LT_v2"]
    assert len(set(versions["Places_LT"])) == 106_300
