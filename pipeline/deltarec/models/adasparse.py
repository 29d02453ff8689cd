# SPDX-License-Identifier: Apache-2.0
"""AdaSparse (Yang et al., CIKM 2022, arXiv 2206.13108): neurons pruned by scenario."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class AdaSparse(ScenarioModule):
    """Each level h of the trunk's deep part becomes `h ∘ π`, with π = 0 where it is at most ε.

    π = β σ(α W_l [scenario; h]) (the paper's fusion of binarisation and scaling). α grows
    with the steps of training, which drives π towards 0 and β. Without the paper's regulariser,
    which keeps the share of pruned neurons in a range: scenario modules have no losses.
    """

    class Config(BaseConfig):
        """Options of the scenario module adasparse."""

        name: Literal["adasparse"]
        beta: float = Field(default=2.0, gt=0)
        """The largest factor."""
        epsilon: float = Field(default=0.01, ge=0)
        """Neurons with factors up to this are pruned."""
        alpha: float = Field(default=1.0, gt=0)
        """How steep the factors are at the start."""
        growth: float = Field(default=1e-4, ge=0)
        """What each step of training adds to alpha."""
        scenario_dim: int = Field(default=16, gt=0)
        """Width of a scenario's own vector."""

    steps: Tensor

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        self.trunk = make_trunk(shapes)
        self.output_dim = self.trunk.output_dim
        self.config = config
        self.scenarios = nn.Embedding(num_scenarios, config.scenario_dim)
        self.pruners = nn.ModuleList(
            nn.Linear(config.scenario_dim + width, width) for width in self.trunk.widths
        )
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        vectors = self.scenarios(scenario)
        alpha = self.config.alpha + self.config.growth * self.steps

        def adapt(level: int, h: Tensor) -> Tensor:
            score = self.pruners[level](torch.cat([vectors, h], dim=1))
            factor = self.config.beta * torch.sigmoid(alpha * score)
            return h * torch.where(factor > self.config.epsilon, factor, 0)

        y = self.trunk(fields, adapt)
        if self.training:
            self.steps += 1
        return y
