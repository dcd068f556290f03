"""A whole run against one done by hand, its files, and its progress lines."""

import dataclasses
import functools
import itertools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score
from small_run import COUNTS, EXAMPLES, STEPS, cross_entropies, digits, flat, strict_json, to_numpy

from dsb_jax import balancers, data, losses, models, training
from dsb_jax.data import pipeline
from dsb_jax.training import experiment, loop, optimizers, progress, step

# Three epochs, the last two of them weighted.
RUN = {"start_epoch": 1, "log_every": 4, "average_precision": True}
# Rounding grows from step to step where a max or a ReLU switches; a pool of one batch more is ten times as far off.
TOLERANCE = 5e-3
FILES = {
    ".lock",
    "checkpoints",
    "config.json",
    "confusions.npz",
    "dataset.json",
    "environment.json",
    "examples.npz",
    "metrics.jsonl",
    "report.html",
    "results.json",
    "train_indices.npy",
}


class Finished:
    """The files of a run."""

    def __init__(self, path):
        self.path = path
        self.results = strict_json((path / "results.json").read_text())
        self.lines = [strict_json(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        self.training = [line for line in self.lines if "loss" in line]
        self.evaluations = [line for line in self.lines if "test_accuracy" in line]

    def column(self, name):
        return np.array([row[name] for row in self.results["per_class"].values()], np.float64)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "not" / "there" / "yet"
    returned = training.train(digits(**RUN), folder)
    run = Finished(folder)
    assert run.results == strict_json(json.dumps(returned, default=lambda value: value.tolist()))
    return run


@pytest.fixture(scope="module")
def by_hand():
    """The same run without the loop, the step, the pool or the optimizer: a model, a queue, and NumPy."""
    built = experiment.build(digits(**RUN))
    model = models.create("lenet", 10)
    variables = step.init_state(
        model, built.objective, balancers.uniform(10), optax.identity(), jnp.zeros((1, 8, 8, 1)), seed=0
    )
    params = to_numpy(variables.params)
    velocity = jax.tree.map(np.zeros_like, params)

    @jax.jit
    def outputs_of(params, images):
        return model.apply({"params": params}, (images.astype(np.float32) / 255 - 0.305) / 0.376, train=False)

    @jax.jit
    def gradient(params, images, labels, weight):
        def loss(params):
            return jnp.mean(weight * cross_entropies(outputs_of(params, images).logits, labels))

        return jax.value_and_grad(loss)(params)

    def pooled(features):
        return np.asarray(features).reshape(-1, 64, 2).mean(axis=2)

    capacity = 7 * 64  # the multiple of the batch that is nearest to 453 examples
    pool, pool_labels = np.zeros((0, 64)), np.zeros(0, int)
    metrics, weights = [], []
    stream = pipeline.train_batches(built.train, built.indices, 64, seed=0)
    for number, batch in enumerate(itertools.islice(stream, STEPS)):
        images, labels = batch["image"], batch["label"]
        outputs = outputs_of(params, images)
        pool = np.concatenate([pool, pooled(outputs.features)])[-capacity:]
        pool_labels = np.concatenate([pool_labels, labels])[-capacity:]
        if number * 64 >= EXAMPLES:  # from the first batch that lies beyond the first epoch
            volumes = reference.class_volumes(pool, pool_labels, 10)
            inverse = 1 / reference.semantic_scales(volumes, reference.class_centers(pool, pool_labels, 10), 2.0)
            weights.append(10 * inverse / inverse.sum())
        else:
            weights.append(np.ones(10))
        loss, of_params = gradient(params, images, labels, weights[-1][labels].astype(np.float32))
        metrics.append({"loss": loss, "accuracy": np.mean(outputs.logits.argmax(axis=1) == labels)})
        rate = 0.05 * (1 - number / STEPS)
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + np.array(g) + 5e-4 * p, velocity, of_params, params)
        params = jax.tree.map(lambda p, v, rate=rate: p - rate * v, params, velocity)

    def predict(split, rows):
        examples = split.source.__getitems__(rows)
        outputs = outputs_of(params, np.stack([example["image"] for example in examples]))
        return np.asarray(outputs.logits), pooled(outputs.features), split.labels[rows]

    return types.SimpleNamespace(
        metrics=metrics,
        weights=weights,
        test=predict(built.test, np.arange(len(built.test))),
        train=predict(built.train, built.indices),
    )


def test_a_run_leaves_its_files(finished):
    assert {path.name for path in finished.path.iterdir()} == FILES
    assert dict(flat(strict_json((finished.path / "config.json").read_text()))) == {
        key: list(value) if isinstance(value, tuple) else value for key, value in flat(digits(**RUN).to_dict())
    }
    page = (finished.path / "report.html").read_text()
    assert "DSB-CE" in page
    assert "average precision" in page
    assert "of the third of smallest scale" in page


def test_results_hold_what_is_promised(finished):
    results = finished.results
    assert {"top1", "head", "middle", "tail", "per_class", "correlations"} <= results.keys()
    assert list(results["per_class"]) == [str(digit) for digit in range(10)]
    for row in results["per_class"].values():
        assert {"accuracy", "samples", "volume", "scale", "weight"} <= row.keys()
    assert list(results["correlations"]) == ["samples", "effective_number", "interclass", "volume", "scale"]
    assert results["steps"] == STEPS
    assert (results["dataset"], results["model"], results["seed"]) == ("digits", "lenet", 0)
    assert (results["loss"], results["balancer"], results["method"]) == ("cross_entropy", "dsb", "DSB-CE")


def test_results_are_consistent(finished):
    results, accuracy, samples = finished.results, finished.column("accuracy"), finished.column("samples")
    np.testing.assert_array_equal(samples, COUNTS)
    np.testing.assert_array_equal(finished.column("test_samples"), [40] * 10)
    np.testing.assert_allclose(results["top1"], accuracy.mean(), rtol=1e-12)  # as many test images of every class
    assert 0.2 < results["top1"] <= 1  # it learns
    np.testing.assert_allclose(results["head"], accuracy[COUNTS > 100].mean(), rtol=1e-12)
    np.testing.assert_allclose(results["middle"], accuracy[(COUNTS >= 20) & (COUNTS <= 100)].mean(), rtol=1e-12)
    np.testing.assert_allclose(results["tail"], accuracy[COUNTS < 20].mean(), rtol=1e-12)
    thirds = np.split(accuracy[np.argsort(finished.column("scale"))], [3, 6])
    assert list(results["by_scale"].values()) == pytest.approx([third.mean() for third in thirds], rel=1e-12)
    with np.load(finished.path / "confusions.npz") as arrays:
        taken = [arrays["labels"][arrays["predictions"] == label] == label for label in range(10)]
    assert results["precision"] == pytest.approx(np.mean([right.mean() if len(right) else 0 for right in taken]))
    columns = {
        "samples": samples,
        "effective_number": (1 - 0.9999**samples) / (1 - 0.9999),
        "volume": finished.column("volume"),
        "scale": finished.column("scale"),
    }
    for name, column in columns.items():
        np.testing.assert_allclose(results["correlations"][name], np.corrcoef(accuracy, column)[0, 1], atol=1e-6)


def test_the_rows_trained_on_are_kept(finished):
    rows = np.load(finished.path / "train_indices.npy", allow_pickle=False)
    labels = data.load("digits", "train").labels
    np.testing.assert_array_equal(np.bincount(labels[rows]), COUNTS)
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(rows, experiment.build(digits(**RUN)).indices)


def test_results_equal_a_recompute(finished, by_hand):
    logits, _, labels = by_hand.test
    right = logits.argmax(axis=1) == labels
    np.testing.assert_allclose(finished.results["top1"], right.mean(), atol=1.5 / 400)
    test_loss = finished.evaluations[-1]["test_loss"]
    np.testing.assert_allclose(test_loss, np.mean(cross_entropies(logits, labels)), rtol=TOLERANCE)
    per_class = [right[labels == digit].mean() for digit in range(10)]
    np.testing.assert_allclose(finished.column("accuracy"), per_class, atol=1.5 / 40)
    probabilities = np.array(jax.nn.softmax(logits))
    precision = [average_precision_score(labels == digit, probabilities[:, digit]) for digit in range(10)]
    np.testing.assert_allclose(finished.column("average_precision"), precision, atol=0.02)
    np.testing.assert_allclose(finished.results["mean_average_precision"], np.mean(precision), atol=0.01)
    _, features, labels = by_hand.train
    volumes = reference.class_volumes(features, labels, 10)
    centers = reference.class_centers(features, labels, 10)
    np.testing.assert_allclose(finished.column("volume"), volumes, rtol=TOLERANCE)
    np.testing.assert_allclose(
        finished.column("scale"), reference.semantic_scales(volumes, centers, 2.0), rtol=TOLERANCE
    )
    np.testing.assert_allclose(finished.column("weight"), by_hand.weights[-1], rtol=TOLERANCE)
    correlation = np.corrcoef(finished.column("accuracy"), reference.interclass_weights(centers, 2.0))[0, 1]
    np.testing.assert_allclose(finished.results["correlations"]["interclass"], correlation, atol=TOLERANCE)


def test_metrics_have_a_line_per_log_step_and_evaluation(finished):
    assert [line["step"] for line in finished.training] == [*range(4, STEPS, 4), STEPS]
    first_of_epoch = [math.ceil(epoch * EXAMPLES / 64) for epoch in (1, 2, 3)]
    assert [line["step"] for line in finished.evaluations] == first_of_epoch
    assert first_of_epoch[-1] == STEPS
    assert len(finished.lines) == len(finished.training) + len(finished.evaluations)
    assert [line["step"] for line in finished.lines] == sorted(line["step"] for line in finished.lines)
    for line in finished.lines:
        np.testing.assert_allclose(line["epoch"], line["step"] * 64 / EXAMPLES, rtol=1e-12)
    for line in finished.training:
        np.testing.assert_allclose(line["learning_rate"], 0.05 * (1 - (line["step"] - 1) / STEPS), rtol=1e-5)
        assert line["images_per_second"] > 0
    seconds = [line["train_seconds"] for line in finished.training]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    for line in finished.evaluations:
        np.testing.assert_allclose(line["test_accuracy"], np.mean(line["class_accuracy"]), rtol=1e-12)
        assert line["test_loss"] > 0
        assert [len(line[name]) for name in ("class_accuracy", "weights", "volumes", "scales")] == [10] * 4
    assert finished.evaluations[-1]["test_accuracy"] == finished.results["top1"]


def test_logged_metrics_are_means_since_the_line_before(finished, by_hand):
    before = 0
    for line in finished.training:
        window = by_hand.metrics[before : line["step"]]
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(line[name], np.mean([outputs[name] for outputs in window]), rtol=TOLERANCE)
        before = line["step"]


def test_logged_weights_are_1_until_the_epoch_after_start_epoch(finished, by_hand):
    by_epoch = [np.array(line["weights"]) for line in finished.evaluations]
    np.testing.assert_array_equal(by_epoch[0], np.ones(10))  # after the last step of the first epoch
    for line, weights in zip(finished.evaluations[1:], by_epoch[1:], strict=True):
        assert np.ptp(weights) > 0.05
        np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)
        np.testing.assert_allclose(weights, by_hand.weights[line["step"] - 1], rtol=TOLERANCE)
    last_unweighted = finished.evaluations[0]["step"] - 1
    np.testing.assert_array_equal(by_hand.weights[last_unweighted], np.ones(10))
    assert np.ptp(by_hand.weights[last_unweighted + 1]) > 0.05


