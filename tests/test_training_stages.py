"""Stages, as settings and as runs: what follows from a list, and what goes from one stage to the next."""

import json
import logging
import pathlib

import numpy as np
import pytest
from small_run import digits, saved_arrays

from dsb_jax import training
from dsb_jax.training import earlier_runs, experiment, loop, methods, stages
from dsb_jax.training.config import base_config, with_arguments
from dsb_jax.training.earlier_runs import EarlierRun

FAST = {"tensorboard": False, "sample_space": False, "epochs": 1, "log_every": 4, "compilation_cache": None}


def settings(text, **others):
    config = base_config()
    config.stages = text
    config.update(others)
    return config


# Lists.


@pytest.mark.parametrize("name", stages.names())
def test_every_list_is_one_of_settings_that_there_are(name):
    made = stages.chain(settings(name, epochs=90))
    assert len(made) >= 2
    assert made[0].stages == ""
    assert made[-1].balancer == "dsb"
    assert "{}" in stages.label(settings(name))


@pytest.mark.parametrize(
    "name", [*stages.names(), "crt;balancer=dsb;epochs=20", "mine:;epochs=10%,trainable=head/* a/*"]
)
def test_the_settings_of_a_stage_make_the_same_chain_again(name):
    made = stages.chain(settings(name, epochs=90, learning_rate=0.3, warmup_epochs=5.0))
    for number, stage in enumerate(made[1:], start=2):
        again = stages.chain(stage)
        assert [each.to_dict() for each in again] == [each.to_dict() for each in made[:number]]


def test_recipes_of_kang_et_al_and_cao_et_al():
    one, two = stages.chain(settings("crt", epochs=90, learning_rate=0.2, schedule="step", warmup_epochs=5.0))
    assert (one.epochs, one.sampler, one.balancer, one.trainable, one.warmup_epochs) == (
        90,
        "plain",
        "uniform",
        "*",
        5.0,
    )
    assert (two.epochs, two.sampler, two.balancer, two.trainable) == (10, "class_aware", "dsb", "head/*")
    assert (two.reinitialize, two.learning_rate, two.schedule, two.warmup_epochs) == ("head/*", 0.2, "cosine", 0.0)
    made = stages.chain(settings("drw", epochs=200, learning_rate=0.1, balancer="class_balanced"))
    assert [stage.epochs for stage in made] == [160, 20, 20]
    np.testing.assert_allclose([stage.learning_rate for stage in made], [0.1, 0.001, 0.00001])
    assert [stage.balancer for stage in made] == ["uniform", "class_balanced", "class_balanced"]
    assert {stage.sampler for stage in made} == {"plain"}
    assert [stage.sampler for stage in stages.chain(settings("drs"))] == ["plain", "class_balanced", "class_balanced"]
    assert stages.chain(settings("tau_norm"))[1].epochs == 0


def test_what_is_behind_a_name_changes_its_stages():
    one, two = stages.chain(settings("crt;balancer=dsb,epochs=3;epochs=4"))
    assert (one.balancer, one.epochs, two.epochs, two.sampler) == ("dsb", 3, 4, "class_aware")


def test_a_text_may_be_given_behind_the_colon_of_a_config():
    config = with_arguments(base_config(), "stages=(milestones=(1,2),epochs=4;epochs=50%,dsb.alpha=1.5),seed=3")
    one, two = stages.chain(config)
    assert (one.milestones, one.epochs, one.dsb.alpha, one.seed) == ((1, 2), 4, None, 3)
    assert (two.milestones, two.epochs, two.dsb.alpha, two.seed) == ((160, 180), 15, 1.5, 3)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_list_may_be_an_argument_or_an_override_of_the_command(command):
    file = pathlib.Path(__file__).parents[1] / "configs" / "digits_lt.py"
    config, workdir = command(f"--config={file}:stages=lws;balancer=dsb;epochs=3")
    assert [stage.epochs for stage in stages.chain(config)] == [60, 3]
    assert workdir.name == "dsb-lws-ce-seed0"
    config, workdir = command(f"--config={file}", "--config.stages=epochs=4;epochs=2,trainable=head/*")
    assert [(stage.epochs, stage.trainable) for stage in stages.chain(config)] == [(4, "*"), (2, "head/*")]
    assert workdir.name == "dsb-ce-2stages-seed0"


