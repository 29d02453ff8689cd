# SPDX-License-Identifier: Apache-2.0
"""Raw public data to Parquet folders: what every dataset shares.

A prepared folder holds `train/`, `valid/` and `test/` with one Parquet file each (or one for each
behaviour: `behaviours.py`; or, for streaming jobs, partitions by time: `stream.py`), and
`dataset.json` (options, rows, table sizes, notes). It appears under its name only when it is whole:
it is built in a sibling folder and renamed.
"""

import hashlib
import itertools
import json
import shutil
import sys
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm
from typing_extensions import TypedDict

from deltarec.config import Config

SPLITS = ("train", "valid", "test")


class Prepared(TypedDict):
    """A dataset that was prepared."""

    target: str
    """Folder of its Parquet files, what `data.source` is to be."""
    rows: dict[str, int]
    """By split."""
    table_sizes: dict[str, int]
    """Rows that a table for the column needs."""
    notes: list[str]


class Dataset(Config):
    """A dataset that can be prepared; the fields of a subclass are its options."""

    dataset: str
    """Name of the dataset."""

    @abstractmethod
    def write(self, source: Path, target: Path) -> dict[str, Any]:
        """Write the three splits.

        Args:
            source: folder of the raw files.
            target: an empty folder.

        Returns:
            What `dataset.json` says beside options and rows: `table_sizes` (number of rows that a
            table for the column needs), `notes`, and what else is known of the data.

        Raises:
            ValueError: a raw file is missing.
        """

    def files(self, source: Path) -> dict[str, int]:
        """Names and bytes of raw files that may change: others are another dataset.

        Public data are what they are.
        """
        return {}

    def count_rows(self, target: Path) -> dict[str, int]:
        """The rows of each split that was written."""
        files = {split: (target / split).glob("*.parquet") for split in SPLITS}
        return {
            split: sum(pq.read_metadata(path).num_rows for path in paths)
            for split, paths in files.items()
        }


def prepare(dataset: Dataset, source: Path, target: Path) -> None:
    """Build the folder `target`; interrupted at any moment, it leaves nothing under that name.

    Where the same dataset from the same source is there already, nothing is done.

    Raises:
        ValueError: a raw file is missing, or something else is at `target`.
    """
    if _is_there(dataset, source, target):
        print(f"{target}: {dataset.dataset} is there already", file=sys.stderr, flush=True)
        return
    if target.exists():
        raise ValueError(f"{target}: already there; remove it or give another folder")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a preparation that was killed
    partial.mkdir(parents=True)
    print(f"preparing {dataset.dataset} from {source}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    try:
        facts = dataset.write(source, partial)
        rows = dataset.count_rows(partial)
        summary = {
            "dataset": dataset.dataset,
            "options": dataset.model_dump(mode="json"),
            "source": str(source),
            **({"files": files} if (files := dataset.files(source)) else {}),
            "rows": rows,
            **facts,
        }
        (partial / "dataset.json").write_text(json.dumps(summary, indent=2) + "\n")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    seconds = time.monotonic() - begin
    print(f"prepared {target}: {counts} rows in {seconds:.1f} s", file=sys.stderr, flush=True)


def _is_there(dataset: Dataset, source: Path, target: Path) -> bool:
    """Whether a folder has the dataset with these very options, of this source as it is."""
    summary = target / "dataset.json"
    if not summary.is_file():
        return False
    found = json.loads(summary.read_text())
    same_options = found["options"] == dataset.model_dump(mode="json")
    same_source = Path(found["source"]).resolve() == source.resolve()
    return same_options and same_source and found.get("files", {}) == dataset.files(source)


def prepare_once(dataset: Dataset, source: Path, root: Path) -> Path:
    """The prepared folder inside `root`, built at first use; any number of processes may ask.

    Raises:
        ValueError: a raw file is missing.
    """
    known = [dataset.model_dump(mode="json"), str(source.resolve()), dataset.files(source)]
    options = json.dumps([part for part in known if part], sort_keys=True)
    name = f"{dataset.dataset}-{hashlib.sha256(options.encode()).hexdigest()[:8]}"
    target = root / name
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            if not target.exists():
                prepare(dataset, source, target)
    return target


def require(path: Path, origin: str) -> Path:
    """The path of a raw file.

    Raises:
        ValueError: the file is not there; `origin` tells where it can be had.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; the dataset can be had at {origin}")
    return path


def write_split(
    target: Path,
    split: str,
    num_rows: int,
    tables: Iterable[pa.Table],
    file: str = "part-00000",
) -> None:
    """Write a file of a split from a stream of tables of any sizes, of `num_rows` rows together.

    Row groups are of equal size (to within one row) and do not depend on how the stream is cut; at
    most one row group is held in memory, beside the table that comes.
    """
    path = target / split / f"{file}.parquet"
    path.parent.mkdir(exist_ok=True)
    write_tables(path, _ahead(tables), row_group_ends(num_rows), split)


def write_tables(file: Path, tables: Iterable[pa.Table], ends: list[int], label: str) -> None:
    """Write one file from a stream of tables, with row groups that end at these rows.

    The tables together have as many rows as the last end says.
    """
    num_rows = ends[-1]
    groups = _row_groups(tables, ends)
    first = next(groups)
    with (
        _writer(file, first.schema) as writer,
        tqdm(total=num_rows, desc=label, unit="row", unit_scale=True, disable=None) as progress,
    ):
        for group in itertools.chain([first], groups):
            writer.write_table(group)
            progress.update(len(group))


def row_group_ends(num_rows: int) -> list[int]:
    """Last row, exclusive, of each row group: 96 of them where each gets 1,024 to 65,536 rows."""
    num_groups = max(-(-num_rows // 65_536), min(96, num_rows // 1_024), 1)
    return [num_rows * (group + 1) // num_groups for group in range(num_groups)]


def _row_groups(tables: Iterable[pa.Table], ends: list[int]) -> Iterator[pa.Table]:
    """Cut a stream of tables anew, so that the first rows end at `ends[0]`, and so on."""
    pending: list[pa.Table] = []
    begin, num_pending = 0, 0
    for table in tables:
        pending.append(table)
        num_pending += len(table)
        while ends and begin + num_pending >= ends[0]:
            whole = pa.concat_tables(pending)
            group_rows = ends[0] - begin
            yield whole.slice(0, group_rows).combine_chunks()
            pending, num_pending = [whole.slice(group_rows)], num_pending - group_rows
            begin = ends.pop(0)
    assert not ends and num_pending == 0, f"{begin + num_pending} rows, ends left: {ends}"


def _writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Random floats have no repeats for a dictionary to find; looking for them takes half the time.
    repeating: Any = [field.name for field in schema if not pa.types.is_floating(field.type)]
    return pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=repeating, write_page_checksum=True
    )


def _ahead(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, each made while the one before is written."""
    iterator = iter(tables)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, iterator, None)
        while (table := future.result()) is not None:
            future = thread.submit(next, iterator, None)
            yield table
