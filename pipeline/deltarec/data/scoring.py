# SPDX-License-Identifier: Apache-2.0
"""Rows to score: Parquet files without labels, in their order, with key columns carried along.

The rows are cut into *parts* and each part into batches. Where the cuts are follows from the input
alone, and a batch is padded to one size, so whoever scores a batch computes the same.
"""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
import pyarrow as pa
import torch

from deltarec.data.batch import Batch, Position, make_batch
from deltarec.data.block import Block
from deltarec.data.decode import decode
from deltarec.data.files import UNREADABLE, ParquetFile
from deltarec.data.schema import Schema

MAX_ROWS_PER_PART = 262_144
MIN_PARTS = 24
"""Of an input that has so many batches: numbers of ranks that divide it get equal shares."""
ROWS_AT_ONCE = 131_072
"""Rows that are read from a file at once."""


@dataclass(frozen=True)
class Rows:
    """What is known of one batch's rows, n of them."""

    span: range
    keys: pa.Table
    """`[n]`."""
    invalid: Counter[str]
    """Values that each policy mended."""
    batch: Batch


class Input:
    """The rows to score, numbered through all files, and cut into parts and batches.

    Args:
        schema: of the job; the files need no labels, user, weight and slices.
        files: what `files.find` found.
        keys: columns to carry along, of any type.
        batch_size: rows that a rank scores at a time.
        rows_per_part: rounded up to whole batches; follows from the number of rows if not given.

    Raises:
        ValueError: a column is missing or of a wrong type, or the keys differ between files.
    """

    def __init__(
        self,
        schema: Schema,
        files: Sequence[ParquetFile],
        keys: Sequence[str],
        batch_size: int,
        rows_per_part: int | None = None,
    ) -> None:
        self.files = files
        self.schema = replace(schema, tasks={}, user=None, weight=None, slices={})
        self.tasks = list(schema.tasks)
        self.batch_size = batch_size
        self.key_schema = _key_schema(files, keys)
        scores = [(f"score_{task}", pa.float32()) for task in self.tasks]
        self.output_schema = pa.schema([*self.key_schema, *(pa.field(*score) for score in scores)])
        for name, _ in scores:
            if name in keys:
                raise ValueError(f"--keys: '{name}' is the name of a column of scores")
        for file in files:
            self.schema.check(file.schema, file.path)
        self._groups = [(file, group) for file in files for group in range(len(file.row_groups))]
        sizes = [rows for file in files for rows in file.row_groups]
        self._bounds = [0, *accumulate(sizes)]
        self.num_rows = self._bounds[-1]
        wanted = rows_per_part or min(MAX_ROWS_PER_PART, -(-self.num_rows // MIN_PARTS))
        self.rows_per_part = -(-wanted // batch_size) * batch_size
        self.num_parts = -(-self.num_rows // self.rows_per_part)

    def part(self, number: int) -> range:
        """The rows of a part."""
        start = number * self.rows_per_part
        return range(start, min(start + self.rows_per_part, self.num_rows))

    def batches(self, part: int) -> list[range]:
        """The rows of each batch of a part."""
        rows, size = self.part(part), self.batch_size
        return [range(i, min(i + size, rows.stop)) for i in range(rows.start, rows.stop, size)]

    def read(self, parts: Sequence[int]) -> Iterator["Rows"]:
        """The batches of ascending parts.

        Raises:
            ValueError: a file is damaged, or a value is not valid and its policy is `error`.
        """
        spans = list(chain.from_iterable(self.batches(part) for part in parts))
        for span, tables in zip(spans, self._tables(spans), strict=True):
            ends = list(accumulate(table.num_rows for table in tables))
            index = np.arange(span.start, span.stop)
            pieces = zip(tables, np.split(index, ends[:-1]), strict=True)
            block = Block.concat([decode(self.schema, *piece, self._place) for piece in pieces])
            keys = pa.concat_tables(
                pa.Table.from_arrays(
                    [table.column(name) for name in self.key_schema.names], schema=self.key_schema
                )
                for table in tables
            )
            yield Rows(span, keys, block.invalid, self._batch(block))

    def empty(self) -> Batch:
        """A batch of padding alone."""
        table = self.files[0].schema.empty_table()
        return self._batch(decode(self.schema, table, np.empty(0, dtype=np.int64), self._place))

    def _batch(self, block: Block) -> Batch:
        batch = make_batch(
            block, self.schema, self.batch_size, block.num_rows, epoch=0, after=Position()
        )
        shape = (self.batch_size, len(self.tasks))
        return replace(batch, labels=torch.zeros(shape), mask=torch.zeros(shape, dtype=torch.bool))

    def _tables(self, spans: Sequence[range]) -> Iterator[list[pa.Table]]:
        """The rows of each of several ascending ranges; what lies between them is skipped."""
        columns = list(dict.fromkeys([*self.schema.columns(), *self.key_schema.names]))
        left = deque(spans)
        parts: list[pa.Table] = []
        for (file, group), first, last in zip(
            self._groups, self._bounds, self._bounds[1:], strict=False
        ):
            if not left or left[0].start >= last:
                continue
            start = first
            for table in _read_row_group(file, group, columns):
                stop = start + table.num_rows
                while left and left[0].start < stop:
                    low, high = max(left[0].start, start), min(left[0].stop, stop)
                    parts.append(table.slice(low - start, high - low))
                    if left[0].stop > stop:
                        break
                    yield parts
                    parts = []
                    left.popleft()
                start = stop
                if not left or left[0].start >= last:
                    break

    def _place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number there."""
        group = bisect_right(self._bounds, row) - 1
        file, within = self._groups[group]
        return file.path, row - self._bounds[group - within]

    def check_finite(self, rows: range, scores: np.ndarray) -> None:
        """Refuse scores `[rows, T]` that are no numbers.

        Raises:
            ValueError: one is NaN or infinite.
        """
        bad = np.argwhere(~np.isfinite(scores))
        if len(bad):
            row, task = bad[0]
            path, number = self._place(rows[int(row)])
            raise ValueError(
                f"{path}: row {number}: the score of task '{self.tasks[task]}' is "
                f"{scores[row, task]}; look for extreme values in the row, or a broken checkpoint"
            )


def _key_schema(files: Sequence[ParquetFile], keys: Sequence[str]) -> pa.Schema:
    fields: list[pa.Field] = []
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"--keys: '{key}' is there twice")
        for file in files:
            count = file.schema.names.count(key)
            if count != 1:
                found = "is there twice" if count else "is missing"
                raise ValueError(f"{file.path}: key column '{key}' {found}")
            field = file.schema.field(key)
            if file is files[0]:
                fields.append(pa.field(key, field.type))
            elif field.type != fields[-1].type:
                raise ValueError(
                    f"{file.path}: key column '{key}' is {field.type}, but {fields[-1].type} in "
                    f"{files[0].path}; give all files one type"
                )
    return pa.schema(fields)


def _read_row_group(file: ParquetFile, group: int, columns: list[str]) -> Iterator[pa.Table]:
    threads = pa.cpu_count() > 1
    try:
        with file.open() as parquet:
            for batch in parquet.iter_batches(ROWS_AT_ONCE, [group], columns, use_threads=threads):
                yield pa.Table.from_batches([batch])
    except UNREADABLE as error:
        raise ValueError(
            f"{file.path}: row group {group} cannot be read, the file is damaged: {error}"
        ) from error
