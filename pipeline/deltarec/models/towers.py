# SPDX-License-Identifier: Apache-2.0
"""A shared trunk with a tower for each scenario on top."""

from collections.abc import Callable
from typing import Literal

from pydantic import field_validator
from torch import Tensor

from deltarec.layers.grouped_mlp import GroupedMLP
from deltarec.layers.mlp import MLPConfig
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class ScenarioTowers(ScenarioModule):
    """`tower_s(trunk(x))` for a sample of scenario s; no sample goes through another's tower."""

    class Config(MLPConfig):
        """Options of the scenario module towers: the shape of one tower."""

        name: Literal["towers"]

        @field_validator("norm")
        @classmethod
        def _by_sample(cls, norm: str | None) -> str | None:
            if norm == "batch":
                raise ValueError("a tower sees one scenario's samples only; use layer")
            return norm

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        self.trunk = make_trunk(shapes)
        self.towers = GroupedMLP(self.trunk.output_dim, config, num_scenarios)
        self.output_dim = self.towers.output_dim

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        return self.towers(self.trunk(fields), scenario)
