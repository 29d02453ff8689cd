# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import Field

from deltarec.config import Config, OneOf, validate
from deltarec.data.prepare import DATASETS, Adult, Synth
from deltarec.data.prepare.dataset import (
    Dataset,
    prepare,
    prepare_once,
    row_group_ends,
    write_split,
)


class Tiny(Dataset):
    """Notes each preparation in the source folder; stops halfway while `wait` lies there."""

    dataset: Literal["tiny"] = "tiny"
    num_rows: int = Field(default=5, ge=1)

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        (source / f"written_by_{os.getpid()}").touch()
        table = pa.table({"x": np.arange(self.num_rows)})
        write_split(target, "train", self.num_rows, [table])
        while (source / "wait").exists():
            time.sleep(0.01)
        if (source / "broken").exists():
            raise ValueError("broken")
        write_split(target, "valid", self.num_rows, [table])
        write_split(target, "test", self.num_rows, [table])
        return {"table_sizes": {"x": self.num_rows}, "notes": []}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def start(source: Path, root: Path) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=prepare_once, args=(Tiny(), source, root)
    )
    process.start()
    return process


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.01)


@pytest.mark.parametrize("num_rows", [1, 500, 1024, 2500, 98_304, 98_303, 6_000_000, 7_000_001])
def test_row_group_sizes(num_rows: int) -> None:
    ends = row_group_ends(num_rows)
    sizes = np.diff([0, *ends])
    assert ends[-1] == num_rows
    assert sizes.min() >= min(1_024, num_rows) and sizes.max() <= 65_536
    assert len(ends) == 96 or num_rows < 98_304 or num_rows > 96 * 65_536


@pytest.mark.parametrize("chunk_rows", [7, 999, 2500, 5001])
def test_a_split_does_not_depend_on_the_chunks(tmp_path: Path, chunk_rows: int) -> None:
    rng = np.random.default_rng(0)
    lists = pa.array([list(range(n)) for n in rng.integers(0, 4, 5001)])
    table = pa.table({"x": rng.random(5001), "y": lists})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, rows in [(whole, 5001), (cut, chunk_rows)]:
        folder.mkdir()
        write_split(folder, "train", 5001, (table[i : i + rows] for i in range(0, 5001, rows)))
    file = "train/part-00000.parquet"
    assert (cut / file).read_bytes() == (whole / file).read_bytes()
    assert pq.read_table(cut / file).equals(table)
    metadata = pq.read_metadata(cut / file)
    assert [metadata.row_group(i).num_rows for i in range(4)] == [1250, 1250, 1250, 1251]
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_prepare_once_builds_once_for_each_set_of_options(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = prepare_once(Tiny(), source, root)
    changed = folder.stat().st_mtime_ns
    assert prepare_once(Tiny(), source, root) == folder
    assert folder.stat().st_mtime_ns == changed
    assert folder.parent == root and len(folder.name) == len("tiny-") + 8
    assert prepare_once(Tiny(num_rows=6), source, root) != folder
    assert prepare_once(Tiny(), tmp_path, root) != folder
    summary = json.loads((folder / "dataset.json").read_text())
    assert summary == {
        "dataset": "tiny",
        "options": {"dataset": "tiny", "num_rows": 5},
        "source": str(source),
        "rows": {"train": 5, "valid": 5, "test": 5},
        "table_sizes": {"x": 5},
        "notes": [],
    }


def test_two_processes_at_once_build_once(source: Path, tmp_path: Path) -> None:
    (source / "wait").touch()
    processes = [start(source, tmp_path / "root") for _ in range(2)]
    wait_for(source, "written_by_*")
    time.sleep(0.3)
    (source / "wait").unlink()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(source.glob("written_by_*"))) == 1
    assert len(list((tmp_path / "root").glob("tiny-*/dataset.json"))) == 1


def test_a_killed_preparation_leaves_nothing_that_looks_whole(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (source / "wait").touch()
    process = start(source, root)
    wait_for(root, "*/train/part-00000.parquet")
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert [p.suffix for p in root.iterdir() if p.is_dir()] == [".partial"]
    (source / "wait").unlink()
    folder = prepare_once(Tiny(), source, root)
    assert pq.read_table(folder / "test").num_rows == 5
    assert [p for p in root.iterdir() if p.is_dir()] == [folder]


def test_a_failed_preparation_leaves_no_folder(source: Path, tmp_path: Path) -> None:
    (source / "broken").touch()
    with pytest.raises(ValueError, match="broken"):
        prepare_once(Tiny(), source, tmp_path / "root")
    assert not [p for p in (tmp_path / "root").iterdir() if p.is_dir()]


def test_prepare_refuses_a_folder_that_is_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already there"):
        prepare(Tiny(), source, tmp_path)


@pytest.mark.parametrize("name", ["adult", "movielens-1m"])
def test_missing_raw_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(adult.data|ratings.dat): there is no .* https://"):
        prepare(DATASETS[name](dataset=name), tmp_path, tmp_path / "target")


class Job(Config):
    prepare: Annotated[Dataset, OneOf(DATASETS, key="dataset")]


def test_the_registry_chooses_by_name() -> None:
    job = validate(Job, {"prepare": {"dataset": "synth", "rows": 100}}, "job")
    assert job.prepare == Synth(rows=100)
    assert validate(Job, {"prepare": {"dataset": "adult"}}, "job").prepare == Adult()
    with pytest.raises(ValueError, match="'synt' is not known"):
        validate(Job, {"prepare": {"dataset": "synt"}}, "job")
