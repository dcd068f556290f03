"""The weights of the second environment are those of the original code, and make hard images likelier."""

import numpy as np
import pytest

from dsb_jax.data.environments import check_environments, environment_weights


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize("kind", ["intra", "inter", "inter_intra"])
def test_weights_are_those_of_the_original(golden, kind, scale):
    file = golden("ifl_environment_weights")
    weights = environment_weights(file["gt_probability"], file["labels"], kind=kind, scale=scale)
    np.testing.assert_allclose(weights, file[f"env2_{kind}_scale{scale}"], rtol=1e-12)


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), [200, 60, 5, 4]))
    return rng.beta(4.0, 1.5, len(labels)), labels


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_the_hardest_fifth_of_a_class_is_likelier_by_the_scale(examples, scale):
    probabilities, labels = examples
    weights = environment_weights(probabilities, labels, scale=scale)
    for label, count in enumerate([200, 60]):
        own = np.sort(weights[labels == label])
        np.testing.assert_allclose(own.sum(), 1.0)
        easy, hard = own[: int(0.8 * count)].mean(), own[-int(0.2 * count) :].mean()
        assert hard / easy > 0.9 * scale  # raising to a power makes means differ by a little more
        order = np.argsort(probabilities[labels == label])
        assert (np.diff(weights[labels == label][order]) <= 0).all()  # the less probable, the likelier


def test_few_images_of_a_class_are_alike(examples):
    weights = environment_weights(*examples)
    np.testing.assert_array_equal(weights[examples[1] == 3], np.full(4, 1 / 4))
    assert np.ptp(weights[examples[1] == 2]) > 0.1
    np.testing.assert_array_equal(environment_weights(np.array([0.1, 0.9]), np.zeros(2, int), kind="inter"), [0.5, 0.5])


def test_classes_do_not_matter_between_them_and_order_does_not_matter(examples):
    probabilities, labels = examples
    order = np.random.default_rng(1).permutation(len(labels))
    for kind in ("intra", "inter", "inter_intra"):
        weights = environment_weights(probabilities, labels, kind=kind)
        shuffled = environment_weights(probabilities[order], labels[order], kind=kind)
        np.testing.assert_allclose(shuffled, weights[order], rtol=1e-12)
    inter = environment_weights(probabilities, labels, kind="inter")
    np.testing.assert_array_equal(inter, environment_weights(probabilities, labels * 0, kind="inter"))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["intra", "inter"])
def test_a_model_that_tells_no_image_from_another_gives_equal_weights(kind, probability):
    weights = environment_weights(np.full(20, probability), np.zeros(20, int), kind=kind)
    np.testing.assert_allclose(weights, np.full(20, 1 / 20))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_environments("intra2", 4.0), "unknown kind of environments 'intra2'; did you mean 'intra'"),
        (lambda: check_environments("intra", 1.0), "scale of environments must be a finite number > 1, got 1.0"),
        (lambda: check_environments("intra", np.nan), "scale of environments must be a finite number > 1, got nan"),
        (lambda: environment_weights([0.5, 1.1], [0, 0]), r"probabilities must lie in \[0, 1\]"),
        (lambda: environment_weights([0.5, np.nan], [0, 0]), r"probabilities must lie in \[0, 1\]"),
        (lambda: environment_weights([0.5], [0, 0]), r"must both have shape \[examples\], got \[1\] and \[2\]"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
