"""ImageNet from its two tars or what they unpack to, classes of it put together, and the lists of ImageNet-LT."""

import io
import pathlib
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import imagenet, imagenet_lt
from dsb_jax.data.builders.imagenet import Imagenet2012
from dsb_jax.data.builders.imagenet_lt import ImagenetLt

LISTS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "splits.tar.xz"
WNIDS = ["n01440764", "n01443537", "n01484850"]
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": WNIDS[number % 3] for number in range(1, 7)}
TRAIN = {f"{wnid}_{number}.JPEG": wnid for wnid, many in zip(WNIDS, (4, 3, 2), strict=True) for number in range(many)}
PUBLISHED_MD5 = imagenet_lt._MD5
LAYOUTS = ("folders", "flat", "tars", "train_tar", "kaggle")


def jpeg(name):
    """The file of an image; every one has other pixels."""
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (9, 12, 3), np.uint8)
    return cv2.imencode(".JPEG", pixels)[1].tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def tar(files):
    """A tar as the originals are, of names without folders."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, each in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(each)
            file.addfile(info, io.BytesIO(each))
    return content.getvalue()


def lay_out(folder, layout):
    """The images in one of the forms in which people have them."""
    inside = folder / "ILSVRC" / "Data" / "CLS-LOC" if layout == "kaggle" else folder
    if layout in ("tars", "train_tar"):
        classes = {wnid: {name: jpeg(name) for name, own in TRAIN.items() if own == wnid} for wnid in WNIDS}
        packed = tar({f"{wnid}.tar": tar(files) for wnid, files in classes.items()})
        write(folder / "ILSVRC2012_img_train.tar", packed)
    else:
        for name, wnid in TRAIN.items():
            write(inside / "train" / wnid / name, jpeg(name))
    if layout == "tars":
        write(folder / "ILSVRC2012_img_val.tar", tar({name: jpeg(name) for name in reversed(VAL)}))
    else:
        for name, wnid in VAL.items():
            write(inside / "val" / (wnid if layout == "folders" else "") / name, jpeg(name))
    return folder


@pytest.fixture
def small(monkeypatch):
    """An ImageNet of three classes."""
    monkeypatch.setattr(imagenet, "wnids", lambda: WNIDS)
    monkeypatch.setattr(imagenet, "val_classes", lambda: VAL)
    monkeypatch.setattr(Imagenet2012, "images_per_split", {"train": 9, "validation": 6})
    monkeypatch.setattr(Imagenet2012, "images_per_class", {"validation": [2, 2, 2]})
    monkeypatch.setattr(imagenet_lt, "_MD5", {})
    monkeypatch.setattr(ImagenetLt, "images_per_split", {})
    monkeypatch.setattr(ImagenetLt, "images_per_class", {"train": [2, 1, 1], "validation": [1] * 3, "test": [2] * 3})


@pytest.fixture
def archive(small, tmp_path):
    return lay_out(tmp_path / "archive", "folders")


def prepare(cls, archive, data_dir, *, skip_bad=False):
    builder = cls(data_dir=data_dir, file_format="array_record")
    builder.skip_bad = skip_bad
    config = tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return tfds.builder_from_directory(data_dir / cls.name / str(cls.VERSION))


def stored(folder, split):
    """The class of each file by its name, in order; the pixels must be the file's."""
    names, found = folder.info.features["label"].names, {}
    for example in folder.as_data_source(split):
        name = example["file_name"].decode()
        wanted = cv2.imdecode(np.frombuffer(jpeg(name), np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(example["image"], wanted)
        found[name] = names[example["label"]]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_is_the_same_however_it_is_packed(small, layout, tmp_path):
    folder = prepare(Imagenet2012, lay_out(tmp_path / "archive", layout), tmp_path / "data")
    assert list(folder.info.splits) == ["train", "validation"]
    assert list(stored(folder, "train").items()) == list(TRAIN.items())
    assert list(stored(folder, "validation").items()) == list(VAL.items())
    labels = np.load(pathlib.Path(folder.data_path, "labels-validation.npy"))
    assert labels.tolist() == [1, 2, 0, 1, 2, 0]


def test_headers_of_a_tar_are_read_once(small, tmp_path, monkeypatch):
    lay_out(tmp_path / "archive", "tars")
    opened = []
    read = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **options: opened.append(args) or read(*args, **options))
    write_lists(tmp_path / "archive" / "ImageNet_LT")
    ImagenetLt(data_dir=tmp_path / "unused")._index(Archive(tmp_path / "archive"))
    assert len(opened) == 2 + len(WNIDS)


@pytest.mark.parametrize("builder", [Imagenet2012, ImagenetLt])
def test_the_layout_is_that_of_tfds(builder, tmp_path):
    info = builder(data_dir=tmp_path / "ours").info
    stock = tfds.builder(builder.name, data_dir=tmp_path / "stock").info
    assert info.full_name == stock.full_name
    info.features["label"].names = imagenet.wnids()
    assert repr(info.features) == repr(stock.features)
    assert info.features["label"].names == stock.features["label"].names
    assert info.supervised_keys == stock.supervised_keys


def remove(archive, *names):
    for name in names:
        path = archive / name
        for file in [*path.iterdir()] if path.is_dir() else [path]:
            file.unlink()
        if path.is_dir():
            path.rmdir()


def move(archive, name, to):
    write(archive / to, (archive / name).read_bytes())
    (archive / name).unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda archive: remove(archive, *(f"val/{wnid}" for wnid in WNIDS)),
            FileNotFoundError,
            "neither ILSVRC2012_img_val.tar nor val/ILSVRC2012_val_00000001.JPEG is in {archive}",
        ),
        (
            lambda archive: remove(archive, *(f"train/{wnid}" for wnid in WNIDS)),
            FileNotFoundError,
            "neither ILSVRC2012_img_train.tar nor train/n01440764 … is in {archive}",
        ),
        (
            lambda archive: remove(archive, "train/n01443537"),
            FileNotFoundError,
            "1 of 3 class folders (n01443537) are not in {archive}/train/",
        ),
        (
            lambda archive: remove(archive, "train/n01443537/n01443537_2.JPEG"),
            ValueError,
            "imagenet2012/train must have 9 images, but 8 are in {archive}",
        ),
        (
            lambda archive: move(archive, "train/n01443537/n01443537_2.JPEG", "train/n01440764/n01443537_2.JPEG"),
            ValueError,
            "{archive}/train/n01440764/n01443537_2.JPEG lies among the images of n01440764, but is called after others",
        ),
        (
            lambda archive: write(archive / "train/n99999999/n99999999_2.JPEG", b""),
            ValueError,
            "{archive}/train/n99999999 is no class of ILSVRC 2012",
        ),
        (
            lambda archive: move(
                archive,
                "val/n01443537/ILSVRC2012_val_00000001.JPEG",
                "val/n01440764/ILSVRC2012_val_00000001.JPEG",
            ),
            ValueError,
            "{archive}/val/n01440764/ILSVRC2012_val_00000001.JPEG is of class n01443537, and ought to be in its folder",
        ),
        (
            lambda archive: remove(
                archive,
                "val/n01443537/ILSVRC2012_val_00000001.JPEG",
                "val/n01484850/ILSVRC2012_val_00000002.JPEG",
            ),
            ValueError,
            "2 of 15 images cannot be used; mend them, or leave them out with --skip-bad: "
            "val/n01443537/ILSVRC2012_val_00000001.JPEG: it is missing; "
            "val/n01484850/ILSVRC2012_val_00000002.JPEG: it is missing",
        ),
    ],
)
def test_what_is_wrong_with_imagenet_is_named(archive, tmp_path, damage, error, message):
    damage(archive)
    with pytest.raises(error) as raised:
        prepare(Imagenet2012, archive, tmp_path / "data")
    assert message.format(archive=archive) in str(raised.value)
    assert not (tmp_path / "data" / "imagenet2012" / "5.1.0").exists()


