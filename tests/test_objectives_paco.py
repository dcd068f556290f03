"""PaCo and GPaCo: the official numbers, a queue and an encoder followed by hand, several devices, and bad input."""

import collections
import dataclasses
import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_run import digits, to_numpy

from dsb_jax import balancers, losses, models
from dsb_jax.objectives import GPaco, Paco, key_queue, total_loss
from dsb_jax.training import experiment, methods, step
from dsb_jax.training.checkpoints import Checkpoints
from dsb_jax.training.program import Program
from dsb_jax.training.sharding import Placement, make_mesh

BATCH, CLASSES, DIM = 8, 3, 4
PRIOR = np.array([0.6, 0.3, 0.1])
HYPER = {"alpha": 0.3, "beta": 0.8, "gamma": 0.7, "temperature": 0.4, "logit_temperature": 1.5}
CROSS_ENTROPY = losses.create("cross_entropy")
KEY = jax.random.key(0)


def made(kind=Paco, *, batch_size=BATCH, queue_size=3 * BATCH, label_smoothing=0.0, prior=PRIOR, hyper=HYPER, **more):
    contrast = functools.partial(losses.paco, prior=prior, label_smoothing=label_smoothing, **hyper)
    return kind(CROSS_ENTROPY, contrast, batch_size=batch_size, queue_size=queue_size, **more)


def outputs_of(embedding, logits):
    return models.Outputs(logits, jnp.ones((len(logits), 2)), jnp.ones((logits.shape[1], 2)), projected=embedding)


def by_hand(queries, labels, others, of_others, logits, *, smoothing=0.0, prior=PRIOR, hyper=HYPER):
    """Each query's loss from weights and logarithms of probabilities of all that it is told from, in float64."""
    queries, others, logits = (np.asarray(array, np.float64) for array in (queries, others, logits))
    scores = np.concatenate([queries, others]), np.concatenate([labels, of_others])
    similar = queries @ scores[0].T / hyper["temperature"]
    itself = np.eye(len(queries), len(scores[0]), dtype=bool)
    of_class = (logits + np.log(prior + 1e-9)) / hyper["logit_temperature"]
    normalizer = np.exp(of_class).sum(1) + hyper["gamma"] * np.where(itself, 0, np.exp(similar)).sum(1)
    log_p = np.concatenate([of_class, similar], axis=1) - np.log(normalizer)[:, None]
    own = np.eye(logits.shape[1])[labels]
    own = (1 - smoothing) * own + smoothing / (logits.shape[1] - 1) * (1 - own)
    same = (labels[:, None] == scores[1]) & ~itself
    weights = np.concatenate([hyper["beta"] * own, hyper["alpha"] * same], axis=1)
    return -(weights * log_p).sum(1) / weights.sum(1)


