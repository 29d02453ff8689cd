# SPDX-License-Identifier: Apache-2.0
"""A linear layer of weights shared by all groups times weights of each group's own."""

import torch
from torch import Tensor, nn

from deltarec.layers.grouped_linear import Groups, blocks_linear


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
        weight = groups.of_blocks(self.weight) * self.shared_weight
        bias = groups.of_blocks(self.bias) + self.shared_bias
        return groups.from_blocks(blocks_linear(groups.into_blocks(x), weight, bias))
