# SPDX-License-Identifier: Apache-2.0
"""What TorchRec does in silence, or not at all, and what this project does about it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deltarec.data.batch import Position
from deltarec.embeddings.tables import TABLE_OPTIMIZERS
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.summary import embedding_bytes
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.small_job import small_job, write_small_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_small_data(tmp_path)
    return tmp_path


def trainer(job: Job, folder: Path) -> Trainer:
    return Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))


def full_tables(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every table whole, on every rank."""
    tables = {}
    for name, value in model.state_dict().items():
        if not name.startswith("tables."):
            continue
        if not hasattr(value, "local_shards"):
            tables[name] = value.detach().clone()
            continue
        shards = [(s.metadata.shard_offsets, s.tensor.float()) for s in value.local_shards()]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, shards)
        tables[name] = torch.full(value.size(), float("nan"))
        for (row, column), part in (shard for shards in gathered for shard in shards):
            tables[name][row : row + part.shape[0], column : column + part.shape[1]] = part
    return {name.split(".")[-2]: table for name, table in tables.items()}


def before_and_after(folder: Path, job: Job, steps: int) -> tuple[dict, dict]:
    mine = trainer(job, folder)
    before = full_tables(mine.model)
    batches = mine.reader.read(Position(0, 0), 1)
    for _ in range(steps):
        mine.pipeline.progress(batches)
    mine.pipeline.detach() if hasattr(mine.pipeline, "detach") else None
    return before, full_tables(mine.model)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_table_moves_also_the_replicated_one(data: Path, ranks: int):
    job = small_job(data, train__pipeline="plain")
    for before, after in run_ranks(ranks, before_and_after, data, job, 3):
        assert before.keys() == {"user", "item", "city", "country", "tags", "scores"}
        for name in before:
            assert not torch.equal(before[name], after[name]), f"{name} stands still"


def test_initial_tables_do_not_depend_on_ranks_or_sharding(data: Path):
    elsewhere = {"item": "table_wise", "user": "column_wise", "city": "row_wise"}
    changed = {f"embedding__tables__{name}__sharding": kind for name, kind in elsewhere.items()}
    jobs = [small_job(data), small_job(data, **changed, embedding__tables__user__column_block=4)]
    first = run_ranks(1, before_and_after, data, jobs[0], 0)[0][0]
    for job, ranks in ((jobs[0], 2), (jobs[1], 1), (jobs[1], 3)):
        for name, table in run_ranks(ranks, before_and_after, data, job, 0)[0][0].items():
            assert torch.equal(table, first[name]), name


def test_replicated_table_learns_like_a_sharded_one(data: Path):
    """With plain SGD in both roles a table's gradient must be the same, replicated or not."""
    sgd = {
        "train__optimizer__dense": {"name": "sgd", "lr": 0.1},
        "embedding__optimizer": {"name": "sgd", "lr": 0.1},
        "train__pipeline": "plain",
    }
    key = "embedding__tables__country__sharding"
    sharded = small_job(data, **sgd, **{key: "table_wise"})
    _, wanted = run_ranks(1, before_and_after, data, sharded, 3)[0]
    for ranks in (1, 2):
        _, after = run_ranks(ranks, before_and_after, data, small_job(data, **sgd), 3)[0]
        torch.testing.assert_close(after["country"], wanted["country"], rtol=1e-5, atol=1e-7)


def forward_logits(folder: Path, job: Job) -> torch.Tensor:
    mine = trainer(job, folder)
    batch = next(mine.reader.read(Position(0, 0), 1))
    mine.model.eval()
    with torch.no_grad():
        return mine.model(batch)[1][1]


def test_outputs_are_chosen_by_name_whatever_order_the_plan_gives(data: Path):
    """One rank: the same logits, though plans put tables into different groups and orders."""
    names = ("user", "item", "city", "country", "tags", "scores")
    plans = [
        {},
        {f"embedding__tables__{name}__sharding": "table_wise" for name in names},
        {f"embedding__tables__{name}__sharding": "row_wise" for name in names},
        {"embedding__tables__tags__sharding": "row_wise"},
    ]
    results = [run_ranks(1, forward_logits, data, small_job(data, **plan))[0] for plan in plans]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


def plan_and_bytes(folder: Path, job: Job) -> tuple[str, int, int]:
    mine = trainer(job, folder)
    found = embedding_bytes(mine.model)
    return mine.plan, found["weights"], found["optimizer"]


@pytest.mark.parametrize("precision,width", [("fp32", 4), ("fp16", 2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_planned_bytes_are_the_real_ones(data: Path, precision: str, width: int, optimizer: str):
    job = small_job(
        data,
        embedding__precision=precision,
        embedding__optimizer={"name": optimizer, "lr": 0.1},
        embedding__tables__country__sharding="table_wise",
    )
    plan, weights, state = run_ranks(2, plan_and_bytes, data, job)[0]
    rows = sum(table.rows for table in job.embedding.tables.values())
    assert weights == rows * 8 * width
    specs = job.embedding.resolved()
    planned = sum(
        job.embedding.optimizer.state_bytes(spec.rows, spec.column_block)
        * (spec.dim // spec.column_block)
        for spec in specs.values()
    )
    assert state == planned
    total = sum(float(line.split()[2]) for line in plan.splitlines() if line.startswith("rank"))
    assert total == pytest.approx((weights + state) / 2**20, abs=0.02)


def test_adam_on_cpu_is_refused(data: Path):
    job = small_job(data, embedding__optimizer={"name": "adam", "lr": 0.1})
    with pytest.raises(AssertionError, match="FBGEMM has no fused Adam on CPU; use rowwise"):
        run_ranks(1, trainer, job, data)


def test_replicating_a_sequence_table_is_refused(data: Path):
    job = small_job(data, embedding__tables__item__sharding="data_parallel")
    with pytest.raises(AssertionError, match=r"embedding.tables.item.sharding: .* choose table"):
        run_ranks(1, trainer, job, data)


@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_the_schedule_reaches_the_fused_optimiser(data: Path, name: str):
    if name.endswith("adam"):
        pytest.skip("FBGEMM has Adam on GPU only")
    job = small_job(
        data,
        embedding__optimizer={"name": name, "lr": 0.5},
        train__optimizer__schedule={"name": "constant", "warmup_steps": 10},
        train__optimizer__dense={"name": "sgd", "lr": 0.01},
    )
    slow, normal = (run_ranks(1, first_update, data, job, batches)[0] for batches in (0, 9))
    assert slow == pytest.approx(normal / 10, rel=1e-3)


def first_update(folder: Path, job: Job, batches: int) -> float:
    """The largest change of a table by one batch, as number `batches` of the schedule."""
    mine = trainer(job, folder)
    mine.optimizer.set_batches(batches)
    before = full_tables(mine.model)["user"]
    batch = next(mine.reader.read(Position(0, 0), 1))
    mine.optimizer.zero_grad()
    losses, _ = mine.model(batch)
    losses.sum().backward()
    mine.optimizer.step()
    return float((full_tables(mine.model)["user"] - before).abs().max())
