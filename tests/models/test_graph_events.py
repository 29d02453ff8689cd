# SPDX-License-Identifier: Apache-2.0
"""The events that graphs are made of: damaged files, and other ones."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.data.damage import damage_row_group, truncate
from tests.models.test_graphs import JOB
from tests.pair_job import pair_job, write_pair_data

OVERRIDES: dict[str, Any] = {
    **JOB,
    "data__events": ["events"],
    "data__on_bad_file": "skip",
    "data__test": ["test"],
    "model__pair": {"name": "mesi"},
    "train__max_steps": 4,
    "train__checkpoint": {"every": 2},
    "tasks__listen__ranking": {"own": ["other"]},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`events` are two files, both those of `train`."""
    write_pair_data(tmp_path, behaviours=True)
    (tmp_path / "events").mkdir()
    table = pq.read_table(tmp_path / "train" / "0.parquet")
    for name in ("0", "1"):
        file = tmp_path / "events" / f"{name}.parquet"
        pq.write_table(table, file, row_group_size=100, write_page_checksum=True)
    return tmp_path


def train(data: Path, run: Path) -> tuple[dict[str, Any], str]:
    """result.json, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        result = Trainer(pair_job(data, **OVERRIDES), RunFolder(run), torch.device("cpu")).fit()
    return result, told.getvalue()


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_damaged_is_counted_and_named_once(data: Path, tmp_path: Path, ranks: int):
    """Though each rank reads all of them, and `ranking.own` reads them once more."""
    truncate(data / "events" / "0.parquet", 0.9)
    damage_row_group(data / "events" / "1.parquet", 3, "user")
    found, told = run_ranks(ranks, train, data, tmp_path / "run")[0]
    assert found["skipped"]["events"] == {"files": 2, "rows": 100}
    assert told.count("events/0.parquet: ") == told.count("events/1.parquet: ") == 1


def test_a_run_goes_on_with_the_same_graph_alone(
    data: Path, tmp_path: Path, one_process: torch.device
):
    train(data, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "latest").write_text("step_000000002\n")
    (data / "events" / "1.parquet").unlink()
    message = r"the graph's data \(data.events\) are not those of the checkpoint to resume: rows"
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "run")
