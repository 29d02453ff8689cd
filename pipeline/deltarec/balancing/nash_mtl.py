# SPDX-License-Identifier: Apache-2.0
"""Nash-MTL (Navon et al., 2022, arXiv 2202.01017): the tasks bargain for the update."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import MemorylessBalancer
from deltarec.balancing.fixed_point import fixed_point
from deltarec.config import Config as BaseConfig


class NashMTL(MemorylessBalancer):
    """a > 0 with (G G') a = 1 / a; the update Σ_k a_k g_k, cut to a largest norm.

    Its square norm is a' G G' a = T before it is cut. The released code approaches a by 20 convex
    programs; Newton's method finds it to rounding.
    """

    class Config(BaseConfig):
        """Options of the method nash_mtl."""

        name: Literal["nash_mtl"]
        max_norm: float | None = Field(default=1.0, gt=0)
        """The largest norm of the update."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.max_norm = config.max_norm

    def solve(self, gram: Tensor, losses: Tensor) -> Tensor:
        weights = fixed_point(gram)
        if self.max_norm is not None:
            norm = (weights @ gram @ weights).clamp(min=0).sqrt()
            weights = weights * (self.max_norm / norm.clamp(min=self.max_norm))
        return weights
