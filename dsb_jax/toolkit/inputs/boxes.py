"""Objects in boxes of COCO's format as points of sample space: the semantic scale of classes of objects to detect.

"The non-fixed dimensionality of each instance in the field of object detection brings new challenges, so we have to
consider the effect of dimensionality on the semantic scale" (Appendix J.3 of the paper): each box is cut out of its
image and brought to one size, as images of different sizes are.
"""

import json
import logging
import math
import os
import pathlib
from typing import Any

from dsb_jax import validation
from dsb_jax.toolkit.inputs import pixels, sources
from dsb_jax.toolkit.inputs.files import Rows

Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels

_logger = logging.getLogger(__name__)


def rows(
    instances: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    image_size: int = 16,
    min_side: int = 8,
) -> Rows:
    """The objects that annotations in COCO's format have boxes of.

    Boxes end at the edges of their image; of a pixel that a box has a part of, it has all. Objects that are crowds
    (``iscrowd``) are left out.

    Args:
      instances: JSON file of ``images``, ``annotations`` with a ``bbox`` of left, top, width and height in pixels, and
        ``categories``.
      folder: where the image files are.
      image_size: see :func:`pixels.images_as_samples`.
      min_side: pixels that the shorter side of a box must have. Of smaller objects what is seen is the resize.

    Returns:
      A row for every box, in the order of the images; classes are the categories with boxes, by their ``id``.

    Raises:
      ValueError: the file is not in COCO's format, boxes are malformed, or images or categories missing.

    Example:
      >>> from dsb_jax.data import images
      >>> _ = pathlib.Path("street.png").write_bytes(images.encode_png(np.zeros((40, 60, 3), np.uint8)))
      >>> annotations = [
      ...     {"id": 7, "image_id": 1, "category_id": 3, "bbox": [5.5, 10, 30, 20]},
      ...     {"id": 8, "image_id": 1, "category_id": 1, "bbox": [50, 0, 20, 40], "iscrowd": 0}]
      >>> _ = pathlib.Path("instances.json").write_text(json.dumps({
      ...     "images": [{"id": 1, "file_name": "street.png", "height": 40, "width": 60}], "annotations": annotations,
      ...     "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}, {"id": 3, "name": "car"}]}))
      >>> objects = rows("instances.json", ".").load()
      >>> objects.class_names, objects.points.shape, objects.labels.tolist()
      (('person', 'car'), (2, 768), [1, 0])

    Source: Lin et al., Microsoft COCO: Common Objects in Context, 2014, for the format.
    """
    instances, folder = os.fspath(instances), pathlib.Path(folder)
    min_side = validation.positive_int("min_side", min_side)
    content = _content(instances)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        shapes = {entry["id"]: (entry["height"], entry["width"], 3) for entry in content["images"]}
        files = {entry["id"]: folder / entry["file_name"] for entry in content["images"]}
        found, small = _boxes(content["annotations"], shapes, names, min_side)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{instances} is not in COCO's format: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{instances}: {error}") from None
    if small:
        _logger.info("%d objects of %s are left out: their boxes have fewer than %d pixels", small, instances, min_side)
    if not found:
        raise ValueError(f"{instances} must have boxes with sides of {min_side} pixels or more, got none")
    if missing := [str(files[image]) for image in found if not files[image].is_file()]:
        raise ValueError(f"{folder} lacks {len(missing):,} of {len(found):,} images, such as {missing[0]}")
    present = sorted({category for of_image in found.values() for category, _ in of_image})
    class_names = tuple(names[category] for category in present)
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"{instances}: categories must have names of their own, got {', '.join(class_names)}")
    number = {category: label for label, category in enumerate(present)}
    pictures = [
        pixels.Picture(
            str(files[image]),
            tuple(number[category] for category, _ in of_image),
            tuple(box for _, box in of_image),
            shapes[image],
        )
        for image, of_image in found.items()
    ]
    return pixels.rows_of(pictures, class_names, image_size, name=pathlib.PurePath(instances).name, path=str(folder))


def _content(path: str) -> Any:
    def without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)  # most of the file
        return entry

    with sources.reading(path), sources.opened(path) as file:
        text = file.read()
    try:
        return json.loads(text, object_hook=without_outlines)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


def _boxes(
    annotations: list[dict[str, Any]],
    shapes: dict[Any, tuple[int, int, int]],
    names: dict[Any, str],
    min_side: int,
) -> tuple[dict[Any, list[tuple[Any, Box]]], int]:
    """Category and box of the objects of each image, in the order of ``shapes``, and how many are too small."""
    found: dict[Any, list[tuple[Any, Box]]] = {image: [] for image in shapes}
    small = 0
    for entry in annotations:
        if entry.get("iscrowd"):
            continue
        if entry["category_id"] not in names:
            raise ValueError(
                f"annotation {entry['id']} has category {entry['category_id']}, which is none of its {len(names)}"
            )
        if entry["image_id"] not in shapes:
            unknown = {other["image_id"] for other in annotations} - shapes.keys()
            raise ValueError(
                f"annotation {entry['id']} is of image {entry['image_id']}, which is none of its {len(shapes):,} "
                f"({len(unknown):,} such images)"
            )
        left, top, right, bottom = box = _in_pixels(entry, shapes[entry["image_id"]])
        if min(right - left, bottom - top) < min_side:
            small += 1
        else:
            found[entry["image_id"]].append((entry["category_id"], box))
    return {image: of_image for image, of_image in found.items() if of_image}, small


def _in_pixels(entry: dict[str, Any], shape: tuple[int, int, int]) -> Box:
    """The pixels of an image that a box has a part of."""
    box = entry["bbox"]
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(number, int | float) for number in box)
    if not is_box or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise ValueError(f"annotation {entry['id']} must have a box of left, top, width and height, got {box}")
    height, width, _ = shape
    left, top = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    right, bottom = min(math.ceil(box[0] + box[2]), width), min(math.ceil(box[1] + box[3]), height)
    if right < left or bottom < top or left >= width or top >= height:
        raise ValueError(f"annotation {entry['id']} has the box {box} outside of its image, {width}x{height}")
    return left, top, right, bottom
