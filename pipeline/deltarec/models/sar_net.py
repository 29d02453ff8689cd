# SPDX-License-Identifier: Apache-2.0
"""SAR-Net (Shen et al., CIKM 2021, arXiv 2110.06475): a transform and experts of each scenario."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.layers.grouped_linear import GroupedLinear, Groups
from deltarec.layers.mlp import ACTIVATIONS, MLP, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class SARNet(ScenarioModule):
    """`MLP(Σ_e softmax(W h)_e f_e(h))`, h = trunk(x ∘ w_s + b_s), x all fields and dense inputs.

    The experts e are one layer each: some that all scenarios share, some of the scenario's own.
    With a trunk without layers it is the paper's, but for the attention over behaviour sequences,
    which is the sequence encoder's role here.
    """

    class Config(MLPConfig):
        """Options of the scenario module sar_net; `hidden` and the rest are of the last layers."""

        name: Literal["sar_net"]
        hidden: list[PositiveInt] = [32]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of the layers over the mixed experts."""
        shared: int = Field(default=8, gt=0)
        """Experts that all scenarios share."""
        specific: int = Field(default=2, gt=0)
        """Experts of each scenario's own."""
        expert: int = Field(default=16, gt=0)
        """Width of an expert."""

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        self.trunk = make_trunk(shapes)
        self.num_scenarios = num_scenarios
        width = self.trunk.output_dim
        self.scale = nn.Parameter(torch.ones(num_scenarios, shapes.width))
        self.shift = nn.Parameter(torch.zeros(num_scenarios, shapes.width))
        # Experts of one input are one layer with their outputs side by side.
        self.shared = nn.Linear(width, config.shared * config.expert)
        self.specific = GroupedLinear(width, config.specific * config.expert, num_scenarios)
        self.activation = ACTIVATIONS[config.activation]()
        self.gate = nn.Linear(width, config.shared + config.specific)
        self.mlp = MLP.of(config.expert, config)
        self.output_dim = self.mlp.output_dim

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        groups = Groups.of(scenario, self.num_scenarios)
        scale, shift = (p.index_select(0, scenario) for p in (self.scale, self.shift))
        x = self.trunk(fields.mapped(lambda x: torch.addcmul(shift, x, scale)))
        experts = self.activation(torch.cat([self.shared(x), self.specific(x, groups)], dim=1))
        weights = self.gate(x).softmax(dim=1).unsqueeze(1)
        # [B, 1, E] @ [B, E, expert]
        mixed = torch.bmm(weights, experts.unflatten(1, (weights.shape[2], -1))).squeeze(1)
        return self.mlp(mixed)
