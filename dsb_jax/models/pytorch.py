"""PyTorch's weights as variables of the models here, and back: under the names of torchvision and timm."""

import functools
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.flax import load_file

from dsb_jax.models import assembly, zoo
from dsb_jax.models.classifier import BACKBONE, HEAD

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"
_AUXILIARY = ("aux1.", "aux2.")
# timm's name of a module, where torchvision has another.
_OTHER_NAMES = {
    "last_linear": "embedding",  # of SoftTriple's BN-Inception
    "classifier.0": "pre_logits.fc1",
    "classifier.3": "pre_logits.fc2",
    "classifier.6": "head.fc",
}
_SHOWN = 3


def from_torch(
    name: str, weights: Mapping[str, Any] | str | os.PathLike[str], *, num_classes: int | None = None, **options: Any
) -> dict[str, Any]:
    """Variables for the model ``name`` from the weights of PyTorch's.

    Args:
      name: One of :func:`dsb_jax.models.names`.
      weights: A state dict, of tensors or arrays by name, or the path of a ``.safetensors`` file.
      num_classes: Width of the logits; as the weights have it by default.
      **options: Of :func:`dsb_jax.models.create`, that the weights were trained with, such as ``stem``.

    Returns:
      ``params`` and, where there is batch normalisation, ``batch_stats``, of ``models.create(name, num_classes)``, as
      float32.

    Raises:
      ValueError: if a tensor is missing, is of another shape or is no part of the model, or the file cannot be read.

    Example:
      >>> from dsb_jax import models
      >>> model = models.create("resnet8", 10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
      >>> weights = to_torch("resnet8", variables)
      >>> weights["layer1.0.conv1.weight"].shape, weights["linear.weight"].shape
      ((16, 16, 3, 3), (10, 64))
      >>> again = from_torch("resnet8", weights)
      >>> all(jax.tree.leaves(jax.tree.map(jnp.array_equal, again, dict(variables))))
      True
    """
    tensors = read(weights) if isinstance(weights, str | os.PathLike) else weights
    require_reference(name)
    if parts := {"experts", "branches", "embedding", "projection"} & options.keys():
        raise ValueError(f"PyTorch's {name} has a backbone and a head alone, got {', '.join(sorted(parts))}")
    if num_classes is None:
        num_classes = _classes(name, tensors)
    model = assembly.create(name, num_classes, **options)
    found, missing, left = matched(name, _structure(model, name, tensors), tensors)
    wrong = [*missing.values(), *no_part(left, missing)]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(f"these are no weights of a {name} ({'; '.join(wrong[:_SHOWN])}{more})")
    return flax.traverse_util.unflatten_dict(found)