def test_the_train_tar_alone_is_not_complete(small, tmp_path):
    lay_out(tmp_path / "archive", "tars")
    remove(tmp_path / "archive", "ILSVRC2012_img_val.tar")
    with pytest.raises(FileNotFoundError, match=r"neither ILSVRC2012_img_val\.tar nor val/"):
        prepare(Imagenet2012, tmp_path / "archive", tmp_path / "data")


def test_a_tar_that_ends_early_is_named(small, tmp_path):
    path = lay_out(tmp_path / "archive", "tars") / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar is no complete \.tar file"):
        prepare(Imagenet2012, tmp_path / "archive", tmp_path / "data")


def test_missing_images_can_be_left_out(archive, tmp_path):
    remove(archive, "val/n01443537/ILSVRC2012_val_00000001.JPEG")
    folder = prepare(Imagenet2012, archive, tmp_path / "data", skip_bad=True)
    assert list(stored(folder, "validation")) == list(VAL)[1:]


def spec(name):
    return {spec.name: spec for module in (imagenet, imagenet_lt) for spec in module.SPECS}[name]


def test_the_counts_of_imagenet():
    protocol = spec("imagenet2012").protocol()
    train, val = (protocol.splits[split].counts for split in ("train", "val"))
    assert (protocol.evaluation, train.shape, train.sum(), train.min(), train.max()) == (
        "val",
        (1000,),
        1_281_167,
        732,
        1300,
    )
    assert (train == 1300).sum() == 895
    assert val.tolist() == [50] * 1000
    classes = imagenet.val_classes()
    assert [*classes][::49_999] == ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00050000.JPEG"]
    assert imagenet.wnids() == sorted(set(classes.values()))


