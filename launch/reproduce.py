"""Reproduces the paper's tables and figures.

  python launch/reproduce.py --list                       all of them: what they need, and what is measured
  python launch/reproduce.py table5 --scale=cpu           runs one, and writes its page
  python launch/reproduce.py table2 --scale=gpu --methods CE DSB-CE --seeds 0 1 2
  python launch/reproduce.py table5 --scale=cpu --pages   the page alone, of what is measured so far
  python launch/reproduce.py --claims                     the paper's claims, and what our results say of them

Scales: paper, the paper's recipes; gpu, what one GPU does in hours; cpu, smaller networks and fewer epochs. How a study
differs from the paper's stands at the top of its page. Runs, one seed after the other, are in <out>/<scale>; tables
share those that they have in common. The same command goes on with what was stopped and leaves alone what is finished.
"""

import argparse
import os
import pathlib
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from reproduction import claims, pages, runs, states
from reproduction.catalogue import TARGETS
from reproduction.measured import Measured
from reproduction.runs import Job
from reproduction.targets import RESULTS, SCALES, Cell, Target

from dsb_jax import command_line, validation
from dsb_jax.data import datasets
from dsb_jax.evaluation import page
from dsb_jax.training.experiment import start_epoch


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists, runs or shows; the exit code is 0, 1 where a run failed, or 2 after one line on what is wrong."""
    return command_line.answer(
        lambda: run(parser().parse_args(arguments)), interrupted="interrupted; the same command goes on"
    )


def run(options: argparse.Namespace) -> int:
    """The command, whose errors are raised."""
    options.out, options.results = options.out.resolve(), options.results.resolve()  # runs have a folder of their own
    options.seeds = list(dict.fromkeys(options.seeds))
    asked = [name for name in ("list", "claims") if getattr(options, name)]
    if asked and (options.target is not None or len(asked) > 1):
        other = repr(options.target) if options.target is not None else "--claims"
        raise ValueError(f"--{asked[0]} is of all tables and figures and stands alone, got {other} besides")
    if options.list:
        listing(options.results)
        return 0
    if options.claims:
        print(page.write(options.results / "claims.md", claims.markdown(options.results)))
        return 0
    target = chosen(options)
    if target.commands:
        return execute(options, target)
    failed = [] if options.pages else train(options, target)
    paths = show(options.target, target, options)
    print("\n".join([*failed, *map(str, paths)]))
    return 1 if failed else 0


def chosen(options: argparse.Namespace) -> Target:
    """The target that is asked for.

    Raises:
      ValueError: it is unknown, or there is nothing to run, at all or at this scale.
    """
    name = options.target
    if name is None:
        raise ValueError(f"TARGET is missing: one of {', '.join(TARGETS)}; --list says more")
    if name not in TARGETS:
        several = [each for each in TARGETS if each.startswith(f"{name}-")]
        if several or name in ("table", "figure"):
            several = several or [each for each in TARGETS if each.startswith(name)]
            raise ValueError(f"{name!r} is several; choose one of {', '.join(several)}")
        raise validation.unknown_name("table or figure", name, TARGETS)
    target = TARGETS[name]
    if target.reason:
        raise ValueError(f"{name} ({target.title}): {target.reason}")
    if target.commands:
        command = " ".join(target.commands[0]).replace("{out}", options.out.name)
        if options.pages:
            raise ValueError(f"{name} has no page of its own: it runs python {command}")
        for option in ("scale", "seeds", "methods", "set", "jobs"):
            if getattr(options, option) != parser().get_default(option):
                raise ValueError(f"--{option} is of tables and figures that train: {name} runs python {command}")
    elif options.scale not in target.cells:
        raise validation.unknown_name(f"scale of {name}", options.scale, target.cells)
    return target


def train(options: argparse.Namespace, target: Target) -> list[str]:
    """Runs all that is not finished; of those that failed, a line each.

    Raises:
      ValueError: a method that the target has not, a dataset that is not prepared, or a method that would end before it
        begins to re-weight, and so be its base.
    """
    cells = present(options, target)
    jobs = [Job(options.target, options.scale, cell, seed, options.set) for seed in options.seeds for cell in cells]
    done = [job for job in jobs if job.finished(options.out)]  # of this command or of another table
    unfinished = [job for job in jobs if job not in done]
    for job in unfinished:
        refuse_idle(job)
    hours = states.hours((job.cell for job in unfinished), options.scale)
    print(
        f"{len(unfinished)} of {len(jobs)} runs to do, about {hours:.1f} hours of one {states.hardware(options.scale)}"
    )
    failed = []
    if done:
        keep(options, done)
    for job, error in finished(unfinished, options.out, options.jobs):
        if error is None:
            keep(options, [job])
        else:
            failed.append(f"failed: {job.folder(options.out)}: {error}")
    return failed


def present(options: argparse.Namespace, target: Target) -> list[Cell]:
    """The cells that are asked for and can be run; what is left out is told.

    Raises:
      ValueError: a method that the target has not, no dataset that is prepared, or weights that are missing.
    """
    cells = target.cells[options.scale]
    methods = list(dict.fromkeys(cell.method for cell in cells))
    for method in options.methods or ():
        if method not in methods:
            raise validation.unknown_name(f"method of {options.target}", method, methods)
    cells = [cell for cell in cells if options.methods is None or cell.method in options.methods]
    cells[0].configured(options.set)  # what is wrong with --set, before all else
    lacking = states.missing(target, options.scale)
    found = [cell for cell in cells if cell.configured().dataset not in lacking]
    if not found:
        raise ValueError(
            f"{options.target} at scale {options.scale} needs {', '.join(lacking)}: "
            f"python -m dsb_jax.data.prepare {lacking[0]} --archive DIR"
        )
    if len(found) < len(cells):
        print(f"{len(cells) - len(found)} cells are left out: {', '.join(lacking)} is not prepared", file=sys.stderr)
    for cell in found:
        config = cell.configured(options.set)
        if config.frozen_norm and config.init_from is None:
            raise ValueError(
                f"{cell.on} begins with ImageNet's weights: --set init_from=FILE; configs/cub2011.py says more"
            )
    return found


def refuse_idle(job: Job) -> None:
    """Raises ValueError if its balancer would never act, and it would be its base by another name."""
    config = job.cell.configured(job.more)
    start = start_epoch(config, inherits=config.init_from is not None)
    if config.balancer != "uniform" and not config.stages and start >= config.epochs > 0:
        raise ValueError(
            f"{job.cell.method} re-weights from epoch {start} on, which {config.epochs} epochs never reach; --methods "
            "leaves it out, or runs it alone with a start_epoch of its own"
        )


def finished(jobs: Sequence[Job], out: pathlib.Path, at_once: int) -> Iterator[tuple[Job, Exception | None]]:
    """Runs, so many at once, each on its share of the CPU's cores, as they end."""
    shares: queue.Queue = queue.Queue()
    for share in cores(at_once):
        shares.put(share)

    def run(job: Job) -> tuple[Job, Exception | None]:
        share = shares.get()
        try:
            runs.run(job, out, share)
        except runs.FailedError as error:
            return job, error
        finally:
            shares.put(share)
        return job, None

    with ThreadPoolExecutor(at_once) as pool:
        ends = [pool.submit(run, job) for job in jobs]
        try:
            for end in tqdm.tqdm(as_completed(ends), total=len(jobs), unit="run", dynamic_ncols=True):
                yield end.result()
        finally:
            pool.shutdown(cancel_futures=True)


