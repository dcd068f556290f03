"""Nearest neighbours by cosine similarity, on the device, in blocks of queries and of the gallery.

Memory grows with the gallery and never with its square: beside the embeddings, each of a few blocks at work (one per
core on a CPU, two elsewhere) takes a small multiple of 8 MiB on a CPU and of 256 MiB on another device.
"""

import functools
import os
from collections.abc import Callable
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
_HELD_ON_CPU, _HELD = 2**21, 2**26


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
    array = validation.features(host, name="embeddings").astype(jnp.float32)
    zero = ~np.asarray(array).any(axis=1)
    if zero.any():
        raise ValueError(f"embeddings must have a direction, got a zero vector in row {zero.argmax()}")
    return _unit(array)


def by_blocks(
    embeddings: jax.Array, queries: np.ndarray, k: int, gallery_block: int, summary: Callable[..., Any]
) -> list[np.ndarray]:
    """What ``summary`` makes of the k nearest others of the queries, block by block and put together on the host.

    Args:
      embeddings: ``[samples, dim]``, from :func:`directions`.
      queries: rows that search ``[Q]``.
      k: how many are found, below ``samples``.
      gallery_block: how many of the gallery are compared with at once.
      summary: ``((similarities, rows) [block, k] of neighbours, rows [block] of queries) -> arrays [block, ...]``.

    Returns:
      Each of the arrays, ``[Q, ...]``.

    Example:
      >>> points = directions(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]], np.float32))
      >>> by_blocks(points, np.array([0, 2]), 1, GALLERY_BLOCK, lambda found, of: (found[1], of))
      [array([[1],
             [1]], dtype=int32), array([0, 2], dtype=int32)]
    """
    device = embeddings.device
    on_cpu = device.platform == "cpu"
    samples, dim = embeddings.shape
    block = -(-min(gallery_block, samples) // _GROUP) * _GROUP
    gallery = jnp.pad(embeddings, ((0, -samples % block), (0, 0))).reshape(-1, block, dim)
    size = min(max((_HELD_ON_CPU if on_cpu else _HELD) // (block + 4 * k), 1), len(queries))
    # The last block is filled up with its last query, whose further results are cut off.
    padded = np.pad(queries, (0, -len(queries) % size), mode="edge").astype(np.int32).reshape(-1, size)

    def run(rows):
        rows = jax.device_put(rows, device)
        return jax.device_get(summary(_nearest(gallery, embeddings[rows], rows, k=k, samples=samples), rows))

    # The first compiles for all. XLA selects with one core on a CPU; elsewhere one block is fetched while one runs.
    results = [run(padded[0])]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if on_cpu else 2) as workers:
        results += workers.map(run, padded[1:])
    return [np.concatenate(parts)[: len(queries)] for parts in zip(*results, strict=True)]


@functools.partial(jax.jit, static_argnames=("k", "samples"))
def _nearest(
    gallery: jax.Array, query: jax.Array, own: jax.Array, *, k: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Similarities and rows of the k nearest, of queries ``[Q, dim]`` in a gallery ``[blocks, block, dim]``."""
    block = gallery.shape[1]

    def of_block(number, rows):
        similarity = jnp.matmul(query, rows.T, precision=jax.lax.Precision.HIGHEST)
        index = (number * block + jnp.arange(block, dtype=jnp.int32))[None]
        similarity = jnp.where((index == own[:, None]) | (index >= samples), -jnp.inf, similarity)
        values, at = _top_k(similarity, min(k, block))
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


@jax.jit
def _unit(vectors: jax.Array) -> jax.Array:
    # The largest entry is brought near 1 first: no square over- or underflows. By a power of two, which does not round.
    vectors = jnp.ldexp(vectors, -jnp.frexp(jnp.abs(vectors).max(axis=1, keepdims=True))[1])
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
