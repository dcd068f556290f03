"""Collecting batch by batch: what is counted, judged, kept in a file and read from lines."""

import dataclasses
import io
import json
import math
import re
import resource
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dsb_jax import semantic_scale
from dsb_jax.toolkit import collection, findings, points


def volume(rows):
    x = rows - rows.mean(axis=0)
    return np.linalg.slogdet(np.eye(x.shape[1]) + x.shape[1] / len(x) * x.T @ x)[1] / (2 * np.log(2))


def batch(rows, names="cat", name="batch"):
    """Rows of one class, or of a class for each."""
    classes = sorted({names} if isinstance(names, str) else set(names))
    labels = [0] * len(rows) if isinstance(names, str) else [classes.index(each) for each in names]
    return points.of(np.asarray(rows, np.float64), np.array(labels), classes, name=name)


def gathered_in(batches, dim=3, **settings):
    state = collection.start(dim, **settings)
    for each in batches:
        state = collection.add(state, each)
    return state


def equal(first, second):
    """To the bit."""
    if (first.dim, first.tolerance, first.epsilon) != (second.dim, second.tolerance, second.epsilon):
        return False
    if list(first.classes) != list(second.classes):
        return False

    def leaves(state):
        for each in state.classes.values():
            yield from (np.array(each.moments.count), each.moments.mean, each.moments.scatter)
            yield from (each.counts, each.volumes, each.ends)

    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), offset=st.sampled_from([0.0, 1e6]))
def test_batches_add_up_to_the_whole(sizes, offset):
    rows = np.random.default_rng(sum(sizes)).normal(size=(sum(sizes), 3)) + offset
    ends = np.cumsum(sizes)
    found = gathered_in([batch(part) for part in np.split(rows, ends[:-1])]).classes["cat"]
    assert found.counts[found.ends].tolist() == ends.tolist()
    assert found.batches == len(sizes)
    assert found.last_batch == sizes[-1]
    wanted = [volume(rows[:end]) for end in ends]
    np.testing.assert_allclose(found.volumes[found.ends], wanted, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.moments.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-9)
    assert (np.diff(found.counts) > 0).all()
    steps = found.counts[1:] / found.counts[:-1]
    assert (steps[found.counts[:-1] > 9] < 1.3).all()
    if len(sizes) > 1:
        np.testing.assert_allclose(found.increment, 1 - wanted[-2] / wanted[-1], rtol=1e-5, atol=1e-6)


def test_a_batch_is_measured_in_random_order():
    """Sorted rows would make the volume within the batch grow as if nothing new ever came, and then something did."""
    rows = np.repeat([[0.0] * 3, [0.0, 1.0, 2.0], [9.0, 0.0, 0.0], [1.0, 5.0, 0.0]], 50, axis=0)
    found = gathered_in([batch(rows)]).classes["cat"]
    half = found.volumes[np.searchsorted(found.counts, 100)]
    assert half > 0.9 * found.volumes[-1]


def of_variance(*variances):
    """Batches on a line after each of which the variance is that, and so the volume ``½·log2(1 + variance)``."""
    second = 0.0
    for number, variance in enumerate(variances, 1):
        needed = 2 * number * variance - second
        second += needed
        root = math.sqrt(needed / 2)
        yield batch([[root], [-root]])


@pytest.mark.parametrize(
    ("volumes", "tolerance", "verdict"),
    [
        ((2.0,), 0.01, "first batch"),
        ((2.0, 2.5), 0.1, "continue"),  # 20%
        ((2.0, 2.5), 0.21, "enough"),
        ((2.0, 2.5, 2.52), 0.01, "enough"),  # 0.8%
        ((2.0, 2.5, 2.4), 0.01, "enough"),
        ((2.0, 2.01, 2.5), 0.01, "continue"),  # what counts is the last batch
    ],
)
def test_verdicts(volumes, tolerance, verdict):
    state = gathered_in(of_variance(*(4**v - 1 for v in volumes)), dim=1, tolerance=tolerance)
    (found,) = collection.judge(state).classes
    np.testing.assert_allclose(found.gathered.volumes[found.gathered.ends], volumes, rtol=1e-12)
    assert found.verdict == verdict


