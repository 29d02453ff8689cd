# SPDX-License-Identifier: Apache-2.0
"""Static weighting: each task's loss times a fixed weight."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from deltarec.balancing.balancer import Balancer
from deltarec.config import Config as BaseConfig


class Static(Balancer):
    """Σ_k w_k L_k with given w_k."""

    class Config(BaseConfig):
        """Options of the method static."""

        name: Literal["static"]
        weights: dict[str, NonNegativeFloat]
        """By task; 1 for a task not named."""

    weights: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        unknown = config.weights.keys() - set(tasks)
        if unknown:
            raise ValueError(f"balance.weights: no task is named {sorted(unknown)}; have {tasks}")
        weights = torch.tensor([float(config.weights.get(task, 1.0)) for task in tasks])
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        self.note(self.weights)
        return losses * self.weights
