"""Image files become a dataset whole or not at all: bad ones are named at once, and what was written is not lost."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from dsb_jax import data
from dsb_jax.data import datasets, images, prepare
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import from_files
from dsb_jax.data.builders.from_files import FromFiles, Index, Item


def encoded(colour, kind="JPEG", size=(40, 30), mode="RGB", **options):
    file = io.BytesIO()
    noise = np.random.default_rng(colour).integers(0, 60, (size[1], size[0], 3)).astype(np.uint8) + np.uint8(colour)
    PIL.Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def fill(folder, classes=("ant", "bee"), count=9):
    for label, name in enumerate(classes):
        for split, number in (("train", count), ("test", 3)):
            for row in range(number):
                path = folder / split / name / f"{row:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(10 * label + row))
    return folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """18 training images, in shards of four."""
    monkeypatch.setattr(from_files, "_EXAMPLES_PER_SHARD", 4)
    return fill(tmp_path / "insects")


def run(archive, *arguments):
    data_dir = archive.parent / "data"
    return prepare.main(["folder", "--archive", str(archive), "--data-dir", str(data_dir), *arguments])


def where(archive):
    return archive.parent / "data" / "folder" / "insects"


def counted(monkeypatch, stop_at=None, stop=KeyboardInterrupt):
    """The images that are checked, by their first bytes of content; ``stop`` comes instead of one."""
    seen, check = [], images.check

    def counting(content):
        if len(seen) == stop_at:
            raise stop
        seen.append(content)
        check(content)

    monkeypatch.setattr(images, "check", counting)
    return seen


def stopped(archive, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        counted(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            run(archive)


def test_records_are_the_files_in_order(archive):
    assert run(archive) == 0
    train = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=30)
    files = sorted((archive / "train").glob("*/*.jpg"))
    assert train.labels.tolist() == [["ant", "bee"].index(path.parent.name) for path in files]
    for example, path in zip(train.source, files, strict=True):
        np.testing.assert_array_equal(example["image"], images.decode_square(path.read_bytes(), 30, 3))
    names = sorted(path.name for path in (where(archive) / "1.0.0").iterdir())
    assert [name for name in names if name.startswith("folder-train")] == [
        f"folder-train.array_record-{number:05d}-of-00005" for number in range(5)
    ]


@pytest.mark.parametrize("stop_at", [0, 1, 4, 9, 17, 20, 23])
def test_a_stopped_preparation_goes_on(archive, stop_at, monkeypatch):
    # One thread, so that what was seen before the stop is known.
    monkeypatch.setattr(from_files, "_THREADS", 1)
    stopped(archive, monkeypatch, stop_at)
    assert not (where(archive) / "1.0.0").exists()
    # Shards of 4 in a split of 18, then of 4 in one of 6.
    whole = 4 * (stop_at // 4) if stop_at < 18 else 18 + 4 * ((stop_at - 18) // 4)
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) == 24 - whole
    test_records_are_the_files_in_order(archive)
    assert {path.name for path in where(archive).iterdir()} == {".lock", "1.0.0"}


def test_a_killed_preparation_goes_on(archive, monkeypatch):
    program = f"""
import os, signal
from dsb_jax.data import images, prepare
from dsb_jax.data.builders import from_files
from_files._EXAMPLES_PER_SHARD = 4
check, seen = images.check, []
def killing(content):
    seen.append(content)
    if len(seen) > 13:
        os.kill(os.getpid(), signal.SIGKILL)
    check(content)
images.check = killing
prepare.main(["folder", "--archive", {str(archive)!r}, "--data-dir", {str(archive.parent / "data")!r}])
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not datasets.is_prepared("folder/insects", archive.parent / "data")
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) < 24  # threads read ahead of what is written, so at least one shard was there
    test_records_are_the_files_in_order(archive)


def test_other_images_do_not_go_on_from_these(archive, monkeypatch):
    stopped(archive, monkeypatch, 17)
    (archive / "train" / "ant" / "00.jpg").rename(archive / "train" / "ant" / "new.jpg")
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) == 24


