"""Image files become a dataset whole or not at all: bad ones are named at once, and what was written is not lost."""

import contextlib
import errno
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import PIL.Image
import pytest

from dsb_jax import data
from dsb_jax.data import __main__ as overview
from dsb_jax.data import datasets, images, prepare
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import from_files, shards
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item


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
    monkeypatch.setattr(shards, "_EXAMPLES_PER_SHARD", 4)
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
        if stop_at is not None and len(seen) >= stop_at:
            raise stop
        seen.append(content)
        check(content)

    monkeypatch.setattr(images, "check", counting)
    return seen


def stopped(archive, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        counted(patch, stop_at)
        assert run(archive) == 130


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
    monkeypatch.setattr(shards, "_THREADS", 1)
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
from dsb_jax.data.builders import from_files, shards
shards._EXAMPLES_PER_SHARD = 4
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
    assert datasets.state("folder/insects", archive.parent / "data") == "no"
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) < 24  # threads read ahead of what is written, so at least one shard was there
    test_records_are_the_files_in_order(archive)


def test_other_images_do_not_go_on_from_these(archive, monkeypatch):
    stopped(archive, monkeypatch, 17)
    (archive / "train" / "ant" / "00.jpg").rename(archive / "train" / "ant" / "new.jpg")
    seen = counted(monkeypatch)
    assert run(archive) == 0
    # Of the four shards that were there one has the images that it had.
    assert len(seen) == 24 - 4


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


def mend(archive, bad):
    """As they were; the other files are not touched."""
    with tempfile.TemporaryDirectory() as folder:
        for name in bad:
            (archive / name).write_bytes((fill(pathlib.Path(folder, "again")) / name).read_bytes())


def test_all_bad_files_are_named_at_once(archive, capsys):
    bad = damage(archive)
    assert run(archive) == 2
    message = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2].strip()
    assert message.startswith("error: 5 of 24 images cannot be used; mend them, or leave them out with --skip-bad: ")
    assert [part.partition(": ")[0] for part in message.partition("--skip-bad: ")[2].split("; ")] == bad
    assert datasets.state("folder/insects", archive.parent / "data") == "no"


def test_many_bad_files_are_listed_in_a_file(archive, capsys, monkeypatch):
    monkeypatch.setattr(shards, "_REASONS_SHOWN", 2)
    bad = damage(archive)
    assert run(archive) == 2
    message = capsys.readouterr().err
    listed = where(archive) / "unfinished.1.0.0" / "bad.txt"
    assert f"all are listed in {listed}, such as train/ant/01.jpg: " in message
    assert "train/ant/08.jpg" in message
    assert "train/bee/03.jpg" not in message
    assert [line.partition(": ")[0] for line in listed.read_text().splitlines()] == bad


def test_mended_files_are_read_again_and_the_others_not(archive, monkeypatch):
    bad = damage(archive)
    run(archive)
    mend(archive, bad)
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
    assert datasets.state("folder/insects", archive.parent / "data") == "without 5 files"
    assert overview.main(["--data-dir", str(archive.parent / "data")]) == 0
    assert "folder/insects      without 5 files" in capsys.readouterr().out
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


def test_files_mended_meanwhile_are_not_left_out(archive):
    bad = damage(archive)
    run(archive)
    mend(archive, bad[1:])
    assert run(archive, "--skip-bad") == 0
    metadata = json.loads((where(archive) / "1.0.0" / "metadata.json").read_text())
    assert [line.partition(": ")[0] for line in metadata["skipped"]] == bad[:1]


def test_another_archive_of_the_same_names_is_read_anew(archive, monkeypatch):
    """Originals and copies of another size, say."""
    stopped(archive, monkeypatch, 17)
    aside = archive.rename(archive.with_name("first"))
    fill(archive)
    for path in archive.glob("*/*/*.jpg"):
        path.write_bytes(encoded(150))
    assert run(archive) == 0
    train = data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=30)
    assert min(example["image"].mean() for example in train.source) > 140
    assert aside.exists()


