# SPDX-License-Identifier: Apache-2.0
"""Rows and bytes per second of the reader, beside Arrow alone reading the same columns.

    deltarec bench reader --rows 2000000

Both sides run in this process, in turn, so that what else the machine does hits both; the ratio is
what counts. Arrow's side is `pyarrow.parquet.read_table` with its threads: decoded columns, no
shuffling, no tensors. Ours goes all the way to shuffled batches.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltarec.config import validate
from deltarec.data.batch import Position
from deltarec.data.files import find
from deltarec.data.reader import Reader, ReaderConfig
from deltarec.data.schema import DenseFeature, IdFeature, Schema, Task

NUM_IDS, NUM_DENSE, TABLE_ROWS = 26, 12, 1_000_000


def write_file(path: Path, rows: int, row_group: int) -> None:
    """26 columns of Zipf ids, 12 dense ones, one label: 39 in all."""
    random = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        f"id_{i}": random.zipf(1.2, rows) % TABLE_ROWS for i in range(NUM_IDS)
    }
    columns |= {f"dense_{i}": random.random(rows, np.float32) for i in range(NUM_DENSE)}
    columns["label"] = random.integers(0, 2, rows, dtype=np.int8)
    pq.write_table(pa.table(columns), path, row_group_size=row_group, compression="zstd")


def schema() -> Schema:
    """What the reader decodes: every column."""
    ids = {f"id_{i}": validate(IdFeature, {"kind": "id"}, "id") for i in range(NUM_IDS)}
    dense = {
        f"dense_{i}": validate(DenseFeature, {"kind": "dense"}, "dense") for i in range(NUM_DENSE)
    }
    rows = {name: TABLE_ROWS for name in ids}
    return Schema(features=ids | dense, tasks={"label": Task()}, scenario=None, table_rows=rows)


def read_all(path: Path, batch_size: int) -> int:
    """One shuffled epoch; returns the samples seen."""
    reader = Reader(find(str(path), ["."]), schema(), ReaderConfig(), batch_size, seed=0)
    return sum(batch.num_samples for batch in reader.read(Position(), epochs=1))


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(path: Path, batch_size: int, repeats: int) -> dict[str, float]:
    """Median seconds of each side, and the median of the ratios of runs that follow each other."""
    pairs = [
        (timed(lambda: pq.read_table(path)), timed(lambda: read_all(path, batch_size)))
        for _ in range(repeats + 1)
    ][1:]  # the first fills the page cache
    arrow, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(arrow / ours for arrow, ours in pairs)
    return {"arrow_seconds": arrow, "reader_seconds": ours, "reader_rate_of_arrow": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench reader", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for row_group in (options.rows // 96, 1 << 20):
            path = Path(folder, "rows.parquet")
            write_file(path, options.rows, row_group)
            megabytes = path.stat().st_size / 1e6
            found = measure(path, options.batch_size, options.repeats)
            results.append({"rows": options.rows, "row_group": row_group, **found})
            for side in ("arrow", "reader"):
                seconds = found[f"{side}_seconds"]
                print(
                    f"row groups of {row_group:>9,}: {side:6} {options.rows / seconds:>12,.0f} "
                    f"rows/s {megabytes / seconds:>8,.0f} MB/s (compressed)"
                )
            print(f"{'':23} reader at {found['reader_rate_of_arrow']:.0%} of Arrow's rate")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
