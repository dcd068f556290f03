"""MSCOCO-GLT: objects of COCO, long-tailed in their classes and within them (Tang et al., 2022)."""

import collections
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import images, specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import Part, Protocol, Spec

# The objects with attributes, most of them first: that is the order of the labels.
_CLASSES = {
    "person": 65000,
    "car": 7666,
    "truck": 5654,
    "motorcycle": 5524,
    "sheep": 5428,
    "horse": 5323,
    "cow": 5183,
    "broccoli": 5074,
    "elephant": 4973,
    "dog": 4969,
    "giraffe": 4889,
    "pizza": 4851,
    "bus": 4808,
    "zebra": 4788,
    "cat": 4773,
    "cake": 4701,
    "banana": 4649,
    "bird": 4578,
    "train": 4337,
    "donut": 4164,
    "boat": 3949,
    "airplane": 3648,
    "sandwich": 3636,
    "bicycle": 3368,
    "orange": 3305,
    "carrot": 3043,
    "apple": 2821,
    "hot dog": 1966,
    "bear": 1358,
}
_ATTRIBUTES = "cocottributes_py3.jbl"
_YEARS = ("train2014", "val2014")
_SETS = ("train", "val", "test_lt", "test_bl", "test_bbl")
_IMBALANCE = 0.005  # of the smallest class to the largest, before the classes run out of objects

# What the authors' scripts write, and their notebook: the folder, and the annotations in it.
_WRITTEN = {
    "": {"coco_glt": "annotation.json", "coco_lt": "annotations/annotation.json"},
    "cbl_": {"coco_cbl": "annotation.json", "coco_bl": "annotations/annotation.json"},
}


class Sizes(NamedTuple):
    """Objects of each class in a test set, and in the validation set on average."""

    test: int
    val: int


