"""Several runs of one dataset on one page: their results, and paired differences from class to class."""

import math
import os
import pathlib
from collections.abc import Collection, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from dsb_jax.evaluation import curves, groups, page, paired, plots, runs
from dsb_jax.evaluation.groups import Comparison, Group
from dsb_jax.evaluation.runs import Run

_CORRELATIONS = {"samples": "r with N", "scale": "r with S"}
_LIKELY = 0.05  # p from which a difference may well be chance


def write(
    workdirs: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str], *, without_effect: Collection[str] = ()
) -> pathlib.Path:
    """Writes one page that compares finished runs of one dataset.

    Runs that differ in their seed alone form a group, given as mean ± standard deviation. The group of the first run is
    the base: every other group is compared with it class by class, each run with that of the same seed.

    Args:
      workdirs: folders of two finished runs or more, one of the base first.
      path: the page to write; folders that lack are made.
      without_effect: settings, dotted where they are nested, that change no result and set no runs apart.

    Returns:
      The path of the page. It appears whole or not at all; an older one is replaced.

    Raises:
      FileNotFoundError: naming the file of a run that is missing.
      ValueError: if there are fewer than two runs, one is given twice, they are of different datasets or classes, or a
        file cannot be read.

    Example:
      >>> write(["runs/ce"], "comparison.html")
      Traceback (most recent call last):
      ValueError: a comparison needs two runs or more, got 1
    """
    if len(workdirs) < 2:
        raise ValueError(f"a comparison needs two runs or more, got {len(workdirs)}")
    folders = [pathlib.Path(workdir).resolve() for workdir in workdirs]
    for folder, workdir in zip(folders, workdirs, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"a comparison needs different runs, got {str(workdir)!r} twice")
    loaded = [runs.load(workdir) for workdir in workdirs]
    groups.check_comparable(loaded)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{len(loaded)} runs on {loaded[0].results['dataset']}"
    return page.write(path, page.document(title, _body(loaded, groups.group(loaded, without_effect))))


def _body(loaded: list[Run], grouped: list[Group]) -> str:
    compared = groups.compare(grouped)
    sections = (
        _rehearsals(loaded),
        _budgets(grouped),
        page.section("Results", _group_table(grouped), _run_table(grouped)),
        page.section(
            "Differences",
            _sentences(compared),
            _difference_table(compared, _figures(grouped)),
            page.plots(_by_class(grouped[0], compared)),
        ),
        page.section("Training", page.plots(_training(grouped))),
        page.section("Classes", _class_table(grouped[0], compared)),
        page.section("Settings that differ", _setting_table(loaded)),
    )
    return "\n".join(filter(None, sections))


def _figures(grouped: list[Group]) -> dict[str, str]:
    """The figures that all runs have, with their headings: of retrieval they may differ."""
    everything = [run.words.figures for group in grouped for run in group.runs]
    return {key: name for key, name in everything[0].items() if all(key in figures for figures in everything)}


def _rehearsals(loaded: list[Run]) -> str:
    number = sum(run.results.get("data") == "synthetic" for run in loaded)
    if not number:
        return ""
    what = "is a rehearsal" if number == 1 else "are rehearsals"
    return f"""<p class="reading"><b>{number} of these runs {what}</b> with made-up images, whose accuracies mean
nothing.</p>"""


def _budgets(grouped: list[Group]) -> str:
    """What a reader has to know where methods were trained longer than others."""
    epochs = {group.label: [stage["epochs"] for stage in group.runs[0].stages] for group in grouped}
    if len({sum(of_stages) for of_stages in epochs.values()}) < 2:
        return ""
    told = ", ".join(f"{escape(label)} {' + '.join(f'{n:g}' for n in n_of)}" for label, n_of in epochs.items())
    return f'<p class="reading"><b>Trained for different numbers of epochs</b>, in all their stages: {told}.</p>'


