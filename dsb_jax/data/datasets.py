"""Datasets by name: prepared once into a folder in TFDS's layout, then read from it."""

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from dsb_jax import validation
from dsb_jax.data import specs
from dsb_jax.data.builders import BUILDERS, OWN, SPECS, listing
from dsb_jax.data.builders import folder as folders
from dsb_jax.data.builders.from_files import FromFiles, labels_file, number_skipped
from dsb_jax.data.builders.stock import STOCK, Stored
from dsb_jax.data.decoding import Decoding
from dsb_jax.data.records import RecordSource, Selection, Split
from dsb_jax.data.specs import OTHER_CLASSES, Part, Spec

_logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def names() -> list[str]:
    """The names of all datasets, sorted; ``folder`` stands for ``folder/NAME``, any directory of class/image files, and
    ``listing`` for ``listing/NAME``, the images of a table.

    Example:
      >>> [name for name in names() if "cifar" in name]
      ['cifar10', 'cifar100', 'cifar100_lt', 'cifar10_lt']
    """
    return sorted([*SPECS, *OWN])


def spec(name: str) -> Spec | None:
    """What is known of a dataset; None for own images, of which nothing is.

    Raises:
      ValueError: an unknown name.

    Example:
      >>> spec("mnist_lt_2").train_counts().tolist()
      [5923, 3090, 2540, 1818, 1356, 972, 484, 272, 122, 74]
    """
    _builder(name)
    return SPECS.get(name)


def state(name: str, data_dir: PathLike | None = None) -> str:
    """``"yes"`` for a dataset that is prepared, ``"no"``, or in words by whom or how it is, or what it lacks.

    Raises:
      ValueError: an unknown name, or a dataset that is damaged.
    """
    stored = _stored(name, data_dir)
    folder = _data_dir(data_dir) / stored.folder
    if not _is_complete(folder):
        return "no"
    try:
        metadata = _prepared(name, folder, stored.label).info.metadata or {}
    except _OtherFormatError:
        return f"as {_described(name, folder, stored.label).info.file_format.value}"
    except _IncompleteError:
        return "incomplete"
    if stored in STOCK.values():
        return "by TFDS"
    if "skipped" in metadata:
        return f"without {number_skipped(metadata['skipped']):,} files"
    # Of published datasets only a part needs to be told from others.
    return "a part" if "listing" in metadata and name in SPECS else "yes"


def own_names(data_dir: PathLike | None = None) -> list[str]:
    """The names of own images that are prepared in ``data_dir``, sorted."""
    files = (file for kind in OWN for file in _data_dir(data_dir).glob(f"{kind}/*/*/{constants.DATASET_INFO_FILENAME}"))
    return sorted({"/".join(file.parts[-4:-2]) for file in files if file.parts[-2] == str(OWN[file.parts[-4]].VERSION)})


def instructions(name: str) -> str:
    """Which files a dataset is prepared from, and where they are to be had; empty where it comes with its images.

    Raises:
      ValueError: an unknown name.
    """
    return _builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS or ""


