"""OIA-ODIR: a class for every eye from its keywords, and a test of other patients."""

import pathlib
import shutil
import tarfile
import zipfile
from xml.sax import saxutils

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dsb_jax.data.archive import Archive
from dsb_jax.data.builders import fundus
from dsb_jax.data.builders.fundus import Odir

LISTS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "splits.tar.xz"
LETTERS = "NDGCAHM"
HEADER = ["ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus", "Left-Diagnostic Keywords"]
HEADER += ["Right-Diagnostic Keywords", *LETTERS, "O"]

# What is said of both eyes, the patient's letters, and the class of either eye.
CASES = [
    ("normal fundus", "lens dust，normal fundus", "N", "NN"),
    ("normal fundus", "moderate non proliferative retinopathy", "D", "ND"),
    ("suspected diabetic retinopathy", "severe proliferative diabetic retinopathy", "D", "DD"),
    ("mild nonproliferative retinopathy，drusen", "laser spot", "DO", "D-"),
    ("suspected glaucoma", "glaucoma，mild nonproliferative retinopathy", "DG", "GG"),
    ("cataract, glaucoma", "cataract", "GC", "CC"),
    ("wet age-related macular degeneration，cataract", "low image quality", "CA", "A-"),
    ("hypertensive retinopathy，pathological myopia", "Hypertensive retinopathy", "HM", "HH"),
    ("myopia retinopathy", "myopic maculopathy，cataract", "CM", "MM"),
    ("macular epiretinal membrane，normal fundus", "tessellated fundus", "O", "--"),
]
PATIENTS = 10 * len(CASES)


def row(patient):
    left, right, letters, _ = CASES[patient % len(CASES)]
    flags = ["1" if letter in letters else "0" for letter in (*LETTERS, "O")]
    return [str(patient), "50", "Male", f"{patient}_left.jpg", f"{patient}_right.jpg", left, right, *flags]


def write_xlsx(path, rows):
    """As Excel does: numbers in place, texts in a list beside them, some of them in parts."""
    strings, lines = [], []
    for number, cells in enumerate(rows, start=1):
        line = ""
        for at, cell in enumerate(cells):
            place = f'r="{chr(ord("A") + at)}{number}"'
            if cell.isdigit():
                line += f"<c {place}><v>{cell}</v></c>"
            elif cell:
                line += f'<c {place} t="s"><v>{len(strings)}</v></c>'
                first, second = (saxutils.escape(part) for part in (cell[:3], cell[3:]))
                parts = (
                    f"<t>{first}{second}</t>",
                    f"<r><t>{first}</t></r><r><rPr/><t>{second}</t></r><rPh><t>x</t></rPh>",
                )
                strings.append(f"<si>{parts[len(strings) % 2]}</si>")
        lines.append(f'<row r="{number}">{line}</row>')
    lines.append('<row r="999"><c r="A999" s="2"/></row>')
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("xl/sharedStrings.xml", f"<sst {space}>{''.join(strings)}</sst>")
        sheet = f"<worksheet {space}><sheetData>{''.join(lines)}</sheetData></worksheet>"
        file.writestr("xl/worksheets/sheet1.xml", sheet)


