# SPDX-License-Identifier: Apache-2.0
"""PEPNet's gate: factors around 1 for the units of a representation."""

from torch import Tensor, nn


class Gate(nn.Sequential):
    """`2 σ(W_2 relu(W_1 x + b_1) + b_2)` (Chang et al., 2023, arXiv 2302.01115).

    Args:
        input_dim: of x `[B, D]`.
        hidden: width between the layers.
        output_dim: units to gate.
    """

    def __init__(self, input_dim: int, hidden: int, output_dim: int) -> None:
        super().__init__(
            nn.Linear(input_dim, hidden), nn.ReLU(), nn.Linear(hidden, output_dim), nn.Sigmoid()
        )

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)
