# SPDX-License-Identifier: Apache-2.0
"""Two towers (Covington et al., 2016; Yi et al., 2019): an MLP over the features of each side."""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import Fields, PairConfig, PairModel, Side


class TwoTower(PairModel):
    """The inner product of what two towers make of their sides.

    Sides of the same tables share a tower: a user has one, whether it asks for items or is found as
    a friend. A linear layer after the MLP makes all towers equally wide.
    """

    class Config(MLPConfig, PairConfig):
        """Options of two towers."""

        name: Literal["two_tower"]  # pyright: ignore[reportIncompatibleVariableOverride]
        norm: Literal["layer"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
        """Normalisation before each activation."""
        dim: int = Field(default=32, gt=0)
        """Width of the vectors that are multiplied."""
        cosine: bool = False
        """Whether the vectors are scaled to length 1 and the score by 1 / `temperature`."""
        temperature: float = Field(default=0.1, gt=0)

    def __init__(self, config: Any, sides: Mapping[str, tuple[Side, Side]]) -> None:
        super().__init__(config, sides)
        self.scale: float | None = config.temperature**-0.5 if config.cosine else None
        kinds = [side for pair in sides.values() for side in pair]
        self.names = {tables: f"tower{i}" for i, tables in enumerate({k.tables: 0 for k in kinds})}
        self.sides = {task: (pair[0].tables, pair[1].tables) for task, pair in sides.items()}
        self.towers = nn.ModuleDict()
        for side in kinds:
            mlp = MLP.of(side.shapes.width, config)
            if self.names[side.tables] not in self.towers:
                out = nn.Linear(mlp.output_dim, config.dim)
                self.towers[self.names[side.tables]] = nn.Sequential(mlp, out)

    def query(self, task: str, fields: Fields) -> Tensor:
        return self._vector(task, 0, fields)

    def item(self, task: str, fields: Fields) -> Tensor:
        return self._vector(task, 1, fields)

    def reached(self, task: str) -> list[nn.Parameter]:
        towers = {self.names[tables] for tables in self.sides[task]}
        return [p for name in towers for p in self.towers[name].parameters()]

    def _vector(self, task: str, side: int, fields: Fields) -> Tensor:
        vector = self.towers[self.names[self.sides[task][side]]](fields.flat())
        return vector if self.scale is None else F.normalize(vector, dim=1) * self.scale
