# SPDX-License-Identifier: Apache-2.0
"""Cross-stitch networks (Misra et al., 2016, arXiv 1604.03539): tasks' layers that exchange."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.layers.towers import Towers
from deltarec.models.roles import TaskHeads


class CrossStitchHeads(TaskHeads):
    """x_k^{l+1} = layer_k^l(Σ_j α_kj^l x_j^l) (equation 1), a number α a layer and pair of tasks.

    Stitches stand after each layer. One before the first would mix equal inputs.
    """

    class Config(MLPConfig):
        """Options of the cross_stitch heads: `hidden` and the rest are a task's stitched layers."""

        name: Literal["cross_stitch"]
        hidden: list[PositiveInt] = Field(default=[64], min_length=1)
        """Widths of a task's stitched layers."""
        own: float = Field(default=0.9, ge=0, le=1)
        """What a task's own layer weighs at the start; the others share the rest."""
        tower: list[PositiveInt] = []  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower, after the last stitch and before its logit."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        self.layers = nn.ModuleList()
        for width in config.hidden:
            layer = [
                MLP(input_dim, [width], config.activation, config.norm, config.dropout)
                for _ in tasks
            ]
            self.layers.append(nn.ModuleList(layer))
            input_dim = width
        others = max(len(tasks) - 1, 1)
        start = torch.full((len(tasks), len(tasks)), (1 - config.own) / others)
        start.fill_diagonal_(config.own)
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in config.hidden)
        self.towers = Towers(len(tasks), input_dim, config.tower, config)

    def forward(self, representation: Tensor) -> Tensor:
        inputs = [representation] * len(self.tasks)
        for layer, stitch in zip(self.layers, self.stitches, strict=True):
            outputs = [member(x) for member, x in zip(layer, inputs, strict=True)]  # pyright: ignore
            stitched = torch.einsum("kj,jbh->kbh", stitch, torch.stack(outputs))
            inputs = list(stitched.unbind())
        return self.towers(inputs)
