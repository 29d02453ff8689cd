# SPDX-License-Identifier: Apache-2.0
"""FairGrad (Ban and Ji, 2024, arXiv 2402.15638): α-fair shares of the update."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import MemorylessBalancer
from deltarec.balancing.fixed_point import fixed_point
from deltarec.config import Config as BaseConfig


class FairGrad(MemorylessBalancer):
    """w > 0 with (G G') w = w^{−1/α}."""

    class Config(BaseConfig):
        """Options of the method fairgrad."""

        name: Literal["fairgrad"]
        alpha: float = Field(default=1.0, ge=0.5, le=20)
        """1 is proportional fairness; the larger, the more counts the task worst off."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.alpha = config.alpha

    def solve(self, gram: Tensor, losses: Tensor) -> Tensor:
        return fixed_point(gram, 1 / self.alpha)
