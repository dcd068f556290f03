"""The training loop: evaluate, save, next batch, step, metrics; then the results."""

import collections
import contextlib
import functools
import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dsb_jax.evaluation import report
from dsb_jax.training import diagnosis, earlier_runs, methods, parameters, pretrained, processes, stages, tasks
from dsb_jax.training import experiment as experiments
from dsb_jax.training import results as final
from dsb_jax.training.checkpoints import Checkpoints, Restored
from dsb_jax.training.config import NEUTRAL, base_config
from dsb_jax.training.earlier_runs import EarlierRun
from dsb_jax.training.events import Events
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.profile import Profile
from dsb_jax.training.program import Program
from dsb_jax.training.progress import Progress, duration
from dsb_jax.training.sharding import everywhere
from dsb_jax.training.termination import SharedTermination, Terminated, Termination, termination
from dsb_jax.training.watchdog import Watchdog
from dsb_jax.training.workdir import Elsewhere, Workdir, read_mark, require_seen

_logger = logging.getLogger(__name__)

# Steps that may be under way while the metrics of those before are written.
_STEPS_BEHIND = 4
_BURST = 1e3  # times the largest mean so far that a gradient's norm has to be for a warning
_EXAMPLES = 24  # training images in the report
_LOCAL = ("data_dir", "compilation_cache")  # settings that every process may have in a way of its own
_SUMMARY = ("weights", "offsets", "volumes", "scales", "rejected", "failed")  # of the balancer's, in metrics.jsonl


