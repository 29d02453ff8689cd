# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.utils._python_dispatch import TorchDispatchMode

from deltarec import checksums, stored_tensors
from deltarec.checkpoint import TrainState
from deltarec.distributed import rank, world_size
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.supervision import Watchdog
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.end_to_end.ranks import logged
from tests.small_job import SPLITS, small_job, write_small_data


def fit(run: Path, job: Job) -> dict[str, Any]:
    """Runs on each rank; also the samples of every step, as row numbers of the dataset."""
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    read, samples = trainer.reader.read, []

    def recorded(*arguments: Any):
        for batch in read(*arguments):
            samples.append(batch.index[batch.index >= 0].tolist())
            yield batch

    first = trainer.checkpoints.find("latest")
    trainer.reader.read = recorded  # pyright: ignore
    loaded = trainer.checkpoints.load("latest").step if first else 0
    tables = full_tables(trainer.model)
    result = trainer.fit()
    return {
        "loaded": tables,
        "tables": full_tables(trainer.model),
        "valid": result["valid"],
        "steps": result["steps"],
        "samples": samples[: result["steps"] - loaded],  # the pipeline reads ahead
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    return folder


@pytest.fixture
def trainer(data: Path, tmp_path: Path, one_process: torch.device) -> Trainer:
    """Of one process, in `tmp_path / "run"`."""
    trainer = Trainer(small_job(data), RunFolder(tmp_path / "run"), one_process)
    trainer.optimizer.init_state()  # which it has after a step
    return trainer


def losses(run: Path) -> dict[int, list[float]]:
    """By step."""
    keys = ("loss/click", "loss/buy")
    return {r["step"]: [r[key] for key in keys] for r in logged(run) if r["split"] == "train"}


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_cut_in_two_ends_like_one(data: Path, tmp_path: Path, ranks: int):
    job = small_job(data, train__epochs=2)
    half = small_job(data, train__epochs=2, train__max_steps=13)
    whole = run_ranks(ranks, fit, tmp_path / "whole", job)[0]
    run_ranks(ranks, fit, tmp_path / "cut", half)
    resumed = run_ranks(ranks, fit, tmp_path / "cut", job)[0]
    assert resumed["steps"] == whole["steps"] == 40
    assert resumed["valid"] == whole["valid"]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name, table in whole["tables"].items():
        assert torch.equal(resumed["tables"][name], table), name


def test_resumes_on_another_number_of_processes(data: Path, tmp_path: Path):
    """Saved by 2 in the middle of the second epoch, resumed by 1, 3 and 4."""
    job = small_job(data, train__epochs=2, train__optimizer__dense={"name": "adam", "lr": 0.003})
    half = job.model_copy(update={"train": job.train.model_copy(update={"max_steps": 27})})
    run_ranks(2, fit, tmp_path / "whole", job)
    reference = losses(tmp_path / "whole")
    saved = run_ranks(2, fit, tmp_path / "run2", half)
    for ranks in (1, 3, 4):
        run = tmp_path / f"run{ranks}"
        os.system(f"cp -r {tmp_path}/run2 {run}")
        resumed = run_ranks(ranks, fit, run, job)
        for name, table in saved[0]["tables"].items():
            assert torch.equal(resumed[0]["loaded"][name], table), name
        seen = [
            sorted(sample for outcome in outcomes for sample in outcome["samples"][step])
            for outcomes in (saved, resumed)
            for step in range(len(outcomes[0]["samples"]))
        ]
        assert len(seen) == 40
        for epoch in (seen[:20], seen[20:]):
            assert sorted(itertools.chain(*epoch)) == list(range(SPLITS["train"]))
        mine = losses(run)
        assert mine.keys() == reference.keys()
        following = sorted(step for step in mine if step > 27)
        torch.testing.assert_close(
            torch.tensor([mine[step] for step in following]),
            torch.tensor([reference[step] for step in following]),
            rtol=1e-4,
            atol=0,
        )


def test_early_stopping_keeps_the_best(data: Path, tmp_path: Path):
    job = small_job(
        data,
        train__epochs=30,
        train__early_stopping={"task": "click", "metric": "auc", "patience": 2},
        train__optimizer__dense={"name": "adam", "lr": 0.1},
    )
    first = run_ranks(1, fit, tmp_path / "run", job)[0]
    folder = tmp_path / "run" / "checkpoints"
    latest, best = ((folder / name).read_text().strip() for name in ("latest", "best"))
    assert int(latest[5:]) - int(best[5:]) == 2 * 20
    before = f"step_{int(latest[5:]) - 20:09d}"
    assert {path.name for path in folder.glob("step_*")} == {latest, before, best}
    again = run_ranks(1, fit, tmp_path / "run", job)[0]  # stopped is stopped
    assert again["steps"] == first["steps"] and again["valid"] == first["valid"]


def test_early_stopping_by_the_mean_of_tasks(data: Path, tmp_path: Path):
    job = small_job(
        data,
        train__epochs=4,
        train__early_stopping={"task": ["buy", "click"], "metric": "auc", "patience": 9},
    )
    run_ranks(1, fit, tmp_path / "run", job)
    means: dict[int, float] = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        found = json.loads(line)
        where = (found["split"], found.get("task"), found.get("scenario"))
        if where in {("valid", "buy", "all"), ("valid", "click", "all")}:
            means[found["step"]] = means.get(found["step"], 0) + found["auc"] / 2
    folder = tmp_path / "run" / "checkpoints"
    best = int((folder / "best").read_text().strip()[5:])
    assert len(means) == 4 and means[best] == max(means.values())
    state = json.loads((folder / f"step_{best:09d}" / "state.json").read_text())
    assert state["best_value"] == pytest.approx(means[best], abs=1e-12)


def test_what_layers_draw_continues(trainer: Trainer):
    trainer.checkpoints.save(TrainState(step=3))
    expected = torch.rand(5)
    torch.rand(100)
    assert trainer.checkpoints.load().step == 3
    assert torch.equal(torch.rand(5), expected)


def test_training_draws_nothing(trainer: Trainer):
    """So that no result depends on a generator, whose state belongs to one process."""
    before = torch.get_rng_state()
    batches = trainer.reader.read(trainer.state.position, 1)
    for _ in range(3):
        trainer.pipeline.progress(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_saved_again_leaves_the_first_until_it_is_whole(trainer: Trainer, tmp_path: Path):
    folder = tmp_path / "run" / "checkpoints"
    left = folder / "step_000000002.partial"
    left.mkdir(parents=True)
    for samples in (1, 2, 3):
        trainer.checkpoints.save(TrainState(step=5, samples=samples))
        trainer.checkpoints.wait()
        assert trainer.checkpoints.load().samples == samples
    assert not left.exists()
    assert sorted(path.name for path in folder.glob("step_*")) == [
        "step_000000005_002",
        "step_000000005_003",
    ]


def fill_the_disk(run: Path, job: Job) -> tuple[str, int]:
    """One rank may write no file beyond a few bytes after the first checkpoint."""
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    trainer.optimizer.init_state()
    trainer.checkpoints.save(TrainState(step=1))
    trainer.checkpoints.wait()
    if rank() == world_size() - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    trainer.checkpoints.save(TrainState(step=2))
    with pytest.raises(ValueError, match="step 2") as raised:
        trainer.checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return str(raised.value), trainer.checkpoints.load("latest").step


def test_a_full_disk_leaves_the_latest(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    for message, loaded in run_ranks(2, fill_the_disk, run, small_job(data)):
        assert "rank 1" in message and "File too large" in message
        assert f"{run}/checkpoints/step_000000001 is intact" in message and "\n" not in message
        assert loaded == 1
    assert not list(run.rglob("*.partial"))


class Clones(TorchDispatchMode):
    """Counts the bytes of all clones."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            self.num_bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


def test_writing_needs_no_memory_for_the_tables(one_process: torch.device, tmp_path: Path):
    """Tables share a storage, and the writer alone would clone and keep each of them."""
    storage = torch.randn(4000, 16)
    model = {f"table_{i}": storage[1000 * i : 1000 * (i + 1)] for i in range(4)}
    group = dist.new_group(backend="gloo")
    with Clones() as clones:
        stored_tensors.write({"model": model}, tmp_path, group, Watchdog(60))
    assert clones.num_bytes == 0
    found = {"model": {name: torch.zeros(1000, 16) for name in model}}
    stored_tensors.read(found, tmp_path)
    for name, table in model.items():
        assert torch.equal(found["model"][name], table)


def sign(folder: Path) -> None:
    """Give a checkpoint the checksums of what lies in it, as who means harm would."""
    paths = [path for path in folder.iterdir() if path.name != checksums.FILE]
    sums = {path.name: checksums.of_file(path) for path in paths}
    (folder / checksums.FILE).write_text(json.dumps(sums))


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_loading_executes_no_code(trainer: Trainer, tmp_path: Path):
    """Neither from the index, nor from an entry that the index declares an object."""
    trainer.checkpoints.save(TrainState(step=1))
    trainer.checkpoints.wait()
    folder, mark = trainer.checkpoints.find("latest"), tmp_path / "executed"
    assert folder is not None
    index = FileSystemReader(folder).read_metadata()
    place = index.storage_data
    victim = next(
        item for item in place if item.fqn.endswith(".step") and item.fqn.startswith("optimizer.")
    )
    index.state_dict_metadata[victim.fqn] = BytesStorageMetadata()
    data = pickle.dumps(Evil(mark))
    (folder / "evil").write_bytes(data)
    info = place.pop(victim)
    info.relative_path, info.offset, info.length = "evil", 0, len(data)
    victim.__dict__["offset"] = None
    place[victim] = info
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    sign(folder)
    with pytest.raises(ValueError, match=rf"'{victim.fqn}' is not a tensor"):
        trainer.checkpoints.load()
    (folder / ".metadata").write_bytes(data)
    sign(folder)
    with pytest.raises(ValueError, match=r"asks for posix\.mkdir"):
        trainer.checkpoints.load()
    assert not mark.exists()


@pytest.mark.parametrize("part", ["state.json", ".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_named(trainer: Trainer, part: str):
    trainer.checkpoints.save(TrainState(step=1))
    trainer.checkpoints.wait()
    folder = trainer.checkpoints.find("latest")
    assert folder is not None
    file = folder / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="step_000000001") as raised:
        trainer.checkpoints.load()
    assert part in str(raised.value) and "is damaged" in str(raised.value)


def test_another_model_is_refused_by_name(trainer: Trainer, data: Path, tmp_path: Path):
    trainer.checkpoints.save(TrainState(step=1))
    trainer.checkpoints.wait()
    other = small_job(data, embedding__tables__user__rows=300)
    changed = Trainer(other, RunFolder(tmp_path / "run"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"user\.weight' is \(200, 8\).*\(300, 8\) in the model"):
        changed.checkpoints.load()


def test_the_state_is_what_was_saved(trainer: Trainer):
    state = TrainState(step=2, samples=7, seconds=1.5, best_value=0.6, evaluation_due=True)
    trainer.checkpoints.save(state)
    assert trainer.checkpoints.load() == state
    folder = trainer.checkpoints.find("latest")
    assert folder is not None and stored_tensors.sizes(folder)
    assert json.loads((folder / "state.json").read_text())["samples"] == 7
