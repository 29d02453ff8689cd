# SPDX-License-Identifier: Apache-2.0
"""UW (Kendall et al., 2018, arXiv 1705.07115): each task's uncertainty is learned."""

from typing import Literal

import torch
from torch import Tensor, nn

from deltarec.balancing.balancer import Balancer
from deltarec.config import Config as BaseConfig


class UW(Balancer):
    """Σ_k e^{-s_k} L_k / 2 + s_k / 2; the log-variances s are trained by the dense optimiser."""

    class Config(BaseConfig):
        """Options of the method uw."""

        name: Literal["uw"]
        form: Literal["regression", "classification"] = "regression"
        """Whether a loss is halved (the likelihood of a normal distribution) or not (of a
        class)."""
        initial: float = -0.5
        """The log-variances before training."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.factor = 0.5 if config.form == "regression" else 1.0
        self.log_variance = nn.Parameter(torch.full((len(tasks),), config.initial))

    def forward(self, losses: Tensor) -> Tensor:
        weights = self.factor * (-self.log_variance).exp()
        self.note(weights.detach())
        return losses * weights + 0.5 * self.log_variance