def _group_table(grouped: list[Group]) -> str:
    """Mean ± deviation of each group; nothing where no group has two runs."""
    if all(len(group.runs) == 1 for group in grouped):
        return ""
    figures = _figures(grouped)
    rows = (
        (
            group.label,
            str(len(group.runs)),
            *(_mean_and_deviation(100 * group.results(key), "{:.1f}") for key in figures),
            *(_mean_and_deviation(_correlations(group, key), "{:.2f}") for key in _CORRELATIONS),
        )
        for group in grouped
    )
    headings = ("method", "runs", *(f"{name} (%)" for name in figures.values()), *_CORRELATIONS.values())
    return f"<p>Mean ± standard deviation over seeds.</p>\n{page.table(headings, rows)}"


def _run_table(grouped: list[Group]) -> str:
    words, figures = grouped[0].runs[0].words, _figures(grouped)
    rows = (
        (
            group.label,
            str(run.results.get("seed", "–")),
            *(page.number(100 * group.results(key)[i], "{:.1f}") for key in figures),
            *(page.number(run.correlations[key], "{:.2f}") for key in _CORRELATIONS),
            run.path.name,
        )
        for group in grouped
        for i, run in enumerate(group.runs)
    )
    headings = ("method", "seed", *(f"{name} (%)" for name in figures.values()), *_CORRELATIONS.values(), "folder")
    groups = (
        " Head, middle and tail are the classes with more than 100, 20 to 100, and fewer than 20 training samples;"
        if "head" in figures
        else ""
    )
    return f"""<p>Every run.{groups} r is Pearson's, of class {words.score} with {words.sizes_name} N and with semantic
scale S.</p>
{page.table(headings, rows, texts=[len(headings) - 1])}"""


def _sentences(compared: list[Comparison]) -> str:
    if not compared:
        return "<p>The runs differ in their seeds alone: there is nothing to compare.</p>"
    items = "".join(f"<li>{escape(_over_seeds(each))} {escape(_over_classes(each))}</li>\n" for each in compared)
    several = f" The {len(compared)} comparisons are not corrected for being several." if len(compared) > 1 else ""
    return f"""<ul class="reading">
{items}</ul>
<p>p is how often chance alone would show a difference as clear if there were none. A test over seeds speaks of training
anew, but a few seeds prove little. A test over classes takes the classes for independent ones, and speaks of these
trained models, not of other seeds.{several}</p>"""


def _over_seeds(comparison: Comparison) -> str:
    """The difference in the first figure, and how sure it is."""
    key, heading = next(iter(comparison.pairs[0][0].words.figures.items()))
    differences, number = comparison.differences(key), len(comparison.pairs)
    points = _mean_and_deviation(100 * differences, "{:+.1f}")
    text = f"{comparison.label} against {comparison.base}: {heading} {points} points"
    if not comparison.same_seed:
        return f"{text}; no seed is shared, so that {number} against one run is no test over seeds."
    left_out = f" ({comparison.unpaired} of another seed left out)" if comparison.unpaired else ""
    if number == 1:
        return f"{text} in one pair of runs{left_out}."
    verdict = _verdict(paired.t_test(differences), number)
    return f"{text} over {number} seeds{left_out}; paired t-test over seeds: {verdict}."


def _over_classes(comparison: Comparison) -> str:
    """How many classes gain and lose, and how sure it is that classes gain or lose on the whole."""
    differences = comparison.mean_by_class
    differences = differences[np.isfinite(differences)]
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    verdict = _verdict(paired.wilcoxon(differences), better + worse)
    return (
        f"Of {len(differences):,} classes, {better:,} gain and {worse:,} lose; Wilcoxon signed-rank test over these: "
        f"{verdict}."
    )


def _verdict(p: float, number: int) -> str:
    if math.isnan(p):
        return f"undefined (n = {number:,})"
    meaning = "this may well be chance" if p >= _LIKELY else "chance alone is unlikely"
    return f"n = {number:,}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}, {meaning}"


