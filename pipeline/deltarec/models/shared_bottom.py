# SPDX-License-Identifier: Apache-2.0
"""Shared bottom (Caruana, 1997, doi 10.1023/A:1007379606734): a tower for each task."""

from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from deltarec.data.schema import Task
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.towers import Towers
from deltarec.models.roles import TaskHeads


class SharedBottomHeads(TaskHeads):
    """y_k = t_k(h)."""

    class Config(MLPConfig):
        """Options of the shared_bottom heads: the shape of one tower."""

        name: Literal["shared_bottom"]
        hidden: list[PositiveInt] = []  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        self.towers = Towers(len(tasks), input_dim, config.hidden, config)

    def forward(self, representation: Tensor) -> Tensor:
        return self.towers([representation] * len(self.tasks))
