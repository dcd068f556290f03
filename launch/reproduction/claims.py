"""The paper's sentences that a measurement can contradict, and what ours say.

A claim is a quantity that it takes for positive, of every seed; a t-test over seeds says whether it is. Several
comparisons of one seed are averaged first, for they share a subset and are no independent trials; a seed counts where
all of them were run. What the toolkit and the benchmarks measure, without such runs, is recorded in ``toolkit.csv``.
"""

import dataclasses
import itertools
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from dsb_jax.evaluation import paired
from reproduction import runs
from reproduction.catalogue import TARGETS
from reproduction.measured import Measured, standard_error
from reproduction.targets import SCALES, Cell, bases

_LIKELY = 0.05


class Found(dict[str, float]):
    """A quantity by seed, and in words what part of the comparisons it is of; empty words where of all."""

    def __init__(self, part: str = "") -> None:
        super().__init__()
        self.part = part


Quantity = Callable[[Measured], Found]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Attributes:
      text: what it says, in our words.
      lines: of the paper's text.
      target: the table or figure that measures it.
      quantity: ``runs -> {seed: what should be above 0}``; None where no run measures it.
      unit: of the quantity.
      negligible: it says that the quantity is not below 0, or makes no difference, rather than that it is above.
    """

    text: str
    lines: str
    target: str
    quantity: Quantity | None = None
    unit: str = "points"
    negligible: bool = False


def verdict(claim: Claim, values: Sequence[float]) -> str:
    """``holds``, ``does not hold``, or ``undecided``; of a claim that something does no harm ``not contradicted``.

    Example:
      >>> gain = Claim("it helps", "1", "table1")
      >>> verdict(gain, [1.0, 1.1, 0.9]), verdict(gain, [-1.0, -1.1, -0.9]), verdict(gain, [1.0, -1.1, 0.9])
      ('holds', 'does not hold', 'undecided')
    """
    if not len(values):
        return "not measured"
    p, mean = paired.t_test(values), float(np.mean(values))  # NaN for one value, and where all are the same
    if p < _LIKELY and mean < 0:
        return "does not hold"
    if claim.negligible and len(values) > 1:
        return "not contradicted"
    return "holds" if p < _LIKELY else "undecided"


def gain(measure: str, *, of: Callable[[Cell], bool], by: float = 0.0) -> Quantity:
    """How much methods are above their bases in a measure, less ``by``."""

    def quantity(measured: Measured) -> Found:
        pairs = [pair for pair in bases(measured.cells) if of(pair[0])]
        return _of_seeds(measured, pairs, lambda pair, seed: _gain(measured, pair, measure, seed) - by)

    return quantity


def most_in_tail(measured: Measured) -> Found:
    """How much more DSB is above its base in the tail than in the better one of middle and head."""

    def beyond(pair: tuple[Cell, Cell], seed: str) -> float:
        tail, *others = (_gain(measured, pair, measure, seed) for measure in ("tail", "middle", "head"))
        return tail - max(others, key=lambda gained: -math.inf if math.isnan(gained) else gained)

    return _of_seeds(measured, [pair for pair in bases(measured.cells) if is_dsb(pair[0])], beyond)


def above(method: str, others: Sequence[str], measure: str, on: str = "", by: float = 0.0) -> Quantity:
    """How much a method is above the best of others, on each dataset whose name begins with ``on``, less ``by``."""

    def quantity(measured: Measured) -> Found:
        by_name = {(cell.on, cell.method): cell for cell in measured.cells}
        rivals = {
            dataset: [
                by_name[dataset, name],
                *(by_name[dataset, other] for other in others if (dataset, other) in by_name),
            ]
            for dataset, name in by_name
            if name == method and dataset.startswith(on)
        }

        def ahead(cells: Sequence[Cell], seed: str) -> float:
            ours, *theirs = (measured.values(cell, measure).get(seed, math.nan) for cell in cells)
            return ours - max(theirs) - by

        return _of_seeds(measured, [cells for cells in rivals.values() if len(cells) > 1], ahead)

    return quantity


def excess(first: str, second: str | None, on: str) -> Quantity:
    """How much one measure of a run is above another, or above 0, of datasets whose name begins with ``on``."""

    def quantity(measured: Measured) -> Found:
        def of_run(cells: Sequence[Cell], seed: str) -> float:
            (cell,) = cells
            ours = measured.values(cell, first).get(seed, math.nan)
            return ours if second is None else ours - measured.values(cell, second).get(seed, math.nan)

        return _of_seeds(measured, [(cell,) for cell in measured.cells if cell.on.startswith(on)], of_run)

    return quantity


def rise_together(first: str, second: str) -> Quantity:
    """Spearman's ρ of two measures over the subsets of a dataset, for each network."""

    def quantity(measured: Measured) -> Found:
        series = defaultdict(list)
        for cell in measured.cells:
            series[re.sub(r", \d+ of each", "", cell.on)].append(cell)

        def rank(cells: Sequence[Cell], seed: str) -> float:
            columns = [[measured.values(cell, key).get(seed, math.nan) for cell in cells] for key in (first, second)]
            return _spearman(*columns)

        return _of_seeds(measured, list(series.values()), rank)

    return quantity


