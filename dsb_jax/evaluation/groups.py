"""Which runs belong together, differing in their seed alone, and which are compared with which."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from dsb_jax.evaluation import paired, runs
from dsb_jax.evaluation.runs import Run

_SEEDS = ("seed", "subset_seed")
_SETTINGS_IN_LABEL = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
      label: the method, and where another group has the same one, the settings that set it apart.
      runs: in the order given.
    """

    label: str
    runs: tuple[Run, ...]

    def results(self, key: str) -> np.ndarray:
        """A figure of each run, such as ``top1``."""
        return np.array([run.figures[key] for run in self.runs])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The runs of a group, paired with runs of the base.

    Attributes:
      label: of the group.
      base: label of the base.
      pairs: (run, run of the base).
      same_seed: whether the runs of a pair have one seed. Where no seed is shared, all runs are paired with the first
        one of the base.
      unpaired: runs left out, of whose seed the base has none.
    """

    label: str
    base: str
    pairs: tuple[tuple[Run, Run], ...]
    same_seed: bool
    unpaired: int

    def differences(self, key: str) -> np.ndarray:
        """Of a result, ``[pairs]``."""
        return np.array([run.figures[key] - base.figures[key] for run, base in self.pairs])

    @property
    def by_class(self) -> np.ndarray:
        """Of the classes' scores, ``[pairs, C]``."""
        return np.array([run.scores - base.scores for run, base in self.pairs])

    @property
    def mean_by_class(self) -> np.ndarray:
        """The mean of these, ``[C]``."""
        return paired.mean(self.by_class).round(12)  # what is equal on paper is equal here


def check_comparable(loaded: Sequence[Run]) -> None:
    """Raises ValueError unless all runs are of one dataset and task, and have the same classes."""
    first = loaded[0]
    for run in loaded[1:]:
        one, other = first.results["dataset"], run.results["dataset"]
        if one != other:
            raise ValueError(f"runs must be of one dataset, got {one!r} in {first.path} and {other!r} in {run.path}")
        if run.words.score_name != first.words.score_name:
            one, other = (f"{of.words.score_name} in {of.path}" for of in (first, run))
            raise ValueError(f"runs must be judged by one score of their classes, got {one} and {other}")
        if len(run.class_names) != len(first.class_names):
            one, other = len(first.class_names), len(run.class_names)
            raise ValueError(f"runs must have the same classes, got {one} in {first.path} and {other} in {run.path}")
        if run.class_names != first.class_names:
            names = zip(first.class_names, run.class_names, strict=True)
            number, (one, other) = next((i, pair) for i, pair in enumerate(names) if pair[0] != pair[1])
            raise ValueError(
                f"runs must have the same classes in the same order, but class {number} is {one!r} in {first.path} "
                f"and {other!r} in {run.path}"
            )


def group(loaded: Sequence[Run], without_effect: Collection[str] = ()) -> list[Group]:
    """Groups in the order of their first runs; a second run of one seed begins a group of its own.

    Args:
      loaded: runs of one dataset.
      without_effect: settings that change no result and set no runs apart.
    """
    members: dict[tuple[Any, ...], list[Run]] = {}
    for run in loaded:
        settings = (run.results["method"], *sorted(_settings(run, without_effect).items()))
        again = 0
        while any(_seeds(other) == _seeds(run) for other in members.get((settings, again), ())):
            again += 1
        members.setdefault((settings, again), []).append(run)
    labels: list[str] = []
    for together in members.values():
        method = together[0].results["method"]
        rivals = [those[0] for those in members.values() if those[0].results["method"] == method]
        label = f"{method}{_difference(together[0], rivals, without_effect)}"
        number = sum(other == label or other.startswith(f"{label} (") for other in labels) + 1
        labels.append(f"{label} ({number})" if number > 1 else label)
    return [Group(label, tuple(together)) for label, together in zip(labels, members.values(), strict=True)]


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """Every other group with the first one."""
    base, *others = groups
    of_seed = {_seeds(run): run for run in base.runs}
    compared = []
    for other in others:
        pairs = tuple((run, of_seed[_seeds(run)]) for run in other.runs if _seeds(run) in of_seed)
        same_seed = bool(pairs)
        pairs = pairs or tuple((run, base.runs[0]) for run in other.runs)
        compared.append(Comparison(other.label, base.label, pairs, same_seed, len(other.runs) - len(pairs)))
    return compared


def differing_settings(loaded: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which runs differ: a value for each run, as JSON; empty where it has none."""
    flat = [_settings(run, ()) | {key: json.dumps(run.config.get(key)) for key in _SEEDS} for run in loaded]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    columns = {key: [settings.get(key, "") for settings in flat] for key in keys}
    return {key: column for key, column in columns.items() if len(set(column)) > 1}


def _settings(run: Run, without_effect: Collection[str]) -> dict[str, str]:
    return {
        key: json.dumps(value, ensure_ascii=False)
        for key, value in runs.flat(run.config).items()
        if key not in (*_SEEDS, *without_effect)
    }


def _difference(run: Run, rivals: Sequence[Run], without_effect: Collection[str]) -> str:
    own, all_settings = _settings(run, without_effect), [_settings(rival, without_effect) for rival in rivals]
    keys = sorted(key for key in own if len({settings.get(key) for settings in all_settings}) > 1)
    shown = [f"{key}={own[key]}".replace('"', "") for key in keys[:_SETTINGS_IN_LABEL]]
    return ", ".join(["", *shown, *["…" for _ in keys[_SETTINGS_IN_LABEL:][:1]]])


def _seeds(run: Run) -> tuple[Any, ...]:
    return tuple(run.config.get(key) for key in _SEEDS)
