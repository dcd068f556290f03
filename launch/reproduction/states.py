"""What it takes to make a table or figure here: the datasets that are missing, the hours, and what is measured."""

import functools
import math
import pathlib
from collections.abc import Iterable

from ml_collections import ConfigDict

from dsb_jax import data, models
from dsb_jax.data import datasets, long_tail
from dsb_jax.training import stages
from reproduction import runs
from reproduction.targets import Cell, Target

# Operations per second that training reaches, and images per second that it is held to where networks are small. Of
# one GPU the first is ResNet-50's in `launch/benchmark.py overhead` on an H200 (128.7 ms for 512 images); the second
# is a guess. Of a CPU, a core of ResNet-8.
_RATES = {"paper": (1e14, 1e4), "gpu": (1e14, 1e4), "cpu": (2.7e10, math.inf)}
_HARDWARE = {"paper": "H200", "gpu": "H200", "cpu": "core"}
_UNREADABLE = ("no", "incomplete", "as tfrecord", "as riegeli")  # states of a dataset
_TRAINING = 3  # times the operations of a forward pass


def hours(cells: Iterable[Cell], scale: str) -> float:
    """Estimated, for one seed of each: of the backbone's operations alone, and of no view or expert besides."""
    return sum(_seconds(cell, scale) for cell in cells) / 3600


def hardware(scale: str) -> str:
    """What an hour is of."""
    return _HARDWARE[scale]


def missing(target: Target, scale: str | None) -> list[str]:
    """The datasets that are not prepared here, of those that the target needs."""
    return [name for name, here in _datasets(target, scale).items() if here in _UNREADABLE]


def _datasets(target: Target, scale: str | None) -> dict[str, str]:
    """Those that it needs, and whether they are here, in words; but for what needs no preparation."""
    names = [*(cell.configured().dataset for cell in target.cells.get(scale, ())), *target.needs]
    return {name: datasets.state(name) for name in dict.fromkeys(names) if datasets.instructions(name)}


def state(name: str, target: Target, scale: str | None, results: pathlib.Path) -> str:
    """``measured here``, with how much of it; ``ready``; ``needs`` a dataset; or why there is nothing to run."""
    if target.reason:
        return f"nothing to run: {target.reason}"
    here = _datasets(target, scale)
    lacking = missing(target, scale)
    parts = [name for name, words in here.items() if words == "a part"]
    ready = f"ready with the part of {', '.join(parts)} that is here" if parts else "ready"
    needs = (
        f"needs {', '.join(lacking)}" if lacking else f"ready with --input, {target.input}" if target.input else ready
    )
    if scale is None:
        recorded = any(row["target"] == name for row in runs.read(results / "toolkit.csv"))
        return f"measured here, see claims.md; {needs}" if recorded else needs
    cells = {(cell.on, cell.method) for cell in target.cells[scale]}
    rows = [row for row in runs.read(results / f"{name}-{scale}.csv") if (row["on"], row["method"]) in cells]
    if not rows:
        return needs
    done, wanted = len({(row["on"], row["method"]) for row in rows}), len(cells)
    seeds = len({row["seed"] for row in rows})
    return f"measured here: {done} of {wanted} cells, {len(rows)} runs, {seeds} seeds; {needs}"


def _seconds(cell: Cell, scale: str) -> float:
    operations, images = _RATES[scale]
    config = cell.configured()
    stage_epochs = sum(float(stage.epochs) for stage in stages.chain(config))
    spec = data.spec(config.dataset)
    counts = long_tail.subset_counts(
        config.long_tail,
        spec.train_counts(config.protocol),
        imbalance=config.imbalance,
        images_per_class=config.images_per_class,
    )
    forward = _operations(*_network(config)) / operations
    protocol = spec.protocol(config.protocol)
    tested = int(protocol.splits[protocol.evaluation].counts.sum()) / config.eval_every
    trained = int(counts.sum())
    return stage_epochs * (trained * max(_TRAINING * forward, 1 / images) + tested * forward)


def _network(config: ConfigDict) -> tuple[str, str | None, tuple[int, int, int]]:
    shape = data.spec(config.dataset).image_shape
    size = (config.image_size, config.image_size, shape[2]) if config.image_size else shape
    return config.model, config.stem, size


@functools.cache
def _operations(model: str, stem: str | None, image: tuple[int, int, int]) -> int:
    """Of a forward pass of one image."""
    options = {"stem": stem} if stem is not None and models.takes(model, "stem") else {}
    return models.size(model, 10, image=image, **options).operations