def damage(archive):
    """Five files that are no images, and what is said of each."""
    train, test = archive / "train", archive / "test"
    whole = (train / "bee" / "03.jpg").read_bytes()
    (train / "bee" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "ant" / "01.jpg").write_bytes(b"")
    (train / "ant" / "08.jpg").write_bytes(b"<html>not found</html>")
    (test / "bee" / "00.jpg").write_bytes(encoded(3, "PNG")[:-20])
    (test / "bee" / "02.jpg").write_bytes(whole[:100] + bytes(len(whole) - 100))
    return ["train/ant/01.jpg", "train/ant/08.jpg", "train/bee/03.jpg", "test/bee/00.jpg", "test/bee/02.jpg"]


def test_all_bad_files_are_named_at_once(archive, capsys):
    bad = damage(archive)
    assert run(archive) == 2
    message = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2].strip()
    assert message.startswith("error: 5 of 24 images cannot be used; mend them, or leave them out with --skip-bad: ")
    assert [part.partition(": ")[0] for part in message.partition("--skip-bad: ")[2].split("; ")] == bad
    assert not datasets.is_prepared("folder/insects", archive.parent / "data")


def test_many_bad_files_are_listed_in_a_file(archive, capsys, monkeypatch):
    monkeypatch.setattr(from_files, "_NAMES_SHOWN", 2)
    bad = damage(archive)
    assert run(archive) == 2
    message = capsys.readouterr().err
    listed = where(archive) / "unfinished.1.0.0" / "bad.txt"
    assert f"all 5 are listed in {listed}" in message
    assert "train/ant/08.jpg" in message
    assert "train/bee/03.jpg" not in message
    assert [line.partition(": ")[0] for line in listed.read_text().splitlines()] == bad


def test_mended_files_are_read_again_and_the_others_not(archive, monkeypatch):
    damage(archive)
    run(archive)
    fill(archive)
    seen = counted(monkeypatch)
    assert run(archive) == 0
    # Of the five shards of train those with ant/01, ant/08 and bee/03, and both of test.
    assert len(seen) == 4 + 4 + 4 + 4 + 2
    test_records_are_the_files_in_order(archive)


def test_bad_files_can_be_left_out_and_are_recorded(archive, capsys, monkeypatch):
    bad = damage(archive)
    run(archive)
    capsys.readouterr()
    seen = counted(monkeypatch)
    assert run(archive, "--skip-bad") == 0
    assert seen == []  # all was found by the first command
    out = capsys.readouterr().out
    metadata = where(archive) / "1.0.0" / "metadata.json"
    assert "15 train, 4 test" in out
    assert f"without 5 files that are missing or damaged: {metadata} lists them" in out
    assert [line.partition(": ")[0] for line in json.loads(metadata.read_text())["skipped"]] == bad
    train = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=8)
    assert np.bincount(train.labels).tolist() == [7, 8]
    assert len([example["image"] for example in train.source]) == 15


def test_a_split_without_usable_images_is_no_split(archive, capsys):
    for path in (archive / "test").glob("*/*.jpg"):
        path.write_bytes(b"")
    assert run(archive, "--skip-bad") == 2
    assert "no image of test can be used" in capsys.readouterr().err


def turned():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


ODD = {
    "cmyk.jpg": {"mode": "CMYK"},
    "grey.jpg": {"mode": "L"},
    "progressive.jpg": {"progressive": True},
    "turned.jpg": {"exif": turned()},
    "alpha.png": {"kind": "PNG", "mode": "RGBA"},
    "palette.png": {"kind": "PNG", "mode": "P"},
    "grey_alpha.png": {"kind": "PNG", "mode": "LA"},
}


def test_odd_images_are_no_bad_ones(archive):
    for name, options in ODD.items():
        (archive / "train" / "ant" / name).write_bytes(encoded(90, **options))
    deep = PIL.Image.fromarray(np.full((20, 20), 257 * 90, np.uint16))
    deep.save(archive / "train" / "ant" / "deep.png")
    assert run(archive) == 0
    train = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=24)
    odd = [train.source[row]["image"] for row in range(9, 9 + len(ODD) + 1)]
    for image in odd:
        assert (image.shape, image.dtype) == ((24, 24, 3), np.uint8)
        assert 80 < image.mean() < 155  # noise of 90 … 149, grey or not


