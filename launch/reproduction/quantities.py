"""What the runs of a table or figure say of a claim: quantities by seed, of measures, classes and subsets."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from reproduction.measured import Measured
from reproduction.targets import Cell, bases

_OF_EACH = re.compile(r", (\d+) of each")  # in the name of a dataset, how many images its classes have


class Found(dict[str, float]):
    """A quantity by seed, and in words what part of the comparisons it is of; empty words where of all."""

    def __init__(self, part: str = "") -> None:
        super().__init__()
        self.part = part


Quantity = Callable[[Measured], Found]


def gain(measure: str, *, of: Callable[[Cell], bool], on: str = "", by: float = 0.0) -> Quantity:
    """How much methods are above their bases, on datasets whose name begins with ``on``, in a measure, less ``by``."""

    def quantity(measured: Measured) -> Found:
        pairs = [pair for pair in bases(measured.cells) if of(pair[0]) and pair[0].on.startswith(on)]
        return _of_seeds(measured, pairs, lambda pair, seed: _gain(measured, pair, measure, seed) - by)

    return quantity


def most_in_tail(of: Callable[[Cell], bool]) -> Quantity:
    """How much more methods are above their bases in the tail than in the better one of middle and head."""

    def quantity(measured: Measured) -> Found:
        def beyond(pair: tuple[Cell, Cell], seed: str) -> float:
            tail, *others = (_gain(measured, pair, measure, seed) for measure in ("tail", "middle", "head"))
            return tail - max(others, key=lambda gained: -math.inf if math.isnan(gained) else gained)

        return _of_seeds(measured, [pair for pair in bases(measured.cells) if of(pair[0])], beyond)

    return quantity


def above(others: Mapping[str, Sequence[str]], measure: str, on: str = "", by: float = 0.0) -> Quantity:
    """How much methods are above the best of others, on each dataset whose name begins with ``on``, less ``by``."""

    def quantity(measured: Measured) -> Found:
        by_name = {(cell.on, cell.method): cell for cell in measured.cells}
        rivals = [
            [cell, *(by_name[cell.on, other] for other in others[cell.method] if (cell.on, other) in by_name)]
            for cell in measured.cells
            if cell.method in others and cell.on.startswith(on)
        ]

        def ahead(cells: Sequence[Cell], seed: str) -> float:
            ours, *theirs = (measured.values(cell, measure).get(seed, math.nan) for cell in cells)
            return ours - max(theirs) - by

        return _of_seeds(measured, [cells for cells in rivals if len(cells) > 1], ahead)

    return quantity


def excess(first: str | None, second: str | None, on: str, method: str = "CE") -> Quantity:
    """How much one measure of a run is above another, on datasets whose name begins with ``on``; None is 0."""

    def quantity(measured: Measured) -> Found:
        def value(cell: Cell, measure: str | None, seed: str) -> float:
            return 0.0 if measure is None else measured.values(cell, measure).get(seed, math.nan)

        def of_run(cells: Sequence[Cell], seed: str) -> float:
            (cell,) = cells
            return value(cell, first, seed) - value(cell, second, seed)

        cells = [cell for cell in measured.cells if cell.on.startswith(on) and cell.method == method]
        return _of_seeds(measured, [(cell,) for cell in cells], of_run)

    return quantity


def more_on(measure: str, own: str, other: str) -> Quantity:
    """How much a measure of runs on a dataset is above that of runs on another, for each network."""

    def quantity(measured: Measured) -> Found:
        by_name = {cell.on: cell for cell in measured.cells}
        pairs = [
            (cell, by_name[other + cell.on.removeprefix(own)])
            for cell in measured.cells
            if cell.on.startswith(f"{own},") and other + cell.on.removeprefix(own) in by_name
        ]
        return _of_seeds(measured, pairs, lambda pair, seed: _gain(measured, pair, measure, seed))

    return quantity


def rise_together(first: str, second: str) -> Quantity:
    """Spearman's ρ of two measures over the subsets of a dataset, for each network."""
    return _over_subsets((first, second), lambda number, *columns: _spearman(*columns))


def grow_together(first: str, second: str) -> Quantity:
    """Spearman's ρ of what two measures gain with each doubling, from one subset of a dataset to the next."""
    return _over_subsets(
        (first, second),
        lambda number, *columns: _spearman(*(np.diff(column) / np.diff(np.log2(number)) for column in columns)),
    )


