"""OIA-ODIR, photographs of the fundus of both eyes of 5,000 patients (Li et al., 2021), known as ODIR-5K as well."""

import io
import re
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tensorflow_datasets as tfds

from dsb_jax.data import specs
from dsb_jax.data.archive import Archive
from dsb_jax.data.builders.from_files import FromFiles
from dsb_jax.data.builders.index import Index, Item
from dsb_jax.data.specs import IMAGENET_MEAN, IMAGENET_STD, Part, Protocol, Spec

# By the letters of the annotations; "O", other diseases, is no class (Sec. D.6.1).
_CLASSES = {
    "N": "normal",
    "D": "diabetes",
    "G": "glaucoma",
    "C": "cataract",
    "A": "age-related macular degeneration",
    "H": "hypertension",
    "M": "myopia",
}
_LABELS = {letter: label for label, letter in enumerate(_CLASSES)}

# What the diagnoses of each disease contain, the rarest of them first: an eye that has several is of the first.
_DISEASES = {
    "H": ("hypertensive retinopathy",),
    "M": ("pathological myopia", "myopia retinopathy", "myopic retinopathy", "myopic maculopathy"),
    "A": ("age-related macular degeneration",),
    "C": ("cataract",),
    "G": ("glaucoma",),
    "D": ("diabetic retinopathy", "proliferative retinopathy"),
}
# Keywords that speak of the photograph.
_NO_DIAGNOSES = {
    "anterior segment image",
    "image offset",
    "lens dust",
    "low image quality",
    "no fundus image",
    "optic disk photographically invisible",
}
_SIDES = ("Left", "Right")
_TEST_SHARE = 0.3  # of the patients; 1,500 of the 5,000 are in the official test sets
_MOST_CONTRADICTIONS = 0.01  # of the patients, for a word that the published annotations do not have


class _Set(NamedTuple):
    """A part of the archive: its table, the folder of its images, and how many patients it has."""

    table: str
    images: str
    patients: int


class _Patient(NamedTuple):
    """The images of a patient's eyes with the letters of their classes, of those that have one."""

    id: str
    eyes: list[tuple[str, str]]

    @property
    def letter(self) -> str:
        """The rarest class among the eyes."""
        return min((letter for _, letter in self.eyes), key=[*_DISEASES, "N"].index)


class Odir(FromFiles, skip_registration=True):
    """Eyes of 7 classes: normal, diabetes, glaucoma, cataract, macular degeneration, hypertension and myopia.

    The classes of the annotations are those of patients; here every eye has one, by the diagnostic keywords of its own.
    An eye is normal if "normal fundus" is all that is said of it; else it is of the one of the six diseases that is
    named, suspected or not, and of the rarest of them where there are several: hypertension before myopia, macular
    degeneration, cataract, glaucoma and diabetes. Other findings beside one of these do not count. Eyes that have
    other findings alone are left out, and so are those of which nothing is said but that the photograph is poor;
    "lens dust" and "low image quality" beside a diagnosis change nothing.

    Of the 3,500 patients of the official training set, 30 % are drawn for ``test`` with a fixed seed, from those of
    each class, both eyes of a patient on the same side; the others are ``train``. The labels of the 1,500 patients of
    the official test sets are not in every distribution: where they are, their eyes are ``official_test``.
    """

    name = "odir"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder OIA-ODIR of Training Set, Off-site Test Set and On-site Test Set (the last two may be missing), of "
        "https://github.com/nkicsl/OIA-ODIR; or ODIR-5K of data.xlsx and Training Images, of "
        "https://www.kaggle.com/datasets/andrewmvd/ocular-disease-recognition-odir5k"
    )
    official = _Set("Training Set/Annotation/training annotation (English).xlsx", "Training Set/Images", 3500)
    kaggle = _Set("data.xlsx", "Training Images", 3500)
    tests = (
        _Set("Off-site Test Set/Annotation/off-site test annotation (English).xlsx", "Off-site Test Set/Images", 500),
        _Set("On-site Test Set/Annotation/on-site test annotation (English).xlsx", "On-site Test Set/Images", 1000),
    )

    def _further_features(self) -> dict[str, Any]:
        return {"patient": tfds.features.Text()}

    def _index(self, archive: Archive) -> Index:
        try:
            archive = archive.within(self.official.table, "OIA-ODIR")
            training = self.official
        except FileNotFoundError:
            try:
                archive = archive.within(self.kaggle.table, "ODIR-5K/ODIR-5K", "ODIR-5K")
            except FileNotFoundError as error:
                raise FileNotFoundError(f"there is no {self.official.table}, and {error}") from None
            training = self.kaggle
        patients = _patients(archive, training)
        chosen = _drawn(patients)
        splits = {
            split: _items([patient for patient in patients if (patient.id in chosen) == is_test])
            for split, is_test in (("train", False), ("test", True))
        }
        if training is self.official and any(archive.has(test.table) for test in self.tests):
            splits["official_test"] = [item for test in self.tests for item in _items(_patients(archive, test))]
        return Index(list(_CLASSES.values()), splits, archive)


