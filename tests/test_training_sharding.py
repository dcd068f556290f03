"""Where arrays lie, and what the devices tell each other in a step: read off the compiled program."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.training import optimizers
from dsb_jax.training.sharding import Placement, make_mesh
from dsb_jax.training.step import init_state, make_train_step

DIM = 64

# One collective in the text of a program: its result, one array or a tuple of them, and its kind.
COLLECTIVE = re.compile(
    r"= (\([^)]*\)|\S+) (all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(?:-start)?\("
)
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "bf16": 2}


def collectives(text):
    """Kind and bytes of each, counted."""
    found = []
    for result, kind in COLLECTIVE.findall(text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        sizes = [BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays]
        found.append((kind, sum(sizes)))
    return collections.Counter(found)


def compiled_step(balancer, mesh, *, batch_size, num_classes, fsdp_elements=None):
    """The text of a training step of a small network."""
    parts = (
        models.create("lenet", num_classes),
        objectives.Supervised(losses.create("cross_entropy")),
        balancer,
        optimizers.optimizer("sgd", optimizers.schedule("constant", 0.1, 4, steps_per_epoch=1), momentum=0.9),
    )
    placement = Placement(mesh, fsdp_elements)
    images = jnp.zeros((batch_size, 8, 8, 1))
    state = init_state(*parts, images, seed=0, placement=placement)
    sharded = NamedSharding(mesh, P("data"))
    batch = {
        "image": jax.device_put(np.zeros((batch_size, 8, 8, 1), np.uint8), sharded),
        "label": jax.device_put(np.zeros(batch_size, np.int32), sharded),
    }
    step = make_train_step(*parts, lambda images, rng: images.astype(jnp.float32), placement=placement)
    return step.lower(state, batch).compile().as_text()


def dsb(mesh, *, batch_size, num_classes, slots, interclass=True):
    return balancers.semantic_scale(
        num_classes, slots * batch_size, dim=DIM, interclass=interclass, batch_size=batch_size, mesh=mesh
    )


@pytest.mark.parametrize("model_devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_dsb_step_exchanges_two_batches_of_rows_and_the_volumes_beside_what_any_step_does(model_devices):
    mesh = make_mesh(8, model_devices=model_devices)
    sizes = {"batch_size": 16, "num_classes": 300}
    plain = collectives(compiled_step(balancers.uniform(300), mesh, **sizes))
    with_pool = collectives(compiled_step(dsb(mesh, slots=50, **sizes), mesh, **sizes))
    rows = 4 * 2 * 16 * (DIM + 2)  # entering and leaving, with a label and a mark
    volumes = 4 * 512  # of all classes, whose axis is a multiple of 256
    assert with_pool - plain == {("all-gather", rows): 1, ("all-gather", volumes): 1}
    assert not plain - with_pool


@pytest.mark.slow
@pytest.mark.parametrize("interclass", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_exchanged_depends_neither_on_the_pool_nor_on_second_moments(interclass):
    mesh = make_mesh(8)
    sizes = {"batch_size": 16, "num_classes": 300}
    texts = [compiled_step(dsb(mesh, slots=slots, interclass=interclass, **sizes), mesh, **sizes) for slots in (4, 400)]
    few, many = map(collectives, texts)
    assert few == many
    assert max(size for _, size in many) < 300 * DIM * DIM


def test_divided_parameters_are_gathered_and_their_gradients_not_kept_whole():
    mesh = make_mesh(8)
    sizes = {"batch_size": 16, "num_classes": 304}
    whole = collectives(compiled_step(balancers.uniform(304), mesh, **sizes))
    divided = collectives(compiled_step(balancers.uniform(304), mesh, **sizes, fsdp_elements=1000))
    assert not any(kind == "all-gather" for kind, _ in whole)
    gathered = {size for kind, size in divided if kind == "all-gather"}
    assert {4 * 128 * 304, 4 * 200 * 128} <= gathered  # the classifier and the hidden layer


# Where arrays lie.


def mesh_of(**axes):
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize(
    ("axes", "fsdp_elements", "path", "shape", "spec"),
    [
        ({"data": 4}, None, "backbone", (3, 3, 64, 128), (None,) * 4),
        ({"data": 4}, 10_000, "backbone", (3, 3, 64, 128), (None, None, None, "data")),
        ({"data": 4}, 10_000, "backbone", (3, 3, 256, 64), (None, None, "data", None)),
        ({"data": 4}, 10_000, "backbone", (9_999,), (None,)),
        ({"data": 8}, 100, "backbone", (7, 20, 50), (None, None, None)),  # nothing divides
        ({"data": 8}, 100, "backbone", (7, 16, 50), (None, "data", None)),
        ({"data": 4}, 100, "head", (2048, 1000), (None, "data")),  # classes before the longest axis
        ({"data": 4}, 100, "head", (2048, 8142), ("data", None)),  # 4 does not divide 8,142
        ({"data": 4, "model": 2}, None, "head", (2048, 8142), (None, "model")),
        ({"data": 4, "model": 2}, 100, "head", (2048, 8142), ("data", "model")),
        ({"data": 4, "model": 2}, None, "head", (8142,), ("model",)),
        ({"data": 4, "model": 2}, None, "head", (2048, 999), (None, None)),
        ({"data": 4, "model": 2}, None, "backbone", (2048, 1000), (None, None)),
        ({"data": 4, "model": 2}, None, "head", (), ()),
    ],
)
def test_sharding_by_size_and_by_class(axes, fsdp_elements, path, shape, spec):
    placement = Placement(mesh_of(**axes), fsdp_elements)
    tree = {"trace": {path: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}}
    assert placement.shardings(tree)["trace"][path]["kernel"].spec == P(*spec)


def test_a_mesh_has_the_devices_in_their_order():
    mesh = make_mesh(8, model_devices=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))
    assert dict(make_mesh().shape) == {"data": 8}
    assert make_mesh(1) is None


@pytest.mark.parametrize(
    ("devices", "model_devices", "message"),
    [
        (9, 1, "devices must be at most the 8 that are here, got 9"),
        (0, 1, "devices must be"),
        (8, 3, "model_devices must divide the 8 devices of a process, got 3"),
        (6, 4, "model_devices must divide the 6 devices of a process, got 4"),
    ],
)
def test_numbers_that_do_not_fit_the_devices(devices, model_devices, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(devices, model_devices=model_devices)
