"""The report of a run: one HTML page that needs no other file, no network and no server."""

import dataclasses
import io
import json
import math
import os
import pathlib
import warnings
from collections.abc import Iterable
from html import escape
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dsb_jax.evaluation import plots

_PER_CLASS = {  # key in results.json: heading in the table, format
    "accuracy": ("accuracy", "{:.1%}"),
    "samples": ("training samples", "{:,.0f}"),
    "test_samples": ("test samples", "{:,.0f}"),
    "volume": ("volume (bits)", "{:.2f}"),
    "scale": ("semantic scale", "{:.3f}"),
    "weight": ("weight", "{:.3f}"),
}
_CORRELATIONS = {  # key in results.json: heading, explanation
    "samples": ("training samples", "How many samples of the class the model was trained on."),
    "effective_number": (
        "effective number",
        "Training samples with diminishing returns: each further one of a class counts a little less.",
    ),
    "interclass": ("distance weight W", "How far the class's centre lies from those of the other classes."),
    "volume": ("volume S′", "How much room the class's features take up: its diversity on its own."),
    "scale": ("semantic scale S", "The volume, reduced where other classes come close: S′ times W."),
}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run left behind, checked. Per-class columns are ``[C]``; NaN stands for null and for absent."""

    results: dict[str, Any]
    config: dict[str, Any]
    class_names: list[str]
    per_class: dict[str, np.ndarray]
    shots: dict[str, float]  # head, middle, tail
    correlations: dict[str, float]
    training: dict[str, np.ndarray]  # epoch, loss, accuracy: [T]
    tests: dict[str, np.ndarray]  # epoch, test_accuracy: [E]; weights: [E, C]


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes ``report.html`` from what a finished run left in its workdir.

    Args:
      workdir: a folder with the run's ``results.json``, ``metrics.jsonl`` and ``config.json``.

    Returns:
      The path of the report. It appears whole or not at all; an older one is replaced.

    Raises:
      FileNotFoundError: naming the file that is missing.
      ValueError: naming the file, and the line or key in it, that cannot be read.

    Example:
      >>> write("runs/none")
      Traceback (most recent call last):
      FileNotFoundError: runs/none/results.json is missing: the report needs a finished run
    """
    workdir = pathlib.Path(workdir)
    page = _page(_load(workdir))
    path = workdir / "report.html"
    unfinished = workdir / "report.html.tmp"
    unfinished.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    os.replace(unfinished, path)
    return path


def _load(workdir: pathlib.Path) -> _Run:
    path = workdir / "results.json"
    results = _parse(_read(path), str(path))
    wanted = {
        **dict.fromkeys(("dataset", "method", "command"), (str, "a string")),
        **dict.fromkeys(("top1", "steps", "epochs"), (int | float, "a number")),
        **dict.fromkeys(("per_class", "correlations"), (dict, "an object")),
    }
    for key, (kind, described) in wanted.items():
        if not isinstance(results.get(key), kind):
            raise ValueError(f"{path}: {key!r} must be {described}, got {results.get(key)!r:.60}")
    classes = results["per_class"]
    if not classes or not all(isinstance(entry, dict) for entry in classes.values()):
        raise ValueError(f"{path}: 'per_class' must hold an object for each class")

    def numbers(part: dict, keys: Iterable[str], what: str) -> dict[str, float]:
        return {key: _number(part.get(key), f"{path}: {key!r} of {what}") for key in keys}

    rows = [numbers(entry, _PER_CLASS, f"class {name!r}") for name, entry in classes.items()]
    per_class = {key: np.array([row[key] for row in rows]) for key in _PER_CLASS}
    if np.isnan(per_class["samples"]).any():
        raise ValueError(f"{path}: 'samples' must be given for every class in 'per_class'")
    training, tests = _load_metrics(workdir / "metrics.jsonl", len(classes))
    return _Run(
        results=results,
        config=_parse(_read(workdir / "config.json"), str(workdir / "config.json")),
        class_names=list(classes),
        per_class=per_class,
        shots=numbers(results, ("head", "middle", "tail"), "the run"),
        correlations=numbers(results["correlations"], _CORRELATIONS, "'correlations'"),
        training=training,
        tests=tests,
    )


