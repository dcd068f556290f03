"""Own folders of images: which files are taken, how they are split, and what becomes of their sizes."""

import logging
import tarfile

import cv2
import numpy as np
import PIL.Image
import pytest
from small_run import digits

from dsb_jax import data
from dsb_jax.data import feed, images, prepare
from dsb_jax.data.builders import folder as folders
from dsb_jax.training import experiment

FORMATS = {"bmp": "BMP", "jpeg": "JPEG", "JPG": "JPEG", "png": "PNG", "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP"}


def plain(colour, size=(12, 10)):
    """An image of one colour; ``size`` is width and height."""
    return PIL.Image.new("RGB", size, colour)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, FORMATS[path.suffix[1:]], **options)


def fill(folder, counts, suffix="png"):
    """Classes of so many images; every image has a colour of its own."""
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            save(folder / name / f"{number:03d}.{suffix}", plain((number, 40 * label, 200)))
    return folder


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def colours(split):
    """Number and class of each image of :func:`fill`, as its colour tells."""
    return sorted((int(example["image"][0, 0, 1]) // 40, int(example["image"][0, 0, 0])) for example in split.source)


def test_train_and_test_folders_are_taken_as_they_are(tmp_path, capsys):
    archive = tmp_path / "My.flowers"
    fill(archive / "train", {"rose": 3, "aster": 4})
    fill(archive / "test", {"rose": 2, "aster": 1})
    assert run("folder", "--archive", archive, "--data-dir", tmp_path) == 0
    where = tmp_path / "folder" / "My.flowers" / "1.0.0"
    assert capsys.readouterr().out == f"folder/My.flowers is now in {where}: 7 train, 3 test\n"
    train, test = (data.load("folder/My.flowers", name, data_dir=tmp_path, image_size=8) for name in ("train", "test"))
    assert (train.name, train.class_names, train.image_shape) == ("folder/My.flowers", ("aster", "rose"), (8, 8, 3))
    assert colours(train) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert colours(test) == [(0, 0), (0, 1), (1, 0)]
    names = {int(example["image"][0, 0, 1]) // 40: train.class_names[example["label"]] for example in train.source}
    assert names == {0: "rose", 1: "aster"}


@pytest.mark.parametrize(("train_folder", "test_folder"), [("train", "val"), ("TRAIN", "Validation")])
def test_other_names_of_the_folders(train_folder, test_folder, tmp_path):
    fill(tmp_path / train_folder, {"a": 3, "b": 3})
    fill(tmp_path / test_folder, {"b": 2})
    splits = folders._find(tmp_path)
    assert {split: {name: len(paths) for name, paths in classes.items()} for split, classes in splits.items()} == {
        "train": {"a": 3, "b": 3},
        "test": {"b": 2},
    }


def test_a_fifth_of_every_class_is_drawn_for_the_test(tmp_path):
    counts = {"a": 2, "b": 3, "c": 10, "d": 24, "train": 7}
    archive = fill(tmp_path / "images", counts)
    splits = folders._find(archive)
    assert {name: len(paths) for name, paths in splits["test"].items()} == {"a": 1, "b": 1, "c": 2, "d": 5, "train": 1}
    for name, count in counts.items():
        both = splits["train"][name] + splits["test"][name]
        assert sorted(both) == [archive / name / f"{number:03d}.png" for number in range(count)]
    assert folders._find(archive) == splits
    assert run("folder/mine", "--archive", archive, "--data-dir", tmp_path) == 0
    test = data.load("folder/mine", "test", data_dir=tmp_path, image_size=4)
    assert colours(test) == sorted(
        (label, int(path.stem)) for label, paths in enumerate(splits["test"].values()) for path in paths
    )


def test_files_of_other_kinds_are_left_out_and_counted(tmp_path, caplog):
    archive = fill(tmp_path / "images", {"a": 3, "b": 3})
    for name in ("a/notes.txt", "a/.hidden.png", "b/Thumbs.db", "b/moving.gif", "README", ".git/config"):
        (archive / name).parent.mkdir(exist_ok=True)
        (archive / name).write_bytes(b"no image")
    (archive / "a" / "more.png").mkdir()
    caplog.set_level(logging.WARNING)
    splits = folders._find(archive)
    assert {name: len(splits["train"][name]) + len(splits["test"][name]) for name in "ab"} == {"a": 3, "b": 3}
    (message,) = [record.message for record in caplog.records]
    assert message == f"7 entries of {archive} are no images of a class and are left out, such as {archive / '.git'}"


def test_all_formats_sizes_and_colours(tmp_path):
    rng = np.random.default_rng(0)
    archive = tmp_path / "images"
    for number, suffix in enumerate(FORMATS):
        smooth = cv2.resize(rng.integers(0, 256, (3, 3, 3), np.uint8), (20 + 7 * number, 60 - 5 * number))
        save(archive / "colour" / f"{number}.{suffix}", PIL.Image.fromarray(smooth))
        save(archive / "grey" / f"{number}.{suffix}", PIL.Image.fromarray(smooth).convert("L"))
    save(archive / "grey" / "palette.png", plain((9, 9, 9)).convert("P"))
    save(archive / "grey" / "deep.png", PIL.Image.fromarray(np.full((20, 20), 257 * 100, np.uint16)))
    assert run("folder", "--archive", archive, "--data-dir", tmp_path) == 0
    for split, examples in (("train", 13), ("test", 3)):
        read = data.load("folder/images", split, data_dir=tmp_path, image_size=16)
        assert len(read) == examples
        for example in read.source:
            assert (example["image"].shape, example["image"].dtype) == ((16, 16, 3), np.uint8)
            if read.class_names[example["label"]] == "grey":
                # JPEG and WebP keep grey up to a level or two of chroma.
                assert np.ptp(example["image"].astype(int), axis=-1).max() <= 2
    batch = next(feed.Examples(data.load("folder/images", "train", data_dir=tmp_path, image_size=16)).in_order(13))
    assert batch["image"].shape == (13, 16, 16, 3)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (31, 33), (16, 16), (7, 9), (16, 100), (300, 17), (5, 640)])
def test_a_square_is_the_middle_scaled(size):
    width, height = size
    # Position can be read off the colours: red grows to the right, green downwards.
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    image = np.rint(np.stack([255 * x, 255 * y, np.full_like(x, 77)], axis=-1)).astype(np.uint8)
    square = images.decode_square(images.encode_png(image), 16, 3)
    assert (square.shape, square.dtype) == ((16, 16, 3), np.uint8)
    assert (square[..., 2] == 77).all()
    side = min(width, height)
    for channel, length in ((0, width), (1, height)):
        middle = (np.arange(16) + 0.5) / 16 * side + (length - side) / 2 - 0.5
        wanted = 255 * np.clip(middle / (length - 1), 0, 1)
        line = square[8, :, 0] if channel == 0 else square[:, 8, 1]
        # Within a pixel of the scaled image, half a level of rounding on top.
        np.testing.assert_allclose(line, wanted, rtol=0, atol=255 * side / 16 / (length - 1) + 1)


def test_the_size_that_is_there_is_kept_to_the_bit():
    image = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(images.decode_square(images.encode_png(image), 16, 3), image)


def test_a_dataset_of_one_size_can_be_brought_to_another():
    small = data.load("digits", "test", image_size=4)
    stored = data.load("digits", "test")
    assert small.image_shape == (4, 4, 1)
    for index in (0, 399):
        blocks = stored.source[index]["image"].reshape(4, 2, 4, 2, 1).mean((1, 3))
        np.testing.assert_allclose(small.source[index]["image"], blocks, rtol=0, atol=0.51)
    same = data.load("digits", "test", image_size=8)
    np.testing.assert_array_equal(same.source[3]["image"], stored.source[3]["image"])


def truncated(archive):
    path = archive / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:-20])
    return "1 of 6 images cannot be used; mend them, or leave them out with --skip-bad: b/001.png: its image does not"


