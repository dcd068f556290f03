"""Measures data: ``python -m dsb_jax.toolkit COMMAND INPUT``."""

import argparse
import contextlib
import dataclasses
import logging
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tqdm

from dsb_jax import command_line
from dsb_jax.data import datasets
from dsb_jax.evaluation import runs
from dsb_jax.toolkit import (
    agglomeration,
    class_geometry,
    class_scales,
    class_tables,
    collection,
    correlation,
    feature_drift,
    growth,
    inputs,
    matching,
    output,
    selection,
    streaming,
    summary,
)
from dsb_jax.toolkit.findings import Finding
from dsb_jax.toolkit.inputs import run_features
from dsb_jax.toolkit.inputs.files import Rows
from dsb_jax.toolkit.moments import Moments
from dsb_jax.toolkit.points import Points

_EPILOG = """INPUT is a dataset (python -m dsb_jax.data lists them), a folder of CLASS/IMAGE, the workdir of a run, or
embeddings, images or points in .npz, .npy, .parquet, .ply, .obj or .xyz files: one, a folder of them, or a pattern in
quotes. What is found is printed, or with --json written to stdout as JSON; plots and JSON files go to --out."""

_DELAY = 2  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: the command line without the program's name; ``sys.argv`` by default.

    Returns:
      The exit code: 0; 2 after one line on stderr about what is wrong with the input; 130 when it was interrupted.
    """
    return command_line.answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger("dsb_jax").setLevel(logging.INFO)
    options.out = pathlib.Path(options.out or pathlib.Path("toolkit", _stem(options)))
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {str(options.out)!r}")
    try:
        found = options.run(options)
        written = output.write(found, options.out, options.command)
    except OverflowError:
        raise ValueError("a number is too large to be squared; is epsilon what it should be?") from None
    besides = [options.out / f"{options.command}{suffix}" for suffix in (".txt", ".html")]
    listed = ", ".join(file.name for file in [*written, *filter(pathlib.Path.exists, besides)])
    text = f"{output.text(found)}\n\nIn {options.out}: {listed}\n"
    print(output.as_json(found, options.command, output.plots(written)) if options.json else text, end="")


def _scales(options: argparse.Namespace) -> Finding:
    found = _scales_of_classes(options)
    if not (found.volume > 0).any():
        raise ValueError(f"{options.input}: {found.reading()}")
    return found


def _scales_of_classes(options: argparse.Namespace) -> class_scales.Scales:
    settings = {"alpha": options.alpha, "epsilon": options.epsilon}
    if options.runner != "beam" and (options.beam_args or options.beam_dir):
        raise ValueError("--beam-args and --beam-dir are for --runner=beam")
    if options.runner == "beam":
        space, found = _by_beam(options)
        return class_scales.of_moments(list(found.values()), tuple(found), space=space, name=options.input, **settings)
    if options.stream:
        rows = _rows(options)
        of_classes = streaming.class_moments(rows, progress=_bar("Reading"))
        return class_scales.of_moments(of_classes, rows.class_names, space=rows.space, name=rows.name, **settings)
    return class_scales.scales(_points(options), progress=_bar("Volumes"), **settings)


def _by_beam(options: argparse.Namespace) -> tuple[str, dict[str, Moments]]:
    if options.stream:
        raise ValueError("--stream is for --runner=local; Beam reads in blocks by itself")
    how = _how(options)
    inputs.require_files(options.input, how)
    from dsb_jax.toolkit import beam  # which loads Beam, and that takes seconds

    reading = {key: getattr(how, key) for key in ("features", "labels", "image_size", "dim")}
    space, found = beam.class_moments(options.input, arguments=options.beam_args, folder=options.beam_dir, **reading)
    inputs.require_space(options.input, how, space)
    return space, found


def _marginal(options: argparse.Namespace) -> Finding:
    found = growth.marginal(
        _points(options),
        counts=options.counts,
        draws=options.draws,
        epsilon=options.epsilon,
        seed=options.seed,
        progress=_bar("Growth"),
    )
    if not np.nan_to_num(found.final).any():
        raise ValueError(f"{options.input}: {found.reading()}")
    return found


def _select(options: argparse.Namespace) -> Finding:
    rows = _rows(options)
    found = selection.select(
        rows.load(_bar("Reading")),
        keep=options.keep,
        method=options.method,
        subsets=options.subsets,
        epsilon=options.epsilon,
        seed=options.seed,
        progress=_bar("Selecting"),
    )
    if not found.volumes.any():
        raise ValueError(f"{options.input}: no class has samples that differ, so none spans more than another")
    paths = inputs.paths(rows)
    lines = [str(row) if paths is None else f"{row}\t{paths[row]}" for row in found.indices]
    output.write_text("\n".join(lines) + "\n", options.out / "select.txt")
    return found


def _hierarchy(options: argparse.Namespace) -> Finding:
    children = _points(options)
    parent_of = None
    if options.map is not None:
        parent_of = class_tables.by_class(options.map, ("child", "parent"))
        class_tables.require_no_heading(parent_of, children.class_names, ("child", "parent"), source=options.map)
        if options.parents is None:
            named = set(class_tables.in_order(parent_of, children.class_names, source=options.map))
            if len(named) < 2:
                raise ValueError(f"{options.map} must have two parents or more, got {named.pop()}")
    settings = {"epsilon": options.epsilon, "progress": _bar("Matching")}
    if options.siblings and options.parents is not None:
        raise ValueError("--siblings makes parents of the children, and does not go with --parents")
    if options.parents is not None:
        parents = _points(options, options.parents)
        return matching.match(children, parents, parent_of=parent_of, **settings)
    if options.siblings:
        if parent_of is None:
            raise ValueError("--siblings needs --map, a table of child,parent")
        return matching.match_siblings(children, parent_of, **settings)
    if parent_of is not None:
        return matching.match_halves(children, parent_of, seed=options.seed, **settings)
    return agglomeration.of(children, **settings)


def _correlate(options: argparse.Namespace) -> Finding:
    if options.accuracy is None and not _is_run(options.input):
        raise ValueError("--accuracy is missing: a table of class,accuracy, or the workdir of a run")
    points = _points(options)
    accuracy = _accuracies(options, points)
    if accuracy is None:
        raise ValueError(
            f"{options.input} knows accuracies of the classes that it was tested on, and was trained on others; "
            "--split names what is measured, such as test"
        )
    return correlation.correlate(
        accuracy,
        points,
        alphas=options.alphas,
        epsilon=options.epsilon,
        resamples=options.resamples,
        seed=options.seed,
        progress=_bar("Resampling"),
    )


def _collect(options: argparse.Namespace) -> Finding:
    state = pathlib.Path(options.state)
    if state.is_dir():
        raise ValueError(f"--state must be a file, got the folder {options.state!r}")
    with datasets.locked(state.parent):  # or of two calls at once the later one would undo the other
        gathered = _collected(options, state)
    return collection.judge(gathered, progress=_bar("Forecasts"))


def _collected(options: argparse.Namespace, state: pathlib.Path) -> collection.Collection:
    """What was collected and the new batches, each of them saved before the next is read."""
    given = {key: value for key in ("tolerance", "epsilon") if (value := getattr(options, key)) is not None}
    gathered = collection.load(state) if state.exists() else None
    if gathered is not None and given:
        raise ValueError(f"{state} has its own tolerance and epsilon, {gathered.tolerance:g} and {gathered.epsilon:g}")
    saved = 0
    try:
        for batch in _batches(options):
            gathered = gathered or collection.start(batch.points.shape[1], **given)
            gathered = collection.add(gathered, batch, progress=_bar("Volumes"))
            collection.save(gathered, state)
            saved += 1
    except ValueError as error:
        kept = f"; {saved} batches before it are in {state}" if saved else ""
        raise ValueError(f"{error}{kept}") from None
    if gathered is None:
        raise ValueError(f"{'stdin' if options.input == '-' else options.input} has no samples")
    return gathered


def _batches(options: argparse.Namespace) -> Iterable[Points]:
    """Those of stdin as they come; of a file all are read first, so that a bad one leaves the state as it is."""
    if options.input == "-":
        return collection.read_jsonl(sys.stdin.buffer, size=options.batch_size)
    if options.input.endswith(".jsonl"):
        with open(options.input, "rb") as lines:
            return list(collection.read_jsonl(lines, size=options.batch_size, name=options.input))
    if options.batch_size is not None:
        raise ValueError(f"--batch-size is for JSON lines, and {options.input} is a batch as it is")
    return [_points(options)]


def _drift(options: argparse.Namespace) -> Finding:
    first, *more = options.input
    own = {key: value for key in ("epsilon", "seed") if (value := getattr(options, key)) is not None}
    start = {} if options.start_epoch is None else {"start_epoch": options.start_epoch}
    if not more:
        unused = [*own, *(key for key in ("epochs", "features", "labels", "dim", "space") if getattr(options, key))]
        if unused:
            raise ValueError(f"{first} is a run, for which {unused[0]} has no effect")
        where = {"split": options.split, "data_dir": options.data_dir}
        return feature_drift.of_run(first, **where, **start, progress=_bar("Checkpoints"))
    epochs = options.epochs or list(range(1, len(options.input) + 1))
    if len(epochs) != len(options.input):
        raise ValueError(f"--epochs must be one for each of {len(options.input)} snapshots, got {len(epochs)}")
    snapshots = _bar("Snapshots")((_points(options, name) for name in options.input), len(options.input))
    return feature_drift.of_points(snapshots, epochs, **own, **start)


def _geometry(options: argparse.Namespace) -> Finding:
    return class_geometry.geometry(
        _points(options),
        neighbours=options.neighbours,
        dimension=options.dimension,
        rows=options.rows,
        epsilon=options.epsilon,
        seed=options.seed,
        progress=_bar("Geometry"),
    )


def _report(options: argparse.Namespace) -> Finding:
    points = _points(options)
    several = _is_run(options.input) and len(run_features.kept_steps(options.input)) > 1
    moved = _drift_of(options) if several else None
    found = summary.report(
        points,
        accuracy=_accuracies(options, points),
        drift=moved,
        keep=options.keep,
        alpha=options.alpha,
        epsilon=options.epsilon,
        seed=options.seed,
        progress=_bar,
    )
    if _is_run(options.input):
        found = dataclasses.replace(found, name=f"{found.name} by {options.input}")
    found.write(options.out / "report.html")
    return found


def _accuracies(options: argparse.Namespace, points: Points) -> np.ndarray | None:
    """Of the classes, where they are known: a run of retrieval knows those that it searched, mostly others."""
    if options.accuracy is None:
        if not _is_run(options.input):
            return None
        if set(runs.load(options.input).class_names).isdisjoint(points.class_names):
            return None
    return correlation.read_accuracies(options.accuracy or options.input, points.class_names)


def _drift_of(options: argparse.Namespace) -> feature_drift.Drift:
    where = {"split": options.split, "data_dir": options.data_dir}
    return feature_drift.of_run(options.input, **where, progress=_bar("Drift"))


def _is_run(name: str) -> bool:
    return (pathlib.Path(name) / "config.json").is_file()


def _how(options: argparse.Namespace) -> inputs.Options:
    return inputs.Options(**{key: getattr(options, key) for key in inputs.OPTIONS if hasattr(options, key)})


def _rows(options: argparse.Namespace, name: str | None = None) -> Rows:
    return inputs.rows(name or options.input, _how(options), progress=_bar("Looking"))


def _points(options: argparse.Namespace, name: str | None = None) -> Points:
    return _rows(options, name).load(_bar("Reading"))


def _bar(what: str) -> Callable[..., Iterable[Any]]:
    """A progress bar on a terminal's stderr, for what takes longer than two seconds."""

    def bar(items: Iterable[Any], total: int | None = None) -> Iterable[Any]:
        return tqdm.tqdm(items, what, total, leave=False, delay=_DELAY, disable=None, dynamic_ncols=True)

    return bar


