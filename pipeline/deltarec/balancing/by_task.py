# SPDX-License-Identifier: Apache-2.0
"""One tensor's gradients of several tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ByTask:
    """The gradients of one tensor, of the tasks that reach it.

    Tasks on different samples reach different features, and there may be many of those: what is
    zero is not stored.
    """

    like: Tensor
    """The tensor."""
    num_tasks: int
    parts: dict[int, Tensor]
    """By task; shaped like the tensor."""

    @classmethod
    def of(cls, gradients: Sequence[Tensor | None], like: Tensor) -> "ByTask":
        parts = {task: g for task, g in enumerate(gradients) if g is not None}
        return cls(like, len(gradients), parts)

    def all(self) -> Tensor:
        """Of all tasks, `[T, …]`."""
        zero = torch.zeros_like(self.like)
        return torch.stack([self.parts.get(task, zero) for task in range(self.num_tasks)])

    def weighted(self, weights: Tensor | None = None) -> Tensor:
        """Their sum by weights `[T]`, or as they are."""
        total = torch.zeros_like(self.like)
        for task, part in self.parts.items():
            total += part if weights is None else weights[task] * part
        return total

    def products(self) -> Tensor:
        """Their inner products, float64 `[T, T]`."""
        total = self.like.new_zeros(self.num_tasks, self.num_tasks, dtype=torch.float64)
        if self.parts:
            flat = torch.stack([part.flatten().double() for part in self.parts.values()])
            tasks = torch.tensor(list(self.parts), device=total.device)
            total[tasks.unsqueeze(1), tasks] = flat @ flat.T
        return total