def _load_metrics(path: pathlib.Path, num_classes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    training: dict[str, list] = {"epoch": [], "loss": [], "accuracy": [], "train_seconds": []}
    tests: dict[str, list] = {"epoch": [], "test_accuracy": [], "weights": []}
    for number, line in enumerate(_read(path).removesuffix("\n").split("\n"), start=1):
        if number == 1 and not line:
            break  # the file is empty
        where = f"{path}, line {number}"
        record = _parse(line, where)
        columns = tests if "test_accuracy" in record else training
        for key, column in columns.items():
            if key not in record:
                raise ValueError(f"{where} lacks {key!r}")
            if key != "weights":
                column.append(_number(record[key], f"{where}: {key}"))
            elif isinstance(record[key], list) and len(record[key]) == num_classes:
                column.append([_number(weight, f"{where}: a weight") for weight in record[key]])
            else:
                raise ValueError(f"{where}: 'weights' must be a list of {num_classes} numbers, one for each class")
    return tuple({key: np.array(column, float) for key, column in part.items()} for part in (training, tests))


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: the report needs a finished run") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=lambda _: None)  # NaN and infinities are undefined, as null is
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {text!r:.60}")
    return value


def _number(value: Any, what: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number or null, got {value!r:.60}")
    return float(value)


def _page(run: _Run) -> str:
    title = escape(f"{run.results['method']} on {run.results['dataset']}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{_headline(run)}
<p class="reading">{escape(" ".join(_reading(run)))}</p>
<section class="plots">
{_plots(run)}
</section>
<h2>What accuracy goes with</h2>
{_correlation_table(run)}
<h2>Classes</h2>
{_class_table(run)}
<h2>How it was made</h2>
<pre><code>{escape(run.results["command"])}</code></pre>
<details>
<summary>Configuration</summary>
{_config_table(run.config)}
</details>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _headline(run: _Run) -> str:
    results = run.results
    facts = {"top-1 accuracy": f"{results['top1']:.1%}"}
    groups = {"head": "head (> 100 samples)", "middle": "middle (20–100)", "tail": "tail (< 20)"}
    facts |= {label: f"{run.shots[key]:.1%}" for key, label in groups.items() if math.isfinite(run.shots[key])}
    facts |= {
        "classes": f"{len(run.class_names):,}",
        "steps": f"{results['steps']:,}",
        "epochs": f"{results['epochs']:g}",
    }
    if len(seconds := run.training["train_seconds"]) and math.isfinite(seconds[-1]):
        facts["training time"] = _duration(seconds[-1])
    tiles = (f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts.items())
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _reading(run: _Run) -> list[str]:
    """The result in sentences that claim no more than the numbers bear."""
    results, tested = run.results, run.per_class["test_samples"]
    samples = f"the {np.nansum(tested):,.0f} test samples" if np.isfinite(tested).any() else "the test samples"
    sentences = [f"{results['method']} classifies {results['top1']:.1%} of {samples} correctly."]
    sentences += _weakest(run)
    head, tail = run.shots["head"], run.shots["tail"]
    if math.isfinite(head) and math.isfinite(tail):
        sentences.append(
            f"Classes with more than 100 training samples reach {head:.1%} on average, "
            f"those with fewer than 20 reach {tail:.1%}."
        )
    return sentences + _what_accuracy_follows(run)


def _weakest(run: _Run) -> list[str]:
    accuracy = run.per_class["accuracy"]
    tested = np.flatnonzero(np.isfinite(accuracy))
    if len(tested) < 2:
        return []
    order = tested[np.argsort(accuracy[tested], kind="stable")]
    missed = int((accuracy[tested] == 0).sum())
    if missed > 3:
        return [f"{missed} of the {len(tested)} classes are never recognised."]
    named = [f"{run.class_names[i]} ({accuracy[i]:.1%})" for i in order[: max(1, min(3, len(order) // 2))]]
    listed = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    return [f"The weakest {'class is' if len(named) == 1 else 'classes are'} {listed}."]


def _what_accuracy_follows(run: _Run) -> list[str]:
    """Compares the correlations with samples and with scale, as far as the number of classes allows.

    Fisher's z = artanh r has standard error 1/√(C - 3), and the difference of two about √(2 / (C - 3)).
    """
    classes = int(np.isfinite(run.per_class["accuracy"]).sum())
    names = {"samples": "the number of training samples", "scale": "semantic scale"}
    r = run.correlations
    defined = [key for key in names if math.isfinite(r[key])]
    if classes < 4 or not defined:
        why = "there are fewer than four classes" if classes < 4 else "neither correlation is defined"
        return [f"Whether accuracy goes with training samples or with semantic scale cannot be said: {why}."]

    z = {key: math.atanh(min(abs(r[key]), 1 - 1e-12)) for key in defined}
    error = 1.96 / math.sqrt(classes - 3)
    sentences = []
    for key in defined:
        direction = ("rises" if r[key] > 0 else "falls") + (" slightly with" if abs(r[key]) < 0.3 else " with")
        verb = direction if z[key] > error else "shows no clear relation to"
        sentences.append(f"Class accuracy {verb} {names[key]} (r = {r[key]:.2f}).")
    for key in names.keys() - defined:
        why = "is the same for all classes or was not measured, so its correlation with accuracy is undefined"
        sentences.append(f"{names[key].capitalize()} {why}.")
    if len(defined) == 2:
        near, far = sorted(names, key=z.get, reverse=True)
        if z[near] - z[far] > error * math.sqrt(2):
            sentences.append(f"It goes with {names[near]} more closely than with {names[far]}.")
        else:
            sentences.append(f"Which of the two it follows more closely, {classes} classes are too few to say.")
    return sentences


def _plots(run: _Run) -> str:
    names, columns = run.class_names, run.per_class
    accuracy, samples = columns["accuracy"], columns["samples"]
    drawn = {
        "Accuracy of each class, from most to fewest training samples.": plots.accuracy_by_class(
            accuracy, samples, scales=columns["scale"], class_names=names
        ),
        "Class accuracy against training samples; each point is a class.": plots.accuracy_against(
            samples, accuracy, measure_name="training samples", class_names=names
        ),
    }
    if np.isfinite(columns["scale"]).any():
        drawn["Class accuracy against semantic scale; each point is a class."] = plots.accuracy_against(
            columns["scale"], accuracy, measure_name="semantic scale", class_names=names
        )
    if len(run.tests["epoch"]):
        drawn["Weight of each class during training; blue classes have many training samples, orange ones few."] = (
            plots.weights_over_time(run.tests["epoch"], run.tests["weights"], counts=samples, class_names=names)
        )
    if len(run.training["epoch"]) or len(run.tests["epoch"]):
        drawn["Training loss, and accuracy on training batches and on the test set, by epoch."] = plots.training_curves(
            epochs=run.training["epoch"],
            loss=run.training["loss"],
            accuracy=run.training["accuracy"],
            test_epochs=run.tests["epoch"],
            test_accuracy=run.tests["test_accuracy"],
        )
    return "\n".join(
        f"<figure>{_svg(figure, f'plot{i}', text)}<figcaption>{escape(text)}</figcaption></figure>"
        for i, (text, figure) in enumerate(drawn.items())
    )


def _svg(figure: Figure, prefix: str, alternative: str) -> str:
    """The figure as an element of the page: its text in the page's font, its ink in the page's colour."""
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font may have it
        figure.savefig(buffer, format="svg", transparent=True, dpi=200)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        # Namespaces go: inside HTML they are implied. Identifiers are made unique in the page.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _rewritten(key.rpartition("}")[2], value, prefix)
            for key, value in element.attrib.items()
        }
    root.attrib = {"viewBox": root.get("viewBox"), "role": "img", "aria-label": alternative}
    return ElementTree.tostring(root, encoding="unicode")


def _rewritten(attribute: str, value: str, prefix: str) -> str:
    if attribute == "id":
        return f"{prefix}-{value}"
    if attribute == "href":
        return value.replace("#", f"#{prefix}-", 1) if value.startswith("#") else value
    if attribute == "style":
        kept = (part for part in value.split("; ") if not part.startswith("font-family"))
        return "; ".join(kept).replace(plots.INK, "currentColor")
    return value.replace("url(#", f"url(#{prefix}-")


def _correlation_table(run: _Run) -> str:
    rows = []
    for key, (heading, explanation) in _CORRELATIONS.items():
        r = run.correlations[key]
        value = "undefined" if math.isnan(r) else f"{r:.3f}"
        rows.append(f'<tr><th scope="row">{heading}</th><td>{value}</td><td class="text">{explanation}</td></tr>')
    return f"""<p>Pearson's r between the accuracy of a class and each measure of it: 1 where accuracy rises in a
straight line with the measure, 0 where there is no such relation, −1 where it falls. It is undefined for a measure
that is the same for all classes, or was not taken.</p>
<div class="scroll"><table>
<thead><tr><th scope="col">measure</th><th scope="col">r</th><th scope="col" class="text">meaning</th></tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>"""


def _class_table(run: _Run) -> str:
    headings = ["class", *(heading for heading, _ in _PER_CLASS.values())]
    head = "".join(f'<th scope="col"><button type="button">{heading}</button></th>' for heading in headings)
    rows = []
    for i, name in enumerate(run.class_names):
        cells = [f'<th scope="row">{escape(name)}</th>']
        for key, (_, form) in _PER_CLASS.items():
            value = run.per_class[key][i]
            shown = "–" if math.isnan(value) else form.format(value)
            cells.append(f'<td data-value="{"" if math.isnan(value) else float(value)}">{shown}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f"""<p>Volume and scale are of the training images under the final model, the weight is the last step's.
Press a heading to sort by it.</p>
<div class="scroll tall"><table class="sortable">
<thead><tr>{head}</tr></thead>
<tbody>
{"".join(rows)}</tbody>
</table></div>"""


def _config_table(config: dict[str, Any]) -> str:
    values = {key: json.dumps(value, ensure_ascii=False) for key, value in _flat(config)}
    rows = (
        f'<tr><th scope="row">{escape(key)}</th><td class="text">{escape(value)}</td></tr>'
        for key, value in values.items()
    )
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``[("a.b", 1)]``: the names that the command line overrides."""
    pairs = []
    for key, value in config.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return pairs


_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e6e9ec; --soft: #9aa4ae; --line: #363c44; --panel: #1d2126; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { max-width: 46rem; overflow-wrap: anywhere; }
.reading { font-size: 1.05rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .6rem; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; }
.tiles dt, figcaption { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 2rem;
  align-items: start; margin-top: 2rem; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
.scroll { overflow-x: auto; }
.tall { max-height: 80vh; overflow-y: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
th:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
.sortable thead th { position: sticky; top: 0; background: var(--page); }
button { all: unset; cursor: pointer; }
button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const order = before === "descending" || (column === 0 && !before) ? "ascending" : "descending";
    const sign = order === "ascending" ? 1 : -1;
    const value = row => row.cells[column].dataset.value;
    const compare = (a, b) => column === 0 ? a.cells[0].textContent.localeCompare(b.cells[0].textContent)
      : value(a) - value(b);
    const rows = [...body.rows];
    const measured = rows.filter(row => value(row) !== "").sort((a, b) => sign * compare(a, b));
    const unmeasured = rows.filter(row => value(row) === "");
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    body.append(...measured, ...unmeasured);
  }));
}
"""
