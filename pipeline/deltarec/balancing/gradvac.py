# SPDX-License-Identifier: Apache-2.0
"""GradVac (Wang et al., 2021, arXiv 2010.05874): gradients as alike as they are used to be."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import WeightingBalancer
from deltarec.balancing.draws import Draws
from deltarec.config import Config as BaseConfig


class GradVac(WeightingBalancer):
    """Where the cosine φ of g_i and g_j is below its running mean ρ, turn g_i until it is ρ.

    g_i += |g_i| (ρ √(1−φ²) − φ √(1−ρ²)) / (|g_j| √(1−ρ²)) g_j over all j in random order, g_j the
    original gradient; then ρ ← (1 − β) ρ + β φ; the update is Σ_i g_i. A task without a gradient in
    the batch changes neither.
    """

    class Config(BaseConfig):
        """Options of the method gradvac."""

        name: Literal["gradvac"]
        beta: float = Field(default=0.5, gt=0, le=1)
        """How fast the running means follow; 0.5 is the released code's, 0.01 the paper's."""

    rho: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.beta = config.beta
        self.draws = Draws(seed)
        self.register_buffer("rho", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        generator = self.draws.next_generator()
        rho = self.rho.cpu()
        lengths = gram.diagonal().clamp(min=0).sqrt()
        coefficients = torch.eye(len(gram), dtype=gram.dtype)
        for i, own in enumerate(coefficients):
            for j in torch.randperm(len(gram), generator=generator).tolist():
                length = (own @ gram @ own).clamp(min=0).sqrt()
                if i == j or length == 0 or lengths[j] == 0:
                    continue
                phi = (own @ gram[j] / (length * lengths[j])).clamp(-1, 1)
                goal = rho[i, j].clone()
                if phi < goal:
                    across = (1 - goal**2).sqrt().clamp(min=1e-8)
                    turn = goal * (1 - phi**2).sqrt() - phi * across
                    own[j] += length * turn / (lengths[j] * across)
                rho[i, j] = (1 - self.beta) * goal + self.beta * phi
        self.rho.copy_(rho)
        return coefficients.sum(0)