@pytest.mark.parametrize(
    "moment", ["numpy.save", "tensorflow_datasets.core.dataset_info.DatasetInfo.write_to_directory"]
)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("No space left on device")], ids=["ctrl-c", "full disk"])
def test_a_stop_after_the_last_shard_loses_none(archive, moment, stop, monkeypatch):
    def stopping(*arguments, **options):
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(moment, stopping)
        run(archive)
    assert datasets.state("folder/insects", archive.parent / "data") == "no"
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert seen == []
    test_records_are_the_files_in_order(archive)


def test_a_shard_that_is_gone_is_written_again(archive, monkeypatch):
    stopped(archive, monkeypatch, 17)
    unfinished = where(archive) / "unfinished.1.0.0"
    (unfinished / "train-00000").unlink()
    (unfinished / "train-00001.json").write_bytes(b"")
    (unfinished / "train-00002").write_bytes((unfinished / "train-00002").read_bytes()[:-5])
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) == 24 - 4
    test_records_are_the_files_in_order(archive)


def test_without_links_nothing_is_lost_either(archive, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_a_stop_after_the_last_shard_loses_none(archive, "numpy.save", KeyboardInterrupt, monkeypatch)


def test_a_bad_file_that_is_taken_away_costs_one_shard(archive, monkeypatch):
    (archive / "test" / "bee" / "02.jpg").write_bytes(b"")
    assert run(archive) == 2
    (archive / "test" / "bee" / "02.jpg").unlink()
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) == 1


