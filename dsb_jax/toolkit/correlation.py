"""What class accuracy goes with: the number of samples, or what the samples span (the paper's Table 1).

Pearson's r and Spearman's ρ of class accuracy with N, the effective number E_n, the interference W, the volume S' and
the scale S, the latter ones by α. A handful of classes makes a large r by chance; so each coefficient has an interval
by resampling classes (BCa: Efron, Better Bootstrap Confidence Intervals, 1987), and two measures are compared on the
same resamples.
"""

import dataclasses
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

import dsb_jax
from dsb_jax import validation
from dsb_jax.evaluation import drawing, metrics, plots, runs
from dsb_jax.evaluation.drawing import ACCURACY, INK, SCALE, SMALL
from dsb_jax.toolkit import class_tables, spaces
from dsb_jax.toolkit.points import Points
from dsb_jax.training.spaces import measures as measures_of

ALPHAS = (1.0, 1.5, 2.0, 2.5, 3.0)

_NAMES = {
    "N": "number of samples",
    "E_n": "effective number of samples",
    "W": "interference weight W",
    "S'": "volume S' (bits)",
    "S": "semantic scale S",
}
_FEWEST = 8  # classes; resamples of fewer are the same class over and over too often
_DEFINED = 0.8  # of the resamples, that must have a coefficient if there is to be an interval
_SURE = 0.975  # of the resamples, in which one measure is ahead of another
_ONE_ALPHA = 5  # measures that there are with a single α
_AT_ONCE = 2**20  # numbers of resamples in memory


class Measure(NamedTuple):
    """What is known of the classes.

    Attributes:
      symbol: ``"N"``, ``"E_n"``, ``"W"``, ``"S'"`` or ``"S"``.
      alpha: of W and S; None of the others.
      values: float64 ``[C]``, NaN for a class without samples.
    """

    symbol: str
    alpha: float | None
    values: np.ndarray

    def __str__(self) -> str:
        """As the paper writes it."""
        return self.symbol if self.alpha is None else f"{self.symbol}, α = {self.alpha:g}"


