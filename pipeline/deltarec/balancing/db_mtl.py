# SPDX-License-Identifier: Apache-2.0
"""DB-MTL (Lin et al., 2023, arXiv 2308.12029): balanced losses, then balanced gradients.

The paper's running mean is of the gradients themselves. At the boundary a gradient belongs to the
batch's samples, and has no mean over batches; so the running mean is of their norms, and what is
scaled is the batch's gradient.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import WeightingBalancer
from deltarec.config import Config as BaseConfig


class DBMTL(WeightingBalancer):
    """Σ_k (max_j n_j / n_k) ∇log L_k, n the running means of the norms |∇log L_k|.

    A task without a gradient in the batch keeps its mean.
    """

    class Config(BaseConfig):
        """Options of the method db_mtl."""

        name: Literal["db_mtl"]
        beta: float = Field(default=0.9, ge=0, lt=1)
        """How slowly the norms' means follow; 0 takes the batch's own."""

    norms: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.beta = config.beta
        self.register_buffer("norms", torch.zeros(len(tasks), dtype=torch.float64))

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        per_loss = 1 / (losses + 1e-8)
        now = gram.diagonal().clamp(min=0).sqrt() * per_loss
        means = self.norms.cpu()
        means = torch.where(means > 0, self.beta * means + (1 - self.beta) * now, now).where(
            now > 0, means
        )
        self.norms.copy_(means)
        present = now > 0
        scale = means[present].max() / means if present.any() else means
        return torch.where(present, scale * per_loss, 0)
