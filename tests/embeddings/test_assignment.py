# SPDX-License-Identifier: Apache-2.0
"""Jobs whose tables are smaller than their ids: any ranks, any pipeline, stopped and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltarec.data.batch import Fresh, Position
from deltarec.embeddings.fresh_rows import FreshRows, first_vectors
from deltarec.embeddings.policies import LRU
from deltarec.embeddings.quantised_collections import lookup_modules
from deltarec.embeddings.quantised_kernel import QuantisedKernel
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.streaming import StreamTrainer
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.distributed.test_any_number_of_processes import assert_equal_losses, train
from tests.embeddings.quantised_job import whole_state
from tests.end_to_end.ranks import logged, stored
from tests.pair_job import pair_job
from tests.small_job import small_job, write_small_data
from tests.stream_job import write_stream

HASH = [{"name": "hash", "buckets": 2**62}]
TABLES = {
    "user": {"rows": 100, "assignment": {"policy": "lru"}},
    "item": {"rows": 72, "assignment": {"policy": "lfu", "admit_after": 2}},
    "city": {"rows": 24, "assignment": {"policy": "hash"}, "column_block": 4},
    "tags": {"rows": 48, "assignment": {"policy": "timed", "unseen_steps": 2, "buckets": 12}},
    "scores": {"rows": 48, "assignment": {"policy": "frequency", "admit_after": 3}},
}


def streaming_job(folder: Path, precision: str = "fp32", **overrides: Any) -> Job:
    """The small job with fewer rows than ids in all tables but one, of hashed ids."""
    tables = {f"embedding__tables__{name}": table for name, table in TABLES.items()}
    if precision != "fp32":
        tables["embedding__tables__city"] = {"rows": 24, "assignment": {"policy": "hash"}}
        tables["embedding__tables__country__sharding"] = "table_wise"
    hashed = {f"features__{name}__transforms": HASH for name in ("user", "item", "history")}
    settings = {"embedding__precision": precision, "train__max_steps": 12}
    return small_job(folder, **(tables | hashed | settings | overrides))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_small_data(tmp_path)
    return tmp_path


def trainer(job: Job, run: Path) -> Trainer:
    return Trainer(job, RunFolder(run), torch.device("cpu"))


def maps(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of all tensors of a checkpoint, those that say which id has which row."""
    found = {name: value for name, value in tensors.items() if ".assignments." in name}
    assert {name.split(".")[2] for name in found} == {"user", "item", "tags", "scores"}
    return found


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def train_and_load(folder: Path, jobs: list[Job], saved: list[Path]) -> list[Any]:
    """Each job's training; and what this many ranks load from other runs' checkpoints."""
    runs = [train(folder / job.embedding.precision, job) for job in jobs]
    loaded = []
    for job, run in zip(jobs, saved, strict=False):
        other = folder / f"loading{dist.get_world_size()}"
        if dist.get_rank() == 0:
            shutil.copytree(run / "checkpoints", other / job.embedding.precision / "checkpoints")
        dist.barrier()
        mine = trainer(job, other / job.embedding.precision)
        mine.checkpoints.load("latest")
        loaded.append(whole_state(mine))
    return [runs, loaded]


def test_the_same_rows_on_any_number_of_ranks(data: Path):
    """Rows are equal, and losses but for rounding; codes fall on the other side now and then."""
    jobs = [streaming_job(data, precision) for precision in ("fp32", "int8")]
    saved = [data / job.embedding.precision / "run1" for job in jobs]
    found = {1: run_ranks(1, train_and_load, data, jobs, [])[0]}
    for ranks in (2, 4):
        found[ranks] = run_ranks(ranks, train_and_load, data, jobs, saved)[0]
    for number, (job, tolerance) in enumerate(zip(jobs, (1e-4, 5e-4), strict=True)):
        folder = data / job.embedding.precision
        assert_equal_losses([runs[number] for runs, _ in found.values()], tolerance)
        ends = [stored(folder / f"run{ranks}") for ranks in found]
        assert maps(ends[0])["model.assignments.user.summaries"][:, 3].sum() > 200
        for end in ends[1:]:
            assert_equal(maps(end), maps(ends[0]))
        assert_equal(found[2][1][number], found[4][1][number])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_stopped_between_steps_and_resumed(data: Path, precision: str, one_process: torch.device):
    """Bit for bit; checkpoints and evaluations fall where the pipeline holds batches.

    The checkpoint of step 10 is an increment to that of step 5.
    """
    checkpoint = {"every": 5, "keep": 9, "full_every": 2}
    job = streaming_job(data, precision, train__checkpoint=checkpoint)
    whole, again = data / "whole", data / "again"
    trainer(job, whole).fit()
    shutil.copytree(whole, again)
    (again / "result.json").unlink()
    shutil.rmtree(again / "checkpoints" / "step_000000012")
    (again / "checkpoints" / "latest").unlink()
    trainer(job, again).fit()
    assert logged(again) == logged(whole)
    assert_equal(stored(again), stored(whole))
    last = [record for record in logged(whole) if record["split"] == "train"][-1]
    assert 0 < last["rows_in_use/user"] < 96
    assert last["evictions/user"] > 0
    assert last["promotions/user"] == last["rows_in_use/user"] + last["evictions/user"]


