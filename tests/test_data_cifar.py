"""CIFAR-10 and CIFAR-100 from every form in which they go round: the same pixels, or a sentence about what is wrong."""

import dataclasses
import hashlib
import io
import json
import pickle
import struct
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dsb_jax import data
from dsb_jax.data import long_tail, prepare
from dsb_jax.data.builders import BUILDERS, cifar, cifar_files

# The superclass of each class of CIFAR-100, as its binary version has them.
COARSE_LABELS = """
4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13 14 17
18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6
0 17 8 14 13
"""
PER_CLASS = {"train": 5, "test": 2}


def small_layout(layout):
    """A layout with few images for each class, whose pickles have no known MD5."""
    return dataclasses.replace(layout, images_per_class=PER_CLASS, python=dataclasses.replace(layout.python, md5={}))


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request, monkeypatch):
    """A dataset of few images."""
    monkeypatch.setattr(BUILDERS[request.param], "layout", small_layout(BUILDERS[request.param].layout))
    return request.param


def layout_of(name):
    return BUILDERS[name].layout


def make_images(name, split):
    """Random images and labels in random order: ``[n, 32, 32, 3]`` and ``[n]``."""
    rng = np.random.default_rng([len(name), len(split)])
    labels = rng.permutation(np.repeat(np.arange(len(layout_of(name).class_names)), PER_CLASS[split]))
    return rng.integers(0, 256, (len(labels), 32, 32, 3), np.uint8), labels


def split_evenly(arrays, parts):
    return zip(*(np.split(array, parts) for array in arrays), strict=True)


def planes(pixels):
    """Rows of 1,024 red values, then green, then blue."""
    return np.stack([pixels[..., channel].reshape(len(pixels), -1) for channel in range(3)], axis=1).reshape(-1, 3072)


def binary_files(name):
    layout = layout_of(name)
    files = {layout.binary.names: "\n".join((*layout.class_names, "")).encode()}
    for split, names in layout.binary.files.items():
        for file, (pixels, labels) in zip(names, split_evenly(make_images(name, split), len(names)), strict=True):
            coarse = [np.array(COARSE_LABELS.split(), np.uint8)[labels]] if name == "cifar100" else []
            columns = [*coarse, labels.astype(np.uint8)]
            files[file] = np.column_stack([*columns, planes(pixels)]).tobytes()
    return files


class PickleOfPython2:
    """Protocol 2 as cPickle of Python 2 with NumPy 1 wrote it: ``str`` is bytes, arrays name ``numpy.core``."""

    def dump(self, value):
        return pickle.PROTO + b"\x02" + self.put(value) + pickle.STOP

    def put(self, value):
        match value:
            case dict():
                pairs = b"".join(self.put(key) + self.put(entry) for key, entry in value.items())
                return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS
            case list():
                return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(self.put, value)) + pickle.APPENDS
            case tuple():
                return pickle.MARK + b"".join(map(self.put, value)) + pickle.TUPLE
            case bool():
                return pickle.NEWTRUE if value else pickle.NEWFALSE
            case int():
                return pickle.BININT + struct.pack("<i", value)
            case str():
                return self.put(value.encode())
            case bytes():
                return pickle.BINSTRING + struct.pack("<i", len(value)) + value
            case None:
                return pickle.NONE
            case np.ndarray():
                made = self.call(b"numpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", (0,), "b")
                dtype = self.call(b"numpy\ndtype\n", self.put("u1"), 0, 1)
                dtype += self.put((3, "|", None, None, None, -1, -1, 0)) + pickle.BUILD
                state = pickle.MARK + b"".join(
                    (self.put(1), self.put(value.shape), dtype, pickle.NEWFALSE, self.put(value.tobytes()))
                )
                return made + state + pickle.TUPLE + pickle.BUILD
        raise AssertionError(value)

    def call(self, function, first, *others):
        return pickle.GLOBAL + function + pickle.MARK + first + b"".join(map(self.put, others)) + b"tR"


def python_files(name):
    layout = layout_of(name)
    fine = "fine_" if name == "cifar100" else ""
    files = {layout.python.names: PickleOfPython2().dump({f"{fine}label_names": list(layout.class_names)})}
    for split, names in layout.python.files.items():
        for file, (pixels, labels) in zip(names, split_evenly(make_images(name, split), len(names)), strict=True):
            table = {"batch_label": file, f"{fine}labels": labels.tolist(), "data": planes(pixels)}
            files[file] = PickleOfPython2().dump(table)
    return files


