"""Retrieval: whether what lies near an image is of its class, and how well classes are clusters.

Similarity is the cosine, in full float32. A query's own image is left out by its row, so that a duplicate of it is a
neighbour like any other; of equal similarities the lower row comes first. The search is on the device, in blocks.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dsb_jax import validation
from dsb_jax.evaluation import search

# Samples times clusters times channels up to which k-means is run, the best of ten: some minutes on a core. Test sets
# of some hundred classes are below it also at 512 channels; Stanford Online Products, with 60,502 images of 11,316
# classes, is far beyond, where ten runs would take hours.
LARGEST_KMEANS = 2 * 10**9
_MINI_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found for every query; the properties are means over queries.

    A mean over classes, or the recall of each, is made of the vectors, with ``labels`` to tell queries apart.

    Attributes:
      labels: the class of each query ``[Q]``, as it was given.
      first: rank of the nearest image of the query's class, from 1; int64 ``[Q]``, 0 where none was within the search.
      r_precisions: the fraction of the R nearest that are of the class; float64 ``[Q]``.
      average_precisions: the query's term of MAP@R; float64 ``[Q]``.
      ks: how near an image must be for the recalls.
    """

    labels: np.ndarray
    first: np.ndarray
    r_precisions: np.ndarray
    average_precisions: np.ndarray
    ks: tuple[int, ...]

    def hits(self, k: int) -> np.ndarray:
        """Whether an image of the class is among the k nearest; bool ``[Q]``, for k up to the largest of ``ks``."""
        if validation.positive_int("k", k) > max(self.ks):
            raise ValueError(f"k must be at most the largest of ks, {max(self.ks)}, got {k}")
        return (self.first > 0) & (self.first <= k)

    @property
    def recall_at_k(self) -> dict[int, float]:
        """As :func:`recall_at_k` has it."""
        return {k: float(self.hits(k).mean()) for k in self.ks}

    @property
    def precision_at_1(self) -> float:
        """How often the nearest image is of the class: the recall at 1."""
        return float(self.hits(1).mean())

    @property
    def r_precision(self) -> float:
        """The mean of ``r_precisions``."""
        return float(self.r_precisions.mean())

    @property
    def map_at_r(self) -> float:
        """The mean of ``average_precisions``."""
        return float(self.average_precisions.mean())


