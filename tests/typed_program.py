"""A user's program, which mypy checks with ``--strict`` and which also runs: what annotations promise is what comes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import dsb_jax
from dsb_jax import balancers, losses, models, toolkit
from dsb_jax.models import Outputs

CLASSES = 3


def balanced_loss(
    loss: Callable[[jax.Array, jax.Array], jax.Array], logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> jax.Array:
    """What the README's loop has."""
    return dsb_jax.weighted_mean(loss(logits, labels), labels, weights)


def main() -> None:
    """Volumes of NumPy arrays, a step with a balancer, a model, and the toolkit."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % CLASSES

    volumes: jax.Array = dsb_jax.class_volumes(features, labels, CLASSES)
    centers: jax.Array = dsb_jax.class_centers(features, labels, CLASSES)
    scales: jax.Array = dsb_jax.semantic_scales(volumes, centers, alpha=1.0)
    number: jax.Array = dsb_jax.effective_number(np.bincount(labels), beta=0.99)
    assert volumes.shape == scales.shape == number.shape == (CLASSES,)

    balancer: balancers.Balancer = balancers.semantic_scale(num_classes=CLASSES, capacity=60, dim=4)
    waiting: balancers.Balancer = dsb_jax.start_at(5, balancer)
    state = waiting.init()
    weights, state = waiting.update(state, features, labels)
    assert weights.tolist() == [1.0] * CLASSES
    assert set(waiting.summary(state)) >= {"weights", "volumes"}

    model = models.create("lenet", CLASSES)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    outputs = model.apply(variables, jnp.zeros((60, 8, 8, 1)), train=False)
    assert isinstance(outputs, Outputs)
    focal = losses.create("focal", gamma=1.0)
    loss: jax.Array = balanced_loss(focal, outputs.logits, jnp.asarray(labels), weights)
    assert float(losses.cross_entropy(outputs.logits, labels).mean()) > float(loss)
    assert models.names("resnet*")

    points: toolkit.Points = toolkit.points.of(features, labels, ["cat", "cow", "dog"])
    found: toolkit.Scales = toolkit.scales(points)
    volume: np.ndarray = found.volume
    text: str = found.reading()
    chosen: np.ndarray = dsb_jax.toolkit.select(points, keep=10).indices
    assert volume.shape == (CLASSES,)
    assert len(chosen) == 10 * CLASSES
    print(text)


if __name__ == "__main__":
    main()