def cores(shares: int) -> list[set[int] | None]:
    """The CPU's cores, divided; None for a single share or where a process cannot be kept to some."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if shares == 1 or len(available) < shares:
        return [None] * shares
    return [set(map(int, share)) for share in np.array_split(available, shares)]


def keep(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Puts the results of finished runs into the CSV files."""
    stem = options.results / f"{options.target}-{options.scale}"
    rows = [runs.row(job, options.out) for job in jobs]
    of_classes = [row for job in jobs for row in runs.class_rows(job, options.out)]
    with datasets.locked(options.results):  # another command may be at other seeds
        runs.merge(stem.with_suffix(".csv"), (*runs.FACTS, *runs.MEASURES), rows, runs.KEY)
        runs.merge(stem.with_name(f"{stem.name}-classes.csv"), runs.CLASSES, of_classes, (*runs.KEY, "class"))


def show(name: str, target: Target, options: argparse.Namespace) -> list[pathlib.Path]:
    """Writes the page of what is measured.

    Raises:
      ValueError: nothing is.
    """
    measured = Measured.of(target, name, options.scale, options.results)
    if not measured.rows:
        raise ValueError(f"of {name} at scale {options.scale} nothing is measured in {options.results}")
    return pages.write(measured, options.results)


def execute(options: argparse.Namespace, target: Target) -> int:
    """Runs the commands of a target that trains nothing; the exit code is that of the first that fails.

    Raises:
      ValueError: the files that it reads are not named.
    """
    if target.input and options.input is None:
        raise ValueError(f"{options.target} needs --input: {target.input}")
    lacking = states.missing(target, None)
    possible = [command for command in target.commands if not any(dataset in command for dataset in lacking)]
    if not possible:
        raise ValueError(
            f"{options.target} needs {', '.join(lacking)}: python -m dsb_jax.data.prepare {lacking[0]} --archive DIR"
        )
    for command in target.commands:
        if command not in possible:
            print(f"left out, for its dataset is not prepared: python {' '.join(command)}", file=sys.stderr)
        elif code := runs.execute(
            command, options.out / options.target, options.input and os.path.abspath(options.input)
        ):
            return code
    return 0


