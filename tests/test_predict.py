# SPDX-License-Identifier: Apache-2.0
"""Scores beside keys: the same on any number of ranks, whole or not there, in the rows' order."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from deltarec.checkpoint import find as find_checkpoint
from deltarec.cli import main
from deltarec.config import load
from deltarec.data.files import find
from deltarec.data.scoring import Input
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.predict import predict
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.small_job import small_job, write_small_data

LABELS = ["click", "buy"]
SCORES = ["score_click", "score_buy"]
SIZES = (370, 1, 129)
"""Rows of the files to score."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run: `data` and `run`, and `new`, rows to score without labels."""
    folder = tmp_path_factory.mktemp("predict")
    write_small_data(folder / "data")
    job = small_job(
        folder / "data",
        data__test=["valid"],
        train__max_steps=10,
        features__city__on_invalid="clip",
        embedding__tables__scores__sharding="table_wise",
    )
    with process_group(threads=1) as device:
        Trainer(job, RunFolder(folder / "run"), device).fit()
    rows = pq.read_table(folder / "data" / "valid").drop_columns(LABELS)
    rows = rows.set_column(2, "city", pa.array(np.arange(500) % 60))  # the table has 50 rows
    rows = rows.append_column("number", pa.array(np.arange(500)))
    (folder / "new").mkdir()
    start = 0
    for i, size in enumerate(SIZES):
        part = rows.slice(start, size)
        pq.write_table(part, folder / "new" / f"{i}.parquet", row_group_size=100)
        start += size
    return folder


def scored(run: Path, output: Path, batch_size: int, *keys: str) -> dict[str, Any]:
    """Score `new` in the process group of this rank."""
    job = load(Job, run / "run" / "config.yaml", [])
    checkpoint = find_checkpoint(run / "run" / "checkpoints", "latest")
    assert checkpoint is not None
    source = Input(job.data_schema, find(str(run / "new"), ["."]), keys, batch_size)
    return predict(job, source, checkpoint, output, torch.device("cpu"))


def scored_alone(run: Path, output: Path, batch_size: int, *keys: str) -> dict[str, Any]:
    with process_group(threads=1):
        return scored(run, output, batch_size, *keys)


def table(output: Path) -> pa.Table:
    """All parts in the order of their names, read as anyone reads a folder of Parquet files."""
    assert json.loads((output / "_SUCCESS").read_text())["rows"] == pq.read_table(output).num_rows
    return pq.read_table(output)


def bits(predictions: pa.Table) -> np.ndarray:
    """The scores as int32 `[rows, T]`."""
    return np.stack([predictions[name].to_numpy() for name in SCORES], axis=1).view(np.int32)


@pytest.fixture(scope="module")
def whole(run: Path) -> pa.Table:
    """The predictions of one rank that nothing disturbed."""
    answer = scored_alone(run, run / "whole", 16, "number", "user")
    assert (answer["rows"], answer["parts"], answer["rows_scored"]) == (500, 16, 500)
    assert answer["invalid"] == {"city.clip": 80}
    return table(run / "whole")


def test_rows_come_in_their_order_with_one_score_a_task(run: Path, whole: pa.Table):
    assert whole.column_names == ["number", "user", *SCORES]
    assert whole["number"].to_pylist() == list(range(500))
    assert whole["user"].equals(pq.read_table(run / "new")["user"])
    for name in SCORES:
        score = whole[name].to_numpy()
        assert score.dtype == np.float32 and 0 < score.min() < score.max() < 1


def test_three_ranks_write_the_same_rows_and_the_same_bits(run: Path, whole: pa.Table):
    run_ranks(3, scored, run, run / "three", 16, "number", "user")
    three = table(run / "three")
    assert three.drop_columns(SCORES).equals(whole.drop_columns(SCORES))
    assert np.array_equal(bits(three), bits(whole))


def test_another_batch_size_rounds_in_another_order_only(run: Path, whole: pa.Table):
    answer = scored_alone(run, run / "large", 400, "number")
    assert answer["parts"] == 2
    large = table(run / "large")
    for name in SCORES:
        assert large[name].to_numpy() == pytest.approx(whole[name].to_numpy(), rel=1e-5)


def arguments(run: Path, output: Path, *more: str) -> list[str]:
    words = ["predict", "--run-dir", run / "run", "--source", run / "new", "--output", output]
    return [*map(str, words), "--keys", "number", "user", "--batch-size", "16", *more]