def to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of PyTorch's model ``name``, for torchvision's (``resnet8`` to ``resnet110``: for Cao et al.'s).

    Args:
      name: One of :func:`dsb_jax.models.names`.
      variables: ``params`` and ``batch_stats`` of a model without experts, branches, embedding and projection. A last
        layer without bias is as in Cao et al.'s code, ``[dim, classes]``, others are ``[classes, dim]``.

    Returns:
      Arrays by PyTorch's names, with the counters of batch normalisation at 0.

    Raises:
      ValueError: on an unknown name, or one that PyTorch has no model for, or variables of such parts.
    """
    require_reference(name)
    state, normed = {}, "bias" not in variables["params"][HEAD]
    for path, leaf in flax.traverse_util.flatten_dict(dict(variables)).items():
        plain = path[-1] in ("kernel", "bias") and leaf.ndim < 3
        if path[1] != BACKBONE and not (path[1] == HEAD and plain):
            raise ValueError(f"PyTorch's {name} has no {'/'.join(path[1:])}: it has a backbone and a plain last layer")
        key, array = torch_name(name, path), np.asarray(leaf)
        if path[-1] == "kernel" and not (path[1] == HEAD and normed):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[key] = np.ascontiguousarray(array)  # files of safetensors need it so
        if path[-1] == "mean":
            state[key.removesuffix("running_mean") + _COUNTER] = np.zeros((), np.int64)
    return state


def torch_name(name: str, path: tuple[str, ...]) -> str:
    """PyTorch's name of a variable of the model ``name``.

    Example:
      >>> torch_name("resnet18", ("params", "backbone", "layer1_0", "conv1", "kernel"))
      'layer1.0.conv1.weight'
    """
    backbone = zoo.entry(name).backbone
    _, part, *modules, leaf = path
    module = backbone.torch_head if part == HEAD else backbone.torch_name(tuple(modules))
    return ".".join(filter(None, (module, _LEAVES.get(leaf, leaf))))


def torchvision_name(key: str) -> str:
    """torchvision's name of a tensor that timm or others name otherwise.

    Example:
      >>> torchvision_name("head.fc.weight"), torchvision_name("layer1.0.conv1.weight")
      ('classifier.6.weight', 'layer1.0.conv1.weight')
    """
    module, _, leaf = key.rpartition(".")
    names = {other: name for name, other in _OTHER_NAMES.items()}
    return f"{names[module]}.{leaf}" if module in names else key


def read(path: str | os.PathLike[str]) -> dict[str, jax.Array]:
    """The tensors of a ``.safetensors`` file; raises ValueError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{os.fspath(path)!r} is no file of safetensors that can be read: {error}") from error


def matched(
    name: str, wanted: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[dict[tuple[str, ...], jax.Array], dict[tuple[str, ...], str], list[str]]:
    """What of a model's variables there is among PyTorch's tensors.

    Args:
      name: of the model.
      wanted: the shapes of its variables, as a tree.
      tensors: by PyTorch's names, or timm's.

    Returns:
      Variables by path; by path, in words, what is missing or of another shape; and the names of tensors that are left
      over, but for GoogLeNet's auxiliary classifiers and counters of batches.
    """
    found, missing, used = {}, {}, set()
    for path, leaf in flax.traverse_util.flatten_dict(dict(wanted)).items():
        key = _present(torch_name(name, path), tensors)
        normed = path[1] == HEAD and f"{key.rpartition('.')[0]}.bias" not in tensors
        value = _as_ours(_array(tensors[key]), path, leaf.shape, normed) if key in tensors else None
        if value is None:
            there = list(np.shape(tensors[key])) if key in tensors else "none"
            missing[path] = f"{key}: {there}, wanted for {list(leaf.shape)}"
        else:
            found[path] = jnp.asarray(value, leaf.dtype)
            used.add(key)
    left = [key for key in tensors if key not in used and not key.startswith(_AUXILIARY) and not key.endswith(_COUNTER)]
    return found, missing, left


def no_part(left: Iterable[str], missing: Mapping[Any, str]) -> list[str]:
    """In words, which of the tensors that `matched` left over a model has no place for, not even one of other shape."""
    named = {text.partition(":")[0] for text in missing.values()}
    return [f"{key}: no part of the model" for key in left if key not in named]


def _structure(model, name, tensors):
    """Of images as the weights are for: of as many channels as the first convolution has, and ViT's positions."""
    height, width, channels = zoo.entry(name).image

    def of(*image):
        images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
        return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

    if "pos_embed" in tensors:
        stem = model.backbone.stem
        height = width = model.backbone.least_sides[stem] * math.isqrt(np.shape(tensors["pos_embed"])[1] - 1)
    if model.backbone.in_channels is not None:
        return of(height, width, model.backbone.in_channels)
    kernels = flax.traverse_util.flatten_dict(of(height, width, channels)["params"]).items()
    first = next(path for path, leaf in kernels if len(leaf.shape) == 4 and leaf.shape[2] == channels)
    key = torch_name(name, ("params", *first))
    return of(height, width, np.shape(tensors[key])[1] if key in tensors else channels)


def require_reference(name: str) -> None:
    """Raises ValueError if PyTorch has no model ``name``, or there is none."""
    if zoo.entry(name).backbone.torch_head is None:
        raise ValueError(f"there is no {name} of PyTorch's that its weights could be those of")


def _classes(name, tensors):
    key = _present(f"{zoo.entry(name).backbone.torch_head}.weight", tensors)
    if key not in tensors:
        raise ValueError(f"these are no weights of a {name}: there is no {key} among {len(tensors)} tensors")
    return np.shape(tensors[key])[0 if f"{key.rpartition('.')[0]}.bias" in tensors else -1]


def _present(key, tensors):
    """A name, or timm's where there is that one."""
    module, _, leaf = key.rpartition(".")
    other = f"{_OTHER_NAMES.get(module)}.{leaf}"
    return other if key not in tensors and other in tensors else key


def _array(tensor):
    """Of PyTorch, what may be on another device, in a graph, or of a type that NumPy has not."""
    return tensor.detach().cpu().float().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)


def _as_ours(array, path, shape, normed):
    """None if it does not fit. A last layer that is ``normed``, without bias, is [in, out] in PyTorch too."""
    if path[-1] == "pos_embed" and array.shape[0::2] == tuple(shape)[0::2]:
        return _positions(array, shape[1])
    if path[-1] != "kernel":
        return array if array.shape == tuple(shape) else None
    if len(shape) == 2:
        array = array.reshape(len(array), -1)  # timm has some of these as convolutions
        array = array if normed else array.T
    elif array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        if shape[2] == 1 and array.shape[2] == 3:  # grey is as much of red, green and blue
            array = array.sum(axis=2, keepdims=True)
    return array if array.shape == tuple(shape) else None


def _positions(array, tokens):
    """Those of a square of patches, for a square of another size; the first is the class token's."""
    sides = [math.isqrt(number - 1) for number in (array.shape[1], tokens)]
    if [1 + side**2 for side in sides] != [array.shape[1], tokens]:
        return None
    if sides[0] == sides[1]:
        return array
    grid = array[:, 1:].reshape(1, sides[0], sides[0], -1)
    grid = jax.image.resize(grid, (1, sides[1], sides[1], grid.shape[-1]), "cubic")
    return np.concatenate([array[:, :1], np.asarray(grid).reshape(1, tokens - 1, -1)], axis=1)
