"""Datasets that TFDS's own builders have written are read under our names, as they lie there."""

import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dsb_jax import data
from dsb_jax.data import __main__ as listing
from dsb_jax.data import datasets, images, specs

# Our name, TFDS's, our splits that are read, and the protocol.
STOCK = (
    ("cub2011", "caltech_birds2011", ("train", "test"), "classification"),
    ("cub2011", "caltech_birds2011", ("train", "test"), "retrieval"),
    ("cars196", "cars196", ("train", "test"), "classification"),
    ("cars196", "cars196", ("train", "test"), "retrieval"),
    ("sop", "stanford_online_products", ("train", "test"), "retrieval"),
    ("eurosat", "eurosat/rgb", ("train", "test"), None),
    ("resisc45", "resisc45", ("train", "test"), None),
    ("imagenet2012", "imagenet2012", ("train", "val"), None),
    ("imagenet_lt", "imagenet_lt", ("train", "val", "test"), None),
    ("inat2018", "i_naturalist2018", ("train", "val"), None),
    ("mnist", "mnist", ("train", "test"), None),
    ("fashion_mnist", "fashion_mnist", ("train", "test"), None),
    ("cifar10", "cifar10", ("train", "test"), None),
    ("cifar100", "cifar100", ("train", "test"), "classification"),
)


def write_stock(tfds_name, data_dir, splits, images_of_a_class=5):
    """A few images of some classes in each split, by the builder of TFDS but for where it gets them from.

    Features, version and folder are its own; the colour of an image is its label, as three digits to base 251.
    """
    name, _, config = tfds_name.partition("/")
    stock = tfds.builder_cls(name)

    class Offline(stock, skip_registration=True):
        url_infos = None

        def _split_generators(self, dl_manager):
            if name.startswith("cifar"):  # which has the names of its classes in the archive
                self.info.features["label"].names = data.spec(name).class_names
            return {split: self._examples(split) for split in splits}

        def _examples(self, split):
            for label in labels_of(self.info.features, split):
                for number in range(images_of_a_class):
                    yield (
                        f"{split} {label} {number}",
                        {key: content(key, feature, label) for key, feature in self.info.features.items()},
                    )

        def _generate_examples(self, *arguments, **options):
            raise NotImplementedError

    Offline.name = name
    Offline.__module__ = stock.__module__  # beside which TFDS looks for the description
    builder = Offline(data_dir=data_dir, config=config or None, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def labels_of(features, split):
    """Every class of a small dataset; of a large one the first, the last and some between."""
    (key,) = {"label", "class_id"} & set(features)
    classes = features[key].num_classes
    if key == "class_id":  # the published split is one of classes
        return (0, 5, 11_317) if split == "train" else (11_318, 11_330, 22_633)
    return range(classes) if classes <= 200 else (0, 1, 500, classes - 1)


def content(key, feature, label):
    if isinstance(feature, tfds.features.Image):
        shape = [side or 20 for side in feature.shape]
        image = np.broadcast_to(np.array(colour(label), np.uint8)[: shape[-1]], shape)
        return io.BytesIO(images.encode_png(image.squeeze()))
    if isinstance(feature, tfds.features.BBoxFeature):
        return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    if isinstance(feature, tfds.features.Text):
        return "a text"
    if isinstance(feature, tfds.features.ClassLabel):
        return label if key in ("label", "class_id") else 0
    raise AssertionError(f"{key} is {feature}")


def colour(label):
    return label % 251, label // 251, 7


@pytest.mark.parametrize(("name", "tfds_name", "splits", "protocol"), STOCK)
def test_what_tfds_has_prepared_is_read_by_our_name(name, tfds_name, splits, protocol, tmp_path):
    spec = data.spec(name)
    stored = {"train", "test"} if name in ("cub2011", "cars196", "sop") else set()
    stored |= {where for split in splits for where in spec.part(split, protocol).stored}
    stock = write_stock(tfds_name, tmp_path, sorted(stored))
    assert datasets.state(name, tmp_path) in ("yes", "by TFDS")
    read = 0
    for split_name in splits:
        part = spec.part(split_name, protocol)
        split = data.load(name, split_name, protocol=protocol, data_dir=tmp_path, image_size=None if fixed(spec) else 8)
        assert split.num_classes == len(part.counts)
        read += len(split)
        old = np.arange(len(part.counts))
        if part.relabel is not None:
            old = np.argsort(np.where(part.relabel < 0, 10**6, part.relabel))
        for label, example in zip(split.labels, split.source.__getitems__(range(len(split))), strict=True):
            assert example["label"] == label
            assert example["image"][3, 5].tolist() == list(colour(int(old[label]))[: split.image_shape[-1]])
        if spec.class_names and part.relabel is None:
            assert split.class_names == spec.class_names
        names = stock.info.features["label" if "label" in stock.info.features else "class_id"].names
        if name != "cub2011":  # whose classes TFDS numbers
            assert set(split.class_names) <= set(names)
    assert read == stock.info.splits.total_num_examples


def fixed(spec):
    return not spec.sizes_differ


def test_ours_comes_before_that_of_tfds(tmp_path):
    write_stock("eurosat/rgb", tmp_path, ["train"])
    assert datasets.prepare("eurosat", data_dir=tmp_path) == (tmp_path / "eurosat/rgb/2.0.0", False)
    assert datasets.state("eurosat", tmp_path) == "by TFDS"
    own = tmp_path / "eurosat" / "1.0.0"
    own.mkdir()
    (own / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=re.escape(f"{own} is damaged")):
        data.load("eurosat", "train", data_dir=tmp_path)


def test_another_version_of_tfds_is_not_taken(tmp_path):
    builder = write_stock("eurosat/rgb", tmp_path, ["train"])
    builder.data_path.rename(builder.data_path.parent / "1.0.0")
    assert datasets.state("eurosat", tmp_path) == "no"
    with pytest.raises(FileNotFoundError, match="prepare it with"):
        data.load("eurosat", "train", data_dir=tmp_path)


def test_the_list_says_who_prepared_it(tmp_path, capsys):
    write_stock("eurosat/rgb", tmp_path, ["train"])
    assert listing.main(["--data-dir", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("eurosat"))
    assert "by TFDS" in line


def test_class_names_of_specs_are_as_many_as_the_stored_classes():
    for spec in datasets.SPECS.values():
        if spec.name == "sop":
            continue
        part = next(part for part in spec.protocol().splits.values())
        stored = len(part.counts) if part.relabel is None else len(part.relabel)
        assert len(set(spec.class_names)) == stored, spec.name


def test_names_of_a_split_follow_its_labels():
    part = specs.Part(("train",), np.ones(2, np.int64), relabel=np.array([1, -1, 0]))
    assert part.class_names("abc") == ("c", "a")
