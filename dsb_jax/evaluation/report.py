"""The report of a run: what is on its page, and in which order."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

import dsb_jax
from dsb_jax.evaluation import curves, page, plots, reading, runs, searched
from dsb_jax.evaluation.runs import Confusions, Run

_MEASURES = {  # key in results.json: heading, explanation
    "samples": ("{} N", "How many there are of the class."),
    "effective_number": (
        "effective number E_n",
        "The same with diminishing returns: each further one of a class counts a little less.",
    ),
    "interclass": ("distance weight W", "How far the class's centre lies from those of the other classes."),
    "volume": ("volume S′", "How much room the class's features take up: its diversity on its own."),
    "scale": ("semantic scale S", "The volume, reduced where other classes come close: S′ times W."),
}
_SPACES = {
    "pool": "in the feature pool, as training left it",
    "feature": "in the features of the training images under the final model",
    "sample": "in the training images themselves",
    "searched": "in the embeddings of the images searched",
}
_THIRDS = {"low": "smallest", "middle": "middle", "high": "largest"}  # of the classes by semantic scale
_STARTS_SHOWN = 5


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes ``report.html`` from what a finished run left in its workdir.

    Args:
      workdir: a folder with the run's ``results.json``, ``metrics.jsonl`` and ``config.json``; what else a run leaves
        there is shown where it is present.

    Returns:
      The path of the report. It appears whole or not at all; an older one is replaced.

    Raises:
      FileNotFoundError: naming the file that is missing.
      ValueError: naming the file, and the line or key in it, that cannot be read.

    Example:
      >>> write("runs/none")
      Traceback (most recent call last):
      FileNotFoundError: runs/none/results.json is missing: the folder holds no finished run
    """
    run = runs.load(workdir)
    title = f"{run.results['method']} on {run.results['dataset']}"
    return page.write(run.path / "report.html", page.document(title, _body(run)))


def _body(run: Run) -> str:
    sections = (
        page.tiles(_facts(run)),
        _reservation(run),
        f'<p class="reading">{escape(" ".join(reading.sentences(run)))}</p>',
        page.section("Training", page.plots(_over_time(run))),
        page.section("Training images", _training_images(run)),
        page.section(
            f"What {run.words.score} goes with",
            page.plots(_by_class(run)),
            _correlation_table(run),
            _correlations_by_alpha(run),
        ),
        page.section("What is taken for what", page.plots(_confusion(run)), _hardest_pairs(run)),
        page.section("What is found", searched.queries(run), page.plots(searched.embedding_map(run))),
        page.section("Classes", _class_table(run), _trained_class_table(run)),
        page.section("How it was made", _command(run), _stages(run), _environment(run), _configuration(run)),
    )
    return "\n".join(filter(None, sections))


def _reservation(run: Run) -> str:
    """What a reader has to know first: that the images are made up, or not all."""
    numbers = run.results.get("numbers", "true")
    profile = "" if numbers == "true" else f" Numbers of images: {escape(numbers)}."
    if run.results.get("data") != "synthetic":
        return profile and f'<p class="reading">{profile.strip()}</p>'
    return f"""<p class="reading"><b>A rehearsal:</b> the images are made up, and no accuracy or scale on this page
means anything.{profile}</p>"""


