"""Speed, as ratios of alternatives timed in turn in one run.

  python launch/benchmark.py pool
  python launch/benchmark.py overhead
  python launch/benchmark.py data

``pool``: one update of the feature pool at capacities of 50k, 500k and 5M (C = 1000, d = 64, batch 512), with
interference off and on; at iNaturalist 2018's shape (C = 8142, N = 437,513) against a recompute of all volumes from
the whole pool; and with interference at C = 8142 and C = 100,000.

``overhead``: what a whole training step takes with balancer=dsb over what it takes with balancer=uniform, at CIFAR's
shape: 32x32 images, 10 and 100 classes, a pool of 50,000; and an update of the pool by itself.

``data``: images per second of this pipeline, ``tf.data`` and PyTorch's ``DataLoader``: of 32x32, flipped and cropped
after padding; and of JPEG files of 500x375, of which random parts are resized to 224x224 and flipped. And the share of
its time that training waits for them. All have the same cores: this pipeline as many threads, ``tf.data`` a private
pool of as many, ``DataLoader`` as many workers. All end with augmented batches on JAX's device. Each has its images
where they mostly are: this pipeline in ArrayRecord files, ``tf.data`` in TFRecord files, ``DataLoader`` in image files,
and both of them the small ones in memory. A rival that is not installed is left out. ``--images`` takes JPEG files of
one's own instead of made-up ones.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from array_record.python import array_record_data_source, array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from dsb_jax import balancers, losses, models, objectives
from dsb_jax.data import feed, images, preprocess
from dsb_jax.data.decoding import Decoding
from dsb_jax.data.records import RecordSource, Split
from dsb_jax.training import optimizers
from dsb_jax.training.step import init_state, make_train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
import reference

DIM, BATCH = 64, 512


def inaturalist_frequencies():
    """Long-tailed as iNaturalist 2018: 8,142 classes of 2 … 1,000 samples, 437,513 in all."""
    rank = np.linspace(0, 1, 8142)
    return 2 + 998 * rank ** (998 / (437_513 / 8142 - 2) - 1)


class Update:
    """A balancer whose pool is full, one step at a time.

    Updates run ten in a row and count by the tenth: as in training, where nothing else sweeps the caches in between.
    """

    repeats = 10

    def __init__(self, name, balancer, batches, fill):
        self.balancer, self.batches = balancer, batches
        self.step = 0
        self.state = balancer.init()
        self.update = jax.jit(balancer.update, donate_argnums=0).lower(self.state, *batches[0]).compile()
        begin = time.perf_counter()
        for done in range(fill):
            self()
            if done % 100 == 0:
                progress(f"{name}: filling {done:,}/{fill:,}", begin, done + 1, fill)
        jax.block_until_ready(self.state)

    def __call__(self):
        weights, self.state = self.update(self.state, *self.batches[self.step % len(self.batches)])
        self.step += 1
        return weights

    def copied_state(self):
        return jax.tree.map(jnp.copy, self.state)


class Training:
    """A run on square images, one step at a time."""

    def __init__(self, model, balancer, balancing, batch_size, num_classes, size=32):
        rng = np.random.default_rng(0)
        objective = objectives.Supervised(losses.create("cross_entropy"))
        rate = optimizers.schedule("linear", 0.1, 10_000, steps_per_epoch=50_000 / batch_size)
        optimizer = optimizers.optimizer("sgd", rate, momentum=0.9, weight_decay=5e-4)

        def preprocessing(images, rng):
            images = preprocess.augment(images, rng, flip=True, crop_padding=4)
            return preprocess.normalize(images, mean=(0.5,) * 3, std=(0.25,) * 3)

        shape = (batch_size, size, size, 3)
        state = init_state(model, objective, balancer, optimizer, jnp.zeros(shape), seed=0)
        self.state = dataclasses.replace(state, balancing=balancing)
        self.batch = {
            "image": jnp.asarray(rng.integers(0, 256, shape), jnp.uint8),
            "label": random_labels(rng, num_classes, batch_size),
        }
        self.step = make_train_step(model, objective, balancer, optimizer, preprocessing)
        for _ in range(2):  # The first also compiles.
            begin = time.perf_counter()
            jax.block_until_ready(self())
        self.repeats = math.ceil(0.5 / (time.perf_counter() - begin))  # so that to wait for the last costs nothing

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batch)
        return metrics


def random_labels(rng, num_classes, batch_size):
    return jnp.asarray(rng.integers(0, num_classes, batch_size), jnp.int32)


def progress(what, begin, done, steps):
    """A line that the next one overwrites."""
    if sys.stderr.isatty():
        left = (time.perf_counter() - begin) / done * (steps - done)
        print(f"\r\033[K{what}, ETA {left:.0f} s ", end="", file=sys.stderr, flush=True)


def in_turn(alternatives, rounds):
    """The seconds of each in every round; in turn, there and back, so that whatever slows the machine slows all."""
    times = {name: [] for name in alternatives}
    start = time.perf_counter()
    order = list(alternatives)
    for done in range(rounds):
        for name in order:
            run = alternatives[name]
            repeats = getattr(run, "repeats", 1)
            begin = time.perf_counter()
            for _ in range(repeats):
                result = run()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - begin) / repeats)
        order.reverse()
        progress(f"round {done + 1}/{rounds}", start, done + 1, rounds)
    return times


def table(title, times, base):
    """The median of each, and of its ratios to ``base`` within a round the median and the quartiles."""
    print(f"\n{title}\n{'':40} {'ms':>10} {'ratio':>8} {'quartiles':>16}")
    for name, seconds in times.items():
        low, ratio, high = np.percentile(np.divide(seconds, times[base]), (25, 50, 75))
        spread = "" if name == base else f"{low:8.4f} {high:7.4f}"
        print(f"{name:40} {1e3 * statistics.median(seconds):10.2f} {ratio:8.4f} {spread:>16}", flush=True)


def pool_update(name, frequencies, capacity, *, interclass):
    """An update of a full pool, of samples drawn with these ``frequencies`` of classes."""
    rng = np.random.default_rng(0)
    num_classes = len(frequencies)
    capacity = -(-capacity // BATCH) * BATCH
    balancer = balancers.semantic_scale(num_classes, capacity, dim=DIM, interclass=interclass, batch_size=BATCH)
    labels = rng.choice(num_classes, size=(256, BATCH), p=frequencies / np.sum(frequencies)).astype(np.int32)
    batches = [(jnp.asarray(rng.normal(size=(BATCH, DIM)), jnp.float32), jnp.asarray(row)) for row in labels]
    return Update(name, balancer, batches, capacity // BATCH)


def pool(rounds):
    """See the module's docstring."""
    print(f"{machine()}, batch {BATCH}, d = {DIM}")
    even = np.ones(1000)
    for interclass in (False, True):
        updates = {
            f"capacity {capacity:,}": pool_update(f"capacity {capacity:,}", even, capacity, interclass=interclass)
            for capacity in (50_000, 500_000, 5_000_000)
        }
        title = f"One update, C = 1000, interference {'on' if interclass else 'off'}"
        table(title, in_turn(updates, rounds), "capacity 50,000")
        del updates

    frequencies, examples = inaturalist_frequencies(), 437_513
    update = pool_update("update", frequencies, examples, interclass=False)
    both = pool_update("update with interference", frequencies, examples, interclass=True)
    ring = update.state.pool
    recompute = functools.partial(reference.recompute_volumes, ring.rows + 0, ring.labels + 0, len(frequencies))
    whole, streamed = np.asarray(recompute()), np.asarray(ring.volume[: len(frequencies)])
    difference = np.max(np.abs(whole - streamed) / np.maximum(whole, 1.0))
    print(f"\nlargest relative difference of a volume from the recompute: {difference:.1e}")
    alternatives = {"update": update, "update with interference": both, "recompute from the whole pool": recompute}
    table(f"C = 8142, N = {examples:,}, long-tailed", in_turn(alternatives, rounds), "update")
    del update, both, ring, recompute, alternatives

    many = np.ones(100_000)
    updates = {
        f"C = 100,000, interference {'on' if on else 'off'}": pool_update(
            f"C = 100,000, {on}", many, 50_000, interclass=on
        )
        for on in (False, True)
    }
    table("One update, C = 100,000, N = 50,000", in_turn(updates, min(rounds, 5)), next(iter(updates)))


