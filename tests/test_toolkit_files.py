"""Files of every kind as blocks of rows: against what was written, and against what else reads them."""

import itertools
import pathlib
import re
import struct
import tarfile
import tracemalloc

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsb_jax
from dsb_jax.toolkit.inputs import files, names

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(7, 3)).astype(np.float32)
WORDS = np.array(["bird10", "bird9", "ant", "bird9", "ant", "bird10", "ant"])
NUMBERS = np.array([30, 4, -1, 4, -1, 30, -1])
LABELS = np.array([2, 1, 0, 1, 0, 2, 0])  # of both


def write_npz(path, points=POINTS, labels=WORDS, **options):
    np.savez(path, features=points, labels=labels, **options)


def write_compressed(path, points=POINTS, labels=WORDS):
    np.savez_compressed(path, x=points, y=labels)


def write_by_columns(path, points=POINTS, labels=WORDS):
    np.savez(path, np.asfortranarray(points), labels)


def write_npy(path, points=POINTS, labels=WORDS):
    np.save(path, points)
    np.save(path.with_name(f"{path.stem}_labels.npy"), labels)


def write_lists(path, points=POINTS, labels=WORDS):
    table = {"id": range(len(points)), "embedding": list(points), "label": labels}
    pq.write_table(pa.table(table), path, row_group_size=3)


def write_fixed_lists(path, points=POINTS, labels=WORDS):
    lists = pa.FixedSizeListArray.from_arrays(points.ravel(), points.shape[1])
    pq.write_table(pa.table({"x": lists, "class": pa.array(labels).dictionary_encode()}), path)


def write_tensors(path, points=POINTS, labels=WORDS):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(points)
    pq.write_table(pa.table({"points": tensors, "target": labels}), path)


WRITERS = {
    "a.npz": write_npz,
    "b.npz": write_compressed,
    "c.npz": write_by_columns,
    "d.npy": write_npy,
    "e.parquet": write_lists,
    "f.parquet": write_fixed_lists,
    "g.parquet": write_tensors,
}


def read(paths, size=3, **options):
    """All that blocks have."""
    rows = files.rows(paths, **options)
    blocks = list(rows.blocks(size))
    assert [len(points) for points, _ in blocks] == [
        min(size, rows.samples - at) for at in range(0, rows.samples, size)
    ]
    assert all(labels.dtype == np.int32 and points.dtype.kind == "f" for points, labels in blocks)
    return rows, np.concatenate([points for points, _ in blocks]), np.concatenate([labels for _, labels in blocks])


@pytest.mark.parametrize("labels", [WORDS, NUMBERS], ids=["words", "numbers"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read(name, labels, tmp_path):
    WRITERS[name](tmp_path / name, labels=labels)
    rows, points, found = read(tmp_path / name)
    assert (rows.name, rows.space, rows.samples, rows.dim) == (name, "feature", 7, 3)
    assert rows.class_names == (("ant", "bird9", "bird10") if labels is WORDS else ("-1", "4", "30"))
    np.testing.assert_array_equal(points, POINTS)
    np.testing.assert_array_equal(found, LABELS)
    loaded = rows.load()
    np.testing.assert_array_equal(loaded.points, POINTS)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    assert (loaded.class_names, loaded.space, loaded.name) == (rows.class_names, "feature", name)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("how", ["list", "folder", "pattern", "uri"])
def test_shards_are_one_input_with_one_set_of_classes(name, how, tmp_path):
    folder, suffix = tmp_path / "shards", pathlib.Path(name).suffix
    folder.mkdir()
    # In the order of a person: 9 before 10; each shard lacks a class.
    for shard, rows in (("part-9", [0, 1, 3]), ("part-10", [2, 4, 5, 6])):
        WRITERS[name](folder / f"{shard}{suffix}", POINTS[rows], WORDS[rows])
    (folder / "_SUCCESS").touch()
    (folder / f".part-9{suffix}.crc").write_bytes(b"x")
    given = {
        "list": [folder / f"part-9{suffix}", folder / f"part-10{suffix}"],
        "folder": folder,
        "pattern": f"{folder}/part-*{suffix}",
        "uri": f"file://{folder}",
    }[how]
    rows, points, labels = read(given, size=2)
    order = [0, 1, 3, 2, 4, 5, 6]
    np.testing.assert_array_equal(points, POINTS[order])
    np.testing.assert_array_equal(labels, LABELS[order])
    assert rows.class_names == ("ant", "bird9", "bird10")


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), size=st.integers(1, 12), data=st.data())
def test_blocks_are_of_any_size_and_shards_of_any_length(lengths, size, data, tmp_path_factory):
    if not sum(lengths):
        return
    folder = tmp_path_factory.mktemp("shards")
    points, labels = (
        RNG.normal(size=(sum(lengths), 2)),
        np.array(data.draw(st.lists(st.integers(-3, 3), min_size=sum(lengths), max_size=sum(lengths)))),
    )
    starts = np.cumsum([0, *lengths])
    for shard, (start, stop) in enumerate(itertools.pairwise(starts)):
        np.savez(folder / f"{shard}.npz", x=points[start:stop], y=labels[start:stop])
    rows, found, found_labels = read(folder, size)
    np.testing.assert_array_equal(found, points)
    np.testing.assert_array_equal(np.array(rows.class_names, int)[found_labels], labels)
    assert rows.class_names == tuple(map(str, sorted(set(labels.tolist()))))


