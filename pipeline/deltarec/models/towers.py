# SPDX-License-Identifier: Apache-2.0
"""A shared trunk with a tower for each scenario on top."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor

from deltarec.layers.grouped import ByGroup
from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class ScenarioTowers(ScenarioModule):
    """`tower_s(trunk(x))` for a sample of scenario s; no sample goes through another's tower."""

    class Config(MLPConfig):
        """Options of the scenario module towers: the shape of one tower."""

        name: Literal["towers"]

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        if config.norm == "batch":
            raise ValueError(
                "model.scenario.norm: towers see one scenario's samples each, which batch "
                "normalisation over the global batch cannot work with; use layer"
            )
        self.trunk = make_trunk(shapes)
        self.towers = ByGroup(partial(MLP.of, self.trunk.output_dim, config), num_scenarios)
        self.output_dim = config.hidden[-1] if config.hidden else self.trunk.output_dim

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        return self.towers(self.trunk(fields), scenario)
