"""Datasets by name: prepared once into a folder in TFDS's layout, then read from it."""

import contextlib
import fcntl
import io
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from dsb_jax import validation
from dsb_jax.data.builders import BUILDERS
from dsb_jax.data.records import RecordSource, Split

_logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def names() -> list[str]:
    """The names of all datasets, sorted.

    Example:
      >>> names()
      ['digits', 'mnist']
    """
    return sorted(BUILDERS)


def load(name: str, split: str, *, data_dir: PathLike | None = None) -> Split:
    """One split of a prepared dataset, by TFDS's ArrayRecord files and without TensorFlow.

    A dataset that comes with its images (``digits``) is prepared on first use.

    Args:
      name: one of ``names()``.
      split: ``"train"`` or ``"test"``.
      data_dir: the folder of TFDS's datasets; by default ``$TFDS_DATA_DIR``, or ``~/tensorflow_datasets``.

    Returns:
      The split; examples are read when they are asked for.

    Raises:
      ValueError: an unknown name or split, or a dataset stored in a format that only TensorFlow reads.
      FileNotFoundError: the dataset is not there; the message is the command that prepares it.

    Example:
      >>> test = load("digits", "test")
      >>> len(test), test.num_classes, test.image_shape
      (400, 10, (8, 8, 1))
    """
    folder = _folder(name, data_dir)
    if not _is_complete(folder):
        if BUILDERS[name].MANUAL_DOWNLOAD_INSTRUCTIONS:
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
    source = RecordSource(records, where=f"{name}/{split}", num_classes=len(class_names), image_shape=image_shape)
    return Split(name, split, source, class_names, image_shape)


def prepare(
    name: str, *, archive: PathLike | None = None, data_dir: PathLike | None = None
) -> tuple[pathlib.Path, bool]:
    """Writes a dataset in TFDS's layout, unless it is there already.

    Examples go to a temporary folder that is renamed when it is complete, so whatever interrupts this, no half of a
    dataset is ever read. Of several processes one writes, and the others wait for it.

    Args:
      name: one of ``names()``.
      archive: the folder of the original files, for a dataset that does not come with its images.
      data_dir: as for ``load``.

    Returns:
      The dataset's folder, and whether this call wrote it.

    Raises:
      ValueError: an unknown name, no archive where one is needed, or a damaged file in it.
      FileNotFoundError: a file that the archive lacks.

    Example:
      >>> folder, _ = prepare("digits")
      >>> folder.parts[-2:]
      ('digits', '1.0.0')
    """
    folder = _folder(name, data_dir)
    if _is_complete(folder):
        return folder, False
    wanted = BUILDERS[name].MANUAL_DOWNLOAD_INSTRUCTIONS
    if wanted and archive is None:
        raise ValueError(f"{name} needs an archive: {wanted}")
    if wanted and not (os.path.isdir(archive) and os.listdir(archive)):
        raise FileNotFoundError(f"archive {os.fspath(archive)!r} is no folder, or empty; wanted is {wanted}")
    with _locked(folder.parent):
        if _is_complete(folder):
            return folder, False
        # Left by a process that was killed: an exception would have removed it, and the lock says none is at work.
        for leftover in folder.parent.glob(f"{constants.INCOMPLETE_PREFIX}*"):
            shutil.rmtree(leftover)
        if folder.exists():
            raise ValueError(f"{folder} is there but is not a complete dataset; remove it and prepare {name} again")
        _logger.info("Preparing %s in %s", name, folder)
        builder = BUILDERS[name](data_dir=_data_dir(data_dir), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, and there is none
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
            )
    return folder, True


def _data_dir(data_dir: PathLike | None) -> pathlib.Path:
    return pathlib.Path(data_dir or constants.get_default_data_dir()).expanduser()


def _folder(name: str, data_dir: PathLike | None) -> pathlib.Path:
    if name not in BUILDERS:
        raise validation.unknown_name("dataset", name, BUILDERS)
    return _data_dir(data_dir) / name / str(BUILDERS[name].VERSION)


def _is_complete(folder: pathlib.Path) -> bool:
    return (folder / constants.DATASET_INFO_FILENAME).is_file()


def _command(name: str, data_dir: PathLike | None) -> str:
    """The command line that prepares a dataset, and what its archive is."""
    where = f" --data-dir {os.fspath(data_dir)}" if data_dir else ""
    command = f"python -m dsb_jax.data.prepare {name} --archive DIR{where}"
    return f"{command}  (DIR is {BUILDERS[name].MANUAL_DOWNLOAD_INSTRUCTIONS})"


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder`` among processes; the system drops it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
