"""Runs that begin with PyTorch's weights."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_run import digits, saved_arrays

from dsb_jax import models, training
from dsb_jax.training import experiment, loop, pretrained, stages

FAST = {"model": "resnet8", "tensorboard": False, "sample_space": False, "epochs": 1, "learning_rate": 1e-9}


@pytest.fixture(scope="module")
def weights():
    """Of a network for colour images of 7 classes."""
    variables = models.create("resnet8", 7).init(jax.random.key(5), jnp.zeros((1, 8, 8, 3)), train=False)
    return models.to_torch("resnet8", jax.tree.map(lambda leaf: leaf + 0.1, variables))


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    save_file(weights, path)
    return path


def variables(file, arguments="", **settings):
    config = digits(arguments, init_from=str(file), **FAST | settings)
    return pretrained.variables(config, experiment.build(config).shapes)


def test_grey_images_and_other_classes_take_all_but_the_last_layer(weights, file, caplog):
    with caplog.at_level(logging.INFO, "dsb_jax"):
        found = variables(file)
    assert found["params"].keys() == {"backbone"}
    kernel = found["params"]["backbone"]["layer2_0"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, weights["layer2.0.conv2.weight"].transpose(2, 3, 1, 0))
    grey = found["params"]["backbone"]["conv1"]["kernel"][:, :, 0]
    np.testing.assert_allclose(grey, weights["conv1.weight"].sum(1).transpose(1, 2, 0), rtol=1e-6)
    np.testing.assert_array_equal(found["batch_stats"]["backbone"]["bn1"]["var"], weights["bn1.running_var"])
    (told,) = (record.message for record in caplog.records if "init_from" in record.message)
    assert told == (
        f"init_from={file}: 35 tensors loaded; initialised anew: head/bias, head/kernel; left over: linear.bias, "
        "linear.weight"
    )


def test_an_embedding_begins_anew_above_a_backbone_that_is_loaded(file, caplog):
    with caplog.at_level(logging.INFO, "dsb_jax"):
        found = variables(file, embedding=4, task="retrieval")
    assert found["params"].keys() == {"backbone"}
    (told,) = (record.message for record in caplog.records if "init_from" in record.message)
    assert "initialised anew: embedding/output/bias, embedding/output/kernel, head/bias, head/kernel;" in told


def test_weights_for_blue_green_and_red_are_turned_round(tmp_path):
    made = models.create("resnet8", 10).init(jax.random.key(5), jnp.zeros((1, 8, 8, 3)), train=False)
    save_file(models.to_torch("resnet8", made), tmp_path / "bgr.safetensors")
    shapes = jax.eval_shape(lambda: made)
    plain, turned = (
        pretrained.variables(digits(init_from=str(tmp_path / "bgr.safetensors"), init_bgr=bgr, **FAST), shapes)
        for bgr in (False, True)
    )
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = models.create("resnet8", 10)
    expected = model.apply(plain, images[..., ::-1], train=False).logits
    np.testing.assert_allclose(model.apply(turned, images, train=False).logits, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(model.apply(plain, images, train=False).logits - expected).max() > 1e-3


def test_a_head_of_the_same_form_is_taken(tmp_path):
    made = models.create("resnet8", 10).init(jax.random.key(5), jnp.zeros((1, 8, 8, 1)), train=False)
    save_file(models.to_torch("resnet8", made), tmp_path / "ten.safetensors")
    found = variables(tmp_path / "ten.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found["params"], dict(made["params"]))
    found = variables(tmp_path / "ten.safetensors", reinitialize="head/* backbone/conv1/*")
    assert "head" not in found["params"]
    assert "conv1" not in found["params"]["backbone"]
    found = variables(tmp_path / "ten.safetensors", "loss=ldam")  # on cosines, without a bias
    np.testing.assert_array_equal(found["params"]["head"]["kernel"], made["params"]["head"]["kernel"])


def test_a_run_begins_with_them_and_balances_after_one_epoch(weights, file, tmp_path, monkeypatch):
    seen = []
    start_at = experiment.balancers.start_at
    monkeypatch.setattr(
        experiment.balancers, "start_at", lambda step, balancer: seen.append(step) or start_at(step, balancer)
    )
    training.train(digits(init_from=str(file), weight_decay=0.0, **FAST | {"epochs": 2}), tmp_path / "run")
    assert seen == [8]  # ⌈453/64⌉
    kernel = saved_arrays(tmp_path / "run")["params/backbone/layer3_0/conv1/kernel"]
    np.testing.assert_allclose(kernel, weights["layer3.0.conv1.weight"].transpose(2, 3, 1, 0), atol=1e-6)
    # A run that has a checkpoint needs the file no more.
    config = digits(init_from=str(tmp_path / "gone.safetensors"), **FAST)
    built = experiment.build(config)
    assert loop._given(config, built, tmp_path / "run" / "checkpoints", "auto") == {}


def test_what_does_not_fit_is_one_clear_error(weights, file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:5000])
    more = tmp_path / "more.safetensors"
    save_file(weights | {"layer4.0.conv1.weight": np.zeros((1, 1, 3, 3), np.float32)}, more)
    for source, change, answer in (
        (file, {"model": "resnet20"}, r"holds no weights of model=resnet20 \(layer1.1.bn1.running_mean: none"),
        (file, {"model": "resnet18", "stem": "cifar"}, "holds no weights of model=resnet18"),
        (more, {}, r"holds no weights of model=resnet8 \(layer4.0.conv1.weight: no part of the model\)"),
        (cut, {}, "is no file of safetensors that can be read"),
        (tmp_path / "none.safetensors", {}, "is no file of safetensors that can be read"),
        (
            file,
            {"objective": "ride"},
            "of objective=ride has besides experts_0, experts_1, experts_2: init_from must be",
        ),
        (file, {"model": "lenet"}, "there is no lenet of PyTorch's"),
        (file, {"initial": "runs/ce"}, "initial and init_from both say where to begin"),
        (file, {"reinitialize": "haed/*"}, r"unknown reinitialize parameter 'haed/\*'; did you mean 'head/"),
    ):
        with pytest.raises(ValueError, match=answer):
            variables(source, **change)


def test_what_is_reinitialized_takes_its_statistics_along(file):
    found = variables(file, reinitialize="backbone/bn1/*")
    assert "bn1" not in found["params"]["backbone"]
    assert "bn1" not in found["batch_stats"]["backbone"]
    assert variables(file, reinitialize="*") == {}
    assert (
        "layer1_1" not in variables(file, model="resnet20", reinitialize="backbone/layer*_[12]/*")["params"]["backbone"]
    )


@pytest.mark.slow
def test_other_names_and_losses_without_a_bias_leave_the_last_layer_over(tmp_path):
    model = models.create("bn_inception", 7, stem="cifar")
    made = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 1)), train=False))(jax.random.key(5))
    weights = models.to_torch("bn_inception", made)
    weights = {key.replace("last_linear", "embedding"): value for key, value in weights.items()}
    save_file(weights, tmp_path / "embedding.safetensors")
    for arguments in ("objective=soft_triple", "objective=norm_softmax"):
        found = variables(tmp_path / "embedding.safetensors", arguments, model="bn_inception", stem="cifar")
        assert found["params"].keys() == {"backbone"}


@pytest.mark.slow
def test_classifiers_halfway_begin_anew_for_other_classes(tmp_path):
    model = models.create("googlenet", 7, stem="cifar", auxiliary=True)
    made = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 1)), train=False))(jax.random.key(5))
    weights = models.to_torch("googlenet", made)
    settings = {"model": "googlenet", "stem": "cifar", "auxiliary": True}
    save_file(weights, tmp_path / "with.safetensors")
    found = variables(tmp_path / "with.safetensors", **settings)["params"]["backbone"]["aux1"]
    assert "fc1" in found
    assert "fc2" not in found
    save_file({k: v for k, v in weights.items() if not k.startswith("aux")}, tmp_path / "without.safetensors")
    assert "aux1" not in variables(tmp_path / "without.safetensors", **settings)["params"]["backbone"]
    with pytest.raises(ValueError, match="objective=paco does not: objective must be supervised or deconfound_tde"):
        experiment.build(digits("objective=paco", **FAST | settings))


def test_of_stages_only_the_first_begins_anew():
    config = digits("stages=drw", reinitialize="backbone/conv1/*", epochs=10)
    assert [stage.reinitialize for stage in stages.chain(config)] == ["backbone/conv1/*", "", ""]
    config = digits("stages=crt", reinitialize="backbone/conv1/*", epochs=10)
    chain = stages.chain(config)
    assert [stage.reinitialize for stage in chain] == ["backbone/conv1/*", "head/*"]
    assert [stage.reinitialize for stage in stages.chain(chain[-1])] == ["backbone/conv1/*", "head/*"]


@pytest.mark.slow
def test_of_stages_the_first_begins_with_them(file, tmp_path):
    config = digits("stages=crt;;epochs=1", init_from=str(file), **FAST)
    training.train(config, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert told["init_from"] == str(file)
    first, second = saved_arrays(tmp_path / "run" / "stages" / "1"), saved_arrays(tmp_path / "run")
    name = "params/backbone/layer3_0/conv1/kernel"
    np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("setting", ["zero_init", "frozen_norm", "remat"])
def test_options_of_models_are_settings(setting):
    assert getattr(experiment.build(digits(f"{setting}=True", model="resnet8")).model.backbone, setting) is True
    with pytest.raises(ValueError, match=f"{setting} belongs to .*, got {setting}=True with lenet"):
        experiment.build(digits(f"{setting}=True"))