def _stem(options: argparse.Namespace) -> str:
    """What the folder of results is called."""
    first = options.input[0] if isinstance(options.input, list) else options.input
    stem = pathlib.PurePath(first.rstrip("/")).name if first != "-" else "stdin"
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in stem) or "input"


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m dsb_jax.toolkit",
        description="Tells what semantic scale says of data, without training.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], Finding], what: str, **options: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__[1:], help=what, description=f"{what}.", epilog=_EPILOG)
        added.set_defaults(run=run)
        added.add_argument("input", metavar="INPUT", **({"help": "what is measured"} | options))
        _add_reading(added)
        return added

    _add_scales(command(_scales, "volume, interference and semantic scale of every class"))
    _add_marginal(command(_marginal, "volume by number of samples, and where more add little"))
    batch = "a batch of samples: an input; or JSON lines of class and features, of stdin where it is -"
    _add_collect(command(_collect, "whether enough samples of each class are collected", help=batch))
    _add_select(command(_select, "the samples of every class that span most of it"))
    _add_hierarchy(command(_hierarchy, "which parent each class belongs to, or a tree of the classes"))
    _add_correlate(command(_correlate, "what the accuracy of classes goes with"))
    snapshots = "a workdir with several checkpoints, or files with the features of the same samples one after the other"
    _add_drift(command(_drift, "how far features move between checkpoints", nargs="+", help=snapshots))
    _add_geometry(command(_geometry, "separation, curvature, dimension and shape of every class"))
    _add_report(command(_report, "all of it on a page, report.html"))
    return parser