def test_an_increment_of_just_the_tolerance_is_worth_going_on():
    state = gathered_in(of_variance(15.0, 255.0), dim=1, tolerance=0.5)  # volumes of 2 and 4
    increment = state.classes["cat"].increment
    np.testing.assert_allclose(increment, 0.5, rtol=1e-12)
    for tolerance, verdict in ((increment, "continue"), (np.nextafter(increment, 1), "enough")):
        assert collection.judge(dataclasses.replace(state, tolerance=tolerance)).classes[0].verdict == verdict


def test_classes_come_when_they_come_and_keep_their_verdicts():
    rng = np.random.default_rng(0)
    state = collection.start(3)
    first = collection.add(state, batch(rng.normal(size=(40, 3)), ["cat", "dog"] * 20))
    second = collection.add(first, batch(rng.normal(size=(40, 3)), "dog"))
    third = collection.add(second, batch(rng.normal(size=(1, 3)), "bird"))
    assert (list(state.classes), list(first.classes)) == ([], ["cat", "dog"])
    assert list(third.classes) == ["cat", "dog", "bird"]
    assert third.classes["cat"] is first.classes["cat"]
    assert [each.gathered.batches for each in collection.judge(third).classes] == [1, 2, 1]
    before, after = ({each.name: each.verdict for each in collection.judge(each).classes} for each in (second, third))
    assert after == before | {"bird": "first batch"}
    assert first.classes["dog"].moments.count == 20  # as it was


def test_a_class_that_a_batch_names_without_samples_is_not_there():
    state = collection.add(collection.start(2), points.of(np.eye(2), np.array([1, 1]), ["none of it", "some"]))
    assert list(state.classes) == ["some"]


def test_equal_samples_have_no_verdict():
    state = gathered_in([batch(np.full((20, 3), 0.1)), batch(np.full((20, 3), 0.1))])
    (found,) = collection.judge(state).classes
    assert (found.verdict, found.forecast, found.gathered.volumes[-1]) == ("no volume", None, 0.0)
    assert math.isnan(found.gathered.increment)
    assert "All samples of cat are equal" in collection.judge(state).reading()


def test_samples_of_another_dimension():
    state = gathered_in([batch(np.eye(3))])
    with pytest.raises(ValueError, match=r"new\.npz: samples must have 3 numbers as those before, got 4"):
        collection.add(state, batch(np.eye(4), name="new.npz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"dim": 3, "tolerance": 0}, "tolerance must be a finite number > 0, got 0"),
        ({"dim": 3, "tolerance": 1}, "tolerance must be a fraction of the volume below 1, such as 0.01 for 1%, got 1"),
        ({"dim": 3, "epsilon": -1.0}, "epsilon must be a finite number > 0, got -1.0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        collection.start(**arguments)


def some_state():
    rng = np.random.default_rng(1)
    batches = [batch(rng.normal(size=(30, 3)) + 1e5, ["cat", "Käfer\n\0", "犬"] * 10) for _ in range(3)]
    return gathered_in(batches, tolerance=0.1 + 0.2, epsilon=1 / 3)


def test_a_state_comes_back_from_its_file_to_the_bit(tmp_path):
    path, state = tmp_path / "state.npz", some_state()
    collection.save(collection.start(768), path)
    assert equal(collection.load(path), collection.start(768))
    collection.save(state, path)
    assert equal(collection.load(path), state)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_what_goes_on_from_a_file_is_what_never_stopped(tmp_path):
    path, state = tmp_path / "state.npz", some_state()
    more = batch(np.random.default_rng(2).normal(size=(50, 3)))
    collection.save(state, path)
    assert equal(collection.add(collection.load(path), more), collection.add(state, more))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "state.npz"
    state = gathered_in([batch([[0.0, 1.0], [2.0, 3.0], [1.0, 7.0]])], dim=2)
    collection.save(state, path)
    return state, path.read_bytes()


def test_no_flipped_bit_goes_unnoticed(saved, tmp_path):
    """Either it is an error, or it is where zip files have what nobody reads."""
    state, content = saved
    path, errors = tmp_path / "state.npz", []
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        try:
            assert equal(collection.load(path), state), position
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 0.7 * len(content) / 5
    expected = f"{path} is not the state of a collection, or it is damaged: "
    assert [error for error in errors if not error.startswith(expected) or "\n" in error] == []


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, 0.999])
def test_part_of_a_file(saved, tmp_path, kept):
    _, content = saved
    path = tmp_path / "state.npz"
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match="is not the state of a collection, or it is damaged"):
        collection.load(path)