def test_arrays_and_columns_can_be_named(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=POINTS, y_train=WORDS, x=np.eye(2))
    rows, points, _ = read(tmp_path / "a.npz", features="x_train", labels="y_train")
    np.testing.assert_array_equal(points, POINTS)
    columns = {f"f{channel}": POINTS[:, 0] + channel for channel in (10, 9, 1)} | {"fine": WORDS, "f": WORDS}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    rows, points, labels = read(tmp_path / "b.parquet", features="f[0-9]*", labels="fine")
    np.testing.assert_array_equal(points, POINTS[:, :1] + np.array([1, 9, 10], np.float32))  # natural order
    np.testing.assert_array_equal(labels, LABELS)
    np.save(tmp_path / "c.npy", POINTS)
    np.save(tmp_path / "other.npy", WORDS)
    _, _, labels = read(tmp_path / "c.npy", labels=str(tmp_path / "other.npy"))
    np.testing.assert_array_equal(labels, LABELS)
    rows, _, labels = read(tmp_path / "a.npz", features="x_train", labels="")
    assert rows.class_names == ("a",)
    assert not labels.any()


@pytest.mark.parametrize(
    ("features", "labels"),
    [("x.npy", "x_labels.npy"), ("train_features.npy", "train_labels.npy"), ("x.npy", "labels.npy")],
)
def test_labels_beside_an_npy_file_are_found(features, labels, tmp_path):
    np.save(tmp_path / features, POINTS)
    np.save(tmp_path / labels, WORDS)
    assert read(tmp_path / features)[0].class_names == ("ant", "bird9", "bird10")
    assert read(tmp_path)[0].samples == 7  # a folder, in which they are no features


def test_a_file_without_labels_is_a_class_of_its_own(tmp_path):
    for name in ("cat.npy", "dog.npy"):
        np.save(tmp_path / name, POINTS)
    rows, _, labels = read(tmp_path)
    assert rows.class_names == ("cat", "dog")
    np.testing.assert_array_equal(labels, [0] * 7 + [1] * 7)
    assert read(tmp_path / "cat.npy")[0].class_names == ("cat",)


def test_folders_can_say_the_labels(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / f"label={label}").mkdir()
        pq.write_table(pa.table({"embedding": list(POINTS)}), tmp_path / f"label={label}" / "0.parquet")
    rows, points, labels = read(tmp_path)
    assert rows.class_names == ("cat", "dog")
    np.testing.assert_array_equal(points, np.concatenate([POINTS, POINTS]))
    np.testing.assert_array_equal(labels, [0] * 7 + [1] * 7)


@pytest.mark.parametrize("shape", [(4, 8, 12, 3), (4, 8, 12, 1), (4, 8, 12)], ids=str)
def test_images_become_points_of_sample_space(shape, tmp_path):
    images = RNG.integers(0, 256, shape).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(4))
    rows, points, _ = read(tmp_path / "a.npz", size=2, image_size=4)
    assert (rows.space, rows.dim) == ("sample", 48)
    # Pixels of two rows and three columns become one, by triangles of twice that.
    down, across = np.array([1, 3, 3, 1]) / 8, np.array([1, 2, 3, 2, 1]) / 9
    pixels = images.reshape(4, 8, 12, -1)[:, 1:5, 2:7] / 255
    inner = points.reshape(4, 4, 4, 3)[:, 1, 1]
    np.testing.assert_allclose(
        inner, np.broadcast_to(np.einsum("nyxc,y,x->nc", pixels, down, across), (4, 3)), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["<f8", ">f4", "f2", "i8", ">u2", "?"])