def one_level_too_high(archive):
    (archive.parent / "upper").mkdir()
    archive.rename(archive.parent / "upper" / "inner")
    archive.parent.joinpath("upper").rename(archive)
    fill(archive / "more" / "a", {"deep": 1})
    return f"{archive / 'inner'}, {archive / 'more'} have no images (bmp, jpeg, jpg, png, tif, tiff, webp), but folders"


def empty_class(archive):
    (archive / "c").mkdir()
    (archive / "c" / "notes.txt").write_text("none yet")
    return f"{archive / 'c'} has no images (bmp, jpeg, jpg, png, tif, tiff, webp)"


def single_image(archive):
    fill(archive, {"c": 1})
    return f"{archive / 'c'} has one image, but one to train on and one for the test are needed"


def single_class(archive):
    for path in (archive / "a").iterdir():
        path.unlink()
    (archive / "a").rmdir()
    return f"{archive} must have a folder for each of at least two classes, got 1"


def train_alone(archive):
    for name in "ab":
        (archive / name).rename(archive / name.upper())
    (archive / "train").mkdir()
    for name in "AB":
        (archive / name).rename(archive / "train" / name)
    return f"{archive / 'train'} is there, but no folder test, val, validation of the same classes beside it"


def validation_alone(archive):
    fill(archive / "Val", {"a": 2, "b": 2})
    return f"{archive / 'Val'} is there, but no folder train of the same classes beside it"


