"""MSCOCO-GLT: drawn out of COCO and its attributes by the authors' rules, or as their script wrote it."""

import collections
import json
import shutil

import cv2
import joblib
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from dsb_jax.data import images
from dsb_jax.data.builders import coco_glt
from dsb_jax.data.builders.coco_glt import CocoGlt, Sizes

# The names of COCO's categories and how many objects have attributes.
COUNTS = {"person": 60, "car": 25, "bear": 14}
NUMBERS = {"bear": 23, "car": 3, "person": 1, "kite": 38}
ATTRIBUTES = 7
SIZES = {"": Sizes(3, 1), "cbl_": Sizes(2, 1)}
SPLITS = {
    # 54 persons, 19 cars and 8 bears are left by the balanced test sets, and 54, ⌊54·√0.05⌋ and ⌊54·0.05⌋ taken.
    "": {"train": 68 - 9 - 3, "val": 3, "test_lt": 9, "test_bl": 9, "test_bbl": 9},
    # 10 bears are left.
    "cbl_": {"train": 30 - 3, "val": 3, "test_bl": 6, "test_bbl": 6},
}


@pytest.fixture
def small(monkeypatch):
    """The classes and numbers of the archives below; no bear would be left to train on with the authors' 0.005."""
    monkeypatch.setattr(CocoGlt, "classes", tuple(COUNTS))
    monkeypatch.setattr(CocoGlt, "sizes", SIZES)
    monkeypatch.setattr(coco_glt, "_IMBALANCE", 0.05)
    monkeypatch.setattr(CocoGlt, "images_per_split", {})
    monkeypatch.setattr(CocoGlt, "images_per_class", {"test_bl": [3, 3, 3], "cbl_test_bbl": [2, 2, 2]})


@pytest.fixture
def coco(tmp_path, small):
    """Five images of each year, and objects on them."""
    rng = np.random.default_rng(0)
    top = tmp_path / "coco"
    (top / "annotations").mkdir(parents=True)
    kinds = rng.permutation([name for name, count in COUNTS.items() for _ in range(count)]).tolist()
    vectors, numbers, annotations, sizes = {}, {}, {}, {}
    for at, year in enumerate(("train2014", "val2014")):
        (top / year).mkdir()
        for image in range(5 * at, 5 * at + 5):
            sizes[image] = rng.integers(40, 300, 2)
            pixels = rng.integers(0, 256, (*sizes[image], 3), np.uint8)
            assert cv2.imwrite(str(top / year / f"COCO_{year}_{image:012d}.jpg"), pixels)
    for number, kind in enumerate([*kinds, "kite"], start=500):
        image = int(rng.integers(10))
        height, width = sizes[image]
        x, y = rng.uniform(0, width - 2), rng.uniform(0, height - 2)
        box = [round(float(side), 2) for side in (x, y, rng.uniform(1, width - x), rng.uniform(1, height - y))]
        annotations[number] = {"id": number, "image_id": image, "category_id": NUMBERS[kind], "bbox": box}
        annotations[number]["segmentation"] = [[1.0, 2.0]] if number % 2 else {"counts": [1], "size": [2, 3]}
        if kind != "kite":
            vectors[f"{number + 1000}"] = rng.uniform(0, 0.8, ATTRIBUTES)
            numbers[f"{number + 1000}"] = number
    for at, year in enumerate(("train2014", "val2014")):
        inside = range(5 * at, 5 * at + 5)
        content = {
            "categories": [{"id": number, "name": name} for name, number in NUMBERS.items()],
            "images": [{"id": image, "file_name": f"COCO_{year}_{image:012d}.jpg"} for image in inside],
            "annotations": [entry for entry in annotations.values() if entry["image_id"] in inside],
        }
        (top / "annotations" / f"instances_{year}.json").write_text(json.dumps(content))
    attributes = [{"id": at, "name": f"attribute {at}"} for at in range(ATTRIBUTES)]
    content = {"ann_vecs": vectors, "patch_id_to_ann_id": numbers, "attributes": attributes}
    joblib.dump(content, top / "cocottributes_py3.jbl", compress=True)
    return top