CHILDREN = {
    "Poodles": {"n02113624", "n02113712", "n02113799"},
    "Samoyeds": {"n02111889"},
    "Labradors": {"n02099712"},
    "Persian cats": {"n02123394"},
    "Siamese cats": {"n02123597"},
    "Chimpanzees": {"n02481823"},
    "Gorillas": {"n02480855"},
}


def test_the_classes_of_the_hierarchy():
    hierarchy, wnids = spec("imagenet_hierarchy"), np.array(imagenet.wnids())
    grouped = {
        name: {
            group: set(wnids[protocol.splits["train"].relabel == label].tolist())
            for label, group in enumerate(protocol.class_names)
        }
        for name, protocol in hierarchy.protocols.items()
    }
    assert list(grouped) == ["children", "parents"]
    assert grouped["children"] == CHILDREN
    assert {name: len(group) for name, group in grouped["parents"].items()} == {"Dogs": 113, "Cats": 3, "Monkeys": 16}
    # Chihuahua and Mexican hairless; tabby, tiger cat and Egyptian cat; orangutan, gibbon and squirrel monkey.
    assert grouped["parents"]["Dogs"] >= {"n02085620", "n02113978"}
    assert grouped["parents"]["Cats"] == {"n02123045", "n02123159", "n02124075"}
    assert grouped["parents"]["Monkeys"] >= {"n02480495", "n02483362", "n02494079"}
    everything = [wnid for groups in grouped.values() for group in groups.values() for wnid in group]
    assert len(everything) == len(set(everything)) == 9 + 132


@pytest.mark.parametrize("name", ["children", "parents"])
def test_the_hierarchy_draws_a_thousand_of_each(name):
    protocol = spec("imagenet_hierarchy").protocol(name)
    counts = {"train": spec("imagenet2012").train_counts(), "val": np.full(1000, 50)}
    for split, part in protocol.splits.items():
        labels = part.relabel[np.random.default_rng(0).permutation(np.repeat(np.arange(1000), counts[split]))]
        rows = np.flatnonzero(labels >= 0) if part.choose is None else part.choose(labels, 0)
        assert np.bincount(labels[rows]).tolist() == part.counts.tolist()
        if split == "train":
            np.testing.assert_array_equal(rows, part.choose(labels, 9))
            assert part.counts.tolist() == [1000] * len(protocol.class_names)
    assert protocol.evaluation == "val"
    assert protocol.same_classes


# --- ImageNet-LT

LT = {
    "train": ["n01440764_3.JPEG", "n01440764_0.JPEG", "n01443537_1.JPEG", "n01484850_0.JPEG"],
    "val": ["n01440764_1.JPEG", "n01443537_0.JPEG", "n01484850_1.JPEG"],
    "test": sorted(VAL, key=VAL.get),
}


def write_lists(folder, change=lambda lines: None):
    lines = {}
    for split, names in LT.items():
        top, classes = ("val", VAL) if split == "test" else ("train", TRAIN)
        lines[split] = [f"{top}/{classes[name]}/{name} {WNIDS.index(classes[name])}" for name in names]
    change(lines)
    for split, rows in lines.items():
        if rows:
            write(folder / f"ImageNet_LT_{split}.txt", "".join(f"{row}\n" for row in rows).encode())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inside", ["", "ImageNet_LT"])
def test_imagenet_lt_has_the_images_of_its_lists(small, layout, inside, tmp_path):
    lay_out(tmp_path / "archive", layout)
    write_lists(tmp_path / "archive" / inside)
    folder = prepare(ImagenetLt, tmp_path / "archive", tmp_path / "data")
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        classes = VAL if split == "test" else TRAIN
        assert list(stored(folder, split).items()) == [(image, classes[image]) for image in LT[name]]


