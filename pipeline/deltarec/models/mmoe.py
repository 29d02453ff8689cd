# SPDX-License-Identifier: Apache-2.0
"""MMoE (Ma et al., KDD 2018, doi 10.1145/3219819.3220007): each task mixes shared experts."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.experts import Experts, mixture
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.towers import Towers
from deltarec.models.roles import TaskHeads


class MMoEHeads(TaskHeads):
    """h_k = Σ_e softmax(W_k x + b_k)_e f_e(x) (equations 6 and 7), y_k = t_k(h_k)."""

    class Config(MLPConfig):
        """Options of the mmoe heads: `hidden` and the rest are the shape of one expert."""

        name: Literal["mmoe"]
        experts: int = Field(default=4, gt=0)
        """How many all tasks share."""
        tower: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        self.experts = Experts(config.experts, input_dim, config)
        self.gates = nn.ModuleList(nn.Linear(input_dim, config.experts) for _ in tasks)
        self.towers = Towers(len(tasks), self.experts.output_dim, config.tower, config)

    def forward(self, representation: Tensor) -> Tensor:
        experts = self.experts(representation)  # [B, E, H]
        return self.towers(
            [mixture(gate(representation).softmax(dim=1), experts) for gate in self.gates]
        )
