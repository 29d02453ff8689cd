# SPDX-License-Identifier: Apache-2.0
"""CIGCN, the encoder of CIGF (Guo et al., WWW 2023, section 4.2).

A path of behaviours such as view-cart-buy has a meaning of its own, and K behaviours make K^L paths
of length L. Each hop here compresses the K behaviours' hops into one by weights that belong to the
node, so a hop costs K sparse products for each of the K target behaviours. Products by one
behaviour's matrix are made at once, the K targets' vectors side by side: K products of width K·D
instead of K² of width D.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.layers.graph import Adjacency
from deltarec.models.roles import GraphConfig, GraphEncoder

SLOPE = 0.1
"""Of every leaky ReLU."""


class CIGCN(GraphEncoder):
    """Of each target behaviour b, over the layers l = 2…L.

    S₁ = Â_b E⁰;  S_l = Σ_k a_{l,b,k} ∘ (Â_k S_{l-1}),  a_{l,b} = LeakyReLU(E⁰ W_{b,l} + c_{b,l})
    H_l = f(S_l) + H_{l-1}, H₀ = E⁰;  E^b = E⁰ + Σ_l H_l = (L + 1) E⁰ + Σ_l (L - l + 1) f(S_l)
    """

    class Config(GraphConfig):
        """Options of cigcn."""

        name: Literal["cigcn"]  # pyright: ignore[reportIncompatibleVariableOverride]
        encoder: Literal["lightgcn", "gccf", "gcn", "ngcf"] = "lightgcn"
        """What is made of a hop: itself; LeakyReLU(S); G = LeakyReLU(S W_l + b_l); or
        G + LeakyReLU((E⁰ ∘ G) W + b)."""
        multi_graph: bool = True
        """Whether hops after the first go over all behaviours; without, over the target's own."""

    def __init__(self, config: Any, dim: int, num_behaviours: int) -> None:
        super().__init__(config, dim, num_behaviours)
        self.encoder: str = config.encoder
        hops = config.layers - 1 if config.multi_graph else 0
        self.weights = nn.ModuleList(nn.Linear(dim, num_behaviours**2) for _ in range(hops))
        transformed = config.layers if config.encoder in ("gcn", "ngcf") else 0
        self.transforms = nn.ModuleList(nn.Linear(dim, dim) for _ in range(transformed))
        self.product = nn.Linear(dim, dim) if config.encoder == "ngcf" else None

    def forward(self, nodes: Tensor, graphs: Sequence[Adjacency]) -> Tensor:
        own = nodes.unsqueeze(1)  # [N, 1, D]
        hop = torch.stack([graph.propagate(nodes) for graph in graphs], dim=1)  # [N, K, D]
        total = torch.add((self.layers + 1) * own, self._convolved(0, hop, own), alpha=self.layers)
        for layer in range(1, self.layers):
            hop = self._next(layer, nodes, hop, graphs)
            convolved = self._convolved(layer, hop, own)
            total = torch.add(total, convolved, alpha=self.layers - layer)
        return total

    def _next(self, layer: int, nodes: Tensor, hop: Tensor, graphs: Sequence[Adjacency]) -> Tensor:
        """S_{l-1} `[N, K, D]` to S_l."""
        if not self.weights:
            parts = zip(graphs, hop.unbind(1), strict=True)
            return torch.stack([graph.propagate(part.contiguous()) for graph, part in parts], dim=1)
        weights = F.leaky_relu(self.weights[layer - 1](nodes), SLOPE)
        by_behaviour = weights.view(len(nodes), hop.shape[1], -1).unsqueeze(3).unbind(2)
        flat = hop.flatten(1)
        found = [graph.propagate(flat).view_as(hop) for graph in graphs]
        total = by_behaviour[0] * found[0]
        for weight, part in zip(by_behaviour[1:], found[1:], strict=True):
            total = torch.addcmul(total, weight, part)
        return total

    def _convolved(self, layer: int, hop: Tensor, own: Tensor) -> Tensor:
        """f(S_l) `[N, K, D]`."""
        if self.encoder == "lightgcn":
            return hop
        if self.encoder == "gccf":
            return F.leaky_relu(hop, SLOPE)
        found = F.leaky_relu(self.transforms[layer](hop), SLOPE)
        if self.product is None:
            return found
        return found + F.leaky_relu(self.product(own * found), SLOPE)