def overhead(rounds, name, batch_size):
    """See the module's docstring."""
    capacity = round(50_000 / batch_size) * batch_size
    print(f"{machine()}, {name}, batch {batch_size}, a pool of {capacity:,}")
    for num_classes in (10, 100):
        model = models.create(name, num_classes)
        if hasattr(model.backbone, "stem"):
            model = models.create(name, num_classes, stem="cifar")
        update, without = (
            training_update(model, num_classes, batch_size, capacity, interclass=on) for on in (True, False)
        )
        updates = {"update alone, interference on": update, "update alone, interference off": without}
        uniform = balancers.uniform(num_classes)
        alternatives = {
            "balancer=uniform": Training(model, uniform, uniform.init(), batch_size, num_classes),
            "balancer=dsb": Training(model, update.balancer, update.copied_state(), batch_size, num_classes),
        }
        times = in_turn(alternatives, rounds) | in_turn(updates, rounds)
        table(f"A training step, C = {num_classes}", times, "balancer=uniform")


def training_update(model, num_classes, batch_size, capacity, *, interclass):
    """An update of a full pool, with random features of the model's dimension."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32)
    outputs, _ = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)
    balancer = balancers.semantic_scale(num_classes, capacity, interclass=interclass, batch_size=batch_size)
    batches = [
        (jnp.asarray(rng.normal(size=outputs.features.shape), jnp.float32), random_labels(rng, num_classes, batch_size))
        for _ in range(16)
    ]
    return Update(f"pool of {num_classes} classes", balancer, batches, capacity // batch_size)


class Records:
    """A split of images on disk, and where the rivals find the same images.

    ``files`` are encoded images, ``stored`` what a ``DataLoader`` starts from, ``decoding`` what ours does.
    """

    def __init__(self, name, files, stored, decoding, folder):
        self.stored, self.decoding = stored, decoding
        self.labels = np.random.default_rng(0).integers(0, 10, len(files)).astype(np.int32)
        self.serialized = [serialized(file, label) for file, label in zip(files, self.labels.tolist(), strict=True)]
        self.path = str(pathlib.Path(folder) / name)
        writer = array_record_module.ArrayRecordWriter(f"{self.path}.array_record", "group_size:1")
        for example in self.serialized:
            writer.write(example)
        writer.close()
        records = array_record_data_source.ArrayRecordDataSource([f"{self.path}.array_record"])
        source = RecordSource(records, where=name, num_classes=10, decoding=decoding)
        self.split = Split(name, "train", source, tuple("0123456789"), decoding.shape, decoding.random)


def ours(records, batch_size, crop_padding):
    """This pipeline: batches on the device, flipped and cropped."""

    @jax.jit
    def augmented(batch, step):
        rng = jax.random.fold_in(jax.random.key(0), step)
        return batch | {"image": preprocess.augment(batch["image"], rng, flip=True, crop_padding=crop_padding)}

    def of(resident_bytes):
        examples = feed.Examples(records.split, resident_bytes=resident_bytes)
        return lambda: map(augmented, examples.shuffled(batch_size, seed=0), itertools.count())

    streamed = {"ours, streamed": of(0)}
    return streamed if records.decoding.random else streamed | {"ours, resident": of(2**30)}


def serialized(file, label):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(file)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def photograph(rng, height, width):
    """Made up, with the spectrum, the edges and the grain of one: uint8 ``[height, width, 3]``."""
    picture = np.full((height, width, 3), rng.uniform(60, 200, 3))
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = rng.normal(size=(cells, cells, 1)) + 0.3 * rng.normal(size=(cells, cells, 3))
        picture += 60 / cells**0.6 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        corners = rng.uniform(0, 1, 2) + rng.normal(size=(5, 2)) * 0.15
        shape = np.zeros((height, width), np.float32)
        cv2.fillConvexPoly(shape, cv2.convexHull((corners * (width, height)).astype(np.int32)), 1.0)
        picture += shape[..., None] * rng.normal(size=3) * 25
    picture += rng.normal(size=picture.shape[:2])[..., None] * 5
    return np.clip(picture, 0, 255).astype(np.uint8)


def small_records(folder, number=50_000):
    """Images of CIFAR's size, cut out of made-up photographs."""
    rng = np.random.default_rng(0)
    pages = [cv2.resize(photograph(rng, 375, 500), (250, 188), interpolation=cv2.INTER_AREA) for _ in range(50)]
    corners = zip(rng.integers(0, 156, number).tolist(), rng.integers(0, 218, number).tolist(), strict=True)
    stored = np.stack([pages[row % 50][top : top + 32, left : left + 32] for row, (top, left) in enumerate(corners)])
    files = [images.encode_png(image) for image in stored]
    return Records("small", files, stored, Decoding.of("small", (32, 32, 3)), folder)


