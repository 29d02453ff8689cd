# SPDX-License-Identifier: Apache-2.0
"""A tower and a number for each task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig


class Towers(nn.Module):
    """`w_k · MLP_k(h_k) + b_k` for each of several inputs: N tensors `[B, D]` to `[B, N]`.

    Args:
        num: N.
        input_dim: D.
        hidden: widths of a tower.
        config: activation, normalisation and dropout.
    """

    def __init__(self, num: int, input_dim: int, hidden: Sequence[int], config: MLPConfig) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            MLP(input_dim, hidden, config.activation, config.norm, config.dropout)
            for _ in range(num)
        )
        width = hidden[-1] if hidden else input_dim
        self.logits = nn.ModuleList(nn.Linear(width, 1) for _ in range(num))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        outputs = [
            logit(tower(x))
            for x, tower, logit in zip(inputs, self.towers, self.logits, strict=True)
        ]
        return torch.cat(outputs, dim=1)
