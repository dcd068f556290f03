"""Retrieval: of every test image the nearest others are looked up, which should be of its class."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import dsb_jax
from dsb_jax.evaluation import metrics, retrieval
from dsb_jax.training import spaces
from dsb_jax.training.classification import by_name
from dsb_jax.training.experiment import Experiment
from dsb_jax.training.program import Program
from dsb_jax.training.progress import announced
from dsb_jax.training.step import TrainState

_logger = logging.getLogger(__name__)

_QUERIES = 12  # in the report, half of them answered rightly where there are as many
_NEIGHBORS = 5  # shown of each
_MAPPED = 1000  # images on the map, …
_MAPPED_CLASSES = 16  # … and classes, which must be told apart by colour
_PERPLEXITY = 30.0


class Retrieval:
    """What of a model's embeddings of the test images is measured, kept and told.

    Args:
      config: the run's settings.
      experiment: its parts.
    """

    def __init__(self, config: ConfigDict, experiment: Experiment) -> None:
        self._experiment, self._test = experiment, experiment.test
        self._ks, self._seed = tuple(sorted(set(config.retrieval.ks))), config.seed
        self._dsb, self._alpha = config.dsb, experiment.alpha

    def outputs(self, program: Program, state: TrainState, check: Callable[[], None]) -> Mapping[str, Any]:
        """Embeddings of the test examples as ``features``, and as ``found`` what a search with each of them has; see
        :class:`dsb_jax.evaluation.Found`. ``check`` is called before every batch and block.
        """
        outputs = program.test(state, ("features",), check)

        def progress(blocks, total):
            for block in announced(blocks, total, "Searching"):
                check()
                yield block

        found = retrieval.measure(outputs["features"], self._test.labels, self._ks, progress=progress)
        return outputs | {"found": found}

    def measured(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a line of ``metrics.jsonl`` has of them."""
        found = outputs["found"]
        recall = {f"recall_at_{k}": value for k, value in found.recall_at_k.items()}
        return recall | {"map_at_r": found.map_at_r, "r_precision": found.r_precision}

    def score(self, measured: Mapping[str, Any]) -> float:
        """What the best checkpoint has most of."""
        return measured[f"recall_at_{self._ks[0]}"]

    def text(self, measured: Mapping[str, Any]) -> str:
        """A line of the log."""
        recall = ", ".join(f"{k}: {measured[f'recall_at_{k}']:.4f}" for k in self._ks)
        return f"recall at {recall}; MAP@R {measured['map_at_r']:.4f}"

    def headline(self, results: Mapping[str, Any]) -> str:
        """What ``results.json`` comes down to."""
        k = self._ks[0]
        return f"recall@{k} {100 * results[f'recall_at_{k}']:.2f} %, NMI {100 * results['nmi']:.2f} %"

    def results(
        self,
        outputs: Mapping[str, Any],
        trained: Mapping[str, np.ndarray],
        training_spaces: Callable[[], Mapping[str, Mapping[str, Any]]],
    ) -> dict[str, Any]:
        """What ``results.json`` has of them: also how recall of a class goes with its scale among those searched."""
        del training_spaces  # no test class is in them
        test, embeddings = self._test, outputs["features"]
        samples = np.bincount(test.labels, minlength=test.num_classes)
        pooled = np.asarray(dsb_jax.pool_features(embeddings, self._dsb.dim))  # as the balancer sees them
        searched = spaces.space(pooled, test.labels, test.num_classes, epsilon=self._dsb.epsilon)
        measures, recall = spaces.measures(searched, self._alpha), self._class_recall(outputs["found"])
        of_searched = {
            "recall": recall,
            "test_samples": samples,
            "volume": measures["volume"],
            "scale": measures["scale"],
        }
        of_trained = {name: trained[name] for name in ("samples", "volume", "scale", "weight")}
        _logger.info("Clustering %d embeddings", len(test))
        clusters = retrieval.cluster(embeddings, int((samples > 0).sum()), seed=self._seed)
        return {
            **self.measured(outputs),
            "nmi": retrieval.nmi(test.labels, clusters),
            "per_class": by_name(test.class_names, of_searched),
            "training_classes": by_name(self._experiment.class_names, of_trained),
            "correlations": metrics.correlations(
                recall,
                samples=samples,
                effective_number=np.asarray(dsb_jax.effective_number(samples)),
                **measures,
            ),
            "correlations_by_space": {"searched": metrics.correlations_by_alpha(recall, **searched)},
        }

    def files(self, outputs: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        """Arrays by file: in ``retrieval.npz`` some queries with what is nearest to them, and a map of embeddings.

        ``labels`` int32 ``[Q, 1 + K]`` and ``images`` uint8 ``[Q, 1 + K, height, width, channels]``, the query first;
        ``map`` float32 ``[n, 2]``, t-SNE of embeddings of some classes, and ``map_labels`` int32 ``[n]``.
        """
        embeddings, labels = outputs["features"], self._test.labels
        chosen = _shown_queries(outputs["found"].first == 1, labels)
        near, _ = retrieval.neighbors(embeddings, min(_NEIGHBORS, len(labels) - 1), queries=chosen)
        rows = np.column_stack([chosen, near])
        images = [[example["image"] for example in self._test.source.__getitems__(row)] for row in rows]
        mapped = _mapped(self._class_recall(outputs["found"]), labels, self._seed)
        points = _map(embeddings[mapped], self._seed)
        arrays = {"map": points, "map_labels": labels[mapped][: len(points)]}
        return {"retrieval.npz": arrays | {"labels": labels[rows], "images": np.asarray(images, np.uint8)}}

    def _class_recall(self, found):
        """Recall at the smallest k of every class, NaN where there is no image of it."""
        labels, classes = self._test.labels, self._test.num_classes
        hits = np.bincount(labels, found.hits(self._ks[0]), minlength=classes)
        samples = np.bincount(labels, minlength=classes)
        return np.divide(hits, samples, out=np.full(classes, np.nan), where=samples > 0)


def _shown_queries(right, labels):
    """Rows of queries to show: right ones, then wrong ones, as far apart in the order of classes as may be."""
    order = np.argsort(labels, kind="stable")
    kinds = [order[right[order]], order[~right[order]]]
    half = _QUERIES // 2
    numbers = [min(len(kind), max(half, _QUERIES - len(other))) for kind, other in zip(kinds, kinds[::-1], strict=True)]
    even = [
        kind[np.linspace(0, len(kind) - 1, number).astype(int)] for kind, number in zip(kinds, numbers, strict=True)
    ]
    return np.concatenate(even)


def _mapped(recall, labels, seed):
    """Rows of the map: images of some classes, from the one of the best recall to that of the worst."""
    classes = np.argsort(-recall, kind="stable")[: int(np.isfinite(recall).sum())]
    classes = classes[np.unique(np.linspace(0, len(classes) - 1, _MAPPED_CLASSES).astype(int))]
    rows = np.flatnonzero(np.isin(labels, classes))
    return np.sort(np.random.default_rng(seed).permutation(rows)[:_MAPPED])


def _map(embeddings, seed):
    """t-SNE of embeddings, float32 ``[n, 2]``, or of too few to have neighbours none."""
    from sklearn.manifold import TSNE  # takes a second to import, and not every run is of retrieval
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(embeddings) - 1) / 3)
    if perplexity < 1:
        return np.zeros((0, 2), np.float32)
    _logger.info("Mapping %d embeddings", len(embeddings))
    estimator = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed)
    with threadpool_limits(1):  # as for clusters
        points = estimator.fit_transform(embeddings)
    return np.asarray(points, np.float32)
