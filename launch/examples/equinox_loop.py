"""DSB in Equinox, whose model is a pytree: so is the pool beside it. Digits with a long tail, on all devices there are.

pip install equinox && python launch/examples/equinox_loop.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dsb_jax
from dsb_jax import data
from dsb_jax.data import feed, long_tail

BATCH, STEPS = 64, 300


class Network(eqx.Module):
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __call__(self, image):
        features = jax.nn.relu(self.hidden(image.reshape(-1) / 16.0))
        return features, self.last(features)


def main() -> float:
    """The accuracy on test images."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    train = data.load("digits", "train")
    rows = long_tail.subset(train.labels, long_tail.exponential_counts(100, 10, imbalance=20), seed=0)
    examples = feed.Examples(train, rows, sharding=NamedSharding(mesh, PartitionSpec("data")))
    balancer = dsb_jax.balancers.semantic_scale(10, capacity=384, batch_size=BATCH, mesh=mesh)
    optimizer, keys = optax.adam(1e-3), jax.random.split(jax.random.key(0))

    @eqx.filter_jit
    def step(network, moments, pool, images, labels):
        def loss(network):
            features, logits = jax.vmap(network)(images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            weights, new = balancer.update(pool, features, labels)
            return dsb_jax.weighted_mean(losses, labels, weights), new

        gradient, new = eqx.filter_grad(loss, has_aux=True)(network)
        updates, moments = optimizer.update(gradient, moments)
        return eqx.apply_updates(network, updates), moments, new

    network = Network(eqx.nn.Linear(64, 64, key=keys[0]), eqx.nn.Linear(64, 10, key=keys[1]))
    moments, pool = optimizer.init(eqx.filter(network, eqx.is_array)), balancer.init()
    for _, batch in zip(range(STEPS), examples.shuffled(BATCH, seed=0), strict=False):
        network, moments, pool = step(network, moments, pool, batch["image"], batch["label"])
    test = next(feed.Examples(data.load("digits", "test")).in_order(500))
    predicted = jnp.argmax(jax.vmap(network)(test["image"])[1], axis=1)
    return float(jnp.mean(predicted == test["label"], where=test["mask"]))


if __name__ == "__main__":
    print(f"test accuracy {main():.3f}")
