"""Speed, as ratios of alternatives timed in turn in one run.

  python launch/benchmark.py pool
  python launch/benchmark.py overhead
  python launch/benchmark.py overhead --shape=inat2018
  python launch/benchmark.py table11
  python launch/benchmark.py data
  python launch/benchmark.py train --model=resnet50 --batch-size=256 --dtype=bfloat16
  python launch/benchmark.py retrieval
  python launch/benchmark.py toolkit
  python launch/benchmark.py imports

``pool``: one update of the feature pool at capacities of 50k, 500k and 5M (C = 1000, d = 64, batch 512), with
interference off and on; at iNaturalist 2018's shape (C = 8142, N = 437,513) against a recompute of all volumes from
the whole pool; and with interference at C = 8142 and C = 100,000.

``overhead``: what a whole training step takes with balancer=dsb over what it takes with balancer=uniform, in time and
in memory; an update of the pool by itself, with interference and without, and where its time goes; and a recompute of
all volumes from the whole pool. At CIFAR's shape, 32x32 images, 10 and 100 classes, a pool of 50,000; or at iNaturalist
2018's, ResNet-50, 224x224, batch 512, C = 8142, N = 437,513. Options shrink a shape, for a trial where it does not fit.

``table11``: DSB-SoftTriple against SoftTriple in iterations per second and in memory, beside the paper's Table 11, in
its five settings. Pixels are made up, classes drawn with each dataset's own counts. The paper says neither the batch
sizes, which here are those of its other experiments on the same data (256 and 512 long-tailed, 32 in retrieval), nor
the backbone, BN-Inception elsewhere, of which ResNet-50 takes the place here. As in SoftTriple's own code, batch
normalisation is frozen, the optimizer is Adam and every class has 10 centres. Each dataset has a process of its own,
and SoftTriple comes first in it, so that the device's peak is of what is running.

``data``: images per second of this pipeline, ``tf.data`` and PyTorch's ``DataLoader``: of 32x32, flipped and cropped
after padding; and of JPEG files of 500x375, of which random parts are resized to 224x224 and flipped. And the share of
its time that training waits for them. All have the same cores: this pipeline as many threads, ``tf.data`` a private
pool of as many, ``DataLoader`` as many workers. All end with augmented batches on JAX's device. Each has its images
where they mostly are: this pipeline in ArrayRecord files, ``tf.data`` in TFRecord files, ``DataLoader`` in image files,
and both of them the small ones in memory. A rival that is not installed is left out. ``--images`` takes JPEG files of
one's own instead of made-up ones.

``train``: images per second of a training step on made-up pixels that are on the device already, with balancer=uniform;
the model's operations per second, three times those of a forward pass, and what share that is of what one large
product of matrices reaches on the same device; and the memory. Beside it timm's network of the same name in PyTorch,
compiled, channels last, with autocast for bfloat16, where both are installed: python -m pip install torch timm.

``retrieval``: R-precision, MAP@R and precision at 1, of one search, of 50,000 embeddings of 64 numbers in classes of
500 and of 10, every one a query; beside pytorch-metric-learning's ``AccuracyCalculator``, whose search is FAISS's, on
the same embeddings and device; and by how much results differ. Ours starts from arrays on the host, and the rival where
its device is. And our time alone for 1000 queries in galleries of 100,000 and a million. The rival is left out where it
is not installed: python -m pip install torch pytorch-metric-learning faiss-cpu.

``toolkit``: the volumes of all of 1000 classes of a million embeddings of 64 numbers, in no order, against the time to
read them with NumPy, from memory and, where the system can be asked to forget a file, from the disk; and against the
package of Ma et al., perceptual_manifold_geometry, class by class, with the search for the rows of a class, which its
users have to do, and without. The package is left out where it is not installed. And the curvature of 500 points beside
the algorithm that they published: as it takes each point by itself, it takes as much longer for more points.

``imports``: a new interpreter that imports dsb_jax, one that imports its trainer and one that imports its toolkit,
against one that imports jax.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from benchmarking import loading, measuring, searching, steps, table11, updates
from benchmarking.timing import in_turn, machine, table

from dsb_jax import command_line, models, validation

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Times what is asked for; the exit code is 0, or 2 after one line on what is wrong."""
    return command_line.answer(lambda: run(parsed(arguments)))


def run(arguments):
    """The benchmark that is asked for."""
    match arguments.benchmark:
        case "pool":
            updates.pool(arguments.rounds)
        case "overhead":
            changed = {name: getattr(arguments, name) for name in ("model", "image_size", "batch_size")}
            changed = {name: value for name, value in changed.items() if value is not None}
            steps.overhead(
                arguments.rounds, dataclasses.replace(steps.SHAPES[arguments.shape], **changed), arguments.dtype
            )
        case "table11":
            size, batch_size = arguments.image_size, arguments.batch_size
            table11.compare(arguments.rounds, arguments.datasets, arguments.model, batch_size, size, arguments.dtype)
        case "train":
            size, batch_size = arguments.image_size, arguments.batch_size
            steps.train(arguments.rounds, arguments.model, batch_size, size, arguments.dtype)
        case "retrieval":
            sizes = arguments.samples, arguments.dim, arguments.class_sizes, arguments.galleries, arguments.queries
            searching.retrieval(arguments.rounds, *sizes)
        case "toolkit":
            sizes = arguments.samples, arguments.classes, arguments.dim, arguments.bent, arguments.neighbours
            measuring.toolkit(arguments.rounds, *sizes)
        case "imports":
            imports(arguments.rounds)
        case "data":
            loading.data(arguments.rounds, arguments.images, arguments.cores)


