"""The paper's sentences that a measurement can contradict, and what ours say.

A claim is a quantity that it takes for positive, of every seed; a t-test over seeds says whether it is. Several
comparisons of one seed are averaged first, for they share a subset and are no independent trials. What the toolkit and
the benchmarks measure, without such runs, is recorded in ``toolkit.csv``.
"""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from dsb_jax.evaluation import paired
from reproduction import runs
from reproduction.catalogue import TARGETS
from reproduction.measured import Measured, standard_error
from reproduction.quantities import (
    Quantity,
    above,
    excess,
    first_growth,
    gain,
    grow_together,
    is_dsb,
    more_in,
    more_on,
    most_in_tail,
    nearer,
    of_classes,
    of_thirds,
    overtaken,
    rise_together,
    same_classes,
    same_classes_with_other_seeds,
    weaker,
)
from reproduction.targets import SCALES, Cell

VERDICTS = ("holds", "not contradicted", "undecided", "does not hold", "not measured")
_LIKELY = 0.05


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


_EYES = ("cataract", "age-related macular degeneration", "myopia")  # classes C, A and M
_BASES = {"CE": "DSB-CE", "Focal": "DSB-Focal", "LDAM": "DSB-LDAM", "BS": "DSB-BS", "LADE": "DSB-LADE"}
_FURTHER_BASES = {"PaCo": "DSB-PaCo", "MBJ": "DSB+MBJ", "RIDE": "DSB+RIDE"}
_NAMED = ("DSB-CE", "DSB-Focal")  # where the text speaks of Table 2's tail
_OF_GLT = ("DSB-BLSoftmax", "DSB-LDAM", "DSB-BLSoftmax+IFL")
_CB = {"DSB-NSM": ("CB-NSM",), "DSB-ST": ("CB-ST",)}
_METRICS = {"recall_at_1": "R@1", "recall_at_2": "R@2", "nmi": "NMI"}
_TAILS = ("CIFAR-10-LT", "CIFAR-100-LT")