def test_a_run_without_stages_is_its_own_chain():
    config = base_config()
    assert stages.chain(config) == [config]
    assert stages.label(config) == "{}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "DSB-CE"),
        ("crt", "DSB-cRT-CE"),
        ("crt;;balancer=uniform", "cRT-CE"),
        ("lws;;balancer=class_balanced", "CB-LWS-CE"),
        ("drw;loss=focal;loss=focal;loss=focal", "DSB-Focal-DRW"),
        (";epochs=3", "DSB-CE-2stages"),
        ("mine:;epochs=3", "DSB-mine-CE"),
    ],
)
def test_the_name_of_a_method_is_that_of_its_last_stage(text, name):
    config = settings(text)
    assert methods.name(config) == methods.name(stages.chain(config)[-1]) == name


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("crx", "unknown list of stages 'crx'; did you mean 'crt'?"),
        ("epochs=3", "stages must be two or more, separated by ';', got 'epochs=3'"),
        ("crt;;;", "stages 'crt' has 2 stages, got settings of 3"),
        (";epoch=3", "stage 2 of stages: unknown setting 'epoch'; did you mean 'epochs'"),
        (";epochs=many", "stage 2 of stages: epochs must be of type int, got 'many'"),
        (";epochs=x%", "stage 2 of stages: epochs must be a number or a part in %, got 'x%'"),
        (";loss=10%", "stage 2 of stages: loss is no number that 10% could be a part of, but 'cross_entropy'"),
        (";flip=10%", "stage 2 of stages: flip is no number that 10% could be a part of, but False"),
        (";epoch=10%", "stage 2 of stages: unknown setting 'epoch'; did you mean 'epochs'"),
        (";initial=there", "stage 2 of stages: initial cannot be set for one stage: it says where all of them begin"),
        (";stages=crt", "stage 2 of stages: stages cannot be set for one stage"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(text, answer):
    with pytest.raises(ValueError, match=answer.replace("(", r"\(").replace("?", r"\?")):
        stages.chain(settings(text))


# Runs.


@pytest.fixture(scope="module")
def crt(tmp_path_factory):
    """A chain of two short runs on a network with batch statistics, and what was logged."""
    workdir = tmp_path_factory.mktemp("stages") / "crt"
    config = digits(**FAST | {"model": "resnet8", "stages": "crt;;epochs=2", "ema_decay": 0.5})
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("dsb_jax")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    results = training.train(config, workdir)
    logger.setLevel(before)
    logger.removeHandler(handler)
    return config, workdir, results, records


@pytest.mark.slow
def test_stages_are_runs_of_their_own_of_which_the_last_is_the_run(crt):
    config, workdir, results, records = crt
    first = json.loads((workdir / "stages" / "1" / "results.json").read_text())
    assert (first["method"], first["epochs"], results["method"], results["epochs"]) == ("CE", 1, "DSB-cRT-CE", 2)
    assert json.loads((workdir / "results.json").read_text())["top1"] == results["top1"]
    assert (workdir / "report.html").exists()
    told = json.loads((workdir / "config.json").read_text())
    last = stages.chain(config)[-1]
    assert (told["stages"], told["trainable"], told["sampler"]) == (last.stages, "head/*", "class_aware")
    assert f"stage 1 of 2: CE for 1 epochs, in {workdir}/stages/1" in records
    assert f"stage 2 of 2: DSB-cRT-CE for 2 epochs, in {workdir}" in records
    assert f"initial: parameters of {workdir}/stages/1 at step 8" in records


@pytest.mark.slow
def test_what_is_frozen_is_to_the_bit_what_the_stage_before_was_evaluated_with(crt):
    _, workdir, _, _ = crt
    before, after = saved_arrays(workdir / "stages" / "1"), saved_arrays(workdir)
    frozen = [path for path in after if path.startswith(("params/backbone/", "batch_stats/"))]
    assert len(frozen) > 30
    for path in frozen:
        np.testing.assert_array_equal(after[path], before[f"average/{path}"])
        np.testing.assert_array_equal(after[f"average/{path}"], after[path])
    assert np.abs(before["params/backbone/conv1/kernel"] - before["average/params/backbone/conv1/kernel"]).max() > 0
    assert {path for path in after if path.startswith("opt_state") and "backbone" in path} == set()
    assert np.abs(after["params/head/kernel"] - before["average/params/head/kernel"]).max() > 0.01


@pytest.mark.slow
def test_weights_are_in_force_after_the_one_epoch_that_fills_the_pool(crt):
    _, workdir, _, _ = crt
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    of_tests = [line["weights"] for line in lines if "weights" in line]
    assert of_tests[0] == [1.0] * 10
    assert np.ptp(of_tests[1]) > 0


@pytest.mark.slow
def test_a_chain_that_is_finished_is_left_as_it_is_and_another_is_refused(crt):
    config, workdir, results, _ = crt
    (workdir / "stages").rename(workdir / "aside")
    assert training.train(config, workdir)["top1"] == results["top1"]
    assert not (workdir / "stages").exists()
    (workdir / "aside").rename(workdir / "stages")
    for change in (
        {"stages": "crt;;epochs=3"},
        {"learning_rate": 0.02},
        {"stages": "crt;sampler=square_root;epochs=2"},
    ):
        with pytest.raises(ValueError, match="holds a run of another config"):
            training.train(digits(**FAST | config.to_dict() | change), workdir)


@pytest.mark.slow
def test_a_checkpoint_of_a_later_stage_makes_the_earlier_ones_needless(crt):
    config, workdir, _, _ = crt
    chain = [earlier_runs.EarlierRun(workdir / name, config) for name in ("none", "stages/1", ".", "later")]
    assert [loop._begun(chain[:number]) for number in (1, 2, 3, 4)] == [0, 1, 2, 2]


@pytest.mark.slow
def test_tau_normalization_is_an_evaluation_of_the_stage_before(tmp_path):
    workdir = tmp_path / "run"
    (workdir / "stages" / "1").mkdir(parents=True)
    (workdir / "stages" / "1" / "config.json").write_text("{}")  # of a run that is to make room
    config = digits(**FAST | {"stages": "tau_norm", "head_tau": 0.5})
    results = training.train(config, workdir, resume="never")
    assert (workdir / "previous-1" / "stages" / "1" / "config.json").read_text() == "{}"
    assert (results["steps"], results["epochs"], results["method"]) == (0, 0, "DSB-tau-norm-CE")
    before, after = saved_arrays(workdir / "stages" / "1"), saved_arrays(workdir)
    assert "params/head/bias" in before
    assert "params/head/bias" not in after
    for path in (path for path in after if path.startswith("params/")):
        np.testing.assert_array_equal(after[path], before[path])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["test_accuracy"]) for line in lines] == [(0, results["top1"])]
    assert training.train(config, workdir)["top1"] == results["top1"]


