"""What plan.py says against states that are there, compiled updates and its own formulas."""

import dataclasses
import functools
import pathlib
import re
import resource
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import balancers
from dsb_jax.toolkit import streaming
from dsb_jax.toolkit.inputs import files

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
import plan

README = (pathlib.Path(__file__).resolve().parents[1] / "README.md").read_text()
LARGEST = plan.Plan(10_000_000, 100_000, 64, 64)
OF_README = plan.Plan(437_513, 8142, 64, 8), plan.Plan(10_000_000, 100_000, 64, 1), LARGEST

SMALL = {"samples": 1000, "classes": 10, "dim": 4, "batch_size": 16}
MIDDLE = {"samples": 50_000, "classes": 1000, "dim": 64, "batch_size": 512}
BFLOAT16 = SMALL | {"classes": 300, "dtype": "bfloat16", "capacity": 320, "interclass": False}


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


def balancer_of(planned, mesh):
    return balancers.semantic_scale(
        planned.classes, planned.rows, dim=planned.dim, interclass=planned.interclass,
        batch_size=planned.batch_size, mesh=mesh, dtype=np.dtype(planned.dtype),
    )  # fmt: skip


@functools.cache
def resnet(classes):
    return plan.model("resnet50", classes, image_size=224, optimizer="sgd")


@functools.cache
def compiled_update(planned):
    """An update on real devices, of a donated state; what the state holds does not matter, and is not made."""
    mesh = mesh_of(planned.devices)
    balancer = balancer_of(planned, mesh)
    shardings, data = balancers.state_shardings(balancer, mesh), NamedSharding(mesh, P("data"))
    update = jax.jit(
        balancer.update,
        donate_argnums=0,
        in_shardings=(shardings, data, data),
        out_shardings=(NamedSharding(mesh, P()), shardings),
    )
    batch = (planned.batch_size, planned.dim), (planned.batch_size,)
    features, labels = (
        jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(batch, ("float32", "int32"), strict=True)
    )
    return update.lower(jax.eval_shape(balancer.init), features, labels).compile()


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("numbers", [SMALL, MIDDLE, BFLOAT16], ids=["small", "middle", "bfloat16"])
def test_memory_is_what_the_shards_take(numbers, devices):
    planned = plan.Plan(**numbers, devices=devices)
    mesh = mesh_of(devices)
    balancer = balancer_of(planned, mesh)
    state = jax.jit(balancer.init, out_shardings=balancers.state_shardings(balancer, mesh))()
    for device in jax.devices()[:devices]:
        held = jax.tree.map(
            lambda array, device=device: sum(
                shard.data.nbytes for shard in array.addressable_shards if shard.device == device
            ),
            state,
        )
        assert sum(jax.tree.leaves(held)) == sum(planned.memory.values())
        pool = held.pool
        assert pool.rows == planned.memory["rows"]
        assert pool.labels == planned.memory["labels"]
        assert pool.next_rows + pool.next_labels == planned.memory["read-ahead block"]
        assert pool.statistics.moment == planned.memory["second moments"]
        assert sum(jax.tree.leaves(held.interference)) == planned.memory.get("interference", 0)


def test_one_device_alone_has_no_mesh_and_takes_the_same():
    planned = plan.Plan(**MIDDLE, devices=1)
    state = jax.eval_shape(balancer_of(planned, None).init)
    assert sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(state)) == sum(planned.memory.values())


