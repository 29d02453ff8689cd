# SPDX-License-Identifier: Apache-2.0
"""The tasks' losses against a loop over samples, on one rank and on two."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from deltarec.config import validate
from deltarec.data.batch import Batch, Position
from deltarec.data.schema import Task
from deltarec.models.escm2 import ESCM2Heads
from deltarec.models.losses import TaskLosses, direct_terms
from deltarec.models.ranking import predictions
from tests.conftest import run_ranks

TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"click": {}, "time": {"kind": "regression"}},
    "weighted positives": {"click": {"positive_weight": 3.0}, "like": {"positive_weight": 0.5}},
    "masked": {"click": {"mask": "seen"}, "time": {"kind": "regression", "on_invalid": "mask"}},
    "chained": {"click": {}, "buy": {"given": "click"}, "keep": {"given": "buy"}},
}
ESTIMATED = "losses of the head's own"
SAMPLES = 9
SHARES = {1: [9], 2: [6, 3]}


def tasks(name: str) -> dict[str, Task]:
    name = "chained" if name == ESTIMATED else name
    return {task: validate(Task, options, task) for task, options in TASKS[name].items()}


def of_tasks(tasks: dict[str, Task]) -> TaskLosses:
    """With heads that have no losses of their own."""
    return TaskLosses(tasks, partial(direct_terms, list(tasks.values())))


def of_heads(tasks: dict[str, Task]) -> TaskLosses:
    """With heads that have: entire-space ones, and estimates by propensities."""
    heads = ESCM2Heads(ESCM2Heads.Config(name="escm2"), 4, tasks)
    return TaskLosses(tasks, heads.losses)


def columns(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, mask `[SAMPLES, T]`, as the reader makes it, and weights `[SAMPLES]`."""
    generator = torch.Generator().manual_seed(len(name))
    kinds = list(tasks(name).values())
    shape = (SAMPLES, len(kinds))
    logits = torch.randn(shape, generator=generator) * 3
    labels = (torch.rand(shape, generator=generator) < 0.6).float()
    mask = torch.ones(shape, dtype=torch.bool)
    for t, task in enumerate(kinds):
        if task.kind == "regression":
            labels[:, t] = torch.randn(SAMPLES, generator=generator)
        if task.mask or task.on_invalid == "mask":
            mask[:, t] = torch.rand(SAMPLES, generator=generator) < 0.5
        if task.given:
            mask[:, t] = mask[:, t - 1] & (labels[:, t - 1] == 1)
    return logits, labels, mask, torch.rand(SAMPLES, generator=generator) + 0.5


def batch_of(labels: Tensor, mask: Tensor, weight: Tensor, num_samples: int, padding: int) -> Batch:
    """What losses need of a batch; the padding rows hold what must not count."""
    size = len(labels) + padding
    rows = torch.zeros(size, dtype=torch.int64)
    return Batch(
        pooled=None,
        weighted=None,
        unpooled=None,
        inner=None,
        dense=torch.zeros(size, 0),
        labels=torch.cat([labels, torch.ones(padding, labels.shape[1])]),
        mask=torch.cat([mask, torch.zeros(padding, mask.shape[1], dtype=torch.bool)]),
        scenario=rows,
        weight=torch.cat([weight, torch.full((padding,), 5.0)]),
        index=rows,
        user=torch.empty(0, dtype=torch.int64),
        num_samples=num_samples,
        epoch=0,
        next=Position(),
    )


def on_rank(name: str, share: list[int]) -> tuple[Tensor, Tensor]:
    """This rank's losses `[T]` and the gradients of its logits, padded to six or nine rows."""
    rank = dist.get_rank()
    first = sum(share[:rank])
    mine = slice(first, first + share[rank])
    logits, labels, mask, weight = (column[mine] for column in columns(name))
    padding = max(share) - share[rank] + 1
    padded = torch.cat([logits, torch.full((padding, logits.shape[1]), 7.0)]).requires_grad_()
    make = of_heads if name == ESTIMATED else of_tasks
    losses = make(tasks(name))(padded, batch_of(labels, mask, weight, SAMPLES, padding))
    losses.sum().backward()
    assert padded.grad is not None
    assert not padded.grad[share[rank] :].any(), "padding has a gradient"
    return losses.detach(), padded.grad[: share[rank]]


