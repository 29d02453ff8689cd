# SPDX-License-Identifier: Apache-2.0
"""Shared bottom (Caruana, 1997): the tasks share the representation, each has a tower."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import TaskHeads


class SharedBottomHeads(TaskHeads):
    """y_k = t_k(h)."""

    class Config(MLPConfig):
        """Options of the shared_bottom heads: the shape of one tower."""

        name: Literal["shared_bottom"]
        hidden: list[PositiveInt] = []  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, num_tasks: int) -> None:
        super().__init__(config, input_dim, num_tasks)
        self.towers = nn.ModuleList(MLP.of(input_dim, config) for _ in range(num_tasks))
        width = config.hidden[-1] if config.hidden else input_dim
        self.logits = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_tasks))

    def forward(self, representation: Tensor) -> Tensor:
        outputs = [
            logit(tower(representation))
            for tower, logit in zip(self.towers, self.logits, strict=True)
        ]
        return torch.cat(outputs, dim=1)