def put(split, row, line):
    """Writes another line into a list."""
    return lambda lines: lines[split].__setitem__(row, line)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda lines: lines["train"].clear(), FileNotFoundError, "ImageNet_LT_train.txt is not in {archive}"),
        (
            lambda lines: (lines["val"].clear(), lines["test"].clear()),
            FileNotFoundError,
            "ImageNet_LT_val.txt and ImageNet_LT_test.txt not in {archive}/ImageNet_LT, where ImageNet_LT_train.txt is",
        ),
        (
            put("train", 1, "train/n01440764/n01440764_3.JPEG 0"),
            ValueError,
            "{archive}/ImageNet_LT/ImageNet_LT_train.txt lists train/n01440764/n01440764_3.JPEG more than once, the "
            "second time in line 2",
        ),
        (
            put("train", 1, "train/n01440764/n01440764_0.JPEG 2"),
            ValueError,
            "ImageNet_LT_train.txt has label 2, that is n01484850, for train/n01440764/n01440764_0.JPEG",
        ),
        (
            put("train", 1, "train/n01440764/n01443537_0.JPEG 0"),
            ValueError,
            "ImageNet_LT_train.txt lists train/n01440764/n01443537_0.JPEG, which is no train/CLASS/IMAGE of ImageNet",
        ),
        (
            put("test", 0, "val/n01440764/ILSVRC2012_val_00000001.JPEG 0"),
            ValueError,
            "ImageNet_LT_test.txt lists val/n01440764/ILSVRC2012_val_00000001.JPEG, which is no val/CLASS/IMAGE of",
        ),
        (put("val", 0, "val/n01440764/x.JPEG 0"), ValueError, "which is no train/CLASS/IMAGE of ImageNet"),
        (put("val", 2, "train/n01484850/n01484850_1.JPEG 3"), ValueError, "labels must lie in [0, 3), got 3 of train/"),
        (
            put("val", 2, "train/n01484850/n01484850_1.JPEG"),
            ValueError,
            "line 3 must be a path and a label, got 'train",
        ),
        (
            lambda lines: lines["train"].pop(0),
            ValueError,
            "imagenet_lt/train must have 2 images of class n01440764, but 1 are in {archive}",
        ),
        (put("train", 1, "train/n01440764/n01440764_99.JPEG 0"), ValueError, "n01440764_99.JPEG: it is missing"),
    ],
)
def test_what_is_wrong_with_the_lists_is_named(archive, tmp_path, change, error, message):
    write_lists(archive / "ImageNet_LT", change)
    with pytest.raises(error) as raised:
        prepare(ImagenetLt, archive, tmp_path / "data")
    assert message.format(archive=archive) in str(raised.value)


def test_another_version_of_a_list_is_refused(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_lt, "_MD5", PUBLISHED_MD5)
    write_lists(archive)
    with pytest.raises(ValueError, match=r"ImageNet_LT_val\.txt is damaged or another version: its MD5 is"):
        prepare(ImagenetLt, archive, tmp_path / "data")


@pytest.fixture(scope="module")
def real():
    """The real lists by their names."""
    if not LISTS.is_file():
        pytest.skip(f"the real lists are not at {LISTS}")
    with tarfile.open(LISTS) as packed:
        wanted = (member for member in packed if member.name.startswith(("splits/ImageNet_LT/", "splits/ImageNet/")))
        return {member.name.split("/")[-1]: packed.extractfile(member).read() for member in wanted if member.isfile()}


class Everything(Archive):
    """An archive with all of ImageNet, unpacked, and the lists that are really there."""

    def has(self, name):
        return super().has(name) or name.startswith(("train/n", "val/n"))

    def files(self, folder=""):
        return self.val[folder] if folder in self.val else super().files(folder)


def test_the_real_lists_of_imagenet_lt(real, tmp_path):
    classes, val_classes = imagenet.wnids(), imagenet.val_classes()
    counts = {split: part.counts for split, part in spec("imagenet_lt").protocol().splits.items()}
    assert {split: int(each.sum()) for split, each in counts.items()} == {
        "train": 115_846,
        "val": 20_000,
        "test": 50_000,
    }
    # The training list is not public here, but what it counts to is.
    numbered = [line.split() for name in ("few", "median", "many") for line in real_lines(real, name)]
    assert sorted((int(line[0]), line[-2], int(line[-1])) for line in numbered) == list(
        zip(range(1000), classes, counts["train"].tolist(), strict=True)
    )
    train = [
        f"train/{wnid}/{wnid}_{image}.JPEG {label}\n"
        for label, wnid in enumerate(classes)
        for image in range(counts["train"][label])
    ]
    real = real | {"ImageNet_LT_train.txt": "".join(train).encode()}
    for name, content in real.items():
        write(tmp_path / name, content)
    archive = Everything(tmp_path)
    archive.val = {f"val/{wnid}": [] for wnid in classes}
    for name, wnid in val_classes.items():
        archive.val[f"val/{wnid}"].append(f"val/{wnid}/{name}")
    index = ImagenetLt(data_dir=tmp_path / "unused")._index(archive)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        found = np.bincount([item.label for item in index.splits[split]])
        np.testing.assert_array_equal(found, counts[name])
        np.testing.assert_array_equal(found, ImagenetLt.images_per_class[split])
    assert {item.features["file_name"] for item in index.splits["test"]} == set(val_classes)
    val = [line.split()[0].split("/")[1:] for line in real["ImageNet_val.txt"].decode().splitlines()]
    assert {name: wnid for wnid, name in val} == val_classes


def real_lines(real, group):
    return real[f"imagenet_lt_{group}_train.txt"].decode().splitlines()
