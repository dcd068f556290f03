"""CUB-200-2011, Cars196, Stanford Online Products, Mini-ImageNet and Tiny ImageNet, each in its original's layout."""

import math
import pathlib
import shutil
import tarfile

import cv2
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import cars, cub, mini_imagenet, products, tiny_imagenet
from dsb_jax.data.builders.cars import Cars
from dsb_jax.data.builders.cub import Cub
from dsb_jax.data.builders.mini_imagenet import MiniImagenet
from dsb_jax.data.builders.products import OnlineProducts
from dsb_jax.data.builders.tiny_imagenet import TinyImagenet

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
BUILDERS = [Cub, Cars, OnlineProducts, MiniImagenet, TinyImagenet]
SPECS = {spec.name: spec for module in (cub, cars, products, mini_imagenet, tiny_imagenet) for spec in module.SPECS}


class Files:
    """A folder that a test fills; every image has a grey of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.greys = {}  # by path

    def image(self, path, *, shape=(24, 32)):
        self.greys[path] = 3 * len(self.greys)
        self.write(path, cv2.imencode(".jpg", np.full((*shape, 3), self.greys[path], np.uint8))[1].tobytes())

    def write(self, path, content):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def change(self, path, old, new):
        text = (self.folder / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new, 1))

    def remove(self, path):
        path = self.folder / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def path_of(self, image):
        """Of an example, whichever decoder read it."""
        return min(self.greys, key=lambda path: abs(float(np.mean(image)) - self.greys[path]))


def published(monkeypatch, cls, per_split, per_class=None):
    """Replaces the numbers of images that there must be."""
    monkeypatch.setattr(cls, "images_per_split", per_split)
    monkeypatch.setattr(cls, "images_per_class", per_class or {})


def index(cls, folder):
    return cls(data_dir=folder / "unused", file_format="array_record")._index(Archive(folder))


def prepare(cls, folder, data_dir, *, skip_bad=False):
    """The folder of the dataset that is made of an archive."""
    builder = cls(data_dir=data_dir, file_format="array_record")
    builder.skip_bad = skip_bad
    config = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_path)


def examples(folder, files):
    """Path and class name of every stored example, in order, by split."""
    builder = tfds.builder_from_directory(folder)
    names = builder.info.features["label"].names
    return {
        split: [(files.path_of(example["image"]), names[example["label"]]) for example in builder.as_data_source(split)]
        for split in builder.info.splits
    }


@pytest.fixture
def cub_files(tmp_path, monkeypatch):
    """Three species; the second has its test image first."""
    files = Files(tmp_path / "archive" / "CUB_200_2011")
    names = ["001.Albatross", "002.Auklet", "003.Wren"]
    rows = [(0, 1), (0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 0)]
    paths = [f"{names[label]}/{names[label][4:]}_{row:04d}_{row + 40}.jpg" for row, (label, _) in enumerate(rows)]
    for path in paths:
        files.image(f"images/{path}")
    lists = {
        "classes": names,
        "images": paths,
        "image_class_labels": [label + 1 for label, _ in rows],
        "train_test_split": [training for _, training in rows],
    }
    for name, values in lists.items():
        files.write(f"{name}.txt", "".join(f"{number} {value}\n" for number, value in enumerate(values, start=1)))
    published(monkeypatch, Cub, {"train": 4, "test": 3}, {"train": np.array([2, 1, 1]), "test": np.array([1, 1, 1])})
    return files


def cub_examples():
    albatross, auklet, wren = "001.Albatross", "002.Auklet", "003.Wren"
    return {
        "train": [
            (f"images/{albatross}/Albatross_0000_40.jpg", albatross),
            (f"images/{albatross}/Albatross_0002_42.jpg", albatross),
            (f"images/{auklet}/Auklet_0004_44.jpg", auklet),
            (f"images/{wren}/Wren_0005_45.jpg", wren),
        ],
        "test": [
            (f"images/{albatross}/Albatross_0001_41.jpg", albatross),
            (f"images/{auklet}/Auklet_0003_43.jpg", auklet),
            (f"images/{wren}/Wren_0006_46.jpg", wren),
        ],
    }


def test_cub(cub_files, tmp_path):
    folder = prepare(Cub, cub_files.folder, tmp_path / "data")
    assert folder == tmp_path / "data" / "cub2011" / "1.0.0"
    assert examples(folder, cub_files) == cub_examples()


@pytest.mark.parametrize("pack", [None, "tar", "zip"])
def test_the_folder_above_will_do_and_so_will_a_packed_one(cub_files, tmp_path, pack):
    above = cub_files.folder.parent
    if pack:
        shutil.make_archive(str(tmp_path / "packed" / "CUB_200_2011"), pack, above, "CUB_200_2011")
        above = tmp_path / "packed"
    found = index(Cub, above)
    assert found.class_names == ["001.Albatross", "002.Auklet", "003.Wren"]
    assert {
        split: [(item.path, found.class_names[item.label]) for item in items] for split, items in found.splits.items()
    } == cub_examples()
    assert all(found.archive.read(item.path)[:2] == b"\xff\xd8" for items in found.splits.values() for item in items)


def test_a_packed_original_is_to_be_unpacked(tmp_path):
    (tmp_path / "CUB_200_2011.tgz").touch()
    with pytest.raises(FileNotFoundError, match=r"images.txt is not in .*; CUB_200_2011.tgz is there, but packed: "):
        index(Cub, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.remove("images.txt"), "images.txt is not in {folder}"),
        (lambda files: files.remove("train_test_split.txt"), "train_test_split.txt is not in {folder}"),
        (lambda files: files.remove("images"), "the folder images is not in {folder}"),
        (
            lambda files: files.change("images.txt", "3 001.Albatross/Albatross_0002_42.jpg\n", ""),
            "{folder}/images.txt lacks image 3 of image_class_labels.txt",
        ),
        (
            lambda files: files.change("train_test_split.txt", "6 1\n7 0\n", ""),
            "{folder}/train_test_split.txt lacks image 6 and 1 more of images.txt",
        ),
        (
            lambda files: files.change("image_class_labels.txt", "2 1\n", "1 1\n"),
            "{folder}/image_class_labels.txt lists 1 more than once, the second time in line 2",
        ),
        (
            lambda files: files.change("image_class_labels.txt", "7 3\n", "7 4\n"),
            "{folder}/image_class_labels.txt: image 7 has class 4, but classes.txt has 1 to 3",
        ),
        (
            lambda files: files.change("image_class_labels.txt", "7 3\n", "7 2\n"),
            "{folder}/image_class_labels.txt: image 7 has class 002.Auklet, but images.txt has it in "
            "003.Wren/Wren_0006_46.jpg",
        ),
        (
            lambda files: files.change("train_test_split.txt", "5 1\n", "5 2\n"),
            "{folder}/train_test_split.txt: image 5 must have 0 or 1, got 2",
        ),
        (
            lambda files: files.change("images.txt", "2 001", "two 001"),
            "{folder}/images.txt: line 2 must be a number and a value, got 'two 001.Albatross/Albatross_0001_41.jpg'",
        ),
        (
            lambda files: files.change("classes.txt", "3 003", "4 003"),
            "{folder}/classes.txt must number its 3 classes from 1",
        ),
        (
            lambda files: files.change("train_test_split.txt", "7 0", "7 1"),
            "cub2011/train must have 4 images, but 5 are in {folder}",
        ),
        (
            lambda files: files.remove("images/003.Wren/Wren_0006_46.jpg"),
            "1 of 7 images cannot be used; mend them, or leave them out with --skip-bad: "
            "images/003.Wren/Wren_0006_46.jpg: it is missing",
        ),
    ],
)
def test_what_is_wrong_with_cub_is_said(cub_files, tmp_path, damage, message):
    damage(cub_files)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        prepare(Cub, cub_files.folder, tmp_path / "data")
    assert str(error.value).startswith(message.format(folder=cub_files.folder))
    assert not (tmp_path / "data" / "cub2011" / "1.0.0").exists()


@pytest.fixture
def real_cub(tmp_path):
    """The real lists, and the 60 real images that are at hand."""
    for name in ("cub_subset.tar", "splits.tar.xz"):
        if not (SHARED / name).is_file():
            pytest.skip(f"dataset files are not at {SHARED / name}")
    with tarfile.open(SHARED / "splits.tar.xz") as lists, tarfile.open(SHARED / "cub_subset.tar") as photographs:
        members = [member for member in lists.getmembers() if "/CUB_200_2011_partial/" in member.name]
        lists.extractall(tmp_path, members, filter="data")
        photographs.extractall(tmp_path, filter="data")
    folder = (tmp_path / members[0].name).parent.rename(tmp_path / "CUB_200_2011")
    (tmp_path / "cub_subset").rename(folder / "images")
    return Files(folder)


def test_real_cub_lists_without_all_images(real_cub, tmp_path):
    with pytest.raises(ValueError, match=r"images.txt lacks image 544 and 11,244 more of image_class_labels.txt$"):
        prepare(Cub, real_cub.folder, tmp_path / "data")


def test_real_cub_images(real_cub, tmp_path, monkeypatch):
    for name in ("image_class_labels.txt", "train_test_split.txt"):
        lines = (real_cub.folder / name).read_text().splitlines(keepends=True)
        real_cub.write(name, "".join(lines[:543]))
    with pytest.raises(ValueError, match=r"cub2011/train must have 5,994 images, but 300 are in "):
        prepare(Cub, real_cub.folder, tmp_path / "data")
    # The first ten species are all there in the lists.
    wanted = {split: np.where(np.arange(200) < 10, counts, 0) for split, counts in Cub.images_per_class.items()}
    published(monkeypatch, Cub, {split: int(counts.sum()) for split, counts in wanted.items()})
    real_cub.write("classes.txt", "".join((real_cub.folder / "classes.txt").read_text().splitlines(True)[:10]))
    with pytest.raises(
        ValueError, match=r"483 of 543 images cannot be used; .*listed in .*, such as .*jpg: it is missing"
    ):
        prepare(Cub, real_cub.folder, tmp_path / "data")
    folder = prepare(Cub, real_cub.folder, tmp_path / "data", skip_bad=True)
    builder = tfds.builder_from_directory(folder)
    sources = {split: builder.as_data_source(split) for split in ("train", "test")}
    labels = [example["label"] for source in sources.values() for example in source]
    assert np.bincount(labels).tolist() == [6] * 10
    assert builder.info.features["label"].names[1] == "002.Laysan_Albatross"
    assert len(builder.info.metadata["skipped"]) == 483


def matlab(rows, *fields):
    """A struct array as the original's files have it."""
    array = np.empty((1, len(rows)), [(field, object) for field in fields])
    array[0] = [tuple(row) for row in rows]
    return array


