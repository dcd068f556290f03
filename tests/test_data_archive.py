"""Files are the same whether they are unpacked, in a zip, in a tar, or in a tar of tars."""

import concurrent.futures
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from dsb_jax.data.archive import Archive

FILES = {
    "birds/classes.txt": b"1 wren\n2 robin\n",
    "birds/images/wren/a.jpg": b"first",
    "birds/images/wren/b.jpg": b"second",
    "birds/images/robin/a.jpg": b"third" * 5000,
}


def unpacked(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def zipped(folder):
    with zipfile.ZipFile(folder / "birds.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("birds")
        for name, content in FILES.items():
            file.writestr(name, content)


def tarred(folder, files=FILES, name="birds.tar"):
    with tarfile.open(folder / name, "w") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(f"./{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def tarred_twice(folder):
    """A tar of a text and of a tar for each class, as ImageNet's is."""
    inner = {}
    for name in ("wren", "robin"):
        prefix = f"birds/images/{name}/"
        tarred(folder, {key.removeprefix(prefix): value for key, value in FILES.items() if key.startswith(prefix)}, "x")
        inner[f"birds/images/{name}.tar"] = (folder / "x").read_bytes()
        (folder / "x").unlink()
    tarred(folder, {"birds/classes.txt": FILES["birds/classes.txt"], **inner})


FORMS = [unpacked, zipped, tarred, tarred_twice]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_makes_no_difference(form, tmp_path):
    form(tmp_path)
    archive = Archive(tmp_path)
    assert all(archive.has(name) for name in (*FILES, "birds", "birds/images", "birds/images/wren/"))
    assert not archive.has("birds/image")
    assert {name: archive.read(name) for name in FILES} == FILES
    assert archive.text("birds/classes.txt").splitlines()[1] == "2 robin"
    assert archive.folders("birds/images") == ["birds/images/robin", "birds/images/wren"]
    assert archive.files("birds/images/wren") == ["birds/images/wren/a.jpg", "birds/images/wren/b.jpg"]
    inner = archive.within("classes.txt", "birds")
    assert inner.files() == ["classes.txt"]
    assert inner.folders("images") == ["images/robin", "images/wren"]
    assert inner.read("images/wren/b.jpg") == b"second"
    assert str(inner).rstrip("/") == str(tmp_path / "birds")


@pytest.mark.parametrize("form", FORMS)
def test_threads_read_at_once(form, tmp_path):
    form(tmp_path)
    archive = Archive(tmp_path)
    names = np.random.default_rng(0).choice(list(FILES), 400).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(archive.read, names)) == [FILES[name] for name in names]


def test_the_folder_itself_may_be_the_inner_one(tmp_path):
    unpacked(tmp_path)
    assert Archive(tmp_path / "birds").within("classes.txt", "birds").has("images/wren/a.jpg")


def test_what_is_missing_is_named(tmp_path):
    unpacked(tmp_path)
    archive = Archive(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^labels.txt is not in {tmp_path}$"):
        archive.read("labels.txt")
    with pytest.raises(FileNotFoundError, match=f"^labels.txt is not in {tmp_path}$"):
        archive.within("labels.txt", "birds")


@pytest.mark.parametrize(
    ("name", "command"), [("birds.tgz", "tar -xzf"), ("birds.tar.gz", "tar -xzf"), ("birds.rar", "unrar x")]
)
def test_what_is_packed_says_how_to_unpack_it(tmp_path, name, command):
    (tmp_path / name).write_bytes(b"")
    wanted = (
        f"classes.txt is not in {tmp_path}; {name} is there, but packed: unpack it first .cd {tmp_path} && {command}"
    )
    with pytest.raises(FileNotFoundError, match=wanted):
        Archive(tmp_path).within("classes.txt", "birds")


def test_checksums_and_encodings(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a\n")
    archive = Archive(tmp_path)
    right = "60b725f10c9c85c70d97880dfe8191b3"
    assert archive.read("list.txt", md5=right) == archive.read("list.txt", md5=("0" * 32, right)) == b"a\n"
    with pytest.raises(ValueError, match=f"list.txt is damaged or another version: its MD5 is {right}, not 0+ or 1+$"):
        archive.text("list.txt", md5=("0" * 32, "1" * 32))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"list.txt is no text in UTF-8"):
        archive.text("list.txt")


@pytest.mark.parametrize("name", ["birds.zip", "birds.tar"])
def test_a_damaged_package_is_named(tmp_path, name):
    (zipped if name.endswith("zip") else tarred)(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 3] if name.endswith("zip") else whole[:700])
    with pytest.raises(ValueError, match=f"{name} is no complete .* file"):
        Archive(tmp_path).read("birds/classes.txt")


def test_hidden_files_are_left_out(tmp_path):
    unpacked(tmp_path)
    (tmp_path / "birds" / ".DS_Store").write_bytes(b"")
    (tmp_path / "birds" / ".git").mkdir()
    assert Archive(tmp_path).files("birds") == ["birds/classes.txt"]
    assert Archive(tmp_path).folders("birds") == ["birds/images"]


@pytest.mark.parametrize("form", [unpacked, zipped, tarred])
def test_a_file_replaced_by_one_of_its_size_and_time_has_another_stamp(form, tmp_path):
    form(tmp_path)
    name = "birds/images/wren/a.jpg"
    before = Archive(tmp_path).stamp(name)
    assert before == Archive(tmp_path).stamp(name) != ""
    path = tmp_path / name if form is unpacked else next(tmp_path.glob("birds.*"))
    status, content = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"first", b"FIRST"))
    while True:  # the clock of a file system may tick every 4 ms only
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if path.stat().st_ctime_ns > status.st_ctime_ns:
            break
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert Archive(tmp_path).stamp(name) != before
    assert Archive(tmp_path).stamp("birds/images/wren/c.jpg") == ""