def train(config: ConfigDict, workdir: str | os.PathLike[str], *, resume: str = "auto") -> dict[str, Any]:
    """Trains, evaluates and writes all that a run leaves in its workdir.

    A run that was stopped, wherever it was, goes on from its last checkpoint and ends as if it never had been. One
    that is finished is left as it is. Of a run in stages all but the last are runs of their own in ``stages/1``,
    ``stages/2`` … of the workdir.

    Args:
      config: as :func:`dsb_jax.training.base_config` makes it.
      workdir: the folder to write to.
      resume: ``"auto"`` goes on with a run of the same config on the same dataset, ``"force"`` also with one of
        others, and ``"never"`` moves what is there aside and begins anew.

    Returns:
      What ``results.json`` holds.

    Raises:
      ValueError: on a setting that is unknown or does not fit, a workdir that holds another run, or broken data.
      FileNotFoundError: if the dataset is not prepared.
      FloatingPointError: if the loss, the gradient or the weights stop being finite; the last good checkpoint stays.
      Terminated: on SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    processes.require_same("resume", resume)
    for name, value in sorted(config.to_dict().items()):
        if name not in _LOCAL:
            processes.require_same(f"setting {name}", repr(value))
    chain = _stages(processes.everywhere(lambda: stages.chain(config)), pathlib.Path(workdir))
    if len(chain) == 1:
        return _train(config, workdir, resume)
    files = processes.everywhere(lambda: _files(chain[-1].config, workdir, resume))
    if (finished := _finished(files)) is not None:
        return finished
    parts = _begin_chain(chain, files)
    for number in range(processes.of_first(lambda: _begun(chain)), len(chain)):
        stage, of_all = chain[number], f"stage {number + 1} of {len(chain)}"
        _logger.info(
            "%s: %s for %d epochs, in %s", of_all, methods.name(stage.config), stage.config.epochs, stage.workdir
        )
        # What was to be moved aside has been.
        results = _train(stage.config, stage.workdir, "force" if resume == "force" else "auto", parts[number])
    return results


def _stages(configs, workdir):
    """Each as the run that it is."""
    *before, last = configs
    runs = [EarlierRun(workdir / "stages" / str(number), config) for number, config in enumerate(before, start=1)]
    return [*runs, EarlierRun(workdir, last)]


def _begin_chain(chain: Sequence[EarlierRun], files: Workdir | Elsewhere) -> list[Experiment]:
    """Refuses what any stage would refuse, before the first one runs; and makes the workdir that of this run."""
    _configure_jax(chain[0].config)
    parts: list[Experiment] = []
    for run, stage in zip([None, *chain], chain, strict=False):
        parts.append(processes.everywhere(functools.partial(experiments.build, stage.config, before=run)))
    for before, experiment, stage in zip(parts, parts[1:], chain[1:], strict=False):
        processes.everywhere(functools.partial(_require_fit, before, experiment, stage))
    with contextlib.ExitStack() as stack:
        processes.everywhere(lambda: stack.enter_context(files))
        processes.everywhere(files.begin)
    return parts


def _require_fit(before, experiment, stage):
    of_before, of_this = (parameters.shapes_of(part.shapes["params"]) for part in (before, experiment))
    left = parameters.chosen(stage.config.reinitialize, of_this)
    wanted = {path: shape for path, shape in of_this.items() if path not in left}
    earlier_runs.require_fit(of_before, wanted, source="the stage before", setting="initial")


def _begun(chain):
    """The last stage that has a checkpoint, or else the first: those before it are not needed any more."""
    saved = [number for number, stage in enumerate(chain) if Checkpoints(stage.workdir / "checkpoints").steps()]
    return max(saved, default=0)


def _finished(files):
    """The results of a run that is."""
    finished = processes.of_first(lambda: files.results if (files.path / "report.html").exists() else None)
    if finished is not None:
        _logger.info("%s holds this run, finished; --resume=never trains again", files.path)
    return finished


def _train(
    config: ConfigDict, workdir: str | os.PathLike[str], resume: str, experiment: Experiment | None = None
) -> dict[str, Any]:
    """A run, or one stage of several, whose parts are made already."""
    files = processes.everywhere(lambda: _files(config, workdir, resume))
    if (finished := _finished(files)) is not None:
        return finished
    _configure_jax(config)
    profile = Profile(config.profile if processes.is_first() else "", files.path / "profile")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        watchdog = enter(Watchdog(60 * config.watchdog_minutes))
        if experiment is None:
            experiment = processes.everywhere(lambda: experiments.build(config))
        processes.require_same("dataset", repr(experiment.dataset))
        processes.everywhere(lambda: files.require_dataset(experiment.dataset))
        program = Program(config, experiment, _given(config, experiment, files.path / "checkpoints", resume))
        processes.everywhere(lambda: enter(files))
        mark = processes.of_first(lambda: read_mark(files.path))
        processes.everywhere(lambda: require_seen(files.path, mark))
        checkpoints = enter(Checkpoints(files.path / "checkpoints", keep=config.keep_checkpoints))
        restored = None if resume == "never" else _restored(checkpoints, program, experiment)
        processes.everywhere(files.begin)
        events = enter(Events(files.path / "events" if config.tensorboard and processes.is_first() else None))
        run = _Run(config, experiment, program, files, checkpoints, events, watchdog, enter(termination()))
        run.start(restored)
        run.train(enter(profile))
        results = run.finish()
    skipped = f", {results['skipped_steps']} of {results['steps']} steps left out" if results["skipped_steps"] else ""
    _logger.info("%s%s, report: %s", run.task.headline(results), skipped, files.path / "report.html")
    return results


def _given(config, experiment, folder, resume):
    """Variables of earlier runs; none where a checkpoint will take their place, which needs those runs no more."""
    if resume != "never" and processes.of_first(lambda: bool(Checkpoints(folder).steps())):
        return {}
    given: dict[str, Any] = {}
    mesh = experiment.placement and experiment.placement.mesh
    paths = parameters.flat(experiment.shapes["params"]) if experiment.initial is not None else {}
    if paths.keys() - parameters.chosen(config.reinitialize, paths):
        shapes, left = experiment.shapes, config.reinitialize
        given |= earlier_runs.variables(
            experiment.initial.workdir, shapes, setting="initial", reinitialize=left, sharding=everywhere(mesh)
        )
    if config.init_from is not None and experiment.initial is None:  # of several stages in the first
        given |= jax.device_put(pretrained.variables(config, experiment.shapes), everywhere(mesh))
    if experiment.teacher is not None:
        workdir, shapes = experiment.teacher[0].workdir, experiment.teacher_shapes
        given["teacher"] = earlier_runs.variables(workdir, shapes, setting="teacher", sharding=everywhere(mesh))
    return given


def _files(config, workdir, resume):
    if processes.is_first():
        return Workdir(workdir, config, resume=resume, neutral=NEUTRAL, defaults=base_config())
    return Elsewhere(workdir)


def _restored(checkpoints, program, experiment):
    """The last checkpoint, if it is one that the run can go on from."""
    if not processes.of_first(checkpoints.steps):
        return checkpoints.restore(program.initial)  # none, or damaged ones only
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), program.initial)
    for array in jax.tree.leaves(program.initial):
        array.delete()  # two states may not fit
    restored = checkpoints.restore(like)
    if restored is not None and restored.step > experiment.steps:
        raise ValueError(
            f"the checkpoint of step {restored.step} in {checkpoints.folder} lies beyond the run's {experiment.steps} "
            "steps; choose more epochs or another --workdir"
        )
    return restored


def _configure_jax(config):
    if config.compilation_cache is not None:
        if "://" not in config.compilation_cache:  # a bucket is JAX's to reach
            os.makedirs(config.compilation_cache, exist_ok=True)  # JAX only warns of one that cannot be written
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    wanted = "--xla_gpu_deterministic_ops=true"
    if config.deterministic and jax.default_backend() == "gpu" and wanted not in os.environ.get("XLA_FLAGS", ""):
        raise ValueError(f"deterministic needs {wanted} in XLA_FLAGS before JAX starts; dsb_jax.main sees to it")


class _Run:
    """One training run: the state and the clock that move on, and where the records of it go."""

    def __init__(
        self,
        config: ConfigDict,
        experiment: Experiment,
        program: Program,
        files: Workdir | Elsewhere,
        checkpoints: Checkpoints,
        events: Events,
        watchdog: Watchdog,
        termination: Termination | SharedTermination,
    ) -> None:
        self.config, self.experiment, self.program = config, experiment, program
        self.task = tasks.create(config, experiment)
        self.files, self.checkpoints, self.events = files, checkpoints, events
        self.watchdog, self.termination = watchdog, termination
        self.state, self.step = program.initial, 0
        # The last epochs that were; a run without steps is evaluated and saved at its beginning.
        self.measured = self.evaluated = self.saved = 0 if experiment.steps else -1
        self.skipped = 0  # steps left out
        self.norm = math.nan  # the largest mean of gradient norms so far; infinite once one was far above it
        self.window: list[dict[str, Any]] = []  # metrics of the steps since the last line
        self.due: collections.deque[tuple[int, list[dict[str, Any]]]] = collections.deque()  # full windows by last step
        self.tested: tuple[int, Mapping[str, np.ndarray]] | None = None  # the last evaluation's outputs, and its step

    def start(self, restored: Restored | None) -> None:
        """At the first step, or where a checkpoint was saved."""
        clock = restored.clock if restored is not None else {}
        if restored is not None:
            self.step, self.state = restored.step, restored.state
            self.skipped, self.window = clock["skipped"], clock["window"]
            # Of another config an epoch may have more steps than of this one.
            of_clock = (clock.get(name, 0) for name in ("measured", "evaluated", "saved"))
            self.measured, self.evaluated, self.saved = (min(epoch, int(self._epoch())) for epoch in of_clock)
            _logger.info(
                "going on from step %d/%d (epoch %.2f), after %s of training",
                self.step, self.experiment.steps, self._epoch(), duration(clock["train_seconds"]),
            )  # fmt: skip
        self.files.cut_back(clock.get("lines", 0))
        self.files.record_environment(step=self.step)
        self.files.write_indices(self.experiment.indices)
        seconds = clock.get("train_seconds", 0.0)
        self.progress = Progress(self.experiment.steps, self.config.batch_size, first=self.step, seconds=seconds)

    def train(self, profile: Profile) -> None:
        """All steps that are still to do; told to end, it saves first."""
        self.batches = self.program.batches(self.step, self.state.drawn_by)
        try:
            while True:
                self._check()
                self._evaluate_and_save()
                if self.step == self.experiment.steps:
                    return self._write_due_lines()
                batch = next(self.batches)
                profile.before(self.step + 1)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1):
                    self.state, outputs = self.program.train_step(self.state, batch)
                profile.after(self.step + 1, outputs)
                self.step += 1
                self._record(outputs)
        except Terminated:
            try:
                self.checkpoints.wait()
            except OSError as error:  # of the save before: there may be room by now
                _logger.warning("%s", error)
            self._save()
            self.checkpoints.close()
            _logger.info("saved at step %d/%d; the same command goes on from there", self.step, self.experiment.steps)
            raise

    def finish(self) -> dict[str, Any]:
        """Results and report of the final state, which is saved: whatever stops this, it can be done again."""
        outputs = self._test()
        self.files.write_arrays("examples.npz", **self.program.first_images(self.state, _EXAMPLES))
        if processes.is_first():
            for name, arrays in self.task.files(outputs).items():
                self.files.write_arrays(name, **arrays)
        parts = (self.config, self.experiment, self.program, self.state, self.task)
        results = final.results(*parts, outputs, self._check)
        if processes.is_first():
            self.files.write_json("results.json", results)
            report.write(self.files.path)
        return results

    def _check(self):
        self.watchdog.beat()
        self.checkpoints.check()
        self.termination.check()

    def _epoch(self, step=None):
        return self.experiment.epoch(self.step if step is None else step, self.config.batch_size)

    def _evaluate_and_save(self):
        epoch, last, score = int(self._epoch()), self.step == self.experiment.steps, None
        if epoch > self.measured:
            if self.program.follows(epoch):
                self._follow(epoch)
            self.measured = epoch
        if epoch >= self.evaluated + self.config.eval_every or (last and epoch > self.evaluated):
            score = self._evaluate()
            self.evaluated = epoch
        if epoch >= self.saved + self.config.save_every or (last and epoch > self.saved):
            self.saved = epoch
            self._save(score)

    def _record(self, outputs):
        """Keeps a step's metrics. A line is written when steps after it are under way, so that none waits for it."""
        for value in outputs.values():
            value.copy_to_host_async()
        self.window.append(outputs)
        if self.step % self.config.log_every == 0 or self.step == self.experiment.steps:
            self.due.append((self.step, self.window))
            self.window = []
        self._write_due_lines(until=self.step - _STEPS_BEHIND)

    def _write_due_lines(self, until=None):
        while self.due and (until is None or self.due[0][0] <= until):
            step, window = self.due.popleft()
            self._log(step, _fetched(window))

    def _log(self, step, window):
        """The means over a window, for people and programs; a step that went wrong ends the run here."""
        rate, epoch = self.progress.rate(step), self._epoch(step)
        wrong = [text for outputs in window if (text := self._diagnose(outputs))]
        counted = [outputs for outputs in window if outputs["nonfinite_place"] < 0 or not self.config.skip_nonfinite]
        mean = _mean(counted or window)
        if self.config.skip_nonfinite:
            self.skipped += len(wrong)
        # The optimizer counts no step that was left out.
        rate_of_last = float(self.program.learning_rates[max(step - self.skipped - 1, 0)])
        record = {"step": step, "epoch": epoch, **mean, "learning_rate": rate_of_last}
        timing = {"images_per_second": rate, "train_seconds": self.progress.seconds}
        trouble = ({"skipped": self.skipped} if self.skipped else {}) | ({"diagnosis": wrong[0]} if wrong else {})
        self._write(**record, **trouble, **timing)
        text = " ".join(f"{name} {value:.4g}" for name, value in mean.items())
        self.progress.report(step, f"epoch {epoch:.2f} {text}", rate)
        self._watch_norms(step - len(window) + 1, window, mean["gradient_norm"])
        incurable = any(outputs["nonfinite_place"] == diagnosis.INCURABLE for outputs in window)
        if wrong and (incurable or not self.config.skip_nonfinite):
            raise FloatingPointError(f"by step {step}: {wrong[0]}; {self._advice()}")
        if wrong:
            _logger.warning("%d of %d steps were left out: %s", len(wrong), len(window), wrong[0])

    def _watch_norms(self, first, window, mean):
        """Tells, once, of a gradient far above all before it: what comes of it may stay finite for long."""
        for step, outputs in enumerate(window, first):
            if _BURST * self.norm < outputs["gradient_norm"] < math.inf:
                text = (
                    "step %d: gradient norm %.3g, where %.3g was the largest mean before; unless the loss returns, %s"
                )
                _logger.warning(text, step, outputs["gradient_norm"], self.norm, self._advice())
                self.norm = math.inf
        self.norm = float(np.fmax(self.norm, mean))

    def _diagnose(self, outputs):
        return diagnosis.describe(outputs, self.experiment.class_names, self.state.params, self.state.batch_stats)

    def _advice(self):
        self.checkpoints.wait()
        steps, change = self.checkpoints.steps(), "a lower learning_rate, clip_norm or skip_nonfinite"
        if not steps:
            return f"there is no checkpoint yet; try {change}"
        return f"the checkpoint of step {steps[-1]} is kept: --resume=force goes on from it with {change}"

    def _write(self, **record):
        self.files.log(**record)
        self.events.write(record["step"], record)

    def _follow(self, epoch):
        """Tells the balancer how well each class is recognised by now, and draws by what the model has become."""
        jax.block_until_ready(self.state)  # steps still under way are training time
        begin, before = time.perf_counter(), self.state.drawn_by
        self.state = self.program.followed(self.state, epoch, self._check)
        if self.state.drawn_by is not before:
            self.batches = self.program.batches(self.step, self.state.drawn_by)
        self.progress.pause(time.perf_counter() - begin)

    def _evaluate(self):
        """How well the model does, and what the balancer makes of the classes."""
        self._write_due_lines()
        jax.block_until_ready(self.state)  # steps still under way are training time
        begin = time.perf_counter()
        measured = self.task.measured(self._test())
        summary = jax.device_get(self.program.summary(self.state.balancing))
        balancing = {name: summary[name] for name in _SUMMARY if name in summary}
        self._write(step=self.step, epoch=self._epoch(), **measured, **balancing)
        _logger.info("epoch %.2f: %s", self._epoch(), self.task.text(measured))
        self.progress.pause(time.perf_counter() - begin)
        return self.task.score(measured)

    def _test(self):
        """The task's outputs of the test examples, computed once per step of training."""
        if self.tested is None or self.tested[0] != self.step:
            self.tested = self.step, self.task.outputs(self.program, self.state, self._check)
        return self.tested[1]

    def _save(self, score=None):
        """State and clock, if the steps that no line has yet went well."""
        self._write_due_lines()
        self.window = _fetched(self.window)
        if not self.config.skip_nonfinite and any(map(self._diagnose, self.window)):
            self._log(self.step, self.window)  # raises
        begin = time.perf_counter()
        clock = {
            "measured": self.measured,
            "evaluated": self.evaluated,
            "saved": self.saved,
            "skipped": self.skipped,
            "window": self.window,
            "lines": self.files.lines,
            "train_seconds": self.progress.seconds,
        }
        self.checkpoints.save(self.step, self.state, clock, score=score)
        self.progress.pause(time.perf_counter() - begin)


def _mean(window):
    """Of every metric that has one."""
    names = [name for name in window[0] if name not in diagnosis.NAMES]
    return {name: float(np.mean([outputs[name] for outputs in window])) for name in names}


def _fetched(window):
    """Metrics as numbers of Python, exactly as the device has them."""
    return [{name: np.asarray(value).item() for name, value in outputs.items()} for outputs in jax.device_get(window)]
