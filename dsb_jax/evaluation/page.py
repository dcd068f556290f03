"""An HTML page that needs no other file, no network and no server: its frame, its style, and what stands on it."""

import base64
import io
import os
import pathlib
import re
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from xml.etree import ElementTree

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dsb_jax.evaluation import drawing

_THUMBNAIL = 96  # pixels; larger images are shrunk to it
_PIXELATED = 48  # pixels; smaller images are shown with sharp pixels


def document(title: str, body: str) -> str:
    """The whole page: ``body`` is HTML, ``title`` is text."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def write(path: str | os.PathLike[str], text: str) -> pathlib.Path:
    """Writes a page whole or not at all; an older one is replaced.

    Returns:
      The path.

    Raises:
      OSError: it cannot be written; the error has its name.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
        os.replace(unfinished, path)
    except OSError as error:  # a full disk's does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path


def section(heading: str, *parts: str) -> str:
    """Parts under a heading; nothing where all parts are empty."""
    body = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>" if body else ""


def plots(figures: dict[str, tuple[str, Figure]]) -> str:
    """Figures side by side where there is room: ``{identifier: (caption, figure)}``."""
    drawn = "\n".join(
        f"<figure{_shape(figure)}>{svg(figure, name, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for name, (caption, figure) in figures.items()
    )
    return f'<div class="plots">\n{drawn}\n</div>' if figures else ""


def breakable(name: str) -> str:
    """A name that a narrow line may break behind its underscores, rather than anywhere.

    Example:
      >>> breakable("norm_softmax")
      'norm_<wbr>softmax'
    """
    return escape(name).replace("_", "_<wbr>")


def tiles(facts: dict[str, str]) -> str:
    """Short facts in boxes."""
    boxes = (f"<div><dt>{escape(label)}</dt><dd>{breakable(value)}</dd></div>" for label, value in facts.items())
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[int] = ()) -> str:
    """A table of texts; the columns ``texts`` are words, to the left, the others numbers.

    Example:
      >>> print(table(["measure", "r"], [["scale", "0.91"]]))
      <div class="scroll"><table>
      <thead><tr><th scope="col">measure</th><th scope="col">r</th></tr></thead>
      <tbody>
      <tr><th scope="row">scale</th><td>0.91</td></tr>
      </tbody></table></div>
    """
    head = "".join(f'<th scope="col"{_kind(i, texts)}>{escape(heading)}</th>' for i, heading in enumerate(headings))
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n{_body(rows, texts)}</table></div>'


def sortable_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts whose headings sort it, by the name in the first column or the number in another."""
    head = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    return f"""<div class="scroll tall"><table class="sortable">
<thead><tr>{head}</tr></thead>
{_body(rows, ())}</table></div>"""


def number(value: float, form: str) -> str:
    """A formatted number, or a dash for NaN; what rounds to zero has no sign.

    Example:
      >>> number(0.25, "{:.1%}"), number(-0.01, "{:+.1f}"), number(float("nan"), "{:.1%}")
      ('25.0%', '0.0', '–')
    """
    if np.isnan(value):
        return "–"
    text = form.format(value)
    return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("+-")


def svg(figure: Figure, identifier: str, alternative: str) -> str:
    """The figure as an element of the page: its text in the page's font, its ink in the page's colour."""
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font may have it
        figure.savefig(buffer, format="svg", transparent=True, dpi=150)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        # Namespaces go: inside HTML they are implied. Identifiers are made unique in the page.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _rewritten(key.rpartition("}")[2], value, identifier)
            for key, value in element.attrib.items()
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alternative}
    return ElementTree.tostring(root, encoding="unicode")


def picture(image: np.ndarray, alternative: str) -> str:
    """A uint8 image ``[H, W, 1 or 3]`` as an element of the page: small ones exactly, large ones as thumbnails."""
    height, width = image.shape[:2]
    kind, options = "png", []
    if max(height, width) > _THUMBNAIL:
        shrink = _THUMBNAIL / max(height, width)
        size = max(round(width * shrink), 1), max(round(height * shrink), 1)
        kind, options = "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], image.shape[2])
    _, encoded = cv2.imencode(f".{kind}", image if image.shape[2] == 1 else image[..., ::-1], options)
    source = base64.b64encode(encoded.tobytes()).decode()
    style = ' class="pixelated"' if max(height, width) <= _PIXELATED else ""
    return f'<img{style} src="data:image/{kind};base64,{source}" alt="{escape(alternative)}">'


def _shape(figure: Figure) -> str:
    width, height = figure.get_size_inches()
    return ' class="tall-plot"' if height > 1.05 * width else ""  # beside two others


def _body(rows: Iterable[Sequence[str]], texts: Sequence[int]) -> str:
    lines = []
    for first, *cells in rows:
        rest = "".join(f"<td{_kind(i, texts)}>{escape(cell)}</td>" for i, cell in enumerate(cells, start=1))
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{rest}</tr>\n')
    return f"<tbody>\n{''.join(lines)}</tbody>"


def _kind(column: int, texts: Sequence[int]) -> str:
    return ' class="text"' if column in texts else ""


def _rewritten(attribute: str, value: str, prefix: str) -> str:
    if attribute == "id":
        return f"{prefix}-{value}"
    if attribute == "href":
        return value.replace("#", f"#{prefix}-", 1) if value.startswith("#") else value
    if attribute == "style":
        kept = (part for part in value.split("; ") if not part.startswith("font-family"))
        return "; ".join(kept).replace(drawing.INK, "currentColor")
    return value.replace("url(#", f"url(#{prefix}-")


STYLE = """
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
.tiles dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 2rem;
  align-items: start; margin-top: 2rem; }