def photograph_records(folder, directory, number=500):
    """JPEG files, those of a directory or made-up ones."""
    if directory is None:
        directory, rng = pathlib.Path(folder) / "jpeg", np.random.default_rng(0)
        directory.mkdir()
        for row in range(number):
            picture = photograph(rng, 375, 500)[..., ::-1]
            cv2.imwrite(str(directory / f"{row}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"no JPEG files in {directory}")
    paths = paths[: 4 * number]
    print(f"{len(paths)} JPEG files of {statistics.mean(path.stat().st_size for path in paths) / 1024:.0f} KiB")
    paths *= -(-number // len(paths))
    files = [path.read_bytes() for path in paths]
    decoding = Decoding.of("photographs", (None, None, 3), image_size=224, random_crop="resize")
    return Records("photographs", files, paths, decoding, folder)


def tf_data(records, batch_size, cores, augmented):
    """``tf.data`` with a private pool of ``cores`` threads: of TFRecord files one by one, in memory batch by batch."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def of_record(record):
        example = tf.io.parse_single_example(record, features)
        return augmented(example["image"]), tf.cast(example["label"], tf.int32)

    def of_batch(batch, labels):
        return augmented(batch), labels

    if records.decoding.random:
        with tf.io.TFRecordWriter(f"{records.path}.tfrecord") as writer:
            for example in records.serialized:
                writer.write(example)
        examples = tf.data.TFRecordDataset(f"{records.path}.tfrecord").shuffle(len(records.labels)).repeat()
        batches = examples.map(of_record, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    else:
        examples = tf.data.Dataset.from_tensor_slices((records.stored, records.labels))
        examples = examples.shuffle(len(records.labels)).repeat()
        batches = examples.batch(batch_size).map(of_batch, num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.prefetch(tf.data.AUTOTUNE).with_options(options)
    return lambda: map(jax.device_put, batches.as_numpy_iterator())


def shifted_by_tf(batch):
    """A whole batch at once: image by image, as it is mostly written, takes four times as long."""
    import tensorflow as tf

    number = tf.shape(batch)[0]
    first = tf.random.uniform([2, number, 1], 0, 9, tf.int32)
    rows, columns = first[0] + tf.range(32), first[1] + tf.range(32)
    columns = tf.where(tf.random.uniform([number, 1]) < 0.5, tf.reverse(columns, [1]), columns)
    cropped = tf.gather(tf.pad(batch, [[0, 0], [4, 4], [4, 4], [0, 0]]), rows, batch_dims=1)
    return tf.gather(cropped, tf.broadcast_to(columns[:, None], [number, 32, 32]), batch_dims=2)


def cut_by_tf(encoded):
    """As in TensorFlow's own ResNet: what lies outside of the crop is not decoded."""
    import tensorflow as tf

    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(encoded),
        tf.zeros([1, 0, 4]),
        min_object_covered=0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], size[:2]], 0), channels=3)
    return tf.image.random_flip_left_right(tf.cast(tf.image.resize(image, (224, 224)), tf.uint8))


