# SPDX-License-Identifier: Apache-2.0
"""KAR's hybrid-expert adaptor: shared experts for all texts, and some of each kind's own.

Xi et al., Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models,
RecSys 2024 (arXiv 2306.10933).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.layers.experts import Experts, mixture
from deltarec.layers.mlp import MLPConfig
from deltarec.models.roles import TextAdaptor


class HybridExperts(TextAdaptor):
    """`Σ_e softmax(W_t x)_e E_e(x)` over the shared experts and those of table t.

    The experts are MLPs, with an activation after the last layer too, as in KAR's code.
    """

    class Config(MLPConfig):
        """Options of the hybrid_experts adaptor."""

        name: Literal["hybrid_experts"]
        hidden: list[PositiveInt] = Field(default=[128, 32], min_length=1)
        """Widths of an expert's layers; the last one is the field's."""
        shared: int = Field(default=2, gt=0)
        """Experts of all tables."""
        private: int = Field(default=2, gt=0)
        """Experts of each table."""

    def __init__(self, config: Config, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        if len(set(dims.values())) > 1:
            widths = ", ".join(f"{name} {dim}" for name, dim in dims.items())
            raise ValueError(
                f"model.text: hybrid_experts shares experts among tables of one width, got "
                f"{widths}; encode them by one encoder, or choose another adaptor"
            )
        dim = next(iter(dims.values()))
        self.output_dim = config.hidden[-1]
        self.shared = Experts(config.shared, dim, config)
        self.private = nn.ModuleDict({name: Experts(config.private, dim, config) for name in dims})
        experts = config.shared + config.private
        self.gates = nn.ModuleDict({name: nn.Linear(dim, experts, bias=False) for name in dims})

    def forward(self, table: str, vectors: Tensor) -> Tensor:
        weights = self.gates[table](vectors).softmax(dim=1)
        experts = torch.cat([self.shared(vectors), self.private[table](vectors)], dim=1)
        return mixture(weights, experts)
