"""Checkpoints come back to the bit, or one before them does: whatever is damaged, killed or full."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from killed_save import state_of

from dsb_jax import feature_pool
from dsb_jax.training import checkpoints as checkpoints_module
from dsb_jax.training.checkpoints import Checkpoints

TESTS = pathlib.Path(__file__).parent


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    pool: Any
    extras: Any
    key: jax.Array


def mixed_state(seed=0):
    """All kinds of nodes and dtypes that a train state may have."""
    numbers = np.random.default_rng(seed)

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(numbers.normal(size=shape), dtype)

    params = {"Dense_0": {"kernel": normal(4, 8), "bias": normal(8, dtype=jnp.bfloat16)}, "empty": {}}
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    return State(
        step=jnp.int32(seed),
        params=params,
        opt_state=optimizer.init(params),
        pool=feature_pool.enqueue(
            feature_pool.init(16, 4, 3, batch_size=8), normal(8, 4), jnp.asarray(numbers.integers(0, 3, 8))
        ),
        extras=(
            (),
            [],
            None,
            jnp.asarray(numbers.integers(0, 255, (3, 5)), jnp.uint8),
            jnp.array([True, False]),
            jnp.zeros((0, 4)),
            jnp.array([np.nan, -np.inf, -0.0, 1e-45], jnp.float32),
            jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        ),
        key=jax.random.key(seed),
    )


def bits(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return str(array.dtype), bits(jax.random.key_data(array))
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def assert_same(actual, expected):
    """Bit for bit, NaN and minus zero included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert bits(one) == bits(other), jax.tree_util.keystr(path)


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def addresses(array):
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def sharded(*spec):
    return NamedSharding(mesh(), PartitionSpec(*spec))


def save_all(folder, *steps, keep=10, scores=None):
    with Checkpoints(folder, keep=keep) as saving:
        for step in steps:
            saving.save(step, state_of(step), {"step": step}, score=scores and scores[step])


def restored(folder):
    with Checkpoints(folder) as reading:
        found = reading.restore(state_of(0))
    if found is not None:
        assert found.clock == {"step": found.step}
        assert_same(found.state, state_of(found.step))
    return found and found.step


# What is saved comes back.


@pytest.mark.parametrize("like", [lambda state: state, abstract, lambda state: jax.eval_shape(lambda: state)])
def test_everything_comes_back_to_the_bit(tmp_path, like):
    state, clock = mixed_state(3), {"evaluated": 2, "seconds": 0.1 + 0.2, "window": [{"loss": 1e-300}], "name": "ä"}
    with Checkpoints(tmp_path / "not" / "there") as saving:
        assert saving.restore(state) is None
        assert saving.steps() == []
        saving.save(3, state, clock)
    with Checkpoints(tmp_path / "not" / "there") as reading:
        step, found, found_clock = reading.restore(like(mixed_state(4)))
    assert (step, found_clock) == (3, clock)
    assert_same(found, state)


def test_arrays_come_back_where_they_are_wanted(tmp_path):
    state = {
        "rows": jnp.arange(64.0).reshape(16, 4),
        "step": jnp.int32(7),
        "keys": jax.random.split(jax.random.key(1), 8),
    }
    over_eight = {"rows": sharded("data"), "step": sharded(), "keys": sharded("data")}
    over_columns = {
        "rows": NamedSharding(
            jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2), PartitionSpec(None, "b")
        ),
        "step": sharded(),
        "keys": sharded(),
    }
    on_one = jax.tree.map(lambda leaf: jax.sharding.SingleDeviceSharding(jax.devices()[3]), state)
    with Checkpoints(tmp_path, keep=1) as saving:
        for step, placed in enumerate((over_eight, on_one, over_columns)):
            saving.save(step, jax.device_put(state, placed), {})
            for wanted in (over_eight, on_one, over_columns):
                like = jax.tree.map(
                    lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), state, wanted
                )
                found = saving.restore(like)
                assert found.step == step
                assert_same(found.state, state)
                for leaf, to in zip(jax.tree.leaves(found.state), jax.tree.leaves(wanted), strict=True):
                    assert leaf.sharding.is_equivalent_to(to, leaf.ndim)


