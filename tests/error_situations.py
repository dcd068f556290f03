"""The situations that the files in ``errors`` begin with: what a user has in a folder before the command is typed."""

import fcntl
import importlib
import io
import json
import os
import pathlib
import runpy
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax import data
from dsb_jax.training import checkpoints, workdir

ROOT = pathlib.Path(__file__).parents[1]
SMALL = "model=lenet,epochs=1,sample_space=False,devices=1"

# ---- Files of the toolkit's inputs, each of which is written where its name is typed.

LABELS = np.repeat([0, 1, 2], [60, 30, 40])
POINTS = 4 * np.eye(3, 8)[LABELS] + np.random.default_rng(0).normal(size=(130, 8))
NAMES = np.array(["ant", "bee", "cow"])[LABELS]


def with_one(value):
    points = POINTS.copy()
    points[7, 2] = value
    return points


ARRAYS = {
    "bugs.npz": {"features": POINTS, "labels": NAMES},
    "nan.npz": {"features": with_one(np.nan), "labels": NAMES},
    "inf.npz": {"features": with_one(np.inf), "labels": NAMES},
    "huge.npz": {"features": with_one(1e200), "labels": NAMES},
    "wide.npz": {"features": np.hstack([POINTS, POINTS]), "labels": NAMES},
    "fewer.npz": {"features": POINTS[:100], "labels": NAMES[:100]},
    "other_order.npz": {"features": POINTS, "labels": NAMES[::-1]},
    "flat.npz": {"features": POINTS[:, 0], "labels": NAMES},
    "no_rows.npz": {"features": POINTS[:0], "labels": NAMES[:0]},
    "no_columns.npz": {"features": POINTS[:, :0], "labels": NAMES},
    "few_labels.npz": {"features": POINTS, "labels": NAMES[:100]},
    "real_labels.npz": {"features": POINTS, "labels": LABELS / 2},
    "objects.npz": {"features": POINTS.astype(object), "labels": NAMES},
    "object_labels.npz": {"features": POINTS, "labels": NAMES.astype(object)},
    "texts.npz": {"features": POINTS.astype(str), "labels": NAMES},
    "complex.npz": {"features": POINTS + 0j, "labels": NAMES},
    "unusual.npz": {"x_train": POINTS, "y_train": NAMES},
    "no_arrays.npz": {},
    "one_each.npz": {"features": POINTS[[0, 60, 90]], "labels": NAMES[[0, 60, 90]]},
    "one_class.npz": {"features": POINTS[:60], "labels": NAMES[:60]},
}
TABLES = {
    "bugs.parquet": {f"f{place}": column for place, column in enumerate(POINTS.T)} | {"species": NAMES},
    "lists.parquet": {"embedding": list(POINTS), "label": NAMES},
    "ragged.parquet": {"embedding": [[1.0, 2.0], [3.0]], "label": ["a", "b"]},
    "gaps.parquet": {"embedding": [[1.0, 2.0], None], "label": ["a", "b"]},
}
TEXTS = {
    "empty.npz": "",
    "empty.parquet": "",
    "empty.csv": "",
    "empty.jsonl": "",
    "note.npz": "remember the milk\n",
    "note.parquet": "remember the milk\n",
    "note.txt": "remember the milk\n",
    "note.json": "{",
    "note.ply": "remember the milk\n",
    "note.xyz": "1 2 3\n1 2 x\n",
    "note.safetensors": "remember the milk\n",
    "names.csv": "a,b\n1,2\n",
    "two_of_three.csv": "class,accuracy\nant,0.9\nbee,0.8\n",
    "misspelt_class.csv": "class,accuracy\nant,0.9\nbea,0.8\ncow,1\n",
    "a_word.csv": "class,accuracy\nant,0.9\nbee,high\ncow,1\n",
    "per_cent.csv": "class,accuracy\nant,90\nbee,80\ncow,100\n",
    "fractions.csv": "class,accuracy\nant,0.9\nbee,0.8\ncow,1\n",
    "twice.csv": "class,accuracy\nant,0.9\nbee,0.8\ncow,1\ncow,1\n",
    "other_heading.csv": "class,acc\nant,0.9\nbee,0.8\ncow,1\n",
    "one_parent.csv": "child,parent\nant,insect\nbee,insect\ncow,insect\n",
    "no_cow.csv": "child,parent\nant,insect\nbee,mammal\n",
    "no_json.jsonl": '{"class": "ant", "features": [1, 2]}\nant 1 2\n',
    "no_features.jsonl": '{"class": "ant", "features": [1, 2]}\n{"class": "ant"}\n',
    "another_length.jsonl": '{"class": "ant", "features": [1, 2]}\n{"class": "ant", "features": [1]}\n',
    "no_split.csv": "path,label,split\na.png,a,train\nb.png,b,dev\n",
    "no_images.csv": "path,label\n1.png,a\n2.png,a\n3.png,b\n4.png,b\n",
    "headings.csv": "path,label\n",
}


def write(name, folder):
    """Writes a file of the tables above, if it is one."""
    if name in ARRAYS:
        np.savez(folder / name, **ARRAYS[name])
    elif name in TABLES:
        pq.write_table(pa.table(TABLES[name]), folder / name)
    elif name in TEXTS:
        (folder / name).write_text(TEXTS[name])