def measure(
    embeddings: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    queries: ArrayLike | None = None,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Found:
    """Recall at several k, R-precision and MAP@R, of one search.

    With R the number of other images of a query's class, and ``P(i)`` the fraction of its i nearest that are of its
    class, R-precision is ``P(R)``, and ``MAP@R`` is the mean of ``1/R Σ_{i<=R} P(i) [the i-th nearest is of the
    class]``.

    Args:
      embeddings: ``[samples, dim]``, floating, of any length but zero.
      labels: classes ``[samples]``, any integers.
      ks: how near an image must be, positive integers below the number of samples.
      queries: rows that search, integers ``[Q]``; all by default. The others are found, but do not search.
      progress: ``(iterable, total) -> iterable``, through which the blocks of queries pass, such as ``tqdm.tqdm``.

    Returns:
      :class:`Found`, with vectors in the order of ``queries``.

    Raises:
      ValueError: if a shape, a dtype or a value is wrong, or no other image is of a query's class.

    Example:
      >>> embeddings = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.7, 0.3]], np.float32)
      >>> found = measure(embeddings, [0, 0, 1, 1], ks=(1, 2))
      >>> found.recall_at_k, found.map_at_r, found.first
      ({1: 0.75, 2: 0.75}, 0.75, array([1, 1, 1, 0]))

    Source: Musgrave et al., A Metric Learning Reality Check, 2020, Section 3.2 (arXiv:2003.08505).
    """
    embeddings, labels, ks, queries = _checked(embeddings, labels, ks, queries)
    largest_class = np.unique_counts(labels[np.isin(labels, labels[queries])]).counts.max()
    depth = max(*ks, int(largest_class) - 1)
    first, precisions, averages = _scores(embeddings, labels, queries, depth, progress)
    return Found(labels[queries], first, precisions, averages, ks)


def recall_at_k(
    embeddings: ArrayLike, labels: ArrayLike, ks: Sequence[int], *, queries: ArrayLike | None = None
) -> dict[int, float]:
    """The fraction of queries that have an image of their class among the k nearest others.

    Args:
      embeddings: ``[samples, dim]``, floating, of any length but zero.
      labels: classes ``[samples]``, any integers.
      ks: how near an image must be, positive integers below the number of samples.
      queries: rows that search, integers ``[Q]``; all by default. The others are found, but do not search.

    Returns:
      A fraction in [0, 1] for each k.

    Raises:
      ValueError: if a shape, a dtype or a value is wrong, or no other image is of a query's class.

    Example:
      >>> embeddings = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.7, 0.3]], np.float32)
      >>> recall_at_k(embeddings, [0, 0, 1, 1], ks=(1, 3))
      {1: 0.75, 3: 1.0}

    Source: Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019, Section 4.
    """
    embeddings, labels, ks, queries = _checked(embeddings, labels, ks, queries)
    first, _, _ = _scores(embeddings, labels, queries, max(ks))
    return {k: float(np.mean((first > 0) & (first <= k))) for k in ks}


def neighbors(
    embeddings: ArrayLike, k: int, *, queries: ArrayLike | None = None, block_size: int = search.GALLERY_BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest others of each query, the nearest first.

    Args:
      embeddings: ``[samples, dim]``, floating, of any length but zero.
      k: how many, a positive integer below the number of samples.
      queries: rows that search, integers ``[Q]``; all by default.
      block_size: how many of the gallery are compared with at once; it changes the memory, not the result.

    Returns:
      Their rows, int64 ``[Q, k]``, and their cosine similarities, float32 ``[Q, k]``.

    Raises:
      ValueError: if a shape, a dtype or a value is wrong.

    Example:
      >>> embeddings = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]], np.float32)
      >>> rows, similarities = neighbors(embeddings, 2, queries=[0])
      >>> rows, similarities
      (array([[1, 2]]), array([[0.6, 0. ]], dtype=float32))
    """
    embeddings = search.directions(embeddings)
    k, block_size = _depth("k", k, len(embeddings)), validation.positive_int("block_size", block_size)
    queries = _rows(queries, len(embeddings))
    similarities, rows = search.by_blocks(embeddings, queries, k, block_size, lambda found, of: found)
    return rows.astype(np.int64), similarities


def cluster(embeddings: ArrayLike, num_clusters: int, *, seed: int = 0) -> np.ndarray:
    """Clusters of directions by k-means, the best of ten starts, on one core of the host.

    Beyond ``samples · num_clusters · dim = LARGEST_KMEANS`` it is one run of mini-batches from random samples.

    Args:
      embeddings: ``[samples, dim]``, floating, of any length but zero; they are brought to length 1.
      num_clusters: how many, at most ``samples``; for :func:`nmi` mostly the number of classes.
      seed: of the starts, >= 0.

    Returns:
      The cluster of each sample, int64 ``[samples]`` in ``[0, num_clusters)``.

    Raises:
      ValueError: if a shape, a dtype or a value is wrong.

    Example:
      >>> clusters = cluster(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]], np.float32), 2)
      >>> bool(clusters[0] == clusters[2]), bool(clusters[0] == clusters[1])
      (True, False)
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # takes a second to import, and only clustering needs it
    from threadpoolctl import threadpool_limits

    points = np.asarray(search.directions(embeddings))
    if validation.positive_int("num_clusters", num_clusters) > len(points):
        raise ValueError(f"num_clusters must be at most the number of samples, {len(points)}, got {num_clusters}")
    seed = validation.integer("seed", seed, lowest=0)
    if num_clusters * points.size <= LARGEST_KMEANS:
        estimator = KMeans(num_clusters, n_init=10, random_state=seed)
    else:
        estimator = MiniBatchKMeans(num_clusters, init="random", n_init=1, batch_size=_MINI_BATCH, random_state=seed)
    with threadpool_limits(1):  # several add up in any order, and where others are at work they wait for each other
        fitted = estimator.fit(points)
    return fitted.labels_.astype(np.int64)


