# SPDX-License-Identifier: Apache-2.0
"""PMTRec (Yang et al., 2024, arXiv 2407.21364): weights of the tasks for each row of each table.

The paper's text was not to be had; what follows is our reconstruction from its abstract and from
summaries of it. For row v (a user, an item) and task t, g_v^t is the gradient of the task's loss
over the global batch, n_v^t its norm, T(v) the tasks with n_v^t > 0.

    magnitude balancing   a_v^t = softmax over T(v) of (n_v^t / m^t) / τ
    task focusing         w_v^0 = a_v^0 + β (1 - a_v^0),   w_v^t = (1 - β) a_v^t for other tasks
    update of the row     Σ_t w_v^t g_v^t

m^t is the running mean of n_v^t over rows and steps (1 with `form: plain`); β rises from 0 to
`focus` over training. The main task 0 is the first one of the configuration. The weights of a row
sum to 1 where the main task touches it, and to 1 - β where it does not.

How it works on sharded tables: a look-up is linear, and the weights of a row are the same wherever
it occurs. So each occurrence's gradients are weighed at the boundary, and the fused optimisers add
them up to the row's. What needs other ranks is the norm alone, since a row's occurrences lie on
several of them: with `norms: global` the ranks' sums for each row meet on one rank, chosen by a
hash, which sends the norms back. That moves T gradients a distinct row of the batch, one exchange
for all tables together. With `norms: local` each rank takes the norms of its own samples, no
gradient is moved, and a row's weights differ from rank to rank.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.gradients import TaskGradients
from deltarec.balancing.rows import Rows, RowWeights
from deltarec.config import Config as BaseConfig
from deltarec.distributed import all_sum


class PMTRec(GradientBalancer):
    """One weight for each task and row.

    Dense parameters that several tasks reach have no rows: there a_t is 1 / T, and the tasks are
    focused alike.
    """

    class Config(BaseConfig):
        """Options of pmtrec."""

        name: Literal["pmtrec"]
        norms: Literal["global", "local"] = "global"
        """Whether a row's norms are those of the global batch, which takes an exchange, or of each
        process's own samples, which makes results depend on the number of processes."""
        temperature: float = Field(default=1.0, gt=0)
        """τ: the larger, the more equal the tasks."""
        form: Literal["scaled", "plain"] = "scaled"
        """Whether norms are divided by their task's running mean before the softmax."""
        decay: float = Field(default=0.9, ge=0, lt=1)
        """Of the running means."""
        focus: float = Field(default=1.0, ge=0, le=1)
        """β at the end of training; with 1 the last steps train the first task alone."""
        schedule: Literal["linear", "sigmoid"] = "linear"
        """How β rises."""
        personal_weights: bool = True
        """Off: each task's mean norm over rows stands for the norm of each row."""
        magnitude_balancing: bool = True
        """Off: weights are in proportion to the norms, in the place of the softmax."""
        task_focusing: bool = True
        """Off: β = 0."""

    means: Tensor
    steps: Tensor

    def __init__(self, config: Any, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.config: PMTRec.Config = config
        self.register_buffer("means", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def beta(self) -> float:
        """β at this step: 0 at the first, `focus` at the last."""
        if not self.config.task_focusing:
            return 0.0
        progress = min(1.0, int(self.steps) / max(1, self.num_steps - 1))
        if self.config.schedule == "sigmoid":
            low, high = _sigmoid(-5.0), _sigmoid(5.0)
            progress = (_sigmoid(10 * progress - 5) - low) / (high - low)
        return self.config.focus * progress

    def combine(self, gradients: TaskGradients) -> None:
        gradients.weigh_rows(self.row_weights(gradients.rows()))
        focused = self._focused(torch.full((len(self.tasks), 1), 1 / len(self.tasks)))[:, 0]
        gradients.combined_shared = [g.weighted(focused) for g in gradients.at_shared]
        self.steps += 1

    def row_weights(self, rows: Rows) -> RowWeights:
        """The weights of a step, of which the running means learn; a collective."""
        gram = None
        if self.config.norms == "local":
            norms, counted = rows.norms(), torch.ones_like(rows.keys, dtype=torch.bool)
        else:
            owned = rows.owned()
            norms, counted = owned.send_back(owned.rows.norms())
            gram = all_sum(owned.rows.products()) if self.is_logged else None
        touched = norms > 0
        once = (touched & counted).double()
        totals = all_sum(torch.stack([(norms * once).sum(1), once.sum(1)]))
        mean = totals[0] / totals[1].clamp(min=1)
        self._learn(mean)
        if not self.config.personal_weights:
            norms = mean.to(norms).unsqueeze(1) * touched
        weights = self._focused(self._balanced(norms)) * touched
        sums_of_weights = all_sum((weights * once).sum(1))
        self.note(sums_of_weights / totals[1].clamp(min=1), gram)
        return RowWeights(rows.keys, weights)

    def _balanced(self, norms: Tensor) -> Tensor:
        """a_v^t of norms `[T, U]`, which are 0 where the task does not touch the row."""
        if not self.config.magnitude_balancing:
            return norms / norms.sum(0).clamp(min=torch.finfo(norms.dtype).tiny)
        scaled = norms
        if self.config.form == "scaled":
            means = torch.where(self.means > 0, self.means, 1.0).to(norms)
            scaled = norms / means.unsqueeze(1)
        logits = (scaled / self.config.temperature).masked_fill(norms == 0, -torch.inf)
        return logits.softmax(0).nan_to_num(0.0)  # NaN where no task touches the row

    def _focused(self, balanced: Tensor) -> Tensor:
        """w_v^t of a_v^t, `[T, U]`; the caller knows which rows the main task touches."""
        weights = (1 - self.beta) * balanced
        weights[0] += self.beta
        return weights

    def _learn(self, mean: Tensor) -> None:
        """Let the running means follow those of this step, `[T]`, but for tasks without rows."""
        mean = mean.to(self.means)
        decay = torch.where(self.means > 0, self.config.decay, 0.0)
        moved = decay * self.means + (1 - decay) * mean
        self.means.copy_(torch.where(mean > 0, moved, self.means))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