@dataclasses.dataclass
class ForDataLoader:
    """A dataset of PyTorch's; ``transform`` makes a Pillow image of one that is stored, with torchvision's steps."""

    stored: object
    labels: np.ndarray
    transform: object

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        import torch

        image = np.array(self.transform(self.stored[index], np.random.default_rng(torch.randint(2**62, ()).item())))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous().to(torch.float32).div(255), self.labels[index]


def shifted_by_pillow(stored, rng):
    padded = PIL.Image.fromarray(np.pad(stored, [(4, 4), (4, 4), (0, 0)]))
    left, top = rng.integers(0, 9, 2).tolist()
    return flipped(padded.crop((left, top, left + 32, top + 32)), rng)


def cut_by_pillow(path, rng):
    with open(path, "rb") as file:
        image = PIL.Image.open(file).convert("RGB")
    top, left, bottom, right = images._draw_rectangle(*image.size[::-1], rng, (0.08, 1), (3 / 4, 4 / 3))
    part = image.crop((left, top, right, bottom))
    return flipped(part.resize((224, 224), PIL.Image.Resampling.BILINEAR), rng)


def flipped(image, rng):
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def data_loader(records, batch_size, cores, transform):
    """PyTorch's, with ``cores`` workers that stay; they are started anew, since JAX's threads do not survive a fork."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        ForDataLoader(records.stored, records.labels, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def start():
        while True:
            for batch in loader:
                yield jax.device_put([array.numpy() for array in batch])

    return start


def pace(start, batch_size, seconds):
    """Images per second once as much time has passed without a count, so that nothing read ahead is left."""
    batches = start()
    jax.block_until_ready(next(batches))  # workers may take long to start
    for _ in range(2):
        begin, done = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            jax.block_until_ready(next(batches))
            done += 1
    return done * batch_size / (time.perf_counter() - begin)


def paces(title, alternatives, batch_size, rounds, cores, seconds=3):
    """The median rate of each, and the median and the quartiles of what it is to each rival's in the same round."""
    rates = {name: [] for name in alternatives}
    order, begin = list(alternatives), time.perf_counter()
    for done in range(rounds):
        for name in order:
            rates[name].append(pace(alternatives[name], batch_size, seconds))
        order.reverse()
        progress(f"round {done + 1}/{rounds}", begin, done + 1, rounds)
    rivals = [name for name in alternatives if not name.startswith("ours")]
    print(f"\n{title}\n{'':24} {'images/s':>9} {'per core':>9}" + "".join(f"{f'of {name}':>26}" for name in rivals))
    for name, own in rates.items():
        columns = [np.percentile(np.divide(own, rates[rival]), (25, 50, 75)) for rival in rivals]
        ratios = "".join(f"{f'{ratio:.2f} ({low:.2f} … {high:.2f})':>26}" for low, ratio, high in columns)
        print(f"{name:24} {statistics.median(own):9,.0f} {statistics.median(own) / cores:9,.0f}{ratios}", flush=True)