def load(
    name: str,
    split: str,
    *,
    protocol: str | None = None,
    data_dir: PathLike | None = None,
    seed: int = 0,
    image_size: int | None = None,
    shorter_side: int | None = None,
    random_crop: str = "none",
    crop_scale: tuple[float, float] = (0.08, 1.0),
) -> Split:
    """One split of a prepared dataset, by TFDS's ArrayRecord files and without TensorFlow.

    A dataset that comes with its images (``digits``) is prepared on first use. What TFDS has prepared as array_record
    files is read as well, ``caltech_birds2011`` as ``cub2011``, say.

    Args:
      name: one of ``names()``, or ``folder/NAME`` or ``listing/NAME``.
      split: ``"train"``, or what the dataset is evaluated on, ``"test"`` or ``"val"``.
      protocol: how the dataset is divided, where there is more than one way; by default the first of its spec's. Own
        images have ``"retrieval"`` besides: all of the first half of the classes train, the others are searched.
      data_dir: the folder of TFDS's datasets; by default ``$TFDS_DATA_DIR``, or ``~/tensorflow_datasets``.
      seed: draws the subset of a dataset that is one, such as a long-tailed one.
      image_size: height and width to which images are brought, by :func:`dsb_jax.data.images.decode_square`; by default
        they are as they are stored, which must be of one size.
      shorter_side: what the shorter side is scaled to before ``image_size`` pixels are cut out of the middle; by
        default ``image_size``.
      random_crop: what training sees instead of the middle: ``"none"``; ``"shift"``, another place of the scaled image;
        or ``"resize"``, a part of random size and shape (:func:`dsb_jax.data.images.decode_random_resized_crop`).
      crop_scale: smallest and largest part of the image's area for ``"resize"``.

    Returns:
      The split; examples are read when they are asked for.

    Raises:
      ValueError: an unknown name, split, protocol or crop, images of many sizes without an ``image_size``, or a dataset
        stored in a format that only TensorFlow reads.
      FileNotFoundError: the dataset is not there; the message is the command that prepares it.

    Example:
      >>> test = load("digits", "test")
      >>> len(test), test.num_classes, test.image_shape
      (400, 10, (8, 8, 1))
    """
    stored = _stored(name, data_dir)
    folder = _data_dir(data_dir) / stored.folder
    if not _is_complete(folder):
        if _builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise FileNotFoundError(f"{name} is not in {folder}; prepare it with: {_command(name, data_dir)}")
        prepare(name, data_dir=data_dir)
    builder = _prepared(name, folder, stored.label)
    part, class_names = _part(name, split, protocol, builder.info, stored)
    decoding = Decoding.of(
        name,
        builder.info.features["image"].shape,
        image_size=image_size,
        shorter_side=shorter_side,
        random_crop=random_crop,
        crop_scale=crop_scale,
    )
    sources = [_source(name, where, builder, stored.label, decoding) for where in part.stored]
    source = sources[0]
    if len(sources) > 1 or part.relabel is not None or part.choose is not None:
        source = _selection(f"{name}/{split}", sources, part, seed)
    stored_in = tuple((path.name, path.stat().st_size) for path in _record_files(builder, part.stored))
    origin = _origin(builder.info.metadata or {})
    return Split(name, split, source, class_names, decoding.shape, decoding.random, stored_in, origin)


def _prepared(name, folder, label="label"):
    builder = _described(name, folder, label)
    if builder.info.file_format.value != "array_record":
        raise _OtherFormatError(
            f"{folder} is stored as {builder.info.file_format.value}, but only array_record can be read without "
            f"TensorFlow; prepare it in another folder: {_command(name, 'DATA_DIR')}"
        )
    if lacking := [path for path in _record_files(builder, builder.info.splits) if not _has_content(path)]:
        more = f" and {len(lacking) - 1} more of its record files" if len(lacking) > 1 else ""
        are = "are" if more else "is"
        raise _IncompleteError(
            f"{folder} is damaged ({lacking[0].name}{more} {are} missing or empty): remove it and prepare {name} again"
        )
    return builder


class _OtherFormatError(ValueError):
    """A dataset is whole, but in a format that we do not read."""


class _IncompleteError(ValueError):
    """A dataset lacks some of its record files."""


def _record_files(builder, splits):
    return [pathlib.Path(path) for split in splits for path in builder.info.splits[split].filepaths]


def _has_content(path):
    return path.is_file() and path.stat().st_size > 0


def _described(name, folder, label):
    try:
        builder = tfds.builder_from_directory(folder)
        _ = builder.info.features[label].names, builder.info.metadata  # read now
        return builder
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # of damaged files of TFDS nearly any
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise ValueError(f"{folder} is damaged ({error or error!r}): remove it and prepare {name} again") from error


def _origin(metadata):
    """What the metadata say of the images that were prepared, and of those that were not; reasons are worded anew."""
    skipped = [text.partition(": ")[0] for text in metadata.get("skipped", ())]
    return json.dumps([metadata.get("listing", ""), skipped])


def _part(name, split, protocol, info, stored):
    """Which of the stored examples a split has, and the names of its classes."""
    stored_names = tuple(info.features[stored.label].names)
    if name not in SPECS:
        if split not in info.splits:
            raise validation.unknown_name(f"split of {name}", split, info.splits)
        if protocol is None:
            return Part((split,), np.zeros(0, np.int64)), stored_names
        if protocol != OTHER_CLASSES:
            raise validation.unknown_name(f"protocol of {name}", protocol, [OTHER_CLASSES])
        part = specs.half_of_classes(tuple(info.splits), len(stored_names), first=split == "train")
        return part, part.class_names(stored_names)
    spec = SPECS[name]
    part = spec.part(split, protocol)
    part = dataclasses.replace(
        part, stored=tuple(where for ours in part.stored for where in stored.splits.get(ours, (ours,)))
    )
    if missing := [where for where in part.stored if where not in info.splits]:
        raise ValueError(f"{name}/{split} needs the stored split {missing[0]!r}, but only {', '.join(info.splits)} are")
    if stored in STOCK.values():
        stored_names = spec.class_names or stored_names  # TFDS numbers those of birds
    return part, spec.protocol(protocol).class_names or part.class_names(stored_names)