def test_batches_ahead_change_nothing(data: Path, one_process: torch.device):
    ends = []
    for pipeline in ("sparse_dist", "plain"):
        job = streaming_job(data, train__pipeline=pipeline, train__evaluate_every=5)
        trainer(job, data / pipeline).fit()
        ends.append((logged(data / pipeline), stored(data / pipeline)))
    assert ends[0][0] == ends[1][0]
    assert_equal(ends[0][1], ends[1][1])


def test_a_stream_scores_by_the_ids_that_partitions_before_have_left(
    data: Path, one_process: torch.device
):
    """A job that ends in the middle of a partition and goes on is the whole one."""
    write_stream(data / "stream", 4)
    options = {"train__max_steps": 12, "data__source": str(data / "stream"), "data__valid": []}
    options |= {"data__train": ["date=*"], "data__slices": {"seen": [1, 3]}}
    stream = {"stream": {"warmup": 1}}
    whole, cut = (
        streaming_job(data, **(options | stream | changed))
        for changed in ({}, {"train__max_steps": 7})
    )
    StreamTrainer(whole, RunFolder(data / "whole"), one_process).fit()
    StreamTrainer(cut, RunFolder(data / "again"), one_process).fit()
    StreamTrainer(whole, RunFolder(data / "again"), one_process).fit()
    assert_equal(stored(data / "again"), stored(data / "whole"))
    scored = [
        [r for r in logged(data / n) if r["split"] == "partition"] for n in ("whole", "again")
    ]
    assert scored[0] == scored[1]
    assert [*dict.fromkeys(r["step"] for r in scored[0])] == [3, 6, 9]


def test_evaluation_assigns_nothing(data: Path, one_process: torch.device):
    mine = trainer(streaming_job(data), data / "run")
    batch = next(mine.reader.read(Position(), 1))
    before = whole_state(mine)
    assert mine.assignments.find(batch).ids("user").eq(0).all()
    mine.evaluator.evaluate("valid")
    assert_equal(whole_state(mine), before)
    assigned = mine.assignments.assign(batch)
    assert assigned.ids("user").gt(0).any()
    with mine.assignments.as_trained():
        assert mine.assignments.find(batch).ids("user").eq(0).all()
    assert torch.equal(mine.assignments.find(batch).ids("user"), assigned.ids("user"))
    assert assigned.rows("history").max() < 72
    raw, rows = batch.ids("user"), assigned.ids("user")
    taken = rows > 0
    assert raw[taken].unique().numel() == rows[taken].unique().numel()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int2"])
