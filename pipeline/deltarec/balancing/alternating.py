# SPDX-License-Identifier: Apache-2.0
"""Alternating training: each batch trains one task, in turn."""

from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from deltarec.balancing.balancer import LossBalancer
from deltarec.config import Config as BaseConfig


class Alternating(LossBalancer):
    """The loss of one task a batch, as often as its ratio says, spread evenly.

    At each batch every task that has samples in it is credited its ratio; the one with the most
    credit is trained, and pays the sum of those ratios. What is without samples neither gains nor
    pays: after an absence, however long, it has its turns as before.
    """

    class Config(BaseConfig):
        """Options of alternating training."""

        name: Literal["alternating"]
        ratios: dict[str, PositiveFloat] = {}  # noqa: RUF012
        """How often a task is trained, relative to the others; 1 for those that are not named."""

    ratios: Tensor
    credits: Tensor

    def __init__(self, config: Any, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        unknown = config.ratios.keys() - set(tasks)
        if unknown:
            raise ValueError(f"balance.ratios: no task '{min(unknown)}'; have {', '.join(tasks)}")
        ratios = torch.tensor([config.ratios.get(task, 1.0) for task in tasks]).double()
        self.register_buffer("ratios", ratios, persistent=False)
        self.register_buffer("credits", torch.zeros(len(tasks), dtype=torch.float64))

    def weights(self, losses: Tensor) -> Tensor:
        present = losses != 0
        ratios = self.ratios.where(present, 0)
        self.credits += ratios
        weights = torch.zeros_like(losses)
        if present.any():
            turn = int(torch.where(present, self.credits, -torch.inf).argmax())
            self.credits[turn] -= ratios.sum()
            weights[turn] = 1
        return weights