@pytest.mark.parametrize("place", [lambda: jax.devices()[0], lambda: sharded("data")], ids=["one", "eight"])
def test_what_is_saved_may_be_donated_at_once(tmp_path, monkeypatch, place):
    begun, go_on = threading.Event(), threading.Event()
    write = Checkpoints._write

    def waiting(self, *arguments):
        begun.set()
        assert go_on.wait(60)
        write(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", waiting)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: -leaf - 1, state), donate_argnums=0)
    values = {"large": np.arange(2.0**16, dtype=np.float32), "small": np.arange(8, dtype=np.int32)}
    # The result of a computation: NumPy's memory would not be written over.
    state = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1 - 1, state))(jax.device_put(values, place()))
    before = addresses(state["large"])
    with Checkpoints(tmp_path) as saving:
        saving.save(1, state, {})
        assert begun.wait(60)
        after = jax.block_until_ready(overwrite(state))
        go_on.set()
        assert addresses(after["large"]) == before  # the memory itself was written over
        assert_same(saving.restore(after).state, jax.tree.map(jnp.asarray, values))


@pytest.mark.parametrize("place", [lambda: jax.devices()[0], lambda: sharded("data")], ids=["one", "eight"])
def test_what_is_restored_is_donated_in_place(tmp_path, place):
    state = jax.device_put({"x": np.arange(2.0**14, dtype=np.float32), "n": np.arange(64)}, place())
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path) as saving:
        saving.save(1, state, {})
        found = saving.restore(state).state
    before = jax.tree.map(addresses, found)
    after = step(found)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(found))
    assert jax.tree.map(addresses, after) == before
    assert_same(after, jax.tree.map(lambda leaf: leaf + 1, state))


def test_orbax_says_nothing(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        save_all(tmp_path, 1, 2)
        restored(tmp_path)
    assert [record.message for record in caplog.records if "orbax" in record.pathname] == []
    assert capfd.readouterr() == ("", "")


def test_sha256sum_agrees(tmp_path):
    save_all(tmp_path, 1)
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "1", capture_output=True)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path / "1").as_posix() for path in (tmp_path / "1").rglob("*") if path.is_file()}
    assert {line.split()[1] for line in (tmp_path / "1" / "SHA256SUMS").read_text().splitlines()} == files - {
        "SHA256SUMS"
    }


# Which stay.


def test_the_latest_and_the_best_stay(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: float("nan"), 5: None, 6: 0.1, 7: 0.2}
    save_all(tmp_path, 1, 2, 3, 4, 5, keep=2, scores=scores)
    with Checkpoints(tmp_path, keep=2) as again:  # scores are read from the folder
        assert again.steps() == [3, 4, 5]
        again.save(6, state_of(6), {"step": 6}, score=scores[6])
    assert again.steps() == [3, 5, 6]
    save_all(tmp_path, 7, keep=1, scores={7: np.float32(0.95)})
    assert again.steps() == [7]
    assert restored(tmp_path) == 7


