# SPDX-License-Identifier: Apache-2.0
"""A log of any size cut by user into files that fit into memory, each user whole in one of them."""

import resource
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from deltarec.data.transforms import hash_ids, mix

EVENTS_PER_PARTITION = 2_097_152


def partition_by_user(
    tables: Iterable[pa.Table], user: str, num_partitions: int, folder: Path
) -> list[Path]:
    """Write the rows of a stream of tables into files by a hash of their user.

    Rows of one user stay in the order of the stream. Held in memory: one table at a time.

    Args:
        tables: of one schema.
        user: column of integers or strings.
        num_partitions: at most 65,536; this many files are open at a time.
        folder: where the files go; it must be there.

    Returns:
        The files, to be read by `read_partition`; some may have no rows.

    Raises:
        ValueError: the system does not let a process open so many files.
    """
    _allow_open_files(num_partitions)
    paths = [folder / f"partition_{i:05}.arrow" for i in range(num_partitions)]
    with ExitStack() as stack:
        writers: list[pa.RecordBatchFileWriter] = []
        for table in tables:
            if not writers:
                writers = [
                    stack.enter_context(pa.ipc.new_file(str(path), table.schema)) for path in paths
                ]
            keys = hash_ids(table[user].combine_chunks()).view(np.uint64)
            partition = (mix(keys, salt=0) % np.uint64(num_partitions)).astype(np.uint16)
            # of 16-bit integers it is a radix sort
            sorted_table = table.take(pa.array(np.argsort(partition, kind="stable")))
            ends = np.cumsum(np.bincount(partition, minlength=num_partitions))
            begins = np.append(0, ends[:-1])
            for writer, begin, end in zip(writers, begins, ends, strict=True):
                if end > begin:
                    writer.write_table(sorted_table.slice(begin, end - begin))
    return paths if writers else []


def read_partition(path: Path) -> pa.Table:
    """All rows of one file, in memory."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all().combine_chunks()


def _allow_open_files(number: int) -> None:
    """So many, and some that the process has already."""
    wanted = number + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ValueError(
            f"the log is cut into {number} files, and a process may open {hard} (`ulimit -Hn`); "
            f"raise that limit to {wanted}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
