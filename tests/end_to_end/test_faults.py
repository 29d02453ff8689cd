# SPDX-License-Identifier: Apache-2.0
"""Bad data through a whole job: what is skipped, what stops, on any number of ranks."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from deltarec.cli import main
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.data.damage import damage_row_group, truncate
from tests.small_job import small_job, write_small_data

DAMAGED = {"train": (3, 4, 17), "valid": (2,)}
"""Row groups of 100 rows."""


def train(folder: Path, job: Job) -> dict[str, Any]:
    """Runs on each rank; what it leaves behind."""
    run = RunFolder(folder / f"run{dist.get_world_size()}")
    with redirect_stdout(io.StringIO()) as out:
        result = Trainer(job, run, torch.device("cpu")).fit()
    dist.barrier()
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").open()]
    return {"result": result, "lines": lines, "out": out.getvalue()}


def losses(run: dict[str, Any]) -> torch.Tensor:
    steps = [line for line in run["lines"] if line["split"] == "train"]
    return torch.tensor([[step["loss/click"], step["loss/buy"]] for step in steps])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The small job's data, and a column that is false where rows will be lost."""
    write_small_data(tmp_path)
    for split, groups in DAMAGED.items():
        path = tmp_path / split / "0.parquet"
        table = pq.read_table(path)
        there = ~np.isin(np.arange(table.num_rows) // 100, groups)
        table = table.append_column("there", pa.array(there))
        pq.write_table(table, path, row_group_size=100, write_page_checksum=True)
    return tmp_path


def damage(folder: Path) -> None:
    for split, groups in DAMAGED.items():
        for group in groups:
            damage_row_group(folder / split / "0.parquet", group, "history")
    pq.write_table(pa.table({"user": [1]}), folder / "train" / "1.parquet")
    truncate(folder / "train" / "1.parquet", 0.7)


def test_lost_rows_count_nowhere(data: Path):
    """Losses and metrics are those of a job whose tasks do not live on these rows."""
    options: dict[str, Any] = {"model__trunk__norm": None, "train__epochs": 2}
    masked = small_job(data, tasks__click={"mask": "there"}, **options)
    expected = run_ranks(1, train, data / "masked", masked)[0]
    damage(data)
    skipping = small_job(data, data__on_bad_file="skip", **options)
    for ranks in (1, 2, 3):
        run, *others = run_ranks(ranks, train, data / "skipping", skipping)
        assert not any(other["out"] for other in others)
        torch.testing.assert_close(losses(run), losses(expected), rtol=1e-4, atol=0)
        result = run["result"]
        assert result["samples"] == 2 * (2000 - 300) and result["steps"] == 40
        assert result["skipped"] == {
            "train": {"files": 2, "rows": 2 * 300},
            "valid": {"files": 1, "rows": 100},
        }
        for task in ("click", "buy"):
            found, wanted = (r["valid"][task]["all"] for r in (result, expected["result"]))
            assert found == pytest.approx(wanted, rel=1e-3)
        assert result["valid"]["click"]["all"]["n"] == 400
        last = [line for line in run["lines"] if line["split"] == "train"][-1]
        assert (last["skipped_files"], last["skipped_rows"]) == (2, 600)
        valid = [line for line in run["lines"] if line["split"] == "valid" and not line["task"]]
        assert [(v["skipped_files"], v["skipped_rows"]) for v in valid] == [(1, 100)] * 2
        told = [line for line in run["out"].splitlines() if line.startswith("skipped, as data.on")]
        assert sum("train/0.parquet: row group" in line for line in told) == 1
        assert sum("train/1.parquet: not a readable Parquet" in line for line in told) == 1


@pytest.mark.parametrize("file_rows", [[1, 1, 1980, 3, 15], [2]])
def test_very_unequal_files(data: Path, file_rows: list[int]):
    """Whole files of one row group, tiny ones, and fewer rows than ranks."""
    table = pq.read_table(data / "train" / "0.parquet")
    (data / "train" / "0.parquet").unlink()
    start = 0
    for i, rows in enumerate(file_rows):
        pq.write_table(table.slice(start, rows), data / "train" / f"{i}.parquet")
        start += rows
    pq.write_table(table.slice(0, 1), data / "valid" / "0.parquet")
    job = small_job(data, train__epochs=2, train__max_steps=30)
    alone, three = (run_ranks(ranks, train, data / "unequal", job)[0] for ranks in (1, 3))
    torch.testing.assert_close(losses(three), losses(alone), rtol=1e-4, atol=0)
    for run in (alone, three):
        assert run["result"]["samples"] == min(2 * sum(file_rows), 3000)
        assert run["result"]["valid"]["click"]["all"]["n"] == 1


def fit(run: Path, job: Job) -> None:
    with process_group(threads=1) as device:
        Trainer(job, RunFolder(run), device).fit()


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (1900, {}, "the data are not those of the checkpoint to resume: rows: 2000 there, 1900 "),
        (2000, {"train__seed": 4}, "train.seed is 3 there, 4 here"),
    ],
)
def test_resuming_on_other_data(data: Path, rows: int, overrides: dict[str, Any], message: str):
    fit(data / "run", small_job(data, data__valid=[], train__max_steps=2))
    path = data / "train" / "0.parquet"
    if rows < 2000:
        pq.write_table(pq.read_table(path).slice(0, rows), path, row_group_size=100)
    with pytest.raises(ValueError, match=message):
        fit(data / "run", small_job(data, data__valid=[], train__max_steps=4, **overrides))


def test_a_resumed_job_goes_on_counting(data: Path):
    damage(data)
    options: dict[str, Any] = {"data__on_bad_file": "skip", "data__valid": []}
    whole = small_job(data, **options)
    fit(data / "whole", whole)
    fit(data / "cut", small_job(data, train__max_steps=9, **options))
    first = json.loads((data / "cut" / "result.json").read_text())
    fit(data / "cut", whole)
    results = [json.loads((data / name / "result.json").read_text()) for name in ("whole", "cut")]
    assert 0 < first["skipped"]["train"]["rows"] < 300
    for result in results:
        assert result["skipped"] == {"train": {"files": 2, "rows": 300}}
        assert result["samples"] == 1700


def test_evaluate_says_what_it_skipped(data: Path, capsys: pytest.CaptureFixture[str]):
    fit(data / "run", small_job(data, train__max_steps=1))
    damage(data)
    evaluate = ["evaluate", "--run-dir", str(data / "run"), "--split", "valid", "--json"]
    assert main(evaluate) == 2
    assert "0.parquet: not a readable" not in (found := capsys.readouterr().err)
    assert "train/1.parquet: not a readable Parquet file" in found
    assert main([*evaluate, "--set", "data.on_bad_file=skip"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["skipped"] == {"files": 1, "rows": 100}
    assert answer["metrics"]["click"]["all"]["n"] == 400
