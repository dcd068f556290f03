"""What volumes tell of the prior: the logits of trained runs less τ times a logarithm, without training.

  python launch/post_hoc.py runs/cifar10_lt/ce-seed0 runs/cifar10_lt/ce-seed1

By volumes it is ``τ·ln Vol``, with ``S' = log2 Vol`` bits; by coding lengths ``τ·ln((m + d)·S')``, as
``dsb.logit_adjustment`` trains; by counts ``τ·ln m``. Volumes are of the training images' features, as the last
checkpoint has them; test accuracy is the mean over classes. A τ that is read off here is chosen by the test split:
choose it by other seeds and datasets than those it is used for.

Source: of counts, Menon et al., Long-tail learning via logit adjustment, 2021; coding lengths are those of Ma et al.,
Segmentation of multivariate mixed data via lossy data coding and compression, 2007; both in their place are ours.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from reproduction import runs

import dsb_jax
from dsb_jax import command_line
from dsb_jax.data import feed
from dsb_jax.evaluation import metrics
from dsb_jax.toolkit.inputs import run_features
from dsb_jax.toolkit.inputs.run_features import TrainedRun
from dsb_jax.training import earlier_runs

TAUS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
PRIORS = ("volumes", "coding_lengths", "counts")
COLUMNS = ("run", "tau", *PRIORS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each τ; the exit code is 0, or 2 after one line on what is wrong."""
    return command_line.answer(lambda: run(arguments))


def run(arguments: Sequence[str] | None) -> None:
    """The command, whose errors are raised."""
    options = command_line.Parser(
        prog="python launch/post_hoc.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("workdirs", nargs="+", metavar="WORKDIR", type=pathlib.Path)
    options.add_argument("--data-dir", metavar="DIR", help="where the dataset lies here; by default as the run has it")
    options.add_argument("--csv", metavar="FILE", type=pathlib.Path, help="a row for every run and τ goes there")
    options.add_argument("--taus", nargs="+", type=float, default=TAUS, metavar="T")
    options = options.parse_args(arguments)
    if wrong := [tau for tau in options.taus if not np.isfinite(tau)]:
        raise ValueError(f"--taus must be finite numbers, got {wrong[0]:g}")
    found = np.array([accuracies(each, options.taus, options.data_dir) for each in options.workdirs])
    if options.csv is not None:
        runs.merge(options.csv, COLUMNS, rows(options.workdirs, options.taus, found), ("run", "tau"))
    print(f"Mean class accuracy (%) of {len(found)} runs, ± standard error")
    print(f"{'τ':>5}", *(f"{name.replace('_', ' '):>14}" for name in PRIORS))
    for tau, of_runs in zip(options.taus, 100 * np.moveaxis(found, 2, 0), strict=True):
        print(f"{tau:5g}", *(f"{_mean_and_error(column):>14}" for column in of_runs.T))


def rows(workdirs: Sequence[pathlib.Path], taus: Sequence[float], found: np.ndarray) -> list[dict[str, str]]:
    """Under ``COLUMNS``, of ``found [runs, priors, taus]``; a run is named by the end of its path."""
    return [
        {"run": "/".join(workdir.parts[-4:]), "tau": f"{tau:g}"}
        | {name: f"{accuracy:.4f}" for name, accuracy in zip(PRIORS, of_tau, strict=True)}
        for workdir, of_run in zip(workdirs, found, strict=True)
        for tau, of_tau in zip(taus, of_run.T, strict=True)
    ]


def _mean_and_error(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{error}"


def accuracies(workdir: pathlib.Path, taus: Sequence[float], data_dir: str | None = None) -> np.ndarray:
    """``[priors, taus]``, by each of ``PRIORS``.

    Raises:
      ValueError: what :func:`run_features.load` refuses, or a run whose features are constant.
    """
    trained, tested = (run_features.load(workdir, split=split, data_dir=data_dir) for split in ("train", "test"))
    classes = len(trained.experiment.counts)
    measured = np.asarray(
        dsb_jax.class_volumes(trained.points().points, trained.labels, classes, epsilon=trained.config.dsb.epsilon)
    )
    if not np.any(measured > 0):
        raise ValueError(f"no class of {workdir} has a volume: features must not be constant")
    of_classes = priors(measured, trained.experiment.counts, trained.points().points.shape[1])
    raw = logits(tested)
    return np.array([[class_mean(raw - tau * prior, tested.labels) for tau in taus] for prior in of_classes])


def priors(volumes: np.ndarray, counts: np.ndarray, dim: int) -> np.ndarray:
    """Logarithms ``[priors, C]``, each of ``PRIORS``; a class without a volume has the smallest, as in the balancer."""
    counts = np.maximum(counts, 1)
    lengths = (counts + dim) * volumes
    known = volumes > 0
    volumes, lengths = (np.where(known, values, values[known].min()) for values in (volumes, lengths))
    return np.stack([np.log(2.0) * volumes, np.log(lengths), np.log(counts)])


def logits(run: TrainedRun) -> np.ndarray:
    """Of all images of a run's split ``[n, C]``, as its last checkpoint has them."""
    model, preprocessing = run.experiment.model, run.experiment.preprocessing
    variables = earlier_runs.variables(run.workdir, run.experiment.shapes, setting="input")
    apply = jax.jit(lambda variables, x: model.apply(variables, preprocessing.evaluation(x), train=False).logits)
    batches = feed.Examples(run.split, run.rows).in_order(run.config.eval_batch_size)
    return np.concatenate([np.asarray(apply(variables, batch["image"]))[batch["mask"]] for batch in batches])


def class_mean(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the share of their examples whose score ``[n, C]`` is the largest."""
    confusion = metrics.confusion_matrix(labels, scores.argmax(axis=1), scores.shape[1])
    return float(np.nanmean(metrics.class_accuracy(confusion)))


if __name__ == "__main__":
    sys.exit(main())