def test_without_scores_the_latest_stay(tmp_path):
    save_all(tmp_path, 1, 2, 3, 10, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2", "3"]


def test_a_step_saved_again_takes_the_place_of_the_first(tmp_path):
    state = {"x": jnp.arange(3)}
    with Checkpoints(tmp_path, keep=1) as saving:
        saving.save(5, state, {"evaluated": False})
        saving.save(5, state, {"evaluated": True}, score=0.5)
        saving.save(5, {"x": jnp.arange(3) + 1}, {"evaluated": None})  # keeps the score
        found = saving.restore(state)
        assert (found.step, found.clock, found.state["x"].tolist()) == (5, {"evaluated": None}, [1, 2, 3])
        saving.save(6, state, {}, score=0.25)
    assert saving.steps() == [5, 6]
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_deleted_before_the_new_one_is_whole(tmp_path, monkeypatch):
    save_all(tmp_path, 1, keep=1)
    seen = []
    monkeypatch.setattr(
        Checkpoints,
        "_remove_old",
        lambda self: seen.append([checkpoints_module._verify(path) for path in self._saved()]),
    )
    save_all(tmp_path, 2, keep=1)
    assert seen == [[None, None]]


def test_half_a_deleted_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    """As a process that is killed while it deletes leaves it."""
    save_all(tmp_path, 1, keep=1)

    def rmtree(folder):
        (folder / "SHA256SUMS").unlink()
        raise OSError(errno.EIO, "Input/output error", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(OSError, match=rf"^\[Errno 5\] Input/output error: '{re.escape(str(tmp_path))}/partial'$"):
            save_all(tmp_path, 2, keep=1)
    assert restored(tmp_path) == 2
    save_all(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


@pytest.mark.parametrize("keep", [0, -1, 1.5, "2"])
def test_keep_is_a_positive_integer(tmp_path, keep):
    with pytest.raises(ValueError, match=f"^keep must be an integer >= 1, got {keep!r}"):
        Checkpoints(tmp_path, keep=keep)


# Damage.


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, 1, 2)
    return folder


def falls_back(folder, caplog, wrong, *, again=True):
    """The checkpoint of step 1 is taken, that of step 2 is kept aside, and one line says so."""
    content = {
        path.relative_to(folder / "2"): path.read_bytes() for path in (folder / "2").rglob("*") if path.is_file()
    }
    assert restored(folder) == 1
    (record,) = [record for record in caplog.records if record.name.startswith("dsb_jax")]
    assert record.levelname == "WARNING"
    pattern = rf"checkpoint {re.escape(str(folder))}/2 is damaged \((.+)\): set aside as corrupt-2-1, step 1 is taken"
    assert re.search(wrong, re.fullmatch(pattern, record.message)[1])
    aside = folder / "corrupt-2-1"
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == content
    if again:  # the run gets there once more
        save_all(folder, 2)
        assert restored(folder) == 2


def all_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_any_flipped_bit_is_noticed(two):
    """Of every file and at many places, without Orbax: no more than what the sums say."""
    numbers = np.random.default_rng(0)
    for file in all_files(two / "2"):
        content = bytearray(file.read_bytes())
        places = {0, len(content) - 1, *numbers.integers(0, len(content), 20).tolist()}
        for place in places:
            for bit in (0, 5, 7):
                content[place] ^= 1 << bit
                file.write_bytes(content)
                with pytest.raises(ValueError, match=r"SHA256SUMS|SHA-256|missing"):
                    checkpoints_module._verify(two / "2")
                content[place] ^= 1 << bit
        file.write_bytes(content)
    checkpoints_module._verify(two / "2")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def extend(file):
    with file.open("ab") as opened:
        opened.write(b"\n")


DAMAGE = {"flip": flip, "truncate": truncate, "delete": pathlib.Path.unlink, "extend": extend}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(two, tmp_path, caplog, damage):
    files = [file.relative_to(two / "2") for file in all_files(two / "2")]
    assert len(files) > 8
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(two, folder)
        caplog.clear()
        DAMAGE[damage](folder / "2" / file)
        if file.name == "SHA256SUMS":
            wrong = "SHA256SUMS|SHA-256|missing"
        else:
            wrong = (
                f"'{file}' is missing"
                if damage == "delete"
                else f"'{file}' has the SHA-256 [0-9a-f]{{64}}, not [0-9a-f]{{64}}$"
            )
        falls_back(folder, caplog, wrong)


GARBAGE = {"empty": b"", "zeros": bytes(100), "text": b"\xff\xfe garbage", "lines": b"\n\n"}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_sums_that_are_garbage(two, tmp_path, caplog, garbage):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "2" / "SHA256SUMS").write_bytes(garbage)
    falls_back(tmp_path / "run", caplog, "SHA256SUMS is not a list of sums")


def test_a_file_too_many(two, tmp_path, caplog):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "2" / "state" / "more").write_text("")
    falls_back(tmp_path / "run", caplog, "'state/more' is not in SHA256SUMS")


def test_a_checkpoint_under_the_number_of_another(two, tmp_path, caplog):
    shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "2")
    shutil.copytree(two / "1", tmp_path / "run" / "2")
    falls_back(tmp_path / "run", caplog, "it is of step 1")


def orbax_raises(monkeypatch, error, folder):
    """Files are as they were saved, and Orbax cannot read those of ``folder`` all the same."""
    restore = checkpoints_module.ocp.Checkpointer.restore

    def raising(self, path, **options):
        if path.parent == folder:
            raise error
        return restore(self, path, **options)

    monkeypatch.setattr(checkpoints_module.ocp.Checkpointer, "restore", raising)


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EIO, "Input/output error"), RuntimeError()], ids=repr)
def test_what_orbax_cannot_read_is_damaged_whatever_the_sums_say(two, tmp_path, caplog, monkeypatch, error):
    shutil.copytree(two, tmp_path / "run")
    orbax_raises(monkeypatch, error, tmp_path / "run" / "2")
    falls_back(tmp_path / "run", caplog, re.escape(str(error)) or "RuntimeError", again=False)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_what_says_nothing_about_the_files_sets_none_aside(two, tmp_path, monkeypatch, number):
    shutil.copytree(two, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "_verify", lambda folder: raise_error(OSError(number, os.strerror(number))))
        with pytest.raises(OSError, match="cannot be read now") as raised:
            restored(tmp_path / "run")
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "run" / "2"))
    assert restored(tmp_path / "run") == 2


