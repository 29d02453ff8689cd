# SPDX-License-Identifier: Apache-2.0
"""STCH (Lin et al., 2024, arXiv 2402.19078): smooth Tchebycheff scalarisation."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.periods import PeriodBalancer, PeriodConfig


class STCH(PeriodBalancer):
    """μ log Σ_k exp(log(L_k / nadir_k) / μ), after a warm-up by Σ_k log L_k.

    The nadir is the mean loss over the warm-up's last period. A task whose loss is zero in a batch
    has no logarithm: its weight is 0, and so is that of one without a nadir.
    """

    class Config(PeriodConfig):
        """Options of the method stch."""

        name: Literal["stch"]
        mu: float = Field(default=1.0, gt=0)
        """μ: the smaller, the more the worst task counts alone."""
        warmup: int = Field(default=4, gt=0)
        """Periods before the nadir is known."""

        @property
        def first_periods(self) -> int:
            return self.warmup

    nadir: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.mu, self.warmup = config.mu, config.warmup
        self.register_buffer("nadir", torch.zeros(len(tasks), dtype=torch.float64))

    def weights_within(self, losses: Tensor) -> Tensor:
        warm = self.periods >= self.warmup
        usable = (losses > 0) & ((self.nadir > 0) | ~warm)
        if not usable.any():
            return torch.zeros_like(losses)
        slope = 1 / losses.where(usable, 1)
        if warm:
            logs = (losses.where(usable, 1) / self.nadir.where(usable, 1)).log() / self.mu
            slope = slope * logs.where(usable, -torch.inf).softmax(0)
        return slope.where(usable, 0)

    def after_period(self, mean: Tensor) -> None:
        if self.periods == self.warmup - 1:
            self.nadir.copy_(mean)
