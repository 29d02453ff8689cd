# SPDX-License-Identifier: Apache-2.0
"""PCGrad (Yu et al., 2020, arXiv 2001.06782): gradients without what conflicts with the others."""

from typing import Literal

import torch
from torch import Tensor

from deltarec.balancing.balancer import WeightingBalancer
from deltarec.balancing.draws import Draws
from deltarec.config import Config as BaseConfig


class PCGrad(WeightingBalancer):
    """g_i ← g_i − (g_i·g_j / |g_j|²) g_j where g_i·g_j < 0, over all j in random order; Σ_i g_i.

    g_j is the original gradient. Each g_i stays in the span of the originals: row i of a matrix has
    its coefficients, and its inner products come from the Gram matrix.
    """

    class Config(BaseConfig):
        """The method pcgrad has no options."""

        name: Literal["pcgrad"]

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.draws = Draws(seed)

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        generator = self.draws.next_generator()
        coefficients = torch.eye(len(gram), dtype=gram.dtype)
        for i, own in enumerate(coefficients):
            for j in torch.randperm(len(gram), generator=generator).tolist():
                product = own @ gram[j]
                if i != j and product < 0 and gram[j, j] > 0:
                    own[j] -= product / gram[j, j]
        return coefficients.sum(0)