def mat_bytes(tmp_path, **variables):
    scipy.io.savemat(tmp_path / "file.mat", variables, do_compression=True)
    return (tmp_path / "file.mat").read_bytes()


CAR_NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
CAR_TRAIN = [("00001.jpg", 3), ("00002.jpg", 1), ("00003.jpg", 2)]
CAR_TEST = [("00001.jpg", 2), ("00002.jpg", 2), ("00003.jpg", 1), ("00004.jpg", 3)]


def annotate_cars(files, split, rows, *, labelled=True):
    """Writes the annotations of a split, as in the devkit."""
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    fields = (*boxes, "class", "fname") if labelled else (*boxes, "fname")
    content = [(1, 1, 9, 9, *((number,) if labelled else ()), path) for path, number in rows]
    name = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}[split]
    files.write(name, mat_bytes(files.folder.parent, annotations=matlab(content, *fields)))


def annotate_all_cars(files, rows):
    content = [(f"car_ims/{path}", 1, 1, 9, 9, number, test) for path, number, test in rows]
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    names = np.array([CAR_NAMES], object)
    files.write(
        "cars_annos.mat", mat_bytes(files.folder.parent, annotations=matlab(content, *fields), class_names=names)
    )


@pytest.fixture
def car_counts(monkeypatch):
    counts = {
        split: np.bincount([number - 1 for _, number in rows])
        for split, rows in (("train", CAR_TRAIN), ("test", CAR_TEST))
    }
    published(monkeypatch, Cars, {"train": 3, "test": 4}, counts)


