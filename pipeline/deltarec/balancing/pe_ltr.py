# SPDX-License-Identifier: Apache-2.0
"""PE-LTR (Lin et al., RecSys 2019): MGDA whose weights have lower bounds."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from deltarec.balancing.balancer import WeightingBalancer
from deltarec.balancing.simplex import nearest
from deltarec.config import Config as BaseConfig


class PELTR(WeightingBalancer):
    """w = argmin |Σ_k w_k g_k|² over Σ w = 1, then the nearest one with w_k >= c_k, Σ w = 1.

    The first problem has no inequality, so it is linear; where several points solve it, the
    shortest is taken.
    """

    class Config(BaseConfig):
        """Options of the method pe_ltr."""

        name: Literal["pe_ltr"]
        least: dict[str, NonNegativeFloat] = {}  # noqa: RUF012
        """c, the least weight by task; 0 for a task not named. Their sum is below 1."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        unknown = config.least.keys() - set(tasks)
        if unknown:
            raise ValueError(f"balance.least: no task is named {sorted(unknown)}; have {tasks}")
        self.least = [float(config.least.get(task, 0.0)) for task in tasks]
        if sum(self.least) >= 1:
            raise ValueError(f"balance.least: the sum is {sum(self.least):g}; it must be below 1")

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        least = torch.tensor(self.least, dtype=gram.dtype)
        present = gram.diagonal() > 0
        weights = least.clone()
        if present.any():
            best = _shortest_of_sum_one(gram[present][:, present])
            share = 1 - float(least.sum())
            weights[present] += nearest(best - least[present], share)
        return weights


def _shortest_of_sum_one(gram: Tensor) -> Tensor:
    """Argmin w' G w over Σ w = 1, from the conditions 2 G w = ν 1, 1' w = 1."""
    tasks = len(gram)
    system = gram.new_ones(tasks + 1, tasks + 1)
    system[:tasks, :tasks] = gram / gram.abs().max()
    system[tasks, tasks] = 0
    target = gram.new_zeros(tasks + 1)
    target[tasks] = 1
    return (torch.linalg.pinv(system, hermitian=True, rtol=1e-12) @ target)[:tasks]
