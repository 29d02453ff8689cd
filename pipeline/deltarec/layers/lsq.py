# SPDX-License-Identifier: Apache-2.0
"""Quantisation-aware training of fp32 rows: LSQ (Esser et al., 2020, arXiv 1902.08153)."""

import math

import torch
from torch import Tensor, nn

from deltarec_kernels.fake_quantise import fake_quantise


class LSQ(nn.Module):
    """`step · clip(round(w / step), L, H)` of vectors w, with one learned step for all of them.

    The step is learned as its logarithm: it stays positive, and the optimiser's rate is relative to
    it, whatever the scale of the weights. LSQ's factor on its gradient, `1 / sqrt(weights · H)`, is
    left out: Adam would cancel it.

    Args:
        bits: 8, 4 or 2; the codes' bounds are `L = -2^(bits-1)` and `H = 2^(bits-1) - 1`.
        initial_step: positive.
    """

    def __init__(self, bits: int, initial_step: float) -> None:
        super().__init__()
        self.bits = bits
        self.log_step = nn.Parameter(torch.tensor(math.log(initial_step)))

    def forward(self, rows: Tensor) -> Tensor:
        """`[n, D]` to `[n, D]`, straight through for the gradient of rows inside the bounds."""
        step = self.log_step.exp().expand(len(rows), 1)
        return fake_quantise(rows, step.contiguous(), self.bits)