# ---- What a file alone does not make.


def a_cut_file(folder, monkeypatch, stack):
    write("bugs.npz", folder)
    (folder / "cut.npz").write_bytes((folder / "bugs.npz").read_bytes()[:5000])


def a_damaged_file(folder, monkeypatch, stack):
    write("bugs.npz", folder)
    content = bytearray((folder / "bugs.npz").read_bytes())
    content[2000] ^= 1
    (folder / "damaged.npz").write_bytes(content)


def labels_beside(folder, monkeypatch, stack):
    np.save(folder / "points.npy", POINTS)
    np.save(folder / "points_labels.npy", NAMES[:10])


def a_collection(folder, monkeypatch, stack):
    """Of samples of two numbers, by the command."""
    (folder / "first.jsonl").write_text('{"class": "ant", "features": [1, 2]}\n' * 3)
    toolkit = importlib.import_module("dsb_jax.toolkit.__main__")
    assert toolkit.main(["collect", "first.jsonl", "--state", "state.npz"]) == 0


def an_empty_stdin(folder, monkeypatch, stack):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


def an_empty_folder(folder, monkeypatch, stack):
    (folder / "empty").mkdir()


def classes_without_images(folder, monkeypatch, stack):
    for name in ("ant", "bee"):
        (folder / "photos" / name).mkdir(parents=True)


def images_that_are_none(folder, monkeypatch, stack):
    for name in ("ant", "bee"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(2):
            (folder / "photos" / name / f"{number}.png").write_text("remember the milk")


def one_class_of_images(folder, monkeypatch, stack):
    (folder / "photos" / "ant").mkdir(parents=True)
    (folder / "photos" / "ant" / "0.png").write_text("remember the milk")


def no_beam(folder, monkeypatch, stack):
    monkeypatch.setitem(sys.modules, "apache_beam", None)


def ctrl_c(folder, monkeypatch, stack):
    """While the scales are computed."""

    def pressed(*_, **__):
        raise KeyboardInterrupt

    scales = importlib.import_module("dsb_jax.toolkit.class_scales")
    monkeypatch.setattr(scales, "scales", pressed)


# ---- Of training.


def broken_configs(folder, monkeypatch, stack):
    (folder / "wrong.py").write_text("def get_config(:\n")
    (folder / "fails.py").write_text("def get_config():\n    return {}['dataset']\n")
    (folder / "adds.py").write_text("def get_config():\n    return 1 + 'a'\n")


def a_file_in_the_way(folder, monkeypatch, stack):
    (folder / "run").write_text("mine")


def another_run(folder, monkeypatch, stack):
    with workdir.Workdir(folder / "run", config_of(f"{SMALL},seed=3,loss=focal")) as files:
        files.begin()


def a_damaged_config(folder, monkeypatch, stack):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text('{"loss": "focal"')


def a_config_of_another_program(folder, monkeypatch, stack):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps({"optimiser": "sgd"}))


def damaged_results(folder, monkeypatch, stack):
    for name in ("run", "other"):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text('{"top1":')


def config_of(arguments):
    return runpy.run_path(str(ROOT / "configs" / "digits_lt.py"))["get_config"](arguments)


def a_run_at_work(folder, monkeypatch, stack):
    (folder / "run").mkdir()
    lock = stack.enter_context((folder / "run" / ".lock").open("w"))
    lock.write("process 4711 on somewhere\n")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)


def a_full_disk(folder, monkeypatch, stack):
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").symlink_to("/dev/full")


def a_read_only_disk(folder, monkeypatch, stack):
    monkeypatch.setattr(os, "access", lambda path, mode: False)


def a_corrupt_image(folder, monkeypatch, stack):
    """The first training image ends after a few bytes."""
    prepared = pathlib.Path(data.datasets.prepare("digits")[0])
    copy = folder / "data" / "digits" / prepared.name
    shutil.copytree(prepared, copy)
    (file,) = copy.glob("*-train.array_record*")
    reader = array_record_module.ArrayRecordReader(str(file))
    records = [tf_example_pb2.Example.FromString(record) for record in reader.read_all()]
    reader.close()
    image = records[0].features.feature["image"].bytes_list
    image.value[0] = image.value[0][:20]
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record.SerializeToString())
    writer.close()


def damaged_checkpoints(folder, monkeypatch, stack):
    with workdir.Workdir(folder / "run", config_of(SMALL)) as files:
        files.begin()
    with checkpoints.Checkpoints(folder / "run" / "checkpoints") as saved:
        saved.save(8, {"params": np.zeros(3, np.float32)}, {})
    with (folder / "run" / "checkpoints" / "8" / "checkpoint.json").open("r+b") as file:
        file.write(b"?")


SITUATIONS = {
    situation.__name__: situation
    for situation in (
        a_cut_file,
        a_damaged_file,
        labels_beside,
        a_collection,
        an_empty_stdin,
        an_empty_folder,
        classes_without_images,
        images_that_are_none,
        one_class_of_images,
        no_beam,
        ctrl_c,
        broken_configs,
        a_file_in_the_way,
        another_run,
        a_damaged_config,
        a_config_of_another_program,
        damaged_results,
        a_run_at_work,
        a_full_disk,
        a_read_only_disk,
        a_corrupt_image,
        damaged_checkpoints,
    )
}
