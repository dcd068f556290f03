"""Features and labels in the columns of ``.parquet`` files, read in batches."""

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dsb_jax import validation
from dsb_jax.toolkit import points
from dsb_jax.toolkit.inputs import names, sources

# Bytes of each column, and of all, that are read at a time; else it would be all that a row group has.
_BUFFER, _BUFFERS = 2**20, 2**26


@dataclasses.dataclass(frozen=True)
class TableSource:
    """Columns of a file as a :class:`sources.Source`.

    Attributes:
      path: of the file.
      features: the column of lists, or columns of numbers.
      target: the column of the labels; None for rows of one class.
      samples: rows.
      dim: d.
      key: what the label of all rows is, where it is that of a folder ``target=key``.
    """

    path: str
    features: tuple[str, ...]
    target: str | None
    samples: int
    dim: int
    key: str | None = None
    space: str = "feature"

    @property
    def row_bytes(self) -> int:
        return 8 * self.dim

    @property
    def has_labels(self) -> bool:
        return self.target is not None

    def labels(self, size: int) -> Iterator[pa.Array]:
        if self.key is not None:
            yield pa.array([self.key][: self.samples])
        elif self.target is not None:
            yield from (batch.column(0) for batch in self._batches([self.target], size))

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, pa.Array | None]]:
        stored = [] if self.target is None or self.key is not None else [self.target]
        first = 0
        for batch in self._batches([*self.features, *stored], size):
            columns = [batch.column(name) for name in self.features]
            numbers = [self._numbers(name, column, first) for name, column in zip(self.features, columns, strict=True)]
            labels = batch.column(self.target) if stored else None
            if self.key is not None:
                labels = pa.repeat(self.key, batch.num_rows)
            yield numbers[0].reshape(-1, self.dim) if len(numbers) == 1 else np.stack(numbers, axis=1), labels
            first += batch.num_rows

    def _batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        with sources.reading(self.path), _opened(self.path, len(columns)) as file:
            yield from file.iter_batches(size, columns=columns)

    def _numbers(self, name: str, column: pa.Array, first: int) -> np.ndarray:
        """The numbers of a column, those of lists one list after the other."""
        column = _plain(column)
        if column.null_count:
            raise ValueError(f"{self.path}: column {name} has nothing (null) in row {first + _first(column.is_null())}")
        if _is_list(column.type):
            lengths = pc.list_value_length(column)
            if (others := pc.not_equal(lengths, self.dim)).true_count:
                row = _first(others)
                raise ValueError(
                    f"{self.path}: column {name} must have lists of one length, got {self.dim} numbers in row 0 and "
                    f"{lengths[row]} in row {first + row}"
                )
            column = column.flatten()
            if column.null_count:
                row = _first(column.is_null()) // self.dim
                raise ValueError(f"{self.path}: column {name} has nothing (null) in a list, that of row {first + row}")
        numbers = column.to_numpy(zero_copy_only=False)
        return points.floating(numbers)


def open_parquet(path: str, *, features: str | None, labels: str | None) -> TableSource:
    """Columns of a ``.parquet`` file.

    Args:
      path: of the file; of a folder called ``name=value`` in it, all rows have that value in a column of that name.
      features: a column of lists of one length, or a pattern such as ``f*`` for columns of numbers, taken in natural
        order; by default as is usual, else the only column of lists of numbers.
      labels: the column of integers or strings; by default as is usual.

    Raises:
      ValueError: the file is damaged, or has no such columns.
    """
    with sources.reading(path), _opened(path) as file:
        schema, samples = file.schema_arrow, file.metadata.num_rows
        chosen = _features(schema, features, path)
        dim = len(chosen) if len(chosen) > 1 else _dim(file, chosen[0])
    keys = _folder_keys(path)
    others = [name for name in (*schema.names, *keys) if name not in chosen]
    target = sources.chosen_labels("column", labels, others, path=path)
    if target is None or target in schema.names:
        return TableSource(path, chosen, target, samples, dim)
    if keys[target] is None:
        raise ValueError(f"{path} is in a folder of rows without a {target}")
    return TableSource(path, chosen, target, samples, dim, str(keys[target]))


def _opened(path: str, columns: int = 1) -> pq.ParquetFile:
    return pq.ParquetFile(sources.opened(path), buffer_size=min(_BUFFER, _BUFFERS // columns), pre_buffer=False)


def _features(schema: pa.Schema, wanted: str | None, path: str) -> tuple[str, ...]:
    kinds = {name: _of_numbers(schema.field(name).type) for name in schema.names}
    lists = [name for name, kind in kinds.items() if kind == "list"]
    if wanted is None:
        usual = [name for name in sources.FEATURES if name in lists] or lists
        if not usual or (len(usual) > 1 and usual[0] not in sources.FEATURES):
            raise ValueError(
                f"{path}: which columns have the features? {len(lists) or 'None'} hold lists of numbers; there are "
                f"{', '.join(f'{name} ({schema.field(name).type})' for name in schema.names)}; name one, or several "
                "by a pattern such as 'f*'"
            )
        return (usual[0],)
    chosen = tuple(names.in_order(fnmatch.filter(schema.names, wanted))) or (wanted,)
    if set("*?[") & set(wanted) and chosen == (wanted,):
        raise ValueError(f"{path}: no column is called {wanted!r}; there are {', '.join(schema.names)}")
    if wanted in schema.names:
        chosen = (wanted,)
    for name in chosen:
        if name not in kinds:
            raise ValueError(f"{path}: {validation.unknown_name('column', name, schema.names)}")
        if kinds[name] is None or (kinds[name] == "list" and len(chosen) > 1):
            raise ValueError(
                f"{path}: features must be one column of lists of numbers, or several of numbers; {name} is "
                f"{schema.field(name).type}{f', one of {len(chosen)} columns' if len(chosen) > 1 else ''}"
            )
    return chosen


def _of_numbers(kind: pa.DataType) -> str | None:
    """``"list"`` for lists of numbers, ``"number"`` for numbers, and None for anything else."""
    kind = getattr(kind, "storage_type", kind)
    inner = kind.value_type if _is_list(kind) else kind
    if not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        return None
    return "list" if _is_list(kind) else "number"


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _plain(column: pa.Array) -> pa.Array:
    """Tensors as the lists that they are stored as."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _dim(file: pq.ParquetFile, name: str) -> int:
    """Numbers in the first row."""
    for batch in file.iter_batches(1, columns=[name]):
        first = _plain(batch.column(0))[0].as_py()
        return len(first) if isinstance(first, list) else 1
    return 0


def _first(mask: pa.Array) -> int:
    """Where the first true value is."""
    return pc.index(mask, True).as_py()


def _folder_keys(path: str) -> dict[str, int | str]:
    """Columns that a file has by the folders that it is in, such as ``label=cat``."""
    file_system, inner = sources.located(path)
    folders = ds.dataset(inner, filesystem=file_system, format="parquet", partitioning="hive")
    return ds.get_partition_keys(next(folders.get_fragments()).partition_expression)
