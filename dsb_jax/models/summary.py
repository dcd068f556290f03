"""How large a model is, and how much it computes."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dsb_jax.models import assembly, zoo


class Size(NamedTuple):
    """Of a model.

    Attributes:
      parameters: how many it has.
      operations: multiplications and additions of one image that passes forward, as XLA counts them; many papers count
        pairs of them.
      features: width of what the last layer sees.
    """

    parameters: int
    operations: int
    features: int


def size(name: str, num_classes: int = 1000, *, image: tuple[int, int, int] | None = None, **options: Any) -> Size:
    """Of the model ``name``; nothing is compiled or computed.

    Args:
      name: One of :func:`dsb_jax.models.names`.
      num_classes: Width of the logits.
      image: Height, width and channels; by default those it was published for.
      **options: Of :func:`dsb_jax.models.create`.

    Raises:
      ValueError: on an unknown name, or a value that makes no sense.

    Example:
      >>> size("resnet32", 10)[::2]
      (464154, 64)
    """
    model = assembly.create(name, num_classes, **options)
    images = jax.ShapeDtypeStruct((1, *(image or zoo.entry(name).image)), jnp.float32)
    forward = functools.partial(model.apply, train=False)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    features = jax.eval_shape(forward, variables, images).features
    costs: Any = jax.jit(forward).lower(variables, images).cost_analysis()
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Size(parameters, int(costs["flops"]), features.shape[1])
