# SPDX-License-Identifier: Apache-2.0
"""DWA (Liu et al., 2019, arXiv 1803.10704): more weight where the loss falls slowly."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.periods import PeriodBalancer, PeriodConfig


class DWA(PeriodBalancer):
    """w = K softmax(r / T), r_k the ratio of the mean losses of the last two periods.

    Weights are 1 in the first two periods; r is 1 for a task whose ratio is not defined.
    """

    class Config(PeriodConfig):
        """Options of the method dwa."""

        name: Literal["dwa"]
        temperature: float = Field(default=2.0, gt=0)
        """T: the larger, the more equal are the weights."""

        @property
        def first_periods(self) -> int:
            return 2

    means: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.temperature = config.temperature
        self.register_buffer("means", torch.zeros(2, len(tasks), dtype=torch.float64))

    def weights_within(self, losses: Tensor) -> Tensor:
        before, last = self.means
        defined = (before > 0) & (last > 0)
        ratio = torch.where(defined, last / before.where(defined, 1), 1)
        return len(losses) * (ratio / self.temperature).softmax(0)

    def after_period(self, mean: Tensor) -> None:
        self.means.copy_(torch.stack([self.means[1], mean]))
