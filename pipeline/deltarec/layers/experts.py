# SPDX-License-Identifier: Apache-2.0
"""Experts of one shape, and their mixtures.

They are modules one after another, not one batched matrix product: at batch 4096 on two CPU cores,
forward and backward, four experts 144-256-128 take 58 ms so and 64 ms batched, sixteen experts
416-128-64 take 213 and 278 ms; only many narrow ones gain (eight 128-64: 24 and 21 ms).
"""

import torch
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig


class Experts(nn.ModuleList):
    """MLPs that see the same input: `[B, D]` to `[B, num, output_dim]`.

    Args:
        num: how many, one at least.
        input_dim: D.
        config: shape of one.
    """

    def __init__(self, num: int, input_dim: int, config: MLPConfig) -> None:
        super().__init__(MLP.of(input_dim, config) for _ in range(num))
        self.output_dim = config.hidden[-1] if config.hidden else input_dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self], dim=1)


def mixture(weights: Tensor, experts: Tensor) -> Tensor:
    """Σ_e w_e h_e of each sample: `[B, E]` and `[B, E, H]` to `[B, H]`."""
    # On CPU torch.bmm leaves matrices of less than 400 numbers to a loop of its own. Forward and
    # backward of a batch of 4096, one core: four experts of 64 columns 13 ms by bmm and 5 so, four
    # of 128 columns 6 and 9.
    if experts.shape[1:].numel() < 400:
        return (weights.to(experts.dtype).unsqueeze(2) * experts).sum(1)
    return torch.bmm(weights.unsqueeze(1), experts).squeeze(1)
