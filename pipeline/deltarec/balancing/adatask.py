# SPDX-License-Identifier: Apache-2.0
"""AdaTask (Yang et al., 2023, arXiv 2211.15055): adaptive learning rates for each task.

One Adam over the sum of gradients divides all tasks by the same root mean square, which the largest
task dominates. AdaTask keeps what divides by task, so it **is** the optimiser: this module makes
the whole update, and the optimisers of dense parameters and of tables must be plain `sgd`, which
multiply it by their learning rates.

A shared dense parameter has both moments of Adam by task, element by element. A task's own
parameters have one state, so their update is Adam's.

A row of a table has one number by task, v_k, the running mean of |g_k|², and no first moment: the
paper's RMSProp, with one state a row, as large tables have it. A row's gradient is the sum over its
occurrences on all ranks, and FBGEMM's fused optimisers see the sum over tasks alone. So, as with
pmtrec, the ranks' sums meet on the rank that owns the row's state, which sends 1 / (√v_k + ε) back,
and each occurrence's gradients are weighed by that. A look-up is linear, so they add up to the
row's Σ_k g_k / (√v_k + ε).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.gradients import TaskGradients
from deltarec.balancing.row_moments import RowMoments
from deltarec.balancing.rows import RowWeights
from deltarec.config import Config as BaseConfig
from deltarec.config import Decay


class AdaTask(GradientBalancer):
    """p −= lr Σ_k m̂_k / (√v̂_k + ε), m_k and v_k Adam's moments of g_k; of rows g_k and v_k."""

    class Config(BaseConfig):
        """Options of the method adatask."""

        name: Literal["adatask"]
        betas: list[Decay] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
        """How slowly the moments follow: of gradients (not for rows), and of their squares."""
        eps: float = Field(default=1e-8, gt=0)

    steps: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.betas, self.eps = config.betas, config.eps
        self.rows: RowMoments | None = None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def prepare(
        self,
        features: Sequence[str],
        tables: Mapping[str, int],
        shared: Sequence[Tensor],
        own: Sequence[Tensor],
    ) -> None:
        tasks = len(self.tasks)
        if tables:
            self.rows = RowMoments(list(tables.values()), tasks, self.betas[1])
        for moment in ("first", "second"):
            for i, p in enumerate(shared):
                self.register_buffer(f"{moment}_shared_{i}", p.new_zeros(tasks, *p.shape))
            for i, p in enumerate(own):
                self.register_buffer(f"{moment}_own_{i}", torch.zeros_like(p.data))

    def combine(self, gradients: TaskGradients) -> None:
        self.steps += 1
        shared, own = gradients.global_shared(), gradients.global_own()
        gradients.combined_shared = [
            self._adam(f"shared_{i}", g).sum(0) for i, g in enumerate(shared)
        ]
        gradients.combined_own = [self._adam(f"own_{i}", g) for i, g in enumerate(own)]
        if self.rows is not None:
            rows = gradients.rows()
            owned = rows.owned(self.rows.owners(rows.keys))
            weights, _ = owned.send_back(1 / (self.rows.learn(owned.rows) + self.eps))
            gradients.weigh_rows(RowWeights(rows.keys, weights))
        self.note(gram=gradients.gram() if self.is_logged else None)

    def _adam(self, name: str, gradient: Tensor) -> Tensor:
        first, second = self.get_buffer(f"first_{name}"), self.get_buffer(f"second_{name}")
        first.lerp_(gradient, 1 - self.betas[0])
        second.lerp_(gradient.square(), 1 - self.betas[1])
        steps = self.steps.double()
        root = (second / (1 - self.betas[1] ** steps)).sqrt()
        return first / (1 - self.betas[0] ** steps) / (root + self.eps)