def test_a_full_disk_is_one_line_and_shards_stay(archive, capsys, monkeypatch):
    class Full(from_files.array_record_module.ArrayRecordWriter):
        def write(self, record):
            if len(shards()) == 3:
                raise RuntimeError("write() failed: No space left on device; writing somewhere")
            super().write(record)

    def shards():
        return list((where(archive) / "unfinished.1.0.0").glob("*.json"))

    with monkeypatch.context() as patch:
        patch.setattr(from_files.array_record_module, "ArrayRecordWriter", Full)
        assert run(archive) == 2
    message = capsys.readouterr().err
    assert "error: folder/insects could not be written: write() failed: No space left on device" in message
    assert len(shards()) == 3
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) == 24 - 12


def test_a_place_that_cannot_be_written_to_is_one_line(archive, capsys):
    (archive.parent / "data").write_text("a file in the way")
    assert run(archive) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno ")
    assert "data" in error


class Listed(FromFiles, skip_registration=True):
    """What a test's index says."""

    name = "listed"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "files"
    index: Index

    def _index(self, archive):
        return Index(self.class_names, self.splits, archive)


def build(tmp_path, class_names=("a", "b"), **splits):
    import tensorflow_datasets as tfds

    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number, "PNG"))
    builder = Listed(data_dir=tmp_path / "data", file_format="array_record")
    builder.class_names, builder.splits = class_names, splits
    config = tfds.download.DownloadConfig(manual_dir=tmp_path, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return builder


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Item("0.png", 0), Item("0.png", 1)], "listed/train lists 0.png more than once"),
        ([Item("0.png", 0), Item("1.png", 2)], r"listed/train: labels must lie in \[0, 2\), got 2 of 1.png"),
        ([Item("0.png", 0), Item("1.png", -1)], r"listed/train: labels must lie in \[0, 2\), got -1 of 1.png"),
        ([Item("0.png", 0), Item("1.png", 0)], "listed/train has no images of class b"),
        ([], "listed/train has no images in "),
        ([Item("0.png", 0), Item("9.png", 1)], "1 of 2 images cannot be used; .* 9.png: it is missing"),
    ],
    ids=["duplicate", "label", "negative", "empty_class", "empty", "missing"],
)
def test_an_index_must_make_sense(tmp_path, items, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, train=items)
    assert not (tmp_path / "data" / "listed" / "1.0.0").exists()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("images_per_split", {"train": 3}, "listed/train must have 3 images, but 2 are in "),
        ("images_per_class", {"train": [1, 2]}, "listed/train must have 2 images of class b, but 1 are in "),
        ("images_per_split", {"train": 2, "val": 2}, "listed must have the split val, but .* has none"),
        ("image_shape", (30, 41, 3), r"1.png: its image has shape \(30, 40, 3\), but \(30, 41, 3\) is wanted"),
    ],
)
def test_numbers_are_compared_with_the_published_ones(tmp_path, monkeypatch, attribute, value, message):
    monkeypatch.setattr(Listed, attribute, value)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, train=[Item("0.png", 0), Item("1.png", 1)])


def test_class_names_must_differ(tmp_path):
    with pytest.raises(ValueError, match="class names must differ, got 'a' more than once"):
        build(tmp_path, class_names=("a", "a"), train=[Item("0.png", 0), Item("1.png", 1)])


def test_labels_lie_beside_the_records(archive, monkeypatch):
    assert run(archive) == 0
    train = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=8)
    monkeypatch.setattr(type(train.source), "_read", None)
    assert np.bincount(train.labels).tolist() == [9, 9]
    file = from_files.labels_file(where(archive) / "1.0.0", "train")
    np.save(file, np.zeros(3, np.int32))
    train = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=8)
    with pytest.raises(ValueError, match=r"labels-train.npy must hold int32 \[18\], got int32 \[3\]"):
        _ = train.labels
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"labels-train\.npy is damaged"):
        _ = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=8).labels


def test_an_archive_reads_itself_lazily(tmp_path):
    fill(tmp_path / "insects")
    archive = Archive(tmp_path / "insects")
    assert archive.folders("train") == ["train/ant", "train/bee"]
    assert os.path.basename(archive.files("train/ant")[0]) == "00.jpg"
    assert archive.read("train/ant/00.jpg") == pathlib.Path(tmp_path, "insects/train/ant/00.jpg").read_bytes()
