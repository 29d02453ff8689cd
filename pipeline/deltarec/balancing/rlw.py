# SPDX-License-Identifier: Apache-2.0
"""RLW (Lin et al., 2022, arXiv 2111.10603): random loss weights, the control of all others."""

from typing import Literal

import torch
from torch import Tensor

from deltarec.balancing.balancer import Balancer
from deltarec.balancing.draws import Draws
from deltarec.config import Config as BaseConfig


class RLW(Balancer):
    """Σ_k w_k L_k with w = softmax(N(0, I)), drawn anew each step."""

    class Config(BaseConfig):
        """The method rlw has no options."""

        name: Literal["rlw"]

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.draws = Draws(seed)

    def forward(self, losses: Tensor) -> Tensor:
        if not self.training:
            return losses
        weights = torch.randn(len(losses), generator=self.draws.next_generator()).softmax(0)
        self.note(weights)
        return losses * weights.to(losses)
