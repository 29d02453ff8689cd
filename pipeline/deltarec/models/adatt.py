# SPDX-License-Identifier: Apache-2.0
"""AdaTT (Li et al., 2023, arXiv 2304.04959): each task mixes all tasks' experts, and adds its own.

With shared experts it is the paper's AdaTT, without them AdaTT-sp.
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


class AdaTTHeads(TaskHeads):
    """Levels of `Fusion`, then towers on x_k; all inputs of the first are the representation."""

    class Config(MLPConfig):
        """Options of the adatt heads: `hidden` and the rest are the shape of one expert."""

        name: Literal["adatt"]
        levels: int = Field(default=1, gt=0)
        """How many stand on each other."""
        experts: int = Field(default=2, gt=0)
        """Of each task, in each level."""
        shared_experts: int = Field(default=0, ge=0)
        """In each level; with none, AdaTT-sp."""
        tower: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, before its logit."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        experts = [config.experts] * len(tasks)
        experts += [config.shared_experts] if config.shared_experts else []
        self.levels = nn.ModuleList()
        for level in range(config.levels):
            last = level == config.levels - 1
            units = len(tasks) if last else len(experts)
            self.levels.append(Fusion(config, input_dim, experts, units))
            input_dim = config.hidden[-1] if config.hidden else input_dim
        self.inputs = len(experts)
        self.towers = Towers(len(tasks), input_dim, config.tower, config)

    def forward(self, representation: Tensor) -> Tensor:
        inputs = [representation] * self.inputs
        for level in self.levels:
            inputs = level(inputs)
        return self.towers(inputs)


class Fusion(nn.Module):
    """One level: x_u = softmax(W_u x_u + b_u) · [all units' experts] + v_u · [own experts].

    A unit is a task, or the shared one; its experts see its own input. v is learned, as in the
    released code, unless every unit has one expert, which is then added as it is.

    Args:
        config: shape of one expert.
        input_dim: width of the inputs.
        experts: number of experts of each unit.
        num_outputs: units with an output: all, or in the last level the tasks.
    """

    def __init__(
        self, config: AdaTTHeads.Config, input_dim: int, experts: list[int], num_outputs: int
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Experts(number, input_dim, config) for number in experts)
        self.gates = nn.ModuleList(nn.Linear(input_dim, sum(experts)) for _ in range(num_outputs))
        self.native = nn.ParameterList()
        if any(number > 1 for number in experts):
            for number in experts[:num_outputs]:
                weights = torch.empty(number).uniform_(-(number**-0.5), number**-0.5)
                self.native.append(nn.Parameter(weights))

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """One `[B, D]` for each unit, to one `[B, H]` for each that has an output."""
        own = [experts(x) for experts, x in zip(self.experts, inputs, strict=True)]
        everything = torch.cat(own, dim=1)  # [B, E, H]
        outputs = []
        for unit, gate in enumerate(self.gates):
            fused = mixture(gate(inputs[unit]).softmax(dim=1), everything)
            if self.native:
                native = mixture(self.native[unit].expand(len(fused), -1), own[unit])
            else:
                native = own[unit].squeeze(1)
            outputs.append(fused + native)
        return outputs
