"""A pool of the last epoch's features, and the volume and centre of every class in it, kept up to date step by step.

The pool is a ring: a batch enters where the oldest one leaves. The statistics stream. Per class they are a count, a
sum and a second moment about an anchor, to which entering rows are added and from which leaving rows are taken, so a
step costs ``O(batch·d²)`` and the log-determinants of the touched classes, however many rows the pool holds.

Three things make this exact, fast and the same everywhere:

* Two generations. Taking away what was once added leaves rounding behind, which would grow for ever. So while the
  live generation adds and takes away, a second one only adds what has entered since the pass began; when the pass
  is over it describes the pool exactly and becomes the live one. Nothing is copied: the two swap roles, and a class's
  entry of an earlier pass counts as empty.
* Read ahead. Reading the rows that leave from the buffer that is written in the same step makes XLA copy all of it.
  So the entering block is written first, and then the block that leaves next is read, into the state.
* No scatter meets an index twice: rows are sorted by class, sums run along the sorted rows, and every class is written
  once. A step is therefore deterministic on every backend, and on CPUs the same to the bit on any number of devices;
  elsewhere a library may factorize another number of matrices by another routine.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsb_jax import validation

_CLASS_MULTIPLE = 256  # the class axis is padded to this, so that its shape suits any device count
_READ_AHEAD = 1024  # rows read ahead, and so taken in at a time, by a pool that is not told its batch size
_CLASS_BLOCK = 64  # on a CPU: classes whose second moments, in its caches, are updated and factorized at a time
_MOMENT_BLOCK = 2**23  # elsewhere: numbers in the second moments of as many
# Elsewhere, on one device: so many products, of all rows for every class, cost less than to ask for the longest run.
_UNASKED = 2**27
_NEVER = -2  # a pass that no generation belongs to


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Per-class statistics about an anchor, in two generations; generation ``pass % 2`` is the one being filled.

    Attributes:
      begun: int32 ``[classes, 2]``, the pass in which the entry was begun; an entry of another pass is empty.
      count: int32 ``[classes, 2]``, rows.
      anchor: ``[classes, 2, dim]``, the point the moments are about: the mean of the class's first rows.
      total: ``[classes, 2, dim]``, the sum of the rows minus the anchor.
      moment: ``[classes, 2, dim, dim]``, the sum of their outer products.
    """

    begun: jax.Array
    count: jax.Array
    anchor: jax.Array
    total: jax.Array
    moment: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeaturePool:
    """The ring of rows and what is known of the classes in it. Made by :func:`init`, changed by :func:`enqueue`.

    Attributes:
      rows: ``[capacity, dim]``, or ``[slots, batch, dim]`` for a fixed batch size.
      labels: int32, a class per row; -1 where there is none.
      next_rows: the block of rows that leaves next, read ahead.
      next_labels: its labels.
      cursor: int32, where along the first axis the next block is written.
      entered: int32, rows that have entered since the pass began.
      passes: int32, how often the pool has been filled anew.
      statistics: the streaming statistics.
      count: int32 ``[classes]``, rows per class.
      center: float32 ``[classes, dim]``.
      volume: float32 ``[classes]``, bits.
      rejected: int32, rows not taken in so far for a label out of range or a feature that is not finite.
      failed: int32, factorizations that have failed so far; the class then keeps its volume.
    """

    rows: jax.Array
    labels: jax.Array
    next_rows: jax.Array
    next_labels: jax.Array
    cursor: jax.Array
    entered: jax.Array
    passes: jax.Array
    statistics: Statistics
    count: jax.Array
    center: jax.Array
    volume: jax.Array
    rejected: jax.Array
    failed: jax.Array
    num_classes: int = dataclasses.field(metadata={"static": True})
    epsilon: float = dataclasses.field(metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(metadata={"static": True})
    axis: str = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Rows that the pool holds when full."""
        return self.labels.size


def init(
    capacity: int,
    dim: int,
    num_classes: int,
    *,
    epsilon: float = 1.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> FeaturePool:
    """An empty pool.

    Args:
      capacity: rows held; the paper takes the number of training examples.
      dim: feature dimension ``d``.
      num_classes: ``C``.
      epsilon: as in :func:`dsb_jax.volume`, for the volumes that :func:`enqueue` keeps.
      batch_size: rows of every batch, where that is fixed; ``capacity`` must be a multiple of it.
      mesh: devices that share the pool, rows by batch and second moments by class; needs ``batch_size``.
      axis: the mesh axis that batches are sharded over, and so rows and classes.
      dtype: in which rows are stored. Statistics are float32, of the rows as stored.

    Returns:
      A pool without rows; every count and volume is 0.

    Raises:
      ValueError: if a number is not positive, ``capacity`` is no multiple of ``batch_size``, or the mesh does not
        divide the batch or the class axis or has axes of another type than Auto.

    Example:
      >>> pool = init(capacity=4, dim=1, num_classes=2)
      >>> pool = enqueue(pool, jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1]))
      >>> print(counts(pool), volumes(pool))
      [2 1] [0.5 0. ]

    Source: Sec. 4.2 and Appendix F.2 of the paper.
    """
    capacity, dim = validation.positive_int("capacity", capacity), validation.positive_int("dim", dim)
    num_classes, epsilon = validation.positive_int("num_classes", num_classes), validation.positive("epsilon", epsilon)
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {dtype!r}")
    if batch_size is not None:
        batch_size = validation.positive_int("batch_size", batch_size)
        if capacity % batch_size:
            raise ValueError(f"capacity must be a multiple of batch_size ({batch_size}), got {capacity}")
    if mesh is not None:
        _check_mesh(mesh, axis, batch_size)
    empty = partial(_empty, capacity, dim, num_classes, epsilon, batch_size, mesh, axis, jnp.dtype(dtype))
    if mesh is None:
        return empty()
    return jax.jit(empty, out_shardings=shardings(jax.eval_shape(empty)))()


def enqueue(pool: FeaturePool, features: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None) -> FeaturePool:
    """Takes in a batch; as many of the oldest rows leave.

    Donate ``pool`` when this runs in your own ``jit``: the ring is then written in place. No gradient flows into it.

    Args:
      pool: the pool.
      features: floating ``[batch, dim]``, finite.
      labels: int ``[batch]`` in ``[0, C)``.
      mask: bool ``[batch]``; a row where it is False takes a place in the ring but belongs to no class.

    Returns:
      The pool with counts, centres and volumes of the touched classes updated. Under ``jit``, where values cannot be
      looked at, a row with a label out of range or a feature that is not finite is treated as masked and counted
      in ``pool.rejected``.

    Raises:
      ValueError: on a wrong shape, dtype, label or feature, or a batch larger than the pool or not of its batch size.

    Example:
      >>> pool = init(capacity=2, dim=1, num_classes=2)
      >>> for batch in ([[1.0], [3.0]], [[5.0], [9.0]]):
      ...     pool = enqueue(pool, jnp.array(batch), jnp.array([0, 0]))
      >>> print(centers(pool).ravel())
      [7. 0.]

    Source: Algorithm 2 of the paper.
    """
    batch, block = len(features), pool.next_labels.shape[0]
    mask = validation.boolean("mask", mask, (batch,))
    features = validation.features(features, dim=pool.rows.shape[-1], mask=mask)
    features = lax.stop_gradient(features).astype(pool.rows.dtype)
    labels = validation.labels(labels, pool.num_classes, samples=batch, mask=mask)
    if pool.rows.ndim == 3 and batch != block:
        raise ValueError(f"features must have the pool's batch_size of {block} rows, got {batch}")
    if batch > pool.capacity:
        raise ValueError(f"features must have at most capacity = {pool.capacity} rows, got {batch}")
    for start in range(0, batch, block):
        piece = slice(start, start + block)
        pool = _enqueue(pool, features[piece], labels[piece], mask[piece])
    return pool


def counts(pool: FeaturePool) -> jax.Array:
    """Rows of each class in the pool, int32 ``[C]``."""
    return pool.count[: pool.num_classes]


def centers(pool: FeaturePool) -> jax.Array:
    """Mean feature of each class in the pool, float32 ``[C, dim]``; zeros for a class without rows."""
    return pool.center[: pool.num_classes]


def volumes(pool: FeaturePool, *, epsilon: float | None = None) -> jax.Array:
    """Volume of each class in the pool.

    Args:
      pool: the pool.
      epsilon: None reads what :func:`enqueue` keeps; a value recomputes every class's volume with it.

    Returns:
      float32 ``[C]`` in bits; 0 for a class with fewer than two rows.

    Raises:
      ValueError: if ``epsilon`` is not positive.

    Example:
      >>> pool = init(capacity=4, dim=1, num_classes=1)
      >>> pool = enqueue(pool, jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> print(volumes(pool), volumes(pool, epsilon=0.5))  # ½·log2(1 + 1/ε²)
      [0.5] [1.161]

    Source: Eq. 2-3 of the paper.
    """
    if epsilon is None:
        return pool.volume[: pool.num_classes]
    return _volumes(pool, validation.positive("epsilon", epsilon))[: pool.num_classes]


def rebuild(pool: FeaturePool) -> FeaturePool:
    """The same pool with its statistics summed afresh from its rows, in their order of time.

    For restores and tests: it costs a pass over all rows, which no training step needs.

    Example:
      >>> pool = init(capacity=4, dim=1, num_classes=1)
      >>> pool = enqueue(pool, jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> print(volumes(rebuild(pool)))
      [0.5]
    """
    return _rebuild(pool)


def shardings(pool: FeaturePool) -> FeaturePool:
    """A ``NamedSharding`` for every array of a pool that has a mesh, for ``jit`` and for restores.

    Raises:
      ValueError: if the pool has no mesh.
    """
    mesh = pool.mesh
    if mesh is None:
        raise ValueError("pool must have a mesh, got one without")
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(pool))


def _check_mesh(mesh, axis, batch_size):
    if axis not in mesh.shape:
        raise validation.unknown_name("mesh axis", axis, map(str, mesh.axis_names))
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh must have axes of type Auto, as by jax.make_mesh(shape, names, axis_types=(AxisType.Auto, …)), "
            f"got {mesh.axis_types}"
        )
    devices = mesh.shape[axis]
    if batch_size is None or batch_size % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices, got {batch_size}")
    if _CLASS_MULTIPLE % devices:
        raise ValueError(f"mesh axis {axis!r} must have a divisor of {_CLASS_MULTIPLE} devices, got {devices}")


def _empty(capacity, dim, num_classes, epsilon, batch_size, mesh, axis, dtype):
    shape = (capacity,) if batch_size is None else (capacity // batch_size, batch_size)
    block = batch_size or min(capacity, _READ_AHEAD)
    classes = -(-num_classes // _CLASS_MULTIPLE) * _CLASS_MULTIPLE
    return FeaturePool(
        rows=jnp.zeros((*shape, dim), dtype),
        labels=jnp.full(shape, -1, jnp.int32),
        next_rows=jnp.zeros((block, dim), dtype),
        next_labels=jnp.full(block, -1, jnp.int32),
        cursor=jnp.zeros((), jnp.int32),
        entered=jnp.zeros((), jnp.int32),
        passes=jnp.zeros((), jnp.int32),
        statistics=_no_statistics(classes, dim),
        count=jnp.zeros(classes, jnp.int32),
        center=jnp.zeros((classes, dim), jnp.float32),
        volume=jnp.zeros(classes, jnp.float32),
        rejected=jnp.zeros((), jnp.int32),
        failed=jnp.zeros((), jnp.int32),
        num_classes=num_classes,
        epsilon=epsilon,
        mesh=mesh,
        axis=axis,
    )


def _no_statistics(classes, dim):
    return Statistics(
        begun=jnp.full((classes, 2), _NEVER, jnp.int32),
        count=jnp.zeros((classes, 2), jnp.int32),
        anchor=jnp.zeros((classes, 2, dim), jnp.float32),
        total=jnp.zeros((classes, 2, dim), jnp.float32),
        moment=jnp.zeros((classes, 2, dim, dim), jnp.float32),
    )


def _specs(pool):
    """Rows by batch and second moments by class; what is small is on every device, so that reading it is free."""
    specs = jax.tree.map(lambda _: P(), pool)
    return dataclasses.replace(
        specs,
        rows=P(None, pool.axis),
        labels=P(None, pool.axis),
        next_rows=P(pool.axis),
        next_labels=P(pool.axis),
        statistics=dataclasses.replace(specs.statistics, moment=P(pool.axis)),
    )


def _per_device(pool, function, outputs, *batch):
    """``function(pool, *batch)`` on each device's share. Left to itself the partitioner would gather the ring."""
    if pool.mesh is None:
        return function(pool, *batch)
    inputs = (_specs(pool), *(P(pool.axis) for _ in batch))
    sharded = jax.shard_map(function, mesh=pool.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return sharded(pool, *batch)


@jax.jit
def _enqueue(pool, features, labels, mask):
    step = partial(_step, capacity=pool.capacity)
    return _per_device(pool, step, _specs(pool), features, labels, mask)


@jax.jit
def _rebuild(pool):
    return _per_device(pool, _sum_afresh, _specs(pool))


@partial(jax.jit, static_argnames="epsilon")
def _volumes(pool, epsilon):
    return _per_device(pool, partial(_all_volumes, epsilon=epsilon), P())


def _step(pool, features, labels, mask, *, capacity):
    """One block enters and one leaves, on one device's share of both; ``capacity`` is that of all devices."""
    good = (labels >= 0) & jnp.all(jnp.isfinite(features), axis=1)
    labels = jnp.where(mask & good, labels, -1)
    features = jnp.where((labels >= 0)[:, None], features, 0)
    batch = labels.shape[0]
    rows, row_labels, rejected = _gather_batch(
        pool,
        (features, pool.next_rows[:batch]),
        (labels, pool.next_labels[:batch]),
        (mask & ~good, jnp.zeros(batch, bool)),
    )
    batch = row_labels.shape[0] // 2
    entered = pool.entered + batch
    # Of the rows that leave, those that entered in this pass: none unless the batch crosses the end of the pass.
    leaving_age = batch - jnp.arange(batch, dtype=jnp.int32)
    refilled = leaving_age <= entered - capacity
    one = jnp.ones(batch, jnp.float32)
    live = jnp.concatenate([one, -one])
    filling = jnp.concatenate([one, -refilled.astype(jnp.float32)])
    pool = dataclasses.replace(
        _write(pool, features, labels), rejected=pool.rejected + jnp.sum(rejected, dtype=jnp.int32)
    )
    pool = _update_statistics(pool, rows, row_labels, live, filling)
    full = entered >= capacity
    return dataclasses.replace(
        pool,
        entered=jnp.where(full, 0, entered),
        passes=pool.passes + full.astype(jnp.int32),
    )


def _gather_batch(pool, features, labels, rejected):
    """The entering and the leaving block of all devices, in the order of the global batch, by one all-gather."""
    # Labels travel as float32, which is exact up to 2²⁴ classes.
    parts = jnp.stack(features), jnp.stack(labels)[..., None], jnp.stack(rejected)[..., None]
    packed = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)
    if pool.mesh is not None:
        packed = lax.all_gather(packed, pool.axis, axis=1, tiled=True)
    packed = packed.reshape(-1, packed.shape[-1])
    labels, rejected = packed[:, -2].astype(jnp.int32), packed[:, -1].astype(jnp.int32)
    return packed[:, :-2], labels, rejected


def _write(pool, features, labels):
    """Writes a block at the cursor and reads the block that leaves next."""
    places = pool.labels.shape[0]
    width = pool.labels.size // places

    def at(cursor, rows):
        return (cursor + jnp.arange(rows // width, dtype=jnp.int32)) % places

    here = at(pool.cursor, labels.shape[0])
    cursor = (pool.cursor + labels.shape[0] // width) % places
    ahead = at(cursor, pool.next_labels.shape[0])

    def put(ring, block):
        block = block.reshape(here.shape[0], *ring.shape[1:])
        ring = ring.at[here].set(block, unique_indices=True, mode="promise_in_bounds")
        following = ring.at[ahead].get(unique_indices=True, mode="promise_in_bounds")
        return ring, following

    rows, next_rows = put(pool.rows, features)
    ring_labels, next_labels = put(pool.labels, labels)
    return dataclasses.replace(
        pool,
        rows=rows,
        labels=ring_labels,
        next_rows=next_rows.reshape(pool.next_rows.shape),
        next_labels=next_labels.reshape(pool.next_labels.shape),
        cursor=cursor,
    )


def _update_statistics(pool, rows, labels, live, filling):
    """Adds rows with the given signs to both generations and publishes what is known of the touched classes.

    Args:
      pool: the pool.
      rows: float32 ``[n, dim]``, on every device.
      labels: int32 ``[n]``, -1 for none.
      live: ``[n]``, +1 or -1 for what a row does to the live generation.
      filling: ``[n]``, +1, -1 or 0 for the generation being filled.
    """
    old, fill = pool.statistics, pool.passes % 2
    generation = jnp.arange(2, dtype=jnp.int32)
    current = jnp.where(generation == fill, pool.passes, pool.passes - 1)  # the pass each generation is about
    classes = pool.count.shape[0]

    labels = jnp.where(labels < 0, classes, labels)
    order = jnp.argsort(labels, stable=True)
    rows, labels = rows[order], labels[order]
    sign = jnp.where((generation == fill)[None, :], filling[order][:, None], live[order][:, None])
    sign = jnp.where((labels < classes)[:, None], sign, 0.0)
    runs = _runs(labels, classes, min(labels.shape[0], pool.num_classes))

    def read(array, fill_value=0):
        return array.at[runs.classes].get(mode="fill", fill_value=fill_value)

    def write(array, values):
        return array.at[runs.classes].set(values, unique_indices=True, mode="drop")

    added = (sign > 0).astype(jnp.float32)
    sums = _run_sums(runs, jnp.concatenate([rows[:, None, :] * added[..., None], added[..., None]], axis=-1))
    first_mean = sums[..., :-1] / jnp.maximum(sums[..., -1:], 1.0)
    fresh = read(old.begun, _NEVER) != current[None, :]
    anchor = jnp.where(fresh[..., None], first_mean, read(old.anchor))
    offset = rows[:, None, :] - anchor[runs.of_row]
    change = _run_sums(runs, jnp.concatenate([offset * sign[..., None], sign[..., None]], axis=-1))
    total = jnp.where(fresh[..., None], 0.0, read(old.total)) + change[..., :-1]
    count = jnp.where(fresh, 0, read(old.count)) + change[..., -1].astype(jnp.int32)
    begun = jnp.where(count > 0, current[None, :], _NEVER)  # an emptied class begins anew, without residue

    samples = jnp.take(count, 1 - fill, axis=1)
    per_sample = 1.0 / jnp.maximum(samples, 1).astype(jnp.float32)
    shift = jnp.take(total, 1 - fill, axis=1) * per_sample[:, None]
    center = jnp.take(anchor, 1 - fill, axis=1) + shift
    moment, volume = _update_moments(pool, runs, offset, sign, fresh, samples, shift)
    failed = ~jnp.isfinite(volume)
    return dataclasses.replace(
        pool,
        statistics=Statistics(
            begun=write(old.begun, begun),
            count=write(old.count, count),
            anchor=write(old.anchor, anchor),
            total=write(old.total, total),
            moment=moment,
        ),
        count=write(pool.count, samples),
        center=write(pool.center, jnp.where((samples > 0)[:, None], center, 0.0)),
        volume=jnp.where(failed, pool.volume, volume),
        failed=pool.failed + jnp.sum(failed, dtype=jnp.int32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Runs:
    """Stretches of equal labels in sorted order: one per touched class, at most ``[touched]``."""

    classes: jax.Array  # [touched] the class; out of range where there is no run
    start: jax.Array  # [touched] its first row
    length: jax.Array  # [touched]
    of_row: jax.Array  # [n] the run of a row
    position: jax.Array  # [n] a row's place in its run


def _runs(labels, classes, most):
    rows = labels.shape[0]
    begins = jnp.concatenate([jnp.ones(1, bool), labels[1:] != labels[:-1]])
    start = jnp.nonzero(begins & (labels < classes), size=most, fill_value=rows)[0].astype(jnp.int32)
    stop = jnp.concatenate([start[1:], jnp.full(1, rows, jnp.int32)])
    stop = jnp.minimum(stop, jnp.sum(labels < classes, dtype=jnp.int32))
    # Unused entries get distinct classes out of range: the indices of a scatter stay unique.
    run_classes = labels.at[start].get(mode="fill", fill_value=classes)
    run_classes = jnp.where(start < rows, run_classes, classes + jnp.arange(most, dtype=jnp.int32))
    of_row = jnp.clip(jnp.cumsum(begins, dtype=jnp.int32) - 1, 0, most - 1)
    position = jnp.arange(rows, dtype=jnp.int32) - start.at[of_row].get(mode="clip")
    return _Runs(run_classes, start, jnp.maximum(stop - start, 0), of_row, position)


def _run_sums(runs, values):
    """Sums over each run, ``[n, …] → [touched, …]``, in a tree of doubling strides: no cancellation and no scatter.

    Strides beyond the longest run add nothing; a CPU leaves them out, and a GPU need not ask how long it is.
    """
    rows = jnp.arange(values.shape[0], dtype=jnp.int32)
    trailing = (-1, *[1] * (values.ndim - 1))

    def double(i, sums):
        stride = 1 << i
        earlier = sums.at[rows - stride].get(mode="clip")
        return sums + jnp.where((runs.position >= stride).reshape(trailing), earlier, 0)

    powers = jnp.arange((values.shape[0] - 1).bit_length(), dtype=jnp.int32)
    sums = lax.platform_dependent(
        values,
        cpu=lambda sums: lax.fori_loop(0, jnp.sum(1 << powers < jnp.max(runs.length)), double, sums),
        default=lambda sums: lax.fori_loop(0, len(powers), double, sums),
    )
    last = sums.at[runs.start + runs.length - 1].get(mode="clip")
    return jnp.where((runs.length > 0).reshape(trailing), last, 0)


def _update_moments(pool, runs, *touched):
    """Second moments of this device's classes, and everybody's volumes; NaN where a factorization failed.

    In blocks that suit the device: a GPU waits for its host at every turn of a loop that may end there, so that one
    block takes all classes and, where there is little to do, all rows that a class could have.
    """
    devices = 1 if pool.mesh is None else pool.mesh.shape[pool.axis]
    most, rows, dim = runs.classes.shape[0], runs.of_row.shape[0], pool.rows.shape[-1]
    small, large = min(_CLASS_BLOCK, most), min(-(-most // devices), max(_MOMENT_BLOCK // dim**2, 1))
    unasked = large == most and most * rows * dim**2 <= _UNASKED
    on_accelerator = {"rows": 16, "blocks": 1, "longest": rows} if unasked else {"rows": 8}
    moment, volume = lax.platform_dependent(
        pool,
        runs,
        *touched,
        cpu=partial(_update_blocks, classes=small, rows=4),
        default=partial(_update_blocks, classes=large, **on_accelerator),
    )
    if pool.mesh is not None:
        volume = lax.all_gather(volume, pool.axis, tiled=True)
    return moment, volume


def _update_blocks(pool, runs, offset, sign, fresh, samples, shift, *, classes, rows, blocks=None, longest=None):
    """So many classes at a time: their rows, in products of so many of each, then one factorization per class.

    How many blocks there are and how long the longest run is, is counted where no bound of them is given.
    """
    moment = pool.statistics.moment
    local = moment.shape[0]
    device = 0 if pool.mesh is None else lax.axis_index(pool.axis)
    begin = device * local
    live = 1 - pool.passes % 2
    scale = pool.rows.shape[-1] / pool.epsilon**2
    first, last = (jnp.sum(runs.classes < bound, dtype=jnp.int32) for bound in (begin, begin + local))

    def block(i, carry):
        moment, volume = carry
        run = first + i * classes + jnp.arange(classes, dtype=jnp.int32)

        def of_runs(array):
            return array.at[run].get(mode="clip")

        unused = local + jnp.arange(classes, dtype=jnp.int32)
        place = jnp.where(run < last, of_runs(runs.classes) - begin, unused)
        length = jnp.where(run < last, of_runs(runs.length), 0)

        def add(j, total):
            index = j * rows + jnp.arange(rows, dtype=jnp.int32)
            valid = index[None, :] < length[:, None]
            row = of_runs(runs.start)[:, None] + index[None, :]
            x = offset.at[row].get(mode="clip")
            signed = jnp.where(valid[..., None], sign.at[row].get(mode="clip"), 0.0)[..., None] * x
            for k in range(rows):  # one fused pass, and exact float32 where a matmul may be TF32
                total += signed[:, k, :, :, None] * x[:, k, :, None, :]
            return total

        kept = moment.at[place].get(mode="fill", fill_value=0.0, unique_indices=True)
        total = jnp.where(of_runs(fresh)[..., None, None], 0.0, kept)
        turns = ((jnp.max(length) if longest is None else longest) + rows - 1) // rows
        total = lax.fori_loop(0, turns, add, total)
        value = _volume(jnp.take(total, live, axis=1), of_runs(samples), of_runs(shift), scale)
        moment = moment.at[place].set(total, unique_indices=True, mode="drop")
        return moment, volume.at[place].set(value, unique_indices=True, mode="drop")

    volume = lax.dynamic_slice_in_dim(pool.volume, begin, local)
    if blocks is None:
        blocks = (last - first + classes - 1) // classes
    return lax.fori_loop(0, blocks, block, (moment, volume))


def _volume(moment, samples, shift, scale):
    """Volumes ``[classes]`` from second moments, row counts and the means relative to the anchors.

    A Cholesky factorization, NaN where it fails: the moments are a Gram matrix already, so little is left to lose.
    """
    covariance = moment / jnp.maximum(samples, 1).astype(moment.dtype)[:, None, None]
    covariance = covariance - shift[:, :, None] * shift[:, None, :]
    matrix = jnp.eye(shift.shape[1], dtype=moment.dtype)[None] + scale * covariance
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)
    bits = jnp.sum(jnp.log2(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
    return jnp.where(samples > 1, bits, 0.0)


def _all_volumes(pool, epsilon):
    """Every class's volume at another ``epsilon``, from the live generation."""
    live = 1 - pool.passes % 2
    moment = pool.statistics.moment
    local = moment.shape[0]
    begin = (0 if pool.mesh is None else lax.axis_index(pool.axis)) * local
    samples = lax.dynamic_slice_in_dim(pool.count, begin, local)
    total = lax.dynamic_slice_in_dim(pool.statistics.total, begin, local)
    scale = pool.rows.shape[-1] / epsilon**2

    def of_class(entry):
        moment, total, samples = entry
        shift = jnp.take(total, live, axis=0) / jnp.maximum(samples, 1).astype(jnp.float32)
        return _volume(jnp.take(moment, live, axis=0)[None], samples[None], shift[None], scale)[0]

    volume = lax.map(of_class, (moment, total, samples), batch_size=_CLASS_BLOCK)
    if pool.mesh is not None:
        volume = lax.all_gather(volume, pool.axis, tiled=True)
    return volume


def _sum_afresh(pool):
    """Empties the statistics and adds the rows again, oldest first, a block at a time."""
    places, width = pool.labels.shape[0], pool.labels.size // pool.labels.shape[0]
    block = max(pool.next_labels.shape[0] // width, 1)
    blocks = -(-places // block)
    devices = 1 if pool.mesh is None else lax.axis_size(pool.axis)

    def add(pool, i):
        step = i * block + jnp.arange(block, dtype=jnp.int32)
        place = (pool.cursor + step) % places
        labels = jnp.where((step < places).reshape(-1, *[1] * (pool.labels.ndim - 1)), pool.labels[place], -1)
        labels, features = labels.reshape(-1), pool.rows[place].reshape(-1, pool.rows.shape[-1])
        rows, labels, _ = _gather_batch(pool, (features,), (labels,), (jnp.zeros_like(labels),))
        age = (places - jnp.repeat(step, labels.shape[0] // block)) * width * devices
        live = jnp.ones(labels.shape[0], jnp.float32)
        return _update_statistics(pool, rows, labels, live, (age <= pool.entered).astype(jnp.float32)), None

    classes, dim = pool.center.shape
    empty = _no_statistics(classes, dim)
    empty = dataclasses.replace(empty, moment=jnp.zeros_like(pool.statistics.moment))
    pool = dataclasses.replace(
        pool,
        statistics=empty,
        count=jnp.zeros_like(pool.count),
        center=jnp.zeros_like(pool.center),
        volume=jnp.zeros_like(pool.volume),
    )
    return lax.scan(add, pool, jnp.arange(blocks, dtype=jnp.int32))[0]
