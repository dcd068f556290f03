"""Datasets are prepared once and whole, and read as they were written; damage is named."""

import concurrent.futures
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from sklearn.datasets import load_digits
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax import data
from dsb_jax.data import __main__ as overview
from dsb_jax.data import datasets, images, pipeline, records
from dsb_jax.data.builders import BUILDERS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder where digits is prepared."""
    folder = tmp_path_factory.mktemp("data")
    data.load("digits", "test", data_dir=folder)
    return folder


@pytest.fixture
def own_copy(data_dir, tmp_path):
    """A copy of that folder, to damage."""
    shutil.copytree(data_dir, tmp_path / "data")
    return tmp_path / "data"


def replace_record(data_dir, index, *, image=None, label=None):
    """Writes the test split of digits anew, with another image or label at ``index``."""
    (path,) = (data_dir / "digits").glob("*/digits-test.array_record*")
    reader = array_record_module.ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = tf_example_pb2.Example.FromString(records[index])
    if image is not None:
        example.features.feature["image"].bytes_list.value[0] = image
    if label is not None:
        example.features.feature["label"].int64_list.value[0] = label
    records[index] = example.SerializeToString()
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def examples_of(split):
    return split.source.__getitems__(range(len(split)))


def test_digits_are_those_of_scikit_learn(data_dir):
    original = load_digits()
    splits = [data.load("digits", name, data_dir=data_dir) for name in ("train", "test")]
    read = [example for split in splits for example in examples_of(split)]
    # 255 / 16 per level: every level comes back.
    levels = [np.rint(example["image"][..., 0] * (16 / 255)) for example in read]
    assert sorted((example["label"], image.tolist()) for example, image in zip(read, levels, strict=True)) == sorted(
        zip(original.target.tolist(), original.images.tolist(), strict=True)
    )
    assert {int(value) for example in read for value in np.unique(example["image"])} == {
        round(level * 255 / 16) for level in range(17)
    }


def test_digits_has_a_balanced_test_split(data_dir):
    train, test = (data.load("digits", name, data_dir=data_dir) for name in ("train", "test"))
    assert (len(train), len(test)) == (1397, 400)
    np.testing.assert_array_equal(np.bincount(test.labels), [40] * 10)
    assert np.bincount(train.labels).min() == 134
    # Version 1.0.0 means these 400 images, whatever the versions of NumPy and scikit-learn.
    assert zlib.crc32(b"".join(sorted(example["image"].tobytes() for example in examples_of(test)))) == 2689254039


def test_a_split_says_what_it_holds(data_dir):
    split = data.load("digits", "train", data_dir=data_dir)
    assert (split.name, split.split, split.num_classes) == ("digits", "train", 10)
    assert split.class_names == tuple("0123456789")
    assert split.image_shape == (8, 8, 1)
    assert split.labels.dtype == np.int32
    assert split.labels.tolist() == [example["label"] for example in split.source]
    image = split.source[0]["image"]
    assert (image.shape, image.dtype) == ((8, 8, 1), np.uint8)


def test_a_digest_tells_a_split_from_another_one_of_its_name(data_dir, own_copy):
    train = data.load("digits", "train", data_dir=data_dir)
    assert data.load("digits", "train", data_dir=own_copy, image_size=16).digest == train.digest
    assert data.load("digits", "test", data_dir=data_dir).digest != train.digest
    assert str(train).startswith("1,397 images of 10 classes in 1 files of together ")
    (file,) = own_copy.glob("digits/*/digits-train.array_record*")
    changes = (
        dataclasses.replace(train, files=((file.name, file.stat().st_size + 1),)),
        dataclasses.replace(train, origin="another listing"),
        dataclasses.replace(train, source=records.Selection([train.source], np.arange(1396))),
    )
    assert len({train.digest, *(split.digest for split in changes)}) == 4


def test_a_digest_is_of_what_was_prepared_and_left_out(own_copy):
    digests = {data.load("digits", "train", data_dir=own_copy).digest}
    folder = own_copy / "digits" / "1.0.0"
    for metadata in ({"listing": "1"}, {"listing": "2"}, {"skipped": ["a.jpg: it is missing"]}):
        (folder / "metadata.json").write_text(json.dumps(metadata))
        digests.add(data.load("digits", "train", data_dir=own_copy).digest)
    assert len(digests) == 4
    (folder / "metadata.json").write_text(json.dumps({"skipped": ["a.jpg: it cannot be read"]}))
    assert data.load("digits", "train", data_dir=own_copy).digest in digests


def test_tfds_reads_the_same(data_dir):
    stock = tfds.builder_from_directory(data_dir / "digits" / "1.0.0").as_data_source("test")
    own = data.load("digits", "test", data_dir=data_dir)
    for index in range(0, 400, 37):
        assert own.source[index]["label"] == stock[index]["label"]
        np.testing.assert_array_equal(own.source[index]["image"], stock[index]["image"])


def test_the_folder_is_tfds_own_by_default(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setattr(datasets, "prepare", None)  # it is there already
    assert len(data.load("digits", "test")) == 400


def test_neither_tensorflow_nor_a_warning(tmp_path):
    program = """