def test_files_of_others(tmp_path):
    path = tmp_path / "state.npz"
    array = io.BytesIO()
    np.save(array, np.eye(3))
    writers = [
        lambda: path.write_text("class,count\ncat,3\n"),
        lambda: Image.new("RGB", (4, 4)).save(path, format="png"),
        lambda: path.write_bytes(array.getvalue()),
        lambda: np.savez(path, header=np.frombuffer(b"[1]", np.uint8)),
        lambda: np.savez(path, header=np.frombuffer(b'{"format": "another/2"}', np.uint8)),
        lambda: np.savez(path, header=np.array([{}], object)),
        lambda: np.savez(path, points=np.eye(3)),
    ]
    for write in writers:
        write()
        with pytest.raises(ValueError, match="is not the state of a collection, or it is damaged"):
            collection.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        collection.load(tmp_path / "none.npz")


@pytest.fixture
def small_files():
    """No file may be larger than some bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file(saved, tmp_path, small_files):
    state, content = saved
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    large = gathered_in([batch(np.random.default_rng(0).normal(size=(9, 40)))], dim=40)
    with pytest.raises(OSError, match=r"state\.npz'$"):
        collection.save(large, path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    assert equal(collection.load(path), state)


def test_a_folder_that_is_not_there(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no_folder/state\.npz"):
        collection.save(saved[0], tmp_path / "no_folder" / "state.npz")


def line(name, *features):
    return json.dumps({"class": name, "features": features, "source": "ignored"}) + "\n"


def test_lines_become_batches():
    lines = [line("cat", 1, 2.5), "\n", line("dog", 3, 4).encode(), line(7, -1e300, 0), line("cat", 5, 6)]
    first, second = collection.read_jsonl(lines, size=3)
    assert first.class_names == ("cat", "dog", "7")
    assert first.labels.tolist() == [0, 1, 2]
    assert first.points.tolist() == [[1, 2.5], [3, 4], [-1e300, 0]]
    assert (second.class_names, second.points.tolist()) == (("cat",), [[5, 6]])
    (whole,) = collection.read_jsonl(lines)
    assert whole.points.shape == (4, 2)
    assert list(collection.read_jsonl(["", "\n"])) == []


def test_a_batch_is_there_as_soon_as_its_lines_are():
    def lines():
        for number in range(4):
            read.append(number)
            yield line("cat", number)

    read = []
    batches = collection.read_jsonl(lines(), size=2)
    assert next(batches).points.tolist() == [[0], [1]]
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'class': 'cat'}", "line 3 is no JSON: Expecting property name"),
        ('{"class": "cat", "features": [1, 2]', "line 3 is no JSON"),
        ("[" * 100_000, "line 3 is no JSON"),
        (b'{"class": "\xff", "features": [1, 2]}', "line 3 is no JSON: 'utf-8' codec can't decode"),
        ("[1, 2]", 'line 3 must be {"class": ..., "features": [...]}, got [1, 2]'),
        ('{"class": "cat"}', 'line 3 must be {"class": ..., "features": [...]}, got {"class": "cat"}'),
        (line(None, 1, 2), "line 3: class must be a text or an integer, got null"),
        (line(True, 1, 2), "line 3: class must be a text or an integer, got true"),
        (line(["cat"], 1, 2), 'line 3: class must be a text or an integer, got ["cat"]'),
        ('{"class": "cat", "features": 3}', "line 3: features must be a list of numbers, got 3"),
        (line("cat"), "line 3: features must be a list of numbers, got []"),
        (line("cat", 1, "2"), 'line 3: features must be a list of numbers, got [1, "2"]'),
        (line("cat", 1, True), "line 3: features must be a list of numbers, got [1, true]"),
        (line("cat", 1, [2]), "line 3: features must be a list of numbers, got [1, [2]]"),
        (line("cat", 1, 2, 3), "line 3: features must be 2 numbers as those before, got 3"),
        (line("cat", 1, float("nan")), "line 3: features must be finite, got NaN or infinity (class cat)"),
        (line("cat", 1, -float("inf")), "line 3: features must be finite, got NaN or infinity (class cat)"),
        (line("cat", 1, 10**400), "line 3: features must be finite, got NaN or infinity (class cat)"),
    ],
)
def test_bad_lines_are_named(bad, message):
    with pytest.raises(ValueError, match=re.escape(f"new.jsonl: {message}")):
        list(collection.read_jsonl([line("cat", 1, 2), "\n", bad], name="new.jsonl"))


def many(num_classes, batches=3, size=20):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 3, (num_classes, 4))
    names = [f"class {i}" for i in range(num_classes)]
    state = collection.start(4, tolerance=0.02)
    for _ in range(batches):
        labels = rng.integers(0, num_classes, size * num_classes)
        rows = rng.normal(size=(len(labels), 4)) * scale[labels]
        state = collection.add(state, points.of(rows, labels, names))
    return state


def test_what_is_said():
    state = collection.add(many(6), batch(np.zeros((2, 4)), ["one", "two"]))
    found = collection.judge(state)
    enough, first = found.of("enough"), found.of("first batch")
    assert 0 < len(enough) < 6
    assert [each.name for each in first] == ["one", "two"]
    text = found.reading()
    assert text.startswith(f"{len(enough)} of 8 classes ")
    assert "less than 2%" in text
    assert "2 classes with a single batch cannot be judged before the next one" in text
    headings, rows = found.table()
    assert {len(row) for row in rows} == {len(headings)}
    of_class = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert of_class["one"]["more worth taking"] == "too few to say"
    assert of_class[enough[0].name]["more worth taking"] == "0"
    for each in found.of("continue"):
        assert each.forecast.samples % each.gathered.last_batch == 0
        assert of_class[each.name]["more worth taking"].startswith(f"{each.forecast.samples:,.0f} (")
    told = json.loads(findings.to_json(found.as_dict()))
    assert [each["verdict"] for each in told["classes"].values()] == [each.verdict for each in found.classes]
    assert list(told["classes"].values())[-1]["worth_taking"] is None
    assert "None of 2 classes" in collection.judge(gathered_in([batch(np.eye(3), ["a", "b", "b"])])).reading()
    assert "No samples" in collection.judge(collection.start(3)).reading()
    assert collection.judge(collection.start(3)).figures() == {}


def test_lost_volume_is_told():
    rng = np.random.default_rng(0)
    state = gathered_in([batch(rng.normal(size=(50, 3))), batch(np.zeros((50, 3)))])
    found = collection.judge(state)
    assert found.classes[0].verdict == "enough"
    assert "Of these, cat lost volume" in found.reading()


def test_classes_pass_through_the_progress():
    seen = []

    def progress(classes, total):
        seen.append(total)
        return classes

    state = collection.add(collection.start(3), batch(np.eye(3), ["a", "b", "b"]), progress)
    collection.judge(state, progress)
    assert seen == [2, 2]


@pytest.mark.parametrize("num_classes", [1, 3, 30, 31, 200])
def test_figures_of_every_size(num_classes):
    found = collection.judge(many(num_classes, batches=2))
    ((name, (caption, figure)),) = found.figures().items()
    assert name.isidentifier()
    assert caption.endswith(".")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    forecasts = sum(each.forecast is not None for each in found.classes)
    verdicts = {each.verdict for each in found.classes}
    assert len(axes.lines) == num_classes + forecasts + len(verdicts)
    assert len(axes.get_legend().get_texts()) == len(verdicts)
    names = {text.get_text() for text in axes.texts}
    assert names == ({each.name for each in found.classes} if num_classes <= 30 else set())


@pytest.mark.slow
def test_when_to_stop_collecting_cifar10_is_known_after_500_images(shared_data):
    """In pixels, by increments of 1%: forecast is 2,500 of each class, and it is 2,000 to 3,000."""
    folder = shared_data("cifar10") / "train"
    for name in ("airplane", "cat", "truck"):
        strips = [np.asarray(Image.open(file)).reshape(-1, 32, 32, 3) for file in sorted(folder.glob(f"{name}_*.webp"))]
        rows = np.asarray(semantic_scale.pixel_features(np.concatenate(strips)))
        rows = rows[np.random.default_rng(0).permutation(len(rows))]
        state, verdicts = collection.start(768), []
        for part in np.split(rows, 10):
            state = collection.add(state, batch(part))
            (found,) = collection.judge(state).classes
            verdicts.append(found)
            if found.verdict == "enough":
                break
        total = state.classes["cat"].moments.count
        assert 2000 <= total <= 3000
        assert abs(500 + verdicts[0].forecast.samples - total) <= 500