def test_a_whole_chain_is_checked_before_its_first_stage_runs(tmp_path):
    for change, answer in (
        ({"stages": "crt;;loss=focl"}, "unknown loss 'focl'"),
        ({"stages": "crt;;trainable=heed/*"}, "unknown trainable parameter 'heed/\\*'; did you mean 'head/bias'"),
        ({"stages": "crt;;reinitialize=heed/*"}, "unknown reinitialize parameter 'heed/\\*'"),
        ({"stages": "lws;;reinitialize=head/bias"}, "head/scales: none there, float32\\[10\\] here"),
        ({"stages": "lws", "loss": "ldam"}, "loss 'ldam' needs cosines"),
        ({"stages": ";model=resnet8"}, "the parameters of the stage before do not fit this model"),
    ):
        with pytest.raises(ValueError, match=answer):
            training.train(digits(**FAST | change), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("stages=ride,objective=mbj+ride", r"set objective themselves, to ride and ride_routing: .* got 'mbj\+ride'"),
        (
            "stages=dive,loss=ldam",
            "set loss themselves, to balanced_softmax and balanced_softmax: loss must be",
        ),
    ],
)
def test_what_no_stage_would_have_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        stages.chain(digits(arguments))
    assert stages.chain(digits("stages=ride,loss=ldam"))[1].loss == "ldam"
    assert stages.chain(digits("stages=crt,objective=ifl,loss=ldam"))[0].objective == "ifl"


def test_routers_begin_anew_and_the_teacher_of_experts_is_not_theirs():
    first, second = stages.chain(digits("stages=ride,loss=ldam,teacher=runs/large"))
    assert (first.teacher, second.teacher) == ("runs/large", None)
    assert (second.reinitialize, second.trainable) == ("routers*", "routers*")


def test_in_a_stage_of_one_epoch_half_of_it_fills_the_pool(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(experiment.balancers, "start_at", lambda step, balancer: seen.append(step) or balancer)
    chain = stages.chain(digits("stages=drw,epochs=10"))
    before = EarlierRun(tmp_path, chain[0])
    for stage in chain[1:]:
        assert stage.epochs == 1
        experiment.build(stage, before=before)
    assert seen == [4, 4]  # ⌈453/64/2⌉