def first_growth(measure: str) -> Quantity:
    """By how much the power of the number of images is above 1 with which a measure grows between the two smallest."""

    def beyond_linear(number: np.ndarray, column: np.ndarray) -> float:
        return float(np.diff(np.log(column))[0] / np.diff(np.log(number))[0]) - 1

    return _over_subsets((measure,), beyond_linear)


def _over_subsets(measures: Sequence[str], said: Callable[..., float]) -> Quantity:
    """What is said of the numbers of images and of measures, of each dataset's subsets and network."""

    def quantity(measured: Measured) -> Found:
        series = defaultdict(list)
        for cell in measured.cells:
            series[_OF_EACH.sub("", cell.on)].append(cell)

        def of_series(cells: Sequence[Cell], seed: str) -> float:
            number = np.array([int(_OF_EACH.search(cell.on)[1]) for cell in cells], float)
            columns = (np.array([measured.values(cell, key).get(seed, math.nan) for cell in cells]) for key in measures)
            return said(number, *columns)

        return _of_seeds(measured, list(series.values()), of_series)

    return quantity


def same_classes(measured: Measured) -> Found:
    """Spearman's ρ of class accuracies between every two networks or subsets."""
    scores = measured.by_class("score")

    def alike(cells: Sequence[Cell], seed: str) -> float:
        one, other = (scores[cell.on, cell.method, seed] for cell in cells)
        names = sorted(one.keys() & other.keys())
        return _spearman([one[name] for name in names], [other[name] for name in names])

    return _of_seeds(measured, list(itertools.combinations(measured.cells, 2)), alike)


def same_classes_with_other_seeds(measured: Measured) -> Found:
    """Spearman's ρ of class accuracies between runs of a cell, of each seed with the next one, the last with the first.

    Of each seed with all others every pair would count twice, and the mean would look surer than it is.
    """
    scores, seeds = measured.by_class("score"), sorted({row["seed"] for row in measured.rows}, key=int)
    following = dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True)) if len(seeds) > 2 else {}  # two have one pair

    def alike(cells: Sequence[Cell], seed: str) -> float:
        (cell,) = cells
        own, other = (scores[cell.on, cell.method, each] for each in (seed, following.get(seed, "")))
        names = sorted(own.keys() & other.keys())
        return _spearman([own[name] for name in names], [other[name] for name in names])

    return _of_seeds(measured, [(cell,) for cell in measured.cells], alike)


def nearer(own: str, near: str, far: str) -> Quantity:
    """How much nearer class accuracies on a dataset are to those on a second than to those on a third."""

    def quantity(measured: Measured) -> Found:
        scores, by_name = measured.by_class("score"), {cell.on: cell for cell in measured.cells}

        def closer(cells: Sequence[Cell], seed: str) -> float:
            ours, *others = (scores[cell.on, cell.method, seed] for cell in cells)
            to_near, to_far = (np.mean([abs(ours[name] - other[name]) for name in ours]) for other in others)
            return 100 * float(to_far - to_near)

        return _of_seeds(measured, [tuple(by_name[name] for name in (own, near, far))], closer)

    return quantity


def of_thirds(said: Callable[[Sequence[float]], float]) -> Quantity:
    """What is said of DSB's gains in the thirds of the classes, from the smallest scale under the base on."""

    def quantity(measured: Measured) -> Found:
        scales = measured.by_class("scale_of_class")

        def gained(pair: tuple[Cell, Cell], seed: str) -> float:
            gains, order = _by_class(measured, pair, "score", seed), scales[pair[1].on, pair[1].method, seed]
            ranked, third = sorted(order, key=order.get), len(order) // 3
            thirds = ranked[:third], ranked[third : 2 * third], ranked[2 * third :]
            return said([float(np.mean([gains[name] for name in names])) for names in thirds])

        return _of_seeds(measured, [pair for pair in bases(measured.cells) if is_dsb(pair[0])], gained)

    return quantity


def more_in(*names: str, column: str = "score") -> Quantity:
    """How much more DSB is above its base in some classes than in the others, on average."""

    def quantity(measured: Measured) -> Found:
        def beyond(pair: tuple[Cell, Cell], seed: str) -> float:
            return _apart(_by_class(measured, pair, column, seed), names)

        return _of_seeds(measured, [pair for pair in bases(measured.cells) if is_dsb(pair[0])], beyond)

    return quantity


