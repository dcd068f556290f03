"""Scenes from above, a folder for each class: RSSCN7, NWPU-RESISC45 and EuroSAT.

None of them comes with a split. What is called the official one of the first two is a share of each class that is to
be drawn: they are stored whole, as TFDS does, and divided when they are loaded.
"""

from typing import Any

import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles, image_files
from dsb_jax.data.builders.index import Index, Item, shown
from dsb_jax.data.specs import IMAGENET_MEAN, IMAGENET_STD, Part, Protocol, Spec

_RSSCN7 = ("Grass", "Field", "Industry", "RiverLake", "Forest", "Resident", "Parking")
_RESISC45 = (
    "airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge", "chaparral", "church",
    "circular_farmland", "cloud", "commercial_area", "dense_residential", "desert", "forest", "freeway", "golf_course",
    "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake", "meadow", "medium_residential",
    "mobile_home_park", "mountain", "overpass", "palace", "parking_lot", "railway", "railway_station",
    "rectangular_farmland", "river", "roundabout", "runway", "sea_ice", "ship", "snowberg", "sparse_residential",
    "stadium", "storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland",
)  # fmt: skip
_EUROSAT = {
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}


class _Scenes(FromFiles, skip_registration=True):
    """``FOLDER/PREFIX<number>.jpg``, all of them in the split ``train``.

    A number that is missing is found missing when it is read, as of any list of images.

    Attributes:
      folders: of the classes, by their names.
      prefixes: of the names of their images, likewise.
      digits: to which numbers are filled up with zeros.
      inside: folders that may hold those of the classes.
    """

    folders: dict[str, str]
    prefixes: dict[str, str]
    digits: int = 1
    inside: tuple[str, ...]
    image_shape: tuple[int, int, int]

    def _further_features(self) -> dict[str, Any]:
        return {"filename": tfds.features.Text()}

    def _index(self, archive: Archive) -> Index:
        archive = archive.within(next(iter(self.folders.values())), *self.inside)
        if missing := [folder for folder in self.folders.values() if not archive.has(folder)]:
            raise FileNotFoundError(f"{', '.join(missing)} of {len(self.folders)} class folders are not in {archive}")
        items = []
        for label, (name, count) in enumerate(zip(self.folders, self.images_per_class["train"], strict=True)):
            wanted = [self._file(name, number) for number in range(1, count + 1)]
            self._refuse_others(archive, name, wanted)
            # In the order of their names, not of their numbers: what is drawn of them depends on it.
            items += [Item(path, label, features={"filename": path.rpartition("/")[2]}) for path in sorted(wanted)]
        return Index(list(self.folders), {"train": items}, archive)

    def _file(self, name: str, number: int) -> str:
        return f"{self.folders[name]}/{self.prefixes[name]}{number:0{self.digits}d}.jpg"

    def _refuse_others(self, archive: Archive, name: str, wanted: list[str]) -> None:
        """Raises unless a class folder has images of the known names alone."""
        others = sorted(set(image_files(archive, self.folders[name], (".jpg",))) - set(wanted))
        if others:
            raise ValueError(
                f"{shown(others)} in {archive} are among the images of {name}, whose names are "
                f"{wanted[0].rpartition('/')[2]} … {wanted[-1].rpartition('/')[2]}: of which class are they?"
            )


class Rsscn7(_Scenes, skip_registration=True):
    """2,800 images of 400x400 from Google Earth, 7 classes at four scales each (Zou et al., 2015)."""

    name = "rsscn7"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder of aGrass, bField, cIndustry, dRiverLake, eForest, fResident and gParking, or RSSCN7-master.zip in "
        "a folder, of https://github.com/palewithout/RSSCN7"
    )
    image_shape = (400, 400, 3)
    images_per_class = {"train": specs.alike(400, 7)}  # noqa: RUF012  (a constant of the class)
    folders = {name: letter + name for letter, name in zip("abcdefg", _RSSCN7, strict=True)}  # noqa: RUF012
    prefixes = dict(zip(_RSSCN7, "abcdefg", strict=True))  # noqa: RUF012
    digits = 3
    inside = ("RSSCN7-master", "RSSCN7")


