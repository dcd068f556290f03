"""Writes a dataset for ``data.load``: ``python -m dsb_jax.data.prepare mnist --archive DIR``.

Own images are a dataset ``folder/NAME``; ``folder`` alone takes the name of the directory.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from dsb_jax.data import datasets


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the dataset that the command line names.

    Args:
      arguments: the command line without the program's name; ``sys.argv`` by default.

    Returns:
      The exit code: 0, or 2 after one line on stderr about what is wrong with the input.

    Example:
      >>> main(["mnits"])  # error: unknown dataset 'mnits'; did you mean 'mnist'? Valid names: cifar10, …
      2
    """
    parser = argparse.ArgumentParser(prog="python -m dsb_jax.data.prepare", description=__doc__)
    parser.add_argument("name", help=f"the dataset: {', '.join(datasets.names())}; folder/NAME for own images")
    parser.add_argument("--archive", metavar="DIR", help="folder of the original files, as they were published")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where to write; $TFDS_DATA_DIR or ~/tensorflow_datasets by default"
    )
    options = parser.parse_args(arguments)
    name = options.name
    if name == "folder" and options.archive:
        name = f"folder/{pathlib.Path(options.archive).resolve().name}"
    try:
        folder, written = datasets.prepare(name, archive=options.archive, data_dir=options.data_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    splits = tfds.builder_from_directory(folder).info.splits
    examples = ", ".join(f"{part.num_examples} {split}" for split, part in splits.items())
    print(f"{name} is {'now' if written else 'already'} in {folder}: {examples}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