def waiting(title, training, start, steps):
    """The share of its time that training waits for batches, one step being under way while the next is asked for."""
    batches, waited, running = start(), 0.0, training()
    training.batch = next(batches)  # what starts with the first is not waited for again
    begin = time.perf_counter()
    for done in range(steps):
        asked = time.perf_counter()
        training.batch = next(batches)
        waited += time.perf_counter() - asked
        ahead, running = running, training()
        jax.block_until_ready(ahead)
        progress(title, begin, done + 1, steps)
    jax.block_until_ready(running)
    total = time.perf_counter() - begin
    print(f"{title:52} {100 * waited / total:6.2f} % of a step of {1e3 * total / steps:,.0f} ms", flush=True)


def data(rounds, directory, cores):
    """See the module's docstring."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cores = len(os.sched_getaffinity(0))
    missing = {name for name in ("tensorflow", "torch") if importlib.util.find_spec(name) is None}
    for name in sorted(missing):
        print(f"{name} is not installed, and left out")
    print(f"{machine()}, {cores} cores")
    with tempfile.TemporaryDirectory() as folder:
        small = "32x32", small_records(folder), 128, 4
        large = "500x375 to 224x224", photograph_records(folder, directory), 64, 0
        for (title, records, batch_size, padding), by_tf, by_pillow in (
            (small, shifted_by_tf, shifted_by_pillow),
            (large, cut_by_tf, cut_by_pillow),
        ):
            alternatives = ours(records, batch_size, padding)
            if "tensorflow" not in missing:
                alternatives["tf.data"] = tf_data(records, batch_size, cores, by_tf)
            if "torch" not in missing:
                alternatives["DataLoader"] = data_loader(records, batch_size, cores, by_pillow)
            paces(f"{title}, batches of {batch_size}", alternatives, batch_size, rounds, cores)
        print("\nWaiting for input, resnet8")
        for (title, records, _, padding), batch_size, steps in ((small, 128, 30), (large, 16, 10)):
            for name, start in ours(records, batch_size, padding).items():
                model, uniform = models.create("resnet8", 10), balancers.uniform(10)
                training = Training(model, uniform, uniform.init(), batch_size, 10, records.decoding.shape[0])
                waiting(f"{title}, batches of {batch_size}, {name}", training, start, steps)


def machine():
    return f"jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    of_pool = benchmarks.add_parser("pool")
    of_overhead = benchmarks.add_parser("overhead")
    of_overhead.add_argument(
        "--model", default="resnet18", help="with the cifar stem, where it has stems (%(default)s)"
    )
    of_overhead.add_argument("--batch-size", type=int, default=128, help="(%(default)s)")
    of_data = benchmarks.add_parser("data")
    of_data.add_argument("--images", type=pathlib.Path, metavar="DIR", help="JPEG files (made-up ones)")
    of_data.add_argument("--cores", type=int, default=os.cpu_count(), help="(%(default)s)")
    for chosen, rounds in ((of_pool, 15), (of_overhead, 9), (of_data, 7)):
        chosen.add_argument(
            "--rounds", type=int, default=rounds, help="how often each alternative is timed (%(default)s)"
        )
    arguments = parser.parse_args()
    if arguments.benchmark == "pool":
        pool(arguments.rounds)
    elif arguments.benchmark == "overhead":
        overhead(arguments.rounds, arguments.model, arguments.batch_size)
    else:
        data(arguments.rounds, arguments.images, arguments.cores)
