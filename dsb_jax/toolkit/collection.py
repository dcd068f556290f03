"""Whether enough samples of a class have been collected: the ``collect`` command (Appendix I.2).

Batches come one after the other, and of each class only its moments and how its volume grew are kept, so that what is
needed to go on another day is one file. A class has enough when its last batch raised its volume by less than a
fraction α of it, ``(S_n − S_{n−1})/S_n < α``.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from dsb_jax import validation
from dsb_jax.evaluation import drawing
from dsb_jax.evaluation.drawing import ACCURACY, GREY, NAMED_CLASSES, SCALE
from dsb_jax.toolkit import moments, points, saturation
from dsb_jax.toolkit.moments import Moments
from dsb_jax.toolkit.points import Points
from dsb_jax.toolkit.saturation import Forecast

FIRST, CONTINUE, ENOUGH, FLAT = "first batch", "continue", "enough", "no volume"

_GROWTH = 1.2  # from one count at which the volume within a batch is measured to the next
_FORMAT = "dsb_jax.toolkit.collection/1"
# What NumPy and zipfile raise on a file that is none of theirs, or no longer.
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True, eq=False)
class Gathered:
    """What is kept of one class.

    Attributes:
      moments: of all its samples.
      counts: numbers of samples at which its volume was measured, within batches and at their ends, int64 ``[T]``.
      volumes: of the first so many samples, float64 ``[T]``, in bits.
      ends: bool ``[T]``, which are ends of batches.
    """

    moments: Moments
    counts: np.ndarray
    volumes: np.ndarray
    ends: np.ndarray

    @property
    def batches(self) -> int:
        """How many batches had samples of it."""
        return int(self.ends.sum())

    @property
    def last_batch(self) -> int:
        """Samples in the last of them."""
        return int(np.diff(self.counts[self.ends], prepend=0)[-1])

    @property
    def increment(self) -> float:
        """What the last one added, ``(S_n − S_{n−1})/S_n``; NaN of one batch, and of a volume of 0."""
        if self.batches < 2 or not self.volumes[-1]:
            return math.nan
        before, now = self.volumes[self.ends][-2:]
        return float((now - before) / now)


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """What has been collected.

    Attributes:
      dim: d of a sample.
      tolerance: α, a fraction.
      epsilon: the error ε of the volume.
      classes: by name, in the order in which they appeared.
    """

    dim: int
    tolerance: float
    epsilon: float
    classes: Mapping[str, Gathered]


def start(dim: int, *, tolerance: float = 0.01, epsilon: float = 1.0) -> Collection:
    """A collection without samples.

    Args:
      dim: d of each sample.
      tolerance: α, below which an increment is too small to go on, a fraction in (0, 1). The paper leaves it to the
        task. At 1% CIFAR-10's classes stop after some 2,000 of 5,000 images in batches of 500, with 97% of the volume
        that all have.
      epsilon: the error ε of the volume.

    Raises:
      ValueError: on a number out of range.

    Example:
      >>> start(64).tolerance
      0.01
    """
    tolerance = validation.positive("tolerance", tolerance)
    if tolerance >= 1:
        raise ValueError(f"tolerance must be a fraction of the volume below 1, such as 0.01 for 1%, got {tolerance:g}")
    return Collection(
        validation.positive_int("dim", dim), tolerance, validation.positive("epsilon", epsilon), classes={}
    )


def add(collection: Collection, batch: Points, progress: Callable[..., Iterable[Any]] | None = None) -> Collection:
    """The collection with one more batch; classes that it has no samples of stay as they are.

    The volume is also measured within the batch, at counts that grow by a fifth, for the forecast: its samples are
    taken in random order, always the same, because those of a file may be sorted.

    Args:
      collection: what there is.
      batch: new samples; their classes may be new.
      progress: ``(iterable, total) -> iterable``, through which the batch's classes pass.

    Returns:
      A new collection; the old one is not changed.

    Raises:
      ValueError: if the samples have another dimension.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> gathered = start(2)
      >>> for _ in range(2):
      ...     gathered = add(gathered, points.of(rng.normal(size=(50, 2)), class_names=["cat"]))
      >>> gathered.classes["cat"].batches, gathered.classes["cat"].moments.count
      (2, 100)
    """
    dim = batch.points.shape[1]
    if dim != collection.dim:
        raise ValueError(f"{batch.name}: samples must have {collection.dim} numbers as those before, got {dim}")
    order, counts = moments.sorted_by_class(batch.labels, batch.num_classes)
    rows = np.split(order, np.cumsum(counts)[:-1])
    classes = dict(collection.classes)
    labels = np.flatnonzero(counts)
    with threadpool_limits(1):  # of small products several threads wait for each other
        for label in labels if progress is None else progress(labels, len(labels)):
            name = batch.class_names[label]
            samples = batch.points.take(rows[label], axis=0).astype(np.float64)
            classes[name] = _grown(classes.get(name), samples, collection.epsilon)
    return dataclasses.replace(collection, classes=classes)


def _grown(gathered: Gathered | None, samples: np.ndarray, epsilon: float) -> Gathered:
    if gathered is None:
        none = Moments.none(samples.shape[1])
        gathered = Gathered(none, np.empty(0, np.int64), np.empty(0), np.empty(0, bool))
    samples = np.random.default_rng(gathered.batches).permutation(samples)
    total = gathered.moments
    marks = _marks(total.count, total.count + len(samples))
    volumes = []
    for part in np.split(samples, np.array(marks[:-1], int) - total.count):
        total = total + Moments.of(part)
        volumes.append(total.volume(epsilon=epsilon))
    return Gathered(
        total,
        np.append(gathered.counts, np.array(marks, np.int64)),
        np.append(gathered.volumes, volumes),
        np.append(gathered.ends, np.arange(len(marks)) == len(marks) - 1),
    )


def _marks(first: int, last: int) -> list[int]:
    """Counts above the first, each larger by a fifth than the one before, and the last."""
    marks, count = [], max(first, 1)
    while (count := max(count + 1, math.ceil(_GROWTH * count))) < last:
        marks.append(count)
    return [*marks, last]


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """On one class.

    Attributes:
      name: the class.
      gathered: what is kept of it.
      verdict: ``"continue"``, ``"enough"``, ``"first batch"`` where there is no earlier one to compare with, or
        ``"no volume"`` where after two or more all samples are equal, which no increment can be measured of.
      forecast: of further samples worth taking where the verdict is to continue or of a first batch; None where it is
        neither, and of too few samples.
    """

    name: str
    gathered: Gathered
    verdict: str
    forecast: Forecast | None


@dataclasses.dataclass(frozen=True, eq=False)
class Verdicts:
    """On all classes (a `findings.Finding`).

    Attributes:
      classes: in the order in which they appeared.
      tolerance: α, a fraction.
    """

    classes: tuple[Verdict, ...]
    tolerance: float

    def of(self, verdict: str) -> list[Verdict]:
        """The classes with this verdict."""
        return [each for each in self.classes if each.verdict == verdict]

    def reading(self) -> str:
        """See `findings.Finding`."""
        if not self.classes:
            return "No samples have been collected yet."
        enough, first, flat = self.of(ENOUGH), self.of(FIRST), self.of(FLAT)
        percent = f"{100 * self.tolerance:.2g}%"
        if enough:
            text = (
                f"{len(enough):,} of {_classes(len(self.classes))} {'has' if len(enough) == 1 else 'have'} enough "
                f"samples of the kind collected so far: the last batch raised the volume by less than {percent}."
            )
        else:
            text = (
                f"None of {_classes(len(self.classes))} has enough samples yet, by increments of less than {percent}."
            )
        fallen = [each.name for each in enough if each.gathered.increment < -self.tolerance]
        if fallen:
            text += (
                f" Of these, {_names(fallen)} lost volume: that batch was less diverse than what was there, which says "
                "little about what other samples would add."
            )
        if first:
            text += f" {_classes(len(first))} with a single batch cannot be judged before the next one."
        if flat:
            text += f" All samples of {_names([each.name for each in flat])} are equal: there is nothing to measure."
        needed = [(each.forecast, each.name) for each in self.classes if each.forecast is not None]
        if needed:
            forecast, name = max(needed, key=lambda each: (each[0].samples, each[0].high))
            text += f" Longest to go, in batches like the last: {name} with {_told(forecast)} more samples."
        return text

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """See `findings.Finding`."""
        headings = ["class", "samples", "batches", "volume (bits)", "last increment", "verdict", "more worth taking"]
        return headings, [
            [
                each.name,
                f"{each.gathered.moments.count:,}",
                f"{each.gathered.batches:,}",
                f"{each.gathered.volumes[-1]:.2f}",
                "–" if math.isnan(each.gathered.increment) else f"{each.gathered.increment:.2%}",
                each.verdict,
                _worth_taking(each),
            ]
            for each in self.classes
        ]

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """See `findings.Finding`."""
        if not self.classes:
            return {}
        caption = (
            "The volume of each class against its samples as they were collected. Blue circles have enough, orange "
            "diamonds have not; dashed is what further batches like the last are expected to bring."
        )
        return {"volume_by_samples": (caption, _growth(self))}

    def as_dict(self) -> dict[str, Any]:
        """See `findings.Finding`."""
        return {
            "tolerance": self.tolerance,
            "classes": {
                each.name: {
                    "samples": each.gathered.moments.count,
                    "batches": each.gathered.batches,
                    "volume": each.gathered.volumes[-1],
                    "increment": each.gathered.increment,
                    "verdict": each.verdict,
                    "worth_taking": _forecast_as_dict(each),
                    "growth": {"samples": each.gathered.counts, "volume": each.gathered.volumes},
                }
                for each in self.classes
            },
        }


def judge(collection: Collection, progress: Callable[..., Iterable[Any]] | None = None) -> Verdicts:
    """Which classes have enough samples, and how many more the others need.

    A class has enough when its last batch raised its volume by less than α, ``(S_n − S_{n−1})/S_n < α``. That is a
    verdict about batches of that size and kind: a small batch adds little to any class, and a class of which one kind
    alone was collected has enough of that kind.

    Args:
      collection: what has been collected.
      progress: ``(iterable, total) -> iterable``, through which the classes pass.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> gathered = start(2, tolerance=0.05)
      >>> for _ in range(3):
      ...     gathered = add(gathered, points.of(rng.normal(size=(100, 2)), class_names=["cat"]))
      >>> [each.verdict for each in judge(gathered).classes]
      ['enough']

    Source: Appendix I.2 of the paper.
    """
    classes = collection.classes.items()
    judged = classes if progress is None else progress(classes, len(classes))
    return Verdicts(tuple(_judged(name, gathered, collection) for name, gathered in judged), collection.tolerance)


def save(collection: Collection, path: str | os.PathLike[str]) -> None:
    """Writes a collection to a file (``.npz``, 8·d² bytes for each class), whole or not at all.

    Raises:
      OSError: it cannot be written; the error has its name, and an older file is as it was.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{path.name}.partial")
    gathered = collection.classes.values()
    header = {
        "format": _FORMAT,
        "dim": collection.dim,
        "tolerance": collection.tolerance,
        "epsilon": collection.epsilon,
        "classes": list(collection.classes),
    }
    shape = (len(gathered), collection.dim)
    arrays: dict[str, Any] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "samples": np.array([each.moments.count for each in gathered], np.int64),
        "means": np.array([each.moments.mean for each in gathered]).reshape(shape),
        "scatters": np.array([each.moments.scatter for each in gathered]).reshape(*shape, collection.dim),
        "measured": np.array([len(each.counts) for each in gathered], np.int64),
        "counts": np.concatenate([np.empty(0, np.int64), *(each.counts for each in gathered)]),
        "volumes": np.concatenate([np.empty(0), *(each.volumes for each in gathered)]),
        "ends": np.concatenate([np.empty(0, bool), *(each.ends for each in gathered)]),
    }
    try:
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:  # a full disk's does not say which file it was
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def load(path: str | os.PathLike[str]) -> Collection:
    """Reads what :func:`save` wrote, equal to the bit.

    Raises:
      OSError: there is no such file, or it cannot be opened.
      ValueError: it is not what :func:`save` writes, or damaged.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz file, or was cut short")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:  # zip files have checksums
                arrays = dict(archive)
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != _FORMAT:
                raise ValueError(f"its format is {header['format']!r}, not {_FORMAT!r}")
            stops = np.cumsum(arrays["measured"])
            trails = [np.split(arrays[name], stops)[:-1] for name in ("counts", "volumes", "ends")]
            of_class = zip(arrays["samples"].tolist(), arrays["means"], arrays["scatters"], *trails, strict=True)
            classes = {
                name: Gathered(Moments(count, mean, scatter), *trail)
                for name, (count, mean, scatter, *trail) in zip(header["classes"], of_class, strict=True)
            }
            return Collection(header["dim"], header["tolerance"], header["epsilon"], classes)
        except _DAMAGE as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
            raise ValueError(f"{path} is not the state of a collection, or it is damaged: {reason}") from None


def read_jsonl(lines: Iterable[str | bytes], *, size: int | None = None, name: str = "stdin") -> Iterator[Points]:
    """Batches of samples of which each is a line of JSON, ``{"class": "cat", "features": [0.5, 1.25]}``.

    Other keys are left out, and so are empty lines.

    Args:
      lines: such as an open file.
      size: lines of a batch; by default all are one.
      name: of the input, for errors.

    Yields:
      Each batch, as soon as its lines are there.

    Raises:
      ValueError: naming the line that is not of this form, or whose features are not finite numbers, as many as the
        first line's.

    Example:
      >>> lines = ['{"class": "cat", "features": [1, 2]}', '{"class": "dog", "features": [3, 4]}']
      >>> (batch,) = read_jsonl(lines)
      >>> batch.class_names, batch.points.tolist()
      (('cat', 'dog'), [[1.0, 2.0], [3.0, 4.0]])
    """
    if size is not None:
        validation.positive_int("batch size", size)
    samples = _parsed(lines, name)
    while batch := list(itertools.islice(samples, size)):
        names = list(dict.fromkeys(label for label, _ in batch))
        place = {label: number for number, label in enumerate(names)}
        labels = np.array([place[label] for label, _ in batch])
        yield points.of(np.array([features for _, features in batch]), labels, names, name=name)


def _parsed(lines: Iterable[str | bytes], name: str) -> Iterator[tuple[str, np.ndarray]]:
    dim = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}") from None
        if not isinstance(sample, dict) or not {"class", "features"} <= sample.keys():
            raise ValueError(f'{where} must be {{"class": ..., "features": [...]}}, got {json.dumps(sample):.60}')
        label, features = sample["class"], sample["features"]
        if type(label) not in (str, int):
            raise ValueError(f"{where}: class must be a text or an integer, got {json.dumps(label):.60}")
        if not isinstance(features, list) or not features or any(type(x) not in (int, float) for x in features):
            raise ValueError(f"{where}: features must be a list of numbers, got {json.dumps(features):.60}")
        dim = dim or len(features)
        if len(features) != dim:
            raise ValueError(f"{where}: features must be {dim} numbers as those before, got {len(features)}")
        if not all(abs(x) <= sys.float_info.max for x in features):  # JSON's integers have no end
            raise ValueError(f"{where}: features must be finite, got NaN or infinity (class {label})")
        yield str(label), np.array(features, np.float64)


def _judged(name: str, gathered: Gathered, collection: Collection) -> Verdict:
    if gathered.batches < 2:
        verdict = FIRST
    elif not gathered.volumes[-1]:
        verdict = FLAT
    else:
        verdict = ENOUGH if gathered.increment < collection.tolerance else CONTINUE
    if verdict not in (FIRST, CONTINUE):
        return Verdict(name, gathered, verdict, None)
    forecast = saturation.forecast(
        gathered.counts,
        gathered.volumes,
        collection.dim,
        batch=gathered.last_batch,
        tolerance=collection.tolerance,
    )
    return Verdict(name, gathered, verdict, forecast)


def _worth_taking(verdict: Verdict) -> str:
    if verdict.verdict in (ENOUGH, FLAT):
        return "0" if verdict.verdict == ENOUGH else "–"
    return "too few to say" if verdict.forecast is None else _told(verdict.forecast)


def _told(forecast: Forecast) -> str:
    """Samples with their interval.

    Example:
      >>> _told(Forecast(1500.0, 1000.0, math.inf, np.empty(0), np.empty(0)))
      '1,500 (1,000 to ∞)'
    """
    number, low, high = (
        f"{n:,.0f}" if math.isfinite(n) else "∞" for n in (forecast.samples, forecast.low, forecast.high)
    )
    return f"{number} ({low} to {high})"


def _forecast_as_dict(verdict: Verdict) -> dict[str, Any] | None:
    if verdict.forecast is None:
        return {"samples": 0, "low": 0, "high": 0} if verdict.verdict == ENOUGH else None
    return dataclasses.asdict(verdict.forecast)


def _classes(number: int) -> str:
    return f"{number:,} {'class' if number == 1 else 'classes'}"


def _names(names: Sequence[str]) -> str:
    """The first few names."""
    shown = ", ".join(drawing.short(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


# The rarer ones last, above the others.
_LOOKS = {FLAT: (GREY, "x"), FIRST: (GREY, "s"), CONTINUE: (SCALE, "D"), ENOUGH: (ACCURACY, "o")}


def _growth(verdicts: Verdicts) -> Figure:
    named = len(verdicts.classes) <= NAMED_CLASSES
    height = max(drawing.HEIGHT, 0.19 * len(verdicts.classes)) if named else drawing.HEIGHT
    figure, axes = drawing.figure_and_axes(height=height)
    width, opacity, size = (1.4, 1.0, 5) if named else (0.5, 0.2, 2)
    look: dict[str, Any] = {"linewidth": width, "alpha": opacity, "rasterized": not named}
    most = max(each.gathered.moments.count for each in verdicts.classes)
    heights = {}
    for verdict, (colour, marker) in _LOOKS.items():
        found = verdicts.of(verdict)
        for each in found:
            axes.plot(each.gathered.counts, each.gathered.volumes, color=colour, **look)
            heights[each.name] = each.gathered.volumes[-1]
            if each.forecast is not None:
                near = each.forecast.counts <= 2.5 * most  # a far end would press the rest together
                ahead = each.forecast.counts[near], each.forecast.volumes[near]
                axes.plot(*ahead, color=colour, linestyle=(0, (3, 1.5)), **look)
                heights[each.name] = ahead[1][-1]
        if found:
            ends = [(each.gathered.moments.count, each.gathered.volumes[-1]) for each in found]
            label = f"{verdict} ({len(found):,})"
            axes.plot(*zip(*ends, strict=True), marker, color=colour, markersize=size, zorder=4, label=label)
    axes.set_xlabel("samples")
    axes.set_ylabel("volume (bits)")
    axes.set_ylim(bottom=0)
    shown = sum(bool(verdicts.of(verdict)) for verdict in _LOOKS)
    drawing.title(axes, "Volume of the samples collected", legend_lines=-(-shown // 2))
    drawing.legend(axes)
    if named:
        right = axes.get_xlim()[1]
        drawing.label_line_ends(axes, right, np.array(list(heights.values())), list(heights))
        axes.set_xlim(right=right)
    return figure