def test_numbers_of_any_type_and_byte_order(kind, tmp_path):
    points = RNG.integers(0, 2, (6, 4)).astype(kind)
    np.savez(tmp_path / "a.npz", points=points, labels=np.arange(6).astype(">i2"))
    rows, found, labels = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, points)
    np.testing.assert_array_equal(labels, range(6))
    assert found.dtype.isnative
    assert rows.class_names == tuple("012345")


def test_loading_keeps_the_widest_numbers(tmp_path):
    for name, kind in (("a.npz", np.float16), ("b.npz", np.float64)):
        np.savez(tmp_path / name, x=np.full((2, 2), 1 / 3, kind), y=[0, 1])
    loaded = files.rows(tmp_path).load()
    np.testing.assert_array_equal(loaded.points[[0, 2]], [[np.float16(1 / 3)] * 2, [1 / 3] * 2])


def test_pooling_is_that_of_training(tmp_path):
    points = RNG.normal(size=(9, 10)).astype(np.float32)
    np.save(tmp_path / "a.npy", points)
    rows = files.rows(tmp_path / "a.npy")
    pooled = rows.pooled(4)
    assert pooled.dim == 4
    np.testing.assert_allclose(pooled.load().points, dsb_jax.pool_features(points, 4), rtol=1e-6)
    assert rows.pooled(10) is rows
    with pytest.raises(ValueError, match=r"dim must be at most 10, the numbers of a row of a\.npy, got 11"):
        rows.pooled(11)


def test_no_more_than_blocks_is_held(tmp_path):
    """Of 64 MiB of rows, in blocks of 1 MiB, by either file of NumPy's."""
    points = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (2**18, 64))
    points[:] = 1
    np.save(tmp_path / "a_labels.npy", np.arange(len(points)) % 7)
    np.savez(tmp_path / "b.npz", x=points, y=np.arange(len(points)) % 7)
    del points
    for name in ("a.npy", "b.npz"):
        tracemalloc.start()
        rows = files.rows(tmp_path / name)
        seen = sum(len(labels) for _, labels in rows.blocks(2**12))
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert seen == 2**18
        assert peak < 8


def test_names_are_sorted_as_a_person_counts():
    assert names.in_order(["b10", "b9", "B9", "a", "b09", "10"]) == ["10", "a", "B9", "b09", "b9", "b10"]
    assert names.in_order(map(str, [100, 20, -3])) == ["-3", "20", "100"]


PLY = """ply
format {order} 1.0
comment made up
element camera 1
property uchar id
element vertex {count}
property float y
property {kind} x
property double z
property uchar red
element face 1
property list uchar int vertex_indices
end_header
"""


def ply(points, *, kind="float", order="ascii", newline="\n"):
    """A mesh of these vertices, whose coordinates are not in order."""
    header = PLY.format(order=order, kind=kind, count=len(points)).replace("\n", newline).encode()
    rows = [(y, x if kind == "float" else int(x), z, 200) for x, y, z in points.tolist()]
    if order == "ascii":
        text = [["7"], *(map(repr, row) for row in rows), "3012"]
        return header + newline.join(map(" ".join, text)).encode() + newline.encode()
    sign, codes = "<>"[order == "binary_big_endian"], {"float": "f", "int16": "h", "uint": "I"}
    binary = b"".join(struct.pack(f"{sign}f{codes[kind]}dB", *row) for row in rows)
    return header + b"\x07" + binary + struct.pack(f"{sign}Biii", 3, 0, 1, 2)


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("kind", ["float", "int16", "uint"])
@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_vertices_of_ply_files(order, kind, newline, tmp_path):
    points = RNG.integers(0, 100, (7, 3)) + np.array([0, 0.5, 0.25])
    (tmp_path / "bunny.ply").write_bytes(ply(points, kind=kind, order=order, newline=newline))
    rows, found, labels = read(tmp_path / "bunny.ply")
    assert (rows.space, rows.dim, rows.class_names) == ("cloud", 3, ("bunny",))
    np.testing.assert_array_equal(found, points)
    assert not labels.any()


