"""Images of any size, folders of them and objects in boxes, as points of sample space."""

import copy
import json
import logging
import re

import cv2
import numpy as np
import pytest

import dsb_jax
from dsb_jax.data import images
from dsb_jax.toolkit import inputs, moments, streaming
from dsb_jax.toolkit.inputs import boxes, pixels

RNG = np.random.default_rng(0)


def picture(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels)).astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode_png(image))


@pytest.mark.parametrize("shape", [(16, 16, 3), (28, 28, 1), (7, 50, 3), (1, 1, 1), (64, 33, 3)], ids=str)
def test_small_images_become_what_those_of_one_size_become(shape):
    image = picture(*shape)
    expected = np.asarray(dsb_jax.pixel_features(image[None]))
    found = pixels.images_as_samples([image, image[..., 0] if shape[2] == 1 else image])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([expected, expected]), atol=1e-6)


def test_large_images_are_nearly_what_those_of_one_size_become():
    image = cv2.resize(picture(12, 20), (500, 300), interpolation=cv2.INTER_CUBIC)
    found, expected = pixels.images_as_samples([image], 8), dsb_jax.pixel_features(image[None], image_size=8)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.std(expected) > 0.05


def test_images_of_several_sizes_are_stretched():
    """Two halves, black and white, are halves of a square."""
    halves = [
        np.repeat(np.array([0, 255], np.uint8), width)[None].repeat(height, 0) for height, width in ((9, 4), (200, 500))
    ]
    for point in pixels.images_as_samples(halves, 4).reshape(2, 4, 4, 3):
        np.testing.assert_allclose(point[:, [0, 3]].mean(axis=(0, 2)), [0, 1], atol=1e-6)
        np.testing.assert_allclose(point[:, 1], 1 - point[:, 2], atol=1e-5)
    assert pixels.images_as_samples([], 4).shape == (0, 48)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), np.uint8(1)]
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match=r"images must be uint8 \[height, width\] or \[height, width, 1 or 3\], got"):
        pixels.images_as_samples([image])


