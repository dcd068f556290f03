"""Nearest neighbours by cosine similarity, on the device, in blocks of queries and of the gallery.

Memory grows with the gallery and never with its square: beside the embeddings, each of a few blocks at work (one per
core on a CPU, two elsewhere) takes a small multiple of 16 MiB on a CPU and of 256 MiB on another device.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dsb_jax import validation

GALLERY_BLOCK = 2**16  # rows; a smaller gallery is one block
_GROUP = 16  # neighbouring rows of the gallery that are looked at one by one only where their best is among the best
# Similarities held at once: on a CPU they should stay in its cache, elsewhere the device should be busy.
_HELD_ON_CPU, _HELD = 2**22, 2**26
_WORKERS = 16  # of a CPU; each holds blocks of its own


def directions(embeddings: ArrayLike) -> jax.Array:
    """The embeddings at length 1, in float32 on the default device.

    Raises:
      ValueError: unless they are floating ``[samples, dim]`` and finite, and none is zero.

    Example:
      >>> directions(np.array([[3.0, 4.0], [0.0, 2.0]], np.float32))
      Array([[0.6, 0.8],
             [0. , 1. ]], dtype=float32)
    """
    host = np.asarray(embeddings)  # also of what is spread over several devices
    if host.ndim == 2 and jnp.issubdtype(host.dtype, jnp.floating) and host.size:
        # The largest entry is brought near 1: by a power of two, which does not round, and before anything is narrowed,
        # so that no number that the row's dtype has is too small or too large.
        host = host.astype(np.float64)
        host = np.ldexp(host, -np.frexp(np.abs(host).max(axis=1, keepdims=True))[1])
    array = validation.features(host.astype(np.float32) if host.dtype == np.float64 else host, name="embeddings")
    zero = ~np.asarray(array).any(axis=1)
    if zero.any():
        raise ValueError(f"embeddings must have a direction, got a zero vector in row {zero.argmax()}")
    return _unit(array)


def by_blocks(
    embeddings: jax.Array,
    queries: np.ndarray,
    k: int,
    gallery_block: int,
    summary: Callable[..., Any],
    progress: Callable[..., Iterable[Any]] | None = None,
) -> list[np.ndarray]:
    """What ``summary`` makes of the k nearest others of the queries, block by block and put together on the host.

    Args:
      embeddings: ``[samples, dim]``, from :func:`directions`.
      queries: rows that search ``[Q]``.
      k: how many are found, below ``samples``.
      gallery_block: how many of the gallery are compared with at once.
      summary: ``((similarities, rows) [block, k] of neighbours, rows [block] of queries) -> arrays [block, ...]``.
      progress: ``(iterable, total) -> iterable``, through which the blocks of queries pass, such as ``tqdm.tqdm``.

    Returns:
      Each of the arrays, ``[Q, ...]``.

    Example:
      >>> points = directions(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]], np.float32))
      >>> by_blocks(points, np.array([0, 2]), 1, GALLERY_BLOCK, lambda found, of: (found[1], of))
      [array([[1],
             [1]], dtype=int32), array([0, 2], dtype=int32)]
    """
    device: Any = embeddings.device
    nearest, held, workers = _method(device.platform)
    samples, dim = embeddings.shape
    block = -(-min(gallery_block, samples) // _GROUP) * _GROUP
    gallery: Any = jnp.pad(embeddings, ((0, -samples % block), (0, 0))).reshape(-1, block, dim)
    size = min(max(held // (block + 4 * k), 1), len(queries))
    if nearest is _nearest_on_cpu:
        gallery = tuple(gallery)  # once, and not a copy of a block for every block of queries
    # The last block is filled up with its last query, whose further results are cut off.
    padded = np.pad(queries, (0, -len(queries) % size), mode="edge").astype(np.int32).reshape(-1, size)

    def run(rows):
        rows = jax.device_put(rows, device)
        query = jnp.take(embeddings, rows, axis=0, mode="clip")
        return jax.device_get(summary(nearest(gallery, query, rows, k=k, samples=samples), rows))

    results = [run(padded[0])]  # compiles for all
    with ThreadPoolExecutor(workers) as pool:
        others = pool.map(run, padded[1:])
        results += others if progress is None else progress(others, len(padded) - 1)
    return [np.concatenate(parts)[: len(queries)] for parts in zip(*results, strict=True)]


def _method(platform: str) -> tuple[Callable[..., Any], int, int]:
    """What searches there, how many similarities it holds at once, and how many blocks are at work."""
    if platform == "cpu":
        of_this = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        return _nearest_on_cpu, _HELD_ON_CPU, min(len(of_this), _WORKERS)
    return _nearest, _HELD, 2  # one is fetched while one runs


@functools.partial(jax.jit, static_argnames=("k", "samples"))
def _nearest(
    gallery: jax.Array, query: jax.Array, own: jax.Array, *, k: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Similarities and rows of the k nearest, of queries ``[Q, dim]`` in a gallery ``[blocks, block, dim]``."""
    block = gallery.shape[1]

    def of_block(number, rows):
        values, at = _top_k(_similarities(query, own, rows, number * block, samples), min(k, block))
        return values, number * block + at

    def merge(best, numbered):
        # What is of earlier blocks stands first, and so the lower row of equals.
        values, indices = (jnp.concatenate(pair, axis=1) for pair in zip(best, of_block(*numbered), strict=True))
        values, at = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(indices, at, axis=1)), None

    if gallery.shape[0] == 1:
        return of_block(jnp.int32(0), gallery[0])
    none = jnp.full((len(query), k), -jnp.inf, jnp.float32), jnp.zeros((len(query), k), jnp.int32)
    return jax.lax.scan(merge, none, (jnp.arange(gallery.shape[0], dtype=jnp.int32), gallery))[0]