def test_points_in_lines(tmp_path):
    text = "# x y z\n" + "\n".join(f"{x} {y}\t{z} 255" for x, y, z in POINTS.tolist()) + "\n\n"
    (tmp_path / "a.xyz").write_text(text)
    (tmp_path / "b.ply").write_text(text)  # without a header
    (tmp_path / "c.obj").write_text(
        "o thing\n" + "".join(f"v {x} {y} {z}\nvn 1 0 0\n" for x, y, z in POINTS.tolist()) + "f 1 2 3\n"
    )
    for name in ("a.xyz", "b.ply", "c.obj"):
        np.testing.assert_array_equal(read(tmp_path / name)[1], POINTS.astype(float))
    rows = files.rows(tmp_path)  # clouds of several kinds are classes of one input
    assert rows.class_names == ("a", "b", "c")
    assert rows.samples == 21


@pytest.mark.slow
def test_real_point_clouds(shared_data, tmp_path):
    """Two sources of the bunny have the same points; a binary dragon is read as OpenCV reads it."""
    archive = shared_data("") / "pointclouds_core.tar.xz"
    wanted = {
        "bun_zipper.ply": 35_947,
        "stanford-bunny_alecjacobson.obj": 35_947,
        "dragon_50k_vcglib_binary_normals.ply": 50_000,
        "dragon_scan_xyz_41k_headerless.ply": 41_841,
    }
    with tarfile.open(archive) as tar:
        for member in tar:
            if (name := pathlib.PurePath(member.name).name) in wanted:
                (tmp_path / name).write_bytes(tar.extractfile(member).read())
    found = {name: files.rows(tmp_path / name).load().points for name in wanted}
    assert {name: len(points) for name, points in found.items()} == wanted
    ply, obj = found["bun_zipper.ply"], found["stanford-bunny_alecjacobson.obj"]
    np.testing.assert_allclose(ply, obj, atol=6e-7)
    lines = np.loadtxt(tmp_path / "dragon_scan_xyz_41k_headerless.ply")
    np.testing.assert_array_equal(found["dragon_scan_xyz_41k_headerless.ply"], lines)
    if hasattr(cv2, "loadPointCloud"):  # since OpenCV 5
        vertices = cv2.loadPointCloud(str(tmp_path / "dragon_50k_vcglib_binary_normals.ply"))[0]
        np.testing.assert_array_equal(found["dragon_50k_vcglib_binary_normals.ply"], vertices[:, 0])


def spoilt(content, at, count=4):
    """Bytes of which some are turned."""
    return content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + count]) + content[at + count :]


def saved(write, name, **options):
    """The bytes that a function writes, of the points and labels above."""
    path = pathlib.Path(name)
    write(path, **options)
    return path.read_bytes()


def write_incompressible(path):
    """What zlib leaves as it is, and so sees no damage in."""
    write_compressed(path, RNG.integers(0, 256, (400, 50)).astype(np.uint8), np.arange(400) % 7)