def _add_scales(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_alpha(parser)
    parser.add_argument("--stream", action="store_true", help="read in blocks what does not fit into memory")
    parser.add_argument("--runner", choices=("local", "beam"), default="local", help="beam: Apache Beam over files")
    beam = "of Beam, such as '--runner=DataflowRunner'"
    parser.add_argument("--beam-args", type=_words, default=[], metavar="TEXT", help=beam)
    parser.add_argument("--beam-dir", metavar="DIR", help="where workers of another machine leave results")


def _add_marginal(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_seed(parser)
    parser.add_argument("--counts", nargs="+", type=int, metavar="M", help="numbers of samples; 40 by default")
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="random orders of each class (5)")


def _add_collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", required=True, metavar="FILE", help="where the collection is kept (.npz)")
    parser.add_argument("--tolerance", type=float, metavar="SHARE", help="growth below which it is enough (0.01)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="lines of a batch; all by default")
    _add_epsilon(parser, None)


def _add_select(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_seed(parser)
    _add_keep(parser)
    parser.add_argument("--method", default="greedy", help="greedy, or the paper's pizza, or random or k_center")
    parser.add_argument("--subsets", type=int, default=100, metavar="N", help="random subsets drawn (100)")


def _add_hierarchy(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_seed(parser)
    parser.add_argument("--parents", metavar="INPUT", help="the parent classes, in the same space")
    table = "a table of child,parent; without --parents one half of each child makes them"
    parser.add_argument("--map", metavar="FILE", help=table)
    parser.add_argument("--siblings", action="store_true", help="with --map: all other children make them")


def _add_correlate(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_seed(parser)
    _add_accuracy(parser)
    alphas: dict[str, Any] = {"nargs": "+", "type": float, "default": list(correlation.ALPHAS)}
    parser.add_argument("--alphas", **alphas, metavar="A", help="1 1.5 2 2.5 3 by default")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="for intervals (2000)")


def _add_drift(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser, None)
    _add_seed(parser, None)
    parser.add_argument("--epochs", nargs="+", type=float, metavar="E", help="of the files; 1, 2, … by default")
    parser.add_argument("--start-epoch", type=float, metavar="E", help="at which weights begin (5, or the run's)")


def _add_geometry(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_seed(parser)
    parser.add_argument("--neighbours", type=int, default=20, metavar="K", help="of a point (20)")
    parser.add_argument("--dimension", type=int, metavar="Q", help="of tangent spaces; estimated by default")
    parser.add_argument("--rows", type=int, default=5000, metavar="N", help="points of a class at most (5000)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_epsilon(parser)
    _add_seed(parser)
    _add_alpha(parser)
    _add_keep(parser)
    _add_accuracy(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", metavar="DIR", help="where plots and files go; toolkit/<name of INPUT> by default")
    parser.add_argument("--space", help="sample: images as pixels, or feature: features")
    parser.add_argument("--split", default="train", help="of a dataset or a run (train)")
    parser.add_argument("--protocol", help="how a dataset is divided")
    parser.add_argument("--data-dir", metavar="DIR", help="$TFDS_DATA_DIR or ~/tensorflow_datasets by default")
    parser.add_argument("--features", metavar="NAME", help="array or columns of a file; found by its usual names")
    parser.add_argument("--labels", metavar="NAME", help="array or column, or a file of labels; likewise")
    parser.add_argument("--model", metavar="NAME", help="makes features of images, with --weights")
    parser.add_argument("--weights", metavar="FILE", help="of the model, as torchvision has them (.safetensors)")
    parser.add_argument("--images", metavar="DIR", help="INPUT is boxes in COCO's format of the images there")
    parser.add_argument("--min-side", type=int, default=8, metavar="N", help="pixels that a box must have (8)")
    parser.add_argument("--image-size", type=int, default=16, metavar="N", help="of images in sample space (16)")
    parser.add_argument(
        "--dim",
        type=int,
        metavar="D",
        help="channels to which rows are pooled, of those that they have; all by default",
    )


def _add_epsilon(parser: argparse.ArgumentParser, default: float | None = 1.0) -> None:
    parser.add_argument("--epsilon", type=float, default=default, metavar="E", help="radius of the volume (1)")


def _add_seed(parser: argparse.ArgumentParser, default: int | None = 0) -> None:
    parser.add_argument("--seed", type=int, default=default, metavar="N", help="of all that is drawn (0)")


def _add_alpha(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alpha", type=float, metavar="A", help="smoothing of interference; 2 for a long tail, else 1")


def _add_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=_number, default=0.1, metavar="M", help="samples per class, or a share (0.1)")


def _add_accuracy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accuracy", metavar="FILE", help="a table of class,accuracy or a workdir; of a run its own by default"
    )


def _number(text: str) -> int | float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"must be a number of samples or a share, got {text!r}")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must have its quotation marks closed, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