def test_labels_belong_to_what_a_shard_is_made_of(tmp_path, monkeypatch):
    """A corrected table must not go on from the shards of the old one, whatever is left of them."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number, "PNG"))
    monkeypatch.setattr(shards, "_THREADS", 1)
    with monkeypatch.context() as patch:
        counted(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, train=[Item("0.png", 0), Item("1.png", 1)], test=[Item("2.png", 0), Item("3.png", 1)])
    builder = build(tmp_path, train=[Item("0.png", 1), Item("1.png", 0)], test=[Item("2.png", 0), Item("3.png", 1)])
    assert [example["label"] for example in builder.as_data_source("train")] == [1, 0]


def test_features_belong_to_what_a_shard_is_made_of(tmp_path, monkeypatch):
    """What was checked and written for images of any size need not do for those of one."""
    items = {"train": [Item("0.png", 0), Item("1.png", 1)], "test": [Item("2.png", 0), Item("3.png", 1)]}
    monkeypatch.setattr(shards, "_THREADS", 1)
    with monkeypatch.context() as patch:
        counted(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, **items)
    monkeypatch.setattr(Listed, "image_shape", (30, 41, 3))
    with pytest.raises(ValueError, match="4 of 4 images cannot be used"):
        build(tmp_path, **items)


def test_other_images_that_are_prepared_meanwhile_are_refused(archive, monkeypatch):
    data_dir, other = archive.parent / "data", fill(archive.parent / "elsewhere" / "insects", count=5)
    locked = datasets.locked

    @contextlib.contextmanager
    def late(folder):
        """Another process had the lock before."""
        monkeypatch.setattr(datasets, "locked", locked)
        datasets.prepare("folder/insects", archive=other, data_dir=data_dir)
        with locked(folder):
            yield

    monkeypatch.setattr(datasets, "locked", late)
    with pytest.raises(ValueError, match=r"folder/insects is in .* already, of other images than are in "):
        datasets.prepare("folder/insects", archive=archive, data_dir=data_dir)


def test_a_disk_that_is_gone_is_no_bad_file(archive, monkeypatch, capsys):
    check = images.check

    def unplugging(content):
        if archive.exists():
            archive.rename(archive.with_name("unplugged"))
        check(content)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_THREADS", 1)  # of several, two might pull the plug
        patch.setattr(images, "check", unplugging)
        assert run(archive, "--skip-bad") == 2
    assert "is not in" in capsys.readouterr().err
    archive.with_name("unplugged").rename(archive)
    assert run(archive, "--skip-bad") == 0
    test_records_are_the_files_in_order(archive)


def test_a_prepared_dataset_needs_its_archive_no_more(archive, capsys):
    assert run(archive) == 0
    archive.rename(archive.with_name("elsewhere"))
    assert run(archive) == 0
    assert "already in" in capsys.readouterr().out


def test_images_that_changed_since_are_said(archive, caplog, capsys):
    assert run(archive) == 0
    assert run(archive) == 0
    assert caplog.messages == []
    folder = where(archive) / "1.0.0"
    prepared = (folder / "dataset_info.json").stat().st_mtime_ns
    for name in ("00.jpg", "03.jpg"):
        os.utime(archive / "train" / "bee" / name, ns=(prepared, prepared + 10**9))
        capsys.readouterr()
        assert run(archive) == 0
        assert "folder/insects is already in" in capsys.readouterr().out
    said = f"newer than the dataset, such as {archive}/train/bee/00.jpg; remove {folder} to prepare it again"
    assert caplog.messages == [f"1 image file is {said}", f"2 image files are {said}"]


def test_a_damaged_dataset_is_a_cell_of_the_list(archive, capsys):
    assert run(archive) == 0
    (where(archive) / "1.0.0" / "dataset_info.json").write_bytes(b"")
    capsys.readouterr()
    assert overview.main(["--data-dir", str(archive.parent / "data")]) == 0
    assert "folder/insects      damaged" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["folder/insects"]])
def test_a_data_dir_that_cannot_be_is_one_line(arguments, capsys):
    assert overview.main([*arguments, "--data-dir", "x" * 300]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {'x' * 300}")
    assert lines[0].endswith(": File name too long")


def test_a_dataset_that_may_not_be_read_is_a_cell_of_the_list(archive, monkeypatch, capsys):
    """For root every file can be read."""

    def refusing(folder):
        if "insects" in str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return is_complete(folder)

    assert run(archive) == 0
    is_complete = datasets._is_complete
    monkeypatch.setattr(datasets, "_is_complete", refusing)
    capsys.readouterr()
    assert overview.main(["--data-dir", str(archive.parent / "data")]) == 0
    assert "folder/insects      unreadable" in capsys.readouterr().out
    assert overview.main(["folder/insects", "--data-dir", str(archive.parent / "data")]) == 2
    assert capsys.readouterr().err.endswith(": Permission denied\n")


def test_a_reader_that_has_seen_enough_ends_the_list_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    listed = subprocess.run(
        [sys.executable, "-m", "dsb_jax.data"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (listed.returncode, listed.stderr) == (0, "")


def test_skipping_is_refused_where_files_are_no_images(tmp_path, capsys):
    (tmp_path / "x").write_text("")
    assert prepare.main(["mnist", "--archive", str(tmp_path), "--data-dir", str(tmp_path / "data"), "--skip-bad"]) == 2
    assert "error: --skip-bad is for datasets of image files, which mnist is not" in capsys.readouterr().err


def test_another_file_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="listed is written as array_record, got file_format="):
        Listed(data_dir=tmp_path).download_and_prepare()


def test_interruption_is_one_line(archive, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        counted(patch, 9)
        assert run(archive) == 130
    assert capsys.readouterr().err.rstrip().endswith("interrupted; the same command goes on")


def test_files_that_cannot_be_read_are_bad_ones(archive, monkeypatch, capsys):
    """For root every file can be read."""
    read = Archive.read

    def refusing(self, name, **options):
        if name.endswith("ant/03.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return read(self, name, **options)

    monkeypatch.setattr(Archive, "read", refusing)
    assert run(archive) == 2
    assert "train/ant/03.jpg: it cannot be read: Permission denied" in capsys.readouterr().err
    assert run(archive, "--skip-bad") == 0


def test_links_to_nowhere_are_missing_files(archive, capsys):
    (archive / "train" / "ant" / "09.jpg").symlink_to("nowhere.jpg")
    assert run(archive) == 2
    assert (
        "1 of 25 images cannot be used; mend them, or leave them out with --skip-bad: train/ant/09.jpg: it is missing"
        in (capsys.readouterr().err)
    )
    assert run(archive, "--skip-bad") == 0


def test_a_class_that_is_left_empty_is_named(archive, capsys):
    for path in (archive / "train" / "bee").glob("*.jpg"):
        path.write_bytes(b"")
    assert run(archive, "--skip-bad") == 2
    assert "folder/train: no image of bee can be used" in capsys.readouterr().err


def test_a_damaged_member_of_a_package_is_a_bad_file(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number, "PNG"))
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as file:
        for number in range(4, 6):
            file.writestr(f"{number}.png", encoded(number, "PNG"))
    content = bytearray((tmp_path / "files.zip").read_bytes())
    content[200:210] = bytes(10)
    (tmp_path / "files.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of 3 images .* 4\.png: it cannot be unpacked: Bad CRC-32"):
        build(tmp_path, train=[Item("0.png", 0), Item("4.png", 1), Item("5.png", 1)])


@pytest.mark.parametrize("name", ["a\nb", "a\rb", " b", "b ", ""])
def test_class_names_are_lines(tmp_path, name):
    with pytest.raises(ValueError, match="class names must be one line without outer blanks, got"):
        build(tmp_path, class_names=("a", name), train=[Item("0.png", 0), Item("1.png", 1)])


def test_names_that_are_no_text_are_named(archive, capsys):
    os.rename(archive / "train" / "ant" / "00.jpg", os.fsencode(archive / "train" / "ant") + b"/\xff.jpg")
    assert run(archive) == 2
    assert r"names must be UTF-8, got 'train/ant/\udcff.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "metadata.json"])
def test_a_damaged_dataset_is_one_line(archive, file, capsys):
    assert run(archive) == 0
    (where(archive) / "1.0.0" / file).write_bytes(b"")
    message = f"{where(archive) / '1.0.0'} is damaged"
    with pytest.raises(ValueError, match=message):
        data.load("folder/insects", "train", data_dir=archive.parent / "data", image_size=8)
    capsys.readouterr()
    assert run(archive) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


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
    class Full(shards.array_record_module.ArrayRecordWriter):
        def write(self, record):
            if len(finished()) == 3:
                raise RuntimeError("write() failed: No space left on device; writing somewhere")
            super().write(record)

    def finished():
        return list((where(archive) / "unfinished.1.0.0").glob("*.json"))

    with monkeypatch.context() as patch:
        patch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
        assert run(archive) == 2
    message = capsys.readouterr().err
    assert "error: folder/insects could not be written: write() failed: No space left on device" in message
    assert len(finished()) == 3
    seen = counted(monkeypatch)
    assert run(archive) == 0
    assert len(seen) == 24 - 12


def test_a_place_that_cannot_be_written_to_is_one_line(archive, capsys):
    (archive.parent / "data").write_text("a file in the way")
    assert run(archive) == 2
    assert capsys.readouterr().err == f"error: data_dir must be a folder, got the file '{archive.parent / 'data'}'\n"


class Listed(FromFiles, skip_registration=True):
    """What a test's index says."""

    name = "listed"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "files"
    index: Index

    def _index(self, archive):
        return Index(self.class_names, self.splits, archive)