NAN = np.where(np.arange(21).reshape(7, 3) == 16, np.nan, POINTS)
HEADER = (
    PLY.format(order="{order}", count=2, kind="float").partition("property uchar red")[0].replace("camera 1", "a 0")
)
HEADER += "end_header\n"
TEXT, BINARY = HEADER.format(order="ascii"), HEADER.format(order="binary_little_endian")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", lambda: saved(write_npz, "a.npz", points=NAN), "got NaN or infinity in row 5 (class bird10)"),
        ("a.npy", lambda: saved(write_npy, "a.npy", points=NAN), "got NaN or infinity in row 5 (class bird10)"),
        ("a.parquet", lambda: saved(write_lists, "a.parquet", points=NAN), "NaN or infinity in row 5 (class bird10)"),
        ("a.xyz", lambda: b"1 2 3\n1 inf 3\n", "got NaN or infinity in row 1 (class a)"),
        *((f"a{suffix}", lambda: b"", f"a{suffix} is empty (0 bytes)") for suffix in files.SUFFIXES),
        (
            "a.npz",
            lambda: saved(write_npz, "a.npz")[:-30],
            "a.npz is damaged, cut short or of another kind: File is not",
        ),
        (
            "a.npz",
            lambda: spoilt(saved(write_npz, "a.npz"), 200),
            "a.npz is damaged, cut short or of another kind: Bad CRC",
        ),
        (
            "a.npz",
            lambda: spoilt(saved(write_compressed, "a.npz"), 120, 20),
            "a.npz is damaged, cut short or of another kind",
        ),
        ("a.npz", lambda: spoilt(saved(write_incompressible, "a.npz"), 9000), "Bad CRC-32 for file 'x.npy'"),
        ("a.npy", lambda: saved(write_npy, "a.npy")[:-3], "cut short: float32 [7, 3] is 84 bytes, but 81 follow"),
        ("a.npy", lambda: b"x,y\n1,2\n3,4\n", "a.npy is no NumPy array: the magic string"),
        (
            "a.parquet",
            lambda: saved(write_lists, "a.parquet")[:-9],
            "a.parquet is damaged, cut short or of another kind",
        ),
        (
            "a.parquet",
            lambda: spoilt(saved(write_fixed_lists, "a.parquet"), 4, 90),
            "a.parquet cannot be read: it is damaged",
        ),
        ("a.csv", lambda: b"1,2", "unknown kind of file '.csv'"),
        ("a.ply", lambda: TEXT + "1 2 3\n", "a.ply is cut short: 2 points are promised, 1 there"),
        ("a.ply", lambda: TEXT + "1 2 3\n4 5\n", "a point must be numbers x y z, got '4 5' in row 1"),
        ("a.ply", lambda: TEXT[:80], "its header does not end"),
        ("a.ply", lambda: BINARY + "1" * 31, "2 points of 16 bytes are promised, but there are 31 bytes"),
        (
            "a.ply",
            lambda: TEXT.replace(" x", " u") + "1 2 3\n" * 2,
            "its header says nothing of x, y and z of vertices",
        ),
        ("a.ply", lambda: TEXT.replace("ascii", "wide"), "a line that is not understood: 'format wide 1.0'"),
        ("a.ply", lambda: TEXT.replace("float x", "list uchar int x"), "vertices with lists"),
        ("a.ply", lambda: TEXT.replace("vertex 2", "vertex 0"), "a.ply must have rows, got none"),
        ("a.ply", lambda: b"\x00\x01\xff" * 9, "a point must be numbers x y z, got"),
        ("a.xyz", lambda: "2\nH 0 0 0\n", "a point must be numbers x y z, got '2' in row 0"),
        ("a.obj", lambda: "v 1 2 3\nv 1 2\n", "a point must be numbers x y z, got 'v 1 2' in row 1"),
        ("a.obj", lambda: "f 1 2 3\n", "a.obj must have rows, got none"),
    ],
)
def test_a_damaged_file_is_one_line(name, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = content()
    pathlib.Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        list(files.rows(name).blocks())
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": POINTS, "y": LABELS[:5]}, {}, "a.npz[x] and a.npz[y] must be of one length, got 7 rows and 5 labels"),
        ({"x": WORDS, "y": WORDS}, {}, "a.npz[x]: features must be real numbers, got <U6 [7]"),
        ({"x": POINTS + 1j, "y": WORDS}, {}, "features must be real numbers, got complex64 [7, 3]"),
        ({"x": POINTS[:, 0], "y": WORDS}, {}, "features must be rows [samples, dim]"),
        ({"x": np.zeros((7, 3, 8, 8), np.uint8), "y": WORDS}, {}, "1 or 3], got uint8 [7, 3, 8, 8]"),
        ({"x": POINTS[:, :0], "y": WORDS}, {}, "features must be rows [samples, dim]"),
        ({"x": POINTS[:0], "y": WORDS[:0]}, {}, "a.npz must have rows, got none"),
        ({"x": POINTS, "y": POINTS[:, 0]}, {}, "labels must be integers or strings, one per row, got float32 [7]"),
        ({"x": POINTS, "y": np.array([None, *"abcdef"])}, {}, "got object [7] of pickled Python objects"),
        ({"a": POINTS, "b": WORDS}, {}, "which array has the features? None is called features, feature"),
        ({"x": POINTS, "kind": WORDS}, {}, "which array has the labels? None is called labels"),
        ({"x": POINTS, "y": WORDS}, {"features": "X"}, "unknown array 'X'; did you mean 'x'? Valid names: x, y"),
        ({"x": POINTS, "y": WORDS}, {"labels": "x"}, "unknown array 'x'. Valid names: y"),
        ({"x": POINTS, "y": WORDS}, {"image_size": 0}, "image_size must be an integer >= 1, got 0"),
    ],
)
def test_arrays_that_do_not_fit(arrays, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        files.rows("a.npz", **options)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"x": [[1.0, 2], [3.0, 4], [5.0]]},
            {},
            "column x must have lists of one length, got 2 numbers in row 0 and 1 in row 2",
        ),
        ({"x": [[1.0, 2], [3.0, 4], None]}, {}, "column x has nothing (null) in row 2"),
        ({"x": [[1.0, 2], [3.0, 4], [5.0, None]]}, {}, "column x has nothing (null) in a list, that of row 2"),
        ({"f1": [1, 2, 3], "f2": [1, None, 3]}, {"features": "f*"}, "column f2 has nothing (null) in row 1"),
        ({"x": [[1.0]] * 3, "label": ["a", "b", None]}, {}, "row 2 has no label (null)"),
        ({"x": [[1.0]] * 3, "label": [1.0, 2.0, 3.0]}, {}, "labels must be integers or strings, got double"),
        ({"x": [[1.0]] * 3, "kind": [1, 2, 3]}, {}, "which column has the labels? None is called labels"),
        ({"a": [[1.0]] * 3, "b": [[1.0]] * 3}, {}, "which columns have the features? 2 hold lists of numbers"),
        ({"a": [1.0] * 3}, {}, "which columns have the features? None hold lists of numbers; there are a (double)"),
        ({"emb": [[1.0]] * 3}, {"features": "embd"}, "unknown column 'embd'; did you mean 'emb'? Valid names: emb"),
        ({"x": [[1.0]] * 3}, {"labels": "lable"}, "unknown column 'lable'"),
        ({"a": ["x"] * 3}, {"features": "a"}, "one column of lists of numbers, or several of numbers; a is string"),
        ({"f1": [1.0] * 3, "f2": [[1.0]] * 3}, {"features": "f*"}, "f2 is list<element: double>, one of 2 columns"),
    ],
)
def test_columns_that_do_not_fit(columns, options, message, tmp_path, monkeypatch):
    """Rows are counted through the batches."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns), "a.parquet")
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        list(files.rows("a.parquet", **options).blocks(1))
    assert str(raised.value).startswith("a.parquet")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("a/one.npx", {}, "unknown file 'a/one.npx'; did you mean 'a/one.npz'?"),
        ("b/one.npz", {}, "b/one.npz is not there, and"),
        ("a/*.parquet", {}, "a/*.parquet has no files of .npy, .npz"),
        ([], {}, "files are wanted, got none"),
        ("a", {}, "files of one kind are wanted, got a/one.npz and a/x.npy; choose by a pattern"),
        (["a/one.npz", "c/two.npz"], {}, "got 3 (feature) in a/one.npz and 2 (feature) in c/two.npz"),
        (["a/one.npz", "c/three.npz"], {}, "a/one.npz has labels, but c/three.npz has none"),
        (["a/x.npy", "c/x.npy"], {}, "files without labels are classes by their names, got a/x.npy and c/x.npy"),
        (["a/x.npy", "c/x.npy"], {"labels": "c/x.npy"}, "c/x.npy cannot have the labels of several files"),
        ("a/x.npy", {"features": "x"}, "a/x.npy has no arrays or columns to choose from, got features='x'"),
        ("c/d.xyz", {"labels": "y"}, "c/d.xyz has points of one class, got labels='y'"),
        ("a/x.npy", {"labels": "a/y.npy"}, "unknown file 'a/y.npy'; did you mean 'a/x.npy'?"),
        ("xx://bucket/a.npz", {}, "xx://bucket/a.npz cannot be reached"),
    ],
)
def test_paths_that_do_not_fit(given, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "ac":
        pathlib.Path(folder).mkdir()
        np.save(f"{folder}/x.npy", POINTS)
    write_npz(pathlib.Path("a/one.npz"))
    write_npz(pathlib.Path("c/two.npz"), POINTS[:, :2])
    np.savez("c/three.npz", x=POINTS)
    pathlib.Path("c/d.xyz").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        files.rows(given, **options)


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "a.npy"
    write_npy(path)
    rows = files.rows(path)
    write_npy(path, POINTS[:4], WORDS[:4])
    with pytest.raises(ValueError, match="has changed while it was read"):
        list(rows.blocks())
    write_npy(path, POINTS, np.array(["crow"] * 7, WORDS.dtype))
    with pytest.raises(ValueError, match="has changed while it was read"):
        list(rows.blocks())
