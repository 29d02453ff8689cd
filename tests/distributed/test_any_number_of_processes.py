# SPDX-License-Identifier: Apache-2.0
"""The number of processes changes nothing but rounding order."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from deltarec.config import load
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import ROOT, run_ranks
from tests.small_job import small_job, write_small_data


def train(folder: Path, job: Job) -> dict:
    """Runs on each rank; the losses of every step and the result."""
    run = RunFolder(folder / f"run{dist.get_world_size()}")
    result = Trainer(job, run, torch.device("cpu")).fit()
    dist.barrier()
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    losses = [
        [value for name, value in record.items() if name.startswith("loss/")]
        for record in map(json.loads, lines)
        if record["split"] == "train"
    ]
    return {"losses": losses, "result": result}


def assert_equal_losses(runs: list[dict], tolerance: float) -> None:
    reference = torch.tensor(runs[0]["losses"])
    for run in runs[1:]:
        losses = torch.tensor(run["losses"])
        assert losses.shape == reference.shape
        torch.testing.assert_close(losses, reference, rtol=tolerance, atol=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_small_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pipeline", ["sparse_dist", "plain"])
def test_losses_and_metrics_agree(data: Path, pipeline: str):
    """With every kind of feature, every sharding, dropout, batch norm, a chained task.

    Evaluations fall between steps, while the pipeline holds batches.
    """
    job = small_job(data, train__pipeline=pipeline, train__epochs=2, train__evaluate_every=15)
    runs = [run_ranks(ranks, train, data / pipeline, job)[0] for ranks in (1, 2, 4)]
    assert_equal_losses(runs, tolerance=1e-4)
    for run in runs[1:]:
        for task in ("click", "buy"):
            mine, alone = (r["result"]["valid"][task]["all"] for r in (run, runs[0]))
            assert mine["n"] == alone["n"]
            assert mine["logloss"] == pytest.approx(alone["logloss"], rel=1e-3)
    assert runs[0]["result"]["valid"]["click"]["all"]["auc"] > 0.6


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise"])
def test_sharding_changes_nothing_at_equal_column_block(data: Path, sharding: str):
    tables = {
        f"embedding__tables__{name}__sharding": sharding
        for name in ("user", "item", "city", "country", "tags", "scores")
    }
    whole = small_job(data, **(tables | {"embedding__tables__city__column_block": 8}))
    alone = small_job(
        data, **{key: "table_wise" for key in tables}, embedding__tables__city__column_block=8
    )
    runs = [
        run_ranks(1, train, data / "alone", alone)[0],
        run_ranks(2, train, data / sharding, whole)[0],
    ]
    assert_equal_losses(runs, tolerance=1e-4)


def test_batches_of_any_size_and_unequal_shares(data: Path):
    """37 samples over 24 streams: ranks' shares differ at every step."""
    job = small_job(data, train__batch_size=37, train__max_steps=30)
    runs = [run_ranks(ranks, train, data / "odd", job)[0] for ranks in (1, 2, 3)]
    assert_equal_losses(runs, tolerance=1e-4)


def test_quantisation_aware_tables(data: Path):
    tables = {
        f"embedding__tables__{name}__quantisation_aware": "int8"
        for name in ("user", "item", "city", "tags")
    }
    job = small_job(data, train__max_steps=10, data__valid=[], **tables)
    runs = [run_ranks(ranks, train, data / "aware", job)[0] for ranks in (1, 2)]
    assert_equal_losses(runs, tolerance=1e-4)


@pytest.mark.slow
def test_a_hundred_steps_of_movielens(ml1m: Path, tmp_path: Path):
    """The job's activations are smooth; `docs/decisions.md` says what ReLU does to rounding."""
    overrides = ["train.max_steps=100", "train.log_every=1", "data.valid=[]", "data.test=[]"]
    overrides += ["train.early_stopping=null", f"data.source={ml1m}", "model.heads.hidden=[64]"]
    job = load(Job, ROOT / "configs/ml1m_mmoe.yaml", overrides)
    job.data.root()  # prepared once, before the ranks
    runs = [run_ranks(ranks, train, tmp_path, job, timeout=900)[0] for ranks in (1, 2, 4)]
    assert len(runs[0]["losses"]) == 100
    assert_equal_losses(runs, tolerance=1e-4)