class Resisc45(_Scenes, skip_registration=True):
    """31,500 images of 256x256, 45 classes of 700 (Cheng et al., 2017), with name, version and features of TFDS.

    Only the order of the examples is another than in a dataset that the stock builder wrote, and therefore what is
    drawn of them.
    """

    name = "resisc45"
    VERSION = tfds.core.Version("3.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder NWPU-RESISC45, unpacked from NWPU-RESISC45.rar of https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs, "
        "or NWPU-RESISC45.zip in a folder, of https://huggingface.co/datasets/torchgeo/resisc45"
    )
    image_shape = (256, 256, 3)
    images_per_class = {"train": specs.alike(700, 45)}  # noqa: RUF012
    folders = {name: name for name in _RESISC45}  # noqa: RUF012
    prefixes = {name: f"{name}_" for name in _RESISC45}  # noqa: RUF012
    digits = 3
    inside = ("NWPU-RESISC45",)


class Eurosat(_Scenes, skip_registration=True):
    """27,000 images of 64x64 from Sentinel-2 in 10 classes, red, green and blue (Helber et al., 2019).

    The features are those of TFDS's ``eurosat/rgb``.
    """

    name = "eurosat"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "EuroSAT.zip in a folder, or what it unpacks to, the folder 2750 of AnnualCrop … SeaLake, of "
        "https://github.com/phelber/EuroSAT (EuroSAT_RGB.zip of https://zenodo.org/records/7711810 is the same)"
    )
    image_shape = (64, 64, 3)
    images_per_class = {"train": list(_EUROSAT.values())}  # noqa: RUF012
    folders = {name: name for name in _EUROSAT}  # noqa: RUF012
    prefixes = {name: f"{name}_" for name in _EUROSAT}  # noqa: RUF012
    inside = ("2750", "EuroSAT_RGB", "EuroSAT", "EuroSAT/2750")


def _spec(builder: type[_Scenes], title: str, share: float, description: str, **facts: Any) -> Spec:
    """A dataset of which a share of each class trains, and the others test."""
    counts = builder.images_per_class["train"]
    splits = {
        split: Part(
            ("train",), specs.drawn_counts(counts, share, first=first), choose=specs.drawn(share, first=first, seed=0)
        )
        for split, first in (("train", True), ("test", False))
    }
    return Spec(
        name=builder.name,
        title=title,
        stored_as=builder.name,
        protocols={"classification": Protocol(description, splits)},
        image_shape=builder.image_shape,
        class_names=tuple(builder.folders),
        **facts,
    )


SPECS = (
    _spec(
        Rsscn7,
        "RSSCN7",
        0.5,
        "half of each class, drawn at random, and the other half (Sec. D.7)",
        # None are published.
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="not stated",
        gigabytes=0.37,
    ),
    _spec(
        Resisc45,
        "NWPU-RESISC45",
        0.2,
        "20 % of each class, drawn at random, and the other 80 % (Sec. D.7)",
        # Of all pixels, as several implementations publish them.
        mean=(0.3680, 0.3810, 0.3436),
        std=(0.2035, 0.1854, 0.1849),
        licence="not stated; the authors ask to be cited",
        gigabytes=0.43,
    ),
    _spec(
        Eurosat,
        "EuroSAT (RGB)",
        0.8,
        "80 % of each class, drawn at random, and the other 20 %, as Helber et al., 2019",
        # Of all pixels, as several implementations publish them.
        mean=(0.3444, 0.3803, 0.4078),
        std=(0.2037, 0.1366, 0.1148),
        licence="MIT",
        gigabytes=0.09,
    ),
)
