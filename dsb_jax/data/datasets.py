"""Datasets by name: prepared once into a folder in TFDS's layout, then read from it."""

import contextlib
import fcntl
import functools
import io
import logging
import os
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from dsb_jax import validation
from dsb_jax.data import images
from dsb_jax.data.builders import BUILDERS
from dsb_jax.data.builders.folder import listing
from dsb_jax.data.records import RecordSource, Split

_logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def names() -> list[str]:
    """The names of all datasets, sorted; ``folder`` stands for ``folder/NAME``, any directory of class/image files.

    Example:
      >>> names()
      ['cifar10', 'cifar100', 'digits', 'fashion_mnist', 'folder', 'mnist']
    """
    return sorted(BUILDERS)


def load(name: str, split: str, *, data_dir: PathLike | None = None, image_size: int | None = None) -> Split:
    """One split of a prepared dataset, by TFDS's ArrayRecord files and without TensorFlow.

    A dataset that comes with its images (``digits``) is prepared on first use.

    Args:
      name: one of ``names()``, or ``folder/NAME``.
      split: ``"train"`` or ``"test"``.
      data_dir: the folder of TFDS's datasets; by default ``$TFDS_DATA_DIR``, or ``~/tensorflow_datasets``.
      image_size: height and width to which images are brought, by :func:`dsb_jax.data.images.decode_square`; by default
        they are as they are stored, which must be of one size.

    Returns:
      The split; examples are read when they are asked for.

    Raises:
      ValueError: an unknown name or split, images of many sizes without an ``image_size``, or a dataset stored in a
        format that only TensorFlow reads.
      FileNotFoundError: the dataset is not there; the message is the command that prepares it.

    Example:
      >>> test = load("digits", "test")
      >>> len(test), test.num_classes, test.image_shape
      (400, 10, (8, 8, 1))
    """
    folder = _folder(name, data_dir)
    if not _is_complete(folder):
        if _builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise FileNotFoundError(f"{name} is not in {folder}; prepare it with: {_command(name, data_dir)}")
        prepare(name, data_dir=data_dir)
    builder = tfds.builder_from_directory(folder)
    if split not in builder.info.splits:
        raise validation.unknown_name(f"split of {name}", split, builder.info.splits)
    try:
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        raise ValueError(
            f"{folder} is stored as {builder.info.file_format.value}, but only array_record can be read without "
            f"TensorFlow; prepare it in another folder: {_command(name, 'DATA_DIR')}"
        ) from error
    features = builder.info.features
    class_names, image_shape = tuple(features["label"].names), tuple(features["image"].shape)
    if image_size is not None:
        size, channels = validation.positive_int("image_size", image_size), image_shape[-1]
        image_shape = (size, size, channels)
        decode = functools.partial(images.decode_square, size=size, channels=channels)
    elif None in image_shape:
        raise ValueError(f"{name} has images of any size: set image_size, the height and width to bring them to")
    else:
        decode = functools.partial(images.decode, shape=image_shape)
    source = RecordSource(records, where=f"{name}/{split}", num_classes=len(class_names), decode=decode)
    return Split(name, split, source, class_names, image_shape)


def prepare(
    name: str, *, archive: PathLike | None = None, data_dir: PathLike | None = None
) -> tuple[pathlib.Path, bool]:
    """Writes a dataset in TFDS's layout, unless it is there already.

    Examples go to a temporary folder that is renamed when it is complete, so whatever interrupts this, no half of a
    dataset is ever read. Of several processes one writes, and the others wait for it.

    Args:
      name: one of ``names()``, or ``folder/NAME`` with a NAME of the caller's choice.
      archive: the folder of the original files, for a dataset that does not come with its images.
      data_dir: as for ``load``.

    Returns:
      The dataset's folder, and whether this call wrote it.

    Raises:
      ValueError: an unknown name, no archive where one is needed, a damaged file in it, or a NAME that other own images
        have.
      FileNotFoundError: a file that the archive lacks.

    Example:
      >>> folder, _ = prepare("digits")
      >>> folder.parts[-2:]
      ('digits', '1.0.0')
    """
    folder = _folder(name, data_dir)
    wanted = _builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS
    if wanted and archive is not None and not (os.path.isdir(archive) and os.listdir(archive)):
        raise FileNotFoundError(f"archive {os.fspath(archive)!r} is no folder, or empty; wanted is {wanted}")
    if _is_complete(folder):
        _refuse_other_images(name, folder, archive)
        return folder, False
    if wanted and archive is None:
        raise ValueError(f"{name} needs an archive: {wanted}")
    with _locked(folder.parent):
        if _is_complete(folder):
            _refuse_other_images(name, folder, archive)
            return folder, False
        # Left by a process that was killed: an exception would have removed it, and the lock says none is at work.
        for leftover in folder.parent.glob(f"{constants.INCOMPLETE_PREFIX}*"):
            shutil.rmtree(leftover)
        if folder.exists():
            raise ValueError(f"{folder} is there but is not a complete dataset; remove it and prepare {name} again")
        _logger.info("Preparing %s in %s", name, folder)
        _, _, own_name = name.partition("/")
        config = tfds.core.BuilderConfig(name=own_name) if own_name else None
        with _quiet():
            builder = _builder(name)(data_dir=_data_dir(data_dir), config=config, file_format="array_record")
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
            )
    return folder, True


def _data_dir(data_dir: PathLike | None) -> pathlib.Path:
    return pathlib.Path(data_dir or constants.get_default_data_dir()).expanduser()


def _builder(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    """The builder of a dataset; its name has a second part, the user's own, for ``folder`` alone."""
    kind, slash, own_name = name.partition("/")
    if kind not in BUILDERS or (slash and kind != "folder"):
        raise validation.unknown_name("dataset", name, BUILDERS)
    if kind == "folder" and not re.fullmatch(r"\w[\w.-]*", own_name):
        raise ValueError(f"own images are called folder/NAME, NAME of letters, digits and '_-.', got {name!r}")
    return BUILDERS[kind]


def _folder(name: str, data_dir: PathLike | None) -> pathlib.Path:
    version = str(_builder(name).VERSION)
    return _data_dir(data_dir) / name / version


def _is_complete(folder: pathlib.Path) -> bool:
    return (folder / constants.DATASET_INFO_FILENAME).is_file()


def _refuse_other_images(name: str, folder: pathlib.Path, archive: PathLike | None) -> None:
    """A name for own images is taken by the first that got it, and a part of a dataset is not taken for more of it."""
    prepared = tfds.builder_from_directory(folder).info.metadata or {}
    if archive is not None and "listing" in prepared and prepared["listing"] != listing(archive):
        another = "choose another NAME, or " if name.startswith("folder/") else ""
        raise ValueError(
            f"{name} is in {folder} already, of other images than are in {os.fspath(archive)} now; {another}remove "
            "that folder"
        )


def _command(name: str, data_dir: PathLike | None) -> str:
    """The command line that prepares a dataset, and what its archive is."""
    where = f" --data-dir {shlex.quote(os.fspath(data_dir))}" if data_dir else ""
    command = f"python -m dsb_jax.data.prepare {name} --archive DIR{where}"
    return f"{command}  (DIR is {_builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS announces a download, and there is none; and it warns of a name that is the user's own."""

    def wanted(record):
        return not str(record.msg).startswith("Using custom data configuration")

    log = logging.getLogger("absl")
    log.addFilter(wanted)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.removeFilter(wanted)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder`` among processes; the system drops it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
