"""The paper's sentences that a measurement can contradict, and what ours say.

A claim is a quantity that it takes for positive, of every seed; a t-test over seeds says whether it is. Several
comparisons of one seed are averaged first, for they share a subset and are no independent trials.
"""

import dataclasses
import math
import pathlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from dsb_jax.evaluation import paired
from reproduction import runs
from reproduction.catalogue import TARGETS
from reproduction.pages import Measured, standard_error
from reproduction.targets import SCALES, Cell, bases

_LIKELY = 0.05

Quantity = Callable[[Measured, Sequence[Mapping[str, str]]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Attributes:
      text: what it says, in our words.
      lines: of the paper's text.
      target: the table or figure that measures it.
      quantity: ``(runs, their classes) -> {seed: what should be above 0}``; empty where nothing is measured.
      unit: of the quantity.
      negligible: it says that the quantity is not below 0, or makes no difference, rather than that it is above.
    """

    text: str
    lines: str
    target: str
    quantity: Quantity
    unit: str = "points"
    negligible: bool = False


def verdict(claim: Claim, values: Sequence[float]) -> str:
    """``holds``, ``does not hold``, or ``undecided``; of a claim that something does no harm ``not contradicted``.

    Example:
      >>> gain = Claim("it helps", "1", "table1", lambda measured, classes: {})
      >>> verdict(gain, [1.0, 1.1, 0.9]), verdict(gain, [-1.0, -1.1, -0.9]), verdict(gain, [1.0, -1.1, 0.9])
      ('holds', 'does not hold', 'undecided')
    """
    if len(values) < 2:
        return "not measured" if not len(values) else "undecided"
    p, mean = paired.t_test(values), float(np.mean(values))
    sure = p < _LIKELY or (math.isnan(p) and mean != 0)  # differences that are all the same
    if sure and mean < 0:
        return "does not hold"
    if claim.negligible:
        return "not contradicted"
    return "holds" if sure else "undecided"


def gain(
    measure: str, *, of: Callable[[Cell, Cell], bool] = lambda cell, base: True, less: str | None = None
) -> Quantity:
    """How much methods are above their bases in a measure; ``less``: beyond what they are in another one."""

    def quantity(measured: Measured, classes: Sequence[Mapping[str, str]]) -> Mapping[str, float]:
        del classes
        found = defaultdict(list)
        for cell, base in bases(measured.cells):
            if of(cell, base):
                ours, others = (_beyond(measured, each, measure, less) for each in (cell, base))
                for seed in ours.keys() & others.keys():
                    found[seed].append(ours[seed] - others[seed])
        return _means(found)

    return quantity


def above(method: str, others: Sequence[str], measure: str) -> Quantity:
    """How much a method is above the best of others, on each dataset."""

    def quantity(measured: Measured, classes: Sequence[Mapping[str, str]]) -> Mapping[str, float]:
        del classes
        by_name = {(cell.on, cell.method): measured.values(cell, measure) for cell in measured.cells}
        found = defaultdict(list)
        for (on, name), ours in by_name.items():
            rivals = [by_name[on, other] for other in others if by_name.get((on, other))]
            if name == method and rivals:
                for seed in set(ours).intersection(*rivals):
                    found[seed].append(ours[seed] - max(rival[seed] for rival in rivals))
        return _means(found)

    return quantity


def excess(first: str, second: str | None, on: str) -> Quantity:
    """How much one measure of a run is above another, or above 0, of datasets whose name begins with ``on``."""

    def quantity(measured: Measured, classes: Sequence[Mapping[str, str]]) -> Mapping[str, float]:
        del classes
        found = defaultdict(list)
        for cell in measured.cells:
            if cell.on.startswith(on):
                ours = measured.values(cell, first)
                others = dict.fromkeys(ours, 0.0) if second is None else measured.values(cell, second)
                for seed in ours.keys() & others.keys():
                    found[seed].append(ours[seed] - others[seed])
        return _means(found)

    return quantity


def rise_together(first: str, second: str) -> Quantity:
    """Spearman's ρ of two measures over the subsets of each dataset."""

    def quantity(measured: Measured, classes: Sequence[Mapping[str, str]]) -> Mapping[str, float]:
        del classes
        pairs = defaultdict(list)
        for cell in measured.cells:
            ours, others = measured.values(cell, first), measured.values(cell, second)
            for seed in ours.keys() & others.keys():
                pairs[seed, cell.on.partition(",")[0]].append((ours[seed], others[seed]))
        found = defaultdict(list)
        for (seed, _), points in pairs.items():
            if len(points) > 2:
                found[seed].append(float(spearmanr(*zip(*points, strict=True)).statistic))
        return _means(found)

    return quantity


def same_classes(measured: Measured, classes: Sequence[Mapping[str, str]]) -> Mapping[str, float]:
    """Mean Spearman's ρ of class accuracies between every two networks or subsets."""
    del measured
    scores = defaultdict(lambda: defaultdict(dict))
    for row in classes:
        if row["score"]:
            scores[row["seed"]][row["on"]][row["class"]] = float(row["score"])
    found = defaultdict(list)
    for seed, of_seed in scores.items():
        everything = list(of_seed.values())
        for place, one in enumerate(everything):
            for other in everything[:place]:
                names = sorted(one.keys() & other.keys())
                found[seed].append(float(spearmanr([one[n] for n in names], [other[n] for n in names]).statistic))
    return _means(found)


def _beyond(measured: Measured, cell: Cell, measure: str, less: str | None) -> dict[str, float]:
    ours = measured.values(cell, measure)
    if less is None:
        return ours
    others = measured.values(cell, less)
    return {seed: ours[seed] - others[seed] for seed in ours.keys() & others.keys()}


def _means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {seed: float(np.mean(values)) for seed, values in sorted(found.items()) if len(values)}


def _is_dsb(cell: Cell, base: Cell) -> bool:
    del base
    return cell.method.startswith("DSB") and not cell.method.endswith("-1")


CLAIMS = (
    Claim("S goes with class accuracy more closely than N, on a long tail", "492-497", "table1",
          excess("r_S_alpha2", "r_N", "CIFAR-10-LT"), "of r"),
    Claim("S goes with it more closely than S′, on a long tail", "492-497", "table1",
          excess("r_S_alpha2", "r_Sprime", "CIFAR-10-LT"), "of r"),
    Claim("S goes with it more closely than S′, on balanced data", "492-497", "table1",
          excess("r_S_alpha1", "r_Sprime", "CIFAR-10,"), "of r"),
    Claim("on MNIST-LT S goes with it more closely than N", "499-530", "figure3",
          excess("r_S_alpha2", "r_N", "MNIST-LT"), "of r"),
    Claim("top-1 rises with the sum of volumes", "405-415", "figure2-right",
          rise_together("sum_of_volumes", "top1"), "of ρ"),
    Claim("of balanced classes those of smaller scale are recognised less", "532-546", "figure4",
          excess("r_S_alpha1", None, "CIFAR-10"), "of r"),
    Claim("networks and subsets are weak in the same classes", "540-546", "figure4", same_classes, "of ρ"),
    Claim("weights that begin later do no harm", "618-620", "figure5",
          above("DSB-CE, n = 12", ("DSB-CE, n = 5",), "top1"), negligible=True),
    Claim("DSB improves every base on long tails", "680-690", "table2", gain("top1", of=_is_dsb)),
    Claim("DSB improves the tail most", "683-687", "table2", gain("tail", of=_is_dsb, less="top1")),
    Claim("DSB does not compromise the head", "683-687", "table2", gain("head", of=_is_dsb), negligible=True),
    Claim("DSB-CE is above CB-CE", "660-661", "table2", above("DSB-CE", ("CB-CE",), "top1")),
    Claim("DSB improves training on balanced data", "692-700", "table3", gain("top1", of=_is_dsb)),
    Claim("DSB improves retrieval on CUB and Cars", "747-751", "table4", gain("recall_at_1", of=_is_dsb)),
    Claim("DSB improves retrieval after a long tail (R@1)", "770-775", "table5", gain("recall_at_1", of=_is_dsb)),
    Claim("DSB improves retrieval after a long tail (NMI)", "770-775", "table5", gain("nmi", of=_is_dsb)),
    Claim("DSB-NSM is above CB-NSM", "770-775", "table5", above("DSB-NSM", ("CB-NSM",), "recall_at_1")),
    Claim("DSB-ST is above CB-ST", "770-775", "table5", above("DSB-ST", ("CB-ST",), "recall_at_1")),
    Claim("DSB improves accuracy under generalized long tails", "840-850", "table6", gain("top1", of=_is_dsb)),
    Claim("DSB improves retrieval after a long tail of Cars", "1176-1181", "table9", gain("recall_at_1", of=_is_dsb)),
    Claim("DSB improves retrieval after balanced data", "1196-1198", "table10", gain("recall_at_1", of=_is_dsb)),
    Claim("to leave out interference costs almost nothing", "1831-1835", "figure17",
          above("DSB-CE-1", ("DSB-CE",), "top1"), negligible=True),
    Claim("DSB is above CDB, LOCE and domain balancing", "1869-1877", "figure18",
          above("DSB-CE", ("CDB", "LOCE", "domain balancing"), "top1")),
    Claim("DSB improves the third of smallest scale", "1884-1894", "figure19", gain("low_third", of=_is_dsb)),
)  # fmt: skip


def rows(results: pathlib.Path) -> list[tuple[str, ...]]:
    """Of every claim: what it says, lines, what measures it, the quantity and the verdict; at all scales measured."""
    made = []
    for claim in CLAIMS:
        found = []
        for scale in SCALES:
            measured = Measured(TARGETS[claim.target], claim.target, scale, _read(results, claim.target, scale, ""))
            if measured.rows and scale in measured.target.cells:
                classes = _read(results, claim.target, scale, "-classes")
                values = list(claim.quantity(measured, classes).values())
                if values:
                    found.append((scale, _stated(claim, values), verdict(claim, values)))
        made += [(claim.text, claim.lines, f"{claim.target} ({scale})", said, what) for scale, said, what in found]
        if not found:
            made.append((claim.text, claim.lines, claim.target, "–", "not measured"))
    return made


def _stated(claim: Claim, values: Sequence[float]) -> str:
    digits = 1 if claim.unit == "points" else 2
    error = standard_error(values)
    spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    p = paired.t_test(values)
    sure = "" if math.isnan(p) else f", p = {p:.3f}"
    return f"{np.mean(values):+.{digits}f}{spread} {claim.unit}, {len(values)} seeds{sure}".replace("-", "−", 1)


def _read(results: pathlib.Path, target: str, scale: str, kind: str) -> list[dict[str, str]]:
    return runs.read(results / f"{target}-{scale}{kind}.csv")


def markdown(results: pathlib.Path) -> str:
    """The page of all claims."""
    headings = ("claim", "lines", "measured by", "what should be above 0", "verdict")
    lines = [headings, ("---",) * 5, *rows(results)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# What the paper claims, and what we measured

Each claim is a quantity that it takes for positive, averaged over the comparisons of a seed; mean ± standard error, and
p of a t-test over seeds, at {_LIKELY}. A scale of "cpu" is a smaller study, whose page says how; a claim may hold at
the paper's scale and not there. Claims that something does no harm are "not contradicted" unless harm is measured.

{table}
"""
