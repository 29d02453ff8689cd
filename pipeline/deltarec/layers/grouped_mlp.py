# SPDX-License-Identifier: Apache-2.0
"""Fully connected layers with one set of weights for each group of samples."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.layers.dropout import Dropout
from deltarec.layers.grouped_linear import GroupedLinear, Groups
from deltarec.layers.mlp import ACTIVATIONS, MLPConfig


class GroupedMLP(nn.Module):
    """An `MLP` of each group's own, all of whose layers are products over all groups at once.

    Args:
        input_dim: D of the input `[B, D]`.
        config: the shape of one group's layers.
        num_groups: how many groups.

    Raises:
        ValueError: for batch normalisation, whose statistics are of all groups together.
    """

    def __init__(self, input_dim: int, config: MLPConfig, num_groups: int) -> None:
        super().__init__()
        if config.norm == "batch":
            raise ValueError("norm: batch is over the samples of all groups; use layer")
        self.num_groups = num_groups
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        for width in config.hidden:
            self.linears.append(GroupedLinear(input_dim, width, num_groups))
            if config.norm == "layer":
                self.norms.append(GroupedLayerNorm(width, num_groups))
            input_dim = width
        self.activation = ACTIVATIONS[config.activation]()
        dropouts = len(config.hidden) if config.dropout else 0
        self.dropouts = nn.ModuleList(Dropout(config.dropout) for _ in range(dropouts))
        self.output_dim = input_dim

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """`[B, D]` and groups `[B]` to `[B, output_dim]`."""
        groups = Groups.of(group, self.num_groups)
        for level, linear in enumerate(self.linears):
            x = linear(x, groups)
            if self.norms:
                x = self.norms[level](x, group)
            x = self.activation(x)
            if self.dropouts:
                x = self.dropouts[level](x)
        return x


class GroupedLayerNorm(nn.Module):
    """Layer normalisation whose scale and shift are the sample's group's own.

    Args:
        dim: D of the input `[B, D]`.
        num_groups: how many groups.
    """

    def __init__(self, dim: int, num_groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_groups, dim))
        self.bias = nn.Parameter(torch.zeros(num_groups, dim))

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """`[B, D]` and groups `[B]` to `[B, D]`."""
        weight, bias = self.weight.index_select(0, group), self.bias.index_select(0, group)
        return F.layer_norm(x, x.shape[1:]) * weight + bias
