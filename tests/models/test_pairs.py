# SPDX-License-Identifier: Apache-2.0
"""Pairwise tasks: their losses, on any number of ranks, and what is refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deltarec.data.batch import Position
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.models.losses import TaskLosses
from deltarec.models.network import network_of
from deltarec.models.pairs import PairNetwork
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.conftest import run_ranks
from tests.pair_job import pair_job

L2 = 0.1
TOWERS = {"name": "two_tower", "hidden": [8], "dim": 8, "dropout": 0.2}


def test_losses_are_those_of_bpr(pair_data: Path, one_process: torch.device, tmp_path: Path):
    job = pair_job(pair_data, model__pair__l2=L2)
    schema, specs = job.data_schema, job.embedding.resolved()
    trainer = Trainer(job, RunFolder(tmp_path), torch.device("cpu"))
    batch = next(trainer.reader.read(Position(), 1))
    tables: Any = EmbeddingTables(schema, specs).to_empty(device="cpu")
    torch.manual_seed(0)
    rows = {}
    for name, weight in tables.named_parameters():
        rows[name.split(".")[-2]] = weight.data.normal_()
    network = network_of(job.model, schema, specs, seed=0)
    assert isinstance(network, PairNetwork)
    losses = TaskLosses(schema.tasks, network.losses)(network(batch, tables(batch)), batch)

    def vectors(feature: str, samples: torch.Tensor) -> torch.Tensor:
        ids = batch.pooled.to_dict()[feature].to_padded_dense(1)  # pyright: ignore
        return rows[schema.table(feature)][ids[samples, 0].long()]

    for t, (name, task) in enumerate(job.tasks.items()):
        samples = batch.mask[:, t]
        query, item = vectors(task.query[0], samples), vectors(task.item[0], samples)
        drawn = [vectors(f"{name}/negative{n}", samples) for n in range(task.negatives)]
        above = torch.stack([(query * (item - other)).sum(1) for other in drawn])
        squares = sum(v.square().sum(1) for v in (query, item, *drawn)) / 2
        expected = (-F.logsigmoid(above).mean(0) + L2 * squares).mean()
        torch.testing.assert_close(losses[t], expected)


def train(folder: Path, data: Path, pair: dict[str, Any], **overrides: Any) -> torch.Tensor:
    """This rank's shares of the losses, `[steps, T]`."""
    job = pair_job(
        data, model__pair=pair, train__optimizer__dense={"name": "adam", "lr": 0.01}, **overrides
    )
    trainer = Trainer(job, RunFolder(folder), torch.device("cpu"))
    trainer.model.train()
    source = trainer.reader.read(Position(), job.train.epochs)
    batches = _Batches(source, trainer.assignments, trainer.subgraphs)
    shares = []
    for _ in range(min(trainer.num_steps, 12)):
        shares.append(trainer._train_step(batches))
        batches.trained()
    batches.close()
    return torch.stack(shares)


@pytest.mark.parametrize("pair", [{"name": "mf", "bias": True, "l2": 0.01}, TOWERS])
def test_the_number_of_ranks_changes_nothing(pair_data: Path, tmp_path: Path, pair: dict[str, Any]):
    """Ranks have unequal shares of the batches, and some tasks no sample on some rank."""
    runs = [
        torch.stack(
            run_ranks(n, partial(train, train__batch_size=19), tmp_path, pair_data, pair)
        ).mean(0)
        for n in (1, 2, 3)
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-4, atol=1e-6)


def test_look_ups_one_by_one_train_alike(
    pair_data: Path, tmp_path: Path, one_process: torch.device
):
    """Tables in an EmbeddingCollection: there a sample that lacks an id has no row at all."""
    tables = {f"embedding__tables__{t}__quantisation_aware": "int8" for t in ("user", "item")}
    fine = {f"embedding__tables__{t}__initial_step": 1e-5 for t in ("user", "item")}
    job: Any = {
        "train__max_steps": 3,
        "embedding__init_std": 1e-4,
        "embedding__optimizer__lr": 1e-4,
    }
    one_by_one = train(tmp_path / "a", pair_data, {"name": "mf"}, **job, **tables, **fine)
    pooled = train(tmp_path / "b", pair_data, {"name": "mf"}, **job)
    torch.testing.assert_close(one_by_one, pooled, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tasks__listen__query": []}, "tasks.listen.query: its first feature must be an id"),
        ({"tasks__listen__item": ["artist"]}, "tasks.listen.item: there is no feature 'artist'"),
        ({"tasks__listen__item": ["item", "other"]}, r"tasks.listen.item: got \['item', 'other'\]"),
        ({"tasks__listen__num_items": 81}, "tasks.listen.num_items: the table of 'item' has 80"),
        ({"tasks__listen__label": "x"}, "tasks.listen.label: is not for a pairwise task"),
        ({"tasks__click": {}}, "either all are pairwise or none"),
        ({"tasks__click": {"negatives": 3}}, "tasks.click.negatives: is not for a binary task"),
        ({"features__age": {"kind": "dense"}}, "features.age: no side of a pairwise task"),
        ({"model__trunk": {"name": "mlp", "hidden": [8]}}, "'pair' is the whole model"),
        ({"model__scenario": {"name": "hamur"}}, "'pair' is the whole model"),
        ({"model__sequence": {"name": "din", "hidden": [8]}}, "'pair' is the whole model"),
        ({"model": {"trunk": {"name": "mlp", "hidden": [8]}}}, "needs 'trunk' and 'heads', or"),
        ({"features__user__dropout": 0.1}, "features.user.dropout: is not for pairwise tasks"),
        ({"scenario": {"column": "user", "values": [1]}}, "scenario: pairwise tasks know none"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        pair_job(tmp_path, **overrides)


def test_mf_refuses_what_it_cannot_multiply(tmp_path: Path):
    for overrides, message in (
        (
            {"embedding__tables__user__dim": 4},
            "rows of tables 'user' and 'item', which have 4 and 8",
        ),
        ({"tasks__listen__query": ["user", "friend"]}, "mf knows nothing but two ids"),
    ):
        job = pair_job(tmp_path, **overrides)
        with pytest.raises(ValueError, match=message):
            network_of(job.model, job.data_schema, job.embedding.resolved(), seed=0)
