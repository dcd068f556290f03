"""A run small enough for tests, and what it is compared with by hand."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from dsb_jax import models, training
from dsb_jax.training import checkpoints
from dsb_jax.training.config import with_arguments


def cross_entropies(logits, labels):
    shifted = logits - jnp.max(logits, axis=1, keepdims=True)
    log_p = shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=1, keepdims=True))
    return -log_p[jnp.arange(len(labels)), labels]


def to_numpy(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep=".").items()


def strict_json(text):
    """Python reads NaN and Infinity, which no other reader of JSON does."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def slow_but(quick, names):
    """Parameters of a test that is slow for all names but some."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in names]


def digits(arguments="", **settings):
    """The digits_lt recipe with a small network."""
    config = training.base_config()
    config.update({"long_tail": "exponential", "imbalance": 20.0, "model": "lenet", "batch_size": 64, "epochs": 3})
    config.update({"mean": (0.305,), "std": (0.376,), "eval_batch_size": 200, "learning_rate": 0.05, "devices": 1})
    config.update(settings)
    return with_arguments(config, arguments)


def saved_arrays(workdir):
    """What the latest checkpoint of a run holds, but for its key."""
    saved = checkpoints.find(workdir / "checkpoints", setting="initial")
    record = json.loads((saved.folder / "checkpoint.json").read_text())["arrays"]
    shapes = {
        path: jax.ShapeDtypeStruct(tuple(of["shape"]), of["dtype"]) for path, of in record.items() if path != "key"
    }
    return {path: np.asarray(array) for path, array in checkpoints.read(saved, shapes).items()}


# ⌊134·20^(−i/9)⌋: 134 training images is what the rarest digit has.
COUNTS = np.array([int(134 / 20 ** (i / 9)) for i in range(10)])


EXAMPLES = int(COUNTS.sum())


STEPS = math.ceil(3 * EXAMPLES / 64)


def made_up_weights(name, path, *, num_classes=10, side=16):
    """Writes made-up weights of a model as PyTorch has them; returns the network and its variables."""
    network = models.create(name, num_classes)
    image = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), dict(shapes))
    save_file(models.to_torch(name, variables), path)
    return network, variables