def test_reading_holds_one_state_and_an_array(tmp_path, monkeypatch):
    like = {f"array {number}": jnp.zeros(2**16) for number in range(16)}
    with Checkpoints(tmp_path / "run") as saving:
        saving.save(1, like, {})
    like = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), like)
    before, most, put = live_bytes(), [0], jax.device_put

    def measuring(*arguments, **options):
        copy = put(*arguments, **options)
        most[0] = max(most[0], live_bytes())
        return copy

    monkeypatch.setattr(jax, "device_put", measuring)
    with Checkpoints(tmp_path / "run") as saving:
        state = saving.restore(like).state
    assert most[0] - before <= 17 * 2**18
    assert sum(array.nbytes for array in state.values()) == 16 * 2**18


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays())


def raise_error(error):
    raise error


def rewrite_sums(folder):
    (folder / "SHA256SUMS").write_text(checkpoints_module._sums(folder))


@pytest.mark.parametrize("record", ["", "[]", "{}", "null"])
def test_a_record_that_is_garbage(two, tmp_path, caplog, record):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "2" / "checkpoint.json").write_text(record)
    rewrite_sums(tmp_path / "run" / "2")
    falls_back(tmp_path / "run", caplog, ".")


def test_where_all_are_damaged_nothing_begins_anew(two, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    flip(folder / "1" / "checkpoint.json")
    truncate(folder / "2" / "SHA256SUMS")
    for _ in range(2):  # the second time as the first
        with pytest.raises(
            ValueError, match=r"no checkpoint that is whole, only corrupt-1-1, corrupt-2-1; .*--resume=never"
        ):
            restored(folder)
    assert len(caplog.records) == 2
    assert {path.name for path in folder.iterdir()} == {"corrupt-1-1", "corrupt-2-1"}
    shutil.copytree(two / "1", folder / "1")  # the advice of the message works
    assert restored(folder) == 1


def test_damage_after_damage(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    for number in (1, 2, 3):
        flip(folder / "2" / "checkpoint.json")
        assert restored(folder) == 1
        assert (folder / f"corrupt-2-{number}").is_dir()
        save_all(folder, 2)


def test_an_old_checkpoint_whose_record_is_damaged_is_not_deleted(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    truncate(tmp_path / "run" / "1" / "checkpoint.json")
    save_all(tmp_path / "run", 3, 4, keep=1)
    assert Checkpoints(tmp_path / "run").steps() == [1, 4]


# A state with other arrays is not damage.


OTHER_STATES = {
    "shape": (lambda: {"numbers": jnp.zeros((3, 9))}, r"\(numbers: float32\[2, 1000\] -> float32\[3, 9\]\)"),
    "dtype": (lambda: {"numbers": jnp.zeros((2, 1000), jnp.bfloat16)}, r"-> bfloat16\[2, 1000\]\)"),
    "key": (lambda: {"key": jax.random.key(0, impl="rbg")}, r"\(key: key<fry>\[\] -> key<rbg>\[\]\)"),
    "more": (lambda: {"more": [jnp.zeros(2)]}, r"\(more/0: none -> float32\[2\]\)"),
    "less": (lambda: {"numbers": ()}, r"\(numbers: float32\[2, 1000\] -> none\)"),
    "many": (
        lambda: {name: jnp.zeros(()) for name in "abcde"},
        r"\(a: none -> float32\[\], b: none -> float32\[\], c: none -> float32\[\], and 2 more\)",
    ),
}


@pytest.mark.parametrize("other", OTHER_STATES)
def test_arrays_that_differ_are_named_and_nothing_is_set_aside(two, tmp_path, caplog, other):
    like, changes = OTHER_STATES[other]
    shutil.copytree(two, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as reading, pytest.raises(ValueError, match=changes) as raised:
        reading.restore(state_of(0) | like())
    assert str(raised.value).startswith(f"{tmp_path}/run/2 is of another model or optimizer (")
    assert caplog.records == []
    assert reading.steps() == [1, 2]


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), MemoryError("large")], ids=repr)
def test_memory_that_does_not_suffice_is_not_damage(two, tmp_path, monkeypatch, error):
    shutil.copytree(two, tmp_path / "run")
    orbax_raises(monkeypatch, error, tmp_path / "run" / "2")
    with Checkpoints(tmp_path / "run") as reading, pytest.raises(type(error), match=str(error)):
        reading.restore(state_of(0))
    assert reading.steps() == [1, 2]


# Trouble while saving.


def test_what_a_killed_save_left_is_cleared_away(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "partial" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restored(tmp_path / "run") == 2
    save_all(tmp_path / "run", 3)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "2", "3"]


def test_killed_while_saving(tmp_path):
    """What comes back, to the bit, is the step that was under way or the one before it."""
    moments = [0, 0.01, 0.02, 0.04, 0.06, 0.09, 0.13, 0.2]
    command = [sys.executable, str(TESTS / "killed_save.py"), str(tmp_path / "run"), *map(str, moments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    step = 0
    with subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **pipes) as process:
        for _ in moments:
            last = int(process.stdout.readline())
            before, step = step, restored(tmp_path / "run")
            assert before < step
            assert last - 2 <= step <= last  # a step is announced while the one before it is still written
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert list((tmp_path / "run").glob("corrupt-*")) == []


def one_line(error, folder):
    assert error.filename == str(folder)
    assert "\n" not in str(error)
    return str(error)


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        large = {**state_of(2), "numbers": jnp.asarray(np.random.default_rng(0).normal(size=2**20), jnp.float32)}
        save_all(disk / "run", 1)
        with Checkpoints(disk / "run") as saving:
            saving.save(2, large, {})
            with pytest.raises(
                OSError, match="the checkpoint of step 2 was not saved: No space left on device"
            ) as raised:
                saving.save(3, large, {})
            assert raised.value.errno == errno.ENOSPC
            one_line(raised.value, disk / "run")
            assert saving.steps() == [1]
        assert [path.name for path in (disk / "run").iterdir()] == ["1"]
        assert restored(disk / "run") == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


FULL = """
import resource, sys
import jax.numpy as jnp, numpy as np
from dsb_jax.training.checkpoints import Checkpoints
state = {"x": jnp.asarray(np.random.default_rng(0).normal(size=2**18), jnp.float32)}
saving = Checkpoints(sys.argv[1])
saving.save(1, {"x": state["x"] * 0}, {})
saving.save(2, state, {})
saving.restore(state)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))
saving.save(3, state, {})
try:
    saving.close()
except OSError as error:
    print(error)
"""


def test_a_file_that_may_not_grow(tmp_path):
    """TensorStore's own error, as a quota gives it."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    assert done.stdout == (
        f"[Errno {errno.EFBIG}] the checkpoint of step 3 was not saved: File too large: '{tmp_path}/run'\n"
    )
    with Checkpoints(tmp_path / "run") as reading:
        assert reading.restore({"x": jnp.zeros(2**18)}).step == 2


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    saving = Checkpoints(tmp_path / "file" / "run")
    saving.save(1, state_of(1), {})
    with pytest.raises(NotADirectoryError, match="the checkpoint of step 1 was not saved: Not a directory") as raised:
        saving.close()
    one_line(raised.value, tmp_path / "file" / "run")
    saving.close()  # once is enough


def test_a_folder_that_is_read_only(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    mount = ["mount", "--bind", "-o", "ro", str(tmp_path / "run"), str(tmp_path / "run")]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a folder read-only")
    try:
        saving = Checkpoints(tmp_path / "run")
        saving.save(3, state_of(3), {})
        with pytest.raises(OSError, match="the checkpoint of step 3 was not saved: Read-only file system") as raised:
            saving.close()
        one_line(raised.value, tmp_path / "run")
        assert restored(tmp_path / "run") == 2
    finally:
        subprocess.run(["umount", str(tmp_path / "run")], check=True)


def failing(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints_module, "_sync", refuse)


def test_what_does_not_get_to_the_disk_is_no_checkpoint(two, tmp_path, monkeypatch):
    shutil.copytree(two, tmp_path / "run")
    with monkeypatch.context() as patch:
        failing(patch)
        saving = Checkpoints(tmp_path / "run")
        saving.save(3, state_of(3), {})
        with pytest.raises(OSError, match="step 3 was not saved: Input/output error"):
            saving.restore(state_of(0))
    saving.save(4, state_of(4), {"step": 4})  # the disk is well again
    saving.close()
    assert restored(tmp_path / "run") == 4
    assert saving.steps() == [2, 4]


def test_the_error_that_ends_a_run_is_the_one_shown(tmp_path, monkeypatch, caplog):
    failing(monkeypatch)

    def run():
        with Checkpoints(tmp_path) as saving:
            saving.save(1, state_of(1), {})
            raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        run()
    (record,) = caplog.records
    assert "the checkpoint of step 1 was not saved: Input/output error" in record.message


def test_the_record_says_what_was_saved(tmp_path):
    save_all(tmp_path, 7, scores={7: 0.25})
    record = json.loads((tmp_path / "7" / "checkpoint.json").read_text())
    assert record == {
        "step": 7,
        "score": 0.25,
        "clock": {"step": 7},
        "arrays": {
            "key": {"shape": [], "dtype": "key<fry>"},
            "numbers": {"shape": [2, 1000], "dtype": "float32"},
            "step": {"shape": [], "dtype": "int32"},
        },
    }