def test_a_folder_of_images_of_any_size(tmp_path):
    shown = {name: [picture(*RNG.integers(5, 90, 2)) for _ in range(count)] for name, count in (("owl", 3), ("elk", 2))}
    for name, of_class in shown.items():
        for number, image in enumerate(of_class):
            save(tmp_path / "birds" / name / f"{number}.png", image)
    rows = pixels.folder_rows(tmp_path / "birds")
    assert (rows.name, rows.space, rows.samples, rows.dim) == ("birds", "sample", 5, 768)
    assert rows.class_names == ("elk", "owl")
    loaded = rows.load()
    np.testing.assert_array_equal(loaded.labels, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(loaded.points, pixels.images_as_samples([*shown["elk"], *shown["owl"]]))
    found = [of_class.volume() for of_class in streaming.class_moments(rows)]
    np.testing.assert_allclose(found, moments.volumes(loaded.points, loaded.labels, 2), rtol=1e-9)


def test_of_two_splits_the_training_images_are_taken(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            save(tmp_path / split / "owl" / f"{number}.png", picture(8, 8))
    assert pixels.folder_rows(tmp_path, 4).samples == 2


def test_damaged_images_are_all_named(tmp_path):
    for number in range(30):
        save(tmp_path / "owl" / f"{number:02d}.png", picture(8, 8))
    (tmp_path / "owl" / "03.png").write_bytes(b"")
    (tmp_path / "owl" / "20.jpg").write_bytes(images.encode_jpeg(picture(40, 40))[:-200])
    (tmp_path / "owl" / "21.png").unlink()
    (tmp_path / "owl" / "21.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"3 of 31 images cannot be used") as raised:
        list(pixels.folder_rows(tmp_path).blocks(4))
    for name in ("03.png: its image does not decode", "20.jpg: its image does not decode", "21.png: No such file"):
        assert name in str(raised.value)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file").touch()
    for name, message in (("file", "there is a file"), ("nothing", "there is nothing"), (".", "but has no folders")):
        with pytest.raises(ValueError, match=f"must be a folder of CLASS/IMAGE, (and|but).*{message.split()[-1]}"):
            pixels.folder_rows(tmp_path / name)
    (tmp_path / "owl").mkdir()
    with pytest.raises(ValueError, match="owl has no images"):
        pixels.folder_rows(tmp_path)


ANNOTATIONS = {
    "images": [
        {"id": 11, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 5, "file_name": "more/b.png", "height": 30, "width": 30},
        {"id": 6, "file_name": "not/needed.png", "height": 30, "width": 30},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 4, "name": "emu"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 9, "bbox": [1, 2, 10, 20], "segmentation": [[0, 0]], "iscrowd": 0},
        {"id": 2, "image_id": 11, "category_id": 2, "bbox": [0.5, 10.2, 20.4, 15]},
        {"id": 3, "image_id": 5, "category_id": 2, "bbox": [-4, 25, 60.5, 9]},  # leaves its image, with five rows in it
        {"id": 4, "image_id": 11, "category_id": 9, "bbox": [30, 0, 30, 40], "iscrowd": 1},
        {"id": 5, "image_id": 11, "category_id": 9, "bbox": [30, 5, 3, 40], "iscrowd": 0},
        {"id": 6, "image_id": 11, "category_id": 9, "bbox": [10, 10, 0, 0]},  # as COCO itself has
    ],
}


@pytest.fixture
def coco(tmp_path):
    """``coco(change)`` writes the annotations, changed in place, and gives the paths; images are beside."""
    shown = {"a.png": picture(40, 60), "more/b.png": picture(30, 30)}
    for name, image in shown.items():
        save(tmp_path / "images" / name, image)

    def write(change=lambda content: None):
        content = copy.deepcopy(ANNOTATIONS)
        change(content)
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return tmp_path / "instances.json", tmp_path / "images"

    write.shown, write.images = shown, tmp_path / "images"
    return write


def test_objects_in_boxes(coco, caplog):
    with caplog.at_level(logging.INFO, "dsb_jax"):
        rows = boxes.rows(*coco(), min_side=5)
    assert (rows.name, rows.space, rows.samples, rows.dim) == ("instances.json", "sample", 3, 768)
    assert rows.class_names == ("cat", "dog")  # by their numbers; of the emu there is no box
    listed = [path.removeprefix(f"{coco.images}/") for path in inputs.paths(rows)]
    assert listed == ["a.png\t0,10,21,16", "more/b.png\t1,2,10,20", "more/b.png\t0,25,30,5"]
    loaded = rows.load()
    a, b = coco.shown.values()
    np.testing.assert_array_equal(loaded.labels, [0, 1, 0])  # those of an image side by side
    expected = pixels.images_as_samples([a[10:26, 0:21], b[2:22, 1:11], b[25:30, 0:30]])
    np.testing.assert_array_equal(loaded.points, expected)
    assert "2 objects of" in caplog.text
    assert boxes.rows(*coco(), min_side=1).samples == 4
    assert boxes.rows(*coco(), image_size=4).samples == 2  # of 8 pixels and more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "annotation 2 must have a box of left, top, width and"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, -3, 4]), "annotation 2 must have a box of left, top, width"),
        (lambda c: c["annotations"][1].update(bbox=[1, float("nan"), 3, 4]), "annotation 2 must have a box of"),
        (
            lambda c: c["annotations"][1].update(bbox=None),
            "annotation 2 must have a box of left, top, width and height",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[70, 0, 9, 9]),
            "annotation 2 has the box [70, 0, 9, 9] outside of its image, 60x40",
        ),
        (lambda c: c["annotations"][1].update(bbox=[-20, 0, 9, 9]), "outside of its image, 60x40"),
        (lambda c: c["annotations"][1].update(category_id=3), "annotation 2 has category 3, which is none of its 3"),
        (
            lambda c: c["annotations"][1].update(image_id=3),
            "annotation 2 is of image 3, which is none of its 3 (1 such images)",
        ),
        (lambda c: c["annotations"][1].pop("bbox"), "is not in COCO's format: KeyError('bbox')"),
        (lambda c: c.pop("categories"), "is not in COCO's format: KeyError('categories')"),
        (lambda c: c["images"][0].update(height="40"), "is not in COCO's format: TypeError"),
        (lambda c: c["categories"][1].update(name="dog"), "categories must have names of their own, got dog, dog"),
        (lambda c: c["annotations"].clear(), "must have boxes with sides of 8 pixels or more, got none"),
        (lambda c: c["images"][0].update(file_name="c.png"), "lacks 1 of 2 images, such as"),
    ],
)
def test_annotations_that_do_not_fit(change, message, coco):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        boxes.rows(*coco(change))
    assert "\n" not in str(raised.value)


def test_files_of_annotations_that_are_none(coco):
    path, folder = coco()
    with pytest.raises(ValueError, match=r"unknown file .*instance.json'; did you mean '.*instances.json'"):
        boxes.rows(path.with_name("instance.json"), folder)
    path.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"instances.json is no JSON file"):
        boxes.rows(path, folder)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"instances.json is not in COCO's format"):
        boxes.rows(path, folder)


def test_images_of_another_size_than_annotated_are_named(coco):
    path, folder = coco()
    save(folder / "a.png", picture(60, 40))
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be used: .*a.png: its image has shape \(60, 40, 3\)"):
        boxes.rows(path, folder).load()
