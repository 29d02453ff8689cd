# SPDX-License-Identifier: Apache-2.0
"""Events in the order of time, cut into partitions `date=YYYY-MM-DD/hour=HH`, for streaming jobs.

Cuts are at full hours (UTC), where each partition gets about as many events as any other; its name
is the hour of its first event. `_SUCCESS` is written last, when a partition is whole. For each id
column NAME there are beside the raw ids

    NAME_row      its number in the order of first appearance: the row of a table that never forgets
    NAME_seen     how many events with a smaller time have this id
    NAME_trained  how many events of earlier partitions have it: what a model that is tested on this
                  partition before it is trained on it has learned of the id

`dataset.json` has the number of ids as the table size of NAME_row.
"""

from abc import abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, row_group_ends, write_tables
from deltarec.data.prepare.event_log import EventLog, by_user_and_time, stable_order

HOUR = 3600
SUCCESS = "_SUCCESS"
Integers = NDArray[np.integer[Any]]


class Events(NamedTuple):
    """What happened, in any order."""

    time: NDArray[np.int64]
    """Unix seconds `[events]`."""
    ids: dict[str, Integers]
    """Raw ids `[events]`, by the name of their column."""
    others: dict[str, Any]
    """Further columns."""


class StreamDataset(Dataset):
    """A dataset of partitions instead of splits."""

    partitions: int = Field(default=50, ge=1)
    """How many, or as many as there are full hours to cut at."""

    @abstractmethod
    def events(self, source: Path) -> Events:
        """All events.

        Raises:
            ValueError: a raw file is missing.
        """

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        return write_stream(self.events(source), self.partitions, target)

    def count_rows(self, target: Path) -> dict[str, int]:
        files = target.glob("date=*/hour=*/*.parquet")
        return {"stream": sum(pq.read_metadata(file).num_rows for file in files)}


def write_stream(events: Events, num_partitions: int, target: Path) -> dict[str, Any]:
    """Write all partitions; returns what `dataset.json` says of them."""
    order = stable_order(events.time)
    time = events.time[order]
    starts = cut(time, num_partitions)
    partition = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(time)))
    columns: dict[str, Any] = {"timestamp": time}
    sizes = {}
    for name, raw in events.ids.items():
        ids = raw[order].astype(np.int64)
        rows = by_first_appearance(ids)
        columns |= {
            name: ids,
            f"{name}_row": rows,
            f"{name}_seen": earlier(rows, time),
            f"{name}_trained": earlier(rows, partition),
        }
        sizes[f"{name}_row"] = int(rows.max()) + 1
    columns |= {
        name: pa.array(values).take(pa.array(order)) for name, values in events.others.items()
    }
    table = pa.table(columns)
    counts = {}
    for start, stop in zip(starts, [*starts[1:], len(time)], strict=True):
        name = f"{datetime.fromtimestamp(int(time[start]), UTC):date=%Y-%m-%d/hour=%H}"
        folder = target / name
        folder.mkdir(parents=True)
        rows = int(stop - start)
        part = table.slice(start, rows)
        write_tables(folder / "part-00000.parquet", [part], row_group_ends(rows), name)
        (folder / SUCCESS).touch()
        counts[name] = rows
    return {"table_sizes": sizes, "partitions": counts}


def cut(time: NDArray[np.int64], num_partitions: int) -> list[int]:
    """The first event of each partition, from the sorted times of all."""
    hour = time // HOUR
    wanted = np.arange(num_partitions) * len(time) // num_partitions
    return np.unique(np.searchsorted(hour, hour[wanted])).tolist()


def by_first_appearance(ids: Integers) -> NDArray[np.int64]:
    """Equal ids get equal numbers, counted from 0 as they first appear."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[inverse]


def earlier(ids: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many events with the same id have a smaller time, for each event."""
    order = by_user_and_time(ids, time)
    log = EventLog(ids[order], time[order])
    found = np.empty(len(ids), dtype=np.int64)
    found[order] = log.past_end - log.user_begin
    return found