def of_classes(said: Callable[[Mapping[str, float]], float], on: str = "", column: str = "score") -> Quantity:
    """What is said of a column of classes, in points, of CE on datasets whose name begins with ``on``."""

    def quantity(measured: Measured) -> Found:
        found = measured.by_class(column)

        def of_run(cells: Sequence[Cell], seed: str) -> float:
            (cell,) = cells
            return 100 * said(found[cell.on, cell.method, seed])

        cells = [cell for cell in measured.cells if cell.on.startswith(on) and cell.method == "CE"]
        return _of_seeds(measured, [(cell,) for cell in cells], of_run)

    return quantity


def weaker(*names: str, column: str = "score") -> Quantity:
    """By how much CE knows some classes less than the others, on average."""
    return of_classes(lambda values: -_apart(values, names), column=column)


def overtaken(measured: Measured) -> Found:
    """Of pairs of classes of long tails, in how many the smaller one is recognised more often; per cent."""
    scores, samples = measured.by_class("score"), measured.by_class("samples")

    def part(cells: Sequence[Cell], seed: str) -> float:
        (cell,) = cells
        score, number = (found[cell.on, cell.method, seed] for found in (scores, samples))
        pairs = [(one, other) for one in score for other in score if number[one] < number[other]]
        return 100 * float(np.mean([score[one] > score[other] for one, other in pairs])) if pairs else math.nan

    return _of_seeds(measured, [(cell,) for cell in measured.cells if "-LT" in cell.on], part)


def is_dsb(cell: Cell) -> bool:
    """Whether it is a method with DSB, as the paper has it."""
    return cell.method.startswith("DSB") and not cell.method.endswith("-1")


def _gain(measured: Measured, pair: tuple[Cell, Cell], measure: str, seed: str) -> float:
    ours, others = (measured.values(cell, measure).get(seed, math.nan) for cell in pair)
    return ours - others


def _apart(values: Mapping[str, float], names: Sequence[str]) -> float:
    """The mean of those of these names less that of the others."""
    some, others = ([value for name, value in values.items() if (name in names) == own] for own in (True, False))
    return float(np.mean(some) - np.mean(others)) if some and others else math.nan


def _by_class(measured: Measured, pair: tuple[Cell, Cell], column: str, seed: str) -> dict[str, float]:
    """How much a method is above its base in each class, in points."""
    found = measured.by_class(column)
    ours, others = (found[cell.on, cell.method, seed] for cell in pair)
    return {name: 100 * (ours[name] - others[name]) for name in ours if name in others}


def _of_seeds(measured: Measured, comparisons: Sequence[Sequence[Cell]], of: Callable[[Any, str], float]) -> Found:
    """The mean of what ``of`` says of each comparison, by seed.

    A comparison counts for a seed if all of its cells were run with it and told the same besides. Of comparisons that
    were run with different seeds those are taken, and those seeds, that make the most of both: the number of the one
    times that of the other. It is left out for a seed where its measure is not defined: of classes, say, of which there
    are none in the tail.
    """
    done = {(row["on"], row["method"], row["seed"]) for row in measured.rows}
    seeds = [
        frozenset(
            seed
            for seed in {run[-1] for run in done}
            if all((cell.on, cell.method, seed) in done for cell in cells) and measured.comparable(cells, seed)
        )
        for cells in comparisons
    ]
    counted = _most(seeds)
    chosen = [cells for cells, of_one in zip(comparisons, seeds, strict=True) if counted <= of_one]
    found = Found(f", {len(chosen)} of {len(comparisons)} comparisons" if len(chosen) < len(comparisons) else "")
    for seed in sorted(counted, key=int):
        values = [value for cells in chosen if math.isfinite(value := of(cells, seed))]
        if values:
            found[seed] = float(np.mean(values))
    return found


def _most(seeds: Sequence[frozenset[str]]) -> frozenset[str]:
    """Of sets of seeds, or what they have in common, the one that times the number of those that have it is largest."""
    begun = [each for each in seeds if each]
    candidates = {*begun, frozenset.intersection(*begun)} if begun else {frozenset()}
    return min(
        candidates, key=lambda each: (-len(each) * sum(each <= other for other in begun), -len(each), sorted(each))
    )


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(spearmanr(one, other).statistic)
