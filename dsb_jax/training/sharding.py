"""How a run lies on its devices: a mesh of them, and which axis of which array is divided over which of its axes.

The axis ``data`` divides a batch, the rows of a feature pool and, by class, its second moments; with ``fsdp_elements``
also large parameters, which then are gathered where they are used (Rajbhandari et al., ZeRO, 2020). The axis ``model``
divides the classes of the classifier. All else is on every device.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import validation

HEAD = "head"  # what the parameters of a classifier's last layer lie under; their last axis is that of the classes


def make_mesh(devices: int | None = None, *, model_devices: int = 1) -> Mesh | None:
    """The first few devices, by default all; None for one device, which needs no mesh.

    Those of a process lie side by side along ``data``, in the order of the processes, so that each reads a stretch of
    every batch; and ``model`` never reaches from one process to another.

    Args:
      devices: how many; in a run of several processes all.
      model_devices: along the axis ``model``; there is none for 1.

    Raises:
      ValueError: numbers that do not fit the devices that are here.

    Example:
      >>> make_mesh(1) is None
      True
    """
    here, of_process = jax.device_count(), jax.local_device_count()
    devices = here if devices is None else validation.positive_int("devices", devices)
    validation.positive_int("model_devices", model_devices)
    if devices > here:
        raise ValueError(f"devices must be at most the {here} that are here, got {devices}")
    if jax.process_count() > 1 and devices != here:
        raise ValueError(f"devices must be all {here} in a run of {jax.process_count()} processes, got {devices}")
    of_process = min(devices, of_process)
    if of_process % model_devices:
        raise ValueError(f"model_devices must divide the {of_process} devices of a process, got {model_devices}")
    if devices == 1:
        return None
    in_order = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[:devices]
    shape = {"data": devices // model_devices} | ({"model": model_devices} if model_devices > 1 else {})
    return Mesh(np.array(in_order).reshape(*shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def of_batch(mesh: Mesh | None) -> NamedSharding | None:
    """Divided along the first axis."""
    return None if mesh is None else NamedSharding(mesh, P("data"))


def everywhere(mesh: Mesh | None) -> NamedSharding | None:
    """Whole on every device."""
    return None if mesh is None else NamedSharding(mesh, P())


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where parameters are, and all that has their shapes: moments of an optimizer, averages.

    Attributes:
      mesh: as :func:`make_mesh` makes it.
      fsdp_elements: arrays of at least so many elements are divided over ``data``; None divides none.
    """

    mesh: Mesh
    fsdp_elements: int | None = None

    def shardings(self, tree: Any) -> Any:
        """One for every array, or shape, of a tree of parameters.

        Example:
          >>> placement = Placement(jax.make_mesh((1,), ("data",)), fsdp_elements=1000)
          >>> shapes = {"bias": np.zeros(64), "kernel": np.zeros((3, 3, 64, 128))}
          >>> for name, sharding in placement.shardings(shapes).items():
          ...     print(name, tuple(sharding.spec))
          bias (None,)
          kernel (None, None, None, 'data')
        """
        return jax.tree.map_with_path(lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf.shape)), tree)

    def constrain(self, tree: Any) -> Any:
        """The same arrays, inside of ``jit``, lying as :meth:`shardings` says."""
        return jax.tree.map(lax.with_sharding_constraint, tree, self.shardings(tree))

    def gather(self, tree: Any) -> Any:
        """The same arrays, inside of ``jit``, whole along ``data``, as a model computes with them.

        Said outright: left to itself the partitioner divides what is computed as the parameters are, at a loss.
        """
        return Placement(self.mesh).constrain(tree)

    def _spec(self, path, shape):
        axes: list[str | None] = [None] * len(shape)
        of_classifier = HEAD in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if of_classifier and shape and "model" in self.mesh.shape and shape[-1] % self.mesh.shape["model"] == 0:
            axes[-1] = "model"
        if self.fsdp_elements is not None and math.prod(shape) >= self.fsdp_elements:
            # By class where that goes, else along the longest axis.
            order = sorted(range(len(shape)), key=lambda axis: (of_classifier and axis == len(shape) - 1, shape[axis]))
            free = [axis for axis in order if axes[axis] is None and shape[axis] % self.mesh.shape["data"] == 0]
            if free:
                axes[free[-1]] = "data"
        return P(*axes)
