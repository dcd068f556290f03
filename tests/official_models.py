"""PyTorch's names, layouts and weights for a model of ours, and its training against the official one's numbers."""

import functools
import zlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsb_jax import losses
from dsb_jax.models import heads
from dsb_jax.models.resnet_cifar import ResNetCifar


def structure(model, shape=(1, 8, 8, 3)):
    """Shapes and dtypes of the model's variables."""
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros(shape))


def flat(tree):
    return flax.traverse_util.flatten_dict(tree).items()


def run(model, variables, images, **options):
    """Applies the model under jit; run op by op, compilation would take most of these tests' time."""
    return jax.jit(functools.partial(model.apply, **options))(variables, images)


def assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def torch_name(path, model):
    """``(params, backbone, layer1_0, conv1, kernel)`` is ``layer1.0.conv1.weight``."""
    *modules, leaf = path[1:]
    head = "linear" if isinstance(model.backbone, ResNetCifar) else "fc"
    modules = [head] if modules == ["head"] else [name.replace("_", ".") for name in modules[1:]]
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
    return ".".join([*modules, leaf])


def torch_axes(path, model):
    """Convolutions are [out, in, height, width] there, linear layers [out, in], cosine layers [in, out]."""
    if path[-1] != "kernel":
        return (0,)
    if path[1] == "backbone":
        return (3, 2, 0, 1)
    return (0, 1) if isinstance(model.head, heads.CosineHead) else (1, 0)


def torch_shapes(model, shape):
    """PyTorch's name and shape of every variable."""
    return {
        torch_name(path, model): tuple(leaf.shape[axis] for axis in torch_axes(path, model))
        for path, leaf in flat(structure(model, shape))
    }


def torch_variables(model, shape, gain=1.0):
    """Variables by the golden files' rule: each tensor from a seed made of its PyTorch name, in PyTorch's layout."""
    shapes = torch_shapes(model, shape)

    def draw(path):
        name = torch_name(path, model)
        rng, shape = np.random.default_rng(zlib.crc32(name.encode())), shapes[name]
        match path[-1]:
            case "mean" | "bias":
                return 0.1 * rng.normal(size=shape)
            case "var":
                return 1 + 0.1 * np.abs(rng.normal(size=shape))
            case "scale":
                return 1 + 0.1 * rng.normal(size=shape)
        kernel = rng.normal(size=shape) * np.sqrt(gain / np.prod(shape[1:]))
        return kernel.transpose(np.argsort(torch_axes(path, model)))

    drawn = {path: jnp.asarray(draw(path), jnp.float32) for path, _ in flat(structure(model, shape))}
    return flax.traverse_util.unflatten_dict(drawn)


def assert_trains_alike(model, file, sides):
    """Five steps of SGD with momentum and weight decay in float64 are the official ones.

    Compared are losses, the first step's logits, gradients and running statistics, and in the end all of the state's
    norms and the logits in evaluation mode.

    Args:
      model: ours.
      file: the golden numbers.
      sides: of every stage's square feature maps, by the first part of its modules' names.
    """
    with jax.enable_x64(True):
        images, labels = file["input"].transpose(0, 2, 3, 1).astype(np.float64), file["labels"]
        variables = torch_variables(model, images.shape)
        params, before = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), (variables["params"], variables["batch_stats"])
        )
        step, forward, optimizer = _float64_steps(model, file, images, labels)
        opt_state, after, history = optimizer.init(params), before, []
        for done in range(1, 6):
            params, after, opt_state, value, logits, gradient = step(params, after, opt_state)
            history.append(value)
            if done == 1:
                assert_close(logits, file["logits_step0"], 1e-10)
                _assert_gradients(gradient, file, model)
                _assert_first_statistics(_torch_statistics(before, after, 1, sides, len(images)), file, model)
        np.testing.assert_allclose(history, file["losses"], rtol=1e-10)
        statistics = _torch_statistics(before, after, 5, sides, len(images))
        final = {"params": params, "batch_stats": statistics}
        norms = {torch_name(path, model): np.linalg.norm(leaf) for path, leaf in flat(final)}
        expected = dict(zip(file["state_norm_names"], file["state_norms_after"], strict=True))
        assert norms.keys() == {name for name in expected if "num_batches" not in name}
        np.testing.assert_allclose(list(norms.values()), [expected[name] for name in norms], rtol=1e-10)
        assert_close(forward(params, statistics), file["logits_eval_after"], 1e-9)


def _float64_steps(model, file, images, labels):
    backbone = model.backbone.clone(dtype=jnp.float64)  # not below the classifier, whose features are float32
    optimizer = optax.chain(
        optax.add_decayed_weights(float(file["weight_decay"])),
        optax.sgd(float(file["lr"]), momentum=float(file["momentum"])),
    )

    def apply(params, batch_stats, **options):
        variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
        features, updated = backbone.apply(variables, images, mutable="batch_stats", **options)
        return model.head.apply({"params": params["head"]}, features), {"backbone": updated["batch_stats"]}

    def loss(params, batch_stats):
        logits, batch_stats = apply(params, batch_stats, train=True)
        return jnp.mean(losses.cross_entropy(logits, labels)), (logits, batch_stats)

    @jax.jit
    def step(params, batch_stats, opt_state):
        (value, (logits, batch_stats)), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch_stats)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, value, logits, gradient

    forward = jax.jit(lambda params, batch_stats: apply(params, batch_stats, train=False)[0])
    return step, forward, optimizer


def _assert_gradients(gradient, file, model):
    compared = 0
    norms = dict(zip(file["grad_norm_names"], file["grad_norms"], strict=True))
    for path, leaf in flat({"params": gradient}):
        name = torch_name(path, model)
        np.testing.assert_allclose(np.linalg.norm(leaf), norms[name], rtol=1e-8)
        if f"grad__{name}" in file:
            assert_close(leaf.transpose(torch_axes(path, model)), file[f"grad__{name}"], 1e-10)
            compared += 1
    assert compared == sum(name.startswith("grad__") for name in file)


def _torch_statistics(before, after, steps, sides, batch_size):
    """PyTorch adds the unbiased variance of the n = batch·height·width values, Flax the biased one."""

    def unbiased(path, old, new):
        if path[-1].key == "mean":
            return new
        n = batch_size * sides[path[1].key.partition("_")[0]] ** 2
        return 0.9**steps * old + (new - 0.9**steps * old) * n / (n - 1)

    return jax.tree.map_with_path(unbiased, before, after)


def _assert_first_statistics(statistics, file, model):
    actual = {torch_name(path, model): leaf for path, leaf in flat({"batch_stats": statistics})}
    expected = {name.partition("__")[2]: value for name, value in file.items() if name.startswith("after_forward0__")}
    assert len(expected) == 4
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-10)