class Coefficient(NamedTuple):
    """A coefficient of correlation.

    Attributes:
      value: in [-1, 1]; NaN where it is undefined.
      low: where its interval begins; NaN where there is none, as of fewer than eight classes.
      high: where it ends.
      resampled: float64 ``[resamples]``, its values in resamples of the classes, NaN in one of equal values only; empty
        where there are none or too few but NaN.
    """

    value: float
    low: float
    high: float
    resampled: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Correlations:
    """The paper's Table 1 for one set of classes. A :class:`dsb_jax.toolkit.findings.Finding`.

    Attributes:
      measures: in the table's order.
      pearson: r of each of them.
      spearman: likewise ρ.
      accuracy: float64 ``[C]``, NaN where it is not known.
      class_names: C names.
      confidence: of the intervals.
      name: what the classes are of.
    """

    measures: tuple[Measure, ...]
    pearson: tuple[Coefficient, ...]
    spearman: tuple[Coefficient, ...]
    accuracy: np.ndarray
    class_names: tuple[str, ...]
    confidence: float
    name: str

    @property
    def number(self) -> int:
        """How many classes have both an accuracy and samples."""
        return int(np.isfinite(self.accuracy + self.measures[0].values).sum())

    @property
    def best(self) -> int | None:
        """The measure that accuracy goes with most closely, rising or falling; None where all is undefined."""
        values = np.abs([coefficient.value for coefficient in self.pearson])
        return int(np.nanargmax(values)) if np.isfinite(values).any() else None

    @property
    def best_scale(self) -> int:
        """The scale that accuracy goes with most closely, rising or falling, of all α."""
        scales = [place for place, measure in enumerate(self.measures) if measure.symbol == "S"]
        return max(scales, key=lambda place: np.nan_to_num(abs(self.pearson[place].value), nan=-1.0))

    def ahead(self, first: int, second: int) -> float:
        """The share of resamples in which accuracy goes more closely, by ``|r|``, with one measure than with another.

        Of those resamples in which both have an r; NaN where there are none.
        """
        one, other = (np.abs(self.pearson[place].resampled) for place in (first, second))
        if not (len(one) and len(other)):
            return float("nan")
        known = np.isfinite(one + other)
        return float(np.mean(one[known] > other[known])) if known.any() else float("nan")

    def reading(self) -> str:
        """What accuracy goes with, how sure that is, and whether the number of samples would have said the same."""
        if self.best is None:
            return (
                f"Nothing can be said of {self.number} classes: accuracy or every measure is the same in all, or there "
                "are fewer than three classes."
            )
        best, found = self.measures[self.best], self.pearson[self.best]
        falls = ", and falls with it" if found.value < 0 else ""
        text = f"Over {self.number} classes accuracy goes most closely with {_sentence(best)}{falls}: "
        text += f"{self._told(found)}."
        return f"{text} {self._against_samples()}".replace("-", "−")

    def _against_samples(self) -> str:
        """Whether the scale says more of the classes than their numbers of samples do."""
        samples, place = self.pearson[0], self.best_scale
        if np.isnan(samples.value):
            return "The number of samples is the same in all classes and tells nothing."
        text = (
            f"With {_sentence(self.measures[place])} r = {self.pearson[place].value:.2f}, with the number of samples "
        )
        text += f"r = {samples.value:.2f}"
        share = self.ahead(place, 0)
        if np.isnan(share):
            return f"{text}."
        verdict = "" if not 1 - _SURE < share < _SURE else ", which does not tell them apart"
        chosen = "; α is the best of several for these very classes" if len(self.measures) > _ONE_ALPHA else ""
        measured = " by |r|" if min(self.pearson[place].value, samples.value) < 0 else ""
        return f"{text}: the scale is ahead{measured} in {share:.0%} of the resamples{verdict}{chosen}."

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each measure."""
        headings = ["measure", "alpha", "Pearson r", "from", "to", "Spearman rho", "from", "to"]
        rows = []
        for measure, *coefficients in zip(self.measures, self.pearson, self.spearman, strict=True):
            numbers = [number for each in coefficients for number in (each.value, each.low, each.high)]
            alpha = "" if measure.alpha is None else f"{measure.alpha:g}"
            rows.append([measure.symbol, alpha, *(f"{number:.4f}" if number == number else "" for number in numbers)])
        return headings, rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """All coefficients, and accuracy against scale and against the number of samples."""
        scale = self.best_scale
        of_interval = f"; lines reach over {self.confidence:.0%} of the resamples of the classes"
        drawn = {
            "correlations": (
                "How closely class accuracy goes with each measure of the classes"
                f"{of_interval if np.isfinite(self.pearson[scale].low) else ''}.",
                _forest(self),
            )
        }
        for name, place in (("scale", scale), ("samples", 0)):
            measure = self.measures[place]
            alpha = "" if measure.alpha is None else f", α = {measure.alpha:g}"
            figure = plots.accuracy_against(
                measure.values,
                self.accuracy,
                measure_name=_NAMES[measure.symbol] + alpha,
                class_names=self.class_names,
            )
            drawn[name] = (f"Accuracy of each class against its {_NAMES[measure.symbol]}{alpha}.", figure)
        return drawn

    def as_dict(self) -> dict[str, Any]:
        """Coefficients and what they are of."""

        def numbers(coefficient):
            return {"value": coefficient.value, "low": coefficient.low, "high": coefficient.high}

        return {
            "name": self.name,
            "confidence": self.confidence,
            "correlations": [
                {"measure": m.symbol, "alpha": m.alpha, "pearson": numbers(r), "spearman": numbers(rho)}
                for m, r, rho in zip(self.measures, self.pearson, self.spearman, strict=True)
            ],
            "classes": {
                name: {"accuracy": self.accuracy[place]} | {str(m): m.values[place] for m in self.measures}
                for place, name in enumerate(self.class_names)
            },
        }

    def _told(self, found: Coefficient) -> str:
        if np.isnan(found.low):
            return f"r = {found.value:.2f}, of which fewer than {_FEWEST} classes or so few values give no interval"
        text = (
            f"r = {found.value:.2f}, in {self.confidence:.0%} of resampled classes {found.low:.2f} to {found.high:.2f}"
        )
        return f"{text}, so that it may be none at all" if found.low <= 0 <= found.high else text


def correlate(
    accuracy: ArrayLike,
    points: Points,
    *,
    alphas: Sequence[float] = ALPHAS,
    beta: float = 0.9999,
    epsilon: float = 1.0,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Correlations:
    """What class accuracy goes with, among N, E_n, W, S' and S.

    Args:
      accuracy: fractions ``[C]``; NaN for a class of which it is not known, which is left out.
      points: of the training samples of the classes; a class without any is left out.
      alphas: of W and S, each >= 1.
      beta: of E_n.
      epsilon: of the volumes.
      resamples: of the classes, for intervals.
      confidence: of the intervals, in (0, 1).
      seed: draws the resamples, the same for all measures.
      progress: ``(iterable, total) -> iterable``, through which the measures pass.

    Returns:
      All coefficients; NaN where one is undefined, as of numbers of samples that are all alike, and where fewer than
      eight classes or ties give no interval.

    Raises:
      ValueError: if there is not an accuracy for each class, one is outside of [0, 1], or a setting is.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> rng = np.random.default_rng(0)
      >>> labels = np.repeat(np.arange(9), 40)
      >>> wider = points.of(rng.normal(size=(360, 3)) * (1 + labels[:, None]), labels)
      >>> found = correlate(np.linspace(0.5, 0.9, 9), wider, alphas=(1, 2))
      >>> [str(measure) for measure in found.measures]
      ['N', 'E_n', 'W, α = 1', 'W, α = 2', "S'", 'S, α = 1', 'S, α = 2']
      >>> volume = found.pearson[4]
      >>> round(volume.value, 2), volume.low < volume.value < volume.high
      (0.95, True)

    Source: Ma et al., Delving into Semantic Scale Imbalance, 2023, Table 1 and Appendix D.2.
    """
    (accuracy,) = metrics.vectors(accuracy=accuracy)
    if len(accuracy) != points.num_classes:
        raise ValueError(f"accuracy must be of the {points.num_classes} classes of {points.name}, got {len(accuracy)}")
    if ((accuracy < 0) | (accuracy > 1)).any():
        raise ValueError(f"accuracy must lie in [0, 1], got {accuracy[(accuracy < 0) | (accuracy > 1)][0]:g}")
    validation.positive_int("resamples", resamples)
    if not 0 < validation.positive("confidence", confidence) < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}")
    known = measures(points, alphas=alphas, beta=beta, epsilon=epsilon)
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    pearson, spearman = [], []
    for measure in known if progress is None else progress(known, len(known)):
        pearson.append(_coefficient(accuracy, measure.values, _pearson, **options))
        spearman.append(_coefficient(accuracy, measure.values, _spearman, **options))
    return Correlations(
        known, tuple(pearson), tuple(spearman), accuracy, points.class_names, float(confidence), points.name
    )


def measures(
    points: Points, *, alphas: Sequence[float] = ALPHAS, beta: float = 0.9999, epsilon: float = 1.0
) -> tuple[Measure, ...]:
    """The columns of Table 1.

    Args:
      points: of the classes.
      alphas: of W and S, each >= 1.
      beta: of E_n.
      epsilon: of the volumes.

    Returns:
      N, E_n, W by α, S' and S by α.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> square = points.of(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 4.0]]), np.array([0, 0, 1, 1]))
      >>> for measure in measures(square, alphas=(1,)):
      ...     print(measure, measure.values.round(4))
      N [2. 2.]
      E_n [1.9999 1.9999]
      W, α = 1 [1. 1.]
      S' [0.7925 1.585 ]
      S, α = 1 [0.5 1. ]
    """
    if not len(alphas):
        raise ValueError("alphas must hold a number >= 1 or several, got none")
    space = spaces.space(points, epsilon=epsilon)
    by_alpha = {float(alpha): measures_of(space, alpha) for alpha in alphas}

    def column(symbol: str, alpha: float | None, values: ArrayLike) -> Measure:
        return Measure(symbol, alpha, np.where(space["present"], np.asarray(values, np.float64), np.nan))

    return (
        column("N", None, points.counts),
        column("E_n", None, dsb_jax.effective_number(points.counts, beta=beta)),
        *(column("W", alpha, measured["interclass"]) for alpha, measured in by_alpha.items()),
        column("S'", None, space["volumes"]),
        *(column("S", alpha, measured["scale"]) for alpha, measured in by_alpha.items()),
    )


def read_accuracies(
    path: str | os.PathLike[str], class_names: Sequence[str], *, columns: tuple[str, str] | None = None
) -> np.ndarray:
    """Accuracies of classes, from a table or from what a finished run left.

    Args:
      path: of a delimited text file with the columns ``class`` and ``accuracy``, or of two columns without a heading
        (:func:`class_tables.by_class`); or the workdir of a run. Accuracies are fractions, or have a ``%``;
        an empty cell, or NaN, is a class of which it is not known.
      class_names: all classes.
      columns: what the columns are called, if otherwise.

    Returns:
      Fractions, float64 ``[C]``, in the order of ``class_names``.

    Raises:
      FileNotFoundError: if there is nothing at ``path``, or a folder without a finished run.
      ValueError: naming the file and the class whose accuracy is no number in [0, 1], is missing or given twice, or
        that is none of the classes.

    Example:
      >>> _ = pathlib.Path("accuracy.csv").write_text("dog,70%\\ncat,0.9\\n")
      >>> read_accuracies("accuracy.csv", ["cat", "dog"])
      array([0.9, 0.7])
    """
    if pathlib.Path(path).is_dir():
        run = runs.load(path)
        found = dict(zip(run.class_names, run.scores.tolist(), strict=True))
    else:
        texts = class_tables.by_class(path, ("class", "accuracy"), columns)
        class_tables.require_no_heading(texts, class_names, ("class", "accuracy"), source=str(path))
        found = {name: _fraction(text, f"{path}: the accuracy of {name!r}") for name, text in texts.items()}
    return np.array(class_tables.in_order(found, class_names, source=str(path)), np.float64)


def _fraction(text: str, what: str) -> float:
    if not text:
        return float("nan")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{what} must be a number, got {text!r}") from None
    if text.endswith("%"):
        value /= 100
    elif value > 1:
        raise ValueError(f"{what} must be a fraction in [0, 1], or have a % behind it, got {text}")
    if not 0 <= value <= 1 and value == value:
        raise ValueError(f"{what} must lie in [0, 1], got {text}")
    return value


def _coefficient(
    accuracy: np.ndarray,
    measure: np.ndarray,
    statistic: Callable[..., np.ndarray],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Coefficient:
    known = np.isfinite(accuracy + measure)
    pair = accuracy[known], measure[known]
    value = float(statistic(*pair)) if known.sum() > 2 else float("nan")
    if known.sum() < _FEWEST or np.isnan(value):
        return Coefficient(value, float("nan"), float("nan"), np.empty(0))
    of_pair = functools.partial(
        bootstrap, pair, statistic, vectorized=True, paired=True, confidence_level=confidence, method="BCa"
    )
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # Where there is no interval it is NaN.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        batch = max(_AT_ONCE // int(known.sum()), 1)
        found = of_pair(n_resamples=resamples, batch=batch, rng=np.random.default_rng(seed))
        resampled = found.bootstrap_distribution
        # A resample of ties alone has no coefficient, and one such would take the interval of all others.
        defined = resampled[np.isfinite(resampled)]
        if len(defined) < _DEFINED * resamples:
            return Coefficient(value, float("nan"), float("nan"), np.empty(0))
        if len(defined) < resamples:
            found = of_pair(n_resamples=0, bootstrap_result=dataclasses.replace(found, bootstrap_distribution=defined))
    constant = len(defined) == resamples and np.ptp(defined) == 0
    low, high = (value, value) if constant else found.confidence_interval
    return Coefficient(value, float(low), float(high), resampled)


def _pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's r along an axis of arrays; NaN where either is constant."""
    x, y = _directions(x, axis), _directions(y, axis)
    return np.clip(np.sum(x * y, axis=axis), -1.0, 1.0)