def expected(name: str) -> tuple[list[float], Tensor]:
    """Losses `[T]` and gradients `[SAMPLES, T]`, sample by sample."""
    logits, labels, mask, weights = (column.tolist() for column in columns(name))
    losses, gradient = [], torch.zeros(SAMPLES, len(tasks(name)))
    for t, task in enumerate(tasks(name).values()):
        count = sum(row[t] for row in mask)
        total = 0.0
        for i in range(SAMPLES):
            if not mask[i][t]:
                continue
            z, y, w = logits[i][t], labels[i][t], weights[i]
            if task.kind == "regression":
                total += w * (z - y) ** 2
                gradient[i, t] = w * 2 * (z - y) / count
                continue
            p = 1 / (1 + math.exp(-z))
            q = task.positive_weight
            total -= w * (q * y * math.log(p) + (1 - y) * math.log(1 - p))
            gradient[i, t] = w * ((1 - y) * p - q * y * (1 - p)) / count
        losses.append(total / count)
    return losses, gradient


@pytest.mark.parametrize("name", TASKS)
def test_losses_are_those_of_a_loop(one_process: torch.device, name: str):
    check(name, [on_rank(name, SHARES[1])])


def all_on_rank(share: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: on_rank(name, share) for name in [*TASKS, ESTIMATED]}


def test_two_ranks_have_the_same_losses(one_process: torch.device):
    """The mean over ranks, as data parallelism takes it of gradients, is one process's."""
    results = run_ranks(2, all_on_rank, SHARES[2])
    for name in TASKS:
        check(name, [result[name] for result in results])
    losses, gradient = on_rank(ESTIMATED, SHARES[1])
    compare(ESTIMATED, [result[ESTIMATED] for result in results], losses.tolist(), gradient)


def check(name: str, results: list[tuple[Tensor, Tensor]]) -> None:
    compare(name, results, *expected(name))


def compare(
    name: str, results: list[tuple[Tensor, Tensor]], losses: list[float], gradient: Tensor
) -> None:
    mean = torch.stack([losses for losses, _ in results]).mean(0)
    torch.testing.assert_close(mean, torch.tensor(losses), rtol=1e-5, atol=1e-6, msg=name)
    rows = torch.cat([rows for _, rows in results]) / len(results)
    torch.testing.assert_close(rows, gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_task_without_samples_has_no_loss_and_no_gradient(one_process: torch.device):
    logits = torch.randn(4, 2, requires_grad=True)
    labels, mask = torch.zeros(4, 2), torch.tensor([[True, False]] * 4)
    batch = batch_of(labels, mask, torch.ones(4), num_samples=4, padding=0)
    losses = of_tasks({"click": tasks("chained")["click"], "buy": tasks("chained")["buy"]})
    value = losses(logits, batch)
    assert value[0] > 0 and value[1] == 0
    value.sum().backward()
    assert logits.grad is not None and not logits.grad[:, 1].any()


def test_losses_of_bf16_logits_are_computed_in_fp32(one_process: torch.device):
    logits, labels, mask, weight = columns("plain")
    batch = batch_of(labels, mask, weight, SAMPLES, padding=0)
    rounded = logits.bfloat16()
    losses = of_tasks(tasks("plain"))
    assert torch.equal(losses(rounded, batch), losses(rounded.float(), batch))


def test_predictions_are_probabilities_or_values():
    logits = torch.tensor([[0.0, 0.0], [2.0, -3.0]])
    got = predictions(logits.bfloat16(), tasks("plain"))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor([[0.5, 0.0], [1 / (1 + math.exp(-2)), -3.0]]))