def test_a_killed_job_goes_on_after_the_parts_that_are_there(run: Path, whole: pa.Table):
    output = run / "killed"
    command = [sys.executable, "-m", "deltarec.cli", *arguments(run, output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(list(output.glob("part-*"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() != 0, "the job had ended before it could be killed"
    there = sorted(output.glob("part-*"))
    assert 3 <= len(there) < 16 and not (output / "_SUCCESS").exists()
    assert all(pq.read_metadata(path).num_rows == 32 for path in there)
    written = [path.stat().st_mtime_ns for path in there]
    (output / "_part-000009.parquet.x.partial").write_bytes(b"PAR1 and a half")

    answer = run_ranks(3, scored, run, output, 16, "number", "user")[0]
    assert answer["rows_scored"] == 500 - 32 * len(there)
    assert answer["invalid"] == {"city.clip": 80}, "of the parts from before too"
    assert [path.stat().st_mtime_ns for path in there] == written
    assert np.array_equal(bits(table(output)), bits(whole))
    assert not list(output.glob("*.partial"))
    assert scored_alone(run, output, 16, "number", "user")["rows_scored"] == 0


def test_the_scores_are_those_that_evaluate_measures(run: Path):
    job = load(Job, run / "run" / "config.yaml", [])
    checkpoint = find_checkpoint(run / "run" / "checkpoints", "latest")
    assert checkpoint is not None
    with process_group(threads=1) as device:
        source = Input(job.data_schema, job.data.files("test"), LABELS, batch_size=100)
        predict(job, source, checkpoint, run / "valid", device)
    expected = json.loads((run / "run" / "result.json").read_text())["test"]
    found = table(run / "valid")
    click, buy = (found[name].to_numpy() for name in LABELS)
    auc = roc_auc_score(click, found["score_click"].to_numpy())
    assert auc == pytest.approx(expected["click"]["all"]["auc"], rel=1e-6)
    auc = roc_auc_score(buy[click == 1], found["score_buy"].to_numpy()[click == 1])
    assert auc == pytest.approx(expected["buy"]["all"]["auc"], rel=1e-6)


def test_keys_of_any_type_are_carried_unchanged(run: Path, tmp_path: Path):
    rows = pq.read_table(run / "data" / "valid").slice(0, 50)
    keys = {
        "text": pa.array(["ä", None] * 25),
        "large_text": pa.array([f"{i}" for i in range(50)], pa.large_string()),
        "bytes": pa.array([b"\x00\xff", b""] * 25, pa.binary()),
        "amount": pa.array([Decimal("1.50"), None] * 25, pa.decimal128(9, 2)),
        "when": pa.array([datetime(2026, 11, 1, tzinfo=UTC)] * 50, pa.timestamp("us", "UTC")),
        "big": pa.array([2**64 - 1, 0] * 25, pa.uint64()),
        "nested": pa.array([[{"a": 1, "b": None}], None] * 25),
        "flag": pa.array([True, None] * 25),
        "nothing": pa.nulls(50),
        "with.dot and space": pa.array(np.arange(50, dtype=np.int8)),
    }
    kinds = [f"kind {i % 7}" for i in range(50)]
    (tmp_path / "new").mkdir()
    for i, (start, size) in enumerate(((0, 30), (30, 20))):
        part = rows.slice(start, size).drop_columns(LABELS)
        for name, values in keys.items():
            part = part.append_column(name, values.slice(start, size))
        kind = pa.array(kinds[start : start + size]).dictionary_encode()
        part = part.append_column("kind", kind)  # another dictionary in each file
        pq.write_table(part, tmp_path / "new" / f"{i}.parquet")
    (tmp_path / "run").symlink_to(run / "run")
    scored_alone(tmp_path, tmp_path / "out", 8, *keys, "kind")
    found = table(tmp_path / "out")
    assert found.num_rows == 50
    for name, values in keys.items():
        assert found[name].type == values.type, name
        assert found[name].combine_chunks().equals(values), name
    assert pa.types.is_dictionary(found["kind"].type)
    assert found["kind"].to_pylist() == kinds


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("deltarec: error: ") and error.count("\n") == 1
    return error


def test_what_cannot_be_is_refused(run: Path, whole: pa.Table, capsys, tmp_path: Path):
    output = run / "whole"
    assert main([*arguments(run, output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_scored"] == 0
    other = refusal(capsys, *arguments(run, output, "--rows-per-part", "64"))
    assert "holds predictions of another rows_per_part" in other
    assert "key column 'click' is missing" in refusal(
        capsys, *arguments(run, output, "--keys", "click")
    )
    assert "'number' is there twice" in refusal(
        capsys, *arguments(run, output, "--keys", "number", "number")
    )
    assert "there is no best checkpoint" in refusal(
        capsys, *arguments(run, output, "--checkpoint", "best")
    )
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in refusal(capsys, *arguments(run, tmp_path))
    strict = arguments(run, tmp_path / "new", "--set", "features.city.on_invalid=error")
    assert "0.parquet: column 'city': id 50, outside the 50 rows" in refusal(capsys, *strict)
    assert not list((tmp_path / "new").glob("part-000003*"))


def test_keys_of_two_types_are_refused(run: Path, tmp_path: Path):
    rows = pq.read_table(run / "new")
    pq.write_table(rows, tmp_path / "0.parquet")
    number = pa.array(map(str, range(500)))
    pq.write_table(rows.set_column(rows.num_columns - 1, "number", number), tmp_path / "1.parquet")
    job = load(Job, run / "run" / "config.yaml", [])
    with pytest.raises(ValueError, match=r"1\.parquet: key column 'number' is string, but int64"):
        Input(job.data_schema, find(str(tmp_path), ["."]), ["number"], 16)


def test_scores_that_are_no_numbers_are_refused(run: Path):
    job = load(Job, run / "run" / "config.yaml", [])
    source = Input(job.data_schema, find(str(run / "new"), ["."]), ["number"], 16)
    scores = np.zeros((3, 2), dtype=np.float32)
    scores[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"2\.parquet: row 1: the score of task 'buy' is nan"):
        source.check_finite(range(371, 374), scores)


def test_a_part_that_lost_rows_is_noticed(run: Path, whole: pa.Table, tmp_path: Path):
    scored_alone(run, tmp_path / "out", 100, "number")
    part = tmp_path / "out" / "part-000001.parquet"
    pq.write_table(pq.read_table(part).slice(0, 99), part)
    with pytest.raises(ValueError, match="has 99 rows instead of 100; remove it and run the same"):
        scored_alone(run, tmp_path / "out", 100, "number")