def _spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's ρ: Pearson's r of ranks, of which equal values share the mean."""
    return _pearson(rankdata(x, axis=axis), rankdata(y, axis=axis), axis)


def _directions(x: np.ndarray, axis: int) -> np.ndarray:
    """Less the mean, of length 1; NaNs where all are equal."""
    x = x - np.take(x, [0], axis=axis)  # so that equal values are exactly 0
    x = x - np.mean(x, axis=axis, keepdims=True)
    length = np.linalg.norm(x, axis=axis, keepdims=True)
    return np.divide(x, length, out=np.full_like(x, np.nan), where=length > 0)


def _sentence(measure: Measure) -> str:
    alpha = "" if measure.alpha is None else f" at α = {measure.alpha:g}"
    return f"the {_NAMES[measure.symbol].removesuffix(' (bits)')}{alpha}"


def _forest(found: Correlations) -> Figure:
    """A row for each measure, with r and ρ and their intervals."""
    number = len(found.measures)
    figure, axes = drawing.figure_and_axes(height=1.1 + 0.26 * number)
    for offset, colour, marker, name, coefficients in (
        (-0.14, ACCURACY, "o", "Pearson's r", found.pearson),
        (0.14, SCALE, "D", "Spearman's ρ", found.spearman),
    ):
        rows = np.arange(number) + offset
        values, low, high = (np.array([each[place] for each in coefficients]) for place in range(3))
        axes.hlines(rows, low, high, color=colour, linewidth=1.4)
        style: dict[str, Any] = {"color": colour, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(values, rows, linestyle="none", marker=marker, label=name, **style)
    undefined = [np.isnan(each.value) for each in found.pearson]
    for row in np.flatnonzero(undefined).tolist():
        axes.text(0.02, row, "undefined", va="center", color=INK, fontsize=SMALL)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(number - 0.5, -0.5)
    axes.set_yticks(range(number), [str(measure).replace("E_n", "Eₙ") for measure in found.measures])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    drawing.plain_numbers(axes.xaxis)
    drawing.title(axes, f"What accuracy goes with: {drawing.short(found.name, 28)}", legend_lines=1)
    drawing.legend(axes)
    return figure