def test_fresh_rows_forget_all(data: Path, precision: str, one_process: torch.device):
    job = streaming_job(data, precision, train__max_steps=4, data__valid=[])
    mine = trainer(job, data / "run")
    mine.fit()
    specs = {name: owned.table for name, owned in mine.assignments.owned.items()}
    before = whole_state(mine)
    told = []
    fresh = FreshRows(mine.model, specs, 3, lambda tensors, rows: told.append((tensors, rows)))
    rows, ids = torch.tensor([5, 90, 17]), torch.tensor([7, -1, 2**62])
    batch = next(mine.reader.read(Position(), 1))
    batch.fresh["user"] = Fresh(rows, ids)
    fresh(batch)
    after = whole_state(mine)
    vectors = first_vectors("user", ids, 8, specs["user"].init_std, 3)
    others = torch.ones(96, dtype=torch.bool).index_fill(0, rows, False)
    for name, value in after.items():
        own = (
            name.startswith("user.") and len(value) == 96 and name not in ("user.keys", "user.uses")
        )
        if not own:
            assert torch.equal(value, before[name]), name
            continue
        assert torch.equal(value[others], before[name][others]), name
        if name == "user.weight":
            assert torch.equal(value[rows], vectors.to(value.dtype))
        elif name == "user.step":
            assert (value[rows] == specs["user"].quantisation.initial_step).all()
        elif name != "user.codes":
            assert before[name][rows].any()
            assert not value[rows].any(), name
    if precision.startswith("int"):
        kernel, index = next(
            (module, index)
            for module in lookup_modules(mine.model)
            if isinstance(module, QuantisedKernel)
            for name, index, _ in module.shards()
            if name == "user"
        )
        error = (kernel.tables.values(index, rows) - vectors).abs()
        largest = specs["user"].quantisation.initial_step * 2 ** (int(precision[3:]) - 1)
        assert (error[vectors.abs() < largest] <= largest).all()
    assert len(told) == 1
    assert torch.equal(told[0][1], rows)


def test_a_checkpoint_copied_later_has_rows_as_they_were(data: Path, one_process: torch.device):
    mine = trainer(streaming_job(data), data / "run")
    specs = {name: owned.table for name, owned in mine.assignments.owned.items()}
    fresh = FreshRows(mine.model, specs, 3, mine.checkpoints.snapshots.before_write)
    tensors = {"model": mine.model.state_dict()}
    name = next(name for name in tensors["model"] if name.endswith(".user.weight"))
    wanted = tensors["model"][name].local_shards()[0].tensor.clone()
    snapshot = mine.checkpoints.snapshots.take(tensors)
    batch = next(mine.reader.read(Position(), 1))
    batch.fresh["user"] = Fresh(torch.tensor([5, 90]), torch.tensor([7, 8]))
    fresh(batch)
    copied = snapshot.complete(lambda: None)["model"][name].local_shards()[0].tensor
    assert torch.equal(copied, wanted)
    assert not torch.equal(tensors["model"][name].local_shards()[0].tensor, wanted)


@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_first_vectors_belong_to_the_ids(ids: list[int]):
    whole = first_vectors("user", torch.tensor(ids), 6, 0.1, 3)
    for place, key in enumerate(ids):
        assert torch.equal(first_vectors("user", torch.tensor([key]), 6, 0.1, 3)[0], whole[place])
    assert not torch.equal(first_vectors("item", torch.tensor(ids), 6, 0.1, 3), whole)


def test_first_vectors_are_normal():
    vectors = first_vectors("user", torch.arange(20_000), 5, 0.1, 3)
    assert vectors.shape == (20_000, 5)
    assert abs(float(vectors.mean())) < 0.001
    assert abs(float(vectors.std()) - 0.1) < 0.001
    assert abs(float((vectors.abs() < 0.1).float().mean()) - 0.6827) < 0.005


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rows": 40}, "40 rows are less than two for each of the 24 buckets"),
        ({"sharding": "table_wise"}, "a rank assigns the rows that it owns"),
        ({"assignment": {"policy": "mru"}}, "'mru' is not known"),
    ],
)
def test_refused(tmp_path: Path, overrides: dict[str, Any], message: str):
    table = {**TABLES["user"], **overrides}
    with pytest.raises(ValueError, match=message):
        small_job(tmp_path, embedding__tables__user=table)


def test_buckets_that_the_ranks_cannot_divide_are_refused(tmp_path: Path):
    policy = streaming_job(tmp_path).embedding.resolved()["user"].assignment
    assert isinstance(policy, LRU)
    policy.check("user", 8)
    with pytest.raises(ValueError, match="buckets is 24, which 5 processes cannot divide"):
        policy.check("user", 5)


def test_pairwise_tasks_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tables\.\w+\.assignment: the ids of pairwise tasks"):
        pair_job(tmp_path, embedding__tables__item={"rows": 72, "assignment": {"policy": "lru"}})
