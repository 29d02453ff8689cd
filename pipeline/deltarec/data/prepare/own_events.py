# SPDX-License-Identifier: Apache-2.0
"""Anybody's event log, Parquet of any size, to training rows with histories of feedback.

Every event is a row: its own columns (what was known before, and labels), histories of what its
user did and saw before it, strictly causal (`event_log.py`), and a column for each behaviour, as
graphs and pairwise tasks want them. The log is cut by user into partitions first, so that memory is
that of one partition; a split reads them one after the other.
"""

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from deltarec.config import Config
from deltarec.data.files import one_line
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


class EventType(Config):
    """Events of one type."""

    column: str
    """Of integers, bools or strings: events of the type have `value` there; a null is none."""
    value: int | str = 1

    def of(self, events: pa.Table) -> NDArray[np.bool_]:
        """Whether each event is of the type, `[events]`."""
        column = events[self.column]
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        found = pc.equal(column, self.value)  # pyright: ignore
        return pc.fill_null(found, False).combine_chunks().to_numpy(zero_copy_only=False)  # pyright: ignore


class History(EventType):
    """A list of items of the user's earlier events of one type."""

    last: int = Field(default=30, ge=1)
    """The latest so many of them."""
    around: str | None = None
    """Another history. Then instead of `last`: a list for each of its events, of what stands around
    it in the user's log, by rank."""
    each_side: int = Field(default=5, ge=1)
    """How many before, and after, each event of `around`."""
    max_gap: int | None = Field(default=None, ge=0)
    """And none further from it in time than this, in the unit of `time`, seconds if that column is
    of timestamps; any if not given."""


