"""Draws the README's picture of the idea, from the digits that come with scikit-learn.

python launch/docs/idea.py launch/docs/pictures/idea.png
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import dsb_jax
from dsb_jax import toolkit

EACH = 170  # images of every digit, so that numbers of samples tell nothing
COLORS = {0: "#3b6fb6", 8: "#d1622b"}  # two digits that differ much in volume
GREY = "#9a9a9a"


def balanced():
    """As many images of every digit: features ``[n, 64]`` and labels ``[n]``."""
    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([np.flatnonzero(labels == digit)[:EACH] for digit in range(10)])
    return (images[rows] / 16).astype(np.float32), labels[rows].astype(np.int32)


def draw_classes(axes, features, labels, volumes):
    shown = np.isin(labels, list(COLORS))
    plane = PCA(2).fit_transform(features[shown])
    for digit, color in COLORS.items():
        points = plane[labels[shown] == digit]
        axes.scatter(*points.T, s=9, color=color, alpha=0.75, linewidths=0)
        top = points[:, 0].mean(), points[:, 1].max()
        text = f"digit {digit}: {volumes[digit]:.0f} bits"
        axes.annotate(text, top, (0, 6), textcoords="offset points", color=color, ha="center", weight="bold")
    axes.margins(y=0.12)
    axes.set(title=f"Classes of {EACH} images each\nare not equally diverse", xticks=[], yticks=[])
    axes.set_xlabel("two principal components of the pixels")


def draw_growth(axes, features, labels):
    """Volumes as samples are added; the grey line is what counts say."""
    curves = toolkit.marginal(toolkit.points.of(features, labels), seed=0)
    means = np.asarray(curves.mean)  # over draws; [classes, counts]
    for digit, color in COLORS.items():
        axes.plot(curves.counts[digit], means[digit], color=color)
    largest = means[list(COLORS)].max()
    axes.plot([0, EACH], [0, largest], color=GREY, linestyle="--")
    axes.annotate("number of samples", (EACH / 2, largest / 2), (6, -14), textcoords="offset points", color=GREY)
    axes.set(title="Volume saturates\nas samples are added", xlabel="images of a digit", ylabel="volume, bits")


def draw_weights(axes, scales):
    weights = 1 / scales
    weights *= len(weights) / weights.sum()
    axes.bar(range(10), weights - 1, bottom=1, color=[COLORS.get(digit, "#c9c9c9") for digit in range(10)])
    axes.axhline(1.0, color=GREY, linestyle="--")
    axes.set(title="DSB weighs losses by 1 / scale,\nalso of balanced data", xlabel="digit", ylabel="weight")
    axes.set_xticks(range(10))


def main(path):
    features, labels = balanced()
    volumes = dsb_jax.class_volumes(features, labels, 10)
    centers = dsb_jax.class_centers(features, labels, 10)
    scales = np.asarray(dsb_jax.semantic_scales(volumes, centers, alpha=1.0))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    draw_classes(axes[0], features, labels, np.asarray(volumes))
    draw_growth(axes[1], features, labels)
    draw_weights(axes[2], scales)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
