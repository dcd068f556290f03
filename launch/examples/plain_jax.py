"""DSB in a loop of plain JAX, on all devices there are: digits with a long tail.

python launch/examples/plain_jax.py
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dsb_jax
from dsb_jax import data
from dsb_jax.data import feed, long_tail

BATCH, STEPS = 64, 300


def network(params, images):
    """Features and logits."""
    pixels = images.reshape(len(images), -1) / 16.0
    features = jax.nn.relu(pixels @ params["hidden"])
    return features, features @ params["last"]


def main() -> float:
    """The accuracy on test images."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    train = data.load("digits", "train")
    rows = long_tail.subset(train.labels, long_tail.exponential_counts(100, 10, imbalance=20), seed=0)
    examples = feed.Examples(train, rows, sharding=NamedSharding(mesh, PartitionSpec("data")))
    optimizer, normal = optax.adam(1e-3), jax.nn.initializers.he_normal()
    balancer = dsb_jax.balancers.semantic_scale(10, capacity=384, batch_size=BATCH, mesh=mesh)

    @jax.jit
    def step(params, moments, pool, images, labels):
        def loss(params, pool):
            features, logits = network(params, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            weights, pool = balancer.update(pool, features, labels)
            return dsb_jax.weighted_mean(losses, labels, weights), pool

        gradient, pool = jax.grad(loss, has_aux=True)(params, pool)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, pool

    keys = jax.random.split(jax.random.key(0))
    params = {"hidden": normal(keys[0], (64, 64)), "last": normal(keys[1], (64, 10))}
    moments, pool = optimizer.init(params), balancer.init()
    for _, batch in zip(range(STEPS), examples.shuffled(BATCH, seed=0), strict=False):
        params, moments, pool = step(params, moments, pool, batch["image"], batch["label"])
    test = next(feed.Examples(data.load("digits", "test")).in_order(500))
    predicted = jnp.argmax(network(params, test["image"])[1], axis=1)
    return float(jnp.mean(predicted == test["label"], where=test["mask"]))


if __name__ == "__main__":
    print(f"test accuracy {main():.3f}")
