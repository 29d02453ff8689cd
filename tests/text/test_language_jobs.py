# SPDX-License-Identifier: Apache-2.0
"""Jobs with a language model: any number of ranks, resumed, and in two stages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.distributed.test_any_number_of_processes import assert_equal_losses, train
from tests.embeddings.quantised_job import whole_state
from tests.language_job import LOSSES, aligned_job, language_job, vector_job, write_language_data
from tests.small_job import small_job

STEPS, SAVED = 12, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_language_data(folder)
    return folder


def first_stage(folder: Path) -> Job:
    """Its language model is updated once in three batches; a checkpoint falls between."""
    return aligned_job(
        folder,
        model__language_model__checkpointing=True,
        train__max_steps=STEPS,
        train__checkpoint={"every": SAVED, "keep": 9},
        train__optimizer__language_model={"dense": {"name": "adamw", "lr": 0.01}, "every": 3},
    )


def scored(folder: Path) -> Job:
    return language_job(
        folder,
        model__score={"name": "text_towers", "user": "{seen}<user>", "item": "{title}"},
        train__max_steps=4,
    )


def train_all(where: Path, jobs: dict[str, Job]) -> dict[str, Any]:
    """Each job on these ranks, one after the other."""
    return {name: train(where / name, job) for name, job in jobs.items()}


def test_any_number_of_ranks(folder: Path, tmp_path: Path, one_process: Any):
    jobs = {
        "aligned": first_stage(folder),
        "vectors": vector_job(  # by optimisers that know how long a gradient is
            folder,
            train__max_steps=4,
            train__optimizer__dense={"name": "sgd", "lr": 0.5},
            embedding__optimizer={"name": "sgd", "lr": 0.5},
        ),
        "scored": scored(folder),
    }
    for name in jobs:
        (tmp_path / name).mkdir()
    alone = train_all(tmp_path, jobs)
    together = run_ranks(2, train_all, tmp_path, jobs, timeout=900)[0]
    for name in jobs:
        assert_equal_losses([alone[name], together[name]], tolerance=1e-4)


def test_it_learns_resumes_and_is_served_without_text(
    folder: Path, tmp_path: Path, one_process: Any, capsys: Any
):
    job, run = first_stage(folder), tmp_path / "run1"
    losses = torch.tensor(train(tmp_path, job)["losses"])
    assert losses.shape == (STEPS, 5)
    contrastive, tokens = losses[:, 2], losses[:, 4]
    for loss in (contrastive, tokens):
        assert loss[-3:].mean() < loss[:3].mean() - 0.1
    check_resumed(run, job, one_process)
    check_second_stage(run, folder, tmp_path / "second", capsys)


def check_resumed(run: Path, job: Job, device: torch.device) -> None:
    """From a checkpoint within an accumulation: bit for bit the same end."""
    last = run / f"checkpoints/step_{STEPS:09d}"
    ends = [state_of(load(job, run, device))]
    shutil.rmtree(last)
    (run / "checkpoints/latest").write_text(f"step_{SAVED:09d}\n")
    Trainer(job, RunFolder(run), device).fit()
    ends.append(state_of(load(job, run, device)))
    assert ends[0].keys() == ends[1].keys()
    assert any("language_model" in name for name in ends[0])
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Tables and replicated parameters."""
    network: Any = trainer.model.module.network
    dense = {name: p.detach().clone() for name, p in network.named_parameters()}
    return {name: t.clone() for name, t in whole_state(trainer).items()} | dense


def load(job: Job, run: Path, device: torch.device) -> Trainer:
    trainer = Trainer(job, RunFolder(run), device)
    trainer.checkpoints.load("latest")
    return trainer


def check_second_stage(first: Path, folder: Path, run: Path, capsys: Any) -> None:
    """It begins with the first one's tables and layers, and knows no text."""
    capsys.readouterr()
    job = small_job(
        folder,
        train__warm_start={"run": str(first)},
        train__max_steps=1,
        train__optimizer__dense={"name": "adam", "lr": 1e-9},
        embedding__optimizer={"name": "rowwise_adagrad", "lr": 1e-9},
        data__valid=[],
    )
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    trainer.fit()
    said = capsys.readouterr().out
    missing, unexpected = said.split("missing there: ")[1].split("; unexpected there: ")
    assert missing == "nothing"
    assert "network.alignment" in unexpected and "network.language_model" in unexpected
    theirs = load(first_stage(folder), first, torch.device("cpu"))
    mine, other = whole_state(trainer), whole_state(theirs)
    torch.testing.assert_close(mine["item.weight"], other["item.weight"])
    line = json.loads((first / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss/click", "loss/align/contrastive", "loss/align/masked_token"} <= line.keys()


def test_items_that_no_sample_has_learn_from_a_catalogue(
    folder: Path, tmp_path: Path, one_process: torch.device
):
    """Its rows have an item, and neither a user nor a label."""
    rows = pq.read_table(folder / "train")
    rated = rows.filter(pc.field("item") < 90)
    catalogue = pa.Table.from_pylist([{"item": i} for i in range(100)], schema=rows.schema)
    for name, table in (("rated", rated), ("catalogue", catalogue)):
        (folder / name).mkdir()
        pq.write_table(table, folder / name / "0.parquet")
    tables = vector_job(folder).embedding.tables
    moved = {}
    for data in (["rated"], ["rated", "catalogue"]):
        job = vector_job(
            folder,
            data__train=data,
            features={
                "user": {"kind": "id", "optional": True},
                "item": {"kind": "id"},
                "vector": {"kind": "id", "column": "item"},
            },
            embedding__tables={
                name: tables[name].model_dump(exclude_unset=True)
                for name in ("user", "item", "vector")
            },
            tasks={"click": {"on_invalid": "mask"}},
            scenario=None,
            model={
                "trunk": {"name": "mlp", "hidden": [8]},
                "heads": {"name": "shared_bottom"},
                "align": {"vectors": ["vector"], "losses": LOSSES[:1], "tasks": 1.0},
            },
        )
        (tmp_path / "-".join(data)).mkdir()
        trainer = Trainer(job, RunFolder(tmp_path / "-".join(data)), one_process)
        before = whole_state(trainer)["item.weight"].clone()
        trainer.fit()
        change = (whole_state(trainer)["item.weight"] - before).abs().amax(1) > 0
        moved[len(data)] = set(change.nonzero().flatten().tolist())
    assert moved[1] == set(range(90))
    assert moved[2] == set(range(100))