def same_classes(measured: Measured) -> Found:
    """Spearman's ρ of class accuracies between every two networks or subsets."""
    scores = measured.by_class("score")

    def alike(cells: Sequence[Cell], seed: str) -> float:
        one, other = (scores[cell.on, cell.method, seed] for cell in cells)
        names = sorted(one.keys() & other.keys())
        return _spearman([one[name] for name in names], [other[name] for name in names])

    return _of_seeds(measured, list(itertools.combinations(measured.cells, 2)), alike)


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


def weaker(*names: str, of: Callable[[Cell], bool], column: str = "score") -> Quantity:
    """By how much runs know some classes less than the others, on average."""

    def quantity(measured: Measured) -> Found:
        found = measured.by_class(column)

        def behind(cells: Sequence[Cell], seed: str) -> float:
            (cell,) = cells
            return -100 * _apart(found[cell.on, cell.method, seed], names)

        return _of_seeds(measured, [(cell,) for cell in measured.cells if of(cell)], behind)

    return quantity


def is_dsb(cell: Cell) -> bool:
    """Whether it is a method with DSB, as the paper has it."""
    return cell.method.startswith("DSB") and not cell.method.endswith("-1")


def _named(*methods: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.method in methods


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
    """The mean of what ``of`` says of each comparison; of those seeds alone that all of its cells were run with.

    A comparison is left out that is not begun, a cell of it having no run yet; and for a seed where its measure is not
    defined: of classes, say, of which there are none in the tail.
    """
    done = {(row["on"], row["method"], row["seed"]) for row in measured.rows}
    begun = {run[:2] for run in done}
    of_all = len(comparisons)
    comparisons = [cells for cells in comparisons if all((cell.on, cell.method) in begun for cell in cells)]
    found = Found(f", {len(comparisons)} of {of_all} comparisons" if len(comparisons) < of_all else "")
    for seed in sorted({seed for *_, seed in done}, key=int):
        if comparisons and all((cell.on, cell.method, seed) in done for cells in comparisons for cell in cells):
            values = [value for cells in comparisons if math.isfinite(value := of(cells, seed))]
            if values:
                found[seed] = float(np.mean(values))
    return found


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(spearmanr(one, other).statistic)


_EYES = ("cataract", "age-related macular degeneration", "myopia")  # classes C, A and M
_BASES = {"CE": "DSB-CE", "Focal": "DSB-Focal", "LDAM": "DSB-LDAM", "BS": "DSB-BS", "LADE": "DSB-LADE"}
_FURTHER_BASES = {"PaCo": "DSB-PaCo", "MBJ": "DSB+MBJ", "RIDE": "DSB+RIDE"}

# fmt: off
CLAIMS = (
    Claim("S goes with class accuracy more closely than N, on a long tail", "492-497", "table1",
          excess("r_S_alpha2", "r_N", "CIFAR-10-LT"), "of r"),
    Claim("S goes with it more closely than S′, on a long tail", "492-497", "table1",
          excess("r_S_alpha2", "r_Sprime", "CIFAR-10-LT"), "of r"),
    Claim("S goes with it more closely than S′, on balanced data", "492-497", "table1",
          excess("r_S_alpha1", "r_Sprime", "CIFAR-10,"), "of r"),
    Claim("S goes with it more closely than the effective number, on a long tail", "1815-1824", "table1",
          excess("r_S_alpha2", "r_En", "CIFAR-10-LT"), "of r"),
    Claim("on MNIST-LT S goes with it more closely than N", "499-530", "figure3",
          excess("r_S_alpha2", "r_N", "MNIST-LT"), "of r"),
    Claim("class accuracies on MNIST-LT-1 are nearer to MNIST's than to MNIST-LT-2's", "516-521", "figure3",
          nearer("MNIST-LT-1", "MNIST", "MNIST-LT-2")),
    Claim("top-1 rises with the sum of volumes", "405-415", "figure2-right",
          rise_together("sum_of_volumes", "top1"), "of ρ"),
    Claim("of balanced classes those of smaller scale are recognised less", "532-546", "figure4",
          excess("r_S_alpha1", None, "CIFAR-10"), "of r"),
    Claim("networks and subsets are weak in the same classes", "540-546", "figure4", same_classes, "of ρ"),
    Claim("weights that begin later than epoch 5 do no harm", "618-620", "figure5",
          gain("top1", of=lambda cell: int(cell.method.rpartition(" ")[2]) > 5), negligible=True),
    *(Claim(f"{dsb} is above {base}", "656-690", "table2", gain("top1", of=_named(dsb)))
      for base, dsb in (_BASES | _FURTHER_BASES).items()),
    Claim("DSB improves the tail most", "683-687", "table2", most_in_tail),
    Claim("DSB does not compromise the head", "683-687", "table2", gain("head", of=is_dsb), negligible=True),
    Claim("DSB-CE is above CB-CE", "660-661", "table2", above("DSB-CE", ("CB-CE",), "top1")),
    Claim("IFL enhances DSB-CE further", "685-687", "table2", above("DSB-CE+IFL", ("DSB-CE",), "top1")),
    Claim("DSB improves training on balanced data", "692-700", "table3", gain("top1", of=is_dsb)),
    Claim("it does so by more than one point", "695-697", "table3", gain("top1", of=is_dsb, by=1.0)),
    Claim("DSB improves retrieval on CUB and Cars by more than one point (R@1)", "749-750", "table4",
          gain("recall_at_1", of=is_dsb, by=1.0)),
    Claim("DSB-ST of 512 numbers is above Circle by 2.2 points on Cars", "750-751", "table4",
          above("DSB-ST", ("Circle",), "recall_at_1", on="Cars196, 512-d", by=2.2)),
    Claim("DSB improves retrieval after a long tail (R@1)", "770-775", "table5", gain("recall_at_1", of=is_dsb)),
    Claim("DSB improves retrieval after a long tail (NMI)", "770-775", "table5", gain("nmi", of=is_dsb)),
    Claim("DSB-NSM is above CB-NSM", "770-775", "table5", above("DSB-NSM", ("CB-NSM",), "recall_at_1")),
    Claim("DSB-ST is above CB-ST", "770-775", "table5", above("DSB-ST", ("CB-ST",), "recall_at_1")),
    Claim("DSB improves accuracy under generalized long tails", "840-850", "table6", gain("top1", of=is_dsb)),
    Claim("DSB improves retrieval after a long tail of Cars", "1176-1181", "table9", gain("recall_at_1", of=is_dsb)),
    Claim("there DSB is above CB in R@1", "1180", "table9",
          above("DSB-NSM", ("CB-NSM",), "recall_at_1")),
    Claim("DSB improves retrieval after balanced data", "1196-1198", "table10", gain("recall_at_1", of=is_dsb)),
    Claim("all seven classes are matched with their superclass", "2088", "table12"),
    Claim("average precision rises most for cataract, macular degeneration and myopia, of small scale", "1242-1245",
          "figure11", more_in(*_EYES, column="average_precision")),
    Claim("where eyes are balanced by number these three are still the weakest", "1256-1258", "figure12",
          weaker(*_EYES, of=_named("CE"), column="average_precision")),
    Claim("and their average precision rises most", "1260-1263", "figure12",
          more_in(*_EYES, column="average_precision")),
    Claim("DSB improves scenes: VGG-16 by 1.8, GoogLeNet by 1.6, ResNet-34 by 1.2 points", "1318", "figure15",
          gain("top1", of=is_dsb)),
    Claim("DSB improves scenes of RSSCN7", "1304-1308", "figure14", gain("top1", of=is_dsb)),
    Claim("without it industrial regions are recognised less than other scenes", "1305-1306", "figure14",
          weaker("Industry", of=_named("CE"))),
    Claim("it does so most for industrial regions and parking lots", "1310-1312", "figure14",
          more_in("Industry", "Parking")),
    Claim("to leave out interference costs almost nothing", "1831-1835", "figure17",
          above("DSB-CE-1", ("DSB-CE",), "top1"), negligible=True),
    Claim("DSB is above CDB, LOCE and domain balancing", "1869-1877", "figure18",
          above("DSB-CE", ("CDB", "LOCE", "domain balancing"), "top1")),
    Claim("DSB improves the third of smallest scale", "1884-1888", "figure19",
          of_thirds(lambda gains: gains[0])),
    Claim("DSB is above the base in all three thirds", "1887-1890", "figure19", of_thirds(min)),
)
# fmt: on


def rows(results: pathlib.Path) -> list[tuple[str, ...]]:
    """Of every claim: what it says, lines, what measures it, the quantity and the verdict; at all scales measured."""
    made = []
    for claim in CLAIMS:
        found = []
        for scale in SCALES if claim.quantity is not None else ():
            measured = Measured.of(TARGETS[claim.target], claim.target, scale, results)
            if measured.rows:
                quantity = claim.quantity(measured)
                if values := list(quantity.values()):
                    found.append((scale, _stated(claim, values) + quantity.part, verdict(claim, values)))
        made += [(claim.text, claim.lines, f"{claim.target} ({scale})", said, what) for scale, said, what in found]
        if not found:
            made.append((claim.text, claim.lines, claim.target, "–", "not measured"))
    recorded = runs.read(results / "toolkit.csv")
    return made + [tuple(row[key] for key in ("claim", "lines", "command", "found", "verdict")) for row in recorded]


def _stated(claim: Claim, values: Sequence[float]) -> str:
    digits = 1 if claim.unit == "points" else 2
    error = standard_error(values)
    spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    p = paired.t_test(values)
    sure = "" if math.isnan(p) else f", p = {p:.3f}"
    seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    return f"{np.mean(values):+.{digits}f}{spread} {claim.unit}, {seeds}{sure}".replace("-", "−", 1)


def markdown(results: pathlib.Path) -> str:
    """The page of all claims."""
    headings = ("claim", "lines", "measured by", "what should be above 0", "verdict")
    lines = [headings, ("---",) * 5, *rows(results)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# What the paper claims, and what we measured

Each claim is a quantity that it takes for positive, averaged over a seed's comparisons, as far as they are measured;
mean ± standard error, and p of a t-test over seeds, at {_LIKELY}. A scale of "cpu" or "gpu" is a smaller study, whose
page says how; a claim may hold at the paper's scale and not there. Claims that something does no harm are "not
contradicted" unless harm is measured.

{table}
"""