def _similarities(query: jax.Array, own: jax.Array, rows: jax.Array, first: jax.Array, samples: int) -> jax.Array:
    """Cosines ``[Q, block]`` with a block of the gallery from row ``first`` on; -inf with itself and past the end."""
    block = len(rows)
    cosine = jnp.matmul(query, rows.T, precision=jax.lax.Precision.HIGHEST)
    if samples % block:
        cosine = jnp.where((first + jnp.arange(block, dtype=jnp.int32) < samples)[None], cosine, -jnp.inf)
    at = jnp.where(own >= first, own - first, block)  # what is past the block is dropped
    return cosine.at[jnp.arange(len(query), dtype=jnp.int32), at].set(-jnp.inf, mode="drop")


def _top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As ``lax.top_k`` of ``[rows, columns]``, for few of many columns by the groups that the k largest must be in.

    Groups are those of the k largest maxima: what is outside of them has k others before it.
    """
    rows, columns = values.shape
    if columns % _GROUP or 4 * _GROUP * k > columns:
        return jax.lax.top_k(values, k)
    grouped = values.reshape(rows, columns // _GROUP, _GROUP)
    # In the order of columns, so that of equals the lower stays first.
    groups = jnp.sort(jax.lax.top_k(grouped.max(axis=2), k)[1], axis=1)
    candidates = jnp.take_along_axis(grouped, groups[:, :, None], axis=1).reshape(rows, k * _GROUP)
    largest, at = jax.lax.top_k(candidates, k)
    return largest, jnp.take_along_axis(groups, at // _GROUP, axis=1) * _GROUP + at % _GROUP


def _nearest_on_cpu(
    gallery: Sequence[jax.Array], query: jax.Array, own: jax.Array, *, k: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_nearest`, but NumPy selects, on the same CPU: XLA's own top_k takes as long there as all the products do.

    A similarity and its row are one integer, the smaller the nearer, and the lower of equals: to merge is to sort.
    """
    best = np.full((len(query), 0), _FARTHEST)
    least = np.full((len(query), 1), -np.inf, np.float32)
    for number, rows in enumerate(gallery):
        first = number * len(rows)
        cosine, maxima = jax.device_get(_with_maxima(query, own, rows, first, k=k, samples=samples))
        if maxima.shape[1] >= k:  # of the k groups that have the largest, each has one as large as the least of them
            least = np.maximum(least, np.partition(maxima, -k, axis=1)[:, -k, None])
        best = np.sort(np.concatenate([best, _keys(cosine, least, first, k)], axis=1), axis=1)[:, :k]
        if best.shape[1] == k:
            least = np.maximum(least, _decoded(best[:, -1:])[0])
    return _decoded(best)


@functools.partial(jax.jit, static_argnames=("k", "samples"))
def _with_maxima(
    query: jax.Array, own: jax.Array, rows: jax.Array, first: jax.Array, *, k: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Cosines with a block of the gallery, and the largest of each of some four times k groups of them."""
    block = len(rows)
    cosine = _similarities(query, own, rows, first, samples)
    in_group = min(max(block // (4 * k), 1), 4 * _GROUP)  # wider ones would not fill the lanes of a CPU
    groups = block // in_group
    return cosine, cosine[:, : in_group * groups].reshape(-1, in_group, groups).max(axis=1)


# A key has 32 bits of similarity above 32 of the row; this one is of none.
_FARTHEST = np.int64(2**63 - 1)


def _lowest(chosen: np.ndarray, k: int) -> np.ndarray:
    """The first k of each row that are true."""
    kept = np.zeros_like(chosen)
    for row, of_row in zip(kept, chosen, strict=True):
        row[np.flatnonzero(of_row)[:k]] = True
    return kept


def _keys(cosine: np.ndarray, least: np.ndarray, first: int, k: int) -> np.ndarray:
    """Keys of the similarities ``[Q, block]`` that are at least the query's ``least``, in rows that are filled up.

    Of those that are equal to it the ``k`` of the lowest rows are enough.
    """
    queries, block = cosine.shape
    chosen = np.flatnonzero(cosine >= least)
    if len(chosen) > _GROUP * k * queries:  # many are equal, as of a network that has collapsed
        chosen = np.flatnonzero((cosine > least) | _lowest(cosine == least, k))
    starts = np.searchsorted(chosen, np.arange(queries + 1) * block)
    query = np.repeat(np.arange(queries), np.diff(starts))
    bits = (cosine.reshape(-1)[chosen] + 0.0).view(np.int32)  # of the two zeros one
    falling = ~np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = np.full((queries, np.diff(starts).max()), _FARTHEST)
    keys[query, np.arange(len(chosen)) - starts[query]] = (
        (falling.astype(np.int64) << 32) + chosen - query * block + first
    )
    return keys


def _decoded(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarities and the rows."""
    rising = ~(keys >> 32).astype(np.int32)
    return np.where(rising < 0, rising ^ 0x7FFFFFFF, rising).view(np.float32), (keys & 0xFFFFFFFF).astype(np.int32)


@jax.jit
def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
