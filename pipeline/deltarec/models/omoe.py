# SPDX-License-Identifier: Apache-2.0
"""OMoE (Ma et al., 2018, where MMoE is compared with it): one gate mixes experts for all tasks."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.experts import Experts, mixture
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.towers import Towers
from deltarec.models.roles import TaskHeads


class OMoEHeads(TaskHeads):
    """h = Σ_e softmax(W x + b)_e f_e(x), y_k = t_k(h)."""

    class Config(MLPConfig):
        """Options of the omoe heads: `hidden` and the rest are the shape of one expert."""

        name: Literal["omoe"]
        experts: int = Field(default=4, gt=0)
        """How many all tasks share."""
        tower: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        self.experts = Experts(config.experts, input_dim, config)
        self.gate = nn.Linear(input_dim, config.experts)
        self.towers = Towers(len(tasks), self.experts.output_dim, config.tower, config)

    def forward(self, representation: Tensor) -> Tensor:
        weights = self.gate(representation).softmax(dim=1)
        mixed = mixture(weights, self.experts(representation))
        return self.towers([mixed] * len(self.tasks))
