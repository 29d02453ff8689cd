# SPDX-License-Identifier: Apache-2.0
"""GradDrop (Chen et al., 2020, arXiv 2010.06808): where tasks disagree in sign, one sign stays."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.draws import Draws, uniform
from deltarec.balancing.gradients import TaskGradients
from deltarec.config import Config as BaseConfig


class GradDrop(GradientBalancer):
    """g_k stays where it is positive and P > U, or negative and P < U; the rest is dropped.

    P = (1 + Σ_k g_k / Σ_k |g_k|) / 2, and U is uniform, one an element.

    The paper does so to the gradient of one layer's output. Here it is done at the boundary of the
    tables, and to the global gradients of the shared dense parameters behind it, which the paper's
    layer would have reached through the chain rule.
    """

    class Config(BaseConfig):
        """Options of the method graddrop."""

        name: Literal["graddrop"]
        leak: float = Field(default=0.0, ge=0, le=1)
        """The share of the gradients that stays as it is."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.leak = config.leak
        self.draws = Draws(seed)

    def combine(self, gradients: TaskGradients) -> None:
        key = self.draws.next_key()
        gradients.combined_boundary = [
            self._keep_one_sign(g, place.uniform(key))
            for g, place in zip(gradients.boundary, gradients.places, strict=True)
        ]
        gradients.combined_shared = [
            self._keep_one_sign(g, uniform(g.shape[1:], key, number, g.device))
            for number, g in enumerate(gradients.global_shared())
        ]
        self.note(gram=gradients.gram() if self.is_logged else None)

    def _keep_one_sign(self, gradients: Tensor, draws: Tensor) -> Tensor:
        """`[T, …]` and `[…]` to `[…]`."""
        total, size = gradients.sum(0), gradients.abs().sum(0)
        # Of the positive ones the sum is (size + total) / 2, of the others (total - size) / 2.
        positive = 0.5 * (size + total) > draws * size
        kept = 0.5 * (total + torch.where(positive, size, -size))
        return torch.lerp(kept, total, self.leak) if self.leak else kept