def write_images(folder, patients):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for patient in patients:
        for side in ("left", "right"):
            image = rng.integers(0, 256, (8 + patient % 3, 10, 3), np.uint8)
            assert cv2.imwrite(str(folder / f"{patient}_{side}.jpg"), image)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The numbers of patients of the archives below."""
    monkeypatch.setattr(Odir, "official", Odir.official._replace(patients=PATIENTS))
    monkeypatch.setattr(Odir, "kaggle", Odir.kaggle._replace(patients=PATIENTS))
    monkeypatch.setattr(Odir, "tests", tuple(test._replace(patients=len(CASES)) for test in Odir.tests))


@pytest.fixture
def kaggle(tmp_path):
    top = tmp_path / "archive" / "ODIR-5K" / "ODIR-5K"
    write_xlsx(top / "data.xlsx", [HEADER, *map(row, range(PATIENTS))])
    write_images(top / "Training Images", range(PATIENTS))
    (top / "Testing Images").mkdir()
    return top


@pytest.fixture
def official(tmp_path):
    top = tmp_path / "official" / "OIA-ODIR"
    first = 0
    for part, count in ((Odir.official, PATIENTS), *((test, len(CASES)) for test in Odir.tests)):
        patients = range(first, first + count)
        write_xlsx(top / part.table, [HEADER, *map(row, patients)])
        write_images(top / part.images, patients)
        first += count
    return top


def prepare(archive, data_dir):
    """The dataset, prepared and read back."""
    builder = Odir(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
    )
    return tfds.builder_from_directory(data_dir / "odir" / "1.0.0")


def eyes(folder, split):
    """Patient, letter and pixels of every example."""
    return [
        (int(example["patient"]), LETTERS[example["label"]], example["image"])
        for example in folder.as_data_source(split)
    ]


def wanted(patients):
    return sorted(
        (patient, letter) for patient in patients for letter in CASES[patient % len(CASES)][3] if letter != "-"
    )


def test_every_eye_has_the_class_of_its_own_keywords(kaggle, tmp_path):
    folder = prepare(kaggle.parents[1], tmp_path / "data")
    assert sorted(folder.info.splits) == ["test", "train"]
    assert tuple(folder.info.features["label"].names) == tuple(fundus._CLASSES.values())
    read = {split: eyes(folder, split) for split in ("train", "test")}
    patients = {split: {patient for patient, _, _ in found} for split, found in read.items()}
    assert not patients["train"] & patients["test"]
    for split, found in read.items():
        assert sorted((patient, letter) for patient, letter, _ in found) == wanted(patients[split])
        for patient, letter, image in found[:9]:
            sides = [
                side
                for side, own in zip(("left", "right"), CASES[patient % len(CASES)][3], strict=True)
                if own == letter
            ]
            files = [cv2.imread(str(kaggle / "Training Images" / f"{patient}_{side}.jpg"))[..., ::-1] for side in sides]
            assert any(np.array_equal(image, file) for file in files)
    everyone = patients["train"] | patients["test"]
    assert everyone == {patient for patient in range(PATIENTS) if CASES[patient % len(CASES)][3] != "--"}
    # By a patient's rarest class: 10 are normal, 30 diabetic, 10 of each of the others.
    assert len(patients["test"]) == 3 + 9 + 5 * 3


def test_the_official_sets(official, kaggle, tmp_path):
    folder = prepare(official, tmp_path / "data")
    assert sorted(folder.info.splits) == ["official_test", "test", "train"]
    ours = [(patient, letter) for patient, letter, _ in eyes(folder, "official_test")]
    assert sorted(ours) == wanted(range(PATIENTS, PATIENTS + 2 * len(CASES)))
    same = prepare(kaggle, tmp_path / "kaggle")
    for split in ("train", "test"):
        for first, second in zip(eyes(folder, split), eyes(same, split), strict=True):
            assert first[:2] == second[:2]
    shutil.rmtree(official / "Off-site Test Set")
    shutil.rmtree(official / "On-site Test Set")
    alone = prepare(official.parent, tmp_path / "alone")
    assert sorted(alone.info.splits) == ["test", "train"]


def rewrite(change):
    """Damage to the rows of the table."""
    return lambda top: write_xlsx(top / "data.xlsx", change([HEADER, *map(row, range(PATIENTS))]))


def without_column(rows):
    at = HEADER.index("Right-Diagnostic Keywords")
    return [cells[:at] + cells[at + 1 :] for cells in rows]


def in_another_language(rows):
    return [rows[0], *([*cells[:5], "白内障", "正常眼底", *cells[7:]] for cells in rows[1:])]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda top: (top / "data.xlsx").unlink(),
            FileNotFoundError,
            "there is no Training Set/Annotation/training annotation (English).xlsx, and data.xlsx is not in {top}",
        ),
        (
            lambda top: shutil.rmtree(top / "Training Images"),
            FileNotFoundError,
            "the folder Training Images is not in {top}",
        ),
        (
            lambda top: (top / "Training Images" / "1_left.jpg").unlink(),
            ValueError,
            "1 of 160 images cannot be used; mend them, or leave them out with --skip-bad: "
            "Training Images/1_left.jpg: it is missing",
        ),
        (
            lambda top: (top / "data.xlsx").write_bytes(b"<html>"),
            ValueError,
            "{top}/data.xlsx is no .xlsx file with a sheet of text: File is not a zip file",
        ),
        (rewrite(lambda rows: []), ValueError, "{top}/data.xlsx has no rows"),
        (rewrite(without_column), ValueError, "but lacks Right-Diagnostic Keywords"),
        (
            rewrite(lambda rows: rows[:-1]),
            ValueError,
            "{top}/data.xlsx must be of 100 patients, but has 99 rows of 99",
        ),
        (
            rewrite(lambda rows: [*rows[:-1], rows[1]]),
            ValueError,
            "{top}/data.xlsx must be of 100 patients, but has 100 rows of 99",
        ),
        (
            rewrite(in_another_language),
            ValueError,
            "{top}/data.xlsx contradicts itself about 80 of 100 patients: the keywords of patient 1 mean none of the "
            "diseases, but the columns say D",
        ),
    ],
)
def test_what_is_wrong_is_named(kaggle, tmp_path, damage, error, message):
    damage(kaggle)
    with pytest.raises(error) as raised:
        prepare(kaggle, tmp_path / "data")
    assert message.format(top=kaggle) in str(raised.value)


def test_one_of_the_official_test_sets_alone_is_not_enough(official, tmp_path):
    shutil.rmtree(official / "On-site Test Set")
    with pytest.raises(FileNotFoundError, match=r"On-site Test Set/Annotation/on-site test annotation .* is not in "):
        prepare(official, tmp_path / "data")


def test_a_word_that_is_not_known_is_no_contradiction(kaggle, tmp_path):
    rows = [HEADER, *map(row, range(PATIENTS))]
    rows[2][HEADER.index("Right-Diagnostic Keywords")] = "DR"
    write_xlsx(kaggle / "data.xlsx", rows)
    folder = prepare(kaggle, tmp_path / "data")
    assert sum(split.num_examples for split in folder.info.splits.values()) == 159


def spec_protocols():
    (spec,) = fundus.SPECS
    return spec.protocols


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The index of the published annotations."""
    if not LISTS.is_file():
        pytest.skip(f"lists are not at {LISTS}")
    folder = tmp_path_factory.mktemp("odir")
    (folder / "Training Images").mkdir()
    with tarfile.open(LISTS) as tar:
        (folder / "data.xlsx").write_bytes(tar.extractfile("splits/ODIR-5K/annotations.xlsx").read())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Odir, "kaggle", Odir.kaggle._replace(patients=3500))
        yield Odir(data_dir=folder)._index(Archive(folder))


