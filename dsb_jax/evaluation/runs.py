"""What a finished run left in its workdir, read and checked: the source of every page about runs."""

import dataclasses
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from dsb_jax.evaluation import vocabulary
from dsb_jax.evaluation.vocabulary import Vocabulary

CORRELATIONS = ("samples", "effective_number", "interclass", "volume", "scale")

# Columns of metrics.jsonl, and whether every line has them.
_TRAINING = {"epoch": True, "loss": True, "train_seconds": True}
_TRAINING |= {"accuracy": False, "learning_rate": False, "skipped": False}
_TESTS = {"epoch": True, "test_loss": False}
_TESTS_BY_CLASS = {"weights": True, "volumes": False, "scales": False}


@dataclasses.dataclass(frozen=True)
class Confusions:
    """The final test pass, and images of the pairs of classes that were confused most.

    Attributes:
      labels: true classes, int ``[n]``.
      predictions: predicted classes, int ``[n]``.
      pairs: (true, predicted) classes, int ``[P, 2]``.
      images: uint8 images of each pair, ``shown[p]`` of them, ``[H, W, channels]`` each.
    """

    labels: np.ndarray
    predictions: np.ndarray
    pairs: np.ndarray
    images: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training images as the model saw them.

    Attributes:
      images: uint8 ``[n, H, W, channels]``.
      labels: int ``[n]``.
      other_labels: int ``[n]``, of what else is in a mixed image.
      shares: ``[n]``, how much of an image is of its label.
    """

    images: np.ndarray
    labels: np.ndarray
    other_labels: np.ndarray
    shares: np.ndarray


@dataclasses.dataclass(frozen=True)
class Queries:
    """Some test images with those that are nearest to them, and a map of embeddings.

    Attributes:
      labels: classes, int ``[Q, 1 + K]``, that of the query first.
      images: uint8 ``[Q, 1 + K, H, W, channels]``.
      map: ``[n, 2]``, where other test images lie.
      map_labels: their classes, int ``[n]``.
    """

    labels: np.ndarray
    images: np.ndarray
    map: np.ndarray
    map_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. NaN stands for null and for what was not measured.

    Attributes:
      path: the workdir.
      results: ``results.json`` as it is.
      config: ``config.json`` as it is.
      words: what the run is judged by, and what that is called.
      figures: a number for each of the words'.
      class_names: of the classes that are tested, in the order of the labels.
      per_class: a column ``[C]`` for each of the task's.
      trained_names: of the classes that are trained, the same ones or others.
      trained: a column ``[T]`` of these for samples, volume, scale and weight.
      correlations: r of the classes' scores with each of `CORRELATIONS`.
      by_space: r by space (pool, feature, sample), as `metrics.correlations_by_alpha` has it; a space that was not
        measured is absent.
      training: columns ``[T]`` of the training lines in ``metrics.jsonl``.
      tests: columns ``[E]`` of the evaluations, of which ``score`` is the task's, ``[E, T]`` for weights, volumes and
        scales.
      environment: an entry for each start of the run; none where it was not kept.
      confusions: None where they were not kept.
      queries: likewise, of retrieval.
      examples: likewise.
    """

    path: pathlib.Path
    results: dict[str, Any]
    config: dict[str, Any]
    words: Vocabulary
    figures: dict[str, float]
    class_names: tuple[str, ...]
    per_class: dict[str, np.ndarray]
    trained_names: tuple[str, ...]
    trained: dict[str, np.ndarray]
    correlations: dict[str, float]
    by_space: dict[str, dict[str, Any]]
    training: dict[str, np.ndarray]
    tests: dict[str, np.ndarray]
    environment: list[dict[str, Any]]
    confusions: Confusions | None
    queries: Queries | None
    examples: Examples | None

    @property
    def scores(self) -> np.ndarray:
        """How well the model does with each class that is tested, ``[C]``."""
        return self.per_class[self.words.score]

    @property
    def sizes(self) -> np.ndarray:
        """By which those classes are put in order, ``[C]``."""
        return self.per_class[self.words.sizes]

    @property
    def stages(self) -> list[dict[str, Any]]:
        """``method`` and ``epochs`` of all stages, the last of which is the run itself."""
        return self.results.get("stages") or [{key: self.results[key] for key in ("method", "epochs")}]