def _named(*methods: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.method in methods


def _unnamed(cell: Cell) -> bool:
    return is_dsb(cell) and cell.method not in _NAMED


# fmt: off
CLAIMS = (
    Claim("S goes with class accuracy more closely than N, on a long tail", "492-497", "table1",
          excess("r_S_alpha2", "r_N", "CIFAR-10-LT"), "of r"),
    *(Claim(f"so it does on {tail} by the recipe of Table 2's study", "492-497", "table2",
            excess("r_S_alpha2", "r_N", tail), "of r") for tail in _TAILS),
    Claim("S goes with it more closely than S′, on a long tail", "492-497", "table1",
          excess("r_S_alpha2", "r_Sprime", "CIFAR-10-LT"), "of r"),
    *(Claim(f"more than S′ too on {tail}, by that recipe", "492-497", "table2",
            excess("r_S_alpha2", "r_Sprime", tail), "of r") for tail in _TAILS),
    Claim("S goes with it more closely than S′, on balanced data", "492-497", "table1",
          excess("r_S_alpha1", "r_Sprime", "CIFAR-10,"), "of r"),
    Claim("S′ is more dominant on long-tailed data than on other data", "494-495", "table1",
          more_on("r_Sprime", "CIFAR-10-LT", "CIFAR-10"), "of r"),
    Claim("S′ goes with it more closely than W, on a long tail", "1815-1819", "table1",
          excess("r_Sprime", "r_W", "CIFAR-10-LT"), "of r"),
    Claim("the effective number goes with it as N does", "1820-1822", "table1",
          excess("r_En", "r_N", "CIFAR-10-LT"), "of r", negligible=True),
    Claim("on MNIST-LT S goes with it more closely than N", "499-530", "figure3",
          excess("r_S_alpha2", "r_N", "MNIST-LT"), "of r"),
    Claim("class accuracies on MNIST-LT-1 are nearer to MNIST's than to MNIST-LT-2's", "516-521", "figure3",
          nearer("MNIST-LT-1", "MNIST", "MNIST-LT-2")),
    Claim("some classes of fewer samples are recognised more than others of more", "523-525", "table1",
          overtaken, "% of pairs"),
    *(Claim("accuracy does not fall with N on CIFAR-100-LT", "526-530", target,
            excess(None, "r_N", "CIFAR-100-LT"), "of r", negligible=True) for target in ("figure3", "table2")),
    Claim("top-1 rises with the sum of volumes", "411-415", "figure2-right",
          rise_together("sum_of_volumes", "top1"), "of ρ"),
    Claim("it rises fast where they do, and little where they are saturated", "413-415", "figure2-right",
          grow_together("sum_of_volumes", "top1"), "of ρ"),
    Claim("with few samples volumes grow faster than these", "2016-2020", "figure2-right",
          first_growth("sum_of_volumes"), "of the power"),
    Claim("of balanced classes those of smaller scale are recognised less", "532-546", "figure4",
          excess("r_S_alpha1", None, "CIFAR-10"), "of r"),
    Claim("networks and subsets are weak in the same classes", "540-546", "figure4", same_classes, "of ρ"),
    Claim("so are runs of the same network and subset with other seeds", "540-546", "figure4",
          same_classes_with_other_seeds, "of ρ"),
    Claim("on CIFAR-10 cat and dog are recognised least", "1084-1087", "table1",
          of_classes(lambda of: min(of[name] for name in of if name not in ("cat", "dog")) - max(of["cat"], of["dog"]),
                     "CIFAR-10,")),
    Claim("on CIFAR-10-LT both are recognised more than deer", "1087-1088", "table1",
          of_classes(lambda of: min(of["cat"], of["dog"]) - of["deer"], "CIFAR-10-LT")),
    Claim("weights that begin later than epoch 5 do no harm", "618-620", "figure5",
          gain("top1", of=lambda cell: int(cell.method.rpartition(" ")[2]) > 5), negligible=True),
    *(Claim(f"{dsb} is above {base}", "656-690", "table2", gain("top1", of=_named(dsb)))
      for base, dsb in (_BASES | _FURTHER_BASES).items()),
    *(Claim(f"DSB-CE is above CE by {by} points on {on}", "681-682", "table2",
            gain("top1", of=_named("DSB-CE"), on=on, by=by))
      for on, by in (("ImageNet-LT", 4.8), ("iNaturalist 2018", 2.6))),
    Claim("DSB-CE and DSB-Focal improve the tail most", "683-687", "table2", most_in_tail(_named(*_NAMED))),
    Claim("so do other losses with DSB", "683-687", "table2", most_in_tail(_unnamed)),
    *(Claim(f"{method} improves the tail of ImageNet-LT by {by} points", "685-687", "table2",
            gain("tail", of=_named(method), on="ImageNet-LT", by=by))
      for method, by in (("DSB-CE", 13.7), ("DSB-Focal", 10.6))),
    Claim("DSB-CE and DSB-Focal do not compromise the head", "683-687", "table2",
          gain("head", of=_named(*_NAMED)), negligible=True),
    Claim("nor do other losses with DSB", "683-687", "table2", gain("head", of=_unnamed), negligible=True),
    Claim("DSB-CE is above CB-CE", "660-661", "table2", above({"DSB-CE": ("CB-CE",)}, "top1")),
    Claim("IFL enhances DSB-CE further", "687-689", "table2", above({"DSB-CE+IFL": ("DSB-CE",)}, "top1")),
    Claim("DSB improves training on balanced data", "692-700", "table3", gain("top1", of=is_dsb)),
    Claim("it does so by more than one point", "695-697", "table3", gain("top1", of=is_dsb, by=1.0)),
    *(Claim(f"DSB improves retrieval on CUB and Cars by more than one point ({_METRICS[key]})", "748-749", "table4",
            gain(key, of=is_dsb, by=1.0)) for key in ("recall_at_1", "nmi")),
    *(Claim(f"DSB-ST of 512 numbers is above Circle by {by} points on Cars ({_METRICS[key]})", "749-750", "table4",
            above({"DSB-ST": ("Circle",)}, key, on="Cars196, 512-d", by=by))
      for key, by in (("recall_at_1", 2.2), ("recall_at_2", 1.5))),
    *(Claim(f"DSB improves retrieval after a long tail ({name})", "770-775", "table5", gain(key, of=is_dsb))
      for key, name in _METRICS.items()),
    *(Claim(f"there DSB is above CB ({name})", "772-773", "table5", above(_CB, key)) for key, name in _METRICS.items()),
    *(Claim(f"at imbalance 200 DSB-ST is above SoftTriple by {by} points ({_METRICS[key]})", "773-775", "table5",
            gain(key, of=_named("DSB-ST"), on="CIFAR-100-LT, imbalance 200", by=by))
      for key, by in (("recall_at_1", 2.7), ("recall_at_2", 2.8), ("nmi", 1.9))),
    *(Claim(f"DSB improves {name} under {protocol}, of BL-softmax, LDAM and BL-softmax+IFL", "842-845", "table6",
            gain(key, of=_named(*_OF_GLT), on=f"MSCOCO-GLT, {protocol}"))
      for protocol in ("CLT", "GLT", "ALT") for key, name in (("top1", "accuracy"), ("precision", "precision"))),
    *(Claim(f"{method} improves R@1 after a tail of Cars by {by} points, imbalance {imbalance}", "1176-1180", "table9",
            gain("recall_at_1", of=_named(method), on=f"Cars196-LT, imbalance {imbalance}", by=by))
      for method, imbalance, by in (
          ("DSB-NSM", 10, 3.1), ("DSB-ST", 10, 2.1), ("DSB-NSM", 50, 2.8), ("DSB-ST", 50, 2.5))),
    *(Claim(f"there DSB is above CB ({name})", "1180", "table9", above(_CB, key)) for key, name in _METRICS.items()),
    *(Claim(f"DSB improves {_METRICS[key]} after balanced data by {by} points", "1182-1184", "table10",
            gain(key, of=is_dsb, by=by)) for key, by in (("recall_at_1", 1.3), ("nmi", 1.0))),
    Claim("all seven classes are matched with their superclass", "2088", "table12"),
    Claim("average precision rises most for cataract, macular degeneration and myopia, of small scale", "1242-1245",
          "figure11", more_in(*_EYES, column="average_precision")),
    Claim("where eyes are balanced by number these three are still the weakest", "1256-1258", "figure12",
          weaker(*_EYES, column="average_precision")),
    Claim("and their average precision rises most", "1260-1263", "figure12",
          more_in(*_EYES, column="average_precision")),
    Claim("DSB improves scenes of RSSCN7", "1304-1308", "figure14", gain("top1", of=is_dsb)),
    Claim("without it industrial regions are recognised less than other scenes", "1305-1306", "figure14",
          weaker("Industry")),
    Claim("it does so most for industrial regions and parking lots", "1309-1311", "figure14",
          more_in("Industry", "Parking")),
    *(Claim(f"DSB improves scenes of {on} by {by} points", lines, target, gain("top1", of=is_dsb, on=on, by=by))
      for on, by, lines, target in (
          ("RSSCN7, GoogLeNet", 1.0, "1311-1312", "figure14"), ("RSSCN7, ResNet-34", 0.6, "1311-1312", "figure14"),
          ("RESISC45, VGG-16", 1.8, "1318-1320", "figure15"), ("RESISC45, GoogLeNet", 1.6, "1318-1320", "figure15"),
          ("RESISC45, ResNet-34", 1.2, "1318-1320", "figure15"))),
    Claim("to leave out interference costs almost nothing", "1831-1835", "figure17",
          above({"DSB-CE-1": ("DSB-CE",), "DSB-Focal-1": ("DSB-Focal",)}, "top1"), negligible=True),
    Claim("DSB is above CDB, LOCE and domain balancing", "1869-1877", "figure18",
          above({"DSB-CE": ("CDB", "LOCE", "domain balancing")}, "top1")),
    Claim("DSB improves the third of smallest scale", "1884-1885", "figure19", of_thirds(lambda gains: gains[0])),
    Claim("DSB is above the base in all three thirds", "1885-1887", "figure19", of_thirds(min)),
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
    found = rows(results)
    lines = [headings, ("---",) * 5, *found]
    said = Counter(row[-1] for row in found)
    total = ", ".join(f"{said[what]} {what}" for what in VERDICTS if said[what])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# What the paper claims, and what we measured

Each claim is a quantity that it takes for positive, averaged over a seed's comparisons, as far as they are measured;
mean ± standard error, and p of a t-test over seeds, at {_LIKELY}. A scale of "cpu" or "gpu" is a smaller study, whose
page says how; a claim may hold at the paper's scale and not there. Claims that something does no harm are "not
contradicted" unless harm is measured. Of these {len(found)} rows: {total}.

{table}
"""
