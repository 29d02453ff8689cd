# SPDX-License-Identifier: Apache-2.0
"""LightGCN (He et al., 2020) on the graph of each behaviour by itself."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from deltarec.layers.graph import Adjacency, Normalisation
from deltarec.models.roles import GraphConfig, GraphEncoder


class LightGCN(GraphEncoder):
    """E^b = 1 / (L + 1) Σ_l Â_b^l E⁰ (equations 4 and 8)."""

    class Config(GraphConfig):
        """Options of lightgcn."""

        name: Literal["lightgcn"]  # pyright: ignore[reportIncompatibleVariableOverride]
        normalise: Normalisation = "symmetric"

    def forward(self, nodes: Tensor, graphs: Sequence[Adjacency]) -> Tensor:
        found = []
        for graph in graphs:
            layer = total = nodes
            for _ in range(self.layers):
                layer = graph.propagate(layer)
                total = total + layer
            found.append(total / (self.layers + 1))
        return torch.stack(found, dim=1)
