# SPDX-License-Identifier: Apache-2.0
"""Methods that look at the losses' means over periods of training."""

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import LossBalancer
from deltarec.config import Config


class PeriodConfig(Config):
    """What periods are."""

    period: int | None = Field(default=None, gt=0)
    """Steps of a period; an epoch if not given."""

    @property
    @abstractmethod
    def first_periods(self) -> int:
        """So many are over before the method begins."""


class PeriodBalancer(LossBalancer):
    """Sums the global losses, and hands on their mean when a period is over.

    A batch without a task's samples does not count in that task's mean.

    Args:
        config: how long a period is.
        tasks: names of the tasks.
        seed: not used.
    """

    total: Tensor
    present: Tensor
    steps: Tensor
    periods: Tensor

    def __init__(self, config: PeriodConfig, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.period = config.period
        self.register_buffer("total", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("present", torch.zeros(len(tasks), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("periods", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def weights_within(self, losses: Tensor) -> Tensor:
        """As `weights`; `self.periods` says how many periods are over."""

    @abstractmethod
    def after_period(self, mean: Tensor) -> None:
        """A period is over whose mean losses were `[T]`; `self.periods` does not count it yet.

        A task without samples in all of the period has 0.
        """

    def weights(self, losses: Tensor) -> Tensor:
        if self.period is not None and self.steps == self.period:
            self._end()
        self.total += losses
        self.present += losses > 0
        self.steps += 1
        return self.weights_within(losses)

    def after_epoch(self) -> None:
        if self.period is None:
            self._end()

    def _end(self) -> None:
        self.after_period(self.total / self.present.clamp(min=1))
        self.total.zero_()
        self.present.zero_()
        self.steps.zero_()
        self.periods += 1
