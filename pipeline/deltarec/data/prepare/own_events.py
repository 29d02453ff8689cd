# SPDX-License-Identifier: Apache-2.0
"""Anybody's event log, Parquet of any size, to training rows with histories of feedback.

Every event is a row: its own columns (what was known before, and labels), and histories of what its
user did and saw before it, strictly causal (`event_log.py`). The log is cut by user into partitions
first, so that memory is that of one partition; a split reads them one after the other.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from deltarec.config import Config
from deltarec.data.prepare.dataset import SPLITS, Dataset, write_split
from deltarec.data.prepare.event_log import EventLog, Feedback, aligned, by_user_and_time
from deltarec.data.prepare.partitions import (
    EVENTS_PER_PARTITION,
    partition_by_user,
    read_partition,
)
from deltarec.data.transforms import hash_ids, kind_of

CHUNK_EVENTS = 1_048_576
CHUNK_ROWS = 65_536


class History(Config):
    """A list of items of the user's earlier events of one type."""

    column: str
    """Which type: events whose value in this column, an integer or a bool, is `value`."""
    value: int = 1
    last: int = Field(default=30, ge=1)
    """The latest so many of them."""
    around: str | None = None
    """Another history. Then instead of `last`: a list for each of its events, of what stands around
    it in the user's log, by rank."""
    each_side: int = Field(default=5, ge=1)
    """How many before, and after, each event of `around`."""
    max_gap: int | None = Field(default=None, ge=0)
    """And none further from it in time than this, in the unit of `time`; any if not given."""


