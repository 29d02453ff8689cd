# SPDX-License-Identifier: Apache-2.0
"""A linear layer of weights shared by all groups times weights of each group's own."""

from typing import Any

import torch
from torch import Tensor, nn

from deltarec.layers.grouped_linear import Groups

CHUNK_ELEMENTS = 1 << 19
"""Weights multiplied at once: 2 MB, which a core's own cache holds."""


class StarLinear(nn.Module):
    """`x (W ∘ W_g) + b + b_g` for a sample of group g; W_g starts at ones, b_g at zeros.

    Args:
        input_dim: D of the input `[B, D]`.
        output_dim: of the output.
        num_groups: how many sets of weights.
    """

    def __init__(self, input_dim: int, output_dim: int, num_groups: int) -> None:
        super().__init__()
        shared = nn.Linear(input_dim, output_dim)
        self.shared_weight = nn.Parameter(shared.weight.detach().T.contiguous())
        self.shared_bias = nn.Parameter(shared.bias.detach())
        self.weight = nn.Parameter(torch.ones(num_groups, input_dim, output_dim))
        self.bias = nn.Parameter(torch.zeros(num_groups, output_dim))

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """`[B, D]` to `[B, output_dim]`."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        rows = _StarProduct.apply(
            groups.into_blocks(x), self.weight, self.shared_weight, groups.block_group
        )
        bias = groups.of_blocks(self.bias) + self.shared_bias
        return groups.from_blocks(rows + bias.unsqueeze(1).to(rows.dtype))


class _StarProduct(torch.autograd.Function):
    """Blocks `[N, size, D]` by `W ∘ W_g` of their groups, a few blocks at a time.

    The products of weights live in the cache for as long as they are used, in backward again.
    Built for 300 groups at once they would go through memory ten times.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, shared: Tensor, group: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, shared, group)
        output = rows.new_empty(*rows.shape[:2], weight.shape[2])
        for part in _chunks(len(group), shared):
            product = weight.index_select(0, group[part]).mul_(shared)
            torch.bmm(rows[part], product.to(rows.dtype), out=output[part])
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, weight, shared, group = ctx.saved_tensors
        rows_gradient = torch.empty_like(rows)
        gradient, shared_gradient = torch.zeros_like(weight), torch.zeros_like(shared)
        for part in _chunks(len(group), shared):
            own = weight.index_select(0, group[part])
            product = (own * shared).to(rows.dtype)
            torch.bmm(upstream[part], product.mT, out=rows_gradient[part])
            change = torch.bmm(rows[part].mT, upstream[part]).to(weight.dtype)
            shared_gradient += (change * own).sum(0)
            gradient.index_add_(0, group[part], change.mul_(shared))
        return rows_gradient, gradient, shared_gradient, None


def _chunks(num_blocks: int, shared: Tensor) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // shared.numel())
    return [slice(start, start + step) for start in range(0, num_blocks, step)]