def load(workdir: str | os.PathLike[str]) -> Run:
    """Reads ``results.json``, ``metrics.jsonl``, ``config.json``, and where there are, the other files of a run.

    Args:
      workdir: the folder of a finished run.

    Returns:
      The run.

    Raises:
      FileNotFoundError: naming the file that is missing.
      ValueError: naming the file, and the line or key in it, that cannot be read.

    Example:
      >>> load("runs/none")
      Traceback (most recent call last):
      FileNotFoundError: runs/none/results.json is missing: the folder holds no finished run
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "results.json"
    results = _object(_parse(_read(path), str(path)), str(path))
    words = _checked(results, path)
    tested = _columns(results["per_class"], words.columns, f"{path}: {{!r}} of class {{!r}}")
    if np.isnan(tested[words.sizes]).any():
        raise ValueError(f"{path}: {words.sizes!r} must be given for every class in 'per_class'")
    names = trained_names = tuple(results["per_class"])
    trained = tested
    if words.trained:
        of_trained = results["training_classes"]
        trained_names = tuple(of_trained)
        trained = _columns(of_trained, words.trained, f"{path}: {{!r}} of training class {{!r}}")
    training, tests = _load_metrics(workdir / "metrics.jsonl", words.curve, len(trained_names))
    config = workdir / "config.json"

    def numbers(part: dict[str, Any], keys: Iterable[str], what: str) -> dict[str, float]:
        return {key: _number(part.get(key), f"{path}: {key!r} of {what}") for key in keys}

    return Run(
        path=workdir,
        results=results,
        config=_object(_parse(_read(config), str(config)), str(config)),
        words=words,
        figures=numbers(results, words.figures, "the run"),
        class_names=names,
        per_class=tested,
        trained_names=trained_names,
        trained=trained,
        correlations=numbers(results["correlations"], CORRELATIONS, "'correlations'"),
        by_space=_spaces(results.get("correlations_by_space", {}), path),
        training=training,
        tests=tests,
        environment=_load_environment(workdir / "environment.json"),
        confusions=_load_confusions(workdir / "confusions.npz", len(names)),
        queries=_load_queries(workdir / "retrieval.npz", len(names)),
        examples=_load_examples(workdir / "examples.npz", len(trained_names)),
    )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names that the command line overrides.

    Example:
      >>> flat({"a": {"b": 1}, "c": [2]})
      {'a.b': 1, 'c': [2]}
    """
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return pairs


