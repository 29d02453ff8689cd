# SPDX-License-Identifier: Apache-2.0
"""PLE (Tang et al., RecSys 2020, doi 10.1145/3383313.3412236): own experts beside shared ones.

With one level it is the paper's CGC, Customised Gate Control.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.experts import Experts, mixture
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.towers import Towers
from deltarec.models.roles import TaskHeads


class PLEHeads(TaskHeads):
    """Levels of `Extraction`, then towers on x_k; all inputs of the first are the representation.

    The paper's loss of a task over its own sample space is what a task's mask gives.
    """

    class Config(MLPConfig):
        """Options of the ple heads: `hidden` and the rest are the shape of one expert."""

        name: Literal["ple"]
        levels: int = Field(default=1, gt=0)
        """With one, CGC."""
        experts: int = Field(default=2, gt=0)
        """Of each task, in each level."""
        shared_experts: int = Field(default=2, gt=0)
        """In each level."""
        tower: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        self.levels = nn.ModuleList()
        for level in range(config.levels):
            last = level == config.levels - 1
            self.levels.append(Extraction(config, input_dim, len(tasks), last))
            input_dim = config.hidden[-1] if config.hidden else input_dim
        self.towers = Towers(len(tasks), input_dim, config.tower, config)

    def forward(self, representation: Tensor) -> Tensor:
        inputs = [representation] * (len(self.tasks) + 1)
        for level in self.levels:
            inputs = level(inputs)
        return self.towers(inputs)


class Extraction(nn.Module):
    """One level: x_k = softmax(W_k x_k + b_k) · [own experts of x_k; shared experts of x_s].

    The shared gate mixes all experts to the next x_s; the last level has none.
    """

    def __init__(self, config: PLEHeads.Config, input_dim: int, num_tasks: int, last: bool) -> None:
        super().__init__()
        own, shared = config.experts, config.shared_experts
        self.experts = nn.ModuleList(Experts(own, input_dim, config) for _ in range(num_tasks))
        self.shared = Experts(shared, input_dim, config)
        self.gates = nn.ModuleList(nn.Linear(input_dim, own + shared) for _ in range(num_tasks))
        self.shared_gate = None if last else nn.Linear(input_dim, num_tasks * own + shared)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """x_1 … x_T and x_s, each `[B, D]`, to the same of the next level, or without x_s."""
        *own_inputs, shared_input = inputs
        shared = self.shared(shared_input)  # [B, E_s, H]
        own = [experts(x) for experts, x in zip(self.experts, own_inputs, strict=True)]
        outputs = [
            mixture(gate(x).softmax(dim=1), torch.cat([experts, shared], dim=1))
            for gate, x, experts in zip(self.gates, own_inputs, own, strict=True)
        ]
        if self.shared_gate is not None:
            weights = self.shared_gate(shared_input).softmax(dim=1)
            outputs.append(mixture(weights, torch.cat([*own, shared], dim=1)))
        return outputs
