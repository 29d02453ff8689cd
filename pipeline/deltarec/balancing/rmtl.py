# SPDX-License-Identifier: Apache-2.0
"""RMTL (Liu et al., 2023, arXiv 2302.03328): critics of the tasks weigh each sample's losses.

A user's samples in a row are an episode. Its states are the representations of the samples, its
actions the predictions, and a task's reward is minus its loss of the sample. The critic Q_k of task
k learns what is still to come, discounted,

    Q_k(s, a_k)  ←  r_k + γ Q̄_k(s', a'_k)

with Q̄ a slow copy of it and s' the user's next sample; after the last one there is nothing to come.
The losses of a sample are then weighed by w_k = max(0, 1 − λ Q_k(s, a_k)): Q is negative, and the
more so the worse the user is predicted from here on.

As far as the paper's text and code were to be had. Ours: critics and model are trained together, on
the same batches, where the paper trains one after the other; critics look at the representation,
where the paper's have embeddings of their own; there is one critic a task, no twin. With γ = 0 the
episodes are single samples.
"""

import copy
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.balancing.balancer import SampleBalancer
from deltarec.config import Config as BaseConfig
from deltarec.data.batch import Batch
from deltarec.distributed import all_sum, gather_rows, rank
from deltarec.layers.mlp import MLP


class RMTL(SampleBalancer):
    """w_k = max(0, 1 − λ Q_k(s, a_k)), by critics that the dense optimiser trains."""

    class Config(BaseConfig):
        """Options of the method rmtl."""

        name: Literal["rmtl"]
        strength: float = Field(default=0.1, ge=0)
        """λ."""
        gamma: float = Field(default=0.9, ge=0, lt=1)
        """How much the user's next sample counts. Above 0 it needs `data.user`, files in which a
        user's samples follow one another in the order of time, and `data.reader.shuffle: false`."""
        hidden: list[PositiveInt] = [64]  # noqa: RUF012
        """Widths of a critic's layers."""
        follow: float = Field(default=0.1, gt=0, le=1)
        """How far the slow copies follow the critics at each step."""
        warmup: float = Field(default=0.1, ge=0, le=1)
        """Part of the job's batches in which critics learn and weights are 1."""

    steps: Tensor

    def __init__(self, config: Any, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.config: RMTL.Config = config
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.critics = self.slow = nn.ModuleList()

    def prepare(self, width: int) -> None:
        hidden = self.config.hidden
        self.critics = nn.ModuleList(
            nn.Sequential(MLP(width + 1, hidden), nn.Linear(hidden[-1] if hidden else width + 1, 1))
            for _ in self.tasks
        )
        self.slow = copy.deepcopy(self.critics).requires_grad_(False)

    def sample_weights(
        self, batch: Batch, states: Tensor, actions: Tensor, losses: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._follow()
        found = _values(self.critics, states, actions)
        target, known = -losses, present
        if self.config.gamma:
            with torch.no_grad():
                to_come = _values(self.slow, states, actions)
            # A row's next one may be another rank's.
            here = slice(rank() * len(losses), (rank() + 1) * len(losses))
            later, seen = next_of_user(gather_rows(batch.index), gather_rows(batch.user))
            later, seen = later[here], seen[here]
            goes_on = (later >= 0).unsqueeze(1) & gather_rows(present)[later]
            rest = torch.where(goes_on, gather_rows(to_come)[later], 0)
            target = target + self.config.gamma * rest
            known = present & seen.unsqueeze(1)
        count = all_sum(known.sum()).clamp(min=1)
        error = torch.where(known, (found - target).square(), 0).sum() * len(self.tasks)
        weights = torch.ones_like(losses)
        if int(self.steps) >= self.config.warmup * self.num_steps:
            weights = (1 - self.config.strength * found.detach()).clamp(min=0)
        self.steps += 1
        totals = all_sum(torch.stack([(weights * present).sum(0), present.sum(0)]).double())
        self.note(totals[0] / totals[1].clamp(min=1))
        return weights, error * (dist.get_world_size() / count)

    def _follow(self) -> None:
        """The optimiser has moved the critics since the last batch; their copies go after them."""
        with torch.no_grad():
            pairs = zip(self.slow.parameters(), self.critics.parameters(), strict=True)
            for slow, critic in pairs:
                slow.lerp_(critic, self.config.follow)


def next_of_user(index: Tensor, user: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the batch the user's next sample is, if that is the dataset's next row.

    Args:
        index: the samples' rows in the dataset, int64 `[B]`; -1 for padding.
        user: int64 `[B]`.

    Returns:
        The next sample's place, or -1 for none; and whether that is known: whether the dataset's
        next row is in the batch at all.
    """
    order = index.argsort()
    here, there = order[:-1], order[1:]
    follows = (index[here] >= 0) & (index[there] == index[here] + 1)
    later, seen = torch.full_like(index, -1), torch.zeros_like(index, dtype=torch.bool)
    seen[here] = follows
    later[here] = torch.where(follows & (user[here] == user[there]), there, -1)
    return later, seen


def _values(critics: nn.ModuleList, states: Tensor, actions: Tensor) -> Tensor:
    """Q_k(s, a_k), `[B, T]`."""
    inputs = (torch.cat([states, a.unsqueeze(1)], dim=1) for a in actions.unbind(1))
    return torch.cat([q(x) for q, x in zip(critics, inputs, strict=True)], dim=1)
