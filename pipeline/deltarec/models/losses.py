# SPDX-License-Identifier: Apache-2.0
"""Losses of tasks: for each, means over samples of all ranks that add up to it.

A head sees one rank's samples and must not divide by their number: it hands on each sample's value,
and which samples the mean is over. `TaskLosses` sums and counts over all ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.data.batch import Batch
from deltarec.data.schema import Task
from deltarec.distributed import all_sum, world_size


@dataclass(frozen=True)
class LossTerm:
    """The mean of a value over certain samples of all ranks, a part of one task's loss."""

    task: int
    """Position of the task whose loss it belongs to; a task's terms are added."""
    value: Tensor
    """`[B]`, finite."""
    samples: Tensor
    """Bool `[B]`: which samples the mean is over; the values of others are ignored."""


def direct_terms(
    tasks: Sequence[Task], columns: Tensor, labels: Tensor, mask: Tensor
) -> list[LossTerm]:
    """Each task's own loss over its own samples: logits, labels and mask `[B, T]`."""
    return [
        LossTerm(t, sample_loss(task, columns[:, t], labels[:, t]), mask[:, t])
        for t, task in enumerate(tasks)
    ]


def sample_loss(task: Task, logit: Tensor, label: Tensor) -> Tensor:
    """The loss of each sample, logistic or squared: `[B]` and `[B]` to `[B]`."""
    if task.kind == "regression":
        return F.mse_loss(logit, label, reduction="none")
    return cross_entropy(F.logsigmoid(logit), F.logsigmoid(-logit), label, task.positive_weight)


def cross_entropy(
    log_positive: Tensor, log_negative: Tensor, label: Tensor, positive_weight: float
) -> Tensor:
    """−q y log p − (1 − y) log(1 − p) from log p and log(1 − p), each `[B]`."""
    return -(positive_weight * label * log_positive + (1 - label) * log_negative)


def share_of_mean(values: Tensor, samples: Tensor) -> Tensor:
    """This rank's share of the mean of values `[n]` over some of them, bool `[n]`, of all ranks.

    As in `TaskLosses`, times the number of ranks, by which gradients are divided. The mean over
    nothing is 0.
    """
    count = all_sum(samples.sum()).clamp(min=1)
    return torch.where(samples, values, 0).sum() * (world_size() / count)


class TaskLosses(nn.Module):
    """One loss for each task: the sum of the heads' terms, each a mean by its **global** count.

    DistributedDataParallel and TorchRec divide gradients by the number of ranks, so each rank's
    share is multiplied by it.

    Args:
        tasks: by name.
        terms: the heads' `losses`.
        may_lose: whether samples of a batch may turn out to be unreadable.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        terms: Callable[[Tensor, Tensor, Tensor], list[LossTerm]],
        may_lose: bool = False,
    ) -> None:
        super().__init__()
        self.num_tasks = len(tasks)
        self.terms = terms
        self.may_mask = may_lose or any(
            task.mask or task.given or task.on_invalid == "mask" or task.kind == "pairwise"
            for task in tasks.values()
        )

    def forward(self, columns: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """Columns `[B, C]`, and perhaps weights of the samples `[B, T]`, to losses `[T]`."""
        terms, samples, values = self._terms(columns, batch)
        values = values * batch.weight.unsqueeze(1)
        if weights is not None:
            values = values * weights[:, [term.task for term in terms]]
        sums = torch.where(samples, values, 0).sum(0)
        count = batch.num_samples
        if self.may_mask:  # then it differs by term, and no rank knows it alone
            count = all_sum(samples.sum(0)).clamp(min=1)
        means = sums * (dist.get_world_size() / count)
        by_task = [
            sum(mean for mean, term in zip(means, terms, strict=True) if term.task == t)
            for t in range(self.num_tasks)
        ]
        return torch.stack(by_task)  # pyright: ignore[reportArgumentType]  # none is without terms

    def by_sample(self, columns: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each sample and task the loss, or 0, and whether it has one: `[B, T]` each."""
        terms, samples, values = self._terms(columns, batch)
        of_task = F.one_hot(torch.tensor([term.task for term in terms]), self.num_tasks)
        of_task = of_task.to(values)
        return torch.where(samples, values, 0) @ of_task, samples.to(values) @ of_task > 0

    def _terms(self, columns: Tensor, batch: Batch) -> tuple[list[LossTerm], Tensor, Tensor]:
        """The heads' terms, N of them; their samples and their values, `[B, N]` each."""
        terms = self.terms(columns.float(), batch.labels, batch.mask)
        samples = torch.stack([term.samples for term in terms], dim=1)
        return terms, samples, torch.stack([term.value for term in terms], dim=1)