class OwnEvents(Dataset):
    """A log of your own: a Parquet file, or those of a folder in the order of their names."""

    dataset: Literal["own-events"] = "own-events"
    user: str = "user"
    """Column of the user, integers or strings."""
    item: str = "item"
    """Column of the item; histories are lists of its values."""
    time: str = "time"
    """Column of the time, integers, timestamps or dates. Events of one user and time are not in
    each other's past."""
    histories: dict[str, History] = {}  # noqa: RUF012
    """By the name of their column."""
    behaviours: dict[str, EventType] = {}  # noqa: RUF012
    """By the name of a column that has the item in events of this type, and null in all others:
    what `model.graph` and pairwise tasks are made of."""
    valid_from: int | str
    """Time of the first event of the validation data; before it is train. Of timestamps in ISO
    form, `2026-01-31` or `2026-01-31T12:00`, in UTC if no zone is said."""
    test_from: int | str
    """Likewise of the test data."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the rows."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        bounds = self._bounds
        if type(self.valid_from) is not type(self.test_from):
            raise ValueError("valid_from and test_from: one is a number, the other a date")
        if bounds[0] >= bounds[1]:
            raise ValueError(f"test_from {self.test_from}: not after valid_from {self.valid_from}")
        twice = set(self.histories) & set(self.behaviours)
        if twice:
            raise ValueError(f"behaviours.{min(twice)}: is the name of a history; choose another")
        if not self.histories and not self.behaviours:
            raise ValueError("name histories or behaviours, or what should be made of the log?")
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

    @property
    def _bounds(self) -> list[int]:
        """Where validation and test data begin, in the unit of `_times`."""
        return [_moment(key, getattr(self, key)) for key in ("valid_from", "test_from")]

    @property
    def units_of_a_gap(self) -> int:
        """Of `max_gap`, in the unit of `_times`."""
        return 1_000_000 if isinstance(self.valid_from, str) else 1

    @property
    def _types(self) -> dict[str, EventType]:
        """Of all columns that are made, by their key."""
        histories = {f"histories.{name}": history for name, history in self.histories.items()}
        return histories | {f"behaviours.{name}": kind for name, kind in self.behaviours.items()}

    def files(self, source: Path) -> dict[str, int]:
        return {
            str(file.relative_to(source.parent)): file.stat().st_size for file in _files(source)
        }

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        files = _files(source)
        schemas = [_schema(file) for file in files]
        self._check(schemas[0], files[0])
        for file, schema in zip(files, schemas, strict=True):
            _check_alike(schema, file, schemas[0], files[0])
        num_events = sum(pq.read_metadata(file).num_rows for file in files)
        if not num_events:
            raise ValueError(f"{source}: the log has no rows")
        num_partitions = min(-(-num_events // EVENTS_PER_PARTITION), 65_536)
        counts: dict[str, int] = dict.fromkeys((*SPLITS, *self._types), 0)
        sizes: dict[str, int] = {}
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            log = self._counted(_read(files), counts, sizes)
            parts = partition_by_user(log, self.user, num_partitions, Path(folder))
            for key, kind in self._types.items():
                if not counts[key]:
                    raise ValueError(
                        f"{source}: {key}: no event has {kind.value} in column '{kind.column}'"
                    )
            for split in SPLITS:
                if not counts[split]:
                    raise ValueError(
                        f"{source}: no event of the {split} data; mend valid_from "
                        f"{self.valid_from} and test_from {self.test_from}"
                    )
                write_split(target, split, counts[split], self._tables(parts, split))
        return {
            "table_sizes": sizes,
            "notes": [
                f"{name} has a list for each of {history.around}"
                for name, history in self.histories.items()
                if history.around
            ],
        }

    def _check(self, schema: pa.Schema, file: Path) -> None:
        types = self._types
        for column in [self.user, self.item, self.time, *(t.column for t in types.values())]:
            if column not in schema.names:
                raise ValueError(
                    f"{file}: column '{column}' is missing; the file has {', '.join(schema.names)}"
                )
        found = schema.field(self.time).type
        if not (pa.types.is_integer(found) or _is_moment(found)):
            raise ValueError(
                f"{file}: column '{self.time}' is {found}; it needs to be integers or timestamps"
            )
        if _is_moment(found) != isinstance(self.valid_from, str):
            wanted = "a date in ISO form" if _is_moment(found) else "a number"
            raise ValueError(
                f"{file}: column '{self.time}' is {found}; valid_from and test_from need to be "
                f"{wanted}"
            )
        for key, kind in types.items():
            found = _plain(schema.field(kind.column).type)
            is_text = kind_of(found) == "string"
            if not (is_text or pa.types.is_integer(found) or pa.types.is_boolean(found)):
                raise ValueError(
                    f"{file}: column '{kind.column}' is {found}; it needs to be integers, bools or "
                    "strings"
                )
            if is_text != isinstance(kind.value, str):
                raise ValueError(
                    f"{file}: {key}.value: got {kind.value!r}, but column '{kind.column}' is "
                    f"{found}"
                )
        found = schema.field(self.user).type
        if kind_of(found) not in ("integer", "string"):
            raise ValueError(
                f"{file}: column '{self.user}' is {found}; users need to be integers or strings"
            )
        taken = set(schema.names) & {*self.histories, *self.behaviours}
        if taken:
            where = "histories" if min(taken) in self.histories else "behaviours"
            raise ValueError(
                f"{file}: already has a column '{min(taken)}'; choose another name in {where}"
            )

    def _counted(
        self, log: Iterator[pa.Table], counts: dict[str, int], sizes: dict[str, int]
    ) -> Iterator[pa.Table]:
        for table in log:
            for column, what in ((self.time, "time"), (self.user, "user"), (self.item, "item")):
                if table[column].null_count:
                    raise ValueError(
                        f"column '{column}' has {table[column].null_count:,} nulls among "
                        f"{len(table):,} rows: every event needs a{'n' * (what == 'item')} {what}"
                    )
            splits = self._split(_times(table[self.time]))
            for split, count in zip(SPLITS, np.bincount(splits, minlength=3), strict=True):
                counts[split] += int(count)
            for key, kind in self._types.items():
                counts[key] += int(kind.of(table).sum())
            for column in (self.user, self.item):
                if len(table) and pa.types.is_integer(table[column].type):
                    largest = pc.max(table[column]).as_py()  # pyright: ignore
                    sizes[column] = max(sizes.get(column, 0), largest + 1)
            yield table

    def _split(self, time: NDArray) -> NDArray[np.int64]:
        """Of each event, the position of its split."""
        return np.searchsorted(self._bounds, time, side="right")

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
        time = _times(events[options.time])
        user = hash_ids(events[options.user].combine_chunks())
        order = by_user_and_time(user, time)
        self.columns = events.take(pa.array(order))
        self.time = time[order]
        self.histories, self.behaviours = options.histories, options.behaviours
        self.item = options.item
        self.items = self.columns[options.item].combine_chunks()
        log = EventLog(user[order], self.time)
        self.feedback = {
            name: Feedback(log, history.of(self.columns))
            for name, history in self.histories.items()
        }
        self.windows = {
            name: self.feedback[name].around(
                self.feedback[history.around],
                history.each_side,
                None if history.max_gap is None else history.max_gap * options.units_of_a_gap,
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
        for name, kind in self.behaviours.items():
            item = table[self.item].combine_chunks()
            nothing = pa.scalar(None, item.type)
            table = table.append_column(name, pc.if_else(pa.array(kind.of(table)), item, nothing))  # pyright: ignore
        return table


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{source}: there are no .parquet files")
    return files


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file: {one_line(error)}") from error


def _plain(found: pa.DataType) -> pa.DataType:
    """The type that `_read` gives a column."""
    return found.value_type if pa.types.is_dictionary(found) else found


def _is_moment(found: pa.DataType) -> bool:
    return pa.types.is_timestamp(found) or pa.types.is_date(found)


def _times(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Of integers themselves, of timestamps the microseconds since 1970 in UTC."""
    if _is_moment(column.type):
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return column.to_numpy()


def _moment(key: str, value: int | str) -> int:
    """A bound of a split in the unit of `_times`."""
    if isinstance(value, int):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{key}: got '{value}', expected a date such as 2026-01-31") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


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
    schema = pa.schema([field.with_type(_plain(field.type)) for field in pq.read_schema(files[0])])
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK_EVENTS):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
