"""Moments of classes over files by Apache Beam: on one machine or many, by whatever runs Beam's pipelines.

A file is an element. A worker reads it in blocks and emits the moments of its classes; those of a class are added up
wherever they meet, since moments of parts are mergeable, so that what travels is C·(d² + d) numbers and never rows.
"""

import contextlib
import functools
import operator
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dsb_jax.toolkit import streaming
from dsb_jax.toolkit.inputs import files, names, sources
from dsb_jax.toolkit.moments import Moments

try:
    import apache_beam
except ImportError:  # an extra
    apache_beam = None

_SCHEMA = pa.schema(
    [
        ("space", pa.string()),
        ("dim", pa.int64()),
        ("class", pa.string()),
        ("count", pa.int64()),
        ("mean", pa.binary()),
        ("scatter", pa.binary()),
    ]
)
_ROWS_TOGETHER = 16  # classes that are held before they are written
_LOCAL = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "PrismRunner")
_NAMED = 20  # bad files in an error


def class_moments(
    paths: files.Paths,
    *,
    features: str | None = None,
    labels: str | None = None,
    image_size: int = 16,
    dim: int | None = None,
    arguments: Sequence[str] = (),
    folder: str | None = None,
) -> tuple[str, dict[str, Moments]]:
    """Count, mean and scatter of every class in files: :func:`streaming.class_moments` as a pipeline of Beam.

    Args:
      paths: of the files, as workers find them, see :func:`files.rows`; best many of a few hundred MB.
      features: likewise.
      labels: likewise.
      image_size: likewise.
      dim: channels that features are pooled to; None leaves them as they are.
      arguments: Beam's own, such as ``--runner=DataflowRunner``. By default it runs here; of two processes with
        ``--direct_num_workers=2 --direct_running_mode=multi_processing``. Other machines need this package installed.
      folder: where workers leave what this process then reads; a new one here by default, for local runners.

    Returns:
      The space that rows are points of, see :class:`files.Rows`; and moments of each class by its name, in the order
      of :func:`files.rows`.

    Raises:
      ImportError: Beam is not installed.
      ValueError: files cannot be read, all of them named; or their rows differ in kind or dim.

    Source: Akidau et al., The Dataflow Model, 2015.
    """
    if apache_beam is None:
        raise ImportError("Apache Beam is not installed: pip install 'dsb-jax[beam]'")
    options = apache_beam.options.pipeline_options.PipelineOptions(list(arguments))
    runner = options.view_as(apache_beam.options.pipeline_options.StandardOptions).runner
    if folder is None and runner not in (None, *_LOCAL):
        raise ValueError(f"a folder that {runner}'s workers write to and this process reads is wanted, got none")
    found = files.listed(paths, labels)
    read = functools.partial(of_file, features=features, labels=labels, image_size=image_size, dim=dim)
    with contextlib.ExitStack() as stack:
        place = folder.rstrip("/") if folder else stack.enter_context(tempfile.TemporaryDirectory())
        place = f"{place}/{uuid.uuid4().hex}"  # what an earlier run left is not read
        with apache_beam.Pipeline(options=options) as pipeline:
            of_files = (
                pipeline
                | "files" >> apache_beam.Create(found)
                | "spread" >> apache_beam.Reshuffle()  # else one worker might take them all
                | "read" >> apache_beam.FlatMap(read).with_outputs("bad", main="moments")
            )
            _ = (
                of_files.moments
                | "add" >> apache_beam.CombinePerKey(SumOfMoments())
                | "to rows" >> apache_beam.Map(_to_row)
                | "write"
                >> apache_beam.io.WriteToParquet(f"{place}/moments", _SCHEMA, record_batch_size=_ROWS_TOGETHER)
            )
            _ = of_files.bad | "write bad" >> apache_beam.io.WriteToText(f"{place}/bad")
        return _collected(place)


def of_file(path: str, *, dim: int | None, **options: Any) -> Iterator[Any]:
    """What a worker makes of a file: ``((space, dim, class), moments)`` of each class; or what is wrong with it."""
    try:
        if not files.source_of(path, **options).samples:
            return
        rows = files.rows(path, **options)
        rows = rows if dim is None else rows.pooled(dim)
        found = streaming.class_moments(rows)
    except ValueError as error:  # which would be no other when Beam tries again
        yield apache_beam.pvalue.TaggedOutput("bad", str(error))
    else:
        for name, of_class in zip(rows.class_names, found, strict=True):
            yield (rows.space, rows.dim, name), of_class


_CombineFn: Any = object if apache_beam is None else apache_beam.CombineFn


class SumOfMoments(_CombineFn):
    """The moments of a class out of those of its parts, in any order and grouping."""

    def create_accumulator(self) -> Moments:
        return Moments.none(0)

    def add_input(self, accumulator: Moments, part: Moments) -> Moments:
        return accumulator + part

    def merge_accumulators(self, accumulators: Iterable[Moments]) -> Moments:
        return functools.reduce(operator.add, accumulators, Moments.none(0))

    def extract_output(self, accumulator: Moments) -> Moments:
        return accumulator


def _to_row(found: tuple[tuple[str, int, str], Moments]) -> dict[str, Any]:
    (space, dim, name), total = found
    arrays = {"mean": total.mean.tobytes(), "scatter": total.scatter.tobytes()}
    return {"space": space, "dim": dim, "class": name, "count": total.count, **arrays}


def _collected(place: str) -> tuple[str, dict[str, Moments]]:
    """What the workers have written."""
    if bad := [line.decode() for file in _written(place, "bad") for line in file.read().splitlines()]:
        more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
        raise ValueError(f"{len(bad):,} files cannot be used: {'; '.join(sorted(bad)[:_NAMED])}{more}")
    rows = [row for file in _written(place, "moments") for row in pq.read_table(file).to_pylist()]
    if not rows:
        raise ValueError("files must have rows, got none")
    kinds = sorted({(row["dim"], row["space"]) for row in rows})
    if len(kinds) > 1:
        raise ValueError(f"files must have rows of one dim and kind, got {' and '.join(map(str, kinds))}")
    found = {row["class"]: _of_row(row) for row in rows}
    return kinds[0][1], {name: found[name] for name in names.in_order(found)}


def _of_row(row: dict[str, Any]) -> Moments:
    mean, scatter = (np.frombuffer(row[name]) for name in ("mean", "scatter"))
    return Moments(row["count"], mean, scatter.reshape(row["dim"], row["dim"]))


def _written(place: str, kind: str) -> list[pa.NativeFile]:
    file_system, inner = sources.located(place)
    found = file_system.get_file_info(fs.FileSelector(inner))
    return [file_system.open_input_file(file.path) for file in found if file.base_name.startswith(kind) and file.size]
