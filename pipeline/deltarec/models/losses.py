# SPDX-License-Identifier: Apache-2.0
"""What task heads say of their losses: for each task, means over samples that add up to its loss.

A head sees one rank's samples and must not divide by their number: it hands on each sample's value,
and which samples the mean is over. `models/ranking.py` sums and counts over all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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

    As in `TaskLosses`: times the number of ranks, by which gradients are divided. The mean over
    nothing is 0.
    """
    count = all_sum(samples.sum()).clamp(min=1)
    return torch.where(samples, values, 0).sum() * (world_size() / count)
