"""DiVE against the official numbers, and a teacher in a run of its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import digits, saved_arrays

from dsb_jax import losses, models, objectives, training
from dsb_jax.objectives import Dive, Supervised, total_loss
from dsb_jax.objectives.dive import virtual_examples
from dsb_jax.training import earlier_runs, experiment

TOLERANCE = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-10}
RUN = {"tensorboard": False, "sample_space": False, "epochs": 1, "log_every": 4}


def dive(loss, **options):
    return Dive(Supervised(loss), teacher=lambda variables, images: models.Outputs(variables, images), **options)


def total(objective, logits, taught, labels, weights):
    outputs = models.Outputs(logits, jnp.ones((len(labels), 2), logits.dtype))
    batch = {"image": jnp.ones((len(labels), 2), logits.dtype), "label": labels}
    state = objective.init(jax.random.key(0), {"teacher": taught}, outputs)
    result = objective(lambda images: outputs, batch, state, jax.random.key(0))
    return total_loss(result.terms, weights), result


@pytest.mark.parametrize("name", ["dive_a", "dive_b"])
def test_it_is_the_official_one(golden, dtype, name, variant):
    file = golden(name)
    labels = jnp.asarray(file["labels"].astype(np.int32))
    base = {"BalancedSoftmaxCE": "balanced_softmax", "CrossEntropy": "cross_entropy"}[str(file["base_loss"])]
    power = float(file["power"]) if file["power_norm"] else 1.0
    numbers = {"alpha": float(file["alpha"]), "temperature": float(file["temperature"]), "power": power}
    objective = dive(losses.create(base, counts=file["counts"]), **numbers)
    logits, taught = (jnp.asarray(file[f"logits_{who}"], dtype) for who in ("student", "teacher"))

    def loss(logits, taught):
        return total(objective, logits, taught, labels, jnp.ones(10, dtype))[0]

    value, (gradient, of_teacher) = variant(jax.value_and_grad(loss, (0, 1)))(logits, taught)
    options = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(value, file["loss"], **options)
    np.testing.assert_allclose(gradient, file["grad_logits_student"], **options)
    np.testing.assert_array_equal(of_teacher, np.zeros_like(of_teacher))


def test_class_weights_multiply_the_loss_of_the_label_alone():
    rng = np.random.default_rng(0)
    logits, taught = (jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) for _ in range(2))
    labels, weights = jnp.array([0, 1, 2, 0, 1, 2]), jnp.array([0.5, 1.0, 4.0])
    objective = dive(losses.create("cross_entropy"), alpha=0.25, temperature=2.0, power=0.5)
    value, result = total(objective, logits, taught, labels, weights)
    of_label = np.mean(np.asarray(weights)[labels] * losses.cross_entropy(logits, labels))
    q = np.exp(np.float64(taught) / 2.0) ** 0.5
    q /= q.sum(1, keepdims=True)
    p = np.exp(np.float64(logits) / 2.0)
    p /= p.sum(1, keepdims=True)
    divergence = 4.0 * np.mean(np.sum(q * np.log(q / p), axis=1))
    np.testing.assert_allclose(value, 0.75 * of_label + 0.25 * divergence, rtol=1e-5)
    assert [term.labels is None for term in result.terms] == [False, True]
    agreement = np.mean(np.argmax(logits, 1) == np.argmax(taught, 1))
    np.testing.assert_allclose(result.metrics["agreement"], agreement, rtol=1e-6)


def test_it_is_finite_where_the_teacher_is_sure():
    logits, taught = jnp.array([[500.0, -500.0]]), jnp.array([[-500.0, 500.0]], jnp.bfloat16)

    def loss(logits):
        return jnp.sum(virtual_examples(logits, taught, temperature=1.0, power=1.0))

    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, 1000.0, rtol=1e-2)
    assert np.isfinite(gradient).all()
    assert virtual_examples(logits.astype(jnp.bfloat16), taught, temperature=1.0, power=1.0).dtype == jnp.float32


def test_the_teachers_variables_are_an_argument_and_no_constant():
    objective = dive(losses.create("cross_entropy"))
    logits, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
    outputs, batch = models.Outputs(logits, jnp.ones((1, 2))), {"image": jnp.ones((1, 2)), "label": labels}
    compiled = jax.jit(lambda state: objective(lambda images: outputs, batch, state, jax.random.key(0)).terms[1].losses)
    one, other = (compiled(objective.init(jax.random.key(0), {"teacher": logits * s}, outputs)) for s in (1.0, -1.0))
    assert compiled._cache_size() == 1
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"alpha": 1.5}, r"alpha must be .* in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"power": -1.0}, "power must be a finite number > 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, answer):
    with pytest.raises(ValueError, match=answer):
        dive(losses.create("cross_entropy"), **options)
    assert "dive" in objectives.names()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dive") / "run"
    return workdir, training.train(digits(**RUN | {"stages": "dive", "start_epoch": 0}), workdir)


@pytest.mark.slow
def test_the_stage_before_is_the_teacher_and_the_student_begins_anew(chain):
    workdir, results = chain
    teacher, student = saved_arrays(workdir / "stages" / "1"), saved_arrays(workdir)
    assert results["method"] == "DSB-DIVE-BS"
    for path in (path for path in teacher if path.startswith("params/")):
        np.testing.assert_array_equal(student[f"objective/teacher/{path}"], teacher[path])
        assert np.abs(student[path] - teacher[path]).max() > 1e-4
    config = json.loads((workdir / "config.json").read_text())
    assert (config["teacher"], config["objective"], config["loss"]) == ("previous", "dive", "balanced_softmax")


@pytest.mark.slow
def test_a_teacher_is_a_workdir_whose_model_fits(chain, tmp_path):
    workdir, _ = chain
    settings = RUN | {"objective": "dive", "teacher": str(workdir / "stages" / "1")}
    built = experiment.build(digits(**settings))
    assert built.teacher[0].config.loss == "balanced_softmax"
    for change, answer in (
        ({"teacher": None}, "objective 'dive' learns from a teacher: teacher must be the workdir of a run"),
        ({"teacher": str(tmp_path)}, "teacher must be the workdir of a run, got .*: there is no config.json"),
        ({"teacher": "previous"}, "teacher=previous is the stage before; of a run without one, teacher is a workdir"),
        ({"std": (0.5,)}, r"was trained on images with std=\(0.376,\), here std is \(0.5,\)"),
    ):
        with pytest.raises(ValueError, match=answer):
            experiment.build(digits(**settings | change))
    shapes = {"params": {"head": {"kernel": jax.ShapeDtypeStruct((128, 11), "float32")}}}
    with pytest.raises(ValueError, match=r"head/kernel: float32\[128, 10\] there, float32\[128, 11\] here\)$"):
        earlier_runs.variables(workdir, shapes, setting="teacher")
