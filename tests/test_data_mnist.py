"""MNIST and Fashion-MNIST from their idx files: the published files, to the byte, or a sentence on what is wrong."""

import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from dsb_jax import data
from dsb_jax.data import prepare
from dsb_jax.data.builders import mnist


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Four files as MNIST's, of 30 and 12 images; two are compressed and two are not."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "archive"
    folder.mkdir()
    files = {}
    for split, prefix, samples in (("train", "train", 30), ("test", "t10k", 12)):
        files[split] = tuple(
            write_idx(folder / f"{prefix}-{name}", rng.integers(0, high, shape, np.uint8))
            for name, shape, high in (
                ("images-idx3-ubyte.gz", (samples, 28, 28), 256),
                ("labels-idx1-ubyte", (samples,), 10),
            )
        )
    monkeypatch.setattr(mnist, "_FILES", files)
    return folder


def write_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return mnist._IdxFile(path.name.removesuffix(".gz"), array.shape, hashlib.md5(content).hexdigest())


def rewrite(path, change):
    """Changes the uncompressed bytes of a file."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    else:
        path.write_bytes(change(path.read_bytes()))


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def read_idx(folder, prefix):
    """Images and labels of an archive, read without the code under test."""
    (digits,) = folder.glob(f"{prefix}-images*")
    (labels,) = folder.glob(f"{prefix}-labels*")
    open_digits = gzip.open if digits.suffix == ".gz" else open
    open_labels = gzip.open if labels.suffix == ".gz" else open
    with open_digits(digits, "rb") as first, open_labels(labels, "rb") as second:
        return (
            np.frombuffer(first.read()[16:], np.uint8).reshape(-1, 28, 28, 1),
            np.frombuffer(second.read()[8:], np.uint8),
        )


def assert_same_examples(split, digits, labels):
    """The order on disk is TFDS's, by a hash of the key."""
    read = split.source.__getitems__(range(len(split)))
    assert sorted((example["label"], example["image"].tobytes()) for example in read) == sorted(
        (int(label), digit.tobytes()) for digit, label in zip(digits, labels, strict=True)
    )


def test_the_real_archive(shared_data, tmp_path, capsys):
    folder = shared_data("mnist")
    assert run("mnist", "--archive", folder, "--data-dir", tmp_path) == 0
    assert capsys.readouterr().out == f"mnist is now in {tmp_path / 'mnist' / '3.0.1'}: 60000 train, 10000 test\n"
    train, test = (data.load("mnist", name, data_dir=tmp_path) for name in ("train", "test"))
    assert (len(train), len(test), train.image_shape) == (60_000, 10_000, (28, 28, 1))
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert_same_examples(test, *read_idx(folder, "t10k"))


