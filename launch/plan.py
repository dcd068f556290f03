"""What a run with balancer=dsb needs beyond the plain run: memory per device, communication and arithmetic per step.

  python launch/plan.py N C d devices
  python launch/plan.py 437_513 8142 64 8 --batch-size 512
  python launch/plan.py toolkit N C d       what scales of N embeddings in files need: see toolkit --help

N training samples of C classes, features of d channels in the pool, devices that share a batch. Nothing is allocated,
and the devices need not be there. Memory is that of the balancer's own state, traced but not made, shared as its own
shardings say; communication is what the traced update gathers. Beside the numbers stand their formulas, in

  N  rows of the pool: about an epoch, a multiple of B   b  bytes of a stored feature   D  devices
  B  the batch size                                      d  channels                    T  classes touched by a step,
  C  classes                                             P  C up to a multiple of 256      at most min(2·B, C)
  M  classes whose moments are updated at a time         K  centres whose distances to all others are held at a time
  R  T up to a multiple of K

Where something is too large follows what to change, in arguments of semantic_scale, with what that would bring.
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType

from dsb_jax import balancers, command_line, models, validation
from dsb_jax.toolkit import streaming
from dsb_jax.training import optimizers

# Bytes on one device. The state's are read off the state and tested against these; of the last there is an upper bound
# alone: what XLA holds while it updates the moments of M classes, or K centres' distances to all others.
MEMORY = {
    "rows": "N·d·b/D",
    "labels": "4·N/D",
    "read-ahead block": "B·(d·b + 4)/D",
    "second moments": "8·P·d²/D",
    "other class statistics": "P·(20·d + 24) + 20",
    "interference": "C·(4·d + 5)",
}
WORKING = "max(16·M·d² + 64·B·(d + 8), 16·K·C + 12·C·d)"
WORKING_WITHOUT_INTERFERENCE = "16·M·d² + 64·B·(d + 8)"
# Bytes that an all-gather puts together, in the order of the step.
GATHERED = {"2·B rows, label, mark": "8·B·(d + 2)", "volumes": "4·P"}
# Floating-point operations of one device, the leading term of each.
ARITHMETIC = {"second moments": "8·B·d²/D", "factorizations": "T·(d³/3 + 12·d²)/D", "interference": "4·R·C·d"}

DTYPES = ("float32", "bfloat16", "float16")
LARGE_MEMORY, LARGE_SHARE = 0.1, 0.01  # of the device's memory and of the step's arithmetic: then advice is given
LONG = 600  # seconds of the toolkit: likewise


@dataclasses.dataclass(frozen=True)
class Plan:
    """A balancer's needs on one device: bytes, bytes and operations, by their names above."""

    samples: int
    classes: int
    dim: int
    devices: int
    batch_size: int = 512
    capacity: int | None = None
    dtype: str = "float32"
    interclass: bool = True

    def __post_init__(self):
        for name in ("samples", "classes", "dim", "devices", "batch_size"):
            validation.positive_int(name, getattr(self, name))
        if 256 % self.devices:
            raise ValueError(f"devices must be a divisor of 256, got {self.devices}")
        if self.rows >= 2**31:
            raise ValueError(f"the pool counts its rows in int32, at most 2,147,483,647, got {self.rows:,}")
        if self.classes > 2**24:
            raise ValueError(f"labels travel as float32, for at most 16,777,216 classes, got {self.classes:,}")
        _ = self.traced  # what the balancer refuses is refused now

    @property
    def rows(self) -> int:
        """Rows of the pool; by default as the trainer has it."""
        epoch = max(round(self.samples / self.batch_size), 1) * self.batch_size
        return epoch if self.capacity is None else self.capacity

    @functools.cached_property
    def traced(self):
        """The balancer and its state's shapes, on devices that exist in name alone."""
        mesh = AbstractMesh((self.devices,), ("data",), axis_types=(AxisType.Auto,))
        balancer = balancers.semantic_scale(
            self.classes,
            self.rows,
            dim=self.dim,
            interclass=self.interclass,
            batch_size=self.batch_size,
            mesh=mesh,
            dtype=jnp.dtype(self.dtype),
        )
        return balancer, jax.eval_shape(balancer.init), balancers.state_shardings(balancer, mesh)

    @functools.cached_property
    def memory(self) -> dict[str, int]:
        """Bytes of the state."""
        _, state, shardings = self.traced
        share = jax.tree.map(lambda array, sharding: _bytes(sharding.shard_shape(array.shape), array), state, shardings)
        pool = share.pool
        parts = {
            "rows": pool.rows,
            "labels": pool.labels,
            "read-ahead block": pool.next_rows + pool.next_labels,
            "second moments": pool.statistics.moment,
        }
        parts["other class statistics"] = sum(jax.tree.leaves(pool)) - sum(parts.values())
        if self.interclass:
            parts["interference"] = sum(jax.tree.leaves(share.interference))
        return parts

    @functools.cached_property
    def working(self) -> int:
        """Bytes for temporaries, at most; on a CPU, which takes 64 classes at a time, mostly less."""
        return round(self.value(self.working_formula))

    @property
    def working_formula(self) -> str:
        return WORKING if self.interclass else WORKING_WITHOUT_INTERFERENCE

    @functools.cached_property
    def gathered(self) -> dict[str, int]:
        """Bytes that the update gathers from all devices."""
        balancer, state, _ = self.traced
        features = jax.ShapeDtypeStruct((self.batch_size, self.dim), jnp.float32)
        labels = jax.ShapeDtypeStruct((self.batch_size,), jnp.int32)
        jaxpr = jax.make_jaxpr(balancer.update)(state, features, labels)
        return dict(zip(GATHERED, _gathers(jaxpr.jaxpr), strict=True))

    @functools.cached_property
    def arithmetic(self) -> dict[str, float]:
        """Floating-point operations of an update, before classes are rounded up to blocks of 64 and rows to fours."""
        names = [name for name in ARITHMETIC if self.interclass or name != "interference"]
        return {name: self.value(ARITHMETIC[name]) for name in names}

    def value(self, formula: str) -> float:
        """A formula's value for this plan."""
        symbols = {
            "N": self.rows,
            "B": self.batch_size,
            "C": self.classes,
            "P": math.ceil(self.classes / 256) * 256,
            "T": (touched := min(2 * self.batch_size, self.classes)),
            "M": min(-(-touched // self.devices), max(2**23 // self.dim**2, 1)),
            "K": (held := min(max(2**23 // self.classes, 64), self.classes)),
            "R": -(-touched // held) * held,
            "D": self.devices,
            "d": self.dim,
            "b": jnp.dtype(self.dtype).itemsize,
        }
        return evaluate(formula, symbols)

    @property
    def bytes(self) -> int:
        """State and temporaries."""
        return sum(self.memory.values()) + self.working


@dataclasses.dataclass(frozen=True)
class Model:
    """A model's bytes of parameters, gradients and optimizer state, and the operations of a step on one image."""

    name: str
    parameters: int
    memory: dict[str, int]
    arithmetic: float


def model(name: str, classes: int, *, image_size: int, optimizer: str, parameters: int | None = None) -> Model:
    """The model as it is created, traced but not made; ``parameters`` replaces the number of its own."""
    network = models.create(name, classes)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(network.init, train=False), key, image)
    forward = jax.jit(functools.partial(network.apply, train=False)).lower(variables, image).cost_analysis()["flops"]
    params = variables["params"]
    if parameters is not None:
        params = jax.ShapeDtypeStruct((validation.positive_int("parameters", parameters),), jnp.float32)
    rate = optimizers.schedule("constant", 0.1, 1, steps_per_epoch=1)
    states = jax.eval_shape(optimizers.optimizer(optimizer, rate).init, params)
    size = sum(_bytes(array.shape, array) for array in jax.tree.leaves(params))
    states = sum(_bytes(array.shape, array) for array in jax.tree.leaves(states))
    memory = {"parameters": size, "gradients": size, f"state of {optimizer}": states}
    # Backward takes the operations of forward twice: for the gradient of the inputs and for that of the parameters.
    return Model(name, size // 4, memory, 3 * forward)


def evaluate(formula: str, symbols: dict[str, Any]) -> float:
    """The value of a formula as it is printed."""
    for written, meant in (("·", "*"), ("²", "**2"), ("³", "**3"), ("⌈", "ceil("), ("⌉", ")")):
        formula = formula.replace(written, meant)
    return eval(formula, {"__builtins__": {}}, symbols | {"max": max, "min": min, "ceil": math.ceil})


def _bytes(shape, array):
    return math.prod(shape) * array.dtype.itemsize


def _gathers(jaxpr):
    """Bytes of what every all-gather of a traced program puts together, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "all_gather":
            yield sum(_bytes(out.aval.shape, out.aval) for out in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, core.ClosedJaxpr)):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield from _gathers(getattr(inner, "jaxpr", inner))


def show(plan: Plan, of_model: Model, device_memory: float) -> None:
    """Prints all of it."""
    print(
        f"{plan.samples:,} samples, {plan.classes:,} classes, d = {plan.dim}; devices: {plan.devices}, "
        f"{plan.batch_size} images per batch; {plan.rows:,} rows in {plan.dtype}, "
        f"interference {'on' if plan.interclass else 'off'}"
    )
    title("memory of DSB", "per device")
    for name, size in plan.memory.items():
        line(name, human(size), MEMORY[name])
    line("temporaries, at most", human(plan.working), plan.working_formula)
    line("sum", human(plan.bytes), f"{plan.bytes / device_memory:.2%} of {human(device_memory)}")

    title(f"memory of {of_model.name}", "replicated", f"divided by D; {of_model.parameters:,} parameters")
    for name, size in of_model.memory.items():
        line(name, human(size), human(size / plan.devices))
    total = sum(of_model.memory.values())
    line("sum", human(total), human(total / plan.devices))

    arrives = (plan.devices - 1) / plan.devices
    title("communication per step", "received", "by each device, (D - 1)/D of")
    for name, size in plan.gathered.items():
        line(name, human(size * arrives), GATHERED[name])
    line(
        "gradients of the model", human(2 * arrives * of_model.memory["parameters"]), "2·4·parameters, without DSB too"
    )

    title("operations per step", "per device")
    for name, operations in plan.arithmetic.items():
        line(name, si(operations), ARITHMETIC[name])
    line("sum", si(sum(plan.arithmetic.values())), f"{share(plan, of_model):.3%} of the model's step")
    line(of_model.name, si(plan.batch_size / plan.devices * of_model.arithmetic), "3·forward·B/D")
    print("  Of the time it is more: small kernels in full float32. launch/benchmark.py overhead measures it.\n")
    for advice in advise(plan, of_model, device_memory):
        print(advice)


def share(plan: Plan, of_model: Model) -> float:
    """The update's operations over those of the model's step."""
    return sum(plan.arithmetic.values()) / (plan.batch_size / plan.devices * of_model.arithmetic)


def advise(plan: Plan, of_model: Model, device_memory: float) -> list[str]:
    """What to change, in words, the largest effect first; each line alone, with what it would bring."""
    advice = []
    if plan.bytes > LARGE_MEMORY * device_memory:
        advice.append(f"DSB takes {human(plan.bytes)} of every device; less with")
        advice += effects(plan, lambda other: other.bytes, human)
    if share(plan, of_model) > LARGE_SHARE:
        advice.append(f"DSB takes {share(plan, of_model):.1%} of a step's operations; less with")
        advice += effects(plan, lambda other: share(other, of_model), "{:.3%}".format)
    total = sum(of_model.memory.values())
    if total > LARGE_MEMORY * device_memory and plan.devices > 1:
        advice.append(
            f"The model takes {human(total)} of every device when replicated: fsdp_elements divides its large arrays "
            "over the devices, model_devices the classes of its classifier."
        )
    return advice or ["Nothing of it is large: nothing needs to change."]


def effects(plan, measure, written):
    """A line for each change that lowers ``measure`` by a twentieth or more."""
    found = []
    for words, changes in remedies(plan):
        try:
            after = measure(dataclasses.replace(plan, **changes))
        except ValueError:  # more devices than divide the batch, say
            continue
        if after < 0.95 * measure(plan):
            found.append((after, f"  {written(after):>10}  {words}"))
    return [text for _, text in sorted(found)] or ["  none of the changes that are known here"]


def remedies(plan):
    """What could be changed: words, and the plan's fields."""
    if plan.dtype == "float32":
        yield "rows in bfloat16: dtype=bfloat16", {"dtype": "bfloat16"}
    quarter = max(plan.rows // 4 // plan.batch_size, 1) * plan.batch_size
    yield f"a pool of a quarter, {quarter:,} rows: it may hold less than an epoch: capacity", {"capacity": quarter}
    if plan.dim > 1:
        yield f"features pooled to {plan.dim // 2} channels: dim", {"dim": plan.dim // 2}
    if plan.interclass:
        yield "no interference, S = S'/max S' (Appendix H.1): interclass=False", {"interclass": False}
    yield f"{2 * plan.devices} devices and a batch of {plan.batch_size}", {"devices": 2 * plan.devices}


def title(what, *columns):
    print(f"\n{what:32} {columns[0]:>12}  {''.join(columns[1:])}".rstrip())


def line(name, number, remark):
    print(f"  {name:30} {number:>12}  {remark}")


def human(size):
    """Bytes as B, KiB, MiB or GiB."""
    power = min(max(math.floor(math.log2(max(size, 1)) / 10), 0), 3)
    return f"{size / 1024**power:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def si(number):
    """Operations as k, M, G or T."""
    power = min(int(math.log10(max(number, 1))) // 3, 4)
    return f"{number / 1000**power:,.1f} {('', 'k', 'M', 'G', 'T')[power]}".rstrip()


def time(seconds):
    """Seconds, minutes or hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def samples(text: str) -> int:
    """N; who misspelt the command toolkit is told of it."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, or the word toolkit before it, got {text!r}") from None


def parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python launch/plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=samples, metavar="N")
    parser.add_argument("classes", type=int, metavar="C")
    parser.add_argument("dim", type=int, metavar="d")
    parser.add_argument("devices", type=int, help="that share a batch: a divisor of the batch size and of 256")
    parser.add_argument("--batch-size", "--batch_size", type=int, default=512, help="of all devices (%(default)s)")
    parser.add_argument("--capacity", type=int, help="rows of the pool (about an epoch)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the pool's rows (%(default)s)")
    parser.add_argument("--no-interclass", action="store_true", help="without interference")
    parser.add_argument("--model", default="resnet50", help="what DSB is compared with (%(default)s)")
    parser.add_argument("--parameters", type=int, help="of another model (the model's, with C classes)")
    parser.add_argument("--image-size", type=int, default=224, help="(%(default)s)")
    parser.add_argument("--optimizer", default="sgd", help="sgd or adam (%(default)s)")
    parser.add_argument("--memory", type=float, default=16, help="GiB of a device (%(default)s)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """The command; what is wrong with its arguments becomes one line and exit status 2."""
    arguments = list(arguments)
    if arguments[:1] == ["toolkit"]:
        return command_line.answer(lambda: of_toolkit(arguments[1:]))
    return command_line.answer(lambda: of_balancer(arguments))


def of_balancer(arguments: list[str]) -> None:
    """The plan of a run."""
    given = parser().parse_args(arguments)
    plan = Plan(
        given.samples,
        given.classes,
        given.dim,
        given.devices,
        batch_size=given.batch_size,
        capacity=given.capacity,
        dtype=given.dtype,
        interclass=not given.no_interclass,
    )
    memory = validation.positive("memory", given.memory) * 2**30
    of_model = model(
        given.model,
        plan.classes,
        image_size=validation.positive_int("image_size", given.image_size),
        optimizer=given.optimizer,
        parameters=given.parameters,
    )
    show(plan, of_model, memory)


# ---- The toolkit: scales of classes of embeddings in files, read once.

SCALES_DOC = """What scales of N embeddings of d channels in C classes need, whose files are read once.

  python launch/plan.py toolkit N C d
  python launch/plan.py toolkit 100_000_000 8142 64 --files 256 --workers 16

One process reads all files as a stream (dsb_jax.toolkit.streaming); with workers, Apache Beam gives each its files
(dsb_jax.toolkit.beam) and adds up what they find. Rates are those of a process on one core, and by default what was
measured on an AMD EPYC, reading .npy files that were in memory; of .npz files it was 1.3 GB/s, of .parquet files 0.65.
Beside the numbers stand their formulas, in

  N  embeddings                          F  files; 1 where they are a stream     r  bytes read in a second
  C  classes                             R  rows of a block                      g  products in a second
  d  channels                            V  visits: of a class in a block        e  numbers centred in a second
  b  bytes of a stored number            W  workers                              v  seconds of a visit
"""
SCALES_MEMORY = {"moments": "8·C·d·(d + 1)", "rows of a block": "min(N, R)·(24·d + 40)"}
SCALES_READ = {"embeddings": "N·d·b", "labels": "8·N"}
VISITS = "F·⌈N/(F·R)⌉·min(C, R, ⌈N/F⌉)"
SCALES_TRAVEL = "8·(d² + d + 1)·C·W"
SCALES_ARITHMETIC = {"products": "(N + V)·d²", "factorizations": "C·d³/3"}
SCALES_TIME = {
    "reading": "N·(d·b + 8)/r/W",
    "centring": "N·d/e/W",
    "products": "(N + V)·d²/g/W",
    "visits": "V·v/W",
    "factorizations": "C·d³/3/g",
}
# Of one process on one core, see above.
CENTRED, PRODUCTS, VISIT = 0.3e9, 40e9, 20e-6


@dataclasses.dataclass(frozen=True)
class ScalesPlan:
    """Scales of classes of embeddings in files; ``read`` is in bytes per second."""

    samples: int
    classes: int
    dim: int
    itemsize: int = 4
    files: int = 1
    workers: int = 1
    read: float = 3.4e9

    def __post_init__(self):
        for name in ("samples", "classes", "dim", "itemsize", "files", "workers"):
            validation.positive_int(name, getattr(self, name))
        validation.positive("read", self.read)
        if self.workers > self.files:
            raise ValueError(f"workers take files of their own: at most {self.files}, got {self.workers}")

    def value(self, formula: str) -> float:
        """A formula's value for this plan."""
        symbols = {
            "N": self.samples,
            "C": self.classes,
            "d": self.dim,
            "b": self.itemsize,
            "F": self.files if self.workers > 1 else 1,
            "W": self.workers,
            "R": streaming.block_rows(self.classes, self.dim),
            "r": self.read,
            "e": CENTRED,
            "g": PRODUCTS,
            "v": VISIT,
        }
        return evaluate(formula, symbols | {"V": evaluate(VISITS, symbols)})

    @property
    def memory(self) -> float:
        """Bytes of a process."""
        return sum(map(self.value, SCALES_MEMORY.values()))

    @property
    def seconds(self) -> float:
        """From the first byte to the last volume."""
        return sum(map(self.value, SCALES_TIME.values()))


def show_scales(plan: ScalesPlan, memory: float) -> None:
    """Prints all of it."""
    how = (
        f"{plan.workers} workers of Beam, {plan.files:,} files"
        if plan.workers > 1
        else "one process, files as a stream"
    )
    print(f"{plan.samples:,} embeddings of {plan.dim} channels, {plan.classes:,} classes; {how}")
    title("memory", "per process")
    for name, formula in SCALES_MEMORY.items():
        line(name, human(plan.value(formula)), formula)
    line("sum", human(plan.memory), f"{plan.memory / memory:.2%} of {human(memory)}")
    title("read", "in all")
    for name, formula in SCALES_READ.items():
        line(name, human(plan.value(formula)), formula)
    if plan.workers > 1:
        line("moments between workers", human(plan.value(SCALES_TRAVEL)), f"{SCALES_TRAVEL}, once or twice that")
    title("operations", "in all")
    for name, formula in SCALES_ARITHMETIC.items():
        line(name, si(plan.value(formula)), formula)
    line("visits", si(plan.value("V")), VISITS)
    title("time", "about")
    for name, formula in SCALES_TIME.items():
        line(name, time(plan.value(formula)), formula)
    line("sum", time(plan.seconds), f"at {plan.read / 1e9:g} GB/s, without what a runner of workers takes to start")
    print()
    for advice in advise_scales(plan, memory):
        print(advice)


def advise_scales(plan: ScalesPlan, memory: float) -> list[str]:
    """What to change, in words."""
    advice = []
    if plan.memory > memory / 2:  # where the toolkit refuses
        dim = next((2**k for k in range(20, -1, -1) if dataclasses.replace(plan, dim=2**k).memory <= memory / 2), None)
        what = (
            f"--dim={dim} pools them to what fits" if dim and dim < plan.dim else "fewer classes at a time are needed"
        )
        advice.append(f"The moments of all classes do not fit into half of the memory: {what}.")
    if plan.seconds > LONG and plan.workers == 1:
        several = dataclasses.replace(plan, files=256, workers=16)
        advice.append(f"16 workers of Beam take about {time(several.seconds)}, from 256 files: --runner=beam.")
    return advice or ["Nothing of it is large: nothing needs to change."]


def of_toolkit(arguments: list[str]) -> None:
    """The plan of the toolkit's scales."""
    parser = command_line.Parser(
        prog="python launch/plan.py toolkit",
        description=SCALES_DOC,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("samples", type=int, metavar="N")
    parser.add_argument("classes", type=int, metavar="C")
    parser.add_argument("dim", type=int, metavar="d")
    parser.add_argument("--itemsize", type=int, default=4, help="bytes of a stored number (%(default)s)")
    parser.add_argument("--files", type=int, default=1, help="that workers share (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="of Beam; one reads all as a stream (%(default)s)")
    parser.add_argument("--read", type=float, default=3.4, help="GB that a worker reads in a second (%(default)s)")
    parser.add_argument("--memory", type=float, default=16, help="GiB of a worker's machine (%(default)s)")
    given = parser.parse_args(arguments)
    sizes = (given.samples, given.classes, given.dim, given.itemsize, given.files, given.workers)
    plan = ScalesPlan(*sizes, read=1e9 * validation.positive("read", given.read))
    show_scales(plan, validation.positive("memory", given.memory) * 2**30)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a TPU has one user, and this may be run beside it
    sys.exit(main(sys.argv[1:]))
