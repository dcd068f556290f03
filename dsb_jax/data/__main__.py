"""Lists all datasets: ``python -m dsb_jax.data``."""

import errno
import sys
from collections.abc import Sequence

from dsb_jax import command_line
from dsb_jax.data import datasets
from dsb_jax.data.builders import SPECS
from dsb_jax.data.specs import Spec

_HEADINGS = ("name", "here", "classes", "images", "of a class", "to prepare", "licence")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table of the datasets, or all that is known of one.

    Args:
      arguments: the command line without the program's name; ``sys.argv`` by default.

    Returns:
      The exit code: 0, or 2 after one line on stderr about what is wrong with the input.
    """
    return command_line.answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    parser = command_line.Parser(
        prog="python -m dsb_jax.data",
        description="Lists the datasets: their sizes, licences, and whether they are prepared here.",
        epilog="A dataset is prepared by python -m dsb_jax.data.prepare NAME --archive DIR.",
    )
    parser.add_argument("name", nargs="?", help="a dataset, of which all that is known is printed")
    parser.add_argument("--data-dir", metavar="DIR", help="$TFDS_DATA_DIR or ~/tensorflow_datasets by default")
    options = parser.parse_args(arguments)
    print(_listed(options.data_dir) if options.name is None else _described(options.name, options.data_dir))


def _listed(data_dir: str | None) -> str:
    rows = [_HEADINGS]
    for name, spec in sorted(SPECS.items()):
        counts = spec.train_counts()
        protocol = spec.protocol()
        images = " + ".join(f"{part.counts.sum():,} {split}" for split, part in protocol.splits.items())
        span = f"{counts.max():,}" if counts.min() == counts.max() else f"{counts.min():,} … {counts.max():,}"
        state = _state(name, data_dir)
        here = "–" if state == "no" else state
        made_up = "*" if spec.profile else ""
        rows.append((name, here, f"{len(counts):,}", images, span + made_up, _size(spec), spec.licence))
    rows += [(name, _state(name, data_dir), "", "", "", "", "your own") for name in datasets.own_names(data_dir)]
    text = _table(rows)
    if any(spec.profile for spec in SPECS.values()):
        text += "\n* a profile: the published list of these numbers is not part of this package"
    return text


def _described(name: str, data_dir: str | None) -> str:
    spec = datasets.spec(name)
    if spec is None:
        state, wanted = datasets.state(name, data_dir), datasets.instructions(name)
        return f"{name}: your own images; here: {state}; to prepare: {wanted}"
    lines = [f"{spec.name}: {spec.title}", f"licence: {spec.licence}", f"to prepare: {_size(spec)}"]
    if wanted := datasets.instructions(name):
        lines.append(f"prepared by: python -m dsb_jax.data.prepare {name} --archive DIR, {wanted}")
    height, width, channels = spec.image_shape
    sizes = "typically " if spec.sizes_differ else ""
    lines.append(f"images: {sizes}{width}x{height}, {channels} channels, mean {spec.mean}, std {spec.std}")
    if spec.profile:
        lines.append(f"numbers of images: {spec.profile}")
    for number, (key, protocol) in enumerate(spec.protocols.items()):
        default = " (default)" if number == 0 else ""
        groups = ", ".join(f"{len(rows):,} {group}" for group, rows in spec.groups(key).items())
        lines.append(f"protocol={key}{default}: {protocol.description}; evaluated on {protocol.evaluation}")
        for split, part in protocol.splits.items():
            lines.append(f"  {split}: {part.counts.sum():,} images of {len(part.counts):,} classes")
        lines.append(f"  classes: {groups}")
    lines.append(f"here: {datasets.state(name, data_dir)}")
    return "\n".join(lines)


def _state(name: str, data_dir: str | None) -> str:
    try:
        return datasets.state(name, data_dir)
    except ValueError:
        return "damaged"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise  # of the data directory, and so of all
        return "unreadable"


def _size(spec: Spec) -> str:
    if not datasets.instructions(spec.name):
        return "comes with it"
    return f"{spec.gigabytes:,.0f} GB" if spec.gigabytes >= 1 else f"{1000 * spec.gigabytes:,.0f} MB"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