def _patients(archive: Archive, part: _Set) -> list[_Patient]:
    """The patients of a table that have an eye of one of the classes."""
    where = f"{archive}/{part.table}"
    names, *cells = _table(archive, part.table)
    wanted = ["ID", *(f"{side}-{kind}" for side in _SIDES for kind in ("Fundus", "Diagnostic Keywords")), *_DISEASES]
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"{where} must have the columns {', '.join(wanted)}, but lacks {', '.join(missing)}")
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    if len(rows) != part.patients or len({row["ID"] for row in rows}) != len(rows):
        raise ValueError(
            f"{where} must be of {part.patients:,} patients, but has {len(rows):,} rows of "
            f"{len({row['ID'] for row in rows}):,}"
        )
    if not archive.has(part.images):
        raise FileNotFoundError(f"the folder {part.images} is not in {archive}")
    _require_agreement(where, rows)
    patients = []
    for row in rows:
        eyes = [
            (f"{part.images}/{row[f'{side}-Fundus']}", _letter(row[f"{side}-Diagnostic Keywords"])) for side in _SIDES
        ]
        if eyes := [(path, letter) for path, letter in eyes if letter]:
            patients.append(_Patient(row["ID"], eyes))
    return patients


def _require_agreement(where: str, rows: list[dict[str, str]]) -> None:
    """What keywords say of eyes must be what the columns say of patients: else they are in another language, say."""
    wrong = []
    for row in rows:
        stated = {letter for letter in _DISEASES if row[letter] not in ("", "0")}
        read = {letter for side in _SIDES for letter in _diseases(row[f"{side}-Diagnostic Keywords"])}
        if stated != read:
            wrong.append((row["ID"], _shown(read), _shown(stated)))
    if len(wrong) > _MOST_CONTRADICTIONS * len(rows):
        patient, keywords, columns = wrong[0]
        raise ValueError(
            f"{where} contradicts itself about {len(wrong):,} of {len(rows):,} patients: the keywords of patient "
            f"{patient} mean {keywords}, but the columns say {columns}"
        )


def _shown(letters: Iterable[str]) -> str:
    return " and ".join(letter for letter in _CLASSES if letter in letters) or "none of the diseases"


def _keywords(text: str) -> set[str]:
    """The keywords, which are separated by commas: most of them Chinese ones."""
    return {keyword.strip().lower() for keyword in re.split("[,，]", text)} - {""}


def _diseases(text: str) -> list[str]:
    """The letters of the diseases that keywords name, the rarest first."""
    keywords = _keywords(text)
    return [letter for letter, words in _DISEASES.items() if any(word in key for word in words for key in keywords)]


def _letter(text: str) -> str:
    """The class of an eye, or nothing.

    Example:
      >>> _letter("cataract，hypertensive retinopathy"), _letter("lens dust, normal fundus"), _letter("drusen")
      ('H', 'N', '')
    """
    if diseases := _diseases(text):
        return diseases[0]
    return "N" if _keywords(text) - _NO_DIAGNOSES == {"normal fundus"} else ""


