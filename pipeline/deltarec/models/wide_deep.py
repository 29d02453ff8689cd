# SPDX-License-Identifier: Apache-2.0
"""Wide & Deep (Cheng et al., 2016, arXiv 1606.07792): a linear model beside a deep one.

The wide part is linear in the embedded inputs, as in the common re-implementations, instead of in
hand-made feature crosses.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, Adapt, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, Trunk


class WideDeepTrunk(Trunk):
    """`[MLP(x); w·x]` for x = all inputs side by side."""

    class Config(MLPConfig):
        """Options of the wide_deep trunk."""

        name: Literal["wide_deep"]

    def __init__(self, config: Config, shapes: FieldShapes) -> None:
        super().__init__(config, shapes)
        self.wide = nn.Linear(shapes.width, 1)
        self.deep = MLP.of(shapes.width, config)
        self.widths = self.deep.widths
        self.output_dim = self.deep.output_dim + 1

    def forward(self, fields: Fields, adapt: Adapt | None = None) -> Tensor:
        x = fields.flat()
        return torch.cat([self.deep(x, adapt), self.wide(x)], dim=1)
