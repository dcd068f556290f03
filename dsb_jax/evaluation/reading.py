"""A run's results in sentences that claim no more than the numbers bear."""

import math

import numpy as np

from dsb_jax.evaluation import page
from dsb_jax.evaluation.runs import Run


def sentences(run: Run) -> list[str]:
    """How well the run does, where it fails, and what that goes with."""
    text = _of_retrieval(run) if run.words.trained else _of_classification(run)
    return text + _what_accuracy_follows(run)


def _of_classification(run: Run) -> list[str]:
    tested = run.per_class["test_samples"]
    samples = f"the {np.nansum(tested):,.0f} test samples" if np.isfinite(tested).any() else "the test samples"
    text = [f"{run.results['method']} classifies {run.figures['top1']:.1%} of {samples} correctly."]
    text += _weakest(run, "recognised")
    head, tail = run.figures["head"], run.figures["tail"]
    if math.isfinite(head) and math.isfinite(tail):
        text.append(
            f"Classes with more than 100 training samples reach {head:.1%} on average, "
            f"those with fewer than 20 reach {tail:.1%}."
        )
    return text


def _of_retrieval(run: Run) -> list[str]:
    """Among the first k, or of k = 1 the nearest."""
    key, images = run.words.curve, np.nansum(run.per_class["test_samples"])
    k = int(key.rpartition("_")[2])
    among = "the image nearest to it is" if k == 1 else f"one of the {k} images nearest to it is"
    text = (
        f"With {run.results['method']}, for {run.figures[key]:.1%} of the {images:,.0f} images searched {among} of the "
        "same class."
    )
    return [text, *_weakest(run, "found")]


def _weakest(run: Run, done: str) -> list[str]:
    accuracy = run.scores
    tested = np.flatnonzero(np.isfinite(accuracy))
    if len(tested) < 2:
        return []
    order = tested[np.argsort(accuracy[tested], kind="stable")]
    missed = int((accuracy[tested] == 0).sum())
    if missed > 3:
        return [f"{missed} of the {len(tested)} classes are never {done}."]
    named = [f"{run.class_names[i]} ({accuracy[i]:.1%})" for i in order[: max(1, min(3, len(order) // 2))]]
    listed = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    return [f"The weakest {'class is' if len(named) == 1 else 'classes are'} {listed}."]


def _what_accuracy_follows(run: Run) -> list[str]:
    """Compares the correlations of scores with samples and with scale, as far as the number of classes allows.

    Fisher's z = artanh r has standard error 1/√(C - 3), and the difference of two about √(2 / (C - 3)).
    """
    classes, score = int(np.isfinite(run.scores).sum()), run.words.score
    names = {"samples": f"the number of {run.words.sizes_name}", "scale": "semantic scale"}
    r = run.correlations
    defined = [key for key in names if math.isfinite(r[key])]
    if classes < 4 or not defined:
        why = "there are fewer than four classes" if classes < 4 else "neither correlation is defined"
        return [f"Whether {score} goes with {run.words.sizes_name} or with semantic scale cannot be said: {why}."]

    z = {key: math.atanh(min(abs(r[key]), 1 - 1e-12)) for key in defined}
    error = 1.96 / math.sqrt(classes - 3)
    sentences = []
    for key in defined:
        direction = ("rises" if r[key] > 0 else "falls") + (" slightly with" if abs(r[key]) < 0.3 else " with")
        verb = direction if z[key] > error else "shows no clear relation to"
        sentences.append(f"Class {score} {verb} {names[key]} (r = {page.number(r[key], '{:.2f}')}).")
    for key in [key for key in names if key not in defined]:
        why = "is the same for all classes or was not measured, so its correlation with " + score + " is undefined"
        sentences.append(f"{names[key].capitalize()} {why}.")
    if len(defined) == 2:
        near, far = sorted(names, key=z.__getitem__, reverse=True)
        if z[near] - z[far] > error * math.sqrt(2):
            sentences.append(f"It goes with {names[near]} more closely than with {names[far]}.")
        else:
            sentences.append(f"Which of the two it follows more closely, {classes} classes are too few to say.")
    return sentences