@pytest.fixture
def written(tmp_path, small):
    """What the authors' script writes."""
    rng = np.random.default_rng(1)
    top = tmp_path / "written"
    for prefix, folder in (("", "coco_glt"), ("cbl_", "coco_cbl")):
        content = {"cat2id": {name: label for label, name in enumerate(COUNTS)}, "key2path": {}}
        content["id2cat"] = {label: name for name, label in content["cat2id"].items()}
        (top / folder / "images").mkdir(parents=True)
        key = 0
        for split in coco_glt._SETS:
            content[split] = {name: {} for name in ("label", "frequency", "attribute", "path", "attribute_score")}
            for _ in range(SPLITS[prefix].get(split, 0)):
                key += 1
                path = top / folder / "images" / f"{key}.jpg"
                assert cv2.imwrite(str(path), rng.integers(0, 256, (9, 9, 3), np.uint8))
                content[split]["label"][key] = key % len(COUNTS)
                content[split]["path"][key] = f"/data4/coco_glt/images/{key}.jpg"
        (top / folder / "annotation.json").write_text(json.dumps(content))
    return top


def prepare(archive, data_dir):
    """The dataset, prepared and read back."""
    builder = CocoGlt(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    )
    return tfds.builder_from_directory(data_dir / "coco_glt" / "1.0.0")


def examples(folder):
    """By split, the pixels and label of every object, in their order."""
    return {
        split: {
            example["object"].decode(): (example["label"], example["image"]) for example in folder.as_data_source(split)
        }
        for split in folder.info.splits
    }


def cut_by_pil(path, box):
    """What mscoco_glt_crop.py does, which pads with PIL's black."""
    image = PIL.Image.open(path)
    x, y, width, height = box
    across, down = (50 if side < 100 else side * 0.2 for side in (width, height))
    image = image.crop(
        (
            max(x - across, 0),
            max(y - down, 0),
            min(x + width + across, image.width),
            min(y + height + down, image.height),
        )
    )
    width, height = image.size
    bar = (max(width, height) - min(width, height)) / 2
    square = (0, -bar, width, height + bar) if width > height else (-bar, 0, width + bar, height)
    return np.asarray(image.crop(square))


def test_objects_are_cut_out_and_divided(coco, tmp_path):
    folder = prepare(coco, tmp_path / "data")
    assert folder.info.features["label"].names == list(COUNTS)
    annotations, files = {}, {}
    for year in ("train2014", "val2014"):
        content = json.loads((coco / "annotations" / f"instances_{year}.json").read_text())
        annotations |= {entry["id"]: entry for entry in content["annotations"]}
        files |= {image["id"]: coco / year / image["file_name"] for image in content["images"]}
    read = examples(folder)
    for found in read.values():
        for key, (label, image) in found.items():
            entry = annotations[int(key) - 1000]
            assert NUMBERS[list(COUNTS)[label]] == entry["category_id"]
            cut = cut_by_pil(files[entry["image_id"]], entry["bbox"])
            np.testing.assert_array_equal(image, images.decode(images.encode_jpeg(cut), cut.shape))
    assert {split: len(found) for split, found in read.items()} == {
        prefix + split: count for prefix, splits in SPLITS.items() for split, count in splits.items()
    }
    for prefix in SIZES:
        splits = [set(read[prefix + split]) for split in coco_glt._SETS if prefix + split in read]
        assert len(set().union(*splits)) == sum(map(len, splits))
        for split in ("test_bl", "test_bbl"):
            counts = collections.Counter(label for label, _ in read[prefix + split].values())
            assert counts == dict.fromkeys(range(3), SIZES[prefix].test)


def test_zip_files_and_the_authors_folders_are_the_same(coco, tmp_path):
    unpacked = examples(prepare(coco, tmp_path / "data"))
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, file in (("train2014", "train2014"), ("val2014", "val2014"), ("annotations", "annotations_trainval2014")):
        shutil.make_archive(str(packed / file), "zip", coco, name)
    shutil.copy(coco / "cocottributes_py3.jbl", packed)
    theirs = coco.with_name("theirs")
    shutil.copytree(coco, theirs)
    for year in ("train2014", "val2014"):
        shutil.move(theirs / year, theirs / "images" / year)
    for archive in (packed, theirs):
        read = examples(prepare(archive, tmp_path / f"data_{archive.name}"))
        assert {split: list(found) for split, found in read.items()} == {
            split: list(found) for split, found in unpacked.items()
        }
        for key, (_, image) in read["test_bbl"].items():
            np.testing.assert_array_equal(image, unpacked["test_bbl"][key][1])