@pytest.fixture
def car_files(tmp_path, car_counts):
    files = Files(tmp_path / "stanford_cars")
    files.write("devkit/cars_meta.mat", mat_bytes(tmp_path, class_names=np.array([CAR_NAMES], object)))
    for split, rows in (("train", CAR_TRAIN), ("test", CAR_TEST)):
        for path, _ in rows:
            files.image(f"cars_{split}/{path}")
        annotate_cars(files, split, rows)
    return files


def car_examples():
    return {
        split: [(f"cars_{split}/{path}", CAR_NAMES[number - 1]) for path, number in rows]
        for split, rows in (("train", CAR_TRAIN), ("test", CAR_TEST))
    }


@pytest.mark.parametrize("labels_in_devkit", [False, True])
def test_cars(car_files, tmp_path, labels_in_devkit):
    if labels_in_devkit:
        name = "cars_test_annos_withlabels.mat"
        (car_files.folder / name).rename(car_files.folder / "devkit" / name)
    folder = prepare(Cars, tmp_path, tmp_path / "data")
    assert examples(folder, car_files) == car_examples()
    assert tuple(tfds.builder_from_directory(folder).info.features["label"].names) == tuple(CAR_NAMES)


@pytest.fixture
def pooled_car_files(tmp_path, car_counts):
    files = Files(tmp_path / "cars196")
    rows = [(f"{number:06d}.jpg", label, test) for number, (label, test) in enumerate(pooled_cars(), start=1)]
    for path, _, _ in rows:
        files.image(f"car_ims/{path}")
    annotate_all_cars(files, rows)
    return files


