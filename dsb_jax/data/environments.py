"""The second environment of invariant feature learning: examples that the model finds hard come more often.

Tang et al., Invariant Feature Learning for Generalized Long-Tailed Classification, 2022.
"""

import numpy as np

from dsb_jax import validation

_KINDS = ("intra", "inter", "inter_intra")

_EASY, _HARD = 0.8, 0.2  # shares of the examples, by the Pareto principle
_FEW = 5  # fewer examples have no easy and hard ones among them
_EXPONENTS = (1.0, 10.0)


def environment_weights(
    probabilities: np.ndarray, labels: np.ndarray, *, kind: str = "intra", scale: float = 4.0
) -> np.ndarray:
    """Weights by which the examples of the second environment are drawn.

    An example's hardness is 1 minus the probability that the model gives to its class, once probabilities are brought
    to [0, 1]. It is raised to the power that makes the hardest fifth about ``scale`` times as likely as the easier four
    fifths, ``log(scale)/log(mean of those / mean of these)``, between 1 and 10.

    Args:
      probabilities: of each example's own class, as the model has it, in [0, 1], ``[n]``.
      labels: of the examples, integers ``[n]``.
      kind: ``"intra"`` compares the examples of a class with each other: all classes are as likely, and of a class with
        fewer than 5 examples all of those; ``"inter"`` compares all with all; ``"inter_intra"`` is the product of both.
      scale: above 1.

    Returns:
      float64 ``[n]``, positive. ``"inter"`` sum to 1 and ``"intra"`` to 1 in every class.

    Raises:
      ValueError: on an unknown kind, a scale of at most 1, shapes that do not fit or probabilities outside [0, 1].

    Example:
      >>> weights = environment_weights(np.array([0.9, 0.8, 0.9, 0.9, 0.1]), np.zeros(5, int))
      >>> [f"{weight:.2f}" for weight in weights]
      ['0.00', '0.11', '0.00', '0.00', '0.89']

    Source: Tang et al., 2022, Sec. 4, and their code. There probabilities are those that training met along the epoch,
    of augmented images; here they are all of one model.
    """
    check_environments(kind, scale)
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if labels.ndim != 1 or probabilities.shape != labels.shape:
        shapes = f"{list(probabilities.shape)} and {list(labels.shape)}"
        raise ValueError(f"probabilities and labels must both have shape [examples], got {shapes}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    weights = np.ones(len(labels))
    if "inter" in kind.split("_"):
        weights *= _by_hardness(probabilities, scale)
    if "intra" in kind.split("_"):
        weights *= _within_classes(probabilities, labels, scale)
    return weights


def check_environments(kind: str, scale: float) -> None:
    """Raises ValueError unless :func:`environment_weights` takes these.

    Example:
      >>> check_environments("intra", 4.0)
    """
    if kind not in _KINDS:
        raise validation.unknown_name("kind of environments", kind, _KINDS)
    if not 1 < scale < np.inf:
        raise ValueError(f"scale of environments must be a finite number > 1, got {scale!r}")


def _within_classes(probabilities, labels, scale):
    weights = np.empty(len(labels))
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    for rows in np.split(order, ends):
        weights[rows] = _by_hardness(probabilities[rows], scale)
    return weights


def _by_hardness(probabilities, scale):
    """Sum 1. The small numbers are those of the code of Tang et al.; no example is out of reach."""
    if len(probabilities) < _FEW:
        return np.full(len(probabilities), 1 / max(len(probabilities), 1))
    above = probabilities - probabilities.min()
    hardness = 1 - above / (above.max() + 1e-9) + 1e-5
    in_order = np.sort(hardness)
    easy, hard = in_order[: int(len(hardness) * _EASY)], in_order[len(hardness) - int(len(hardness) * _HARD) :]
    ratio = hard.mean() / easy.mean() + 1e-5
    weights = hardness ** np.clip(np.log(scale) / np.log(ratio), *_EXPONENTS) + 1e-12
    return weights / weights.sum()