def imports(rounds):
    """Prints what ``imports`` is."""
    print(machine(), flush=True)
    alternatives = {
        f"import {name}": functools.partial(interpreter, f"import {name}")
        for name in ("jax", "dsb_jax", "dsb_jax.training", "dsb_jax.toolkit")
    }
    for run in alternatives.values():
        run()  # writes bytecode and fills the system's cache
    table("A new interpreter", in_turn(alternatives, rounds), "import jax")


def interpreter(statement):
    """Runs a statement in a new one."""
    subprocess.run([sys.executable, "-c", statement], check=True)


def parsed(arguments):
    """The command line."""
    parser = command_line.Parser(
        prog="python launch/benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    of_pool = benchmarks.add_parser("pool")
    of_overhead = benchmarks.add_parser("overhead")
    of_overhead.add_argument("--shape", choices=steps.SHAPES, default="cifar", help="(%(default)s)")
    of_overhead.add_argument(
        "--model",
        choices=models.names(),
        metavar="NAME",
        help="with the cifar stem for small images, where it has stems (the shape's)",
    )
    of_overhead.add_argument("--image-size", type=command_line.positive_int, help="(the shape's)")
    of_overhead.add_argument("--batch-size", type=command_line.positive_int, help="(the shape's)")
    of_table11 = benchmarks.add_parser("table11")
    of_table11.add_argument(
        "--datasets", type=dataset_names, default=list(table11.SETTINGS), help=f"({','.join(table11.SETTINGS)})"
    )
    of_table11.add_argument(
        "--model", choices=models.names(), metavar="NAME", default="resnet50", help="the backbone (%(default)s)"
    )
    of_table11.add_argument("--image-size", type=command_line.positive_int, default=224, help="(%(default)s)")
    of_table11.add_argument("--batch-size", type=command_line.positive_int, help="(each dataset's)")
    of_train = benchmarks.add_parser("train")
    of_train.add_argument("--model", choices=models.names(), metavar="NAME", default="resnet50", help="(%(default)s)")
    of_train.add_argument("--image-size", type=command_line.positive_int, default=224, help="(%(default)s)")
    of_train.add_argument("--batch-size", "--batch", type=command_line.positive_int, default=256, help="(%(default)s)")
    for chosen in (of_overhead, of_table11, of_train):
        chosen.add_argument(
            "--dtype", choices=DTYPES, default="float32", help="what the backbone computes in (%(default)s)"
        )
    of_data = benchmarks.add_parser("data")
    of_data.add_argument("--images", type=pathlib.Path, metavar="DIR", help="JPEG files (made-up ones)")
    of_data.add_argument("--cores", type=command_line.positive_int, default=os.cpu_count(), help="(%(default)s)")
    of_retrieval = benchmarks.add_parser("retrieval")
    of_retrieval.add_argument("--samples", type=command_line.positive_int, default=50_000, help="(%(default)s)")
    of_retrieval.add_argument("--dim", type=command_line.positive_int, default=updates.DIM, help="(%(default)s)")
    of_retrieval.add_argument("--class-sizes", type=integers, default=[500, 10], help="(500,10)")
    of_retrieval.add_argument("--galleries", type=integers, default=[10**5, 10**6], help="searched alone (10^5,10^6)")
    of_retrieval.add_argument(
        "--queries", type=command_line.positive_int, default=1000, help="that search them (%(default)s)"
    )
    of_toolkit = benchmarks.add_parser("toolkit")
    of_toolkit.add_argument("--samples", type=command_line.positive_int, default=10**6, help="(%(default)s)")
    of_toolkit.add_argument("--classes", type=command_line.positive_int, default=1000, help="(%(default)s)")
    of_toolkit.add_argument("--dim", type=command_line.positive_int, default=updates.DIM, help="(%(default)s)")
    of_toolkit.add_argument(
        "--bent", type=command_line.positive_int, default=500, help="points whose curvature is measured (%(default)s)"
    )
    of_toolkit.add_argument("--neighbours", type=command_line.positive_int, default=20, help="(%(default)s)")
    of_imports = benchmarks.add_parser("imports")
    defaults = (of_pool, 15), (of_overhead, 9), (of_table11, 9), (of_data, 7), (of_train, 9), (of_retrieval, 5)
    for chosen, rounds in (*defaults, (of_toolkit, 7), (of_imports, 7)):
        chosen.add_argument(
            "--rounds",
            type=command_line.positive_int,
            default=rounds,
            help="how often each alternative is timed (%(default)s)",
        )
    return parser.parse_args(arguments)


def integers(text):
    try:
        return [validation.positive_int("", int(each)) for each in text.split(",") if each]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers >= 1 with commas between them, got {text!r}") from None


def dataset_names(text):
    for name in (names := text.split(",")):
        if name not in table11.SETTINGS:
            raise argparse.ArgumentTypeError(
                str(validation.unknown_name("dataset of Table 11", name, table11.SETTINGS))
            )
    return names


if __name__ == "__main__":
    sys.exit(main())
