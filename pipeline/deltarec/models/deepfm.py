# SPDX-License-Identifier: Apache-2.0
"""DeepFM (Guo et al., 2017, arXiv 1703.04247): a factorisation machine beside a deep model."""

from typing import Literal

import torch
from torch import Tensor, nn

from deltarec.layers.interactions import factorisation
from deltarec.layers.mlp import MLP, Adapt, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, Trunk


class DeepFMTrunk(Trunk):
    """`[MLP(x); w·x; FM(fields)]` for x = all inputs side by side.

    The FM part hands on its D products instead of their sum, so that each task can weigh them.
    """

    class Config(MLPConfig):
        """Options of the deepfm trunk."""

        name: Literal["deepfm"]

    def __init__(self, config: Config, shapes: FieldShapes) -> None:
        super().__init__(config, shapes)
        dim = shapes.common_dim("model.trunk.name: deepfm")
        self.linear = nn.Linear(shapes.width, 1)
        self.deep = MLP.of(shapes.width, config)
        self.widths = self.deep.widths
        self.output_dim = self.deep.output_dim + 1 + dim

    def forward(self, fields: Fields, adapt: Adapt | None = None) -> Tensor:
        x = fields.flat()
        return torch.cat(
            [self.deep(x, adapt), self.linear(x), factorisation(fields.stacked())], dim=1
        )
