# SPDX-License-Identifier: Apache-2.0
"""A linear layer with one set of weights for each group of samples, as one batched product.

A loop over 300 groups of a few samples each spends its time on starting products, and padding every
group to the largest wastes most of the work where sizes differ. So samples are laid out in blocks
of equal size, each of one group; a large group has several. The block's size is the one that costs
least for the batch's counts. Groups without samples have no block: their weights are not read.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK_COST = 16
"""Rows that could be multiplied in the time that one more block's weights take to fetch."""


@dataclass(frozen=True)
class Groups:
    """Where the samples of a batch stand in blocks; made once a batch, used by many layers."""

    size: int
    """Rows of a block."""
    block_group: Tensor
    """Int64 `[blocks]`: the group of each block, in ascending order."""
    place: Tensor
    """Int64 `[B]`: each sample's row in the blocks."""
    source: Tensor
    """Int64 `[blocks * size]`: the sample in each row; rows without one repeat the first sample."""

    @classmethod
    def of(cls, group: Tensor, num_groups: int) -> "Groups":
        """The blocks of samples of the given groups, `[B]`."""
        size, block_group, place, source = _layout(group, num_groups)  # pyright: ignore
        return cls(size, block_group, place, source)

    @property
    def block(self) -> Tensor:
        """Int64 `[B]`: each sample's block."""
        return self.place // self.size

    def into_blocks(self, x: Tensor) -> Tensor:
        """`[B, D]` to `[blocks, size, D]`; what stands in rows without a sample means nothing."""
        return x.index_select(0, self.source).view(len(self.block_group), self.size, x.shape[1])

    def from_blocks(self, rows: Tensor) -> Tensor:
        """`[blocks, size, D]` to `[B, D]`."""
        return rows.flatten(0, 1).index_select(0, self.place)

    def of_blocks(self, weights: Tensor) -> Tensor:
        """The groups' weights `[num_groups, ...]` to their blocks' `[blocks, ...]`.

        Absent groups' are not read; their gradient is zero.
        """
        return weights.index_select(0, self.block_group)


class GroupedLinear(nn.Module):
    """`x W_g + b_g` for a sample of group g.

    All groups start from the same weights and part as they learn: a group with few samples is
    then no worse off than with shared ones.

    Args:
        input_dim: D of the input `[B, D]`.
        output_dim: of the output.
        num_groups: how many sets of weights.
        bias: whether to add b.
    """

    def __init__(self, input_dim: int, output_dim: int, num_groups: int, bias: bool = True) -> None:
        super().__init__()
        like = nn.Linear(input_dim, output_dim, bias)
        self.weight = nn.Parameter(like.weight.detach().T.repeat(num_groups, 1, 1))
        self.bias = nn.Parameter(like.bias.detach().repeat(num_groups, 1)) if bias else None

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """`[B, D]` to `[B, output_dim]`."""
        weight = groups.of_blocks(self.weight)
        bias = None if self.bias is None else groups.of_blocks(self.bias)
        return groups.from_blocks(blocks_linear(groups.into_blocks(x), weight, bias))


def blocks_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[blocks, size, D]` by `[blocks, D, D']`, plus `[blocks, D']`: `[blocks, size, D']`."""
    if bias is None:
        return torch.bmm(rows, weight)
    return torch.baddbmm(bias.unsqueeze(1).to(rows.dtype), rows, weight)


@torch.compiler.disable  # shapes depend on the counts, which the host must see
def _layout(group: Tensor, num_groups: int) -> tuple[int, Tensor, Tensor, Tensor]:
    """The fields of `Groups`."""
    counts = torch.bincount(group, minlength=num_groups)
    size = _best_size(counts.tolist())
    blocks = (counts + size - 1) // size
    block_group = torch.repeat_interleave(blocks)
    order = torch.argsort(group, stable=True)
    # Row of a group's first block, less the samples of the groups before it.
    shift = (blocks.cumsum(0) - blocks) * size - (counts.cumsum(0) - counts)
    rows = torch.arange(len(group), device=group.device) + shift[group[order]]
    place = torch.empty_like(order).scatter_(0, order, rows)
    source = order.new_zeros(len(block_group) * size).scatter_(0, rows, order)
    return size, block_group, place, source


def _best_size(counts: list[int]) -> int:
    """The block size for which rows and blocks together cost least."""
    largest = max(counts, default=0)
    sizes = {max(1, math.ceil(largest / pieces)) for pieces in (1, 2, 3, 4, 6, 8, 16, 32, 64, 128)}

    def cost(size: int) -> int:
        return sum(math.ceil(count / size) for count in counts) * (size + BLOCK_COST)

    return min(sizes, key=cost)