def _source(name, split, builder, label, decoding):
    records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return RecordSource(
        records,
        where=f"{name}/{split}",
        num_classes=len(builder.info.features[label].names),
        label=label,
        decoding=decoding,
        labels_file=labels_file(builder.data_path, split),
    )


def _selection(where, sources, part, seed):
    labels = np.concatenate([source.labels() for source in sources])
    labels = labels if part.relabel is None else part.relabel[labels]
    try:
        rows = np.flatnonzero(labels >= 0) if part.choose is None else part.choose(labels, seed)
    except ValueError as error:
        raise ValueError(f"{where} cannot be chosen of what is prepared: {error}") from error
    return Selection(sources, rows, part.relabel)


def prepare(
    name: str, *, archive: PathLike | None = None, data_dir: PathLike | None = None, skip_bad: bool = False
) -> tuple[pathlib.Path, bool]:
    """Writes a dataset in TFDS's layout, unless it is there already.

    Examples go to a temporary folder that is renamed when it is complete, so whatever interrupts this, no half of a
    dataset is ever read; of image files, what is written already is not written again by the next call. Of several
    processes one writes, and the others wait for it.

    Args:
      name: one of ``names()``, or ``folder/NAME`` or ``listing/NAME`` with a NAME of the caller's choice.
      archive: the folder of the original files, for a dataset that does not come with its images and that TFDS has not
        prepared either; for ``listing/NAME`` the table.
      data_dir: as for ``load``.
      skip_bad: leave out image files that are missing or damaged, and record them in the metadata.

    Returns:
      The dataset's folder, and whether this call wrote it.

    Raises:
      ValueError: an unknown name, no archive where one is needed, damaged files in it, all of them named, or a NAME
        that other own images have.
      FileNotFoundError: a file that the archive lacks, and where it is to be had.

    Example:
      >>> folder, _ = prepare("digits")
      >>> folder.parts[-2:]
      ('digits', '1.0.0')
    """
    folder = _folder(name, data_dir)
    wanted = _builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS
    if archive is not None and not wanted:
        raise ValueError(f"{name} needs no archive, got {os.fspath(archive)!r}")
    if archive is not None and not _is_complete(folder):
        _require_archive(name, archive, wanted)
    if _is_complete(folder):
        _refuse_other_images(name, folder, archive)
        return folder, False
    if wanted and archive is None:
        stored = _stored(name, data_dir)
        if _is_complete(by_tfds := _data_dir(data_dir) / stored.folder):
            _prepared(name, by_tfds, stored.label)
            return by_tfds, False
        raise ValueError(f"{name} needs --archive: {wanted}")
    with locked(folder.parent):
        if _is_complete(folder):
            _refuse_other_images(name, folder, archive)
            return folder, False
        # Left by a process that was killed: an exception would have removed it, and the lock says none is at work.
        for leftover in folder.parent.glob(f"{constants.INCOMPLETE_PREFIX}*"):
            shutil.rmtree(leftover)
        if folder.exists():
            raise ValueError(f"{folder} is there but is not a complete dataset; remove it and prepare {name} again")
        _logger.info("Preparing %s in %s", name, folder)
        try:
            _write(name, archive, data_dir, skip_bad)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; wanted is {wanted}") from error
        except RuntimeError as error:
            if "() failed" not in str(error):
                raise
            # What array_record makes of a full disk, say; its message names the file.
            raise OSError(f"{name} could not be written: {error}") from error
    return folder, True


def _write(name, archive, data_dir, skip_bad):
    _, _, own_name = name.partition("/")
    config = tfds.core.BuilderConfig(name=own_name) if own_name else None
    with _quiet():
        builder = _builder(name)(data_dir=_data_dir(data_dir), config=config, file_format="array_record")
        if isinstance(builder, FromFiles):
            builder.skip_bad = skip_bad
        elif skip_bad:
            raise ValueError(f"--skip-bad is for datasets of image files, which {name} is not")
        if isinstance(builder, listing.Listing):
            builder.table, archive = os.path.basename(archive), os.path.dirname(archive) or "."
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=archive, try_download_gcs=False)
        )


