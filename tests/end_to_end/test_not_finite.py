# SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite stops the job, and says what to go back to."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from deltarec.data.batch import Position
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.supervision import NotFinite
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.small_job import small_job, write_small_data

ROW = 1234


def train(run: Path, job: Job) -> tuple[str, int, bool]:
    """What the job says, the step whose batch has the planted row, and what is left."""
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    bad = 0
    with pytest.raises(ValueError) as raised:
        trainer.fit()
    for step, batch in enumerate(trainer.reader.read(Position(), 1)):
        if bool((batch.dense > 1e38).any()):
            bad = step + 1
    trainer.checkpoints.load("latest")
    left = [t for n, t in trainer.model.state_dict().items() if not n.startswith("tables.")]
    assert not isinstance(raised.value, NotFinite)
    return str(raised.value), bad, all(bool(tensor.isfinite().all()) for tensor in left)


@pytest.mark.parametrize("ranks", [1, 2])
def test_names_the_step_the_tasks_and_the_last_good_checkpoint(tmp_path: Path, ranks: int):
    write_small_data(tmp_path)
    file = tmp_path / "train" / "0.parquet"
    table = pq.read_table(file)
    price = table["price"].to_numpy().copy()
    price[ROW] = 3e38
    place = table.column_names.index("price")
    pq.write_table(table.set_column(place, "price", [price]), file, row_group_size=100)
    trunk = {"name": "dcn", "cross_layers": 2, "hidden": [16]}  # where the value overflows
    job = small_job(
        tmp_path, model__trunk=trunk, train__checkpoint={"every": 1}, train__max_steps=20
    )
    run = tmp_path / "run"
    outcomes = run_ranks(ranks, train, run, job)
    step = max(bad for _, bad, _ in outcomes)
    assert step > 1
    for message, _, finite in outcomes:
        assert message == (
            f"the loss of task click is not finite at step {step}; "
            f"the last good checkpoint is {run}/checkpoints/step_{step - 1:09d}"
        )
        assert finite


def diverge(run: Path, job: Job) -> str:
    with pytest.raises(ValueError, match="not finite") as raised:
        Trainer(job, RunFolder(run), torch.device("cpu")).fit()
    return str(raised.value)


def test_an_update_that_overflows_is_not_saved(tmp_path: Path):
    """The loss is finite, what the step makes of the weights is not."""
    write_small_data(tmp_path)
    rate = {"name": "sgd", "lr": 1e38}
    job = small_job(tmp_path, train__optimizer__dense=rate, train__checkpoint={"every": 1})
    message = run_ranks(1, diverge, tmp_path / "run", job)[0]
    assert "after step" in message or "at step" in message
    assert not list(tmp_path.glob("run/checkpoints/step_*.partial"))
