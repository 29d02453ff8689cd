# SPDX-License-Identifier: Apache-2.0
"""Events per second and peak memory of aligning un-clicked exposures with clicks.

    deltarec bench align --events 100000000

Makes a log in the order of time (a few users with many events, a fifth of the events clicks) as
Parquet. Then, timed: cuts it by a hash of the user into partitions, and aligns one partition after
the other: sort by user and time, five exposures before and after each click, Parquet of every click
with its list. After that, on the first partition, training rows: the last 30 clicks before an event
with the aligned exposures that the event's past holds. Peak memory is that of the whole process,
making of the log included.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltarec.data.prepare.event_log import EventLog, Feedback, aligned, by_user_and_time
from deltarec.data.prepare.partitions import (
    EVENTS_PER_PARTITION,
    partition_by_user,
    read_partition,
)

CHUNK_EVENTS = 1_048_576
EVENTS_PER_USER, NUM_ITEMS, CLICK_RATE = 100, 1_000_000, 0.2
EACH_SIDE, HISTORY, SAMPLES = 5, 30, 20_000
SCHEMA = pa.schema(
    [("user", pa.int64()), ("time", pa.int64()), ("item", pa.int64()), ("click", pa.bool_())]
)


def write_log(path: Path, num_events: int) -> None:
    """A log by time: user, time (ms), item, click."""
    num_users = max(num_events // EVENTS_PER_USER, 1)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for begin in range(0, num_events, CHUNK_EVENTS):
            rng = np.random.default_rng([0, begin])
            count = min(CHUNK_EVENTS, num_events - begin)
            # by a power of the rank: a few users have thousands of events
            users = (num_users * rng.random(count) ** 1.5).astype(np.int64)
            columns = [
                users * 2_654_435_761 % num_users,
                1_700_000_000_000 + 20 * begin + np.sort(rng.integers(0, 20 * count, count)),
                (NUM_ITEMS * rng.random(count) ** 2).astype(np.int64),
                rng.random(count) < CLICK_RATE,
            ]
            writer.write_table(pa.table(columns, SCHEMA))


def read_log(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(CHUNK_EVENTS):
            yield pa.Table.from_batches([batch])


class Partition:
    """The events of some users, and what stands around each of their clicks."""

    def __init__(self, events: pa.Table) -> None:
        user, time_ms = (events[name].to_numpy() for name in ("user", "time"))
        order = by_user_and_time(user, time_ms)
        self.user, self.time = user[order], time_ms[order]
        self.item = events["item"].to_numpy()[order]
        click = events["click"].to_numpy()[order]
        self.log = EventLog(self.user, self.time)
        self.clicks, self.shown = Feedback(self.log, click), Feedback(self.log, ~click)
        self.windows = self.shown.around(self.clicks, EACH_SIDE)

    def table(self) -> pa.Table:
        """Every click with its aligned exposures."""
        rows = self.clicks.events
        columns = {"user": self.user, "time": self.time, "item": self.item}
        lists = self.windows.lists(self.item[self.shown.events])
        return pa.table({**{n: c[rows] for n, c in columns.items()}, "aligned": lists})

    def samples(self, rows: np.ndarray) -> pa.Table:
        """Training rows: clicks, and lists of lists of what is aligned with them."""
        history = self.clicks.last(rows, HISTORY)
        shown_items = self.item[self.shown.events]
        return pa.table(
            {
                "clicks": history.lists(self.item[self.clicks.events]),
                "aligned": aligned(history, self.windows, self.shown, rows, shown_items),
            }
        )


def measure(folder: Path, num_events: int) -> dict[str, float]:
    write_log(folder / "log.parquet", num_events)
    made = peak_gib()
    start = time.perf_counter()
    parts = partition_by_user(
        read_log(folder / "log.parquet"), "user", -(-num_events // EVENTS_PER_PARTITION), folder
    )
    partitioned = time.perf_counter()
    clicks = ids = 0
    for i, path in enumerate(parts):
        table = Partition(read_partition(path)).table()
        pq.write_table(table, folder / f"aligned_{i:05}.parquet", compression="zstd")
        clicks, ids = clicks + len(table), ids + len(table["aligned"].combine_chunks().values)
    end = time.perf_counter()
    peak = peak_gib()
    first = Partition(read_partition(parts[0]))
    rows = np.random.default_rng(0).integers(0, len(first.user), SAMPLES)
    begin = time.perf_counter()
    num_samples = len(first.samples(rows))
    return {
        "events": num_events,
        "partitions": len(parts),
        "clicks": clicks,
        "aligned": ids,
        "partition_seconds": partitioned - start,
        "align_seconds": end - partitioned,
        "events_per_second": num_events / (end - start),
        "samples_per_second": num_samples / (time.perf_counter() - begin),
        "peak_gib_after_making": made,
        "peak_gib": peak,
    }


def peak_gib() -> float:
    """The process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench align", description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[2_000_000, 20_000_000])
    parser.add_argument("--folder", type=Path, help="for the files; the system's temporary one")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results = []
    for num_events in options.events:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measure(Path(folder), num_events)
        results.append(found)
        print(
            f"{num_events:>12,} events, {found['partitions']} partitions: "
            f"partition {found['partition_seconds']:.1f} s, align {found['align_seconds']:.1f} s, "
            f"{found['events_per_second'] / 1e6:.2f} M events/s; "
            f"{found['samples_per_second']:,.0f} training rows/s; "
            f"peak {found['peak_gib']:.2f} GiB ({found['peak_gib_after_making']:.2f} before)",
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