def _drawn(patients: list[_Patient]) -> set[str]:
    """The patients that are for the test."""
    chosen = set()
    for letter, label in _LABELS.items():
        members = [patient.id for patient in patients if patient.letter == letter]
        order = np.random.default_rng([0, label]).permutation(len(members))
        chosen |= {members[row] for row in order[: round(_TEST_SHARE * len(members))]}
    return chosen


def _items(patients: list[_Patient]) -> list[Item]:
    return [
        Item(path, _LABELS[letter], features={"patient": patient.id})
        for patient in patients
        for path, letter in patient.eyes
    ]


def _table(archive: Archive, name: str) -> list[list[str]]:
    """The cells of the first sheet of an ``.xlsx`` file as text; every row has as many as the first."""
    content = archive.read(name)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            strings = [
                "".join(text.text or "" for text in (*entry.findall("{*}t"), *entry.findall("{*}r/{*}t")))
                for entry in ElementTree.fromstring(file.read("xl/sharedStrings.xml")).findall("{*}si")
            ]
            rows = [
                {re.sub(r"\d", "", cell.attrib["r"]): _cell(cell, strings) for cell in row.findall("{*}c")}
                for row in ElementTree.fromstring(file.read("xl/worksheets/sheet1.xml")).findall("{*}sheetData/{*}row")
            ]
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError) as error:
        raise ValueError(f"{archive}/{name} is no .xlsx file with a sheet of text: {error}") from error
    rows = [row for row in rows if any(row.values())]  # Excel leaves rows behind that were emptied
    if not rows:
        raise ValueError(f"{archive}/{name} has no rows")
    return [[row.get(column, "") for column in rows[0]] for row in rows]


def _cell(cell: ElementTree.Element, strings: list[str]) -> str:
    value = cell.findtext("{*}v", default="")
    return (strings[int(value)] if cell.get("t") == "s" else value).strip()


# Of the 3,500 patients, as Odir says.
_TRAIN, _TEST = np.array([2150, 1161, 210, 218, 194, 136, 189]), np.array([945, 498, 84, 92, 79, 57, 79])
# OIA-ODIR-B, Fig. 10: 103 and 46 are the patients with hypertension in the official training and test sets.
_BALANCED = {"train": specs.alike(103, 7), "test": specs.alike(46, 7)}


def _protocols() -> dict[str, Protocol]:
    everything = ("train", "test")
    official_test = np.rint((_TRAIN + _TEST) * 1500 / 3500).astype(np.int64)
    return {
        "full": Protocol(
            "the official training set, 70 % of its patients and the others",
            {"train": Part(("train",), _TRAIN), "test": Part(("test",), _TEST)},
            long_tailed=True,
        ),
        "balanced": Protocol(
            "OIA-ODIR-B: 103 eyes of each class and 46 of other patients",
            {
                split: Part((split,), counts, choose=specs.thinned(counts, seed=0))
                for split, counts in _BALANCED.items()
            },
        ),
        "official": Protocol(
            "the official training set and both official test sets",
            {"train": Part(everything, _TRAIN + _TEST), "test": Part(("official_test",), official_test)},
            long_tailed=True,
        ),
        "official_balanced": Protocol(
            "OIA-ODIR-B of the official sets: 103 eyes of each class and 46",
            {
                split: Part(stored, counts, choose=specs.thinned(counts, seed=0))
                for (split, counts), stored in zip(_BALANCED.items(), (everything, ("official_test",)), strict=True)
            },
        ),
    }


SPECS = (
    Spec(
        name="odir",
        title="OIA-ODIR",
        stored_as="odir",
        protocols=_protocols(),
        # A typical size; cameras differ.
        image_shape=(1728, 2592, 3),
        sizes_differ=True,
        # None are published.
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="not stated; it “follows the ethical and privacy rules of China”",
        gigabytes=1.6,
        profile="those of the official test sets are in proportion to the training set's, all others are true",
        class_names=tuple(_CLASSES.values()),
    ),
)