def test_the_published_annotations_give_the_published_counts(real):
    labels = {split: np.array([item.label for item in items]) for split, items in real.splits.items()}
    for split, part in spec_protocols()["full"].splits.items():
        assert np.bincount(labels[split]).tolist() == part.counts.tolist()
    both = np.bincount(np.concatenate(list(labels.values())))
    assert both.tolist() == [3095, 1659, 294, 310, 273, 193, 268]
    assert spec_protocols()["official"].splits["train"].counts.tolist() == both.tolist()


def test_no_patient_is_on_both_sides(real):
    train, test = ({item.features["patient"] for item in real.splits[split]} for split in ("train", "test"))
    assert (len(train), len(test)) == (2358, 1011)
    assert not train & test
    # The paper's 103 eyes of each class are as many as there are patients with hypertension.
    hypertension = fundus._LABELS["H"]
    patients = {
        item.features["patient"] for items in real.splits.values() for item in items if item.label == hypertension
    }
    assert len(patients) == 103


def test_the_balanced_version(real):
    for split, part in spec_protocols()["balanced"].splits.items():
        labels = np.array([item.label for item in real.splits[split]])
        rows = part.choose(labels, 0)
        count = {"train": 103, "test": 46}[split]
        assert np.bincount(labels[rows]).tolist() == [count] * 7 == part.counts.tolist()
        np.testing.assert_array_equal(rows, part.choose(labels, 5))


def test_the_official_protocols_are_of_the_official_sets():
    protocols = spec_protocols()
    for name in ("official", "official_balanced"):
        assert protocols[name].splits["train"].stored == ("train", "test")
        assert protocols[name].splits["test"].stored == ("official_test",)
    assert next(iter(protocols)) == "full"
    assert [name for name, protocol in protocols.items() if protocol.long_tailed] == ["full", "official"]