figure { margin: 0; min-width: 0; }
figure:only-child { max-width: 38rem; }
@media (min-width: 60rem) { .tall-plot { grid-row: span 2; } }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
.scroll { overflow-x: auto; }
.tall { max-height: 80vh; overflow-y: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
th:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  th, td { padding: .3rem .4rem; }
  table { font-size: .85rem; }
  th[scope=row] { white-space: normal; min-width: 7rem; }
  .alphas { font-size: .75rem; }
  .alphas th[scope=row] { min-width: 0; }
  .alphas th, .alphas td { padding: .3rem .2rem; } }
.sortable thead th { position: sticky; top: 0; background: var(--page); }
button { all: unset; cursor: pointer; }
button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem 2rem; }
.pairs p { margin: 0 0 .4rem; overflow-wrap: anywhere; }
.images { display: flex; flex-wrap: wrap; gap: .35rem; }
img { display: block; height: 4rem; max-width: 9rem; object-fit: contain; border: 1px solid var(--line); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: 1rem .6rem; }
.grid figure { max-width: none; }
.grid img { height: 6rem; max-width: 100%; }
.grid figcaption { font-size: .75rem; line-height: 1.25; margin-top: .25rem; overflow-wrap: anywhere; }
.query img { height: 3rem; }
.queries { grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr)); }
.query { flex-wrap: nowrap; }
.query figure { flex: 1; max-width: 4.4rem; }
.query figcaption { font-size: .7rem; line-height: 1.2; overflow-wrap: anywhere; }
.query > img { outline: 3px solid var(--ink); outline-offset: 1px; margin-right: .5rem; }
.right img { border: 3px solid #1f78c8; }
.wrong img { border: 3px solid #d55e00; }
.pixelated { image-rendering: pixelated; }
tbody + tbody { border-top: 2px solid var(--line); }
tr.space th { padding-top: 1rem; color: var(--soft); white-space: normal; }
td.whole { text-align: center; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const order = before === "descending" || (column === 0 && !before) ? "ascending" : "descending";
    const sign = order === "ascending" ? 1 : -1;
    const text = row => row.cells[column].textContent;
    const value = row => Number(text(row).replace("−", "-").replace(/[^0-9.-]/g, ""));
    const compare = (a, b) => column === 0 ? a.cells[0].textContent.localeCompare(b.cells[0].textContent)
      : value(a) - value(b);
    const rows = [...body.rows];
    const measured = rows.filter(row => text(row) !== "–").sort((a, b) => sign * compare(a, b));
    const unmeasured = rows.filter(row => text(row) === "–");
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    body.append(...measured, ...unmeasured);
  }));
}
"""