def unknown_class(archive):
    fill(archive / "train", {"a": 2, "b": 2})
    fill(archive / "test", {"a": 2, "z": 2})
    return f"{archive / 'test' / 'z'} is a class that {archive / 'train'} lacks; to search"


def empty_class_of_the_test(archive):
    fill(archive / "train", {"a": 2, "b": 2})
    (archive / "val" / "a").mkdir(parents=True)
    return f"{archive / 'val' / 'a'} has no images"


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        empty_class_of_the_test,
        empty_class,
        one_level_too_high,
        single_image,
        single_class,
        train_alone,
        validation_alone,
        unknown_class,
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_wrong_with_a_folder_is_one_line(damage, tmp_path, capfd):
    archive = fill(tmp_path / "images", {"a": 3, "b": 3})
    message = damage(archive)
    assert run("folder", "--archive", archive, "--data-dir", tmp_path / "data") == 2
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"error: {message}")
    assert captured.out == ""
    left = {path.name for path in (tmp_path / "data" / "folder" / "images").iterdir()}
    assert left <= {".lock", "unfinished.1.0.0"}


def test_classes_may_be_divided_for_retrieval(tmp_path):
    archive = fill(tmp_path / "birds", dict.fromkeys("abcde", 5))
    assert run("folder", "--archive", archive, "--data-dir", tmp_path) == 0
    options = {"protocol": "retrieval", "data_dir": tmp_path, "image_size": 8}
    train, test = (data.load("folder/birds", name, **options) for name in ("train", "test"))
    assert (train.class_names, test.class_names) == (("a", "b", "c"), ("d", "e"))
    assert colours(train) == [(label, number) for label in range(3) for number in range(5)]
    assert colours(test) == [(label, number) for label in (3, 4) for number in range(5)]
    assert np.bincount(train.labels).tolist() == [5, 5, 5]
    assert np.bincount(test.labels).tolist() == [5, 5]
    with pytest.raises(ValueError, match="unknown protocol of folder/birds 'retrival'; did you mean 'retrieval'"):
        data.load("folder/birds", "test", **options | {"protocol": "retrival"})
    with pytest.raises(ValueError, match=r"protocol=retrieval .* needs task=retrieval"):
        experiment.build(digits(f"dataset=folder/birds,protocol=retrieval,data_dir={tmp_path},image_size=8"))


def test_of_two_folders_for_the_test_one_is_taken_and_the_other_named(tmp_path, caplog):
    for name, number in (("train", 3), ("val", 2), ("test", 1)):
        fill(tmp_path / name, {"a": number, "b": number})
    assert [len(paths) for paths in folders._find(tmp_path)["test"].values()] == [1, 1]
    assert caplog.messages[0] == f"{tmp_path / 'val'} is left out: the test is {tmp_path / 'test'}"


def test_a_name_is_taken_by_the_images_that_got_it_first(tmp_path, capfd):
    archive, data_dir = fill(tmp_path / "images", {"a": 3, "b": 3}), tmp_path / "data"
    other = fill(tmp_path / "other" / "images", {"a": 3, "b": 4})
    assert run("folder", "--archive", archive, "--data-dir", data_dir) == 0
    assert capfd.readouterr().err.count("custom data configuration") == 0
    assert run("folder", "--archive", archive, "--data-dir", data_dir) == 0
    assert capfd.readouterr().out.startswith("folder/images is already in")
    assert run("folder", "--archive", other, "--data-dir", data_dir) == 2
    where = data_dir / "folder" / "images" / "1.0.0"
    message = f"error: folder/images is in {where} already, of other images than are in {other} now; choose another"
    assert capfd.readouterr().err.startswith(message)
    assert run("folder/mine", "--archive", other, "--data-dir", data_dir) == 0