@pytest.mark.parametrize(
    ("numbers", "devices"),
    [
        (SMALL, 1),
        pytest.param(SMALL, 2, marks=pytest.mark.slow),
        (SMALL, 8),
        (MIDDLE, 1),
        pytest.param(MIDDLE, 8, marks=pytest.mark.slow),
        (MIDDLE | {"interclass": False}, 2),
    ],
    ids=["small-1", "small-2", "small-8", "middle-1", "middle-8", "without-2"],
)
def test_memory_and_communication_are_those_of_the_compiled_update(numbers, devices):
    planned = plan.Plan(**numbers, devices=devices)
    compiled = compiled_update(planned)
    memory, batch = compiled.memory_analysis(), planned.batch_size // devices * (planned.dim + 1) * 4
    assert memory.argument_size_in_bytes == sum(planned.memory.values()) + batch
    assert memory.alias_size_in_bytes == sum(planned.memory.values())
    assert memory.temp_size_in_bytes < planned.working
    collectives = re.findall(
        r"= f32\[([\d,]+)\]\S* (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", compiled.as_text()
    )
    assert {kind for _, kind in collectives} == {"all-gather"}
    sizes = [4 * np.prod([int(n) for n in shape.split(",")]) for shape, _ in collectives]
    assert sorted(sizes) == sorted(planned.gathered.values())


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("classes", "dim", "batch_size", "devices"),
    [
        pytest.param(20_000, 64, 128, 1, marks=pytest.mark.slow),
        pytest.param(200_000, 64, 128, 1, marks=pytest.mark.slow),
        pytest.param(8142, 64, 512, 8, marks=pytest.mark.slow),
        pytest.param(2_000, 128, 512, 1, marks=pytest.mark.slow),
        (2_000, 128, 512, 4),
        (100, 256, 64, 1),
        pytest.param(2_000, 16, 4096, 1, marks=pytest.mark.slow),
    ],
)
def test_temporaries_stay_below_their_bound(classes, dim, batch_size, devices):
    """Whatever dominates: the centres' distances, their number, the second moments, the batch."""
    planned = plan.Plan(4 * batch_size, classes, dim, devices, batch_size=batch_size)
    compiled = compiled_update.__wrapped__(planned)
    assert planned.working / 3 < compiled.memory_analysis().temp_size_in_bytes < planned.working


@pytest.mark.parametrize(
    "planned",
    [
        LARGEST,
        OF_README[0],
        plan.Plan(10_000_000, 100_000, 512, 256, batch_size=2048, dtype="bfloat16"),
        plan.Plan(1, 1, 1, 1, batch_size=1, interclass=False),
        plan.Plan(**BFLOAT16, devices=2),
    ],
    ids=str,
)
def test_formulas_are_what_the_traced_state_takes(planned):
    assert {name: planned.value(plan.MEMORY[name]) for name in planned.memory} == planned.memory
    assert {name: planned.value(plan.GATHERED[name]) for name in planned.gathered} == planned.gathered
    assert ("interference" in planned.memory) == planned.interclass


def operations_of(planned, **changes):
    """XLA's count, which takes the body of a loop once: of an update of 64 classes and four rows of each."""
    return compiled_update(dataclasses.replace(planned, **changes)).cost_analysis()["flops"]


@pytest.mark.slow
def test_operations_of_an_update():
    """Their leading terms, as differences: of channels for the moments, of interference on and off for its own."""
    planned = plan.Plan(512, 64, 256, 1, batch_size=128, interclass=False)  # 256 rows: four of each of 64 classes
    half = dataclasses.replace(planned, dim=128)
    factorizations = planned.arithmetic["factorizations"] - 64 * 256**3 / 3  # LAPACK does these, and XLA counts none
    predicted = (planned.arithmetic["second moments"] + factorizations) * (1 - 1 / 4)
    assert predicted == pytest.approx(operations_of(planned) - operations_of(half), rel=0.1)
    planned = plan.Plan(512, 20_000, 64, 1, batch_size=128)
    compared = planned.value("R")
    distances = operations_of(planned) - operations_of(planned, interclass=False)
    assert 0.7 < planned.arithmetic["interference"] * 64 / compared / distances < 1.0


def test_operations_and_parameters_of_the_model():
    """ResNet-50 has 25,557,032 parameters and 4.1·10⁹ multiplications of a parameter by a pixel, padding included."""
    model = plan.model("resnet50", 1000, image_size=224, optimizer="adam")
    assert model.parameters == 25_557_032
    assert model.arithmetic == pytest.approx(3 * 2 * 4.09e9, rel=0.05)
    assert model.memory["state of adam"] == pytest.approx(2 * model.memory["parameters"], abs=16)
    other = plan.model("lenet", 10, image_size=28, optimizer="sgd", parameters=25_600_000)
    assert other.memory == {"parameters": 102_400_000, "gradients": 102_400_000, "state of sgd": 102_400_000 + 4}