def _checked(results: dict[str, Any], path: pathlib.Path) -> Vocabulary:
    """What the run is judged by; raises ValueError unless the results are those of such a run."""
    try:
        words = vocabulary.of(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    of_classes = ("per_class", "training_classes") if words.trained else ("per_class",)
    wanted = {
        **dict.fromkeys(("dataset", "method", "command"), (str, "a string")),
        **dict.fromkeys((next(iter(words.figures)), "steps", "epochs"), (int | float, "a number")),
        **dict.fromkeys((*of_classes, "correlations"), (dict, "an object")),
    }
    for key, (kind, described) in wanted.items():
        if not isinstance(results.get(key), kind):
            raise ValueError(f"{path}: {key!r} must be {described}, got {results.get(key)!r:.60}")
    if not isinstance(alpha := results.get("alpha", 1), int | float):
        raise ValueError(f"{path}: 'alpha' must be a number, got {alpha!r:.60}")
    stages = results.get("stages", [])
    if not isinstance(stages, list) or not all(
        isinstance(stage, dict)
        and isinstance(stage.get("method"), str)
        and isinstance(stage.get("epochs"), int | float)
        for stage in stages
    ):
        raise ValueError(f"{path}: 'stages' must be a list of objects with 'method' and 'epochs', got {stages!r:.60}")
    for key in of_classes:
        if not results[key] or not all(isinstance(entry, dict) for entry in results[key].values()):
            raise ValueError(f"{path}: {key!r} must hold an object for each class")
    return words


def _columns(classes: dict[str, dict[str, Any]], keys: Iterable[str], what: str) -> dict[str, np.ndarray]:
    """``[C]`` for each key; ``what`` is how an error calls the key of a class."""
    return {
        key: np.array([_number(entry.get(key), what.format(key, name)) for name, entry in classes.items()])
        for key in keys
    }


def _spaces(by_space: Any, path: pathlib.Path) -> dict[str, dict[str, Any]]:
    spaces: dict[str, dict[str, Any]] = {}
    for space, entry in _object(by_space, f"{path}: 'correlations_by_space'").items():
        where = f"{path}: {space!r} of 'correlations_by_space'"
        entry = _object(entry, where)
        spaces[space] = {"volume": _number(entry.get("volume"), f"{where}: 'volume'")}
        for measure in ("interclass", "scale"):
            column = _object(entry.get(measure, {}), f"{where}: {measure!r}")
            spaces[space][measure] = {
                alpha: _number(r, f"{where}: {measure!r} at {alpha}") for alpha, r in column.items()
            }
    return spaces


def _load_metrics(
    path: pathlib.Path, score: str, num_classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    training: dict[str, list[Any]] = {key: [] for key in _TRAINING}
    tests: dict[str, list[Any]] = {key: [] for key in {score: True} | _TESTS | _TESTS_BY_CLASS}
    for number, line in enumerate(_read(path).removesuffix("\n").split("\n"), start=1):
        if number == 1 and not line:
            break  # the file is empty
        where = f"{path}, line {number}"
        record = _object(_parse(line, where), where)
        tested = score in record
        columns, required = (tests, _TESTS | _TESTS_BY_CLASS | {score: True}) if tested else (training, _TRAINING)
        for key, column in columns.items():
            if required[key] and key not in record:
                raise ValueError(f"{where} lacks {key!r}")
            if key in _TESTS_BY_CLASS:
                column.append(_numbers(record.get(key), num_classes, f"{where}: {key!r}"))
            else:
                column.append(_number(record.get(key), f"{where}: {key}"))
    tests["score"] = tests.pop(score)
    shapes = {key: (-1, num_classes) if key in _TESTS_BY_CLASS else (-1,) for key in (*training, *tests)}

    def shaped(part):
        return {key: np.array(column, float).reshape(shapes[key]) for key, column in part.items()}

    return shaped(training), shaped(tests)


def _load_environment(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    starts = _parse(_read(path), str(path))
    if not isinstance(starts, list):
        raise ValueError(f"{path} must hold a list with an object for each start, got {starts!r:.60}")
    return [_object(start, f"{path}: an entry") for start in starts]


def _load_confusions(path: pathlib.Path, num_classes: int) -> Confusions | None:
    arrays = _arrays(path, ("labels", "predictions", "pairs", "images", "shown"))
    if arrays is None:
        return None
    labels, predictions, pairs, images, shown = arrays.values()
    fits = labels.ndim == 1 and labels.shape == predictions.shape and pairs.ndim == 2 and pairs.shape[1] == 2
    fits = fits and images.ndim == 5 and images.dtype == np.uint8 and images.shape[-1] in (1, 3)
    if not fits or not len(pairs) == len(images) == len(shown):
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{path} does not hold a test pass and images of pairs, but {shapes}")
    _check_classes(path, np.concatenate([labels, predictions, pairs.ravel()]), num_classes)
    return Confusions(
        labels, predictions, pairs, tuple(some[:number] for some, number in zip(images, shown, strict=True))
    )


def _load_queries(path: pathlib.Path, num_classes: int) -> Queries | None:
    arrays = _arrays(path, [field.name for field in dataclasses.fields(Queries)])
    if arrays is None:
        return None
    queries = Queries(**arrays)
    fits = queries.images.ndim == 5 and queries.images.dtype == np.uint8 and queries.images.shape[-1] in (1, 3)
    fits = fits and queries.labels.shape == queries.images.shape[:2] and queries.map.shape[1:] == (2,)
    if not fits or queries.map_labels.shape != queries.map.shape[:1]:
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{path} does not hold queries with what is near and a map, but {shapes}")
    _check_classes(path, np.concatenate([queries.labels.ravel(), queries.map_labels]), num_classes)
    return queries


def _load_examples(path: pathlib.Path, num_classes: int) -> Examples | None:
    arrays = _arrays(path, [field.name for field in dataclasses.fields(Examples)])
    if arrays is None:
        return None
    examples = Examples(**arrays)
    fits = examples.images.ndim == 4 and examples.images.dtype == np.uint8 and examples.images.shape[-1] in (1, 3)
    if not fits or any(array.shape != (len(examples.images),) for name, array in arrays.items() if name != "images"):
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{path} does not hold images with their labels and shares, but {shapes}")
    _check_classes(path, np.concatenate([examples.labels, examples.other_labels]), num_classes)
    return examples


def _arrays(path: pathlib.Path, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """Arrays of a file by name; None where there is no file."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _check_classes(path: pathlib.Path, classes: np.ndarray, num_classes: int) -> None:
    if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
        raise ValueError(f"{path}: classes must lie in [0, {num_classes}), got {classes.min()} to {classes.max()}")


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing: the folder holds no finished run") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: None)  # NaN and infinities are undefined, as null is
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {json.dumps(value)!r:.60}")
    return value


def _number(value: Any, what: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number or null, got {value!r:.60}")
    return float(value)


def _numbers(values: Any, length: int, what: str) -> np.ndarray:
    """A list of numbers and nulls, one for each class; NaNs for an absent one."""
    if values is None:
        return np.full(length, np.nan)
    try:
        array = np.array(values, float)
    except (TypeError, ValueError):
        array = np.empty(0)
    if not isinstance(values, list) or array.shape != (length,):
        raise ValueError(f"{what} must be a list of {length} numbers, one for each class")
    return array
