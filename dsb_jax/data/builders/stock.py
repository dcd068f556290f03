"""Datasets that TFDS prepares under other names than ours, or with more features, and that are read from either."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a dataset lies on disk.

    Attributes:
      folder: below the data directory, with the version.
      label: the feature that is the label.
      splits: for a split of our builder those that hold its images, where they are called otherwise.
    """

    folder: str
    label: str = "label"
    splits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


# By the names of our builders. Labels mean the same; the order of the images is another, and so is what is drawn of
# them. What is not here has the name, version, features and splits of TFDS already, or is not in TFDS.
STOCK: dict[str, Stored] = {
    "cars196": Stored("cars196/2.1.0"),
    "cub2011": Stored("caltech_birds2011/0.2.0"),
    "eurosat": Stored("eurosat/rgb/2.0.0"),
    "sop": Stored("stanford_online_products/1.0.0", "class_id", {"train": ("train", "test")}),
}
