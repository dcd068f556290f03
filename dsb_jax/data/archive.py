"""The original files of a dataset, unpacked in a folder or still in its ``.tar`` and ``.zip`` files."""

import functools
import hashlib
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)

# What cannot be read at random has to be unpacked first, by the command beside it.
_UNPACK = {".tar.gz": "tar -xzf", ".tgz": "tar -xzf", ".rar": "unrar x", ".7z": "7z x"}


class Archive:
    """Files by their names, relative and with ``/``, whether they are unpacked or not.

    A ``.zip`` or ``.tar`` file directly in the folder counts as unpacked there; a ``.tar`` inside of another one as
    unpacked into a folder of its name. What lies in the folder itself comes first.

    Args:
      folder: where the files are.
      prefix: what is put before every name.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "classes.txt").write_text("cat\\n")
      ...     Archive(folder).text("classes.txt")
      'cat\\n'
    """

    def __init__(self, folder: str | os.PathLike[str], prefix: str = "") -> None:
        self.folder = pathlib.Path(folder)
        self._prefix = prefix
        self._members = _Members(self.folder)

    def __str__(self) -> str:
        return str(self.folder / self._prefix)

    def within(self, marker: str, *folders: str) -> "Archive":
        """The folder that holds the file or folder ``marker``: this one, or one of ``folders`` in it.

        Raises:
          FileNotFoundError: it is in none of them; where it seems to be packed, the message says how to unpack it.
        """
        for folder in ("", *folders):
            inner = Archive(self.folder, f"{self._prefix}{folder}/" if folder else self._prefix)
            inner._members = self._members  # read once: a large .tar has a million headers
            if inner.has(marker):
                return inner
        raise FileNotFoundError(f"{marker} is not in {self}{self._packed()}")

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        name = self._prefix + name.rstrip("/")
        return (self.folder / name).exists() or name in self._members.content or name in self._members.folders

    def read(self, name: str, *, md5: str | Sequence[str] = ()) -> bytes:
        """The content of a file.

        Args:
          name: of the file.
          md5: of the versions that were published, where they are known.

        Raises:
          FileNotFoundError: it is not there.
          ValueError: its MD5 is none of ``md5``.
        """
        full = self._prefix + name
        path = self.folder / full
        if path.is_file():
            content = path.read_bytes()
        elif full in self._members.content:
            try:
                content = self._members.content[full]()
            except (*_DAMAGE, RuntimeError) as error:  # the last one of a member that is encrypted
                raise ValueError(f"it cannot be unpacked: {error}") from error
        else:
            raise FileNotFoundError(f"{name} is not in {self}{self._packed()}")
        known = (md5,) if isinstance(md5, str) else tuple(md5)
        if known and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) not in known:
            raise ValueError(f"{path} is damaged or another version: its MD5 is {found}, not {' or '.join(known)}")
        return content

    def stamp(self, name: str) -> str:
        """Size and times of change of a file, or of the packages if it is in one; of what is missing, nothing."""
        full = self._prefix + name
        try:
            return _stamp(self.folder / full)
        except OSError:
            return self._members.stamp if full in self._members.content else ""

    def text(self, name: str, *, md5: str | Sequence[str] = ()) -> str:
        """The content of a text file, UTF-8; raises as :meth:`read`, and ValueError where it is no text."""
        try:
            return self.read(name, md5=md5).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.folder / (self._prefix + name)} is no text in UTF-8: {error}") from None

    def files(self, folder: str = "") -> list[str]:
        """The names of the files directly in a folder, sorted; hidden ones are left out."""
        return self._listed(folder, "files", os.DirEntry.is_file)

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in a folder, sorted; hidden ones are left out."""
        return self._listed(folder, "folders", os.DirEntry.is_dir)

    def _listed(self, folder, kind, wanted):
        inside = f"{self._prefix}{folder}".strip("/")
        packed = self._members.folders.get(inside)
        found = set(getattr(packed, kind)) if packed else set()
        path = self.folder / inside
        if path.is_dir():
            with os.scandir(path) as entries:
                found |= {entry.name for entry in entries if wanted(entry)}
        outer = f"{folder.rstrip('/')}/" if folder else ""
        return sorted(outer + name for name in found if not name.startswith("."))

    def _packed(self):
        packed = [path for path in self.folder.glob("*") if path.name.endswith(tuple(_UNPACK))]
        if not packed:
            return ""
        path = min(packed)
        command = next(command for suffix, command in _UNPACK.items() if path.name.endswith(suffix))
        return f"; {path.name} is there, but packed: unpack it first (cd {path.parent} && {command} {path.name})"


class _Folder(NamedTuple):
    """The names that are directly in a folder of a packed file."""

    files: list[str]
    folders: set[str]


class _Members:
    """What is in the packed files directly in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    @functools.cached_property
    def stamp(self) -> str:
        """Names, sizes and times of change of the packages."""
        packages = [path for path in sorted(self._folder.glob("*")) if path.suffix in _READERS and path.is_file()]
        return " ".join(f"{path.name} {_stamp(path)}" for path in packages)

    @functools.cached_property
    def content(self) -> dict[str, Callable[[], bytes]]:
        """By the names of the files."""
        content: dict[str, Callable[[], bytes]] = {}
        for path in sorted(self._folder.glob("*")) if self._folder.is_dir() else ():
            if path.suffix in _READERS and path.is_file():
                try:
                    content |= _READERS[path.suffix](path)
                except (tarfile.TarError, *_DAMAGE) as error:
                    raise ValueError(f"{path} is no complete {path.suffix} file: {error}") from error
        return content

    @functools.cached_property
    def folders(self) -> dict[str, _Folder]:
        """By their names, of which the outermost is empty."""
        folders: dict[str, _Folder] = {}
        for name in self.content:
            folder, _, file = name.rpartition("/")
            folders.setdefault(folder, _Folder([], set())).files.append(file)
        for folder in list(folders):
            while folder:
                outer, _, inner = folder.rpartition("/")
                folders.setdefault(outer, _Folder([], set())).folders.add(inner)
                folder = outer
        return folders


def _stamp(path: pathlib.Path) -> str:
    """Size and times of a file: ``cp -p`` and ``rsync -t`` set that of its content, but none can set the other one."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _zip_members(path):
    file = zipfile.ZipFile(path)
    return {info.filename: functools.partial(file.read, info) for info in file.infolist() if not info.is_dir()}


def _tar_members(path):
    """Every regular file of a tar, and of the tars in it."""
    descriptor = os.open(path, os.O_RDONLY)
    members = {}

    def add(prefix, start, size):
        part: Any = _Part(descriptor, start, size)  # as much of a file as tarfile needs
        with tarfile.open(fileobj=part, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                name, first = prefix + member.name.removeprefix("./"), start + member.offset_data
                members[name] = functools.partial(os.pread, descriptor, member.size, first)
                if name.endswith(".tar"):
                    add(f"{name.removesuffix('.tar')}/", first, member.size)

    add("", 0, path.stat().st_size)
    return members


class _Part:
    """A part of a file as a file, for ``tarfile`` to read the headers of."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._position = descriptor, start, size, 0

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        size = max(min(size, self._size - self._position), 0)
        content = os.pread(self._descriptor, size, self._start + self._position)
        self._position += len(content)
        return content


_READERS = {".zip": _zip_members, ".tar": _tar_members}
