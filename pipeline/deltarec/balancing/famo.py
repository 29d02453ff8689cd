# SPDX-License-Identifier: Apache-2.0
"""FAMO (Liu et al., 2023, arXiv 2306.03792): all losses fall at an equal rate.

The paper compares the losses of a batch before and after its update, which takes a second forward
through the tables: `exact` does so. Without it the losses of the **next** batch stand for those
after the update: the method costs nothing, and its weights also see how batches differ.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.adam import BufferedAdam
from deltarec.balancing.balancer import LossBalancer
from deltarec.config import Config as BaseConfig


class FAMO(LossBalancer):
    """Σ_k z_k log(L_k − m_k) / c with z = softmax(w) and c = Σ_k z_k / (L_k − m_k).

    w descends along J' (log before − log after), J the Jacobian of the softmax. Tasks whose loss is
    not above its minimum m, as those without samples in the batch, are left out.
    """

    class Config(BaseConfig):
        """Options of the method famo."""

        name: Literal["famo"]
        lr: float = Field(default=0.025, gt=0)
        """Of the Adam that updates w."""
        weight_decay: float = Field(default=1e-3, ge=0)
        """Pulls w to zero, so to equal weights of the logarithms."""
        exact: bool = False
        """Whether each batch is looked at again after its update, as in the paper: one more forward
        a step. Otherwise the next batch's losses stand for these."""
        minimum: dict[str, float] = {}  # noqa: RUF012
        """The least loss by task; 0 for a task not named."""

    logits: Tensor
    minimum: Tensor
    before: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        unknown = config.minimum.keys() - set(tasks)
        if unknown:
            raise ValueError(f"balance.minimum: no task is named {sorted(unknown)}; have {tasks}")
        minimum = torch.tensor([config.minimum.get(t, 0.0) for t in tasks], dtype=torch.float64)
        self.register_buffer("minimum", minimum, persistent=False)
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("before", torch.zeros(len(tasks), dtype=torch.float64))
        self.adam = BufferedAdam(len(tasks), config.lr, config.weight_decay)
        self.looks_again = config.exact

    def weights(self, losses: Tensor) -> Tensor:
        above = losses - self.minimum
        usable = above > 0
        if self.looks_again:
            self.before.zero_()
        else:
            self.after_update(losses)
        self.before.copy_(above.where(usable, self.before))
        scaled = self.logits.softmax(0).where(usable, 0) / above.where(usable, 1)
        return scaled / scaled.sum().where(usable.any(), 1)

    def after_update(self, losses: Tensor) -> None:
        above = losses - self.minimum
        if self.before.any():
            both = (above > 0) & (self.before > 0)
            fall = self.before.where(both, 1).log() - above.where(both, 1).log()
            z = self.logits.softmax(0)
            self.adam.step(self.logits, z * (fall - z @ fall))
