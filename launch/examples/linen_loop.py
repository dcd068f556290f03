"""DSB in Flax linen, whose TrainState carries the pool: ``python launch/examples/linen_loop.py``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dsb_jax
from dsb_jax import data
from dsb_jax.data import feed, long_tail

BATCH, STEPS = 64, 300


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        features = nn.relu(nn.Dense(64)(images.reshape(len(images), -1) / 16.0))
        return features, nn.Dense(10)(features)


class BalancedState(TrainState):
    pool: dsb_jax.balancers.SemanticScaleState


def main() -> float:
    """The accuracy on test images."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    train = data.load("digits", "train")
    rows = long_tail.subset(train.labels, long_tail.exponential_counts(100, 10, imbalance=20), seed=0)
    examples = feed.Examples(train, rows, sharding=NamedSharding(mesh, PartitionSpec("data")))
    balancer = dsb_jax.balancers.semantic_scale(10, capacity=384, batch_size=BATCH, mesh=mesh)

    @jax.jit
    def step(state, images, labels):
        def loss(params):
            features, logits = state.apply_fn(params, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            weights, pool = balancer.update(state.pool, features, labels)
            return dsb_jax.weighted_mean(losses, labels, weights), pool

        gradient, pool = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradient, pool=pool)

    network, optimizer = Network(), optax.adam(1e-3)
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    state = BalancedState.create(apply_fn=network.apply, params=params, tx=optimizer, pool=balancer.init())
    for _, batch in zip(range(STEPS), examples.shuffled(BATCH, seed=0), strict=False):
        state = step(state, batch["image"], batch["label"])
    test = next(feed.Examples(data.load("digits", "test")).in_order(500))
    predicted = jnp.argmax(network.apply(state.params, test["image"])[1], axis=1)
    return float(jnp.mean(predicted == test["label"], where=test["mask"]))


if __name__ == "__main__":
    print(f"test accuracy {main():.3f}")
