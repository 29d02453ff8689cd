# SPDX-License-Identifier: Apache-2.0
"""Tasks on different samples: their gradients meet in the tables' rows, on any number of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.balancing.by_task import ByTask
from deltarec.balancing.gradients import TaskGradients
from deltarec.balancing.rows import Rows
from deltarec.data.batch import Position
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.job import Job
from deltarec.models.losses import TaskLosses
from deltarec.models.network import network_of
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.pair_job import pair_job, write_pair_data


def sharded(folder: Path, job: Job) -> tuple[Tensor, dict[str, Tensor]]:
    """The inner products, and norms by feature, that a method is given of the first batch."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    method: Any = trainer.balancer
    combine, seen = method.combine, []

    def watched(gradients: TaskGradients) -> None:
        seen.append((gradients.gram(), gradients.feature_norms()))
        combine(gradients)

    trainer.model.module.boundary._parts = (*trainer.model.module.boundary._parts[:2], watched)  # pyright: ignore
    trainer.model.train()
    batches = _Batches(trainer.reader.read(Position(), 1), trainer.assignments)
    trainer._train_step(batches)
    batches.close()
    return seen[0]


def by_hand(folder: Path, job: Job) -> dict[str, Tensor]:
    """By table, the gradients `[T, …]` of each task of plain tables."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    schema, specs = job.data_schema, job.embedding.resolved()
    tables: Any = EmbeddingTables(schema, specs).to_empty(device="cpu")
    leaves = {name.split(".")[-2]: parameter for name, parameter in tables.named_parameters()}
    for name, parameter in leaves.items():
        parameter.data.copy_(full_tables(trainer.model)[name])
    network, batch = (
        network_of(job.model, schema, specs, 0),
        next(trainer.reader.read(Position(), 1)),
    )
    losses = TaskLosses(schema.tasks, network.losses)(network(batch, tables(batch)), batch)
    found = [torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for loss in losses]
    by_table = zip(*found, strict=True)
    return {n: torch.stack(g).flatten(1).double() for n, g in zip(leaves, by_table, strict=True)}


def test_sums_over_occurrences(one_process: torch.device):
    """Of several tensors, some of which a task does not reach; a key of -1 is no row."""
    random = torch.Generator().manual_seed(0)
    keys = [torch.randint(-1, 6, (n,), generator=random) for n in (9, 0, 30, 12)]
    reached, widths = [{0, 2}, {0}, {2}, set()], (4, 4, 7, 7)
    gradients = []
    for key, tasks, width in zip(keys, reached, widths, strict=True):
        parts = {t: torch.randn(len(key), width, generator=random).double() for t in tasks}
        gradients.append(ByTask(torch.zeros(len(key), width).double(), 3, parts))
    wanted: dict[int, Tensor] = {}
    for key, found in zip(keys, gradients, strict=True):
        for task, part in found.parts.items():
            for row, gradient in zip(key.tolist(), part, strict=True):
                if row >= 0:
                    total = wanted.setdefault(row, torch.zeros(3, 7).double())
                    total[task, : len(gradient)] += gradient
    rows = Rows.of(keys, gradients, 3)
    assert rows.keys.tolist() == sorted(wanted)
    torch.testing.assert_close(rows.gradients, torch.stack([wanted[k] for k in sorted(wanted)]))
    nothing = Rows.of(keys[1:2], gradients[1:2], 3)
    assert nothing.keys.shape == (0,) and nothing.gradients.shape == (0, 3, 4)


@pytest.mark.parametrize("ranks", [1, 3])
def test_inner_products_and_norms_are_those_of_the_rows(tmp_path: Path, ranks: int):
    """A feature's norms are those of its table, which other features look up too."""
    write_pair_data(tmp_path)
    job = pair_job(tmp_path, balance={"name": "mgda"})
    wanted = run_ranks(1, by_hand, tmp_path, job)[0]
    products = sum(gradients @ gradients.T for gradients in wanted.values())
    assert products[0, 1] and products[0, 2]
    for gram, norms in run_ranks(ranks, sharded, tmp_path, job):
        torch.testing.assert_close(gram, products, rtol=1e-4, atol=1e-9)
        assert norms.keys() > job.features.keys()  # negatives too
        for feature, found in norms.items():
            gradients = wanted[job.data_schema.table(feature)]
            torch.testing.assert_close(found, gradients.norm(dim=1), rtol=1e-4, atol=1e-9)
