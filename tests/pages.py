"""Made-up runs, and the pages made of them, parsed."""

import html
import html.parser
import json
import re

import numpy as np

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}
AWKWARD = [
    "<script>alert(1)</script>",
    'quo"te\' onload="x"',
    "$x_1$ <!-- -->",
    "猫 𝔘",
    "_private",
    "a name so long that no plot could ever hold it",
]
ALPHAS = ("1", "1.5", "2", "2.5", "3")


class Page(html.parser.HTMLParser):
    """Checks that tags balance, and keeps tags, attributes, text and tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"repeated attribute in {tag}"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data.strip())
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, heading):
        """The rows of the one table whose first heading is this."""
        (found,) = [table for table in self.tables if table and table[0] and table[0][0] == heading]
        return found


def number(cell):
    """What a cell of a table says."""
    return float(cell.replace("−", "-").replace(",", "").rstrip("%"))


def class_names(num_classes):
    return [*AWKWARD, *(f"class {i}" for i in range(num_classes))][:num_classes]


def a_run(num_classes=10, epochs=4, seed=0):
    """The three files that every run leaves, made up: results, metrics, config."""
    rng = np.random.default_rng(seed)
    names = class_names(num_classes)
    samples = np.maximum(1, np.round(500 * 0.01 ** np.linspace(0, 1, num_classes))).tolist()
    accuracy, scale, weight = rng.uniform(0.1, 1, (3, num_classes)).tolist()
    per_class = {
        name: {"accuracy": a, "samples": n, "test_samples": 20, "volume": 9 * s, "scale": s, "weight": w}
        for name, a, n, s, w in zip(names, accuracy, samples, scale, weight, strict=True)
    }
    results = {
        "dataset": "digits",
        "model": "resnet8",
        "loss": "cross_entropy",
        "balancer": "dsb",
        "method": "DSB-CE",
        "seed": seed,
        "steps": 1234,
        "epochs": epochs,
        "command": "python -m dsb_jax.main --config=configs/digits_lt.py:loss='a&b' <x>",
        "top1": 0.9312,
        "head": 0.97,
        "middle": 0.91,
        "tail": 0.412,
        "per_class": per_class,
        "correlations": {"samples": 0.1, "effective_number": 0.12, "interclass": -0.3, "volume": 0.5, "scale": 0.95},
    }
    metrics = []
    for epoch in range(1, epochs + 1):
        training = {"loss": 2 / epoch, "accuracy": 0.5, "learning_rate": 0.1, "gradient_norm": 3.0}
        timing = {"images_per_second": 812.0, "train_seconds": 61.2}
        metrics.append({"step": 10 * epoch - 5, "epoch": epoch - 0.5, **training, **timing})
        test = {"test_accuracy": 0.2 * epoch, "test_loss": 1.1, "class_accuracy": accuracy, "weights": weight}
        measured = {"volumes": [9 * s for s in scale], "scales": scale} if epoch > 1 else {}
        metrics.append({"step": 10 * epoch, "epoch": float(epoch), **test, **measured})
    return results, metrics, {"seed": seed, "optimizer": {"name": "sgd", "milestones": [1, 2], "note": "<i>"}}


def a_retrieval_run(num_classes=10, epochs=4, seed=0):
    """The same of a run of retrieval, which was trained on three other classes."""
    results, metrics, config = a_run(num_classes, epochs, seed)
    trained = {f"trained {i}": {"samples": 9 - i, "volume": 3.0 + i, "scale": 0.3, "weight": 1.0} for i in range(3)}
    per_class = {
        name: {"recall": entry["accuracy"]} | {key: entry[key] for key in ("test_samples", "volume", "scale")}
        for name, entry in results["per_class"].items()
    }
    found = {"recall_at_1": 0.612, "recall_at_10": 0.801, "map_at_r": 0.303, "r_precision": 0.404, "nmi": 0.555}
    results = {key: value for key, value in results.items() if key not in ("top1", "head", "middle", "tail")}
    results |= {"task": "retrieval", "method": "DSB-NSM", "per_class": per_class, "training_classes": trained, **found}
    lines = []
    for line in metrics:
        if "test_accuracy" in line:
            line = {"step": line["step"], "epoch": line["epoch"], **found, "weights": [1.0, 0.9, 1.1]}
        lines.append({key: value for key, value in line.items() if key != "accuracy"})
    return results, lines, config


def queries(num_classes=10, seed=0):
    """The arrays of retrieval.npz: four queries with three neighbours each, and a map of two classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, (4, 4)).astype(np.int32)
    labels[:2, 1] = labels[:2, 0]
    return {
        "labels": labels,
        "images": rng.integers(0, 256, (4, 4, 8, 8, 1), np.uint8),
        "map": rng.normal(size=(30, 2)).astype(np.float32),
        "map_labels": rng.integers(0, 2, 30).astype(np.int32),
    }


def spaces(seed=0):
    """Correlations by space and alpha, as results.json has them."""
    rng = np.random.default_rng(seed)

    def by_alpha():
        return dict(zip(ALPHAS, rng.uniform(-1, 1, 5).round(3).tolist(), strict=True))

    return {
        space: {"volume": float(rng.uniform(-1, 1)), "interclass": by_alpha(), "scale": by_alpha()}
        for space in ("feature", "pool", "sample")
    }


def confusions(num_classes=10, seed=0, size=(8, 8, 1)):
    """The arrays of confusions.npz: 20 test samples of each class, two pairs, of which one has fewer images."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), 20)
    wrong = rng.random(len(labels)) < 0.3
    predictions = np.where(wrong, rng.integers(0, num_classes, len(labels)), labels).astype(np.int32)
    pairs = np.array([[1, 0], [0, num_classes - 1]], np.int32)
    images = rng.integers(0, 256, (2, 3, *size), np.uint8)
    return {
        "labels": labels,
        "predictions": predictions,
        "pairs": pairs,
        "images": images,
        "shown": np.array([3, 1], np.int32),
    }


def training_images(num_classes=10, seed=0, size=(8, 8, 1)):
    """The content of an ``examples.npz``: five images, of which the last two are mixed."""
    rng = np.random.default_rng(seed)
    labels, others = (rng.integers(0, num_classes, 5).astype(np.int32) for _ in range(2))
    shares = np.array([1, 1, 1, 0.75, 0.25], np.float32)
    return {
        "images": rng.integers(0, 256, (5, *size), np.uint8),
        "labels": labels,
        "other_labels": np.where(shares < 1, others, labels),
        "shares": shares,
    }


def write_run(workdir, results, metrics, config):
    """The three files in a folder, which is returned."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(results))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def read_page(path):
    """A page's text and its parse, after the checks that every page must pass."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    check_needs_nothing_else(text, page)
    check_alternatives(page)
    check_references(text, page)
    return text, page


def check_needs_nothing_else(text, page):
    without_images = re.sub(r"data:image/\w+;base64,[\w+/=\s]*", "", text)
    assert not re.search(r"https?:|//\w", without_images)
    assert {"link", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in page.tags)
    references = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(re.match(r"#|data:image/(png|jpeg);base64,", value) for value in references)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(page.all("script")) == 1, "no script but the page's own"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def check_alternatives(page):
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 20 for picture in page.all("svg"))
    assert all(len(picture["alt"]) > 5 for picture in page.all("img"))


def check_references(text, page):
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = set(re.findall(r"url\(#([^)]*)\)", text)) | {
        value[1:] for _, attributes in page.tags for value in [attributes.get("href", "")] if value.startswith("#")
    }
    assert targets <= set(identifiers)
