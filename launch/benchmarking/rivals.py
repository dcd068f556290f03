"""What others use, timed beside what is here: a step of PyTorch, its networks timm's; the search of images in
pytorch-metric-learning, its neighbours FAISS's; and volumes and curvature as Ma et al. published them.
"""

import contextlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

# What each rival needs, and the packages that have it.
PYTORCH = {"torch": "torch", "timm": "timm"}
METRIC_LEARNING = {"torch": "torch", "pytorch_metric_learning": "pytorch-metric-learning", "faiss": "faiss-cpu"}

MANIFOLDS = {"perceptual_manifold_geometry": "perceptual-manifold-geometry"}


def missing(needed: dict[str, str]) -> list[str]:
    """The packages of those a rival needs that are not installed."""
    return [package for name, package in needed.items() if importlib.util.find_spec(name) is None]


_OTHERWISE = {"vit_small": "vit_small_patch16_224"}


def lacks(name: str, size: int) -> str:
    """Why timm has no network to compare with; empty if it has one."""
    import timm

    if _OTHERWISE.get(name, name) not in timm.list_models():
        return f"timm has no {name}"
    if size < 64 and not name.startswith(("resnet", "resnext", "seresnet")):
        return f"of {name} there is no such network for small images in timm"
    return ""


class TorchTraining:
    """Steps of SGD on cross-entropy, on images that are on the device already: channels last and compiled.

    Args:
      name: of the model, timm's.
      num_classes: width of its logits.
      batch_size: of every step.
      size: of the images, square; below 64 the network begins with a 3x3 convolution and without pooling.
      dtype: ``"bfloat16"`` is autocast's.
    """

    def __init__(self, name: str, num_classes: int, batch_size: int, size: int, dtype: str) -> None:
        import timm
        import torch

        self._torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        model = timm.create_model(_OTHERWISE.get(name, name), num_classes=num_classes)
        if size < 64:
            model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
            model.maxpool = torch.nn.Identity()
        model = model.to(self.device, memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        rng = np.random.default_rng(0)
        images = torch.from_numpy(rng.standard_normal((batch_size, 3, size, size), np.float32)).to(self.device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(rng.integers(num_classes, size=batch_size)).to(self.device)
        narrow = torch.autocast(self.device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

        def loss(images, labels):
            with narrow:
                return torch.nn.functional.cross_entropy(model(images), labels)

        self._loss = torch.compile(loss)
        self.repeats = 1

    def __call__(self) -> Any:
        """One step, to its end."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._images, self._labels)
        loss.backward()
        self._optimizer.step()
        if self.device == "cuda":
            self._torch.cuda.synchronize()
        return float(loss.detach())

    def memory(self) -> int | None:
        """The most bytes that tensors took on a GPU; None elsewhere, where PyTorch does not count them."""
        return self._torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def described(self) -> str:
        """Version and device."""
        import timm

        where = (
            self._torch.cuda.get_device_name() if self.device == "cuda" else f"{self._torch.get_num_threads()} threads"
        )
        return f"torch {self._torch.__version__}, timm {timm.__version__} on {where}"


class MetricLearning:
    """The measures of pytorch-metric-learning's ``AccuracyCalculator``, by its default search, which is FAISS's.

    Args:
      embeddings: ``[samples, dim]``, of length 1: it compares by distance.
      labels: classes ``[samples]``.
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        import torch
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        self._torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        measures = "precision_at_1", "r_precision", "mean_average_precision_at_r"
        self._calculator = AccuracyCalculator(measures, k="max_bin_count", device=torch.device(self.device))
        self._arrays = [torch.from_numpy(array).to(self.device) for array in (embeddings, labels)]

    def __call__(self) -> dict[str, float]:
        """The measures, on the host."""
        return self._calculator.get_accuracy(*self._arrays)

    def described(self) -> str:
        """Versions and device."""
        import faiss
        import pytorch_metric_learning

        where = f"{faiss.omp_get_max_threads()} threads" if self.device == "cpu" else self._torch.cuda.get_device_name()
        versions = f"pytorch-metric-learning {pytorch_metric_learning.__version__}, faiss {faiss.__version__}"
        return f"{versions}, torch {self._torch.__version__} on {where}"


class ManifoldVolumes:
    """The volume of every class by the package of Ma et al., a class at a time, as it has no function for several.

    Args:
      points: ``[n, d]``.
      labels: classes ``[n]``.
    """

    def __init__(self, points: np.ndarray, labels: np.ndarray) -> None:
        # The package has two functions of the name, and this is the one that measures volume.
        from perceptual_manifold_geometry.density import calculate_volume

        self._volume, self._points, self._labels = calculate_volume, points, labels

    def __call__(self) -> np.ndarray:
        """The volumes ``[C]`` in bits, infinite where the determinant overflows."""
        points, labels = self._points, self._labels
        return self.of(points[labels == label] for label in range(labels.max() + 1))

    def of(self, classes: Iterable[np.ndarray]) -> np.ndarray:
        """The volumes of classes whose rows are together already."""
        return np.array([self._volume(rows, d=self._points.shape[1])[0] for rows in classes])


def published_curvature(points: np.ndarray, neighbours: int) -> np.ndarray:
    """The algorithm of Ma et al., 2023, as they published it: of every point, and of each of its neighbours again.

    A search for each, and a decomposition each of its neighbours and of the product of both. The angle is of left
    singular vectors and divided by widths; what is wrong with that is no matter of speed.

    Args:
      points: ``[m, d]``.
      neighbours: how many.

    Returns:
      Angles ``[m]``.
    """
    search = NearestNeighbors(n_neighbors=neighbours + 1).fit(points)

    def neighbourhood(row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        near = search.kneighbors(points[row, None], return_distance=False)[0, 1:]
        vectors, widths, _ = linalg.svd(points[near] - points[near].mean(axis=0), full_matrices=False)
        return near, vectors, widths

    def angle(vectors: np.ndarray, widths: np.ndarray, row: int) -> float:
        _, others, their_widths = neighbourhood(row)
        _, cosines, _ = linalg.svd(vectors.T @ others)
        size = np.linalg.norm(widths) * np.linalg.norm(their_widths)
        return np.arccos(np.clip(cosines.sum() / size, -1, 1))

    angles = np.zeros(len(points))
    for row in range(len(points)):
        near, vectors, widths = neighbourhood(row)
        angles[row] = np.mean([angle(vectors, widths, other) for other in near])
    return angles