import sys
import numpy as np
from dsb_jax import data
from dsb_jax.data import pipeline
split = data.load("digits", "train")
print(next(pipeline.train_batches(split, np.arange(64), 32, seed=0))["image"].shape, "tensorflow" in sys.modules)
"""
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "(32, 8, 8, 1) False\n"


def test_an_exception_leaves_nothing_behind(tmp_path, monkeypatch):
    def three_examples(self, *arguments):
        yield from [next(complete(self, *arguments))]
        raise OSError("no space left on device")

    complete = BUILDERS["digits"]._generate_examples
    monkeypatch.setattr(BUILDERS["digits"], "_generate_examples", three_examples)
    with pytest.raises(OSError, match="no space left"):
        data.load("digits", "test", data_dir=tmp_path)
    assert [path.name for path in (tmp_path / "digits").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert len(data.load("digits", "test", data_dir=tmp_path)) == 400


def test_what_a_killed_process_left_is_removed(tmp_path):
    leftover = tmp_path / "digits" / "incomplete.ABC123_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "digits-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(data.load("digits", "test", data_dir=tmp_path)) == 400
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == [".lock", "1.0.0"]


def test_of_many_first_users_one_prepares(tmp_path, monkeypatch):
    generated = []

    def counting(self, dl_manager):
        generated.append(self)
        return split_generators(self, dl_manager)

    split_generators = BUILDERS["digits"]._split_generators
    monkeypatch.setattr(BUILDERS["digits"], "_split_generators", counting)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        splits = list(pool.map(lambda _: data.load("digits", "test", data_dir=tmp_path), range(4)))
    assert [len(split) for split in splits] == [400] * 4
    assert len(generated) == 1


def test_a_folder_that_is_no_dataset_is_not_overwritten(tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"1\.0\.0 is there but is not a complete dataset; remove it"):
        data.load("digits", "test", data_dir=tmp_path)


def test_names_are_checked(data_dir):
    with pytest.raises(ValueError, match="unknown dataset 'digit'; did you mean 'digits'"):
        data.load("digit", "train")
    with pytest.raises(ValueError, match="unknown split of digits 'tests'; did you mean 'test'"):
        data.load("digits", "tests", data_dir=data_dir)


def test_a_missing_dataset_names_the_command(tmp_path, monkeypatch):
    command = "python -m dsb_jax.data.prepare mnist --archive DIR"
    with pytest.raises(FileNotFoundError, match=f"{command} --data-dir {tmp_path} .*train-images-idx3-ubyte"):
        data.load("mnist", "train", data_dir=tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(f"{command} (DIR is the folder of")):
        data.load("mnist", "train")


def test_a_format_of_tensorflow_is_refused(own_copy):
    (path,) = own_copy.glob("digits/*/dataset_info.json")
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    for use in (lambda: data.load("digits", "test", data_dir=own_copy), lambda: prepare("digits", own_copy)):
        with pytest.raises(ValueError, match="is stored as tfrecord, but only array_record can be read"):
            use()
    assert datasets.state("digits", own_copy) == "as tfrecord"


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_outside_of_the_classes_is_named(own_copy, label):
    replace_record(own_copy, 123, label=label)
    split = data.load("digits", "test", data_dir=own_copy)
    message = rf"digits/test\[123\]: labels must lie in \[0, 10\), got {label}"
    with pytest.raises(ValueError, match=message):
        _ = split.labels
    with pytest.raises(ValueError, match=message):
        _ = split.source[123]


def test_labels_that_took_long_to_read_are_kept(own_copy, monkeypatch, caplog):
    """As of a large dataset that TFDS itself has prepared."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(records, "_SECONDS_BETWEEN_LOGS", 0.0)
    monkeypatch.setattr(records, "_RECORDS_PER_READ", 150)
    labels = data.load("digits", "test", data_dir=own_copy).labels
    assert "Reading the labels of digits/test: 300 of 400, once" in caplog.messages
    (file,) = own_copy.glob("digits/*/labels-*.npy")
    np.testing.assert_array_equal(np.load(file), labels)
    monkeypatch.setattr(records.RecordSource, "_read", None)
    np.testing.assert_array_equal(data.load("digits", "test", data_dir=own_copy).labels, labels)


