# SPDX-License-Identifier: Apache-2.0
"""HAMUR's adapter: a bottleneck whose weights are generated for each sample, in factored form."""

import torch
from torch import Tensor, nn

from deltarec.layers.generated import row_times_matrix
from deltarec.layers.grouped_linear import GroupedLinear, Groups
from deltarec.layers.mlp import MLP
from deltarec.layers.scenario_norm import ScenarioNorm


class InstanceMatrix(nn.Module):
    """The hyper-network: what a sample is, to its matrix I `[rank, rank]`.

    The last layer is linear and starts at entries of variance 1 / rank, so that a product with I
    keeps a vector's length. The released code ends in a ReLU after batch normalisation instead:
    products with such matrices have a common direction that outgrows all others.

    Args:
        input_dim: D of the input `[B, D]`.
        hidden: widths of the layers before the last; each is batch-normalised, with a ReLU.
        rank: k.
    """

    def __init__(self, input_dim: int, hidden: list[int], rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.hidden = MLP(input_dim, hidden, norm="batch")
        self.matrix = nn.Linear(self.hidden.output_dim, rank * rank)
        # A normalised unit behind a ReLU has mean square 1/2.
        nn.init.normal_(self.matrix.weight, std=(2 / (rank * self.hidden.output_dim)) ** 0.5)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, D]` to `[B, rank, rank]`."""
        return self.matrix(self.hidden(x)).unflatten(1, (self.rank, self.rank))


class HyperAdapter(nn.Module):
    """`h + Norm_s(σ(h W + b) W' + b')` with W = U_s I V_s and W' = U'_s I V'_s.

    W is `[dim, bottleneck]` for each sample, but never built: `h W = ((h U) I) V` costs
    dim·k + k² + k·bottleneck products instead of the dim·k² that building it takes.

    Args:
        dim: of the input `[B, dim]`.
        rank: k, of the instance matrices.
        bottleneck: units between the two layers.
        num_scenarios: sets of factors.
        collapse: start all factors at ones, as the released code does: every bottleneck unit then
            has the same gradient and stays the same as the others for good.
    """

    def __init__(
        self, dim: int, rank: int, bottleneck: int, num_scenarios: int, collapse: bool = False
    ) -> None:
        super().__init__()
        self.down_left = GroupedLinear(dim, rank, num_scenarios, bias=False)
        self.down_right = GroupedLinear(rank, bottleneck, num_scenarios)
        self.activation = nn.Sigmoid()
        self.up_left = GroupedLinear(bottleneck, rank, num_scenarios, bias=False)
        self.up_right = GroupedLinear(rank, dim, num_scenarios)
        self.norm = ScenarioNorm(dim, num_scenarios)
        nn.init.constant_(self.norm.weight, 0.1)  # the trunk comes first: not a bottleneck's noise
        for layer in (self.down_left, self.down_right, self.up_left, self.up_right):
            first = torch.empty_like(layer.weight[0])
            torch.nn.init.ones_(first) if collapse else torch.nn.init.orthogonal_(first)
            layer.weight.data.copy_(first)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, instance: Tensor, scenario: Tensor, groups: Groups) -> Tensor:
        """`[B, dim]`, matrices `[B, k, k]`, scenarios `[B]` and their groups to `[B, dim]`."""
        units = self.activation(
            self.down_right(row_times_matrix(self.down_left(h, groups), instance), groups)
        )
        change = self.up_right(row_times_matrix(self.up_left(units, groups), instance), groups)
        return h + self.norm(change, scenario)
