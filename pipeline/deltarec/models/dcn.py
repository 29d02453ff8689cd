# SPDX-License-Identifier: Apache-2.0
"""DCN v2 (Wang et al., 2021, arXiv 2008.13535): explicit crosses of growing order."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.layers.interactions import CrossLayers
from deltarec.layers.mlp import MLP, Adapt, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, Trunk


class DCNTrunk(Trunk):
    """`[Cross(x); MLP(x)]` for x = all inputs side by side; or `MLP(Cross(x))`."""

    class Config(MLPConfig):
        """Options of the dcn trunk."""

        name: Literal["dcn"]
        cross_layers: int = Field(default=2, gt=0)
        rank: int | None = Field(default=None, gt=0)
        """Of the cross matrices; full if not given."""
        structure: Literal["parallel", "stacked"] = "parallel"
        """Deep layers beside the crosses, or on top of them."""

    def __init__(self, config: Config, shapes: FieldShapes) -> None:
        super().__init__(config, shapes)
        self.cross = CrossLayers(shapes.width, config.cross_layers, config.rank)
        self.deep = MLP.of(shapes.width, config)
        self.stacked = config.structure == "stacked"
        self.widths = self.deep.widths
        self.output_dim = self.deep.output_dim + (0 if self.stacked else shapes.width)

    def forward(self, fields: Fields, adapt: Adapt | None = None) -> Tensor:
        x = fields.flat()
        crossed = self.cross(x)
        if self.stacked:
            return self.deep(crossed, adapt)
        return torch.cat([crossed, self.deep(x, adapt)], dim=1)
