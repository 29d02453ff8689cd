# SPDX-License-Identifier: Apache-2.0
"""MGDA (Désidéri, 2012; Sener and Koltun, 2018, arXiv 1810.04650): no task gets worse."""

from typing import Literal

from torch import Tensor

from deltarec.balancing.balancer import MemorylessBalancer
from deltarec.balancing.simplex import shortest
from deltarec.config import Config as BaseConfig


class MGDA(MemorylessBalancer):
    """w = argmin |Σ_k w_k g_k / c_k|² over w >= 0, Σ w = 1; the update is Σ_k w_k g_k."""

    class Config(BaseConfig):
        """Options of the method mgda."""

        name: Literal["mgda"]
        normalise: Literal["none", "l2", "loss", "loss+"] = "none"
        """What c is: 1, the gradient's length, the loss, or their product."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.normalise = config.normalise

    def solve(self, gram: Tensor, losses: Tensor) -> Tensor:
        lengths = gram.diagonal().clamp(min=0).sqrt()
        scale = {
            "none": losses.new_ones(len(losses)),
            "l2": lengths,
            "loss": losses,
            "loss+": losses * lengths,
        }[self.normalise].clamp(min=1e-20)
        return shortest(gram / scale.outer(scale))