def nmi(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information of classes and clusters, over the arithmetic mean of their entropies.

    ``2 I(labels; clusters) / (H(labels) + H(clusters))``: 1 where they are one partition, 0 where they are independent.

    Args:
      labels: classes ``[samples]``, any integers.
      clusters: the same, as from :func:`cluster`.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: if a shape or a dtype is wrong.

    Example:
      >>> nmi([0, 0, 1, 1], [5, 5, 3, 3]), nmi([0, 0, 1, 1], [0, 1, 0, 1])
      (1.0, 0.0)
    """
    from sklearn.metrics import normalized_mutual_info_score

    labels, clusters = _integers("labels", labels), _integers("clusters", clusters)
    if not 0 < len(labels) == len(clusters):
        raise ValueError(f"labels and clusters must have one length > 0, got {len(labels)} and {len(clusters)}")
    return float(np.clip(normalized_mutual_info_score(labels, clusters), 0.0, 1.0))


def _scores(
    embeddings: jax.Array,
    labels: np.ndarray,
    queries: np.ndarray,
    depth: int,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> list[np.ndarray]:
    """Of each query the rank of the first of its class, R-precision and average precision, as `Found` has them.

    The latter two are of the ``depth`` nearest alone, which should be R or more.
    """
    _, ids, counts = np.unique(labels, return_inverse=True, return_counts=True)
    others = counts[ids[queries]] - 1
    if not others.all():
        label = labels[queries[np.argmin(others)]]
        raise ValueError(
            f"labels must give every query's class another image, got a single one of class {label}; "
            "queries may leave it out"
        )
    ids, relevant = (jax.device_put(each.astype(np.int32), embeddings.device) for each in (ids, counts - 1))

    def summary(found, of):
        return _score(found[1], of, ids, relevant)

    first, found, average = search.by_blocks(embeddings, queries, depth, search.GALLERY_BLOCK, summary, progress)
    return [first.astype(np.int64), found / others, average.astype(np.float64)]


@jax.jit
def _score(found: jax.Array, of: jax.Array, ids: jax.Array, relevant: jax.Array) -> tuple[jax.Array, ...]:
    """Rank of the first of its class, number among the first R and average precision, of queries in rows ``of``."""
    match, wanted = ids[found] == ids[of][:, None], relevant[ids[of]]
    ranks = jnp.arange(1, found.shape[1] + 1, dtype=jnp.int32)[None]
    counted = match & (ranks <= wanted[:, None])
    precision = jnp.cumsum(counted, axis=1, dtype=jnp.int32).astype(jnp.float32) / ranks.astype(jnp.float32)
    average = jnp.sum(jnp.where(counted, precision, 0.0), axis=1) / wanted.astype(jnp.float32)
    first = jnp.where(match.any(axis=1), jnp.argmax(match, axis=1).astype(jnp.int32) + 1, 0)
    return first, jnp.sum(counted, axis=1, dtype=jnp.int32), average


def _checked(
    embeddings: ArrayLike, labels: ArrayLike, ks: Sequence[int], queries: ArrayLike | None
) -> tuple[jax.Array, np.ndarray, tuple[int, ...], np.ndarray]:
    """The arguments that measures share."""
    directions, labels = search.directions(embeddings), _integers("labels", labels)
    samples = len(directions)
    if len(labels) != samples:
        raise ValueError(f"labels must have one integer per row of embeddings, got {len(labels)} for {samples}")
    if not isinstance(ks, Sequence | np.ndarray) or isinstance(ks, str) or np.ndim(ks) != 1 or not len(ks):
        raise ValueError(f"ks must be positive integers, at least one, got {ks!r}")
    return directions, labels, tuple(_depth("ks", k, samples) for k in ks), _rows(queries, samples)


def _integers(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers of shape [samples], got {array.dtype} {array.shape}")
    return array


def _depth(name: str, k: int, samples: int) -> int:
    if validation.positive_int(name, k) >= samples:
        raise ValueError(f"{name} must be at most the number of other samples, {samples - 1}, got {k}")
    return int(k)


def _rows(queries: ArrayLike | None, samples: int) -> np.ndarray:
    """The rows that search, all for None."""
    if queries is None:
        return np.arange(samples)
    rows = _integers("queries", queries)
    if not len(rows):
        raise ValueError("queries must be rows of embeddings, at least one, got none")
    bad = (rows < 0) | (rows >= samples)
    if bad.any():
        raise ValueError(f"queries must lie in [0, {samples}), got {rows[bad.argmax()]} at position {bad.argmax()}")
    return rows