class CocoGlt(FromFiles, skip_registration=True):
    """Objects of 29 classes cut out of COCO's images of 2014, each with a margin and made square by black bars.

    The authors publish how their two sets are drawn out of the objects of COCO Attributes, but not what was drawn. Of
    one set are ``train``, long-tailed; ``val`` and ``test_lt``, alike in distribution; ``test_bl``, of balanced
    classes; and ``test_bbl``, in which attributes are balanced too, as far as they can be. Of the other, drawn anew,
    are ``cbl_train``, of balanced classes, ``cbl_val``, ``cbl_test_bl`` and ``cbl_test_bbl``.

    What the authors' scripts wrote is taken as it is. From COCO and the attributes, the sets are drawn by the same
    rules with a fixed seed, and JPEG files are of quality 95 instead of 75.
    """

    name = "coco_glt"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder of train2014.zip, val2014.zip and annotations_trainval2014.zip of https://cocodataset.org, or what "
        f"is in them, and {_ATTRIBUTES} of https://github.com/KaihuaTang/Generalized-Long-Tailed-Benchmarks.pytorch "
        "(such a file can run code when it is read: take it from there only); or the folder of coco_glt and coco_cbl "
        "that mscoco_glt_crop.py, beside it, has written"
    )
    classes: tuple[str, ...] = tuple(_CLASSES)
    sizes = {"": Sizes(200, 100), "cbl_": Sizes(100, 50)}  # noqa: RUF012  (a constant of the class)
    images_per_split = {  # noqa: RUF012  (likewise)
        "train": 144_573,
        "val": 2900,
        "test_lt": 5800,
        "cbl_train": 32_132,
        "cbl_val": 1450,
    }
    images_per_class = {  # noqa: RUF012  (likewise)
        "test_bl": specs.alike(200, 29),
        "test_bbl": specs.alike(200, 29),
        "cbl_test_bl": specs.alike(100, 29),
        "cbl_test_bbl": specs.alike(100, 29),
    }

    def _further_features(self) -> dict[str, Any]:
        return {"object": tfds.features.Text()}  # its number in COCO Attributes

    def _index(self, archive: Archive) -> Index:
        written = {
            prefix: next((folder for folder, table in places.items() if archive.has(f"{folder}/{table}")), None)
            for prefix, places in _WRITTEN.items()
        }
        if not any(written.values()):
            return self._drawn(archive)
        splits: dict[str, list[Item]] = {}
        for prefix, folder in written.items():
            if folder is None:
                folder, table = next(iter(_WRITTEN[prefix].items()))
                raise FileNotFoundError(f"{folder}/{table} is not in {archive}")
            splits |= self._written(archive, prefix, folder)
        return Index(self.classes, splits, archive)

    def _written(self, archive: Archive, prefix: str, folder: str) -> dict[str, list[Item]]:
        """The images that were cut by the authors' script."""
        table = f"{folder}/{_WRITTEN[prefix][folder]}"
        content = _json(archive, table)
        try:
            names = [content["id2cat"][str(label)] for label in range(len(content["id2cat"]))]
            labels = {split: content[split]["label"] for split in _SETS}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{archive}/{table} is not what mscoco_glt_crop.py writes: it has no {error}") from error
        self._require_classes(f"{archive}/{table}", names)
        sets = collections.Counter(key for split in _SETS for key in labels[split])
        if twice := [key for key, number in sets.items() if number > 1]:
            raise ValueError(f"{archive}/{table} has {len(twice):,} objects in more than one set, such as {twice[0]}")
        return {
            prefix + split: [
                Item(f"{folder}/images/{key}.jpg", int(label), features={"object": key})
                for key, label in labels[split].items()
            ]
            for split in _SETS
            if labels[split] or not (prefix and split == "test_lt")  # the second annotations have an empty one
        }

    def _drawn(self, archive: Archive) -> Index:
        """Sets drawn out of the objects that have attributes."""
        folder = "images/" if archive.has(f"images/{_YEARS[0]}") else ""
        for wanted in (_ATTRIBUTES, *map(_instances, _YEARS), *(f"{folder}{year}" for year in _YEARS)):
            archive.within(wanted)
        numbers, positive = _attributes(archive)
        objects = _objects(archive, folder, numbers)
        counts = collections.Counter(kind for kind, _, _ in objects)
        self._require_classes(str(archive), sorted(sorted(counts), key=counts.__getitem__, reverse=True))
        labels = np.array([self.classes.index(kind) for kind, _, _ in objects])
        keys, splits = list(numbers), {}
        for prefix, sizes in self.sizes.items():
            for split, rows in _divided(labels, positive, sizes, long_tailed=not prefix).items():
                splits[prefix + split] = [
                    Item(
                        _Objects.path(*objects[row][1:]),
                        int(labels[row]),
                        features={"object": str(keys[row])},
                        key=str(keys[row]),
                    )
                    for row in rows
                ]
        return Index(self.classes, splits, _Objects(archive))

    def _require_classes(self, where: str, names: Sequence[str]) -> None:
        """The numbers of the labels are the ranks of the classes, by which the authors' numbers can be told."""
        if tuple(names) != self.classes:
            at = next(
                (at for at, pair in enumerate(zip(names, self.classes, strict=False)) if pair[0] != pair[1]), len(names)
            )
            raise ValueError(
                f"{where} must have {len(self.classes)} classes, {', '.join(self.classes[:3])} … in the order of their "
                f"objects, but has {len(names)}, and class {at} is {names[at] if at < len(names) else 'missing'}"
            )


class _Objects(Archive):
    """Objects of COCO as files of their own, called by the image's name and the object's box.

    The margins are those of the authors' script: 50 pixels on either side of a box of fewer than 100, a fifth of a
    larger one, as far as the image goes; black bars make it a square.
    """

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive.folder)
        self._archive = archive

    def __str__(self) -> str:
        return str(self._archive)

    @staticmethod
    def path(image: str, box: Sequence[float]) -> str:
        return f"{image}#{','.join(map(repr, box))}"

    def stamp(self, name: str) -> str:
        return self._archive.stamp(name.rpartition("#")[0])

    def read(self, name: str, *, md5: str | Sequence[str] = ()) -> bytes:
        del md5
        file, _, box = name.rpartition("#")
        image = images.decode(self._archive.read(file), (None, None, 3))
        return images.encode_jpeg(_cut(image, [float(number) for number in box.split(",")]))


