"""Writes a dataset for ``data.load``: ``python -m dsb_jax.data.prepare mnist --archive DIR``.

Own images are a dataset ``folder/NAME``, those that a CSV or Parquet table lists ``listing/NAME``; ``folder`` and
``listing`` alone take the name of the directory or file. A preparation that was stopped goes on by the same command.
"""

import pathlib
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from dsb_jax import command_line
from dsb_jax.data import datasets
from dsb_jax.data.builders.from_files import number_skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the dataset that the command line names.

    Args:
      arguments: the command line without the program's name; ``sys.argv`` by default.

    Returns:
      The exit code: 0; 2 after one line on stderr about what is wrong with the input; 130 when it was interrupted.

    Example:
      >>> main(["mnits"])  # error: unknown dataset 'mnits'; did you mean 'mnist'? Valid names: cifar10, …
      2
    """
    return command_line.answer(lambda: _run(arguments), interrupted="interrupted; the same command goes on")


def _run(arguments: Sequence[str] | None) -> None:
    parser = command_line.Parser(prog="python -m dsb_jax.data.prepare", description=__doc__)
    parser.add_argument(
        "name", metavar="NAME", help=f"the dataset: {', '.join(datasets.names())}; folder/NAME for own images"
    )
    parser.add_argument(
        "--archive", metavar="DIR", help="folder of the original files, as they were published; of listing the table"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out image files that are missing or damaged, and record them"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where to write; $TFDS_DATA_DIR or ~/tensorflow_datasets by default"
    )
    options = parser.parse_args(arguments)
    name = options.name
    if name in ("folder", "listing") and options.archive:
        path = pathlib.Path(options.archive).resolve()
        name = f"{name}/{path.name if name == 'folder' else path.stem}"
    folder, written = datasets.prepare(
        name, archive=options.archive, data_dir=options.data_dir, skip_bad=options.skip_bad
    )
    info = tfds.builder_from_directory(folder).info
    examples = ", ".join(f"{part.num_examples} {split}" for split, part in info.splits.items())
    print(f"{name} is {'now' if written else 'already'} in {folder}: {examples}")
    if skipped := (info.metadata or {}).get("skipped"):
        number = number_skipped(skipped)
        print(f"without {number} files that are missing or damaged: {folder / 'metadata.json'} lists them")


if __name__ == "__main__":
    sys.exit(main())
