# SPDX-License-Identifier: Apache-2.0
"""GradNorm (Chen et al., 2018, arXiv 1711.02257): weights that equalise gradients' norms."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.adam import BufferedAdam
from deltarec.balancing.balancer import WeightingBalancer
from deltarec.config import Config as BaseConfig


class GradNorm(WeightingBalancer):
    """Learned w of sum K that minimise Σ_k |G_k − Ḡ r_k^α|, the goal held fixed.

    G_k = |w_k g_k|, Ḡ their mean, r_k = L_k / L_k(0) relative to its mean: tasks that have learned
    less get larger gradients. The paper takes g_k on the last shared layer; here it is of all that
    is shared, at the boundary of the tables too. A task without a gradient in the batch keeps its
    share.
    """

    class Config(BaseConfig):
        """Options of the method gradnorm."""

        name: Literal["gradnorm"]
        alpha: float = Field(default=1.5, ge=0)
        """How strongly slow tasks are helped; 0 only equalises the norms."""
        lr: float = Field(default=0.025, gt=0)
        """Of the Adam that learns the weights."""

    learned: Tensor
    first_losses: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.alpha = config.alpha
        self.register_buffer("learned", torch.ones(len(tasks), dtype=torch.float64))
        self.register_buffer("first_losses", torch.zeros(len(tasks), dtype=torch.float64))
        self.adam = BufferedAdam(len(tasks), config.lr)

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        weights, first = self.learned.cpu().clone(), self.first_losses.cpu()
        first = torch.where((first == 0) & (losses > 0), losses, first)
        self.first_losses.copy_(first)
        present = (gram.diagonal() > 0) & (first > 0)
        if present.any():
            lengths = gram.diagonal().clamp(min=0).sqrt()
            norms = weights * lengths
            progress = losses / first.where(present, 1)
            rate = progress / progress[present].mean().clamp(min=1e-20)
            goal = norms[present].mean() * rate**self.alpha
            slope = torch.where(present, (norms - goal).sign() * lengths, 0)
            self.adam.step(self.learned, slope.to(self.learned))
            learned = torch.where(present, self.learned.cpu().clamp(min=1e-6), weights)
            rest = len(losses) - learned[~present].sum()
            learned[present] *= rest / learned[present].sum()
            self.learned.copy_(learned)
        return weights
