# SPDX-License-Identifier: Apache-2.0
"""A run folder goes on with its own job alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.small_job import small_job, write_small_data


def train(data: Path, run: Path, **overrides: Any) -> dict[str, Any]:
    job = small_job(data, **{"train__max_steps": 4, **overrides})
    return Trainer(job, RunFolder(run), torch.device("cpu")).fit()


@pytest.fixture
def run(tmp_path: Path, one_process: torch.device) -> Path:
    write_small_data(tmp_path)
    train(tmp_path, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"balance": {"name": "mgda"}}, "balance.name is 'equal' there, 'mgda' here"),
        ({"model__trunk__hidden": [32]}, r"model.trunk.hidden is \[16\] there, \[32\] here"),
        ({"train__optimizer__dense__lr": 0.1}, "train.optimizer.dense.lr is 0.01 there, 0.1 here"),
        ({"train__precision": "bf16", "train__max_steps": 8}, "train.precision is 'fp32' there"),
    ],
)
def test_another_job_is_refused_and_changes_nothing(
    run: Path, overrides: dict[str, Any], message: str
):
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "events" not in p.name}
    with pytest.raises(ValueError, match=message):
        train(run.parent, run, **overrides)
    assert files == {path: path.read_bytes() for path in files}


def test_the_same_job_may_be_longer_and_watched_otherwise(run: Path):
    result = train(
        run.parent,
        run,
        train__max_steps=6,
        train__log_every=2,
        train__evaluate_every=3,
        train__checkpoint={"every": 2},
        train__pipeline="plain",
        embedding__tables__user__sharding="table_wise",
    )
    assert result["steps"] == 6
