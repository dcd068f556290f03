"""Own images that a table lists."""

import csv
import logging
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dsb_jax import data
from dsb_jax.data import images, prepare
from dsb_jax.data.builders import listing


def fill(folder, count=12):
    """Images of so many grey levels; odd ones are of class b."""
    rows = []
    for number in range(count):
        path = folder / "pictures" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(np.full((6, 5, 3), 10 * number, np.uint8)))
        rows.append({"path": f"pictures/{number:02d}.png", "label": "ab"[number % 2]})
    return rows


def write(path, rows):
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return path


def run(path):
    return prepare.main(["listing", "--archive", str(path), "--data-dir", str(path.parent / "data")])


def read(path, split):
    found = data.load(f"listing/{path.stem}", split, data_dir=path.parent / "data", image_size=4)
    return sorted(
        (int(example["image"][0, 0, 0]) // 10, found.class_names[example["label"]]) for example in found.source
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_splits_of_a_table(tmp_path, suffix, capsys):
    splits = ["train"] * 7 + ["test"] * 3 + ["Test"] * 2
    rows = [row | {"split": split} for row, split in zip(fill(tmp_path), splits, strict=True)]
    path = write(tmp_path / f"animals{suffix}", rows)
    assert run(path) == 0
    assert "7 train, 5 test" in capsys.readouterr().out
    assert read(path, "train") == [(number, "ab"[number % 2]) for number in range(7)]
    assert read(path, "test") == [(number, "ab"[number % 2]) for number in range(7, 12)]


def test_validation_is_a_split_of_its_own(tmp_path, capsys):
    splits = ["train"] * 7 + ["test"] * 3 + ["val", "Validation"]
    rows = [row | {"split": split} for row, split in zip(fill(tmp_path), splits, strict=True)]
    path = write(tmp_path / "animals.csv", rows)
    assert run(path) == 0
    assert "7 train, 3 test, 2 val" in capsys.readouterr().out
    assert read(path, "test") == [(number, "ab"[number % 2]) for number in range(7, 10)]
    assert read(path, "val") == [(10, "a"), (11, "b")]


def test_validation_is_the_test_where_there_is_no_other(tmp_path):
    splits = ["train"] * 7 + ["val"] * 3 + ["Validation"] * 2
    rows = [row | {"split": split} for row, split in zip(fill(tmp_path), splits, strict=True)]
    path = write(tmp_path / "animals.csv", rows)
    assert run(path) == 0
    assert read(path, "test") == [(number, "ab"[number % 2]) for number in range(7, 12)]
    with pytest.raises(ValueError, match="unknown split of listing/animals 'val'"):
        read(path, "val")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_without_splits_a_fifth_is_drawn(tmp_path, suffix):
    path = write(tmp_path / f"animals{suffix}", fill(tmp_path, 20))
    assert run(path) == 0
    train, test = read(path, "train"), read(path, "test")
    assert sorted(train + test) == [(number, "ab"[number % 2]) for number in range(20)]
    assert [name for _, name in test].count("a") == [name for _, name in test].count("b") == 2


def test_numbers_are_classes_in_their_order(tmp_path):
    rows = [row | {"label": (10, 9, 2)[number % 3]} for number, row in enumerate(fill(tmp_path))]
    path = write(tmp_path / "numbers.parquet", rows)
    assert run(path) == 0
    train = data.load("listing/numbers", "train", data_dir=tmp_path / "data", image_size=4)
    assert train.class_names == ("2", "9", "10")


def test_cells_of_parquet_are_texts(tmp_path):
    rows = [row | {"label": float(number % 3)} for number, row in enumerate(fill(tmp_path))]
    assert run(write(tmp_path / "floats.PARQUET".lower(), rows)) == 0
    assert data.load("listing/floats", "train", data_dir=tmp_path / "data", image_size=4).class_names == ("0", "1", "2")
    assert [listing._text(value) for value in (None, float("nan"), 1.5, 7, "a")] == ["", "", "1.5", "7", "a"]
    assert listing._ordered({"1", "01", "10", "2"}) == ["01", "1", "2", "10"]


def test_headings_may_be_capitals_and_more(tmp_path):
    rows = [{"Path": row["path"], "LABEL": row["label"], "age": 3} for row in fill(tmp_path)]
    assert run(write(tmp_path / "animals.csv", rows)) == 0


def damaged(path, rows, kind):
    match kind:
        case "no_label":
            rows[3]["label"] = rows[5]["label"] = ""
            write(path, rows)
        case "no_path":
            rows[0]["path"] = ""
            write(path, rows)
        case "split":
            write(path, [row | {"split": "dev"} for row in rows])
        case "half_split":
            write(path, [row | {"split": "train" if number else ""} for number, row in enumerate(rows)])
        case "columns":
            write(path, [{"file": row["path"], "label": row["label"]} for row in rows])
        case "cells":
            write(path, rows)
            path.write_text(path.read_text() + "pictures/00.png\n")
        case "duplicate":
            write(path, [*rows, rows[2], rows[4] | {"path": str(path.parent.resolve() / "pictures" / "04.png")}])
        case "contradiction":
            splits = ["train"] * 11 + ["test"]
            rows = [row | {"split": split} for row, split in zip(rows, splits, strict=True)]
            write(path, [*rows, {"path": "pictures/02.png", "label": "b", "split": "test"}])
        case "one_class":
            write(path, [row | {"label": "a"} for row in rows])
        case "missing":
            write(path, [*rows, {"path": "pictures/99.png", "label": "a"}])
        case "single":
            write(path, [*rows, {"path": "pictures/99.png", "label": "c"}])
        case "empty":
            path.write_text("")
        case "header":
            path.write_text("path,label\n")
        case "binary":
            path.write_bytes(b"\xff\xfe\x00path")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_label", "row 4 has no label, row 6 has no label"),
        ("contradiction", "pictures/02.png is listed 2 times"),
        ("one_class", "must have at least two classes, got a"),
        ("no_path", "row 1 has no path"),
        ("split", "row 1 must have a split of train, test, val, validation, got 'dev', row 2 must have"),
        ("half_split", "row 1 must have a split of train, test, val, validation, got ''"),
        ("columns", "must have the columns path and label, got file, label"),
        ("cells", "row 13 has 1 cells, but 2 are named"),
        ("duplicate", "pictures/02.png is listed 2 times, pictures/04.png is listed 2 times"),
        (
            "missing",
            "1 of 13 images cannot be used; mend them, or leave them out with --skip-bad: pictures/99.png: it is",
        ),
        ("single", "class c has one image, but one to train on and one for the test are needed"),
        ("empty", "must have the columns path and label, got none"),
        ("header", "has no rows"),
        ("binary", "is no CSV file"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, kind, message, capsys):
    path = tmp_path / "animals.csv"
    damaged(path, fill(tmp_path), kind)
    assert run(path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.rstrip().splitlines()[-1].rpartition("\r")[2].strip().startswith("error: ")


def test_a_damaged_parquet_file(tmp_path, capsys):
    path = write(tmp_path / "animals.parquet", fill(tmp_path))
    path.write_bytes(path.read_bytes()[:-30])
    assert run(path) == 2
    assert f"{path} is no Parquet file" in capsys.readouterr().err


def test_a_folder_is_no_table(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: archive '{tmp_path}' is no file; wanted is a .csv or .parquet")


def test_another_table_of_the_same_name_is_refused(tmp_path, caplog, capsys):
    caplog.set_level(logging.WARNING)
    rows = fill(tmp_path)
    path = write(tmp_path / "animals.csv", rows)
    assert run(path) == 0
    assert run(path) == 0
    write(path, rows[:-1])
    capsys.readouterr()
    assert run(path) == 2
    assert "listing/animals is in" in capsys.readouterr().err


def test_images_that_changed_since_are_said(tmp_path, caplog):
    path = write(tmp_path / "animals.csv", fill(tmp_path))
    assert run(path) == run(path) == 0
    assert caplog.messages == []
    info = tmp_path / "data" / "listing" / "animals" / "1.0.0" / "dataset_info.json"
    after = info.stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "pictures" / "04.png", ns=(after, after))
    assert run(path) == 0
    said = f"1 image file is newer than the dataset, such as {tmp_path}/pictures/04.png; remove {info.parent} to "
    assert caplog.messages == [f"{said}prepare it again"]