def _require_archive(name, archive, wanted):
    if name.startswith("listing/"):
        if not os.path.isfile(archive):
            raise FileNotFoundError(f"archive {os.fspath(archive)!r} is no file; wanted is {wanted}")
    elif not (os.path.isdir(archive) and os.listdir(archive)):
        what = "is empty" if os.path.isdir(archive) else "is a file" if os.path.isfile(archive) else "is not there"
        raise FileNotFoundError(f"archive {os.fspath(archive)!r} {what}; wanted is {wanted}")


def _data_dir(data_dir: PathLike | None) -> pathlib.Path:
    folder = pathlib.Path(data_dir or constants.get_default_data_dir()).expanduser()
    if folder.is_file():
        raise ValueError(f"data_dir must be a folder, got the file {str(folder)!r}")
    return folder


def _builder(name: str) -> type[tfds.core.DatasetBuilder]:
    """The builder of a dataset; a name has a second part, the user's own, for own images alone."""
    kind, slash, own_name = name.partition("/")
    if kind in OWN:
        if not re.fullmatch(r"\w[\w.-]*", own_name):
            raise ValueError(
                f"own images are called {kind}/NAME, NAME of letters, digits and '_-.' and of your choice, got {name!r}"
            )
        return OWN[kind]
    if kind not in SPECS or slash:
        raise validation.unknown_name("dataset", name, names())
    return BUILDERS[SPECS[kind].stored_as]


def _folder(name: str, data_dir: PathLike | None) -> pathlib.Path:
    """Where our builder writes a dataset."""
    builder = _builder(name)
    stored_as = name if name not in SPECS else builder.name
    return _data_dir(data_dir) / stored_as / str(builder.VERSION)


def _stored(name: str, data_dir: PathLike | None) -> Stored:
    """How a dataset is stored here: as TFDS's builder does if only that wrote it, else as ours does."""
    ours = _folder(name, data_dir)
    stock = STOCK.get(_builder(name).name)
    if stock and not _is_complete(ours) and _is_complete(_data_dir(data_dir) / stock.folder):
        return stock
    return Stored(str(ours.relative_to(_data_dir(data_dir))))


def _is_complete(folder: pathlib.Path) -> bool:
    return (folder / constants.DATASET_INFO_FILENAME).is_file()


def _refuse_other_images(name: str, folder: pathlib.Path, archive: PathLike | None) -> None:
    """A name for own images is taken by the first that got it, and a part of a dataset is not taken for more of it."""
    prepared = _prepared(name, folder).info.metadata or {}
    if archive is None or "listing" not in prepared or not os.path.exists(archive):
        return
    if prepared["listing"] != (listing.digest(archive) if os.path.isfile(archive) else folders.listing(archive)):
        another = "choose another NAME, or " if "/" in name else ""
        raise ValueError(
            f"{name} is in {folder} already, of other images than are in {os.fspath(archive)} now; {another}remove "
            "that folder"
        )
    of_kind = listing if os.path.isfile(archive) else folders
    _warn_of_newer_images(folder, of_kind.image_paths(archive))


def _warn_of_newer_images(folder: pathlib.Path, paths: list[pathlib.Path]) -> None:
    """Images may have changed and kept their names and sizes, by which they are told from others."""
    prepared = (folder / constants.DATASET_INFO_FILENAME).stat().st_mtime_ns
    if newer := [path for path in paths if path.is_file() and path.stat().st_mtime_ns > prepared]:
        are = "image file is" if len(newer) == 1 else "image files are"
        text = "%d %s newer than the dataset, such as %s; remove %s to prepare it again"
        _logger.warning(text, len(newer), are, newer[0], folder)


def _command(name: str, data_dir: PathLike | None) -> str:
    """The command line that prepares a dataset, and what its archive is."""
    where = f" --data-dir {shlex.quote(os.fspath(data_dir))}" if data_dir else ""
    command = f"python -m dsb_jax.data.prepare {name} --archive DIR{where}"
    return f"{command} (DIR is {_builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS})"


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
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder`` among processes; the system drops it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
