"""What the core is checked against: formulas in float64 NumPy, differences, and the best recompute of a whole pool."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def volume(features, epsilon=1.0):
    """Eq. 3 in float64."""
    features = np.asarray(features, np.float64)
    samples, dim = features.shape
    if samples < 2:
        return 0.0
    centred = features - features.mean(axis=0)
    gram = centred @ centred.T if samples < dim else centred.T @ centred
    return np.linalg.slogdet(np.eye(len(gram)) + dim / samples / epsilon**2 * gram)[1] / 2 / np.log(2)


def class_volumes(features, labels, num_classes, epsilon=1.0):
    return np.array([volume(features[labels == c], epsilon) for c in range(num_classes)])


def class_centers(features, labels, num_classes):
    features = np.asarray(features, np.float64)
    zero = np.zeros(features.shape[1])
    return np.stack([features[labels == c].mean(0) if (labels == c).any() else zero for c in range(num_classes)])


def interclass_weights(centers, alpha, present=None):
    centers = np.asarray(centers, np.float64)
    present = np.ones(len(centers), bool) if present is None else present
    distances = np.zeros(len(centers))
    for i in np.flatnonzero(present):
        others = [j for j in np.flatnonzero(present) if j != i]
        if others:
            distances[i] = np.mean([np.linalg.norm(centers[i] - centers[j]) for j in others])
    ratio = distances / distances.max() if distances.max() > 0 else np.ones(len(centers))
    return np.log2(alpha + ratio)


def semantic_scales(volumes, centers, alpha, present=None):
    volumes = np.asarray(volumes, np.float64)
    volumes = volumes if present is None else np.where(present, volumes, 0.0)
    largest = volumes.max()
    return volumes / (largest if largest > 0 else 1.0) * interclass_weights(centers, alpha, present)


def slope(function, at):
    """The gradient of a scalar by central differences."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        gradient[index] = (function(at + step) - function(at - step)) / 2e-5
    return gradient


@partial(jax.jit, static_argnames="num_classes")
def recompute_volumes(rows, labels, num_classes):
    """Every class's volume from all rows of a pool: sorted by class, in blocks, float32 Cholesky."""
    block, dim = 32, rows.shape[-1]
    rows, labels = rows.reshape(-1, dim), labels.reshape(-1)
    order = jnp.argsort(labels)
    count = jnp.bincount(labels, length=num_classes)
    start = jnp.cumsum(count) - count
    blocks = -(-count // block)
    first = jnp.cumsum(blocks) - blocks
    most = len(labels) // block + num_classes
    owner = jnp.repeat(jnp.arange(num_classes), blocks, total_repeat_length=most)
    offset = (jnp.arange(most) - first[owner])[:, None] * block + jnp.arange(block)[None, :]
    valid = offset < count[owner][:, None]
    x = rows[order[jnp.where(valid, start[owner][:, None] + offset, 0)]]
    center = jax.ops.segment_sum(jnp.sum(jnp.where(valid[..., None], x, 0), axis=1), owner, num_classes)
    center /= jnp.maximum(count, 1)[:, None]
    x = jnp.where(valid[..., None], x - center[owner][:, None, :], 0)
    scatter = jnp.einsum("bri,brj->bij", x, x, precision="highest")
    scatter = jax.ops.segment_sum(scatter, owner, num_classes, indices_are_sorted=True)
    matrix = jnp.eye(dim)[None] + dim / jnp.maximum(count, 1)[:, None, None] * scatter
    factor = jnp.linalg.cholesky(matrix)
    return jnp.sum(jnp.log2(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