def unit(rng, *shape):
    vectors = rng.standard_normal(shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draws(seed=0, queue_size=3 * BATCH):
    """A batch as a network would see it, and a full queue, in float64."""
    rng = np.random.default_rng(seed)
    return {
        "q": unit(rng, BATCH, DIM),
        "k": unit(rng, BATCH, DIM),
        "logits": 2 * rng.standard_normal((2, BATCH, CLASSES)),
        "labels": rng.integers(CLASSES, size=BATCH).astype(np.int32),
        "queue": unit(rng, queue_size, DIM),
        "queue_labels": rng.integers(CLASSES, size=queue_size).astype(np.int32),
    }


def holding(objective, file, dtype):
    """A queue that holds what a file has, and nothing in the places that are left."""
    size, slots = objective.queue_size, objective.queue_size // objective.batch_size
    keys = np.full((size, file["queue"].shape[1]), np.nan)
    labels = np.full(size, -1, np.int32)
    keys[: len(file["queue"])], labels[: len(file["queue"])] = file["queue"], file["queue_labels"]
    keys = jnp.asarray(keys, dtype).reshape(slots, objective.batch_size, -1)
    return key_queue.KeyQueue(keys, jnp.asarray(labels).reshape(slots, objective.batch_size), jnp.int32(1))


# The official numbers.


@pytest.mark.parametrize("name", ["paco_a", "paco_b"])
def test_the_loss_of_a_batch_is_the_official_one(name, golden, dtype):
    file = golden(name)
    labels, size = file["labels"].astype(np.int32), len(file["labels"])
    hyper = {key: float(file[key]) for key in ("alpha", "beta", "gamma", "temperature")}
    hyper["logit_temperature"] = float(file["supt"])
    prior = file["counts"] / file["counts"].sum()
    queue_size = -(-len(file["queue"]) // size) * size
    objective = made(batch_size=size, queue_size=queue_size, prior=prior, hyper=hyper)
    state = objective.init(KEY, {"params": "the encoder"}, outputs_of(jnp.zeros((1, 2)), jnp.zeros((1, 10))))
    state = dataclasses.replace(state, queue=holding(objective, file, dtype))
    batch = {"image": "first", "view_1": "second", "label": jnp.asarray(labels)}

    def loss(q, k, logits):
        def forward(images, *, variables=None):
            assert (images, variables) in (("first", None), ("second", {"params": "the encoder"}))
            return outputs_of(q if variables is None else k, logits)

        result = objective(forward, batch, state, KEY)
        return total_loss(result.terms, jnp.ones(10, dtype))

    given = (jnp.asarray(file[name], dtype) for name in ("q", "k", "sup_logits"))
    value, (of_q, of_k, of_logits) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*given)
    assert value.dtype == of_q.dtype == dtype
    rtol, grad_rtol = {"float32": (1e-5, 1e-5), "float64": (1e-10, 3e-10)}[dtype.name]
    np.testing.assert_allclose(value, file["loss"], rtol=rtol)
    for gradient, name in ((of_q, "grad_q"), (of_logits, "grad_sup_logits")):
        np.testing.assert_allclose(gradient, file[name], rtol=0, atol=grad_rtol * np.abs(file[name]).max())
    np.testing.assert_array_equal(of_k, 0.0)


def test_a_query_has_the_weight_of_its_class_and_its_features_enter_the_pool():
    objective, file = made(), draws()
    weights = np.array([0.2, 1.0, 5.0])
    logits = jnp.asarray(file["logits"][0])
    first, second = (outputs_of(jnp.asarray(file[name]), logits) for name in ("q", "k"))
    second = second._replace(features=None, logits=None)
    state = objective.init(KEY, {"params": ()}, first)
    state = dataclasses.replace(state, queue=holding(objective, file, jnp.float32))
    batch = {"image": 0, "view_1": 1, "label": jnp.asarray(file["labels"])}
    result = objective(lambda images, variables=None: (first, second)[images], batch, state, KEY)
    assert result.features is first.features
    assert result.logits is first.logits
    assert result.classifier is first.classifier
    assert result.labels is batch["label"]
    keys = np.concatenate([file["k"], file["queue"]]), np.concatenate([file["labels"], file["queue_labels"]])
    expected = by_hand(file["q"], file["labels"], *keys, file["logits"][0])
    total = total_loss(result.terms, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(total, np.mean(weights[file["labels"]] * expected), rtol=1e-5)
    right = np.mean(file["logits"][0].argmax(axis=1) == file["labels"])
    np.testing.assert_allclose(result.metrics["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gpaco_is_of_both_views_with_gradients_through_both(smoothing, dtype):
    objective, file = made(GPaco, label_smoothing=smoothing), draws()
    weights, labels = np.array([0.2, 1.0, 5.0]), file["labels"]
    batch, state = {"image": 0, "view_1": 1, "label": jnp.asarray(labels)}, holding(objective, file, dtype)

    def run(q, k, logits):
        views = [outputs_of(embedding, of_view) for embedding, of_view in zip((q, k), logits, strict=True)]
        return objective(lambda images: views[images], batch, state, KEY)

    def loss(*given):
        return total_loss(run(*given).terms, jnp.asarray(weights, dtype))

    def expected(q, k, logits):
        both = np.concatenate([q, k]), np.concatenate([labels, labels])
        of_views = by_hand(*both, file["queue"], file["queue_labels"], np.concatenate([*logits]), smoothing=smoothing)
        return np.mean(np.concatenate([weights[labels], weights[labels]]) * of_views)

    names = ("q", "k", "logits")
    given = [jnp.asarray(file[name], dtype) for name in names]
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*given)
    rtol = {"float32": 1e-5, "float64": 1e-10}[dtype.name]
    np.testing.assert_allclose(value, expected(*(file[name] for name in names)), rtol=rtol)
    for number, name in enumerate(names):
        slope = reference.slope(
            lambda x, name=name: expected(*(file[n] if n != name else x for n in names)), file[name]
        )
        np.testing.assert_allclose(gradients[number], slope, rtol=0, atol=max(rtol, 1e-7) * np.abs(slope).max())
    result = run(*given)
    np.testing.assert_array_equal(result.logits, given[2][0])
    np.testing.assert_array_equal(result.state.keys[1], given[1])
    np.testing.assert_array_equal(result.state.keys[0], state.keys[0])
    assert int(result.state.slot) == 2


# The queue.


@pytest.mark.parametrize("kind", [Paco, GPaco])
def test_a_query_is_told_from_the_last_batches(kind):
    """Against a deque of keys, with examples that do not count, until it has been full twice."""
    objective, deque = made(kind), collections.deque(maxlen=3)
    state = objective.init(KEY, {"params": ()}, outputs_of(jnp.zeros((1, DIM)), jnp.zeros((1, CLASSES))))
    assert jax.tree.leaves(state)[0].shape == (3, BATCH, DIM)

    @jax.jit
    def one(state, given):
        views = {"first": given["q"], "second": given["k"]}

        def forward(images, variables=None):
            return outputs_of(views[images], given["logits"][int(images == "second" and kind is GPaco)])

        batch = {"image": "first", "view_1": "second", "label": given["labels"], "mask": given["mask"]}
        result = objective(forward, batch, state, KEY)
        return result.state, [term.losses for term in result.terms]

    for number in range(7):
        file = draws(seed=number)
        mask = np.random.default_rng(number).random(BATCH) < 0.8
        given = {name: file[name] for name in ("q", "k", "logits", "labels")} | {"mask": mask}
        spoilt = np.where(mask[:, None], file["q"], np.nan)
        state, of_views = one(state, jax.tree.map(jnp.asarray, given | {"q": spoilt}))
        queued = [np.concatenate([np.zeros((0, DIM)), *(keys for keys, _ in deque)])]
        queued += [np.concatenate([np.zeros(0, np.int32), *(labels for _, labels in deque)])]
        q, k, labels = file["q"][mask], file["k"][mask], file["labels"][mask]
        if kind is Paco:
            keys = np.concatenate([k, queued[0]]), np.concatenate([labels, queued[1]])
            expected = [by_hand(q, labels, *keys, file["logits"][0][mask])]
        else:
            both = np.concatenate([q, k]), np.concatenate([labels, labels])
            expected = np.split(by_hand(*both, *queued, np.concatenate([*file["logits"][:, mask]])), 2)
        for value, wanted in zip(of_views, expected, strict=True):
            np.testing.assert_allclose(value[mask], wanted, rtol=1e-5)
            np.testing.assert_array_equal(value[~mask], 0.0)
        deque.append((k, labels))
    keys, labels, filled = key_queue.contents(getattr(state, "queue", state))
    rolled = [deque[(place - 1) % 3] for place in range(3)]  # the seventh batch is in the first place
    np.testing.assert_allclose(keys[filled], np.concatenate([keys for keys, _ in rolled]), rtol=1e-6)
    np.testing.assert_array_equal(labels[filled], np.concatenate([labels for _, labels in rolled]))


# The key encoder, and several devices. A small network with batch normalisation.


class Net(nn.Module):
    """Images to 3 logits and embeddings of 4 numbers."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(6, name="hidden")(images.reshape(images.shape[0], -1))
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x))
        embedding = nn.Dense(DIM, name="projection")(x)
        embedding /= jnp.linalg.norm(embedding, axis=1, keepdims=True)
        return models.Outputs(nn.Dense(CLASSES, name="head")(x), x, projected=embedding)


def plain(images, rng):
    del rng
    return images.astype(jnp.float32) / 255 - 0.5


def mirrored(images, rng):
    return plain(images[:, :, ::-1], rng)


def parts(objective, mesh=None):
    balancer = balancers.semantic_scale(CLASSES, 3 * BATCH, dim=6, batch_size=BATCH, mesh=mesh)
    return Net(), objective, balancer, optax.sgd(0.5)


def batches(number):
    rng = np.random.default_rng(5)
    for _ in range(number):
        labels = rng.integers(CLASSES, size=BATCH).astype(np.int32)
        images = rng.integers(0, 256, (BATCH, 3, 3, 1)) // 2 + 40 * labels[:, None, None, None]
        yield {"image": images.astype(np.uint8), "label": labels}


IMAGES = jnp.zeros((1, 3, 3, 1))


def test_the_key_encoder_follows_the_parameters_and_sees_the_second_view():
    """Five steps: the encoder in float64, and the keys and statistics that the network gives by hand."""
    objective = made(momentum=0.9)
    state = step.init_state(*parts(objective), IMAGES, seed=0)
    chex.assert_trees_all_equal(state.objective.encoder, state.params)
    encoder, stats = to_numpy(state.params), state.batch_stats
    train_step = step.make_train_step(*parts(objective), plain, further=mirrored)
    for number, batch in enumerate(batches(5)):
        narrow = jax.tree.map(jnp.float32, encoder)
        images = {name: make(batch["image"], None) for name, make in (("first", plain), ("second", mirrored))}
        before = {"params": state.params, "batch_stats": stats}
        _, changed = Net().apply(before, images["first"], train=True, mutable=["batch_stats"])
        keys, _ = Net().apply(before | {"params": narrow}, images["second"], train=True, mutable=["batch_stats"])
        stats = jax.tree.map(jnp.copy, changed["batch_stats"])
        state, _ = train_step(state, batch)
        encoder = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, encoder, to_numpy(state.params))
        chex.assert_trees_all_close(to_numpy(state.objective.encoder), encoder, rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.objective.queue.keys[number % 3], keys.projected, rtol=1e-4, atol=1e-5)
    difference = jax.tree.map(lambda k, q: np.abs(k - q).max(), encoder, to_numpy(state.params))
    assert max(jax.tree.leaves(difference)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Paco, GPaco])
@pytest.mark.parametrize("model_devices", [1, 2])
def test_devices_share_the_queue_and_compute_the_same(kind, model_devices):
    objective = made(kind)
    mesh = make_mesh(8 if model_devices == 1 else 4, model_devices=model_devices)
    placement = Placement(mesh)
    alone = step.init_state(*parts(objective), IMAGES, seed=0)
    together = step.init_state(*parts(objective, mesh), IMAGES, seed=0, placement=placement)
    placed = [leaf.sharding for leaf in jax.tree.leaves(together)]
    queue = getattr(together.objective, "queue", together.objective)
    assert queue.keys.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "data")), 3)
    assert not queue.keys.sharding.is_fully_replicated
    assert queue.labels.sharding.is_equivalent_to(queue.keys.sharding, 2)
    traces = []

    def counted(images, rng):
        traces.append(1)
        return plain(images, rng)

    one = step.make_train_step(*parts(objective), plain, further=mirrored)
    many = step.make_train_step(*parts(objective, mesh), counted, further=mirrored, placement=placement)
    for batch in batches(5):
        alone, expected = one(alone, batch)
        together, metrics = many(together, jax.device_put(batch, NamedSharding(mesh, P("data"))))
        chex.assert_trees_all_close(metrics, expected, rtol=1e-4)
        for leaf, sharding in zip(jax.tree.leaves(together), placed, strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert len(traces) == 1
    for name in ("params", "batch_stats", "objective"):
        chex.assert_trees_all_close(getattr(together, name), getattr(alone, name), rtol=1e-3, atol=1e-5)
    mine, other = (key_queue.contents(getattr(s.objective, "queue", s.objective)) for s in (together, alone))
    chex.assert_trees_all_equal(mine[1:], other[1:])
    assert mine[2].all()


def test_no_device_sends_another_what_enters_the_queue():
    mesh = make_mesh(8)
    queue = jax.device_put(key_queue.empty(4 * BATCH, BATCH, DIM), key_queue.shardings(mesh))
    of_batch = NamedSharding(mesh, P("data"))
    keys, labels = jax.device_put((jnp.ones((BATCH, DIM)), jnp.zeros(BATCH, jnp.int32)), of_batch)
    enqueue = jax.jit(key_queue.enqueue, donate_argnums=0, out_shardings=key_queue.shardings(mesh))
    text = enqueue.lower(queue, keys, labels).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


def test_further_views_of_a_step_are_made_by_what_makes_them():
    batch = next(batches(1))
    batch |= {"view_2": batch["image"] // 2, "reversed": dict(batch)}
    ready = step.augmented(batch, KEY, plain, views=3, further=mirrored)
    for seen, given in ((ready, batch), (ready["reversed"], batch["reversed"])):
        np.testing.assert_array_equal(seen["image"], plain(given["image"], None))
        np.testing.assert_array_equal(seen["view_1"], mirrored(given["image"], None))
        np.testing.assert_array_equal(seen["view_2"], mirrored(given.get("view_2", given["image"]), None))
    assert step.augmented(batch, KEY, plain, further=mirrored).keys() == batch.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paco", pytest.param("gpaco", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_the_queue_and_the_encoder_that_it_had(name, tmp_path):
    """On two devices, between which the queue is divided; its oldest keys had left when it was saved."""
    config = digits(f"objective={name},{name}.dim=8,{name}.queue_size=128,second_view=sim,crop_padding=1", devices=2)
    program = Program(config, experiment.build(config))
    like = jax.tree.map(jnp.copy, program.initial)  # a step takes the buffers of the state before it

    def run(state, steps):
        seen = []
        for batch in itertools.islice(program.batches(steps.start), len(steps)):
            state, metrics = program.train_step(state, batch)
            seen.append(float(metrics["loss"]))
        return state, seen

    state, before = run(program.initial, range(3))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
        restored = checkpoints.restore(like).state
    chex.assert_trees_all_equal(restored.objective, state.objective)
    assert not getattr(restored.objective, "queue", restored.objective).keys.sharding.is_fully_replicated
    whole, losses_of_whole = run(state, range(3, 6))
    again, losses_again = run(restored, range(3, 6))
    chex.assert_trees_all_equal(again, whole)
    assert losses_again == losses_of_whole
    assert np.isfinite(before + losses_again).all()


# What is refused, and what a config becomes.


@pytest.mark.parametrize("kind", [Paco, GPaco])
def test_what_does_not_fit_is_refused(kind):
    objective, file = made(kind), draws()
    message = f"{kind.__name__} compares embeddings, and the model gives none.* {kind.__name__.lower()}.dim=128"
    with pytest.raises(ValueError, match=message):
        objective.init(KEY, {"params": ()}, outputs_of(None, jnp.zeros((1, CLASSES))))
    with pytest.raises(ValueError, match="queue_size must be a multiple of the batch size, 8, got 20"):
        made(kind, queue_size=20)
    with pytest.raises(ValueError, match="queue_size must be an integer >= 1, got 0"):
        made(kind, queue_size=0)
    outputs = outputs_of(jnp.asarray(file["q"]), jnp.asarray(file["logits"][0]))
    state = objective.init(KEY, {"params": ()}, outputs)
    batch = {"image": 0, "view_1": 1, "label": jnp.asarray(file["labels"])}
    mixed = batch | {"share": jnp.full(BATCH, 0.5), "other_label": batch["label"]}
    with pytest.raises(ValueError, match="mixed ones have two: mixup and cutmix must be 0"):
        objective(lambda *args, **options: outputs, mixed, state, KEY)
    with pytest.raises(ValueError, match=r"made for batches of 8, got one of 4; .* accumulate must be 1"):
        objective(lambda *args, **options: outputs, batch | {"label": batch["label"][:4]}, state, KEY)


@pytest.mark.parametrize("momentum", [1.5, -0.1])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"momentum must be a finite number in \[0, 1\], got {momentum}"):
        made(momentum=momentum)


@pytest.mark.parametrize("name", ["paco", "gpaco"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("accumulate=2", "objective '{name}' is of a whole batch: accumulate must be 1, got 2"),
        ("mixup=0.2", "objective '{name}' compares images by .* mixup and cutmix must be 0, got 0.2 and 0.0"),
        ("cutmix=1.0", "objective '{name}' compares images by .* mixup and cutmix must be 0, got 0.0 and 1.0"),
        (
            "loss=focal",
            "objective '{name}' has a loss of its own: loss must be .* or objective be 'supervised', got 'focal'",
        ),
        ("{name}.temperature=0.0", "temperature must be a finite number > 0, got 0.0"),
        ("{name}.queue_size=100", "queue_size must be a multiple of the batch size, 64, got 100"),
        ("{name}.dim=0", "^{name}.dim must be an integer >= 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message.format(name=name)):
        experiment.build(digits(f"objective={name},{arguments.format(name=name)}"))


@pytest.mark.parametrize(
    ("name", "label", "layers"), [("paco", "PaCo", ["hidden1"]), ("gpaco", "GPaCo", ["hidden1", "hidden2"])]
)
def test_a_config_names_them(name, label, layers, caplog):
    arguments = f"objective={name},{name}.dim=5,second_view=sim,cross_entropy.label_smoothing=0.1"
    config = digits(arguments)
    assert methods.name(config) == f"DSB-{label}"
    built = experiment.build(config)
    assert "second_view" not in caplog.text
    assert (built.objective.views, built.objective.queue_size, built.objective.batch_size) == (2, 8192, 64)
    prior = built.counts / built.counts.sum()
    np.testing.assert_allclose(built.objective.contrast.keywords["prior"], prior, rtol=1e-6)
    variables = jax.eval_shape(lambda: built.model.init(KEY, jnp.zeros((1, 8, 8, 1)), train=False))
    assert sorted(variables["params"]["projection"]) == [*layers, "output"]
    assert variables["params"]["projection"]["output"]["kernel"].shape == (128, 5)
    logits = jax.random.normal(KEY, (2, 10))
    smoothed = losses.cross_entropy(logits, jnp.array([1, 2]), label_smoothing=0.1)
    np.testing.assert_allclose(built.objective.loss(logits, jnp.array([1, 2])), smoothed)
    experiment.build(digits("second_view=sim"))
    assert "second_view=sim has no effect with objective=supervised" in caplog.text
