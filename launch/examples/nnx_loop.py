"""DSB in Flax NNX, whose model and optimizer are objects: the pool is a pytree beside them. Digits with a long tail.

python launch/examples/nnx_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dsb_jax
from dsb_jax import data
from dsb_jax.data import feed, long_tail

BATCH, STEPS = 64, 300


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.last = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        features = nnx.relu(self.hidden(images.reshape(len(images), -1) / 16.0))
        return features, self.last(features)


def main() -> float:
    """The accuracy on test images."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    train = data.load("digits", "train")
    rows = long_tail.subset(train.labels, long_tail.exponential_counts(100, 10, imbalance=20), seed=0)
    examples = feed.Examples(train, rows, sharding=NamedSharding(mesh, PartitionSpec("data")))
    balancer = dsb_jax.balancers.semantic_scale(10, capacity=384, batch_size=BATCH, mesh=mesh)

    @nnx.jit
    def step(network, optimizer, pool, images, labels):
        def loss(network):
            features, logits = network(images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            weights, new = balancer.update(pool, features, labels)
            return dsb_jax.weighted_mean(losses, labels, weights), new

        gradient, new = nnx.grad(loss, has_aux=True)(network)
        optimizer.update(network, gradient)
        return new

    network, pool = Network(nnx.Rngs(0)), balancer.init()
    optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
    for _, batch in zip(range(STEPS), examples.shuffled(BATCH, seed=0), strict=False):
        pool = step(network, optimizer, pool, batch["image"], batch["label"])
    test = next(feed.Examples(data.load("digits", "test")).in_order(500))
    predicted = jnp.argmax(network(test["image"])[1], axis=1)
    return float(jnp.mean(predicted == test["label"], where=test["mask"]))


if __name__ == "__main__":
    print(f"test accuracy {main():.3f}")
