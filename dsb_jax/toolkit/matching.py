"""Which parent a class belongs to: the one whose volume changes least when the class is mixed into it.

The features of a child lie within those of its parent, so that the parent with the child's samples among its own spans
about the volume that it spans without them (paper, Appendix L). Of child c and parent p

    ratio[c, p] = Vol(p and c together) / Vol(p),  and the parent of c is that of the smallest |ratio − 1|.

A ratio may lie below 1: a child in the midst of a parent narrows it. Samples are mixed as they are, as in the paper,
and so a child of few samples changes a parent of many but little by its weight alone. Volumes are the paper's S',
without interference, and come from moments that are added: no sample is read twice.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from dsb_jax import validation
from dsb_jax.evaluation import drawing
from dsb_jax.toolkit import moments, streaming, trees
from dsb_jax.toolkit.moments import Moments
from dsb_jax.toolkit.points import Points
from dsb_jax.toolkit.trees import NONE

_CHANCE = 0.01  # a probability from which on it may well be chance that so many are right
_UNEQUAL = 2.0  # times that the largest parent may be of the smallest before a reading warns of it
_DRAWN = 3.0  # times its share of the children that a parent may draw wrongly before a reading says so
_LISTED = 8  # matches that a reading names
_COLUMNS = 12  # parents of which a table has room for the ratios


@dataclasses.dataclass(frozen=True, eq=False)
class Hierarchy:
    """Children matched to parents: the paper's Table 12. A :class:`dsb_jax.toolkit.findings.Finding`.

    Attributes:
      ratios: float64 ``[C, P]``, the parent's volume with the child over that without; NaN for a child without samples
        and for a parent without volume.
      child_names: C names.
      parent_names: P names.
      child_counts: samples, int64 ``[C]``.
      parent_counts: likewise ``[P]``.
      real: the true parent of each child, int64 ``[C]``, `NONE` where it is not known.
      name: what they are of.
      origin: in a sentence, what parents are made of where they are none of their own.
    """

    ratios: np.ndarray
    child_names: tuple[str, ...]
    parent_names: tuple[str, ...]
    child_counts: np.ndarray
    parent_counts: np.ndarray
    real: np.ndarray
    name: str
    origin: str = ""

    @functools.cached_property
    def changes(self) -> np.ndarray:
        """``|ratio − 1|``, infinite where there is no ratio."""
        return np.nan_to_num(np.abs(self.ratios - 1), nan=np.inf)

    @property
    def predicted(self) -> np.ndarray:
        """The parent of the smallest change, int64 ``[C]``, of equal ones the first; `NONE` where there is none."""
        return np.where(np.isfinite(self.changes).any(axis=1), self.changes.argmin(axis=1), NONE)

    @property
    def margins(self) -> np.ndarray:
        """How much more the second of the parents changes than the first, ``[C]``; NaN where there is no second."""
        changes = np.sort(self.changes, axis=1)
        if changes.shape[1] < 2:
            return np.full(len(changes), np.nan)
        with np.errstate(invalid="ignore"):
            margins = changes[:, 1] - changes[:, 0]
        return np.where(np.isfinite(margins), margins, np.nan)

    @property
    def counted(self) -> np.ndarray:
        """The real parents of the children that have a ratio with them, and may be matched right; `NONE` of others."""
        of_real = np.take_along_axis(self.ratios, self.real[:, None], axis=1)[:, 0]
        return np.where(np.isfinite(of_real), self.real, NONE)

    @property
    def right(self) -> np.ndarray:
        """Of the children that are counted, whether their real parent is the one predicted: bool ``[counted]``."""
        known = self.counted != NONE
        return self.predicted[known] == self.real[known]

    @property
    def accuracy(self) -> float:
        """The fraction of them that is; NaN where none is counted."""
        return float(self.right.mean()) if len(self.right) else float("nan")

    @property
    def by_chance(self) -> float:
        """The probability that so many or more are right if parents are drawn at random."""
        if not len(self.right):
            return float("nan")
        share = 1 / len(self.parent_names)
        return float(binomtest(int(self.right.sum()), len(self.right), share, alternative="greater").pvalue)

    def reading(self) -> str:
        """What was matched, how much of it is right, and what sizes have to do with it."""
        said = self._verdict() if len(self.right) else self._matches()
        return " ".join(filter(None, [said, self.origin, *self._attraction(), *self._warnings()]))

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """A row for each child: the ratios of all parents, or of many the two nearest to 1, and what follows."""
        few = len(self.parent_names) <= _COLUMNS
        parents = [*self.parent_names, ""]  # NONE is the last
        rows, counted = [], self.counted
        for child, name in enumerate(self.child_names):
            shown = self.ratios[child] if few else self.ratios[child, np.argsort(self.changes[child])[:2]]
            real, predicted = self.real[child], self.predicted[child]
            right = "" if counted[child] == NONE else "yes" if real == predicted else "no"
            cells = [_text(ratio) for ratio in (*shown, self.margins[child])]
            rows.append([name, *cells, parents[predicted], parents[real], right])
        ratios = self.parent_names if few else ("ratio", "next ratio")
        return ["child", *ratios, "margin", "predicted", "real", "right"], rows

    def figures(self) -> dict[str, tuple[str, Figure]]:
        """The tree, and all changes."""
        best = np.take_along_axis(self.ratios, self.predicted[:, None], axis=1)[:, 0]
        labels = [f"{drawing.short(name)}  {_text(ratio)}" for name, ratio in zip(self.child_names, best, strict=True)]
        of_tree = f"{int(self.right.sum())} of {len(self.right)} right" if len(self.right) else self.name
        astray = ", orange where the real one is another, to which a dashed line leads" if len(self.right) else ""
        matched = (self.predicted, self.counted)
        return {
            "tree": (
                f"Each child and the parent whose volume changes least by it{astray}. The thicker a line, the more the "
                "next parent would change; numbers are ratios of volumes.",
                trees.matches(
                    *matched,
                    self.margins,
                    parent_names=self.parent_names,
                    child_labels=labels,
                    title=f"The parents that change least: {of_tree}",
                ),
            ),
            "ratios": (
                "The volume of each parent with the child over that without it; in each row the darker, the nearer to 1"
                f"{'. The real parent is framed' if len(self.right) else ''}.",
                trees.changes(
                    self.ratios,
                    *matched,
                    parent_names=self.parent_names,
                    child_names=self.child_names,
                    title="Volume of parents with a child over that without",
                ),
            ),
        }

    def as_dict(self) -> dict[str, Any]:
        """Ratios by child and parent, and what is made of them."""
        parents = [*self.parent_names, None]
        children = {}
        for child, name in enumerate(self.child_names):
            children[name] = {
                "samples": self.child_counts[child],
                "ratios": dict(zip(self.parent_names, self.ratios[child], strict=True)),
                "predicted": parents[self.predicted[child]],
                "margin": self.margins[child],
                "real": parents[self.real[child]],
            }
        return {
            "name": self.name,
            "parents": dict(zip(self.parent_names, self.parent_counts, strict=True)),
            "children": children,
            "accuracy": self.accuracy,
            "by_chance": self.by_chance,
            "origin": self.origin,
        }

    def _verdict(self) -> str:
        number, known, parents = int(self.right.sum()), len(self.right), len(self.parent_names)
        text = f"{number} of {known} children change the volume of their real parent least"
        chance = f"chance would match {known / parents:.3g}, and so many with p = {self.by_chance:.2g}"
        if self.by_chance >= _CHANCE:
            return f"{text}; {chance}, which is too much to say that volumes show the hierarchy."
        text = f"{text} ({chance})"
        if number == known:
            return f"{text}: volumes show the hierarchy."
        most = "most of the hierarchy" if self.accuracy > 0.5 else "a part of the hierarchy, and miss the most"
        return f"{text}: volumes show {most}."

    def _attraction(self) -> list[str]:
        """A parent that draws many which are not its own."""
        drawn = np.bincount(self.predicted[(self.counted != NONE) & (self.real != self.predicted)] + 1)[1:]
        if not drawn.any() or drawn.max() < max(_DRAWN * len(self.right) / len(self.parent_names), _DRAWN):
            return []
        name = self.parent_names[int(drawn.argmax())]
        return [f"{name} alone draws {drawn.max()} of others: a parent that spans much changes little by anything."]

    def _matches(self) -> str:
        matched = np.flatnonzero(self.predicted != NONE)
        clearest = matched[np.argsort(-np.nan_to_num(self.margins[matched], nan=np.inf), kind="stable")][:_LISTED]
        named = [
            f"{self.child_names[child]} in {self.parent_names[self.predicted[child]]}"
            f" ({self.ratios[child, self.predicted[child]]:.3g})"
            for child in clearest
        ]
        return f"By the smallest change of volume, the clearest first: {', '.join(named) or 'none'}."

    def _warnings(self) -> list[str]:
        warnings = []
        lost = [self.child_names[child] for child in np.flatnonzero(self.predicted == NONE)]
        if lost:
            warnings.append(f"Not matched: {', '.join(lost[:_LISTED])}.")
        out = [self.child_names[child] for child in np.flatnonzero((self.real != NONE) & (self.counted == NONE))]
        if out:
            more = f" and {len(out) - _LISTED} more" if len(out) > _LISTED else ""
            warnings.append(f"Not counted, without a ratio with their real parent: {', '.join(out[:_LISTED])}{more}.")
        measured = self.parent_counts[np.isfinite(self.ratios).any(axis=0)]
        if len(measured) and measured.max() > _UNEQUAL * measured.min():
            warnings.append(
                f"Parents have {measured.min():,} to {measured.max():,} samples, and what is mixed into a large one "
                "changes it less by its weight alone: matches lean towards the large ones."
            )
        return warnings


def match(
    children: Points | Mapping[str, Moments],
    parents: Points | Mapping[str, Moments],
    *,
    parent_of: Mapping[str, str] | None = None,
    epsilon: float = 1.0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Hierarchy:
    """Matches each child to the parent whose volume changes least when the child is mixed into it.

    Args:
      children: points, whose classes are the children; or moments by name, as they add up over shards.
      parents: likewise, in the same space; two classes or more.
      parent_of: names of real parents by names of children, where they are known, of all children or of some.
      epsilon: of the volumes.
      progress: ``(iterable, total) -> iterable``, through which the children pass.

    Returns:
      Ratios and matches.

    Raises:
      ValueError: if spaces differ in dimension, a name in ``parent_of`` is unknown, no parent has a volume, or matrices
        do not fit into memory.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> wide = lambda *spread: Moments.of(rng.normal(size=(500, 3)) * spread)
      >>> found = match(
      ...     {"flat": wide(5, 0.1, 0.1), "tall": wide(0.1, 0.1, 5)},
      ...     {"plane": wide(9, 9, 0.1), "tower": wide(0.1, 0.1, 9)}, parent_of={"flat": "plane", "tall": "tower"})
      >>> [found.parent_names[parent] for parent in found.predicted], found.accuracy
      (['plane', 'tower'], 1.0)

    Source: Ma et al., Delving into Semantic Scale Imbalance, 2023, Appendix L.
    """
    epsilon = validation.positive("epsilon", epsilon)
    name = children.name if isinstance(children, Points) else "classes"
    others = [each.num_classes if isinstance(each, Points) else len(each) for each in (parents, children)]
    children, parents = map(moments_by_name, (children, parents), others)
    if len(parents) < 2 or not children:
        raise ValueError(f"a match needs a child and two parents, got {len(children)} and {len(parents)}")
    dims = {len(each.mean) for each in (*children.values(), *parents.values())}
    if len(dims) > 1:
        raise ValueError(f"children and parents must be points of one space, got dimensions {sorted(dims)}")
    real = _real(parent_of or {}, tuple(children), tuple(parents))
    ratios = np.full((len(children), len(parents)), np.nan)
    rows = children.values() if progress is None else progress(children.values(), len(children))
    # One pair is too little for a BLAS with threads of its own.
    with threadpool_limits(1):
        alone = np.array([parent.volume(epsilon=epsilon) for parent in parents.values()])
        if not (alone > 0).any():
            raise ValueError("parents must have a volume: none has two samples that differ")
        for child, row in zip(rows, ratios, strict=True):
            _measure(row, child, list(parents.values()), alone, epsilon)
    return _hierarchy(ratios, children, parents, real, name)


def match_halves(
    points: Points,
    parent_of: Mapping[str, str],
    *,
    seed: int = 0,
    epsilon: float = 1.0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Hierarchy:
    """Matches one half of each child to parents that the other halves make, where there are no images of parents.

    A parent then holds its child's own kind among others: that a match is right says that the child is found again in
    what it is a part of. The paper's parents are images of their own; :func:`match_siblings` asks for more.

    Args:
      points: classes are the children.
      parent_of: the name of the parent of each.
      seed: draws the halves; see :func:`halves`.
      epsilon: of the volumes.
      progress: as for :func:`match`.

    Raises:
      ValueError: as :func:`halves` and :func:`match` do.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> rng = np.random.default_rng(0)
      >>> rows = np.concatenate([rng.normal(size=(60, 2)) * spread for spread in ([9, 1], [8, 1], [1, 9], [1, 8])])
      >>> found = match_halves(
      ...     points.of(rows, np.repeat(range(4), 60), "abcd"), {"a": "flat", "b": "flat", "c": "tall", "d": "tall"})
      >>> found.accuracy
      1.0
    """
    children, parents = halves(points, parent_of, seed=seed)
    found = match(children, parents, parent_of=parent_of, epsilon=epsilon, progress=progress)
    return dataclasses.replace(found, origin="Parents are other halves of the children, each child's own among them.")


def match_siblings(
    children: Points | Mapping[str, Moments],
    parent_of: Mapping[str, str],
    *,
    epsilon: float = 1.0,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Hierarchy:
    """Matches each child to parents that the other children make: its own parent is its siblings alone.

    Whether a class lies within what its siblings span, not what it makes up itself. A child without siblings has no
    ratio with its own parent, and is not counted among the matches that are right or wrong.

    Args:
      children: points, whose classes are the children; or moments by name.
      parent_of: the name of the parent of each.
      epsilon: of the volumes.
      progress: as for :func:`match`.

    Raises:
      ValueError: if a child has no parent, ``parent_of`` has one that there is not, or fewer than two parents;
        or matrices do not fit into memory.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> classes = {name: Moments.of(rng.normal(size=(60, 2)) * spread) for name, spread in
      ...            (("a", [9, 1]), ("b", [8, 1]), ("c", [1, 9]), ("d", [1, 8]))}
      >>> match_siblings(classes, {"a": "flat", "b": "flat", "c": "tall", "d": "tall"}).accuracy
      1.0
    """
    epsilon = validation.positive("epsilon", epsilon)
    name = children.name if isinstance(children, Points) else "classes"
    children = moments_by_name(children, len(set(parent_of.values())))
    real, parent_names = _all_real(parent_of, tuple(children))
    each, ratios = list(children.values()), np.full((len(children), len(parent_names)), np.nan)

    def together(parent: int, without: int | None = None) -> Moments:
        members = [each[number] for number in np.flatnonzero(real == parent) if number != without]
        return functools.reduce(Moments.__add__, members, Moments.none(len(each[0].mean)))

    with threadpool_limits(1):
        whole = [together(parent) for parent in range(len(parent_names))]
        volumes = np.array([parent.volume(epsilon=epsilon) for parent in whole])
        for number, row in enumerate(ratios if progress is None else progress(ratios, len(ratios))):
            parents, alone = list(whole), volumes.copy()
            parents[real[number]] = together(real[number], without=number)
            alone[real[number]] = parents[real[number]].volume(epsilon=epsilon)
            _measure(row, each[number], parents, alone, epsilon)
    found = _hierarchy(ratios, children, dict(zip(parent_names, whole, strict=True)), real, name)
    return dataclasses.replace(found, origin="Parents are the other children; a child's own is its siblings alone.")


def moments_by_name(classes: Points | Mapping[str, Moments], others: int = 0) -> dict[str, Moments]:
    """Moments of classes by name; given as such already, they stay what they are.

    Args:
      classes: points, or moments by name.
      others: for how many classes more there must be memory.

    Raises:
      ValueError: if several classes have one name, or their matrices of d² numbers do not fit into memory.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> {name: each.count for name, each in moments_by_name(points.of(np.eye(3))).items()}
      {'0': 3}
    """
    if not isinstance(classes, Points):
        return dict(classes)
    repeated = [name for name, number in collections.Counter(classes.class_names).items() if number > 1]
    if repeated:
        raise ValueError(f"{classes.name}: classes must have different names, got several called {repeated[0]}")
    count, dim = classes.points.shape
    streaming.require_memory(classes.name, count, classes.num_classes + others, dim)
    found = moments.of_classes(classes.points, classes.labels, classes.num_classes, Moments.of)
    return dict(zip(classes.class_names, found, strict=True))


def halves(points: Points, parent_of: Mapping[str, str], *, seed: int = 0) -> tuple[Points, Points]:
    """Children and parents out of children alone: of each child one half is the child, and the other is its parent's.

    A parent is then all that its children are, the child in question among them: that a match is right says that the
    child is found again in what it is a part of. The paper's parents are images of their own.

    Args:
      points: classes are the children.
      parent_of: the name of the parent of each.
      seed: draws the halves; of an odd number the child has one more.

    Returns:
      Children, with classes as in ``points``, and parents, in the order in which ``parent_of`` has them.

    Raises:
      ValueError: if a class has no parent, or ``parent_of`` has a class that is none, or fewer than two parents.

    Example:
      >>> from dsb_jax.toolkit import points
      >>> animals = points.of(np.eye(4), np.array([0, 0, 1, 1]), ["cat", "cow"])
      >>> children, parents = halves(animals, {"cat": "pet", "cow": "cattle"})
      >>> children.counts.tolist(), parents.counts.tolist(), parents.class_names
      ([1, 1], [1, 1], ('pet', 'cattle'))
    """
    real, parent_names = _all_real(parent_of, points.class_names)
    rng = np.random.default_rng(seed)
    order, counts = moments.sorted_by_class(points.labels, points.num_classes)
    given = np.zeros(len(order), bool)
    for rows, count in zip(np.split(order, np.cumsum(counts)[:-1]), counts, strict=True):
        given[rng.permutation(rows)[: count // 2]] = True
    of_parents = dataclasses.replace(
        points,
        points=points.points[given],
        labels=real[points.labels[given]].astype(np.int32),
        class_names=parent_names,
    )
    return dataclasses.replace(points, points=points.points[~given], labels=points.labels[~given]), of_parents


def _measure(row: np.ndarray, child: Moments, parents: Sequence[Moments], alone: np.ndarray, epsilon: float) -> None:
    """Fills in the ratios of a child with parents whose volumes ``alone`` are known, where there are any."""
    if child.count:
        mixed = np.array([(parent + child).volume(epsilon=epsilon) for parent in parents])
        np.divide(mixed, alone, out=row, where=alone > 0)


def _hierarchy(
    ratios: np.ndarray, children: Mapping[str, Moments], parents: Mapping[str, Moments], real: np.ndarray, name: str
) -> Hierarchy:
    of_children, of_parents = (np.array([each.count for each in named.values()]) for named in (children, parents))
    return Hierarchy(ratios, tuple(children), tuple(parents), of_children, of_parents, real, name)


def _all_real(parent_of: Mapping[str, str], children: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the parents of all children, and names of the parents in the order in which they come."""
    parents = tuple(dict.fromkeys(parent_of.values()))
    if len(parents) < 2:
        raise ValueError(f"parent_of must have two parents or more, got {', '.join(parents) or 'none'}")
    real = _real(parent_of, children, parents)
    if (real == NONE).any():
        raise ValueError(f"parent_of must have a parent of every class, got none of {children[int(real.argmin())]}")
    return real, parents


def _real(parent_of: Mapping[str, str], children: Sequence[str], parents: Sequence[str]) -> np.ndarray:
    """Numbers of the parents ``[C]``, `NONE` where there is none."""
    for child, parent in parent_of.items():
        if child not in children:
            raise validation.unknown_name("child in parent_of", child, children)
        if parent not in parents:
            raise validation.unknown_name("parent in parent_of", parent, parents)
    return np.array([parents.index(parent_of[child]) if child in parent_of else NONE for child in children])


def _text(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ""
