# SPDX-License-Identifier: Apache-2.0
"""MMoE (Ma et al., 2018): experts shared by the tasks, mixed by a gate for each task."""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import TaskHeads


class MMoEHeads(TaskHeads):
    """h_k = Σ_e softmax(W_k x + b_k)_e f_e(x) (equations 6 and 7), y_k = t_k(h_k)."""

    class Config(MLPConfig):
        """Options of the mmoe heads: `hidden` and the rest are the shape of one expert."""

        name: Literal["mmoe"]
        experts: int = Field(default=4, gt=0)
        tower: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, num_tasks: int) -> None:
        super().__init__(config, input_dim, num_tasks)
        self.experts = nn.ModuleList(MLP.of(input_dim, config) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(input_dim, config.experts) for _ in range(num_tasks))
        width = config.hidden[-1] if config.hidden else input_dim
        self.towers = nn.ModuleList(
            MLP(width, config.tower, config.activation, config.norm, config.dropout)
            for _ in range(num_tasks)
        )
        width = config.tower[-1] if config.tower else width
        self.logits = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_tasks))

    def forward(self, representation: Tensor) -> Tensor:
        experts = torch.stack([expert(representation) for expert in self.experts], dim=1)
        outputs = []
        for gate, tower, logit in zip(self.gates, self.towers, self.logits, strict=True):
            # [B, 1, E] @ [B, E, H] to [B, H]
            weights = gate(representation).softmax(dim=1).unsqueeze(1)
            mixed = torch.bmm(weights, experts).squeeze(1)
            outputs.append(logit(tower(mixed)))
        return torch.cat(outputs, dim=1)