def test_labels_of_which_half_is_kept_are_not_taken_for_all(own_copy, monkeypatch):
    def stopped(file, labels):
        file.write_bytes(b"half of them")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "_SECONDS_BETWEEN_LOGS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(records.np, "save", stopped)
        labels = data.load("digits", "test", data_dir=own_copy).labels
    assert not (own_copy / "digits" / "1.0.0" / "labels-test.npy").exists()
    np.testing.assert_array_equal(data.load("digits", "test", data_dir=own_copy).labels, labels)


def png(shape):
    return images.encode_png(np.full(shape, 200, np.uint8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (png((8, 8))[:-20], "its image does not decode"),
        (b"", r"its image does not decode \(0 bytes\)"),
        (b"no image", r"its image does not decode \(8 bytes\)"),
        (png((9, 8)), r"its image has shape \(9, 8, 1\), but \(8, 8, 1\) is wanted"),
    ],
    ids=["truncated", "empty", "text", "shape"],
)
def test_an_image_that_cannot_be_used_is_named(own_copy, image, message):
    replace_record(own_copy, 7, image=image)
    split = data.load("digits", "test", data_dir=own_copy)
    assert len(split.labels) == 400
    with pytest.raises(ValueError, match=rf"digits/test\[7\]: {message}"):
        _ = split.source[7]
    with pytest.raises(ValueError, match=rf"digits/test\[7\]: {message}"):
        list(pipeline.eval_batches(split, 100))


def test_a_damaged_record_file_is_named(own_copy):
    (path,) = own_copy.glob("digits/*/digits-test.array_record*")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="digits/test: its record files cannot be read"):
        _ = data.load("digits", "test", data_dir=own_copy).labels


@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, 0)])
def test_a_dataset_without_a_record_file_is_incomplete(own_copy, damage, capsys):
    (path,) = own_copy.glob("digits/*/digits-test.array_record*")
    damage(path)
    message = rf"{path.parent} is damaged \({path.name} is missing or empty\): remove it and prepare digits again"
    for use in (lambda: data.load("digits", "train", data_dir=own_copy), lambda: prepare("digits", own_copy)):
        with pytest.raises(ValueError, match=message):
            use()
    assert datasets.state("digits", own_copy) == "incomplete"
    (other,) = own_copy.glob("digits/*/digits-train.array_record*")
    other.unlink()
    with pytest.raises(ValueError, match=r"digits-t.* and 1 more of its record files are missing or empty"):
        prepare("digits", own_copy)
    assert overview.main(["--data-dir", str(own_copy)]) == 0
    assert "digits              incomplete" in capsys.readouterr().out


def prepare(name, data_dir):
    return datasets.prepare(name, data_dir=data_dir)


@pytest.mark.parametrize("index", [-1, 400])
def test_an_index_out_of_range_is_refused(data_dir, index):
    with pytest.raises(IndexError, match=f"digits/test has 400 examples, got index {index}"):
        _ = data.load("digits", "test", data_dir=data_dir).source[index]