def test_the_largest_case_is_printed_and_nothing_of_it_is_made(capsys):
    """On one device its state would take 5.6 GiB."""
    held, peak = len(jax.live_arrays()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan.main(["10_000_000", "100_000", "64", "1"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500 * 1024  # KiB
    assert len(jax.live_arrays()) <= held
    printed = capsys.readouterr().out
    for row in ("rows 2.4 GiB N·d·b/D", "second moments 3.1 GiB 8·P·d²/D", "volumes 0 B 4·P"):
        assert re.search(re.escape(row).replace(r"\ ", " +", 1), re.sub(r"  +", " ", printed)), row


def test_the_table_of_the_readme_is_what_is_printed():
    received = [sum(each.gathered.values()) * (each.devices - 1) / each.devices for each in OF_README]
    shares = [plan.share(each, resnet(each.classes)) for each in OF_README]
    rows = [(name, f"`{formula}`", [each.memory[name] for each in OF_README]) for name, formula in plan.MEMORY.items()]
    rows += [
        ("temporaries, at most", f"`{plan.WORKING}`", [each.working for each in OF_README]),
        ("sum", "", [each.bytes for each in OF_README]),
        ("received in a step", "`(8·B·(d + 2) + 4·P)·(D - 1)/D`", received),
    ]
    rows = [(name, formula, *map(plan.human, sizes)) for name, formula, sizes in rows]
    rows.append(("operations, of ResNet-50's", "", *(f"{share:.2%}" for share in shares)))
    for row in rows:
        assert f"| {' | '.join(row)} |" in README


def test_the_numbers_in_the_readme_are_what_is_printed():
    text = " ".join(README.split())
    alone, model = OF_README[1], resnet(100_000)

    def with_(**changes):
        return plan.human(dataclasses.replace(alone, **changes).bytes)

    without = dataclasses.replace(LARGEST, interclass=False)
    for sentence in (
        f"a device receives {plan.human(2 * 7 / 8 * resnet(8142).memory['parameters'])} in the first column",
        f"On one device DSB takes {with_()}. Two devices leave {with_(devices=2)} on each, half the channels "
        f"(`dim=32`) {with_(dim=32)}, a pool of a quarter",
        f"(`capacity`), {with_(capacity=2_499_584)}, rows in bfloat16 (`dtype`) {with_(dtype='bfloat16')}:",
        f"{plan.share(LARGEST, model):.1%} of a step's operations: `dsb.interclass=False` leaves "
        f"{plan.share(without, model):.3%}",
        f"ResNet-50 then has {model.parameters / 1e6:.0f} million parameters",
        f"takes {plan.human(sum(model.memory.values()))} with gradients and momentum",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("437_513 8142 64 8", "Nothing of it is large: nothing needs to change."),
        ("10_000_000 100_000 64 1", "4.6 GiB  rows in bfloat16: dtype=bfloat16"),
        ("10_000_000 100_000 64 1", "4.0 GiB  a pool of a quarter, 2,499,584 rows: it may hold less than an epoch"),
        ("10_000_000 100_000 64 1", "3.1 GiB  2 devices and a batch of 512"),
        ("10_000_000 100_000 64 64", "0.001%  no interference"),
        ("10_000_000 100_000 64 64", "fsdp_elements divides its large arrays over the devices, model_devices"),
        ("10_000_000 100_000 512 8 --dtype=bfloat16 --no-interclass", "features pooled to 256 channels: dim"),
        ("2000 10 64 1 --batch_size=512 --memory=0.001 --capacity=512", "DSB takes"),
    ],
)
def test_what_is_too_large_is_answered_with_what_to_change(arguments, advice, capsys):
    plan.main(arguments.split())
    assert advice in capsys.readouterr().out


def test_advice_says_what_the_change_brings():
    planned = plan.Plan(10_000_000, 100_000, 64, 1)
    model = plan.model("lenet", 10, image_size=28, optimizer="sgd")
    half = dataclasses.replace(planned, dtype="bfloat16")
    assert plan.human(half.bytes) == "4.6 GiB"
    assert half.memory["rows"] == planned.memory["rows"] // 2
    sizes = [line.split()[0] for line in plan.advise(planned, model, 16 * 2**30) if line.startswith("  ")]
    assert sizes[:4] == sorted(sizes[:4])  # the largest effect first


@pytest.mark.parametrize("numbers", [(1000, 7, 64), (10**8, 8142, 64), (10**6, 10, 2048), (10**9, 10**5, 1)])
def test_memory_of_scales_is_what_the_toolkit_asks_for(numbers):
    assert plan.ScalesPlan(*numbers).memory == streaming.needed_memory(*numbers)


@pytest.mark.parametrize("workers", [1, 2])
def test_visits_and_bytes_of_scales_are_those_of_a_pass(workers, tmp_path):
    """Of four files as one stream, and of each by itself; classes take turns, so that none is missing in a block."""
    for shard in range(4):
        np.save(tmp_path / f"{shard}.npy", np.ones((500, 8), np.float32))
        np.save(tmp_path / f"{shard}_labels.npy", np.arange(500) % 50)
    inputs = [tmp_path] if workers == 1 else [tmp_path / f"{shard}.npy" for shard in range(4)]
    with (
        mock.patch.multiple(streaming, _NUMBERS=1, _ROWS_PER_CLASS=3),
        mock.patch.object(streaming._Growing, "_add_to") as visited,
    ):
        for each in inputs:
            streaming.class_moments(files.rows(each))
        planned = plan.ScalesPlan(2000, 50, 8, files=4, workers=workers)
        assert planned.value(plan.VISITS) == visited.call_count == {1: 14, 2: 16}[workers] * 50
    read = sum(planned.value(formula) for formula in plan.SCALES_READ.values())
    assert read == sum(path.stat().st_size for path in tmp_path.iterdir()) - 8 * 128  # of headers


def test_time_of_scales_by_hand():
    planned = plan.ScalesPlan(10**8, 1000, 64, read=1e9)
    visits = 1000 * -(-(10**8) // 65_536)
    products = (10**8 + visits) * 64**2 + 1000 * 64**3 / 3
    by_hand = 26.4e9 / 1e9 + 64e8 / plan.CENTRED + products / plan.PRODUCTS + visits * plan.VISIT
    assert planned.seconds == pytest.approx(by_hand, rel=1e-12)
    shared = dataclasses.replace(planned, files=64, workers=16)
    assert planned.seconds / 17 < shared.seconds < planned.seconds / 10  # files end with blocks that are not full


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("100_000_000 1000 64", "embeddings 23.8 GiB N·d·b"),
        ("100_000_000 1000 64", "Nothing of it is large: nothing needs to change."),
        ("100_000_000 1000 64 --files=256 --workers=16", "16 workers of Beam, 256 files"),
        ("100_000_000 1000 64 --files=256 --workers=16", "moments between workers 507.9 MiB 8·(d² + d + 1)·C·W"),
        ("10_000_000 100_000 512", "do not fit into half of the memory: --dim=64 pools them to what fits."),
        ("10_000_000 1_000_000_000 1", "do not fit into half of the memory: fewer classes at a time are needed."),
        ("1_000_000_000 1000 768", "16 workers of Beam take about 20.2 min, from 256 files: --runner=beam."),
        ("1_000_000_000 1000 768 --read=0.1", "sum 13.7 h at 0.1 GB/s"),
    ],
)
def test_scales_are_planned(arguments, printed, capsys):
    plan.main(["toolkit", *arguments.split()])
    assert printed in re.sub(r"  +", " ", capsys.readouterr().out)