def test_linked_classes_are_told_apart(tmp_path, capsys):
    linked = []
    for kind, count in (("one", 3), ("other", 4)):
        (tmp_path / kind).mkdir()
        linked.append(tmp_path / kind / "images")
        linked[-1].mkdir()
        for source in fill(tmp_path / f"{kind} images", {"a": count, "b": count}).iterdir():
            (linked[-1] / source.name).symlink_to(source)
    assert run("folder", "--archive", linked[0], "--data-dir", tmp_path) == 0
    assert capsys.readouterr().out.endswith("4 train, 2 test\n")
    assert run("folder", "--archive", linked[1], "--data-dir", tmp_path) == 2


@pytest.mark.parametrize("number", [1, 2])
def test_stray_images_beside_the_classes_are_left_out(number, tmp_path, caplog):
    for split in ("train", "test"):
        fill(tmp_path / split, {"a": 3, "b": 3})
        for stray in range(number):
            save(tmp_path / split / f"sheet{stray}.png", plain(0))
    splits = folders._find(tmp_path)
    assert {split: {name: len(paths) for name, paths in classes.items()} for split, classes in splits.items()} == {
        "train": {"a": 3, "b": 3},
        "test": {"a": 3, "b": 3},
    }
    assert f"{number} entries of {tmp_path / 'train'} are no images of a class" in caplog.messages[0]


def test_names_and_sizes_are_checked(tmp_path, capsys):
    fill(tmp_path / "images", {"a": 3, "b": 3})
    assert run("folder/x", "--archive", tmp_path / "images", "--data-dir", tmp_path) == 0
    with pytest.raises(ValueError, match="folder/x has images of any size: set image_size"):
        data.load("folder/x", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="image_size must be an integer >= 1, got 0"):
        data.load("folder/x", "train", data_dir=tmp_path, image_size=0)
    for name in ("folder", "folder/", "folder/../x", "folder/a b"):
        with pytest.raises(
            ValueError, match=r"own images are called folder/NAME, NAME of letters, digits and '_-\.' and of"
        ):
            data.load(name, "train", data_dir=tmp_path, image_size=8)
    with pytest.raises(ValueError, match="unknown dataset 'digits/x'; did you mean 'digits'"):
        data.load("digits/x", "train")
    command = "python -m dsb_jax.data.prepare folder/y --archive DIR"
    with pytest.raises(FileNotFoundError, match=f"{command} --data-dir {tmp_path} .*train/CLASS/IMAGE"):
        data.load("folder/y", "train", data_dir=tmp_path, image_size=8)
    capsys.readouterr()
    assert run("folder", "--data-dir", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: own images are called folder/NAME")


def test_real_photographs(shared_data, tmp_path):
    path = shared_data("mnist").parent / "cub_subset.tar"
    if not path.is_file():
        pytest.skip(f"the photographs are not at {path}")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    assert run("folder/cub", "--archive", tmp_path / "cub_subset", "--data-dir", tmp_path) == 0
    train, test = (data.load("folder/cub", name, data_dir=tmp_path, image_size=64) for name in ("train", "test"))
    assert (train.num_classes, train.class_names[1]) == (10, "002.Laysan_Albatross")
    assert np.bincount(train.labels).tolist() == [5] * 10
    assert np.bincount(test.labels).tolist() == [1] * 10
    for example in test.source:
        (name,) = [
            path
            for path in (tmp_path / "cub_subset" / test.class_names[example["label"]]).iterdir()
            if np.array_equal(images.decode_square(path.read_bytes(), 64, 3), example["image"])
        ]
        with PIL.Image.open(name) as photograph:
            side = min(photograph.size)
            middle = [(length - side) / 2 for length in photograph.size]
            box = (*middle, *(first + side for first in middle))
            wanted = np.asarray(photograph.convert("RGB").resize((64, 64), PIL.Image.Resampling.BOX, box=box))
        # A crop before scaling is half a pixel off a crop after it, and the last step of scaling is bilinear.
        assert np.abs(example["image"].astype(float) - wanted).mean() < 8
