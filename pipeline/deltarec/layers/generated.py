# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are made from a condition, as HierRec's (arXiv 2309.02061)."""

from typing import Any

import torch
from torch import Tensor, nn


class GeneratedLinear(nn.Module):
    """`x W(c) + b(c)` with W(c) = W_0 + Σ_p c_p W_p and b likewise.

    A product costs condition·input·output whichever way it is summed, and W(c) is the smallest
    thing on the way: it is built, for each sample, or for each scenario where c is the scenario's.

    Args:
        input_dim: of x.
        output_dim: of the result.
        condition_dim: of c.
    """

    def __init__(self, input_dim: int, output_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.shape = (input_dim, output_dim)
        self.weight = nn.Linear(condition_dim, input_dim * output_dim)
        self.bias = nn.Linear(condition_dim, output_dim)
        nn.init.normal_(self.weight.weight, std=(input_dim * condition_dim) ** -0.5)
        nn.init.normal_(self.weight.bias, std=input_dim**-0.5)

    def made(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions `[N, Q]` to weights `[N, input_dim, output_dim]`, biases `[N, output_dim]`."""
        return self.weight(condition).unflatten(1, self.shape), self.bias(condition)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`[B, G or 1, input_dim]` and conditions `[B, G, Q]` to `[B, G, output_dim]`."""
        weight, bias = self.made(condition.flatten(0, 1))
        rows = x.expand(*condition.shape[:2], self.shape[0]).flatten(0, 1)
        return (row_times_matrix(rows, weight) + bias).unflatten(0, condition.shape[:2])


class FactoredGeneratedLinear(nn.Module):
    """`x W(c) + b(c)` with W(c) = L diag(s(c)) R, s(c) = C c + 1, and b(c) = s(c) R'.

    The tensor of `GeneratedLinear` as a sum of `rank` products of vectors: no matrix is built, and
    a product costs rank·(condition + input + output).

    Args:
        input_dim: of x.
        output_dim: of the result.
        condition_dim: of c.
        rank: of the tensor.
    """

    def __init__(self, input_dim: int, output_dim: int, condition_dim: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Linear(input_dim, rank, bias=False)
        self.scale = nn.Linear(condition_dim, rank)
        self.right = nn.Linear(2 * rank, output_dim)
        nn.init.normal_(self.left.weight, std=input_dim**-0.5)
        nn.init.ones_(self.scale.bias)
        nn.init.normal_(self.right.weight, std=rank**-0.5)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`[B, G or 1, input_dim]` and conditions `[B, G, Q]` to `[B, G, output_dim]`."""
        scale = self.scale(condition)
        return self.right(torch.cat([self.left(x) * scale, scale], dim=2))


def row_times_matrix(x: Tensor, matrices: Tensor) -> Tensor:
    """Each row `[B, n]` by its own matrix `[B, n, m]`: `[B, m]`."""
    return _RowTimesMatrix.apply(x.to(matrices.dtype), matrices)


class _RowTimesMatrix(torch.autograd.Function):
    """A batched product whose backward does not use one for outer products.

    As a multiplication with broadcasting they take a tenth of the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrices)
        return torch.bmm(x.unsqueeze(1), matrices).squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        x, matrices = ctx.saved_tensors
        gradient = torch.bmm(upstream.unsqueeze(1), matrices.mT).squeeze(1)
        return gradient, x.unsqueeze(2) * upstream.unsqueeze(1)