def build(tmp_path, class_names=("a", "b"), **splits):
    import tensorflow_datasets as tfds

    tmp_path.mkdir(exist_ok=True)
    for number in range(4):
        if not (path := tmp_path / f"{number}.png").exists():  # else it would be another file to a shard
            path.write_bytes(encoded(number, "PNG"))
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


@pytest.mark.parametrize(
    ("attribute", "value", "skipped"),
    [
        ("images_per_split", {"train": 1202}, "train: 1,200 of 1,202 images are missing"),
        ("images_per_class", {"train": [1, 3]}, "train: 2 of 3 images of class b are missing"),
    ],
)
def test_how_many_are_missing_is_recorded_where_their_names_are_not_known(
    tmp_path, monkeypatch, attribute, value, skipped
):
    items = [Item("0.png", 0), Item("1.png", 1)]
    monkeypatch.setattr(Listed, "skip_bad", True)
    monkeypatch.setattr(Listed, attribute, value)
    assert build(tmp_path, train=items).info.metadata["skipped"] == [skipped]
    assert from_files.number_skipped([skipped, "a/b.png: it is missing"]) == (1201 if "1,200" in skipped else 3)
    monkeypatch.setattr(Listed, attribute, {"train": 1 if attribute == "images_per_split" else [0, 1]})
    with pytest.raises(ValueError, match=r"listed/train must have \d images.*, but \d are in "):
        build(tmp_path / "more", train=items)


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
