# SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite stops the job, and says what to go back to."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from deltarec.data.batch import Position
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.supervision import NotFinite
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
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
            f"the last checkpoint, all of it finite, is {run}/checkpoints/step_{step - 1:09d}; "
            "if a run from there ends in the same way, let 'latest' name an earlier one"
        )
        assert finite


def diverge(run: Path, job: Job) -> tuple[str, bool]:
    """What the job says, and whether all that the checkpoints hold is finite."""
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    with pytest.raises(ValueError, match="not finite") as raised:
        trainer.fit()
    finite = True
    if trainer.checkpoints.find("latest"):
        trainer.checkpoints.load("latest")
        finite = all(bool(t.isfinite().all()) for t in full_tables(trainer.model).values())
    return str(raised.value), finite


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("train__optimizer__dense", {}),
        ("embedding__optimizer", {}),
        ("embedding__optimizer", {"full_every": 3}),
        ("embedding__optimizer", {"asynchronous": False}),
    ],
)
def test_an_update_that_overflows_is_not_saved(
    tmp_path: Path, ranks: int, part: str, options: dict[str, Any]
):
    """The loss is finite, what the step makes of the weights is not."""
    write_small_data(tmp_path)
    settings: dict[str, Any] = {part: {"name": "sgd", "lr": 3e38}}
    settings["balance"] = {"name": "static", "weights": {"click": 1e8}}
    settings["train__checkpoint"] = {"every": 1, **options}
    job = small_job(tmp_path, **settings)
    for message, finite in run_ranks(ranks, diverge, tmp_path / "run", job):
        assert "after step" in message
        assert ("'tables." in message) == (part == "embedding__optimizer")
        assert finite
    assert not list(tmp_path.glob("run/checkpoints/step_*.partial"))
