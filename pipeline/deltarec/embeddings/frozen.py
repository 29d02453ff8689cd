# SPDX-License-Identifier: Apache-2.0
"""Tables whose rows come from Parquet files and are never trained.

Frozen tables are sharded, looked up and exchanged like all others, in any precision, but live in
collections of their own, whose look-ups keep no graph: nothing of their vectors is exchanged or
computed in backward, and no optimiser has a state for them. (A learning rate of 0 would have given
the same weights, and cost an update of the rows at every step.) Quantised ones have the smallest
steps that hold each row's values, and the nearest codes. Ids without a vector have zeros.

The files hold a key and a list of numbers a row, as `deltarec text encode` writes them. They are
read wherever the model is built, also to resume, to warm-start or to predict, and what they hold
then is what counts: the vectors of new items reach a model that is trained. Checkpoints hold the
rows too, of which only a warm start of a table that is trained makes use.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from deltarec.config import Config
from deltarec.data.files import ParquetFile, find

BATCH_ROWS = 16_384
"""Rows read at a time."""


class FrozenConfig(Config):
    """Where a frozen table's rows come from."""

    source: str
    """Parquet file, or folder of them."""
    key: str
    """Integer column of the row's id."""
    column: str = "vector"
    """Column with a list of the table's `dim` numbers."""

    def files(self) -> list[ParquetFile]:
        return find(self.source, ["."], mend="mend or remove the file")


def check_files(name: str, config: FrozenConfig, dim: int) -> None:
    """Compare the files' columns with a table, without reading the rows.

    Raises:
        ValueError: a column is missing or of a type that cannot be the table's.
    """
    for file in config.files():
        for column in (config.key, config.column):
            if column not in file.schema.names:
                known = ", ".join(file.schema.names)
                raise ValueError(f"{file.path}: column '{column}' is missing; the file has {known}")
        if not pa.types.is_integer(file.schema.field(config.key).type):
            raise ValueError(f"{file.path}: column '{config.key}' must be an integer")
        found = file.schema.field(config.column).type
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_list(found) for is_list in kinds):
            raise ValueError(f"{file.path}: column '{config.column}' is {found}, not a list")
        if pa.types.is_fixed_size_list(found) and found.list_size != dim:
            raise ValueError(
                f"{file.path}: column '{config.column}' has lists of {found.list_size}, "
                f"embedding.tables.{name} has dim {dim}; set dim to {found.list_size}"
            )


def largest_value(config: FrozenConfig) -> float | None:
    """The largest number in the lists, by the files' statistics; None if they have none."""
    largest = None
    for file in config.files():
        for group in range(file.metadata.num_row_groups):
            row_group = file.metadata.row_group(group)
            for number in range(row_group.num_columns):
                column = row_group.column(number)
                if column.path_in_schema.split(".")[0] == config.column and column.statistics:
                    found = column.statistics.max
                    largest = found if largest is None else max(largest, found)
    return largest


def read_rows(
    name: str, config: FrozenConfig, table_rows: int, dim: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All rows of the files, a batch at a time: ids int64 `[n]`, vectors float32 `[n, dim]`.

    Raises:
        ValueError: an id is past the table, null or there twice; a list has another length, a null
            or a value that is not finite.
    """
    seen = torch.zeros(table_rows, dtype=torch.bool)
    for file in config.files():
        where = f"{file.path}: embedding.tables.{name}"
        opened = file.open()
        for batch in opened.iter_batches(BATCH_ROWS, columns=[config.key, config.column]):
            keys, lists = batch[config.key], batch[config.column]
            flat = lists.flatten()
            if keys.null_count or lists.null_count or flat.null_count:
                raise ValueError(f"{where}: a key, a list or a number in it is null")
            if len(flat) != len(lists) * dim or set(lists.value_lengths().to_pylist()) - {dim}:
                raise ValueError(f"{where}: a list has not {dim} numbers, the table's dim")
            vectors = torch.from_numpy(flat.to_numpy(zero_copy_only=False).astype(np.float32))
            ids = torch.from_numpy(keys.to_numpy(zero_copy_only=False).astype(np.int64))
            outside = (ids < 0) | (ids >= table_rows)
            if outside.any():
                found = int(ids[outside][0])
                raise ValueError(f"{where}: id {found} is past the table's {table_rows} rows")
            counts = ids.unique(return_counts=True)
            twice = torch.cat([ids[seen[ids]], counts[0][counts[1] > 1]])
            if len(twice):
                raise ValueError(f"{where}: id {int(twice[0])} is there twice")
            if not vectors.isfinite().all():
                raise ValueError(f"{where}: a vector has a value that is not finite")
            seen[ids] = True
            yield ids, vectors.view(-1, dim)