def listing(results: pathlib.Path) -> None:
    """Prints all targets."""
    for name, target in tqdm.tqdm(TARGETS.items(), desc="Estimates", leave=False, delay=2, disable=None):
        tqdm.tqdm.write(f"{name}: {target.title} (lines {target.lines} of the paper)")
        for scale in [scale for scale in SCALES if scale in target.cells] or [None]:
            tqdm.tqdm.write(f"  {_described(name, target, scale, results)}")


def _described(name: str, target: Target, scale: str | None, results: pathlib.Path) -> str:
    state = states.state(name, target, scale, results)
    if scale is None:
        return state
    cells = target.cells[scale]
    configs = ", ".join(dict.fromkeys(cell.config for cell in cells))
    hours = states.hours(cells, scale)
    return (
        f"{scale:5}  {len(cells)} cells of configs {configs}; about {hours:,.1f} hours of one {states.hardware(scale)} "
        f"per seed; {state}"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line.Parser(
        prog="python launch/reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("target", nargs="?", metavar="TARGET", help="such as table5 or figure3")
    options.add_argument("--list", action="store_true", help="all targets, and what is measured of them")
    options.add_argument("--claims", action="store_true", help="a page of the paper's claims")
    options.add_argument("--scale", choices=SCALES, default="paper", help="(%(default)s)")
    options.add_argument(
        "--seeds", nargs="+", type=command_line.natural, default=[0, 1, 2], metavar="N", help="(0 1 2)"
    )
    options.add_argument("--methods", nargs="+", metavar="NAME", help="some of the target's; all by default")
    options.add_argument("--set", default="", metavar="KEY=VALUE,…", help="further settings of all runs")
    options.add_argument(
        "--jobs",
        type=command_line.positive_int,
        default=1,
        metavar="N",
        help="runs at once, which share the CPU, and a GPU's memory (1)",
    )
    options.add_argument("--input", metavar="FILES", help="of yours, which some figures read")
    options.add_argument("--pages", action="store_true", help="run nothing")
    options.add_argument("--out", type=pathlib.Path, default="runs/reproduction", metavar="DIR", help="(%(default)s)")
    options.add_argument("--results", type=pathlib.Path, default=RESULTS, metavar="DIR", help="(launch/results)")
    return options


if __name__ == "__main__":
    sys.exit(main())
