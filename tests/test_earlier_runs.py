"""What a run takes of another one, and what it refuses."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_run import digits

from dsb_jax import training
from dsb_jax.training import earlier_runs, experiment
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.sharding import make_mesh

PARAMS = {
    "backbone": {"conv1": {"kernel": jnp.full((3, 2), 2.0)}},
    "head": {"kernel": jnp.ones((2, 5)), "bias": jnp.ones(5)},
}
STATE = {"params": PARAMS, "batch_stats": {"backbone": {"bn1": {"mean": jnp.full(2, 7.0)}}}, "average": ()}


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


WANTED = shapes({name: STATE[name] for name in ("params", "batch_stats")})


def save(workdir, state, step=3, **settings):
    config = training.base_config()
    config.update(settings)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, state, {})
    return workdir


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "earlier", STATE)


def test_all_that_is_wanted_is_taken(run, caplog):
    with caplog.at_level(logging.INFO, "dsb_jax"):
        found = earlier_runs.variables(run, WANTED, setting="initial")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found, {name: STATE[name] for name in WANTED}))
    assert f"initial: parameters of {run} at step 3" in caplog.messages


def test_the_latest_and_the_averaged_variables_are_taken(run):
    average = {"params": jax.tree.map(lambda leaf: leaf + 1, PARAMS), "batch_stats": STATE["batch_stats"]}
    save(run, STATE | {"average": average}, step=4)
    found = earlier_runs.variables(run, WANTED, setting="initial")
    np.testing.assert_array_equal(found["params"]["head"]["bias"], np.full(5, 2.0))


def test_what_is_reinitialized_may_have_any_shape_and_what_a_model_lacks_is_left(run, caplog):
    wanted = shapes(
        {"params": {"backbone": PARAMS["backbone"], "head": {"kernel": jnp.ones((2, 9))}}, "batch_stats": {}}
    )
    with caplog.at_level(logging.INFO, "dsb_jax"):
        found = earlier_runs.variables(run, wanted, setting="initial", reinitialize="head/*")
    assert found["params"].keys() == {"backbone"}
    assert found["batch_stats"] == {}
    assert f"params of {run} not taken, which this model lacks: head/bias" in caplog.messages[0]


def test_what_does_not_fit_is_named_from_both_sides(run):
    wanted = shapes({"params": PARAMS | {"head": {"kernel": jnp.ones((2, 9)), "scales": jnp.ones(5)}}})
    with pytest.raises(ValueError, match="do not fit this model") as error:
        earlier_runs.variables(run, wanted, setting="initial")
    assert str(error.value) == (
        f"the parameters of {run} do not fit this model (head/kernel: float32[2, 5] there, float32[2, 9] here, "
        "head/scales: none there, float32[5] here); reinitialize=head/* leaves out its last layer"
    )
    wanted["params"]["backbone"] = wanted["params"]["head"]
    with pytest.raises(ValueError, match="; model, head and objective must be as there, or reinitialize name what"):
        earlier_runs.variables(run, wanted, setting="initial")


def test_they_may_lie_on_several_devices(run):
    sharding = NamedSharding(make_mesh(8), P())
    found = earlier_runs.variables(run, WANTED, setting="initial", sharding=sharding)
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {sharding}


def test_another_run_is_only_read(run):
    file = run / "checkpoints" / "3" / "SHA256SUMS"
    file.write_text(file.read_text().replace("a", "b"))
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match=r"initial: the checkpoint .*/checkpoints/3 is damaged"):
        earlier_runs.variables(run, WANTED, setting="initial")
    assert sorted(run.rglob("*")) == before


def test_a_workdir_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="teacher must be the workdir of a run with a checkpoint: there is none in"):
        earlier_runs.variables(tmp_path, WANTED, setting="teacher")


def test_settings_are_those_of_config_json(tmp_path):
    save(tmp_path / "run", STATE, milestones=(3, 4), epochs=7)
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(told | {"of_another_version": {"a": 1}}))
    config = earlier_runs.at(tmp_path / "run", setting="teacher").config
    assert (config.milestones, config.epochs, config.head, config.dsb.alpha) == ((3, 4), 7, None, None)
    for text, answer in (("{", "Expecting property name"), ("[]", "list")):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=f"teacher must be the workdir of a run, got .*{answer}"):
            earlier_runs.at(tmp_path / "run", setting="teacher")


def test_settings_of_a_run_that_begins_with_another(run, tmp_path):
    here = {"initial": str(run), "epochs": 3}
    for change, answer in (
        (
            {"initial": str(tmp_path / "none")},
            "initial must be the workdir of a run, got .*none': there is no config.json",
        ),
        (
            {"initial": None, "reinitialize": "head/*"},
            "reinitialize=head/\\* is of the parameters of initial or init_from, and neither is set",
        ),
        ({"reinitialize": "heads/*"}, "unknown reinitialize parameter 'heads/\\*'; did you mean 'head/"),
        ({"initial": None, "trainable": " "}, "trainable must name parameters; epochs=0 trains none"),
        ({"initial": None, "epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"epochs": -1}, "epochs must be an integer >= 1, got -1"),
    ):
        with pytest.raises(ValueError, match=answer):
            experiment.build(digits(**here | change))


@pytest.mark.parametrize(
    ("settings", "first_weighted"),
    [
        ({}, 36),  # ⌈5·453/64⌉
        ({"initial": "there"}, 8),
        ({"initial": "there", "reinitialize": "head/*"}, 8),
        ({"initial": "there", "reinitialize": "*"}, 36),
        ({"initial": "there", "start_epoch": 2}, 15),
    ],
)
def test_a_pool_of_inherited_features_is_filled_for_one_epoch(run, settings, first_weighted, monkeypatch):
    seen = []
    monkeypatch.setattr(experiment.balancers, "start_at", lambda step, balancer: seen.append(step) or balancer)
    settings |= {"initial": str(run)} if "initial" in settings else {}
    experiment.build(digits(**{"epochs": 9, "batch_size": 64} | settings))
    assert seen == [first_weighted]


@pytest.mark.slow
def test_a_run_begins_with_the_features_of_another_and_needs_it_only_once(tmp_path):
    state = training.train(digits(epochs=1, tensorboard=False, sample_space=False), tmp_path / "first")
    settings = {"tensorboard": False, "sample_space": False, "initial": str(tmp_path / "first"), "trainable": "head/*"}
    results = training.train(digits(**settings | {"epochs": 1, "reinitialize": "head/*"}), tmp_path / "second")
    assert results["steps"] == state["steps"]
    first, second = (
        earlier_runs.variables(tmp_path / name, experiment.build(digits()).shapes, setting="initial", sharding=None)[
            "params"
        ]
        for name in ("first", "second")
    )
    jax.tree.map(np.testing.assert_array_equal, first["backbone"], second["backbone"])
    assert np.abs(first["head"]["kernel"] - second["head"]["kernel"]).max() > 0
    # Once there is a checkpoint, the run that it began with is needed no more.
    (tmp_path / "first" / "checkpoints").rename(tmp_path / "gone")
    (tmp_path / "second" / "results.json").unlink()
    again = training.train(digits(**settings | {"epochs": 1, "reinitialize": "head/*"}), tmp_path / "second")
    assert again["top1"] == results["top1"]