def test_a_small_archive(archive, tmp_path, capsys):
    options = ("--archive", archive, "--data-dir", tmp_path)
    assert run("mnist", *options) == 0
    assert_same_examples(data.load("mnist", "train", data_dir=tmp_path), *read_idx(archive, "train"))
    assert_same_examples(data.load("mnist", "test", data_dir=tmp_path), *read_idx(archive, "t10k"))
    capsys.readouterr()
    # Again: nothing is written, and the archive is no longer needed.
    assert run("mnist", *options) == run("mnist", "--data-dir", tmp_path) == 0
    assert capsys.readouterr().out == f"mnist is already in {tmp_path / 'mnist' / '3.0.1'}: 30 train, 12 test\n" * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda archive: (archive / "t10k-labels-idx1-ubyte").unlink(),
            "neither t10k-labels-idx1-ubyte.gz nor t10k-labels-idx1-ubyte is in {archive}",
        ),
        (
            lambda archive: (archive / "train-images-idx3-ubyte.gz").write_bytes(
                (archive / "train-images-idx3-ubyte.gz").read_bytes()[:-9]
            ),
            "train-images-idx3-ubyte.gz is not a complete gzip file",
        ),
        (
            lambda archive: (archive / "train-images-idx3-ubyte.gz").write_bytes(b"<html>"),
            "train-images-idx3-ubyte.gz is not a complete gzip file",
        ),
        (
            lambda archive: rewrite(archive / "train-images-idx3-ubyte.gz", lambda content: b"PNG!" + content[4:]),
            "train-images-idx3-ubyte.gz starts with 504e4721, but an idx file of 3-dimensional uint8 data starts "
            "with 00000803",
        ),
        (
            lambda archive: rewrite(archive / "t10k-labels-idx1-ubyte", lambda content: b""),
            "t10k-labels-idx1-ubyte starts with nothing",
        ),
        (
            lambda archive: rewrite(
                archive / "t10k-labels-idx1-ubyte", lambda content: content[:7] + b"\x0b" + content[8:]
            ),
            "t10k-labels-idx1-ubyte declares the sizes [11], but [12] is wanted",
        ),
        (
            lambda archive: rewrite(archive / "t10k-labels-idx1-ubyte", lambda content: content[:6]),
            "t10k-labels-idx1-ubyte declares the sizes no sizes",
        ),
        (
            lambda archive: rewrite(archive / "t10k-images-idx3-ubyte.gz", lambda content: content[:-1]),
            "t10k-images-idx3-ubyte.gz has 9423 bytes, but 9424 are wanted",
        ),
        (
            lambda archive: rewrite(
                archive / "train-images-idx3-ubyte.gz", lambda content: content[:-1] + bytes([content[-1] ^ 1])
            ),
            "train-images-idx3-ubyte.gz is damaged or of another dataset with the same file names: the MD5",
        ),
    ],
)
def test_a_bad_archive_is_one_line_and_leaves_nothing(archive, tmp_path, capsys, damage, message):
    damage(archive)
    assert run("mnist", "--archive", archive, "--data-dir", tmp_path / "data") == 2
    captured = capsys.readouterr()
    assert message.format(archive=archive) in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert captured.out == ""
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == [".lock"]


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """Four files as Fashion-MNIST's, of 30 and 20 images, balanced and in random order."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "fashion"
    folder.mkdir()
    files = {}
    for split, prefix, samples in (("train", "train", 30), ("test", "t10k", 20)):
        arrays = {
            "images-idx3-ubyte.gz": rng.integers(0, 256, (samples, 28, 28), np.uint8),
            "labels-idx1-ubyte.gz": rng.permutation(np.arange(samples, dtype=np.uint8) % 10),
        }
        written = [write_idx(folder / f"{prefix}-{name}", array) for name, array in arrays.items()]
        files[split] = tuple(file._replace(md5=None) for file in written)
    monkeypatch.setattr(mnist, "_FASHION_FILES", files)
    return folder


def test_fashion_mnist(fashion, tmp_path, capsys):
    assert run("fashion_mnist", "--archive", fashion, "--data-dir", tmp_path) == 0
    assert capsys.readouterr().out.endswith(": 30 train, 20 test\n")
    train, test = (data.load("fashion_mnist", name, data_dir=tmp_path) for name in ("train", "test"))
    assert_same_examples(train, *read_idx(fashion, "train"))
    assert_same_examples(test, *read_idx(fashion, "t10k"))
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"]
    assert train.class_names == (*names, "Ankle boot")


def test_the_files_of_mnist_are_not_fashion(fashion, tmp_path, capsys):
    rewrite(fashion / "t10k-labels-idx1-ubyte.gz", lambda content: content[:-1] + bytes([(content[-1] + 1) % 10]))
    assert run("fashion_mnist", "--archive", fashion, "--data-dir", tmp_path / "data") == 2
    message = (
        "t10k-labels-idx1-ubyte.gz is damaged or of another dataset with the same file names: Fashion-MNIST has 2 of"
    )
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_fashion_files_are_declared_as_mnists():
    assert {split: [file.name for file in files] for split, files in mnist._FASHION_FILES.items()} == {
        split: [file.name for file in files] for split, files in mnist._FILES.items()
    }
    assert [file.shape[0] for files in mnist._FASHION_FILES.values() for file in files] == [60_000] * 2 + [10_000] * 2


def test_progress_says_how_long_is_left(archive, tmp_path, capsys):
    assert run("mnist", "--archive", archive, "--data-dir", tmp_path) == 0
    # TFDS's bar: of a number that it knows.
    assert "Generating train examples...:   0%|          | 0/30 [00:00<?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "error: unknown dataset 'mnits'; did you mean 'mnist'? "),
        (["mnist"], "error: mnist needs --archive: the folder of train-images-idx3-ubyte[.gz], "),
        (["mnist", "--archive", "nowhere"], "error: archive 'nowhere' is not there; wanted is the folder"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--data-dir", tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


def test_the_command_line_exits_with_the_code(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "dsb_jax.data.prepare", "mnits", "--data-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