def _facts(run: Run) -> dict[str, str]:
    results = run.results
    split = f" ({results['eval_split']} split)" if "eval_split" in results else ""
    words = {"top1": f"top-1 accuracy{split}", "head": "head (> 100 samples)"}
    words |= {"middle": "middle (20–100)", "tail": "tail (< 20)"}
    figures = {key: value for key, value in run.figures.items() if math.isfinite(value)}
    facts = {words.get(key, run.words.figures[key]): f"{value:.1%}" for key, value in figures.items()}
    trained = f"{len(run.trained_names):,}" if run.words.trained else ""
    facts |= {
        "classes": f"{len(run.class_names):,}",
        **({"classes trained": trained} if trained else {}),
        "steps": f"{results['steps']:,}",
        "epochs": _epochs(run),
    }
    if results.get("objective", "supervised") != "supervised":
        facts["objective"] = results["objective"]
    if len(seconds := run.training["train_seconds"]) and math.isfinite(seconds[-1]):
        facts["training time"] = _duration(seconds[-1])
    if np.nanmax(run.training["skipped"], initial=0) > 0:
        facts["skipped steps"] = f"{np.nanmax(run.training['skipped']):,.0f}"
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _over_time(run: Run) -> dict[str, tuple[str, Figure]]:
    training, tests = run.training, run.tests
    drawn = {}
    samples = run.trained["samples"]
    balanced = np.ptp(samples) == 0
    coloured = "" if balanced else "; blue classes have many training samples, orange ones few"
    of_tests = run.words.score_name if run.words.trained else "both"
    if len(training["epoch"]) or len(tests["epoch"]):
        drawn["curves"] = (
            f"Loss and accuracy on training batches, {of_tests} on the test set, and the learning rate, by epoch.",
            curves.training_curves(
                epochs=training["epoch"],
                loss=training["loss"],
                accuracy=training["accuracy"],
                learning_rate=training["learning_rate"],
                test_epochs=tests["epoch"],
                test_loss=tests["test_loss"],
                test_accuracy=tests["score"],
                score_name=run.words.score_name,
            ),
        )
    for key, name in {"weights": "class weight", "scales": "semantic scale"}.items():
        if np.isfinite(tests[key]).any():
            drawn[key] = (
                f"{name.capitalize()} of each class during training{coloured}.",
                curves.by_class(
                    tests["epoch"],
                    tests[key],
                    measure_name=name,
                    counts=samples,
                    class_names=run.trained_names,
                ),
            )
    return drawn