def test_the_same_seed_gives_the_same_results(finished, tmp_path):
    training.train(digits(**RUN), tmp_path)
    again = Finished(tmp_path)
    assert again.results == finished.results
    timing = {"images_per_second": 0, "train_seconds": 0}
    for line, before in zip(again.lines, finished.lines, strict=True):
        assert line | timing == before | timing


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_finished_run_is_left_as_it_is(finished):
    before = files_of(finished.path)
    assert training.train(digits(**RUN), finished.path) == finished.results
    assert files_of(finished.path) == before


def test_a_workdir_of_another_config_is_refused_and_left_alone(finished):
    before = files_of(finished.path)
    message = r"another config \(dsb.alpha: None -> 1.5, seed: 0 -> 1\); choose another --workdir"
    with pytest.raises(ValueError, match=message):
        training.train(digits(**RUN, seed=1, dsb=ConfigDict({"alpha": 1.5})), finished.path)
    assert files_of(finished.path) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dsb": {"dim": 200}}, r"features have 128 channels, fewer than .*dim = 200"),
        ({"mean": (0.1, 0.2)}, r"mean must be one number per channel \(1\)"),
        ({"mean": (math.inf,)}, "mean must be finite, got"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        training.train(digits(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"by step 3: .* not finite .*there is no checkpoint yet; try a lower"):
        training.train(digits("balancer=uniform,log_every=3", learning_rate=1e9), tmp_path)
    lines = [strict_json(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3]
    assert lines[0]["loss"] is None
    assert "not finite" in lines[0]["diagnosis"]
    assert not (tmp_path / "results.json").exists()


def explodes_late(step):
    """The rate is so high from a step on that parameters overflow."""
    return jnp.where(step < 10, 0.05, 1e30)


def test_trouble_between_log_lines_saves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "schedule", lambda *arguments, **options: explodes_late)
    config = digits(log_every=100)
    with pytest.raises(
        FloatingPointError, match=r"by step 15: the .* the checkpoint of step 8 is kept: --resume=force"
    ):
        training.train(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["8"]
    lines = [strict_json(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "diagnosis" in lines[-1]
    with pytest.raises(FloatingPointError):  # it goes on from there, and is no better for it
        training.train(config, tmp_path)


def test_a_burst_that_stays_finite_is_told_where_it_began(tmp_path, monkeypatch, caplog):
    """The update of step 6 is far too large, so the gradient of step 7 is."""
    monkeypatch.setattr(optimizers, "schedule", lambda *arguments, **options: bursts_once)
    training.train(digits("balancer=uniform,log_every=4"), tmp_path)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert sum("gradient norm" in warning for warning in warnings) == 1
    told = next(warning for warning in warnings if "gradient norm" in warning)
    assert told.startswith("step 7: gradient norm ")
    assert told.endswith("try a lower learning_rate, clip_norm or skip_nonfinite")


def bursts_once(step):
    return jnp.where(step == 5, 30.0, 1e-6)


@pytest.mark.slow
def test_skipped_steps_are_counted_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    cross_entropy = losses.cross_entropy

    @functools.wraps(cross_entropy)
    def broken_for_class_9(logits, labels, **options):
        per_example = cross_entropy(logits, labels, **options)
        return jnp.where(labels == 9, jnp.nan, per_example)

    monkeypatch.setitem(losses._LOSSES, "cross_entropy", broken_for_class_9)
    config = digits("skip_nonfinite=True,log_every=3,balancer=uniform")
    caplog.set_level("INFO", logger="dsb_jax")
    results = training.train(config, tmp_path)
    lines = [strict_json(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    batches = pipeline.train_batches(
        (built := experiment.build(config)).train, built.indices, config.batch_size, seed=config.seed
    )
    bad = [bool((batch["label"] == 9).any()) for batch in itertools.islice(batches, STEPS)]
    assert 0 < sum(bad) < STEPS
    assert results["skipped_steps"] == sum(bad)
    counted = [line.get("skipped", 0) for line in lines if "loss" in line]
    assert counted == [sum(bad[: line["step"]]) for line in lines if "loss" in line]
    assert any("the loss of an image of class '9' is not finite" in message for message in caplog.messages)
    assert f"top-1 {100 * results['top1']:.2f} %, {sum(bad)} of {STEPS} steps left out" in caplog.messages[-1]
    # The optimizer's own count is of the steps that were made, and so is the rate.
    for line in lines:
        if "loss" in line:
            used = 0.05 * (1 - max(line["step"] - line.get("skipped", 0) - 1, 0) / STEPS)
            np.testing.assert_allclose(line["learning_rate"], used, rtol=1e-5)

    monkeypatch.undo()
    longer = digits("skip_nonfinite=False,log_every=3,balancer=uniform,epochs=4")
    training.train(longer, tmp_path, resume="force")
    last = strict_json((tmp_path / "metrics.jsonl").read_text().splitlines()[-2])
    steps = experiment.build(longer).steps
    assert (last["step"], last["skipped"]) == (steps, sum(bad))
    np.testing.assert_allclose(last["learning_rate"], 0.05 * (1 - (steps - sum(bad) - 1) / steps), rtol=1e-5)


def test_what_no_step_can_cure_ends_the_run_though_steps_are_skipped(tmp_path, monkeypatch):
    config = digits("skip_nonfinite=True,log_every=3,balancer=uniform")
    original = loop.Program

    def broken(*parts):
        program = original(*parts)
        program.initial = dataclasses.replace(
            program.initial, params=jax.tree.map(lambda leaf: leaf * jnp.nan, program.initial.params)
        )
        return program

    monkeypatch.setattr(loop, "Program", broken)
    with pytest.raises(FloatingPointError, match="by step 3: the parameter backbone/conv1/bias is not finite"):
        training.train(config, tmp_path)


# Progress.


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_rates_leave_out_evaluation_and_earlier_starts(clock):
    shown = progress.Progress(steps=100, batch_size=32, first=1, seconds=60)
    clock.seconds += 5
    assert shown.rate(11) == 10 * 32 / 5
    clock.seconds += 7
    shown.pause(7)
    clock.seconds += 2
    assert shown.rate(31) == 20 * 32 / 2
    assert shown.seconds == 67
    assert math.isnan(shown.rate(31))


def test_time_to_go_is_as_the_time_gone(clock, caplog):
    shown = progress.Progress(steps=101, batch_size=32, first=1)
    clock.seconds += 30
    shown.pause(10)  # evaluations count: there are more to come
    with caplog.at_level("INFO", logger="dsb_jax"):
        shown.report(26, "loss 0.5000", rate=1234.4)
        clock.seconds += 90
        shown.report(101, "loss 0.2500", rate=math.nan)
    assert caplog.messages == [
        "step 26/101 (25 %) loss 0.5000 | 1234 images/s | ETA 1m30s",
        "step 101/101 (100 %) loss 0.2500 | ETA 0s",
    ]


def test_a_long_pass_says_every_ten_seconds_how_far_it_is(clock, caplog):
    with caplog.at_level("INFO", logger="dsb_jax"):
        for _ in progress.announced(range(40), 40, "Testing"):
            clock.seconds += 4
    assert caplog.messages[0] == "Testing: batch 3/40 (7 %) | ETA 2m28s"
    assert len(caplog.messages) == 13


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.7, "1m00s"), (61, "1m01s"), (3599.6, "1h00m00s"), (90061, "25h01m01s")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