def strip_files(name):
    """Up to three images in a strip."""
    files = {}
    for split in ("train", "test"):
        pixels, labels = make_images(name, split)
        for label, class_name in enumerate(layout_of(name).class_names):
            of_class = pixels[labels == label]
            for number, first in enumerate(range(0, len(of_class), 3)):
                strip = cv2.cvtColor(of_class[first : first + 3].reshape(-1, 32, 3), cv2.COLOR_RGB2BGR)
                encoded = cv2.imencode(".webp", strip, [cv2.IMWRITE_WEBP_QUALITY, 101])[1]  # above 100: lossless
                files[f"{split}/{class_name}_{number:02d}.webp"] = encoded.tobytes()
    return files


MAKERS = {"binary": binary_files, "python": python_files, "strips": strip_files}


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def write_tar(path, folder, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_archive(folder, name, form, packing):
    """The files of a form as they lie in a folder; ``packing`` says how."""
    files = MAKERS[form](name)
    if packing == "plain":
        return write(folder, files)
    original = getattr(layout_of(name), form)
    if packing == "inside":
        write(folder / original.folder, files)
    else:
        write_tar(folder / original.archive, original.folder, files)
    return folder


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


FORMS = [
    ("binary", "plain"),
    ("binary", "inside"),
    ("binary", "tar"),
    ("python", "plain"),
    ("python", "inside"),
    ("python", "tar"),
    ("strips", "plain"),
]


@pytest.mark.parametrize(("form", "packing"), FORMS)
def test_every_form_gives_the_same_pixels(name, form, packing, tmp_path):
    archive = write_archive(tmp_path / "archive", name, form, packing)
    parts = cifar_files.read(archive, layout_of(name))
    for split, part in parts.items():
        pixels, labels = make_images(name, split)
        order = np.argsort(labels, kind="stable") if form == "strips" else slice(None)
        np.testing.assert_array_equal(part.images, pixels[order])
        np.testing.assert_array_equal(part.labels, labels[order])


@pytest.mark.parametrize("form", MAKERS)
def test_prepared_as_tfds_would(name, form, tmp_path, capsys):
    archive = write_archive(tmp_path / "archive", name, form, "plain")
    assert run(name, "--archive", archive, "--data-dir", tmp_path) == 0
    classes = len(layout_of(name).class_names)
    where = tmp_path / name / "3.0.2"
    assert capsys.readouterr().out == f"{name} is now in {where}: {5 * classes} train, {2 * classes} test\n"
    for split in ("train", "test"):
        read = data.load(name, split, data_dir=tmp_path)
        assert (read.image_shape, read.class_names) == ((32, 32, 3), layout_of(name).class_names)
        examples = [(example["label"], example["image"].tobytes()) for example in read.source]
        pixels, labels = make_images(name, split)
        assert sorted(examples) == sorted(
            (int(label), image.tobytes()) for label, image in zip(labels, pixels, strict=True)
        )
        stock = tfds.builder_from_directory(where).as_data_source(split)
        for index in (0, len(stock) - 1):
            np.testing.assert_array_equal(stock[index]["image"], read.source[index]["image"])
        if name == "cifar100":
            assert all(stock[i]["coarse_label"] == int(COARSE_LABELS.split()[stock[i]["label"]]) for i in range(20))
    if form != "strips":
        order = np.argsort([example["id"] for example in stock])
        np.testing.assert_array_equal(np.stack([stock[int(i)]["image"] for i in order]), pixels)


def test_features_are_those_of_tfds(name):
    stock = {"cifar10": tfds.image_classification.Cifar10, "cifar100": tfds.image_classification.Cifar100}[name]
    assert issubclass(BUILDERS[name], stock)
    assert BUILDERS[name].VERSION == stock.VERSION


def test_superclasses():
    layout = cifar_files.CIFAR100
    assert [str(label) for label in layout.coarse_labels] == COARSE_LABELS.split()
    assert (len(layout.class_names), layout.class_names[0], layout.class_names[99]) == (100, "apple", "worm")
    assert layout.coarse_names[layout.coarse_labels[layout.class_names.index("wolf")]] == "large_carnivores"


def test_a_part_in_strips_is_taken_and_said(tmp_path, caplog, capsys):
    files = strip_files_of_one("cifar10")
    archive = write(tmp_path / "archive", files)
    assert run("cifar10", "--archive", archive, "--data-dir", tmp_path) == 0
    assert [record.message for record in caplog.records if "part" in record.message] == [
        "cifar10/train is a part: 20 of 50000 images",
        "cifar10/test is a part: 10 of 10000 images",
    ]
    assert run("cifar10", "--archive", archive, "--data-dir", tmp_path) == 0
    capsys.readouterr()
    write(tmp_path / "archive", {"train/cat_01.webp": files["train/cat_00.webp"]})
    assert run("cifar10", "--archive", archive, "--data-dir", tmp_path) == 2
    message = (
        f"error: cifar10 is in {tmp_path}/cifar10/3.0.2 already, of other images than are in {archive} now; remove"
    )
    assert capsys.readouterr().err.startswith(message)


def strip_files_of_one(name):
    """Every class one strip, of two images in train and one in test."""
    strip = {rows: cv2.imencode(".webp", np.zeros((32 * rows, 32, 3), np.uint8))[1].tobytes() for rows in (1, 2)}
    return {
        f"{split}/{class_name}_00.webp": strip[rows]
        for split, rows in (("train", 2), ("test", 1))
        for class_name in layout_of(name).class_names
    }


@pytest.mark.parametrize("form", ["binary", "python"])
def test_class_names_may_be_missing(name, form, tmp_path):
    files = MAKERS[form](name)
    del files[getattr(layout_of(name), form).names]
    parts = cifar_files.read(write(tmp_path, files), layout_of(name))
    np.testing.assert_array_equal(parts["test"].labels, make_images(name, "test")[1])


def remove(file):
    return lambda files: files.pop(file)


def change(file, function):
    return lambda files: files.update({file: function(files[file])})


def relabelled(content):
    table = np.frombuffer(content, np.uint8).reshape(-1, 3073).copy()
    table[0, 0] = (table[0, 0] + 1) % 10
    return table.tobytes()


class Malicious:
    def __reduce__(self):
        return eval, ("1 + 1",)


CIFAR10_DAMAGE = [
    ("binary", remove("data_batch_3.bin"), "data_batch_3.bin is not in {archive}", FileNotFoundError),
    (
        "binary",
        change("data_batch_2.bin", lambda content: content[:-100]),
        "{archive}/data_batch_2.bin has 30630 bytes, which is no multiple of 3073, one image",
        ValueError,
    ),
    ("binary", change("test_batch.bin", lambda content: b""), "test_batch.bin has 0 bytes", ValueError),
    (
        "binary",
        change("test_batch.bin", lambda content: content[3073:]),
        "{archive}/test_batch.bin: 1 images of class",
        ValueError,
    ),
    ("binary", change("test_batch.bin", relabelled), "test_batch.bin: 1 images of class", ValueError),
    (
        "binary",
        change("data_batch_1.bin", lambda content: b"\x63" + content[1:]),
        "{archive}/data_batch_1.bin: labels must lie in [0, 10), got 99 of image 0",
        ValueError,
    ),
    (
        "binary",
        change("batches.meta.txt", lambda content: content.replace(b"frog", b"toad")),
        "{archive}/batches.meta.txt names other classes than CIFAR-10's: airplane, automobile, bird, cat, deer, dog, t",
        ValueError,
    ),
    ("python", remove("test_batch"), "test_batch is not in {archive}", FileNotFoundError),
    (
        "python",
        change("data_batch_4", lambda content: content[:1000]),
        "{archive}/data_batch_4 is no pickle of CIFAR's: pickle data was truncated",
        ValueError,
    ),
    ("python", change("data_batch_4", lambda content: b"<html>"), "data_batch_4 is no pickle of CIFAR's: ", ValueError),
    (
        "python",
        change("data_batch_1", lambda content: pickle.dumps(Malicious(), protocol=2)),
        "data_batch_1 is no pickle of CIFAR's: it asks for __builtin__.eval, which CIFAR's files do not",
        ValueError,
    ),
    (
        "python",
        change("data_batch_1", lambda content: PickleOfPython2().dump({"labels": [1]})),
        "{archive}/data_batch_1 must hold a dictionary with 'data', a ndarray",
        ValueError,
    ),
    (
        "python",
        change("data_batch_1", lambda content: PickleOfPython2().dump([1])),
        "{archive}/data_batch_1 must hold a dictionary with 'data', a ndarray",
        ValueError,
    ),
    (
        "python",
        change(
            "data_batch_1",
            lambda content: PickleOfPython2().dump({"labels": [1], "data": np.zeros((1, 3), np.uint8)}),
        ),
        "{archive}/data_batch_1: data must be uint8 [1, 3072], got uint8 [1, 3]",
        ValueError,
    ),
    (
        "python",
        change(
            "data_batch_1",
            lambda content: PickleOfPython2().dump({"labels": ["1"], "data": np.zeros((1, 3072), np.uint8)}),
        ),
        "{archive}/data_batch_1: labels must be integers",
        ValueError,
    ),
    ("strips", remove("train/cat_00.webp"), "{archive}/train/cat_00.webp is missing", FileNotFoundError),
    (
        "strips",
        lambda files: files.update({"test/cat_02.webp": files["test/cat_00.webp"]}),
        "{archive}/test/cat_01.webp is missing",
        FileNotFoundError,
    ),
    (
        "strips",
        lambda files: files.update({"train/dgo_00.webp": files["train/dog_00.webp"]}),
        "{archive}/train/dgo_00.webp is no strip of a class of CIFAR-10",
        ValueError,
    ),
    (
        "strips",
        change("train/cat_01.webp", lambda content: content[: len(content) // 2]),
        "{archive}/train/cat_01.webp: its image does not decode",
        ValueError,
    ),
    (
        "strips",
        change("test/cat_00.webp", lambda content: cv2.imencode(".webp", np.zeros((64, 31, 3), np.uint8))[1].tobytes()),
        "{archive}/test/cat_00.webp: its image has shape (64, 31, 3), but (None, 32, 3) is wanted",
        ValueError,
    ),
    (
        "strips",
        change("test/cat_00.webp", lambda content: cv2.imencode(".webp", np.zeros((60, 32, 3), np.uint8))[1].tobytes()),
        "{archive}/test/cat_00.webp: its height 60 is no multiple of 32",
        ValueError,
    ),
]


@pytest.fixture
def small_cifar10(monkeypatch):
    monkeypatch.setattr(cifar.Cifar10, "layout", small_layout(cifar_files.CIFAR10))


@pytest.mark.usefixtures("small_cifar10")
@pytest.mark.parametrize(("form", "damage", "message", "kind"), CIFAR10_DAMAGE)
def test_what_is_wrong_is_said(form, damage, message, kind, tmp_path):
    files = MAKERS[form]("cifar10")
    damage(files)
    archive = write(tmp_path / "archive", files)
    with pytest.raises(kind) as error:
        cifar_files.read(archive, layout_of("cifar10"))
    assert message.format(archive=archive) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("small_cifar10")
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-6],
        lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],  # the checksum at the end
        lambda content: b"<html>",
    ],
)
def test_a_damaged_archive_is_named(damage, tmp_path, capsys):
    archive = write_archive(tmp_path / "archive", "cifar10", "binary", "tar")
    path = archive / "cifar-10-binary.tar.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert run("cifar10", "--archive", archive, "--data-dir", tmp_path / "data") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {path} is not a complete .tar.gz file: ")
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == [".lock"]


