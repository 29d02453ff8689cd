# SPDX-License-Identifier: Apache-2.0
"""The plain trunk: all inputs side by side through fully connected layers."""

from typing import Literal

from torch import Tensor

from deltarec.layers.mlp import MLP, Adapt, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, Trunk


class MLPTrunk(Trunk):
    """`MLP([fields; dense])`; with `hidden: []` the inputs themselves."""

    class Config(MLPConfig):
        """Options of the mlp trunk."""

        name: Literal["mlp"]

    def __init__(self, config: Config, shapes: FieldShapes) -> None:
        super().__init__(config, shapes)
        self.mlp = MLP.of(shapes.width, config)
        self.widths = self.mlp.widths
        self.output_dim = self.mlp.output_dim

    def forward(self, fields: Fields, adapt: Adapt | None = None) -> Tensor:
        return self.mlp(fields.flat(), adapt)
