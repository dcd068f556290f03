"""What a run of retrieval finds: some queries with the images nearest to them, and where embeddings lie."""

from html import escape

import numpy as np
from matplotlib.figure import Figure

from dsb_jax.evaluation import drawing, page
from dsb_jax.evaluation.curves import RUNS
from dsb_jax.evaluation.drawing import INK, SMALL
from dsb_jax.evaluation.runs import Run

# With the shapes more classes than there are colours.
_MARKERS = ("o", "^", "s", "D")


def queries(run: Run) -> str:
    """A row for each query: the image, then those nearest to it, right ones and wrong ones marked."""
    if run.queries is None or not len(run.queries.labels):
        return ""
    rows = zip(run.queries.labels, run.queries.images, strict=True)
    right = int((run.queries.labels[:, 1] == run.queries.labels[:, 0]).sum())
    return f"""<p>Images that were looked up, each with the others nearest to it, the nearest first. ✓ is of the same
class, ✗ of another. They were chosen so that for {right} of these {len(run.queries.labels)} the nearest is right,
whatever the share among all.</p>
<div class="pairs queries">{"".join(_query(run, *row) for row in rows)}</div>"""


def _query(run: Run, labels: np.ndarray, images: np.ndarray) -> str:
    own, *near = (run.class_names[label] for label in labels)
    cells = "".join(_neighbor(image, name, own) for image, name in zip(images[1:], near, strict=True))
    right = sum(name == own for name in near)
    possible = min(len(near), int(run.sizes[labels[0]]) - 1)  # its class may have fewer images than are shown
    found = f"{right} of {possible} found" if possible else "no other of its class"
    return f"""<div class="pair"><p><b>{escape(own)}</b>: {found}</p>
<div class="images query">{page.picture(images[0], f"query: {own}")}{cells}</div></div>"""


def _neighbor(image: np.ndarray, name: str, own: str) -> str:
    right = name == own
    caption = f"{'✓' if right else '✗'} {page.breakable(drawing.short(name, 14))}"
    kind = "right" if right else "wrong"
    return f'<figure class="{kind}">{page.picture(image, f"{kind}: {name}")}<figcaption>{caption}</figcaption></figure>'


def embedding_map(run: Run) -> dict[str, tuple[str, Figure]]:
    """Embeddings of some classes in two dimensions."""
    if run.queries is None or len(run.queries.map) < 2:
        return {}
    labels, points = run.queries.map_labels, run.queries.map
    shown = [label for label in np.argsort(-run.scores, kind="stable") if label in labels]
    figure = Figure(figsize=(1.5 * drawing.WIDTH, 1.3 * drawing.WIDTH), layout="constrained")
    axes = figure.subplots()
    drawing.style(axes)
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    for number, label in enumerate(shown):
        colour, marker = RUNS[number % len(RUNS)], _MARKERS[number // len(RUNS) % len(_MARKERS)]
        name = f"{drawing.short(run.class_names[label])} ({run.scores[label]:.0%})"
        x, y = points[labels == label].T
        axes.scatter(x, y, s=11, color=colour, marker=marker, alpha=0.75, linewidths=0, label=name, rasterized=True)
    legend = figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL, labelcolor=INK, markerscale=1.6
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    text = (
        f"Where embeddings of {len(points):,} images of {len(shown)} classes lie, by t-SNE: near points are near in "
        f"the embedding space, other distances mean little. In brackets {run.words.score_name}, by which the classes "
        "were chosen, from the best to the worst."
    )
    return {"map": (text, figure)}
