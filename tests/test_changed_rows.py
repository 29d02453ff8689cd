# SPDX-License-Identifier: Apache-2.0
"""Increments and the checkpoint they begin with give back every bit, on any number of ranks."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.changed_rows import chain
from deltarec.checkpoint import TrainState
from deltarec.distributed import rank
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.conftest import run_ranks
from tests.embeddings.quantised_job import quantised_job
from tests.end_to_end.ranks import stored
from tests.small_job import small_job, write_small_data

INCREMENTAL = {"full_every": 3, "keep": 1}
LARGE = {f"embedding__tables__{name}__rows": 5_000 for name in ("user", "scores")}


def train_and_save(run: Path, job: Job) -> None:
    """A whole checkpoint and two increments, kept in a copy; then the same state whole again."""
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
    for step in (1, 2, 3):
        for _ in range(3):
            trainer._train_step(batches)
            batches.trained()
            trainer.checkpoints.after_step()
        trainer.checkpoints.save(TrainState(step=step))
    trainer.checkpoints.wait()
    if rank() == 0:
        shutil.copytree(run, run.with_name("copy"))
    trainer.checkpoints.save(TrainState(step=3, samples=1), training_goes_on=False)


def load_and_save(run: Path, job: Job) -> None:
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    assert trainer.checkpoints.load() == TrainState(step=3)
    trainer.checkpoints.save(TrainState(step=4), training_goes_on=False)


def num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("job_of", [small_job, quantised_job], ids=["fp32", "int8"])
def test_increments_restore_every_bit(tmp_path: Path, job_of: Any):
    write_small_data(tmp_path)
    job = job_of(tmp_path, train__checkpoint=INCREMENTAL, **LARGE)
    whole = job_of(tmp_path, **LARGE)
    run, copy = tmp_path / "run", tmp_path / "copy"
    run_ranks(2, train_and_save, run, job)
    left = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert left == ["step_000000003_002"], "the increments went when nothing needed them"
    names = [f"step_{step:09d}" for step in (1, 2, 3)]
    folders = [copy / "checkpoints" / name for name in names]
    assert chain(folders[2]) == folders, "kept, though one is to be kept: the last one needs them"
    assert num_bytes(folders[1]) < num_bytes(folders[0]) / 2
    expected = stored(run)
    run_ranks(3, load_and_save, copy, whole)
    found = stored(copy)
    tensors = {name for name in expected if not name.startswith("random.")}
    assert tensors == {name for name in found if not name.startswith("random.")}
    assert any(name.startswith("optimizer.tables.") for name in tensors)
    for name in tensors:
        assert torch.equal(found[name], expected[name]), name
    shutil.rmtree(folders[0])
    with pytest.raises(
        ValueError, match=r"holds what has changed since step_000000001, which is gone"
    ):
        chain(folders[2])
