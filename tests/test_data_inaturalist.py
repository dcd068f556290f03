"""iNaturalist 2018 from its annotations and folders of images."""

import json
import pathlib
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import inaturalist
from dsb_jax.data.builders.inaturalist import INaturalist2018

LISTS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "splits.tar.xz"
SPECIES = ["Hermodice carunculata", "Turdus merula", "Bellis perennis"]
GROUPS = ["Animalia", "Aves", "Plantae"]
TRAIN, VAL = [2, 0, 1, 2, 2, 0], [1, 2, 0]  # the classes of the images of each list, in its order


def paths(split, labels):
    return [f"train_val2018/{GROUPS[label]}/{label}/{split}{row:031x}.jpg" for row, label in enumerate(labels)]


def annotations(files, labels):
    """As published; rows of both lists are parallel there, but nothing says that they must be."""
    numbers = [1000 - row for row in range(len(files))]
    images = [{"id": number, "file_name": file, "width": 8} for number, file in zip(numbers, files, strict=True)]
    classes = [
        {"id": row, "image_id": number, "category_id": label}
        for row, (number, label) in enumerate(zip(numbers, labels, strict=True))
    ]
    return {"info": {}, "images": images, "annotations": classes[::-1], "categories": [], "licenses": []}


def pixels(path):
    return np.random.default_rng(list(path.encode())).integers(0, 256, (8, 11, 3), np.uint8)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Nine images of three species."""
    monkeypatch.setattr(inaturalist, "species", lambda: SPECIES)
    monkeypatch.setattr(INaturalist2018, "images_per_split", {"train": 6, "validation": 3})
    monkeypatch.setattr(INaturalist2018, "images_per_class", {"validation": [1, 1, 1]})
    folder = tmp_path / "archive"
    for split, labels in (("train", TRAIN), ("val", VAL)):
        for path in paths(split[0], labels):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / path), pixels(path))
        write(folder, split, annotations(paths(split[0], labels), labels))
    return folder


def write(folder, split, content):
    (folder / f"{split}2018.json").write_text(json.dumps(content))


def prepare(archive, data_dir):
    builder = INaturalist2018(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return tfds.builder_from_directory(data_dir / "i_naturalist2018" / "1.0.0")


def check_examples(folder, archive):
    features = folder.info.features
    assert features["label"].names == SPECIES
    for split, labels in (("train", TRAIN), ("validation", VAL)):
        files = paths(split[0], labels)
        read = list(folder.as_data_source(split))
        assert [example["id"].decode() for example in read] == [pathlib.Path(file).stem for file in files]
        assert [example["label"] for example in read] == labels
        groups = [features["supercategory"].int2str(int(example["supercategory"])) for example in read]
        assert groups == [GROUPS[label] for label in labels]
        for example, file in zip(read, files, strict=True):
            wanted = cv2.cvtColor(cv2.imread(str(archive / file)), cv2.COLOR_BGR2RGB)
            np.testing.assert_array_equal(example["image"], wanted)


def test_examples_are_those_of_the_annotations(archive, tmp_path):
    check_examples(prepare(archive, tmp_path / "data"), archive)


def test_a_tar_of_the_images_will_do(archive, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "train_val2018.tar", "w") as tar:
        tar.add(archive / "train_val2018", "train_val2018")
    for name in ("train2018.json", "val2018.json"):
        (packed / name).write_bytes((archive / name).read_bytes())
    check_examples(prepare(packed, tmp_path / "data"), archive)


def test_the_layout_is_that_of_tfds(tmp_path):
    info = INaturalist2018(data_dir=tmp_path / "ours").info
    stock = tfds.builder("i_naturalist2018", data_dir=tmp_path / "stock").info
    assert info.full_name == stock.full_name
    info.features["label"].names = inaturalist.species()
    assert repr(info.features) == repr(stock.features)
    for name in ("label", "supercategory"):
        assert info.features[name].names == stock.features[name].names
    assert info.supervised_keys == stock.supervised_keys


def remove(name):
    def damage(archive):
        (archive / name).rename(archive.parent / "removed")

    return damage


def changed(split, change):
    """Writes a list again after a change."""

    def damage(archive):
        content = json.loads((archive / f"{split}2018.json").read_text())
        change(content)
        write(archive, split, content)

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("train2018.json"), FileNotFoundError, "train2018.json is not in {archive}"),
        (remove("val2018.json"), FileNotFoundError, "val2018.json is not in {archive}"),
        (remove("train_val2018"), FileNotFoundError, "train_val2018 is not in {archive}"),
        (
            lambda archive: (archive / "val2018.json").write_text('{"images": ['),
            ValueError,
            "{archive}/val2018.json is no complete JSON file: ",
        ),
        (
            changed("train", lambda content: content.pop("annotations")),
            ValueError,
            "{archive}/train2018.json must have images, each with an id and a file_name, and annotations, each with an "
            "image_id and a category_id: KeyError('annotations')",
        ),
        (
            changed("train", lambda content: content["images"][0].pop("file_name")),
            ValueError,
            "image_id and a category_id: KeyError('file_name')",
        ),
        (
            changed("train", lambda content: content["annotations"].pop()),
            ValueError,
            "{archive}/train2018.json has no annotation for image 1000; 1 are without",
        ),
        (
            changed("train", lambda content: content["images"].pop()),
            ValueError,
            "{archive}/train2018.json has no image for image 995; 1 are without",
        ),
        (
            changed("train", lambda content: content["annotations"].append(content["annotations"][0])),
            ValueError,
            "{archive}/train2018.json has 7 annotations, but of 6 image numbers",
        ),
        (
            changed("train", lambda content: content["annotations"][-1].update(category_id=3)),
            ValueError,
            "{archive}/train2018.json: category_id must lie in [0, 3), got 3 of train_val2018/Plantae/2/t",
        ),
        (
            changed("train", lambda content: content["annotations"][-1].update(category_id=1)),
            ValueError,
            "{archive}/train2018.json has category 1 for train_val2018/Plantae/2/t",
        ),
        (
            changed("train", lambda content: content["images"][0].update(file_name="test2018/x.jpg")),
            ValueError,
            "must list train_val2018/SUPERCATEGORY/CATEGORY_ID/IMAGE, got test2018/x.jpg",
        ),
        (
            changed("train", lambda content: content["images"][0].update(content["images"][3], id=1000)),
            ValueError,
            "i_naturalist2018/train lists train_val2018/Plantae/2/t0000000000000000000000000000003.jpg more than once",
        ),
        (
            lambda archive: (archive / "train2018.json").write_bytes((archive / "val2018.json").read_bytes()),
            ValueError,
            "i_naturalist2018/train must have 6 images, but 3 are in {archive}",
        ),
        (
            remove(paths("v", VAL)[1]),
            ValueError,
            "1 of 9 images cannot be used; mend them, or leave them out with --skip-bad: "
            "train_val2018/Plantae/2/v0000000000000000000000000000001.jpg: it is missing",
        ),
    ],
)
def test_what_is_wrong_is_named(archive, tmp_path, damage, error, message):
    damage(archive)
    with pytest.raises(error) as raised:
        prepare(archive, tmp_path / "data")
    assert message.format(archive=archive) in str(raised.value)
    assert not (tmp_path / "data" / "i_naturalist2018" / "1.0.0").exists()


def test_what_is_still_packed_is_named(tmp_path):
    (tmp_path / "train2018.json.tar.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"train2018\.json\.tar\.gz is there, but packed: .*tar -xzf"):
        prepare(tmp_path, tmp_path / "data")


def test_the_counts():
    (spec,) = inaturalist.SPECS
    protocol = spec.protocol()
    train, val = (protocol.splits[split].counts for split in ("train", "val"))
    assert (protocol.evaluation, protocol.splits["val"].stored) == ("val", ("validation",))
    assert (train.shape, train.sum(), train.min(), train.max()) == ((8142,), 437_513, 2, 1000)
    assert val.tolist() == [3] * 8142
    assert {name: len(classes) for name, classes in spec.groups().items()} == {
        "head": 842,
        "middle": 3701,
        "tail": 3599,
    }
    assert "made up" in spec.profile


def test_the_real_validation_list(tmp_path):
    """It is stored as lines here; its images and classes are those of the annotations."""
    if not LISTS.is_file():
        pytest.skip(f"the real lists are not at {LISTS}")
    with tarfile.open(LISTS) as packed:
        lines = packed.extractfile("splits/iNaturalist18/iNaturalist18_val.txt").read().decode().splitlines()
    files, labels = zip(*(line.split() for line in lines), strict=True)
    content = annotations(files, [int(label) for label in labels])
    for split in ("train", "val"):
        write(tmp_path, split, content)
    (tmp_path / "train_val2018").mkdir()
    index = INaturalist2018(data_dir=tmp_path / "unused")._index(Archive(tmp_path))
    found = np.bincount([item.label for item in index.splits["validation"]])
    (spec,) = inaturalist.SPECS
    np.testing.assert_array_equal(found, spec.protocol().splits["val"].counts)
    np.testing.assert_array_equal(found, INaturalist2018.images_per_class["validation"])
    assert INaturalist2018.images_per_split["validation"] == len(files) == len(set(files))
    assert len(index.class_names) == len(set(index.class_names)) == 8142
    assert {item.features["supercategory"] for item in index.splits["validation"]} == set(inaturalist.supercategories())
    # Contiguous but for Animalia, as the species of TFDS are.
    assert index.class_names[:1] + index.class_names[-1:] == ["Hermodice carunculata", "Brefeldia maxima"]
