# SPDX-License-Identifier: Apache-2.0
"""Explicit feature interactions."""

import torch
from torch import Tensor, nn


def factorisation(fields: Tensor) -> Tensor:
    """Half the squared sum minus the sum of squares over fields: `[B, F, D]` to `[B, D]`.

    Its sum over D is the second-order term of a factorisation machine (Rendle, 2010).
    """
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1))


class CrossLayers(nn.Module):
    """The cross network of DCN v2 (Wang et al., 2021, arXiv 2008.13535, equation 1).

    x_{l+1} = x_0 ∘ (W_l x_l + b_l) + x_l, with W_l = U_l V_l of the given rank if there is one.

    Args:
        dim: width of the input `[B, dim]` and of the output.
        num_layers: how often to cross.
        rank: of W_l; full if None.
    """

    def __init__(self, dim: int, num_layers: int, rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(dim, dim)
            if rank is None
            else nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for layer in self.layers:
            crossed = torch.addcmul(crossed, x, layer(crossed))
        return crossed