def _training_images(run: Run) -> str:
    """A grid of images with their labels."""
    if run.examples is None or not len(run.examples.images):
        return ""
    columns = (run.examples.images, run.examples.labels, run.examples.other_labels, run.examples.shares)
    cells = []
    for image, label, other, share in zip(*columns, strict=True):
        name = run.trained_names[label]
        if share < 1:
            name = f"{share:.0%} {name}, {1 - share:.0%} {run.trained_names[other]}"
        picture = page.picture(image, f"training image: {name}")
        cells.append(f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>")
    return f"""<p>Images of the first batch as the model saw them, cropped and augmented, with their classes.</p>
<div class="grid">{"".join(cells)}</div>"""


def _by_class(run: Run) -> dict[str, tuple[str, Figure]]:
    names, words, scores, sizes, scale = run.class_names, run.words, run.scores, run.sizes, run.per_class["scale"]
    called = {"score_name": words.score_name, "sizes_name": words.sizes_name}
    drawn = {
        "classes": (
            f"{words.score_name.capitalize()} of each class, from most to fewest {words.sizes_name}.",
            plots.accuracy_by_class(scores, sizes, scales=scale, class_names=names, **called),
        )
    }
    drawn |= _radar(run)
    measures = {
        "samples": (sizes, f"{words.sizes_name} N"),
        "effective": (np.asarray(dsb_jax.effective_number(sizes)), "effective number E_n"),
        "volume": (run.per_class["volume"], "volume S′ (bits)"),
        "scale": (scale, "semantic scale S"),
    }
    for key, (measure, name) in measures.items():
        if np.isfinite(measure).any():
            drawn[key] = (
                f"Class {words.score} against {name}; each point is a class.",
                plots.accuracy_against(
                    measure, scores, measure_name=name, class_names=names, score_name=words.score_name
                ),
            )
    return drawn


def _radar(run: Run) -> dict[str, tuple[str, Figure]]:
    """Of the classes that were trained."""
    names, scale, samples = run.trained_names, run.trained["scale"], run.trained["samples"]
    if len(names) < 3 or not np.isfinite(scale).any():
        return {}
    all_shown = len(names) <= plots.RADAR_CLASSES
    of = "training classes" if run.words.trained else "classes"
    chosen = (
        f"{of.capitalize()} go" if all_shown else f"{plots.RADAR_CLASSES} of the {len(names):,} {of}, evenly chosen, go"
    )
    return {
        "radar": (
            f"Semantic scale and training samples. {chosen} clockwise from most to fewest training samples.",
            plots.scales_and_samples(scale, samples, class_names=names),
        )
    }


def _correlation_table(run: Run) -> str:
    rows = [
        (heading.format(run.words.sizes_name), _coefficient(run.correlations[key]), explanation)
        for key, (heading, explanation) in _MEASURES.items()
    ]
    images = "images searched" if run.words.trained else "training images"
    return f"""<p>Pearson's r between the {run.words.score} of a class and each measure of it: 1 where {run.words.score}
rises in a straight line with the measure, 0 where there is no such relation, −1 where it falls. It is undefined for a
measure that is the same for all classes, or was not taken. W, S′ and S are of the {images} under the final
model{_alpha(run)}.</p>
{page.table(["measure", "r", "meaning"], rows, texts=[2])}"""


def _alpha(run: Run) -> str:
    return f", with α = {run.results['alpha']:g}" if "alpha" in run.results else ""


def _correlations_by_alpha(run: Run) -> str:
    """The paper's Table 1 for each space in which the classes were measured."""
    if not run.by_space:
        return ""
    measured = [column for r in run.by_space.values() for column in (r["interclass"], r["scale"])]
    alphas = sorted({alpha for column in measured for alpha in column}, key=float)

    def whole(name: str, r: float) -> str:
        cell = f'<td class="whole" colspan="{max(len(alphas), 1)}">{_coefficient(r)}</td>'
        return f'<tr><th scope="row">{name}</th>{cell}</tr>\n'

    def by_alpha(name: str, column: dict[str, float]) -> str:
        cells = "".join(f"<td>{_coefficient(column.get(alpha, math.nan))}</td>" for alpha in alphas)
        return f'<tr><th scope="row">{name}</th>{cells}</tr>\n'

    bodies = [whole("N", run.correlations["samples"]) + whole("E_n", run.correlations["effective_number"])]
    for space in sorted(run.by_space, key=[*_SPACES, *run.by_space].index):
        r, described = run.by_space[space], escape(_SPACES.get(space, space))
        bodies.append(
            f'<tr class="space"><th scope="rowgroup" colspan="{len(alphas) + 1}">{described}</th></tr>\n'
            + by_alpha("W(α)", r["interclass"])
            + whole("S′", r["volume"])
            + by_alpha("S(α)", r["scale"])
        )
    head = "".join(f'<th scope="col">α = {escape(alpha)}</th>' for alpha in alphas)
    return f"""<p>The same r for several α, which weighs how near the other classes are, and for each place where
classes can be measured. N and E_n depend on neither; S′ does not depend on α. The paper's Table 1 does not say where
it measured.</p>
<div class="scroll"><table class="alphas">
<thead><tr><th scope="col">r with</th>{head}</tr></thead>
{"".join(f"<tbody>{body}</tbody>" for body in bodies)}</table></div>"""


def _coefficient(r: float) -> str:
    return "undefined" if math.isnan(r) else page.number(r, "{:.3f}")


def _confusion(run: Run) -> dict[str, tuple[str, Figure]]:
    if run.confusions is None or not len(run.confusions.labels):
        return {}
    num_classes, block = len(run.class_names), plots.classes_per_cell(len(run.class_names))
    numbers = " Numbers are per cent of the row." if num_classes <= plots.ANNOTATED_CLASSES else ""
    numbers = f" A cell is {block} by {block} neighbouring classes." if block > 1 else numbers
    return {
        "confusion": (
            "Confusion matrix of the test set: each row is a true class, each column what it is taken for, both from "
            f"most to fewest training samples.{numbers} Classes without test samples have empty rows.",
            plots.confusion_matrix(
                run.confusions.labels,
                run.confusions.predictions,
                run.sizes,
                class_names=run.class_names,
            ),
        )
    }


def _hardest_pairs(run: Run) -> str:
    confusions = run.confusions
    if confusions is None or not len(confusions.pairs):
        return ""
    pairs = zip(confusions.pairs, confusions.images, strict=True)
    blocks = "".join(_pair(run, confusions, true, predicted, images) for (true, predicted), images in pairs)
    return f"""<p>The pairs that are confused most often, as a fraction of the test samples of the true class, with test
images of it that the model got wrong.</p>
<div class="pairs">{blocks}</div>"""


def _pair(run: Run, confusions: Confusions, true: int, predicted: int, images: np.ndarray) -> str:
    is_true = confusions.labels == true
    samples, errors = int(is_true.sum()), int((is_true & (confusions.predictions == predicted)).sum())
    name, other = run.class_names[true], run.class_names[predicted]
    shown = "".join(
        page.picture(image, f"{name}, taken for {other}: example {number}")
        for number, image in enumerate(images, start=1)
    )
    text = f"<b>{escape(name)}</b>, taken for <b>{escape(other)}</b>"
    rate = f"{errors:,} of {samples:,} ({errors / max(samples, 1):.1%})"
    return f'<div class="pair"><p>{text}: {rate}</p><div class="images">{shown}</div></div>'


def _class_table(run: Run) -> str:
    if run.words.trained:
        words = f"Volume and scale are of the images searched under the final model{_alpha(run)}."
    else:
        words = (
            f"Volume and scale are of the training images under the final model{_alpha(run)}; the weight is the last "
            f"step's.{_splits(run)}"
        )
    return _classes(words, "class", run.class_names, run.per_class, run.words.columns)


def _splits(run: Run) -> str:
    """Accuracy by thirds of the classes, and precision: what the paper's Figure 19 and Table 6 have."""
    thirds, precision = run.results.get("by_scale", {}), run.results.get("precision")
    told = [f"{thirds[key]:.1%} of the third of {words} scale" for key, words in _THIRDS.items() if key in thirds]
    texts = [f"Accuracy is {', '.join(told)}."] if told else []
    texts += [] if precision is None else [f"Mean precision is {precision:.1%}."]
    return "".join(f" {text}" for text in texts)


def _trained_class_table(run: Run) -> str:
    """Of retrieval, the classes that were trained, which have other images or are others."""
    if not run.words.trained:
        return ""
    words = (
        "The classes that were trained. Volume and scale are of the training images under the final "
        f"model{_alpha(run)}; the weight is the last step's."
    )
    return _classes(words, "training class", run.trained_names, run.trained, run.words.trained)


def _classes(
    words: str,
    heading: str,
    names: Sequence[str],
    values: Mapping[str, np.ndarray],
    columns: Mapping[str, tuple[str, str]],
) -> str:
    rows = (
        (name, *(page.number(values[key][i], form) for key, (_, form) in columns.items()))
        for i, name in enumerate(names)
    )
    return f"""<p>{words}
Press a heading to sort by it.</p>
{page.sortable_table([heading, *(name for name, _ in columns.values())], rows)}"""


def _command(run: Run) -> str:
    return f"<pre><code>{escape(run.results['command'])}</code></pre>"


def _epochs(run: Run) -> str:
    return " + ".join(f"{stage['epochs']:g}" for stage in run.stages)


def _stages(run: Run) -> str:
    """Where there are several, each with its report."""
    if len(run.stages) < 2:
        return ""
    folders = [f"stages/{number}" for number in range(1, len(run.stages))] + ["this one"]
    rows = [
        (str(number), stage["method"], f"{stage['epochs']:g}", folder)
        for number, (stage, folder) in enumerate(zip(run.stages, folders, strict=True), start=1)
    ]
    return f"""<p>Each stage began with the parameters of the one before, and has a report in its folder.</p>
{page.table(["stage", "method", "epochs", "folder"], rows, texts=[1, 3])}"""


def _environment(run: Run) -> str:
    """A column for each start of the run, the last ones where they are many."""
    starts = [runs.flat(start) for start in run.environment[-_STARTS_SHOWN:]]
    if not starts:
        return ""
    first = len(run.environment) - len(starts) + 1
    headings = ["", *(f"start {number}" for number in range(first, first + len(starts)))]
    keys = dict.fromkeys(key for start in starts for key in start)
    rows = ((key, *(_setting(start[key]) if key in start else "–" for start in starts)) for key in keys)
    earlier = f"<p>The first {first - 1} starts are left out.</p>" if first > 1 else ""
    table = page.table(headings, rows, texts=range(1, len(headings)))
    return f"<details>\n<summary>Environment</summary>\n{earlier}{table}\n</details>"


def _configuration(run: Run) -> str:
    rows = ((key, json.dumps(value, ensure_ascii=False)) for key, value in runs.flat(run.config).items())
    table = page.table(["setting", "value"], rows, texts=[1])
    return f"<details>\n<summary>Configuration</summary>\n{table}\n</details>"


def _setting(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