def _difference_table(compared: list[Comparison], figures: dict[str, str]) -> str:
    if not compared:
        return ""
    rows = (
        (
            each.label,
            str(len(each.pairs)),
            *(_mean_and_deviation(100 * each.differences(key), "{:+.1f}") for key in figures),
            _mean_and_deviation(100 * paired.mean(each.by_class.T), "{:+.1f}"),
        )
        for each in compared
    )
    table = page.table(("method", "pairs", *figures.values(), "mean over classes"), rows)
    return f"<p>Points above {escape(compared[0].base)}, mean ± standard deviation over pairs.</p>\n{table}"


def _by_class(base: Group, compared: list[Comparison]) -> dict[str, tuple[str, Figure]]:
    first = base.runs[0]
    names = {"score_name": first.words.score_name, "sizes_name": first.words.sizes_name}
    drawn = {}
    for number, each in enumerate(compared):
        spread = " Lines are standard deviations over pairs." if len(each.pairs) > 1 else ""
        drawn[f"difference{number}"] = (
            f"{first.words.score.capitalize()} of {each.label} less that of {each.base}, class by class, from most to "
            f"fewest {first.words.sizes_name} (of {first.path.name}).{spread}",
            plots.accuracy_differences(
                each.mean_by_class,
                first.sizes,
                spread=paired.deviation(each.by_class),
                title=f"{each.label} less {each.base}",
                class_names=first.class_names,
                **names,
            ),
        )
    return drawn


def _training(grouped: list[Group]) -> dict[str, tuple[str, Figure]]:
    everything = [(group.label, run) for group in grouped for run in group.runs]
    drawn = {}
    if any(len(run.tests["epoch"]) for _, run in everything):
        curve = [(label, run.tests["epoch"], run.tests["score"]) for label, run in everything]
        name = grouped[0].runs[0].words.score_name
        text = f"{name.capitalize()} on the test set by epoch, a line for each run; runs of one method share a colour."
        drawn["score"] = text, curves.runs(curve, measure_name=f"test {name}", percent=True)
    if any(len(run.training["epoch"]) for _, run in everything):
        curve = [(label, run.training["epoch"], run.training["loss"]) for label, run in everything]
        text = "Loss of training batches by epoch, with the weights that a method gives to classes."
        drawn["loss"] = text, curves.runs(curve, measure_name="training loss")
    return drawn


def _class_table(base: Group, compared: list[Comparison]) -> str:
    scores = paired.mean(np.array([run.scores for run in base.runs]))
    differences = [100 * each.mean_by_class for each in compared]
    first = base.runs[0]
    rows = (
        (
            name,
            f"{first.sizes[i]:,.0f}",
            page.number(100 * scores[i], "{:.1f}"),
            *(page.number(column[i], "{:+.1f}") for column in differences),
        )
        for i, name in enumerate(first.class_names)
    )
    headings = ("class", first.words.sizes_name, f"{base.label} (%)", *(f"{each.label} (points)" for each in compared))
    return f"""<p>{first.words.score_name.capitalize()} of the base in per cent, and the mean paired difference of each
other method from it in points. Press a heading to sort by it.</p>
{page.sortable_table(headings, rows)}"""


def _setting_table(loaded: list[Run]) -> str:
    differing = groups.differing_settings(loaded)
    rows = ((run.path.name, *(column[i] for column in differing.values())) for i, run in enumerate(loaded))
    return page.table(("folder", *differing), rows) if differing else ""


def _correlations(group: Group, key: str) -> np.ndarray:
    return np.array([run.correlations[key] for run in group.runs])


def _mean_and_deviation(values: np.ndarray, form: str) -> str:
    spread = float(paired.deviation(values))
    shown = page.number(float(paired.mean(values)), form)
    return shown if math.isnan(spread) else f"{shown} ± {form.replace('+', '').format(spread)}"