@pytest.mark.usefixtures("small_cifar10")
def test_an_archive_without_a_file_is_named(tmp_path):
    files = binary_files("cifar10")
    del files["test_batch.bin"]
    write_tar(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    with pytest.raises(FileNotFoundError, match=r"test_batch.bin is not in .*cifar-10-binary.tar.gz"):
        cifar_files.read(tmp_path, layout_of("cifar10"))


def test_superclasses_that_do_not_fit_are_damage(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar.Cifar100, "layout", small_layout(cifar_files.CIFAR100))
    files = binary_files("cifar100")
    files["test.bin"] = bytes([files["test.bin"][0] ^ 1]) + files["test.bin"][1:]
    with pytest.raises(ValueError, match=r"test.bin is damaged: image 0 is of class \w+ and superclass \d+"):
        cifar_files.read(write(tmp_path, files), layout_of("cifar100"))


def test_published_pickles_have_their_md5(tmp_path):
    files = {file: b"content" for files in cifar_files.CIFAR100.python.files.values() for file in files}
    wrong = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
    with pytest.raises(ValueError, match=f"train is damaged: its MD5 is {wrong}, CIFAR-100's is 16019d7e3df5f2425"):
        cifar_files.read(write(tmp_path, files), cifar_files.CIFAR100)


def test_a_folder_of_something_else_says_what_is_wanted(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    assert run("cifar100", "--archive", tmp_path, "--data-dir", tmp_path / "data") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: no files of CIFAR-100 are in {tmp_path}; wanted is the folder of cifar-100-binary.tar.gz or "
        "cifar-100-python.tar.gz, of their files, or of train|test/CLASS_00.webp …; the archives are of "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    )


# The real images.


def test_the_real_cifar10(shared_data):
    folder, layout = shared_data("cifar10"), cifar_files.CIFAR10
    parts = cifar_files.read(folder, layout)
    found = {
        f"{split}/{class_name}": int((part.labels == label).sum())
        for split, part in parts.items()
        for label, class_name in enumerate(layout.class_names)
    }
    assert found == json.loads((folder / "counts.json").read_text())
    for channel, (mean, std) in enumerate(zip((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), strict=True)):
        share = np.bincount(parts["train"].images[..., channel].ravel(), minlength=256) / (50_000 * 1024)
        levels = np.arange(256) / 255
        np.testing.assert_allclose(share @ levels, mean, rtol=0, atol=6e-5)
        np.testing.assert_allclose(np.sqrt(share @ levels**2 - (share @ levels) ** 2), std, rtol=0, atol=6e-5)


def test_the_real_cifar100(shared_data):
    parts = cifar_files.read(shared_data("cifar100"), cifar_files.CIFAR100)
    np.testing.assert_array_equal(np.bincount(parts["test"].labels), [100] * 100)
    # At least the part from which every long tail of imbalance 10 or more is drawn.
    assert (np.bincount(parts["train"].labels) >= long_tail.exponential_counts(500, 100, 10)).all()
