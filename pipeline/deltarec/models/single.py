# SPDX-License-Identifier: Apache-2.0
"""No scenario module: one trunk for all scenarios."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from deltarec.config import Config as BaseConfig
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class NoScenario(ScenarioModule):
    """The trunk as it is; scenarios differ only by the features that are fed in."""

    class Config(BaseConfig):
        """The scenario module none has no options."""

        name: Literal["none"]

    def __init__(
        self,
        config: Any,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        self.trunk = make_trunk(shapes)
        self.output_dim = self.trunk.output_dim

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        return self.trunk(fields)
