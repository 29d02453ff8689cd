# SPDX-License-Identifier: Apache-2.0
"""The small job on partitions by time."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltarec.job import Job
from tests.small_job import small_job, write_small_data

ROWS = 250


def stream_job(folder: Path, **overrides: Any) -> Job:
    """Partitions of 250 rows in batches of 100; five features of every kind of table."""
    options = {
        "data__train": ["date=*"],
        "data__valid": [],
        "data__slices": {"seen": [1, 3]},
        "stream": {"warmup": 1, "poll_seconds": 0.05},
    }
    return small_job(folder, **(options | overrides))


def write_stream(folder: Path, num_partitions: int = 8, marker: bool = True) -> list[Path]:
    """The first rows of the small data, three partitions a day; returns the partitions' folders."""
    write_small_data(folder)
    table = pq.read_table(folder / "train" / "0.parquet")
    seen = np.random.default_rng(9).integers(0, 5, table.num_rows)
    table = table.append_column("seen", pa.array(seen))
    folders = []
    for number in range(num_partitions):
        target = folder / f"date=2026-01-{1 + number // 3:02}" / f"hour={8 + number % 3}"
        target.mkdir(parents=True)
        pq.write_table(table.slice(ROWS * number, ROWS), target / "0.parquet")
        if marker:
            (target / "_SUCCESS").touch()
        folders.append(target)
    return folders
