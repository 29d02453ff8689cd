# SPDX-License-Identifier: Apache-2.0
"""The activation unit of DIN (Zhou et al., 2018): how much a vector matters, seen from another."""

import torch
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.layers.rows import seeing


class ActivationUnit(nn.Module):
    """`w · MLP([x; y; x − y; x ∘ y]) + b`.

    Args:
        dim: D, width of x and y.
        config: the layers.
    """

    def __init__(self, dim: int, config: MLPConfig) -> None:
        super().__init__()
        self.layers = MLP.of(4 * dim, config)
        self.score = nn.Linear(self.layers.output_dim, 1)

    def forward(self, x: Tensor, y: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """The scores of n pairs.

        Args:
            x: `[n, D]`.
            y: `[n, D]`.
            rows: int64 `[n]`, the sample that each pair belongs to.
            places: int64 `[n]`, its place in the sample.

        Returns:
            `[n, 1]`, of the type of x.
        """
        pairs = torch.cat([x, y, x - y, x * y], dim=1)
        with seeing(self.layers, rows, places):
            return self.score(self.layers(pairs)).to(x.dtype)
