# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.small_job import small_job, write_small_data


def fit(run: Path, job: Job) -> dict:
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    result = trainer.fit()
    return {
        "tables": full_tables(trainer.model),
        "valid": result["valid"],
        "steps": result["steps"],
    }


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_cut_in_two_ends_like_one(tmp_path: Path, ranks: int):
    write_small_data(tmp_path)
    job = small_job(tmp_path, train__epochs=2)
    half = small_job(tmp_path, train__epochs=2, train__max_steps=13)
    whole = run_ranks(ranks, fit, tmp_path / "whole", job)[0]
    run_ranks(ranks, fit, tmp_path / "cut", half)
    resumed = run_ranks(ranks, fit, tmp_path / "cut", job)[0]
    assert resumed["steps"] == whole["steps"] == 40
    assert resumed["valid"] == whole["valid"]
    for name, table in whole["tables"].items():
        assert torch.equal(resumed["tables"][name], table), name


def test_tables_load_on_another_number_of_processes(tmp_path: Path):
    write_small_data(tmp_path)
    job = small_job(tmp_path)
    saved = run_ranks(2, fit, tmp_path / "run", job)[0]
    for ranks in (1, 3):
        loaded = run_ranks(ranks, load, tmp_path / "run", job)[0]
        for name, table in saved["tables"].items():
            assert torch.equal(loaded[name], table), name


def load(run: Path, job: Job) -> dict[str, torch.Tensor]:
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    state = trainer.checkpoints.load("latest")
    assert state.step == trainer.optimizer.batches == 20
    return full_tables(trainer.model)


def test_early_stopping_keeps_the_best(tmp_path: Path):
    write_small_data(tmp_path)
    job = small_job(
        tmp_path,
        train__epochs=30,
        train__early_stopping={"task": "click", "metric": "auc", "patience": 2},
        train__optimizer__dense={"name": "adam", "lr": 0.1},
    )
    run_ranks(1, fit, tmp_path / "run", job)
    folder = tmp_path / "run" / "checkpoints"
    latest, best = ((folder / name).read_text().strip() for name in ("latest", "best"))
    assert int(latest[5:]) - int(best[5:]) == 2 * 20
    before = f"step_{int(latest[5:]) - 20:09d}"
    assert {path.name for path in folder.glob("step_*")} == {latest, before, best}