@pytest.mark.parametrize("long_tailed", [True, False])
def test_the_rules_of_division(small, long_tailed):
    rng = np.random.default_rng(2)
    labels = rng.permutation(np.repeat([0, 1, 2], [400, 90, 60]))
    positive = rng.random((len(labels), 12)) < np.linspace(0.05, 0.6, 12)
    positive[rng.permutation(len(labels))[:40]] = False
    splits = coco_glt._divided(labels, positive, Sizes(10, 4), long_tailed=long_tailed)
    everything = np.concatenate(list(splits.values()))
    assert len(np.unique(everything)) == len(everything)
    even = splits["test_bbl"]
    assert positive[even].any(axis=1).all()
    for label in range(3):
        assert set(even[labels[even] == label]) == evened_one_by_one(positive, np.flatnonzero(labels == label), 10)
    assert np.bincount(labels[splits["test_bl"]]).tolist() == [10, 10, 10]
    assert len(splits["val"]) == 12
    pool = np.bincount(labels[np.concatenate([splits[name] for name in ("train", "val", "test_lt") if name in splits])])
    # 380, 70 and 40 are left of the classes.
    assert pool.tolist() == ([380, 70, 19] if long_tailed else [40] * 3)
    assert len(splits.get("test_lt", ())) == (30 if long_tailed else 0)
    again = coco_glt._divided(labels, positive, Sizes(10, 4), long_tailed=long_tailed)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)


def evened_one_by_one(positive, rows, count):
    """As mscoco_glt_generation.py computes it."""
    total, chosen = np.zeros(positive.shape[1]), []
    for _ in range(count):
        deviations = {}
        for row in rows:
            if row not in chosen and positive[row].any():
                shares = total + positive[row]
                deviations[row] = (shares / (shares.sum() + 1e-9)).std()
        lowest = min(deviations.values())
        # Rounding decides between equal ones there, their order here.
        chosen.append(next(row for row, deviation in deviations.items() if deviation < lowest + 1e-12))
        total += positive[chosen[-1]]
    return set(chosen)


def test_what_the_script_wrote_is_taken_as_it_is(written, tmp_path):
    folder = prepare(written, tmp_path / "data")
    read = examples(folder)
    assert {split: len(found) for split, found in read.items()} == {
        prefix + split: count for prefix, splits in SPLITS.items() for split, count in splits.items()
    }
    for prefix, name in (("", "coco_glt"), ("cbl_", "coco_cbl")):
        content = json.loads((written / name / "annotation.json").read_text())
        for split in SPLITS[prefix]:
            for key, (label, image) in read[prefix + split].items():
                assert label == content[split]["label"][key]
                wanted = cv2.imread(str(written / name / "images" / f"{key}.jpg"))[..., ::-1]
                np.testing.assert_array_equal(image, wanted)


def test_the_folders_of_the_notebook(written, tmp_path):
    ours = examples(prepare(written, tmp_path / "data"))
    for old, new in (("coco_glt", "coco_lt"), ("coco_cbl", "coco_bl")):
        (written / old / "annotations").mkdir()
        (written / old / "annotation.json").rename(written / old / "annotations" / "annotation.json")
        (written / old).rename(written / new)
    theirs = examples(prepare(written, tmp_path / "notebook"))
    assert {split: list(found) for split, found in ours.items()} == {
        split: list(found) for split, found in theirs.items()
    }


def rewrite(path, change):
    """Damage to a JSON file."""

    def damage(top):
        content = json.loads((top / path).read_text())
        change(content)
        (top / path).write_text(json.dumps(content))

    return damage


def drop_attributes(top):
    content = joblib.load(top / "cocottributes_py3.jbl")
    del content["patch_id_to_ann_id"]
    joblib.dump(content, top / "cocottributes_py3.jbl", compress=True)


