"""Images per second of this pipeline, ``tf.data`` and PyTorch's ``DataLoader``."""

import dataclasses
import importlib.util
import itertools
import os
import pathlib
import statistics
import tempfile
import time

import cv2
import jax
import numpy as np
import PIL.Image
from array_record.python import array_record_data_source, array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from benchmarking.steps import Training
from benchmarking.timing import machine, progress
from dsb_jax import balancers, models
from dsb_jax.data import feed, images, preprocess
from dsb_jax.data.decoding import Decoding
from dsb_jax.data.records import RecordSource, Split


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


def jpeg_files(directory):
    """Of a folder and those in it."""
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"--images must be a folder of JPEG files, got {str(directory)!r}, which has none")
    return paths


def photograph_records(folder, directory, number=500):
    """JPEG files, those of a directory or made-up ones."""
    if directory is None:
        directory, rng = pathlib.Path(folder) / "jpeg", np.random.default_rng(0)
        directory.mkdir()
        for row in range(number):
            picture = photograph(rng, 375, 500)[..., ::-1]
            cv2.imwrite(str(directory / f"{row}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    paths = jpeg_files(directory)
    paths = paths[: 4 * number]
    print(f"{len(paths)} JPEG files of {statistics.mean(path.stat().st_size for path in paths) / 1024:.0f} KiB")
    paths *= -(-number // len(paths))
    files = [path.read_bytes() for path in paths]
    decoding = Decoding.of("photographs", (None, None, 3), image_size=224, random_crop="resize")
    return Records("photographs", files, paths, decoding, folder)


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
    training.batches = [next(batches)]  # what starts with the first is not waited for again
    begin = time.perf_counter()
    for done in range(steps):
        asked = time.perf_counter()
        training.batches = [next(batches)]
        waited += time.perf_counter() - asked
        ahead, running = running, training()
        jax.block_until_ready(ahead)
        progress(title, begin, done + 1, steps)
    jax.block_until_ready(running)
    total = time.perf_counter() - begin
    print(f"{title:52} {100 * waited / total:6.2f} % of a step of {1e3 * total / steps:,.0f} ms", flush=True)


def data(rounds, directory, cores):
    """Prints what ``launch/benchmark.py data`` is."""
    if directory is not None:
        jpeg_files(directory)  # before all else takes its time
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
                size = records.decoding.shape[0]
                training = Training(model, uniform, uniform.init(), np.ones(10), batch_size, size)
                waiting(f"{title}, batches of {batch_size}, {name}", training, start, steps)
