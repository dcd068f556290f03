"""What pages about runs of each task say: the numbers of a run and of a class, and what they are called."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_RECALL = "recall_at_"


class Vocabulary(NamedTuple):
    """What a run of a task is judged by, and in which words.

    Attributes:
      figures: of a run, key in ``results.json`` to heading; the first one is what runs are compared by first.
      columns: of a class that is tested, key in ``per_class`` to heading and format.
      trained: of a class that is trained, key in ``training_classes``, likewise; empty where the classes are the same.
      score: the column that says how well the model does with a class, …
      score_name: … and what it is called.
      sizes: the column by which classes are put in order, …
      sizes_name: … and what it is called.
      curve: the figure of an evaluation in ``metrics.jsonl``.
    """

    figures: Mapping[str, str]
    columns: Mapping[str, tuple[str, str]]
    trained: Mapping[str, tuple[str, str]]
    score: str
    score_name: str
    sizes: str
    sizes_name: str
    curve: str


_MEASURES = {"volume": ("volume (bits)", "{:.2f}"), "scale": ("semantic scale", "{:.3f}")}
_SAMPLES, _WEIGHT = ("training samples", "{:,.0f}"), ("weight", "{:.3f}")

CLASSIFICATION = Vocabulary(
    figures={"top1": "top-1", "head": "head", "middle": "middle", "tail": "tail"},
    columns={
        "accuracy": ("accuracy", "{:.1%}"),
        "samples": _SAMPLES,
        "test_samples": ("test samples", "{:,.0f}"),
        **_MEASURES,
        "weight": _WEIGHT,
    },
    trained={},
    score="accuracy",
    score_name="accuracy",
    sizes="samples",
    sizes_name="training samples",
    curve="test_accuracy",
)


def of(results: Mapping[str, Any]) -> Vocabulary:
    """That of a run, by its ``results.json``.

    Raises:
      ValueError: if it is none, or one of retrieval without any recall.

    Example:
      >>> of({"task": "retrieval", "recall_at_1": 0.5, "recall_at_10": 0.9}).figures
      {'recall_at_1': 'R@1', 'recall_at_10': 'R@10', 'map_at_r': 'MAP@R', 'r_precision': 'R-precision', 'nmi': 'NMI'}
    """
    task = results.get("task", "classification")
    if task == "classification" and "mean_average_precision" in results:
        return CLASSIFICATION._replace(
            figures={**CLASSIFICATION.figures, "mean_average_precision": "mean AP"},
            columns={**CLASSIFICATION.columns, "average_precision": ("average precision", "{:.1%}")},
        )
    if task == "classification":
        return CLASSIFICATION
    ks = sorted(int(key.removeprefix(_RECALL)) for key in results if key.startswith(_RECALL))
    if task != "retrieval" or not ks:
        raise ValueError(f"'task' must be classification, or retrieval with recall_at_1 or others, got {task!r:.60}")
    recall = {f"{_RECALL}{k}": f"R@{k}" for k in ks}
    return Vocabulary(
        figures=recall | {"map_at_r": "MAP@R", "r_precision": "R-precision", "nmi": "NMI"},
        columns={
            "recall": (f"recall@{ks[0]}", "{:.1%}"),
            "test_samples": ("images searched", "{:,.0f}"),
            **_MEASURES,
        },
        trained={"samples": _SAMPLES, **_MEASURES, "weight": _WEIGHT},
        score="recall",
        score_name=f"recall@{ks[0]}",
        sizes="test_samples",
        sizes_name="images searched",
        curve=f"{_RECALL}{ks[0]}",
    )