def _cut(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    left, top, width, height = box
    first, last = _edges(left, width, image.shape[1])
    part = image[slice(*_edges(top, height, image.shape[0])), first:last]
    if not part.size:
        raise ValueError(f"box {box} lies outside of the image, {image.shape[1]}x{image.shape[0]}")
    shorter = min(part.shape[:2])
    bar = (max(part.shape[:2]) - shorter) / 2
    bars = round(bar), round(shorter + bar) - shorter  # as PIL rounds what it cuts
    return np.pad(part, (bars, (0, 0), (0, 0)) if part.shape[0] == shorter else ((0, 0), bars, (0, 0)))


def _edges(start: float, length: float, size: int) -> tuple[int, int]:
    margin = 50 if length < 100 else 0.2 * length
    return round(max(start - margin, 0)), round(min(start + length + margin, size))


def _instances(year: str) -> str:
    return f"annotations/instances_{year}.json"


def _json(archive: Archive, name: str) -> Any:
    def without_outlines(entry):
        entry.pop("segmentation", None)  # most of COCO's annotations
        return entry

    try:
        return json.loads(archive.read(name), object_hook=without_outlines)
    except ValueError as error:
        raise ValueError(f"{archive}/{name} is no JSON file: {error}") from error


def _attributes(archive: Archive) -> tuple[dict[Any, int], np.ndarray]:
    """COCO's number of each object, by that in COCO Attributes, and whether it has each attribute, bool."""
    import joblib  # comes with scikit-learn; nothing else needs it

    content = archive.read(_ATTRIBUTES)
    try:
        loaded = joblib.load(io.BytesIO(content))
        vectors, numbers = loaded["ann_vecs"], loaded["patch_id_to_ann_id"]
        positive = np.array([np.asarray(vector) > 0.5 for vector in vectors.values()])
        return {key: numbers[key] for key in vectors}, positive
    except Exception as error:  # whatever a damaged file makes of the loader
        raise ValueError(f"{archive}/{_ATTRIBUTES} is no file of COCO Attributes: {error!r}") from error


def _objects(archive: Archive, folder: str, numbers: dict[Any, int]) -> list[tuple[str, str, list[float]]]:
    """Class, image and box of each object."""
    wanted, found = set(numbers.values()), {}
    for year in _YEARS:
        content = _json(archive, _instances(year))
        try:
            kinds = {kind["id"]: kind["name"] for kind in content["categories"]}
            files = {image["id"]: f"{folder}{year}/{image['file_name']}" for image in content["images"]}
            for entry in content["annotations"]:
                if entry["id"] in wanted:
                    found[entry["id"]] = kinds[entry["category_id"]], files[entry["image_id"]], entry["bbox"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{archive}/{_instances(year)} is not COCO's: it has no {error}") from error
    if missing := wanted - found.keys():
        raise ValueError(
            f"{archive}/{_ATTRIBUTES} has {len(missing):,} objects that COCO's annotations of 2014 there lack, such as "
            f"annotation {min(missing)}"
        )
    return [found[number] for number in numbers.values()]


def _divided(labels: np.ndarray, positive: np.ndarray, sizes: Sizes, *, long_tailed: bool) -> dict[str, np.ndarray]:
    """The rows of each set, by the rules of the authors' mscoco_glt_generation.py.

    Of each class, ``test_bbl`` gets the objects that leave its attributes the most even, one after the other, and
    ``test_bl`` as many at random. Of what is left, training gets an exponential long tail, as far as the classes go, or
    as many of each as the smallest has. Out of that, whatever the class, come ``test_lt`` and ``val``.
    """
    rng = np.random.default_rng([0, long_tailed])
    classes = int(labels.max()) + 1
    left = [np.flatnonzero(labels == label) for label in range(classes)]
    splits = {}
    for split in ("test_bbl", "test_bl"):
        chosen = [
            rows[_most_even(positive[rows], sizes.test)] if split == "test_bbl" else rng.choice(rows, sizes.test, False)
            for rows in left
        ]
        left = [np.setdiff1d(rows, gone) for rows, gone in zip(left, chosen, strict=True)]
        splits[split] = np.concatenate(chosen)
    available = [len(rows) for rows in left]
    counts = np.full(classes, min(available))
    if long_tailed:
        tail = [int(max(available) * _IMBALANCE ** (label / (classes - 1))) for label in range(classes)]
        counts = np.minimum(tail, available)
    pool = np.concatenate([rng.choice(rows, count, False) for rows, count in zip(left, counts, strict=True)])
    ends = np.cumsum([sizes.test * classes * long_tailed, sizes.val * classes])
    splits["test_lt"], splits["val"], splits["train"] = np.split(rng.permutation(pool), ends)
    # In the order of the objects, so that those of an image are read one after the other.
    return {split: np.sort(splits[split]) for split in _SETS if len(splits[split])}


def _most_even(positive: np.ndarray, count: int) -> np.ndarray:
    """Rows of which the attributes are the most even: each the one that makes their shares deviate least.

    The deviation of shares h / Σh, of how often h each attribute occurs, is least where Σh² / (Σh)² is.

    Example:
      >>> _most_even(np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]), 2).tolist()
      [3, 4]
    """
    vectors = positive.astype(np.float32)  # in which the sums below are exact
    own = vectors.sum(axis=1)
    taken = own == 0
    if len(own) - taken.sum() < count:
        raise ValueError(f"{count} objects with attributes are wanted of each class, but one has {(~taken).sum()}")
    chosen, total = [], np.zeros(vectors.shape[1], np.float32)
    for _ in range(count):
        squares = total @ total + 2 * (vectors @ total) + own
        unevenness = squares / np.maximum(total.sum() + own, 1).astype(np.float64) ** 2
        chosen.append(int(np.argmin(np.where(taken, np.inf, unevenness))))
        taken[chosen[-1]] = True
        total += vectors[chosen[-1]]
    return np.array(chosen)


def _expected(total: int) -> np.ndarray:
    """The counts that so many objects out of those for training have on average, rounded to the same sum."""
    left = np.array(list(_CLASSES.values())) - 400
    tail = (left.max() * _IMBALANCE ** (np.arange(len(left)) / (len(left) - 1))).astype(np.int64)
    exact = np.minimum(tail, left) * (total / 153_273)
    counts = exact.astype(np.int64)
    counts[np.argsort(counts - exact)[: total - counts.sum()]] += 1
    return counts


def _protocols() -> dict[str, Protocol]:
    long_tail = {"train": Part(("train",), _expected(144_573)), "val": Part(("val",), _expected(2900))}
    balanced = {"train": Part(("cbl_train",), specs.alike(1108, 29)), "val": Part(("cbl_val",), specs.alike(50, 29))}

    def test(stored, count):
        return {"test": Part((stored,), specs.alike(count, 29))}

    return {
        "clt": Protocol(
            "trained on Train-GLT, tested on Test-CBL: other classes",
            long_tail | test("test_bl", 200),
            long_tailed=True,
        ),
        "glt": Protocol(
            "trained on Train-GLT, tested on Test-GBL: classes and attributes in other numbers",
            long_tail | test("test_bbl", 200),
            long_tailed=True,
        ),
        "alt": Protocol(
            "trained on Train-CBL, tested on Test-GBL: attributes in other numbers",
            balanced | test("cbl_test_bbl", 100),
        ),
    }


SPECS = (
    Spec(
        name="coco_glt",
        title="MSCOCO-GLT",
        stored_as="coco_glt",
        protocols=_protocols(),
        # Squares around objects, of any size.
        image_shape=(256, 256, 3),
        sizes_differ=True,
        # Those of the authors' configurations.
        mean=(0.473, 0.429, 0.370),
        std=(0.277, 0.268, 0.274),
        licence=(
            "COCO: annotations CC BY 4.0, images by Flickr's terms of use; COCO Attributes: not stated; the authors' "
            "scripts: non-commercial use only"
        ),
        gigabytes=20.5,
        profile="those of test sets are true; of training and validation sets, drawn at random, the totals are",
        class_names=tuple(_CLASSES),
    ),
)
