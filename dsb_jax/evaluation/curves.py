"""Plots of training through time, as matplotlib figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dsb_jax.evaluation import drawing
from dsb_jax.evaluation.drawing import ACCURACY, FEW_TO_MANY, GREY, HEIGHT, INK, NAMED_CLASSES, SCALE, SMALL, TEXT
from dsb_jax.evaluation.metrics import vectors

# Of many runs; apart for every kind of colour vision when paired with the dashes, and visible on any page.
RUNS = ("#1f78c8", "#d55e00", "#1b8f6a", "#b0509b", "#8a7a1a", GREY)
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))


def training_curves(
    *,
    epochs: ArrayLike,
    loss: ArrayLike,
    accuracy: ArrayLike,
    learning_rate: ArrayLike,
    test_epochs: ArrayLike,
    test_loss: ArrayLike,
    test_accuracy: ArrayLike,
    score_name: str = "accuracy",
) -> Figure:
    """Loss and accuracy in training and on the test set, and the learning rate, by epoch.

    Args:
      epochs: times of the training measurements ``[T]``.
      loss: training loss ``[T]``.
      accuracy: training accuracy ``[T]``, fractions.
      learning_rate: ``[T]``; where all are NaN, there is no curve of it.
      test_epochs: times of the evaluations ``[E]``.
      test_loss: ``[E]``, NaN where not measured.
      test_accuracy: ``[E]``, fractions.
      score_name: what to call these, which may be another measure than the accuracy of training batches.

    Returns:
      The figure: losses above, accuracies below them, the learning rate at the bottom.

    Raises:
      ValueError: if lengths differ.

    Example:
      >>> figure = training_curves(
      ...     epochs=[0.5, 1], loss=[2.3, 1.9], accuracy=[0.1, 0.3], learning_rate=[0.1, 0.05],
      ...     test_epochs=[1], test_loss=[2.0], test_accuracy=[0.25])
      >>> [axes.get_ylabel() for axes in figure.axes]
      ['loss', 'accuracy', 'learning rate']
    """
    epochs, loss, accuracy, learning_rate = vectors(
        epochs=epochs, loss=loss, accuracy=accuracy, learning_rate=learning_rate
    )
    test_epochs, test_loss, test_accuracy = vectors(
        test_epochs=test_epochs, test_loss=test_loss, test_accuracy=test_accuracy
    )
    rates = bool(np.isfinite(learning_rate).any())
    figure, (above, below, *lowest) = drawing.stacked_axes(2 + rates)
    dot, dots = "." if len(epochs) == 1 else "", "o" if len(test_epochs) <= 40 else ""
    dense: dict[str, Any] = {"rasterized": len(epochs) > 5000, "linewidth": 1.3, "marker": dot}
    tests: dict[str, Any] = {"color": ACCURACY, "marker": dots, "markersize": 3.5, "label": "test set"}
    batches: dict[str, Any] = {"color": SCALE, "linestyle": (0, (4, 1.5)), "label": "training batches"}
    above.plot(epochs, loss, **batches, **dense)
    above.plot(test_epochs, test_loss, **tests)
    above.set_ylabel("loss")
    drawing.logarithmic_if_wide(above, "y", np.concatenate([loss, test_loss]))
    drawing.title(above, "Training", legend_lines=1)
    drawing.legend(above)
    below.plot(epochs, accuracy, **batches, **dense)
    below.plot(test_epochs, test_accuracy, **tests)
    drawing.percent(below, np.concatenate([accuracy, test_accuracy]))
    below.set_ylabel("accuracy" if score_name == "accuracy" else f"accuracy;\n{score_name} (test)")
    for axes in lowest:
        axes.plot(
            epochs, learning_rate, color=INK, **(dense | {"rasterized": False})
        )  # ink follows the page, pixels not
        axes.set_ylabel("learning rate")
        axes.set_ylim(0, 1.08 * max(np.nanmax(learning_rate), 1e-12))
    figure.axes[-1].set_xlabel("epoch")
    return figure


def by_class(
    epochs: ArrayLike, values: ArrayLike, *, measure_name: str, counts: ArrayLike, class_names: Sequence[str]
) -> Figure:
    """A measure of each class through training, such as its weight, coloured by its training samples where they differ.

    Args:
      epochs: ``[T]``.
      values: ``[T, C]``, >= 0, NaN where not measured.
      measure_name: what to call the measure.
      counts: training samples ``[C]``.
      class_names: C names, written at the lines' ends where they are few.

    Returns:
      The figure.

    Raises:
      ValueError: if shapes disagree or a value is out of range.

    Example:
      >>> figure = by_class(
      ...     [0, 1], [[1, 1], [0.8, 1.2]], measure_name="class weight", counts=[90, 10], class_names="ab")
      >>> len(figure.axes[0].lines)
      2
    """
    epochs, counts = vectors(epochs=epochs)[0], vectors(counts=counts)[0]
    values = np.asarray(values, np.float64)
    if not len(epochs) or values.shape != (len(epochs), len(counts)):
        wanted = (max(len(epochs), 1), len(counts))
        raise ValueError(f"values must have shape {wanted}, epochs by classes, got {values.shape}")
    if np.isinf(values).any() or (values < 0).any():
        raise ValueError("values must be finite numbers >= 0, or NaN")
    drawing.check_names(class_names, len(counts))
    low = max(counts.min(), 1)
    order = np.argsort(-counts, kind="stable")
    balanced = counts.max() <= low
    norm = None if balanced else LogNorm(low, counts.max())
    colours = [GREY] if norm is None else FEW_TO_MANY(norm(np.maximum(counts[order], low)))

    named = len(counts) <= NAMED_CLASSES
    figure, axes = drawing.figure_and_axes(height=max(HEIGHT, 0.19 * len(counts)) if named else HEIGHT)
    axes.set_prop_cycle(color=colours)
    axes.plot(
        epochs,
        values[:, order],
        linewidth=1.5 if named else 0.7,
        alpha=1.0 if named else 0.5,
        marker="." if len(epochs) == 1 else "",
        rasterized=not named,
    )
    drawing.logarithmic_if_wide(axes, "y", values)
    axes.set_xlabel("epoch")
    axes.set_ylabel(measure_name, parse_math=False)
    drawing.title(axes, f"{measure_name[:1].upper()}{measure_name[1:]} during training")
    if named:
        drawing.label_line_ends(axes, epochs[-1], values[-1], class_names)
    elif not balanced:
        bar = figure.colorbar(ScalarMappable(norm, FEW_TO_MANY), ax=axes)
        drawing.plain_numbers(bar.ax.yaxis)
        bar.ax.tick_params(labelsize=SMALL, color=INK, labelcolor=INK)
        bar.outline.set_visible(False)
        bar.set_label("training samples", color=INK, size=TEXT)
    return figure


def runs(curves: Sequence[tuple[str, ArrayLike, ArrayLike]], *, measure_name: str, percent: bool = False) -> Figure:
    """One measure of several runs by epoch; runs of one name, which differ in their seed, share a colour.

    Args:
      curves: ``(name, epochs [T], values [T])`` of each run.
      measure_name: what to call the measure.
      percent: whether it is a fraction, shown in per cent.

    Returns:
      The figure.

    Raises:
      ValueError: if there is no run, or a curve's lengths differ.

    Example:
      >>> figure = runs(
      ...     [("CE", [1, 2], [0.3, 0.4]), ("DSB-CE", [1, 2], [0.4, 0.5])], measure_name="test accuracy", percent=True)
      >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
      ['CE', 'DSB-CE']
    """
    if not curves:
        raise ValueError("curves must hold one run or more, got none")
    names = list(dict.fromkeys(name for name, _, _ in curves))
    figure, axes = drawing.figure_and_axes(height=HEIGHT + 0.2 * len(names))
    labelled, shown = set(), []
    for name, epochs, values in curves:
        epochs, values = vectors(epochs=epochs, values=values)
        number = names.index(name)
        colour, dashes = RUNS[number % len(RUNS)], _DASHES[number // len(RUNS) % len(_DASHES)]
        label = "_nolegend_" if name in labelled else drawing.short(name, 44)
        dot = "." if len(epochs) == 1 else ""
        axes.plot(epochs, values, color=colour, linestyle=dashes, linewidth=1.3, marker=dot, label=label)
        labelled.add(name)
        shown.append(values)
    everything = np.concatenate(shown)
    if percent:
        drawing.percent(axes, everything)
    else:
        drawing.logarithmic_if_wide(axes, "y", everything)
    axes.set_xlabel("epoch")
    axes.set_ylabel(measure_name)
    columns = 1 if max(map(len, names)) > 18 else 2
    drawing.title(axes, f"{measure_name[:1].upper()}{measure_name[1:]}", legend_lines=-(-len(names) // columns))
    drawing.legend(axes, columns=columns)
    return figure
