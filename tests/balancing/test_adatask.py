# SPDX-License-Identifier: Apache-2.0
"""AdaTask against an optimiser a task: of dense parameters, and of rows on any number of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.balancing.gradients import TaskGradients
from deltarec.checkpoint import TrainState
from deltarec.data.batch import Position
from deltarec.job import Job
from deltarec.models.losses import TaskLosses
from deltarec.models.network import network_of
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.balancing.small_problem import balancer, random_gradients
from tests.conftest import run_ranks
from tests.embeddings.plain_tables import by_table, plain_tables
from tests.embeddings.test_torchrec_traps import full_tables
from tests.pair_job import pair_job
from tests.small_job import small_job

RATE, STEPS, BETA, EPS = 0.05, 4, 0.9, 1e-4
SGD = {"name": "sgd", "lr": RATE}


def test_an_adam_for_each_task(one_process: torch.device):
    """The update is the sum of the steps of PyTorch's Adam, one on each task's gradients."""
    method = balancer("adatask", "ab")
    shared, own = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    method.prepare([], {}, [shared], [own])
    copies = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
    adams = [torch.optim.Adam([copy], lr=1.0) for copy in copies]
    for step in range(4):
        matrix = random_gradients(2, 8, seed=step)
        matrix[1, 4:] = 0  # the second task does not reach the last four
        losses = matrix @ torch.cat([shared, own])
        gradients = TaskGradients(losses, [], [shared], [own])
        method.combine(gradients)
        parts = (matrix[0, :4], matrix[1, :4], matrix[0, 4:])
        for copy, adam, gradient in zip(copies, adams, parts, strict=True):
            copy.grad, copy.data = gradient.clone(), torch.zeros_like(copy)
            adam.step()
        torch.testing.assert_close(gradients.combined_shared[0], -(copies[0] + copies[1]))
        torch.testing.assert_close(gradients.combined_own[0], -copies[2])


def job_of(data: Path, **overrides: Any) -> Job:
    """Three tasks that meet in the rows of users and items, which several features look up."""
    settings = {
        "balance": {"name": "adatask", "betas": [0.9, BETA], "eps": EPS},
        "embedding__optimizer": SGD,
        "train__optimizer__dense": SGD,
        "train__batch_size": 64,
        "train__max_steps": STEPS,
    }
    return pair_job(data, **(settings | overrides))


def train(folder: Path, job: Job, resume: bool) -> dict[str, Tensor]:
    """The tables after a few steps, from the checkpoint in the folder on or up to one."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    trainer.model.train()
    state = trainer.checkpoints.load() if resume else TrainState(position=Position())
    batches = _Batches(trainer.reader.read(state.position, 1), trainer.assignments)
    while state.step < (STEPS if resume else STEPS // 2):
        trainer._train_step(batches)
        state = TrainState(step=state.step + 1, position=batches.trained().next)
    batches.close()
    trainer.checkpoints.save(state, training_goes_on=False)
    return full_tables(trainer.model)


def by_hand(folder: Path, job: Job) -> dict[str, Tensor]:
    """The equation on plain tables: each task's gradient of the whole table, row by row."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    schema, tables = job.data_schema, plain_tables(trainer)
    network = network_of(job.model, schema, job.embedding.resolved(), seed=0)
    losses = TaskLosses(schema.tasks, network.losses)
    leaves = list(tables.parameters())
    means = [torch.zeros(len(job.tasks), len(leaf)) for leaf in leaves]
    batches = trainer.reader.read(Position(), 1)
    for _ in range(STEPS):
        batch = next(batches)
        by_task = losses(network(batch, tables(batch)), batch)
        found = [
            torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
            for loss in by_task
        ]
        for i, (leaf, mean) in enumerate(zip(leaves, means, strict=True)):
            for task, gradients in enumerate(found):
                for row, gradient in enumerate(gradients[i]):
                    if not gradient.any():
                        continue
                    square = gradient.square().sum()
                    known = mean[task, row] > 0
                    mean[task, row] = (
                        BETA * mean[task, row] + (1 - BETA) * square if known else square
                    )
                    leaf.data[row] -= RATE * gradient / (mean[task, row].sqrt() + EPS)
    batches.close()
    return by_table(tables)


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1)])
def test_a_mean_square_for_each_row_and_task(
    pair_data: Path, tmp_path: Path, ranks: tuple[int, int]
):
    """Before and after a checkpoint, which another number of ranks goes on from."""
    job = job_of(pair_data)
    [wanted] = run_ranks(1, by_hand, tmp_path / "plain", job)
    run_ranks(ranks[0], train, tmp_path, job, False)
    for found in run_ranks(ranks[1], train, tmp_path, job, True):
        assert found.keys() == wanted.keys() == {"user", "item"}
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_what_would_spoil_the_update_is_refused(tmp_path: Path):
    options: dict[str, Any] = {"balance": {"name": "adatask"}}

    def refused(reason: str, **more: Any) -> None:
        with pytest.raises(ValueError, match=reason):
            small_job(tmp_path, **options, **more)

    refused(r"features.scores.weights: balance adatask uses the single rows")
    options["features__scores"] = {"kind": "ids", "column": "tags", "table": "scores"}
    refused(r"dense.name: got 'adam'; balance adatask is itself")
    options["train__optimizer__dense"] = SGD
    refused(r"leave 'accumulate' and 'clip_norm' out", train__optimizer__accumulate=2)
    refused(r"user.optimizer.name: got 'rowwise_adagrad', which would divide")
    options["embedding__optimizer"] = SGD
    refused(r"country.sharding: 'data_parallel' leaves")
    options["embedding__tables__country__sharding"] = "table_wise"
    small_job(tmp_path, **options)
    lru = {"policy": "lru"}
    refused(r"user.assignment: .* would outlive the id", embedding__tables__user__assignment=lru)