def pack_images(top):
    shutil.rmtree(top / "val2014")
    (top / "val2014.tar.gz").touch()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda top: (top / "cocottributes_py3.jbl").unlink(),
            FileNotFoundError,
            "cocottributes_py3.jbl is not in {top}",
        ),
        (
            lambda top: (top / "annotations" / "instances_val2014.json").unlink(),
            FileNotFoundError,
            "annotations/instances_val2014.json is not in {top}",
        ),
        (
            pack_images,
            FileNotFoundError,
            "val2014 is not in {top}; val2014.tar.gz is there, but packed: unpack it first (cd {top} && tar",
        ),
        (
            lambda top: (top / "annotations" / "instances_val2014.json").write_text("{{"),
            ValueError,
            "{top}/annotations/instances_val2014.json is no JSON file: ",
        ),
        (
            rewrite("annotations/instances_train2014.json", lambda content: content.pop("images")),
            ValueError,
            "{top}/annotations/instances_train2014.json is not COCO's: it has no 'images'",
        ),
        (
            rewrite("annotations/instances_train2014.json", lambda content: content.update(annotations=[])),
            ValueError,
            "objects that COCO's annotations of 2014 there lack, such as annotation 5",
        ),
        (
            lambda top: (top / "cocottributes_py3.jbl").write_bytes(b"version https://git-lfs.github.com/spec/v1"),
            ValueError,
            "{top}/cocottributes_py3.jbl is no file of COCO Attributes: ",
        ),
        (drop_attributes, ValueError, "is no file of COCO Attributes: KeyError('patch_id_to_ann_id')"),
        (
            rewrite("annotations/instances_val2014.json", lambda content: content["categories"][1].update(name="van")),
            ValueError,
            "{top} must have 3 classes, person, car, bear … in the order of their objects, but has 4, and class ",
        ),
        (
            lambda top: next((top / "train2014").iterdir()).unlink(),
            ValueError,
            "images cannot be used; mend them, or leave them out with --skip-bad: train2014/COCO_train2014_0000000000",
        ),
    ],
)
def test_what_is_wrong_with_coco_is_named(coco, tmp_path, damage, error, message):
    damage(coco)
    with pytest.raises(error) as raised:
        prepare(coco, tmp_path / "data")
    assert message.format(top=coco) in str(raised.value)


def move_object(content):
    key, label = content["train"]["label"].popitem()
    content["train"]["label"][key] = content["val"]["label"][key] = label


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda top: shutil.rmtree(top / "coco_cbl"),
            FileNotFoundError,
            "coco_cbl/annotation.json is not in {top}",
        ),
        (
            rewrite("coco_glt/annotation.json", move_object),
            ValueError,
            "{top}/coco_glt/annotation.json has 1 objects in more than one set, such as ",
        ),
        (
            rewrite("coco_glt/annotation.json", lambda content: content.pop("val")),
            ValueError,
            "{top}/coco_glt/annotation.json is not what mscoco_glt_crop.py writes: it has no 'val'",
        ),
        (
            rewrite("coco_cbl/annotation.json", lambda content: content["id2cat"].update({"1": "cart"})),
            ValueError,
            "{top}/coco_cbl/annotation.json must have 3 classes, person, car, bear … in the order of their objects, "
            "but has 3, and class 1 is cart",
        ),
        (
            rewrite("coco_glt/annotation.json", lambda content: content["test_lt"].update(label={})),
            ValueError,
            "coco_glt/test_lt has no images in {top}",
        ),
        (
            rewrite("coco_glt/annotation.json", lambda content: content["test_bl"]["label"].popitem()),
            ValueError,
            "coco_glt/test_bl must have 3 images of class bear, but 2 are in {top}",
        ),
    ],
)
def test_what_is_wrong_with_the_scripts_output_is_named(written, tmp_path, damage, error, message):
    damage(written)
    with pytest.raises(error) as raised:
        prepare(written, tmp_path / "data")
    assert message.format(top=written) in str(raised.value)


def test_the_published_numbers():
    (spec,) = coco_glt.SPECS
    totals = {
        name: {part.stored[0]: int(part.counts.sum()) for part in protocol.splits.values()}
        for name, protocol in spec.protocols.items()
    }
    assert totals == {
        "clt": {"train": 144_573, "val": 2900, "test_bl": 5800},
        "glt": {"train": 144_573, "val": 2900, "test_bbl": 5800},
        "alt": {"cbl_train": 32_132, "cbl_val": 1450, "cbl_test_bbl": 2900},
    }
    assert sum(coco_glt._CLASSES.values()) == 188_426
    # The objects from which training, validation and long-tailed test sets are drawn, as the authors' notebook prints.
    assert coco_glt._expected(153_273)[[0, 1, 14, 15, 27, 28]].tolist() == [64_600, 7266, 4373, 3780, 390, 323]
    assert [name for name, protocol in spec.protocols.items() if protocol.long_tailed] == ["clt", "glt"]
    assert all(protocol.same_classes for protocol in spec.protocols.values())
