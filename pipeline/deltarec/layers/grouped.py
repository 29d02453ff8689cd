# SPDX-License-Identifier: Apache-2.0
"""One set of weights for each group of samples, each sample computed once, by its own group's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deltarec.layers.rows import seeing


class ByGroup(nn.Module):
    """A module for each group; samples are sorted by group, and each group goes through its own.

    Args:
        make: makes one group's module, `[n, D]` to `[n, D']`.
        num_groups: how many to make.
    """

    def __init__(self, make: Callable[[], nn.Module], num_groups: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(num_groups))

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """`[B, D]` and groups `[B]` to `[B, D']`.

        A group without samples still takes part with an empty input, so that every rank has a
        gradient, if of zeros, for all parameters.
        """
        order = torch.argsort(group, stable=True)
        counts: Sequence[int] = torch.bincount(group, minlength=len(self.members)).tolist()
        outputs = []
        for member, part, rows in zip(
            self.members, x[order].split(counts), order.split(counts), strict=True
        ):
            with seeing(member, rows):
                outputs.append(member(part))
        return torch.cat(outputs)[torch.argsort(order)]