class OwnEvents(Dataset):
    """A log of your own: Parquet files in a folder, read in the order of their names."""

    dataset: Literal["own-events"] = "own-events"
    user: str = "user"
    """Column of the user, integers or strings."""
    item: str = "item"
    """Column of the item; histories are lists of its values."""
    time: str = "time"
    """Column of the time, integers. Events of one user and time are not in each other's past."""
    histories: dict[str, History] = Field(min_length=1)
    """By the name of their column."""
    valid_from: int
    """Time of the first event of the validation data; before it is train."""
    test_from: int
    """Time of the first event of the test data."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the rows."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.valid_from >= self.test_from:
            raise ValueError(f"test_from {self.test_from}: not after valid_from {self.valid_from}")
        for name, history in self.histories.items():
            idle = {"last"} if history.around else {"each_side", "max_gap"}
            for key in sorted(idle & history.model_fields_set):
                raise ValueError(
                    f"histories.{name}.{key}: does nothing "
                    f"{'beside' if history.around else 'without'} 'around'; leave it out"
                )
            first = self.histories.get(history.around) if history.around else None
            if history.around and (first is None or first.around):
                plain = [n for n, other in self.histories.items() if other.around is None]
                raise ValueError(
                    f"histories.{name}.around: got '{history.around}', expected one of "
                    f"{', '.join(plain)}"
                )
        return self

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        files = sorted(source.rglob("*.parquet"))
        if not files:
            raise ValueError(f"{source}: there are no .parquet files")
        schemas = [pq.read_schema(file) for file in files]
        self._check(schemas[0], files[0])
        for file, schema in zip(files, schemas, strict=True):
            _check_alike(schema, file, schemas[0], files[0])
        num_events = sum(pq.read_metadata(file).num_rows for file in files)
        num_partitions = min(-(-num_events // EVENTS_PER_PARTITION), 65_536)
        counts: dict[str, int] = dict.fromkeys((*SPLITS, *self.histories), 0)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            log = self._counted(_read(files), counts)
            parts = partition_by_user(log, self.user, num_partitions, Path(folder))
            for name, history in self.histories.items():
                if not counts[name]:
                    raise ValueError(
                        f"{source}: histories.{name}: no event has {history.value} in column "
                        f"'{history.column}'"
                    )
            for split in SPLITS:
                if not counts[split]:
                    raise ValueError(
                        f"{source}: no event of the {split} data; mend valid_from "
                        f"{self.valid_from} and test_from {self.test_from}"
                    )
                write_split(target, split, counts[split], self._tables(parts, split))
        return {
            "notes": [
                f"{name} has a list for each of {history.around}"
                for name, history in self.histories.items()
                if history.around
            ]
        }

    def _check(self, schema: pa.Schema, file: Path) -> None:
        integers = [self.time, *(history.column for history in self.histories.values())]
        for column in [self.user, self.item, *integers]:
            if column not in schema.names:
                raise ValueError(
                    f"{file}: column '{column}' is missing; the file has {', '.join(schema.names)}"
                )
        for column in integers:
            found = schema.field(column).type
            if not (pa.types.is_integer(found) or pa.types.is_boolean(found)):
                raise ValueError(f"{file}: column '{column}' is {found}; it needs to be integers")
        found = schema.field(self.user).type
        if kind_of(found) not in ("integer", "string"):
            raise ValueError(
                f"{file}: column '{self.user}' is {found}; users need to be integers or strings"
            )
        taken = set(schema.names) & set(self.histories)
        if taken:
            raise ValueError(
                f"{file}: already has a column '{min(taken)}'; choose another name in histories"
            )

    def _counted(self, log: Iterator[pa.Table], counts: dict[str, int]) -> Iterator[pa.Table]:
        for table in log:
            for column, what in ((self.time, "time"), (self.user, "user")):
                if table[column].null_count:
                    raise ValueError(f"column '{column}' has nulls: every event needs a {what}")
            splits = self._split(table[self.time].to_numpy())
            for split, count in zip(SPLITS, np.bincount(splits, minlength=3), strict=True):
                counts[split] += int(count)
            for name, history in self.histories.items():
                counts[name] += int((table[history.column].to_numpy() == history.value).sum())
            yield table

    def _split(self, time: NDArray) -> NDArray[np.int64]:
        """Of each event, the position of its split."""
        return np.searchsorted([self.valid_from, self.test_from], time, side="right")

    def _tables(self, parts: list[Path], split: str) -> Iterator[pa.Table]:
        for number, path in enumerate(parts):
            events = _Events(self, read_partition(path))
            rows = np.flatnonzero(self._split(events.time) == SPLITS.index(split))
            rows = np.random.default_rng([self.seed, number]).permutation(rows)
            for begin in range(0, len(rows), CHUNK_ROWS):
                yield events.table(rows[begin : begin + CHUNK_ROWS])


class _Events:
    """The events of some users with what is needed for their histories."""

    def __init__(self, options: OwnEvents, events: pa.Table) -> None:
        time = events[options.time].to_numpy()
        user = hash_ids(events[options.user].combine_chunks())
        order = by_user_and_time(user, time)
        self.columns = events.take(pa.array(order))
        self.time = time[order]
        self.histories = options.histories
        self.items = self.columns[options.item].combine_chunks()
        log = EventLog(user[order], self.time)
        self.feedback = {
            name: Feedback(log, self.columns[history.column].to_numpy() == history.value)
            for name, history in self.histories.items()
        }
        self.windows = {
            name: self.feedback[name].around(
                self.feedback[history.around], history.each_side, history.max_gap
            )
            for name, history in self.histories.items()
            if history.around
        }

    def table(self, rows: NDArray[np.int64]) -> pa.Table:
        """These events with their histories, in this order."""
        table = self.columns.take(pa.array(rows))
        for name, history in self.histories.items():
            feedback = self.feedback[name]
            items = self.items.take(pa.array(feedback.events))
            if history.around is None:
                lists = feedback.last(rows, history.last).lists(items)
            else:
                first = self.feedback[history.around]
                kept = first.last(rows, self.histories[history.around].last)
                lists = aligned(kept, self.windows[name], feedback, rows, items)
            table = table.append_column(name, lists)
        return table


def _check_alike(schema: pa.Schema, file: Path, wanted: pa.Schema, first: Path) -> None:
    """Files of one log have the same columns, in any order."""
    names, known = set(schema.names), set(wanted.names)
    for name in sorted(names ^ known):
        having, lacking = (file, first) if name in names else (first, file)
        raise ValueError(f"{lacking}: has no column '{name}', which {having} has")
    for name in wanted.names:
        if schema.field(name).type != wanted.field(name).type:
            raise ValueError(
                f"{file}: column '{name}' is {schema.field(name).type}, and "
                f"{wanted.field(name).type} in {first}"
            )


def _read(files: list[Path]) -> Iterator[pa.Table]:
    """In pieces of one schema, without dictionaries, which differ from piece to piece."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in pq.read_schema(files[0])
    ]
    schema = pa.schema(fields)
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK_EVENTS):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