def pooled_cars():
    return [(1, 0), (1, 1), (2, 1), (2, 0), (2, 1), (3, 1), (3, 0)]


def test_cars_in_one_folder(pooled_car_files, tmp_path):
    found = examples(prepare(Cars, pooled_car_files.folder, tmp_path / "data"), pooled_car_files)
    rows = list(enumerate(pooled_cars(), start=1))
    assert found == {
        split: [(f"car_ims/{number:06d}.jpg", CAR_NAMES[label - 1]) for number, (label, test) in rows if test == flag]
        for split, flag in (("train", 0), ("test", 1))
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.remove("cars_train"), "cars_train is not in "),
        (lambda files: files.remove("cars_test"), "cars_test is not in "),
        (lambda files: files.remove("devkit"), "devkit/cars_meta.mat is not in "),
        (
            lambda files: files.remove("cars_test_annos_withlabels.mat"),
            "cars_test_annos_withlabels.mat is neither in .* nor in its devkit, and the cars_test_annos.mat there has "
            "no labels",
        ),
        (
            lambda files: annotate_cars(files, "test", CAR_TEST, labelled=False),
            "cars_test_annos_withlabels.mat must say class of every image, but says bbox_x1, .*, fname",
        ),
        (
            lambda files: annotate_cars(files, "train", [("00001.jpg", 3), ("00002.jpg", 4)]),
            "devkit/cars_train_annos.mat: 00002.jpg has class 4, but there are 1 to 3",
        ),
        (
            lambda files: annotate_cars(files, "train", [("00001.jpg", 3), ("00001.jpg", 3)]),
            "devkit/cars_train_annos.mat lists 00001.jpg more than once",
        ),
        (
            lambda files: annotate_cars(files, "train", CAR_TRAIN[:1]),
            "cars196/train must have 3 images, but 1 are in ",
        ),
        (
            lambda files: annotate_cars(files, "train", [*CAR_TRAIN[:2], ("00003.jpg", 1)]),
            "cars196/train must have 1 images of class AM General Hummer SUV 2000, but 2 are in ",
        ),
        (
            lambda files: files.write("devkit/cars_meta.mat", b"<html>" * 100),
            "devkit/cars_meta.mat is no complete MATLAB file: ",
        ),
        (
            lambda files: files.write("devkit/cars_meta.mat", mat_bytes(files.folder.parent, names=1)),
            "devkit/cars_meta.mat must hold class_names, but holds names",
        ),
        (
            lambda files: files.write(
                "devkit/cars_meta.mat",
                mat_bytes(files.folder.parent, class_names=np.array([[*CAR_NAMES, "Volvo"]], object)),
            ),
            "cars196 must have 3 classes, got 4 in ",
        ),
        (lambda files: files.write("cars_test/00002.jpg", b"GIF"), "1 of 7 images cannot be used; .*cars_test/00002"),
    ],
)
def test_what_is_wrong_with_cars_is_said(car_files, tmp_path, damage, message):
    damage(car_files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(Cars, car_files.folder, tmp_path / "data")


def test_the_annotations_of_all_cars_must_divide_them(pooled_car_files):
    annotate_all_cars(pooled_car_files, [("000001.jpg", 1, 2)])
    with pytest.raises(ValueError, match=r"cars_annos.mat: test of car_ims/000001.jpg must be 0 or 1, got 2"):
        index(Cars, pooled_car_files.folder)


def test_a_damaged_matlab_file_is_called_so(car_files):
    path = car_files.folder / "devkit" / "cars_train_annos.mat"
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cars_train_annos.mat (is no complete MATLAB file|must hold )"):
            index(Cars, car_files.folder)


PRODUCTS = {
    "Ebay_train.txt": [(1, "bicycle", 2), (2, "coffee_maker", 3)],
    "Ebay_test.txt": [(3, "bicycle", 2), (4, "toaster", 2), (5, "toaster", 2)],
}


@pytest.fixture
def product_files(tmp_path, monkeypatch):
    files = Files(tmp_path / "Stanford_Online_Products")
    kinds = ["bicycle", "cabinet", "chair", "coffee_maker", "toaster"]
    image = 0
    for name, classes in PRODUCTS.items():
        lines = ["image_id class_id super_class_id path"]
        for number, kind, count in classes:
            for shot in range(count):
                image += 1
                path = f"{kind}_final/{111085122871 + number}_{shot}.JPG"
                files.image(path)
                lines.append(f"{image} {number} {kinds.index(kind) + 1} {path}")
        files.write(name, "\n".join(lines) + "\n")
    monkeypatch.setattr(products, "_CLASSES", {"Ebay_train.txt": 2, "Ebay_test.txt": 3})
    monkeypatch.setattr(products, "_IMAGES", {"Ebay_train.txt": 5, "Ebay_test.txt": 6})
    published(monkeypatch, OnlineProducts, {"train": 11})
    return files


def test_products(product_files, tmp_path):
    found = examples(prepare(OnlineProducts, tmp_path, tmp_path / "data"), product_files)
    assert found == {
        "train": [
            (f"{kind}_final/{111085122871 + number}_{shot}.JPG", f"{kind} {number}")
            for classes in PRODUCTS.values()
            for number, kind, count in classes
            for shot in range(count)
        ]
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.remove("Ebay_train.txt"), "Ebay_train.txt is not in "),
        (lambda files: files.remove("Ebay_test.txt"), "Ebay_test.txt is not in "),
        (
            lambda files: [files.remove("toaster_final"), files.remove("bicycle_final")],
            "not in .*: bicycle_final, toaster_final$",
        ),
        (
            lambda files: files.change("Ebay_test.txt", "\n6 3 1", "\n6 2 1"),
            "Ebay_test.txt: bicycle_final/111085122874_0.JPG has class 2, but it lists 3 to 5",
        ),
        (
            lambda files: files.change("Ebay_train.txt", "\n3 2 4 coffee_maker", "\n3 2 4 chair"),
            "Ebay_train.txt: class 2 is both chair and coffee_maker",
        ),
        (
            lambda files: files.change("Ebay_train.txt", "\n2 1 1", "\n1 1 1"),
            "Ebay_train.txt lists image 1 more than once, the second time in line 3",
        ),
        (
            lambda files: files.change(
                "Ebay_train.txt", "1 1 1 bicycle_final/111085122872_0.JPG\n2 1 1 bicycle_final/111085122872_1.JPG\n", ""
            ),
            "Ebay_train.txt has no images of class 1",
        ),
        (
            lambda files: files.change("Ebay_train.txt", "1 1 1 bicycle_final/111085122872_0.JPG\n", ""),
            "Ebay_train.txt must list 5 images, got 4",
        ),
        (
            lambda files: files.change("Ebay_train.txt", "image_id class_id", "class_id image_id"),
            "Ebay_train.txt must begin with image_id class_id super_class_id path, got 'class_id image_id ",
        ),
        (
            lambda files: files.change("Ebay_train.txt", "\n2 1 1 ", "\n2 1 "),
            "Ebay_train.txt: line 3 must be three numbers and a path, got '2 1 bicycle_final/",
        ),
    ],
)
def test_what_is_wrong_with_products_is_said(product_files, damage, message):
    damage(product_files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        index(OnlineProducts, product_files.folder)


# Classes of each list; not in the order of their names, all of them taken together.
MINI = {"train": ["n01532829", "n13133613"], "val": ["n01855672"], "test": ["n01930112", "n07613480"]}
MINI_LAYOUTS = ["images/{file}", "images/{name}/{file}", "{split}/{name}/{file}", "{name}/{file}"]


@pytest.fixture
def mini_files(tmp_path, monkeypatch, request):
    """Three images of each class, of sizes that differ."""
    layout = getattr(request, "param", MINI_LAYOUTS[0])
    files = Files(tmp_path / "mini-imagenet")
    for split, names in MINI.items():
        rows = [(f"{name}{number:08d}.jpg", name) for name in names for number in (5, 6, 1297)]
        for file, name in rows:
            files.image(layout.format(split=split, name=name, file=file), shape=(24, 20 + len(files.greys)))
        files.write(f"{split}.csv", "filename,label\n" + "".join(f"{file},{name}\n" for file, name in rows))
    monkeypatch.setattr(mini_imagenet, "_CLASSES", {split: len(names) for split, names in MINI.items()})
    published(monkeypatch, MiniImagenet, {"train": 15}, {"train": specs.alike(3, 5)})
    return files


@pytest.mark.parametrize("mini_files", MINI_LAYOUTS, indirect=True)
def test_mini_imagenet(mini_files, tmp_path):
    folder = prepare(MiniImagenet, tmp_path, tmp_path / "data")
    found = examples(folder, mini_files)["train"]
    names = [name for names in MINI.values() for name in names]
    assert tfds.builder_from_directory(folder).info.features["label"].names == names
    assert [path for path, _ in found] == list(mini_files.greys)
    assert [name for _, name in found] == [name for name in names for _ in range(3)]
    assert all(path.rpartition("/")[2].startswith(name) for path, name in found)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.remove("train.csv"), "train.csv is not in "),
        (lambda files: files.remove("val.csv"), "val.csv is not in "),
        (lambda files: files.remove("images"), "has no folder images, and none of n01532829, a class of train.csv"),
        (
            lambda files: files.change("train.csv", "filename,label", "filename,class"),
            "train.csv must begin with filename,label, got filename,class",
        ),
        (lambda files: files.write("test.csv", ""), "test.csv must begin with filename,label, got nothing"),
        (
            lambda files: files.change("val.csv", "6.jpg,n01855672", "6.jpg,n01532829"),
            "val.csv must have a file, called after its class, and the class, got .'n0185567200000006.jpg', "
            "'n01532829'.",
        ),
        (
            lambda files: files.change("val.csv", "n0185567200000006.jpg,n01855672", "n1313361300000006.jpg,n13133613"),
            "val.csv lists n1313361300000006.jpg of n13133613, a class of train.csv",
        ),
        (
            lambda files: files.change("val.csv", "n0185567200000006.jpg,n01855672", "n0290000000000006.jpg,n02900000"),
            "val.csv must have 1 classes, got 2",
        ),
        (
            lambda files: files.change("val.csv", "n0185567200000006.jpg,n01855672", "n0185567200000005.jpg,n01855672"),
            "mini_imagenet/train lists images/n0185567200000005.jpg more than once",
        ),
        (
            lambda files: files.change("val.csv", "n0185567200000006.jpg,n01855672\n", ""),
            "mini_imagenet/train must have 15 images, but 14 are in ",
        ),
    ],
)
def test_what_is_wrong_with_mini_imagenet_is_said(mini_files, tmp_path, damage, message):
    damage(mini_files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(MiniImagenet, mini_files.folder, tmp_path / "data")


def test_the_real_lists_of_mini_imagenet(tmp_path):
    if not (SHARED / "splits.tar.xz").is_file():
        pytest.skip(f"dataset files are not at {SHARED / 'splits.tar.xz'}")
    with tarfile.open(SHARED / "splits.tar.xz") as lists:
        members = [member for member in lists.getmembers() if "/miniImageNet_Ravi/" in member.name]
        lists.extractall(tmp_path, members, filter="data")
    folder = (tmp_path / members[0].name).parent
    (folder / "images").mkdir()
    found = index(MiniImagenet, folder)
    labels = np.array([item.label for item in found.splits["train"]])
    assert np.bincount(labels).tolist() == [600] * 100
    assert (found.class_names[0], found.class_names[63], found.class_names[64]) == (
        "n01532829",
        "n13133613",
        "n01855672",
    )
    assert found.splits["train"][0].path == "images/n0153282900000005.jpg"
    rows = {
        split: part.choose(labels, 0)
        for split, part in SPECS["mini_imagenet"].protocol("classification").splits.items()
    }
    assert {split: np.bincount(labels[chosen]).tolist() for split, chosen in rows.items()} == {
        "train": [500] * 100,
        "test": [100] * 100,
    }
    assert not set(rows["train"]) & set(rows["test"])


TINY = {"n02124075": "Egyptian cat", "n04067472": "reel", "n04540053": "volleyball"}
TINY_NAMES = [f"{wnid} {word}" for wnid, word in TINY.items()]


@pytest.fixture
def tiny_files(tmp_path, monkeypatch):
    """Eleven training images of each class, and two to validate, in another order."""
    files = Files(tmp_path / "tiny-imagenet-200")
    files.write("wnids.txt", "\n".join(TINY))
    files.write("words.txt", "n00001740\tentity\n" + "".join(f"{wnid}\t{word}, other\n" for wnid, word in TINY.items()))
    for wnid in TINY:
        files.write(f"train/{wnid}/{wnid}_boxes.txt", "")
        for number in range(11):
            files.image(f"train/{wnid}/images/{wnid}_{number}.JPEG", shape=(64, 64))
    lines = []
    for number, wnid in enumerate([*TINY, *reversed(TINY)]):
        files.image(f"val/images/val_{number}.JPEG", shape=(64, 64))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    files.write("val/val_annotations.txt", "".join(lines))
    published(
        monkeypatch, TinyImagenet, {"train": 33, "val": 6}, {"train": specs.alike(11, 3), "val": specs.alike(2, 3)}
    )
    return files


@pytest.mark.parametrize("above", [False, True])
def test_tiny_imagenet(tiny_files, tmp_path, above):
    found = examples(prepare(TinyImagenet, tmp_path if above else tiny_files.folder, tmp_path / "data"), tiny_files)
    assert found["val"] == [
        (f"val/images/val_{number}.JPEG", name) for number, name in enumerate([*TINY_NAMES, *reversed(TINY_NAMES)])
    ]
    assert found["train"] == [
        (f"train/{name[:9]}/images/{name[:9]}_{number}.JPEG", name)
        for name in TINY_NAMES
        for number in (0, 1, 10, *range(2, 10))
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.remove("wnids.txt"), "wnids.txt is not in "),
        (lambda files: files.remove("words.txt"), "words.txt is not in "),
        (
            lambda files: files.remove("train/n04067472"),
            "the folder train/n04067472/images is not in .*tiny-imagenet-200/?$",
        ),
        (
            lambda files: files.remove("train"),
            "the folder train/n02124075/images is not in .*, nor those of 2 more classes of wnids.txt",
        ),
        (lambda files: files.remove("val/images"), "the folder val/images is not in "),
        (lambda files: files.remove("val/val_annotations.txt"), "val/val_annotations.txt is not in "),
        (
            lambda files: files.change("val/val_annotations.txt", "val_1.JPEG\tn04067472", "val_1.JPEG\tn00001740"),
            r"val_annotations.txt: line 2 must be a file and a class of wnids.txt, got 'val_1.JPEG\\tn00001740",
        ),
        (
            lambda files: files.change("val/val_annotations.txt", "val_1.JPEG", "val_0.JPEG"),
            "tiny_imagenet/val lists val/images/val_0.JPEG more than once",
        ),
        (
            lambda files: files.change("val/val_annotations.txt", "val_1.JPEG\tn04067472", "val_1.JPEG\tn04540053"),
            "tiny_imagenet/val must have 2 images of class n04067472 reel, but 1 are in ",
        ),
        (
            lambda files: files.remove("train/n04067472/images/n04067472_7.JPEG"),
            "tiny_imagenet/train must have 33 images, but 32 are in ",
        ),
        (
            lambda files: files.change("wnids.txt", "n04540053", "n04067472"),
            "wnids.txt lists n04067472 more than once",
        ),
    ],
)
def test_what_is_wrong_with_tiny_imagenet_is_said(tiny_files, tmp_path, damage, message):
    damage(tiny_files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(TinyImagenet, tiny_files.folder, tmp_path / "data")


@pytest.mark.parametrize("cls", BUILDERS)
def test_an_empty_folder_has_not_what_is_wanted(cls, tmp_path):
    with pytest.raises(FileNotFoundError, match=r" is not in "):
        index(cls, tmp_path)


@pytest.mark.parametrize(
    ("name", "protocol", "classes", "totals"),
    [
        # The paper's, Appendix D.5.
        ("cub2011", "retrieval", (100, 100), (5864, 5924)),
        ("cub2011", "classification", (200, 200), (5994, 5794)),
        ("cars196", "retrieval", (98, 98), (8054, 8131)),
        ("cars196", "classification", (196, 196), (8144, 8041)),
        ("cars196", "retrieval_lt_10", (98, 98), (2493, 8131)),
        ("cars196", "retrieval_lt_20", (98, 98), (2016, 8131)),
        ("cars196", "retrieval_lt_50", (98, 98), (1590, 8131)),
        ("sop", "retrieval", (11_318, 11_316), (59_551, 60_502)),
        ("mini_imagenet", "classification", (100, 100), (50_000, 10_000)),
        ("mini_imagenet", "retrieval", (64, 36), (38_400, 21_600)),
        ("tiny_imagenet", "classification", (200, 200), (100_000, 10_000)),
    ],
)
def test_the_classes_and_images_of_a_protocol(name, protocol, classes, totals):
    splits = SPECS[name].protocol(protocol).splits
    evaluation = SPECS[name].protocol(protocol).evaluation
    parts = [splits["train"], splits[evaluation]]
    assert len(splits) == 2
    assert tuple(len(part.counts) for part in parts) == classes
    assert tuple(int(part.counts.sum()) for part in parts) == totals
    assert SPECS[name].protocol(protocol).same_classes == protocol.startswith("classification")


def test_split_names_are_none_of_those_that_tfds_keeps_to_itself():
    """A split called "all" can be written, but not read: TFDS then looks for it without end."""
    assert {split for cls in BUILDERS for split in cls.images_per_split} == {"train", "val", "test"}


def test_default_protocols():
    assert {name: next(iter(spec.protocols)) for name, spec in SPECS.items()} == {
        "cub2011": "retrieval",
        "cars196": "retrieval",
        "sop": "retrieval",
        "mini_imagenet": "classification",
        "tiny_imagenet": "classification",
    }


@pytest.mark.parametrize("cls", BUILDERS)
def test_protocols_divide_what_is_stored(cls):
    """Every protocol has the counts that its choice of the stored images gives, and no image is in two splits."""
    spec = SPECS[cls.name]
    assert spec.stored_as == cls.name
    stored = {split: np.repeat(np.arange(len(counts)), counts) for split, counts in cls.images_per_class.items()}
    if cls is OnlineProducts:  # of which the list of counts is not at hand
        parts = spec.protocol().splits.values()
        stored = {"train": np.repeat(np.arange(22_634), np.concatenate([part.counts for part in parts]))}
    assert {split: len(labels) for split, labels in stored.items()} == cls.images_per_split
    first = dict(zip(stored, np.cumsum([0, *map(len, stored.values())]), strict=False))
    for protocol in spec.protocols.values():
        seen = []
        for part in protocol.splits.values():
            labels = np.concatenate([stored[split] for split in part.stored])
            rows = np.concatenate([first[split] + np.arange(len(stored[split])) for split in part.stored])
            labels = labels if part.relabel is None else part.relabel[labels]
            chosen = np.flatnonzero(labels >= 0) if part.choose is None else part.choose(labels, 3)
            assert np.array_equal(np.bincount(labels[chosen]), part.counts)
            seen.append(rows[chosen])
        assert len(np.unique(np.concatenate(seen))) == sum(map(len, seen))


def test_long_tails_of_cars():
    """n_i = N·μ^(i/(1−M)), with the largest N that every class has the images for, at every μ of Table 9."""
    spec = SPECS["cars196"]
    available = spec.train_counts("retrieval")

    def tail(largest, imbalance):
        return np.array([math.floor(largest * imbalance ** (-i / 97) + 1e-9) for i in range(98)])

    for imbalance in (10, 20, 50):
        counts = spec.train_counts(f"retrieval_lt_{imbalance}")
        assert np.array_equal(counts, tail(66, imbalance))
        assert (counts <= available).all()
        assert counts[-1] == 66 // imbalance
    assert (tail(67, 10) > available).any()


def test_the_seed_draws_the_long_tail():
    part = SPECS["cars196"].protocol("retrieval_lt_50").splits["train"]
    stored = np.concatenate([np.repeat(np.arange(196), Cars.images_per_class[split]) for split in part.stored])
    first, again, other = (part.choose(part.relabel[stored], seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_groups_are_of_the_published_counts():
    groups = SPECS["cars196"].groups("retrieval_lt_10")
    assert [len(groups[name]) for name in ("head", "middle", "tail")] == [0, 51, 47]


@pytest.mark.parametrize("cls", BUILDERS)
def test_each_module_describes_its_dataset(cls):
    spec = SPECS[cls.name]
    assert spec.licence
    assert spec.sizes_differ == (None in cls.image_shape)
    assert (spec.profile != "") == (cls is OnlineProducts)
    assert "of " in cls.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert "\n" not in cls.MANUAL_DOWNLOAD_INSTRUCTIONS
